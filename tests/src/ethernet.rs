//! Ethernet frames byte by byte, and sockets that send and see them whole, for tests of programs that look at frames.
//!
//! Frames go to everyone (broadcast), so that no test needs to know a hardware address. Checksums are zero: what looks at
//! frames before the stack does not check them.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, bind, recv, send,
    sendmmsg, setsockopt, socket, sockopt,
};

/// Bytes of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;
const HEAD: [u8; 12] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1];
/// Frames of one system call.
const BATCH: usize = 64;
/// Room for frames that wait to be read.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A frame with a payload of a type.
pub fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&HEAD[..], &ethertype.to_be_bytes(), payload].concat()
}

/// A datagram of a protocol in a frame. Both addresses are of one family, or the frame is of nobody.
pub fn datagram((source, destination): (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
            let head = [0x45, 0, total[0], total[1], 0, 1, 0, 0, 64, protocol, 0, 0];
            let ends = [source.octets(), destination.octets()].concat();
            frame(0x0800, &[&head[..], &ends, payload].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let len = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
            let head = [0x60, 0, 0, 0, len[0], len[1], protocol, 64];
            let ends = [source.octets(), destination.octets()].concat();
            frame(0x86dd, &[&head[..], &ends, payload].concat())
        }
        _ => Vec::new(),
    }
}

/// A UDP datagram from port 40000 to port 9.
pub fn udp(ends: (IpAddr, IpAddr), payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let head = [0x9c, 0x40, 0, 9, len[0], len[1], 0, 0];
    datagram(ends, 17, &[&head[..], payload].concat())
}

/// A TCP segment from port 40000 to port 9 with these flags.
pub fn tcp(ends: (IpAddr, IpAddr), flags: u8) -> Vec<u8> {
    datagram(ends, 6, &[0x9c, 0x40, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0])
}

/// The frame with VLAN tags of these types before its own.
pub fn tagged(frame: &[u8], tags: &[u16]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|tag| [tag.to_be_bytes(), [0, 7]].concat());
    [&frame[..12], &tags.collect::<Vec<u8>>(), &frame[12..]].concat()
}

/// The frame with some bytes changed.
pub fn patched(frame: &[u8], patches: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for (at, byte) in patches {
        frame[*at] = *byte;
    }
    frame
}

/// A socket on one interface that sends and sees whole frames.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// On an interface of the namespace that the calling thread is in.
    pub fn open(interface: &str) -> Result<Self> {
        Self::with(interface, Some(SockProtocol::EthAll))
    }

    /// As [`Wire::open`], and sees nothing: the kernel then makes no copy of what is sent.
    pub fn sender(interface: &str) -> Result<Self> {
        Self::with(interface, None)
    }

    fn with(interface: &str, sees: Option<SockProtocol>) -> Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd =
            socket(AddressFamily::Packet, SockType::Raw, flags, sees).context("opening a packet socket")?;
        // The system's own limit is too small for a burst; only root may go beyond it.
        setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("enlarging a buffer")?;
        let mut addresses = getifaddrs().context("listing interfaces")?;
        let link = addresses
            .find_map(|entry| {
                let link = entry.address.and_then(|address| address.as_link_addr().copied());
                link.filter(|_| entry.interface_name == interface)
            })
            .with_context(|| format!("there is no interface {interface}"))?;
        bind(fd.as_raw_fd(), &link).with_context(|| format!("binding to {interface}"))?;
        Ok(Self(fd))
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            match send(self.0.as_raw_fd(), frame, MsgFlags::empty()) {
                Err(Errno::EAGAIN | Errno::ENOBUFS) => std::thread::yield_now(),
                other => return Ok(other.map(drop)?),
            }
        }
    }

    /// Sends frames with as few system calls as there can be.
    pub fn send_all(&self, frames: &[Vec<u8>]) -> io::Result<()> {
        let mut headers = MultiHeaders::<LinkAddr>::preallocate(BATCH, None);
        for batch in frames.chunks(BATCH) {
            let mut rest: Vec<[IoSlice<'_>; 1]> = batch.iter().map(|frame| [IoSlice::new(frame)]).collect();
            while !rest.is_empty() {
                let nowhere = vec![None; rest.len()];
                let flags = MsgFlags::empty();
                match sendmmsg(self.0.as_raw_fd(), &mut headers, &rest, nowhere, [], flags) {
                    Ok(sent) => drop(rest.drain(..sent.count())),
                    Err(Errno::EAGAIN | Errno::ENOBUFS) => std::thread::yield_now(),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// How many frames have come in since the last call, and how many of them hold `needle` somewhere.
    pub fn holding(&self, needle: &[u8]) -> io::Result<(usize, usize)> {
        let mut frame = vec![0; 1 << 16];
        let (mut all, mut holding) = (0, 0);
        loop {
            match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(len) => {
                    all += 1;
                    holding += usize::from(frame[..len].windows(needle.len()).any(|part| part == needle));
                }
                Err(Errno::EAGAIN) => return Ok((all, holding)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The frames that have come in since the last call and end with `payload`.
    pub fn arrived(&self, payload: &[u8]) -> io::Result<usize> {
        let mut frame = vec![0; 1 << 16];
        let mut arrived = 0;
        loop {
            match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(len) => arrived += usize::from(frame[..len].ends_with(payload)),
                Err(Errno::EAGAIN) => return Ok(arrived),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_lengths_that_they_say() {
        let v4 = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let v6 = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        assert_eq!(udp(v4, b"hello").len(), 14 + 20 + 8 + 5);
        assert_eq!(udp(v4, b"hello")[16..18], [0, 33]);
        assert_eq!(tcp(v6, 2)[18..21], [0, 20, 6]);
        assert_eq!(tagged(&tcp(v4, 2), &[0x8100])[12..18], [0x81, 0, 0, 7, 8, 0]);
        assert_eq!(patched(&[1, 2, 3], &[(1, 9)]), [1, 9, 3]);
        assert!(udp((v4.0, v6.1), b"").is_empty());
    }
}
