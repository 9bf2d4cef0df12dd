//! Moving opaque bytes both ways, with half-close kept and resets passed on.

use std::cell::RefCell;
use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// Bytes read at once. One such buffer serves a whole thread: a connection holds memory only for what its receiver has
/// not taken yet.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Steps after which a busy direction lets others run.
const STEPS_MAX: u32 = 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// How a relay went. The byte counts hold whether or not it failed.
#[derive(Debug, Default)]
pub struct Relayed {
    /// Bytes from the client to the upstream.
    pub sent: u64,
    /// Bytes from the upstream to the client.
    pub received: u64,
    /// Why it ended early; the side that failed first is named.
    pub failure: Option<RelayFailure>,
}

/// Which side broke off.
#[derive(Debug)]
pub enum RelayFailure {
    /// The client reset its connection, or can't be written to.
    Downstream(io::Error),
    /// The upstream reset its connection, or can't be written to.
    Upstream(io::Error),
}

/// Copies until both directions have ended, or one fails; the other side of a failure is reset, not closed politely.
pub async fn relay(downstream: &mut TcpStream, upstream: &mut TcpStream) -> Relayed {
    let mut relayed = Relayed::default();
    let result = {
        let (client_read, client_write) = downstream.split();
        let (server_read, server_write) = upstream.split();
        let up = pump(client_read, server_write, &mut relayed.sent);
        let down = pump(server_read, client_write, &mut relayed.received);
        tokio::try_join!(
            async { up.await.map_err(|end| end.failure(RelayFailure::Downstream, RelayFailure::Upstream)) },
            async { down.await.map_err(|end| end.failure(RelayFailure::Upstream, RelayFailure::Downstream)) },
        )
    };
    if let Err(failure) = result {
        // Dropping a socket that lingers for no time sends RST: the survivor learns that the stream was cut.
        let _ = downstream.set_zero_linger();
        let _ = upstream.set_zero_linger();
        relayed.failure = Some(failure);
    }
    relayed
}

/// Which end of one direction failed.
enum PumpError {
    Read(io::Error),
    Write(io::Error),
}

impl PumpError {
    fn failure(
        self,
        reader: impl FnOnce(io::Error) -> RelayFailure,
        writer: impl FnOnce(io::Error) -> RelayFailure,
    ) -> RelayFailure {
        match self {
            Self::Read(error) => reader(error),
            Self::Write(error) => writer(error),
        }
    }
}

/// Copies one direction to its end and closes the writer's side after it.
async fn pump(reader: ReadHalf<'_>, mut writer: WriteHalf<'_>, copied: &mut u64) -> Result<(), PumpError> {
    let mut moved = 0;
    loop {
        match step(&reader, &writer, copied) {
            Ok(Step::Moved) if moved < STEPS_MAX => moved += 1,
            Ok(Step::Moved) => {
                moved = 0;
                tokio::task::yield_now().await;
            }
            Ok(Step::Idle) => reader.readable().await.map_err(PumpError::Read)?,
            Ok(Step::Rest(rest)) => {
                writer.write_all(&rest).await.map_err(PumpError::Write)?;
                *copied += rest.len() as u64;
            }
            Ok(Step::End) => return writer.shutdown().await.map_err(PumpError::Write),
            Err(error) => return Err(error),
        }
    }
}

enum Step {
    Moved,
    Idle,
    Rest(Vec<u8>),
    End,
}

/// One read and one write, without waiting.
fn step(reader: &ReadHalf<'_>, writer: &WriteHalf<'_>, copied: &mut u64) -> Result<Step, PumpError> {
    SCRATCH.with_borrow_mut(|scratch| {
        let len = match reader.try_read(scratch) {
            Ok(0) => return Ok(Step::End),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Idle),
            Err(error) => return Err(PumpError::Read(error)),
        };
        let written = match writer.try_write(&scratch[..len]) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(PumpError::Write(error)),
        };
        *copied += written as u64;
        Ok(if written == len { Step::Moved } else { Step::Rest(scratch[written..len].to_vec()) })
    })
}
