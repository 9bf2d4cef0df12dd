//! Flow events: what the kernel programs tell of each connection that is asked for.

use crate::capture::Reason;

/// Bytes of the ring buffer between the programs and the agent: some 5,000 events.
pub const RING_BYTES: u32 = 256 * 1024;
/// From this many unread bytes on, only one event in [`SAMPLE`] is told.
pub const PRESSURE_BYTES: u64 = RING_BYTES as u64 / 2;
/// See [`PRESSURE_BYTES`]; a power of two.
pub const SAMPLE: u64 = 16;

/// A connection that was asked for, and what became of its first packet.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowEvent {
    /// The sender's address in network byte order; IPv4 in the first four bytes.
    pub source: [u8; 16],
    /// The receiver's address, likewise.
    pub destination: [u8; 16],
    /// The sender's port in network byte order.
    pub source_port: [u8; 2],
    /// The receiver's port in network byte order.
    pub destination_port: [u8; 2],
    /// The interface by which the packet came.
    pub interface: u32,
    /// One of [`Reason`].
    pub reason: u32,
    /// 4 or 6.
    pub family: u8,
    /// Spelled out.
    pub padding: [u8; 3],
}

const _: () = assert!(size_of::<FlowEvent>() == 48);

impl FlowEvent {
    /// Reads what the programs have written; `None` where it is not an event of this layout.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 48] = bytes.try_into().ok()?;
        let (source, rest) = bytes.split_first_chunk::<16>()?;
        let (destination, rest) = rest.split_first_chunk::<16>()?;
        let (source_port, rest) = rest.split_first_chunk::<2>()?;
        let (destination_port, rest) = rest.split_first_chunk::<2>()?;
        let (interface, rest) = rest.split_first_chunk::<4>()?;
        let (reason, rest) = rest.split_first_chunk::<4>()?;
        let event = Self {
            source: *source,
            destination: *destination,
            source_port: *source_port,
            destination_port: *destination_port,
            interface: u32::from_ne_bytes(*interface),
            reason: u32::from_ne_bytes(*reason),
            family: rest[0],
            padding: [0; 3],
        };
        (matches!(event.family, 4 | 6) && event.reason().is_some()).then_some(event)
    }

    /// Why the packet went where it went.
    pub fn reason(&self) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| *reason as u32 == self.reason)
    }
}

/// Whether an event is told, given the bytes that nobody has read yet and a number that differs from packet to packet.
#[inline(always)]
pub fn told(unread: u64, number: u64) -> bool {
    unread < PRESSURE_BYTES || number & (SAMPLE - 1) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(family: u8, reason: u32) -> [u8; 48] {
        let mut bytes = [0u8; 48];
        bytes[..4].copy_from_slice(&[10, 0, 0, 1]);
        bytes[16..20].copy_from_slice(&[10, 96, 0, 1]);
        bytes[32..36].copy_from_slice(&[0x9c, 0x40, 0, 80]);
        bytes[36..40].copy_from_slice(&7u32.to_ne_bytes());
        bytes[40..44].copy_from_slice(&reason.to_ne_bytes());
        bytes[44] = family;
        bytes
    }

    #[test]
    fn an_event_reads_as_it_was_written() {
        let event = FlowEvent::read(&bytes(4, Reason::NoRoute as u32)).expect("is an event");
        assert_eq!((&event.source[..4], &event.destination[..4]), (&[10, 0, 0, 1][..], &[10, 96, 0, 1][..]));
        assert_eq!((event.source_port, event.destination_port), ([0x9c, 0x40], [0, 80]));
        assert_eq!((event.interface, event.family, event.reason()), (7, 4, Some(Reason::NoRoute)));
    }

    #[test]
    fn what_is_no_event_is_refused() {
        assert_eq!(FlowEvent::read(&bytes(5, 0)), None);
        assert_eq!(FlowEvent::read(&bytes(4, 9999)), None);
        assert_eq!(FlowEvent::read(&bytes(4, 0)[..47]), None);
        assert_eq!(FlowEvent::read(&[]), None);
    }

    #[test]
    fn under_pressure_one_of_some_is_told() {
        let count = |unread| (0..160).filter(|number| told(unread, *number)).count();
        assert_eq!((count(0), count(PRESSURE_BYTES - 1), count(PRESSURE_BYTES)), (160, 160, 10));
    }
}
