//! What the kernel has counted of a TCP connection (`TCP_INFO`, `linux/tcp.h`).

use std::os::fd::RawFd;
use std::time::Duration;

/// The part of `struct tcp_info` that is read; kernels before 4.19 give less.
const BYTES: usize = 216;
/// States of a socket whose peer has closed: CLOSE_WAIT, LAST_ACK, CLOSING.
const PEER_CLOSED: [u8; 3] = [8, 9, 11];

/// States of a socket whose connection stands, if perhaps one way only: ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT.
const CONNECTED: [u8; 4] = [1, 4, 5, 8];

/// The state of a listener.
const LISTENING: u8 = 10;

/// A connection's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpInfo {
    /// Bytes that this end was given to send.
    pub sent: u64,
    /// Bytes that it has received.
    pub received: u64,
    /// The smoothed round-trip time, where it was measured.
    pub rtt: Option<Duration>,
}

/// Asks about a socket; `None` where it is none, or the kernel is too old.
pub fn tcp_info(socket: RawFd) -> Option<TcpInfo> {
    let (bytes, len) = ask(socket)?;
    read_tcp_info(&bytes[..len])
}

/// Whether a socket's connection stands, so that no other one can have its addresses.
pub fn is_connected(socket: RawFd) -> bool {
    ask(socket).is_some_and(|(bytes, len)| len > 0 && CONNECTED.contains(&bytes[0]))
}

/// Whether connections wait in a listener's queue: `tcpi_unacked` counts them.
pub fn has_waiting(listener: RawFd) -> bool {
    ask(listener).is_some_and(|(bytes, _)| bytes[0] == LISTENING && bytes[24..28] != [0; 4])
}

fn ask(socket: RawFd) -> Option<([u8; BYTES], usize)> {
    let mut bytes = [0u8; BYTES];
    let mut len = libc::socklen_t::try_from(BYTES).ok()?;
    #[expect(unsafe_code, reason = "TCP_INFO has no safe wrapper that gives the counters of bytes")]
    // SAFETY: the kernel writes at most `len` bytes, the size of `bytes`, which outlives the call.
    let result = unsafe {
        libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, bytes.as_mut_ptr().cast(), &raw mut len)
    };
    (result == 0).then_some((bytes, (len as usize).min(BYTES)))
}

/// Reads a `struct tcp_info`.
pub fn read_tcp_info(bytes: &[u8]) -> Option<TcpInfo> {
    let long = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes);
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    // `tcpi_bytes_sent` without `tcpi_bytes_retrans`, and what waits in `tcpi_notsent_bytes`.
    let sent = long(200)?.saturating_sub(long(208)?) + u64::from(word(144)?);
    // `tcpi_bytes_received` counts the peer's FIN.
    let fin = u64::from(PEER_CLOSED.contains(bytes.first()?));
    let rtt = word(68)?;
    Some(TcpInfo {
        sent,
        received: long(128)?.saturating_sub(fin),
        rtt: (rtt > 0).then(|| Duration::from_micros(rtt.into())),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::time::Instant;

    use super::*;

    #[test]
    fn bytes_are_counted_without_what_is_no_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        assert!(!has_waiting(listener.as_raw_fd()));
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let start = Instant::now();
        while !has_waiting(listener.as_raw_fd()) {
            assert!(start.elapsed() < Duration::from_secs(10), "it waits in the queue");
        }
        assert!(!has_waiting(client.as_raw_fd()));
        let (mut server, _) = listener.accept().expect("accepts");
        assert!(!has_waiting(listener.as_raw_fd()));
        client.write_all(&vec![1; 70_000]).expect("writes");
        client.shutdown(Shutdown::Write).expect("shuts down");
        let mut read = Vec::new();
        server.read_to_end(&mut read).expect("reads");
        server.write_all(b"done").expect("writes");
        client.read_exact(&mut [0; 4]).expect("reads");
        let of_server = tcp_info(server.as_raw_fd()).expect("a socket");
        assert_eq!((of_server.sent, of_server.received), (4, 70_000));
        let of_client = tcp_info(client.as_raw_fd()).expect("a socket");
        assert!(is_connected(client.as_raw_fd()) && is_connected(server.as_raw_fd()));
        drop(server);
        let end = client.read(&mut [0; 1]).expect("an end");
        assert_eq!((end, is_connected(client.as_raw_fd())), (0, false));
        assert_eq!((of_client.sent, of_client.received), (70_000, 4));
        assert!(of_client.rtt.is_some());
    }

    #[test]
    fn what_is_short_tells_nothing() {
        assert_eq!(read_tcp_info(&[0; 104]), None);
        assert_eq!(read_tcp_info(&[]), None);
        assert_eq!(tcp_info(-1), None);
        assert!(!is_connected(-1));
    }
}
