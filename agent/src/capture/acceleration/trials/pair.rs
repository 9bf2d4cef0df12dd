//! The two ends of a trial's connection, what is sent over it, and what can go wrong.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use nix::errno::Errno;

/// How long a trial waits for a byte or an event that does not come.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// What went wrong in a trial.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A call failed, or its time was over.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The error.
        source: io::Error,
    },
    /// Bytes were lost, or came in another order.
    #[error("{0}: the bytes are not those that were sent")]
    Bytes(&'static str),
    /// A number is wrong.
    #[error("{what}: {seen} instead of {expected}")]
    Number {
        /// What was counted.
        what: &'static str,
        /// What TCP says.
        expected: usize,
        /// What was seen.
        seen: usize,
    },
}

/// How a trial comes out.
pub type Outcome = Result<(), Fault>;

pub fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Fault {
    move |source| Fault::Io { doing, source }
}

pub fn errno(doing: &'static str) -> impl FnOnce(Errno) -> Fault {
    move |errno| Fault::Io { doing, source: errno.into() }
}

pub fn expect(what: &'static str, expected: usize, seen: usize) -> Outcome {
    if seen == expected { Ok(()) } else { Err(Fault::Number { what, expected, seen }) }
}

/// A connection's two ends.
pub struct Pair {
    /// The end that connected.
    pub dialling: TcpStream,
    /// The end that was accepted.
    pub answering: TcpStream,
}

impl Pair {
    pub fn new() -> Result<Self, Fault> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io("listening"))?;
        let address = listener.local_addr().map_err(io("listening"))?;
        let dialling = TcpStream::connect(address).map_err(io("connecting"))?;
        let (answering, _) = listener.accept().map_err(io("accepting"))?;
        Self { dialling, answering }.patient()
    }

    pub fn patient(self) -> Result<Self, Fault> {
        for end in [&self.dialling, &self.answering] {
            end.set_read_timeout(Some(PATIENCE)).map_err(io("setting a timeout"))?;
            end.set_write_timeout(Some(PATIENCE)).map_err(io("setting a timeout"))?;
        }
        Ok(self)
    }
}

/// Bytes in which no two places look alike.
pub fn pattern(len: usize) -> Vec<u8> {
    (0u32..).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).take(len).collect()
}

pub fn read_expected(mut from: &TcpStream, what: &'static str, expected: &[u8]) -> Outcome {
    let mut seen = vec![0; expected.len()];
    from.read_exact(&mut seen).map_err(io(what))?;
    if seen == expected { Ok(()) } else { Err(Fault::Bytes(what)) }
}

pub fn read_end(mut from: &TcpStream, what: &'static str) -> Outcome {
    let mut rest = Vec::new();
    from.read_to_end(&mut rest).map_err(io(what))?;
    expect(what, 0, rest.len())
}

pub fn send(mut to: &TcpStream, bytes: &[u8]) -> Outcome {
    to.write_all(bytes).map_err(io("writing"))
}
