//! One agent per node: a name that only one process of a network namespace can hold.
//!
//! Rules, routes and the nft table are the namespace's, and so is a name of the abstract socket family. The kernel takes
//! the name back when its holder ends, however it ends.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use super::CaptureError;

const NAME: &str = "sluice-capture";
/// An agent that was killed while it called a program may leave the name to that for a moment.
const PATIENCE: Duration = Duration::from_millis(500);
const AGAIN: Duration = Duration::from_millis(20);

/// The right to capture on this node, held until dropped.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "held, never used")] UnixListener);

impl Claim {
    /// Takes it for the caller's network namespace, before anything is changed there.
    pub fn take() -> Result<Self, CaptureError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match Self::named(NAME) {
                Err(CaptureError::Claimed) if Instant::now() < until => std::thread::sleep(AGAIN),
                taken => return taken,
            }
        }
    }

    fn named(name: &str) -> Result<Self, CaptureError> {
        let bound = SocketAddr::from_abstract_name(name).and_then(|name| UnixListener::bind_addr(&name));
        match bound {
            Ok(holder) => Ok(Self(holder)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(CaptureError::Claimed),
            Err(source) => Err(CaptureError::Listener { doing: "claiming the node", source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_lets_go() {
        let name = format!("sluice-capture-test-{}", std::process::id());
        let first = Claim::named(&name).unwrap();
        assert!(matches!(Claim::named(&name), Err(CaptureError::Claimed)));
        drop(first);
        Claim::named(&name).unwrap();
    }
}
