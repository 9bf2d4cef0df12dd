//! Closing a connection whose peer has still to read what it was told.
//!
//! A socket that is closed with bytes unread, or that gets more of them afterwards, makes the kernel send a reset, upon which
//! the peer's kernel fails its next write: it never comes to read what was said last.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long the peer of a refused handshake may take to read why and to leave.
const REFUSED_TIME: Duration = Duration::from_secs(1);
/// What it may send meanwhile. A TLS 1.3 client sends its first requests right behind its certificate.
const REFUSED_BYTES: u64 = 64 * 1024;
/// Bytes that are dropped at once.
const STEP_BYTES: usize = 4096;

/// Says that nothing more comes, then drops what does, until the peer closes or a bound is reached.
pub async fn linger(io: &mut (impl AsyncRead + AsyncWrite + Unpin), (time, bytes): (Duration, u64)) {
    let _ = tokio::time::timeout(time, close(io, bytes)).await;
}

/// The same after a refused handshake, whose alert has been written to the socket.
pub async fn linger_refused(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    linger(io, (REFUSED_TIME, REFUSED_BYTES)).await;
}

async fn close(io: &mut (impl AsyncRead + AsyncWrite + Unpin), most: u64) {
    if io.shutdown().await.is_err() {
        return;
    }
    let mut dropped = [0; STEP_BYTES];
    let mut left = most;
    while let Ok(bytes @ 1..) = io.read(&mut dropped).await {
        left = left.saturating_sub(bytes as u64);
        if left == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::duplex;

    use super::*;

    /// Of what a peer may send.
    const MOST: usize = 1024;
    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(30);
    const FOREVER: Duration = Duration::from_hours(1);

    /// A peer that reads what was said and leaves is waited for; one that stays, or floods, is not.
    #[tokio::test]
    async fn it_ends_with_the_peer_or_at_a_bound() {
        for (sends, leaves, time) in [
            (0, true, FOREVER),
            (100, true, FOREVER),
            (100, false, SHORT),
            (MOST - 1, false, SHORT),
            (MOST, false, FOREVER),
        ] {
            let (mut near, mut far) = duplex(MOST);
            near.write_all(b"alert").await.expect("room");
            far.write_all(&vec![0; sends]).await.expect("room");
            let start = Instant::now();
            let theirs = async {
                let mut heard = Vec::new();
                far.read_to_end(&mut heard).await.expect("an end");
                assert_eq!(heard, b"alert");
                if leaves {
                    far.shutdown().await.expect("it is open");
                }
            };
            let both = async { tokio::join!(linger(&mut near, (time, MOST as u64)), theirs) };
            let ended = tokio::time::timeout(LONG, both).await;
            assert!(ended.is_ok(), "{sends} bytes, leaves: {leaves}");
            assert!(time == FOREVER || start.elapsed() >= SHORT, "{sends} bytes, leaves: {leaves}");
        }
    }
}
