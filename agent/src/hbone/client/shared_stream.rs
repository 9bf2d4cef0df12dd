//! A stream as who dials is given it: a connection, or what only relays.

use std::fmt;
use std::io;
use std::pin::{Pin, pin};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use super::super::relay::send_all;
use super::super::{Broken, StreamEnd, pair, relay};
use super::Place;
use crate::net::{RelayFailure, Relayed, SharedStream};

/// A stream and its place on its connection.
pub(super) struct Shared {
    pub(super) halves: (SendStream<Bytes>, RecvStream),
    pub(super) place: Place,
}

impl Shared {
    /// Makes a connection of it.
    pub(super) async fn join(self) -> io::Result<TcpStream> {
        let (mut near, far) = pair().await?;
        spawn_local(async move {
            let _place = self.place;
            relay(&mut near, self.halves, std::future::pending()).await;
        });
        Ok(far)
    }

    async fn run(self, downstream: &mut TcpStream, read: Bytes, stop: impl Future<Output = ()>) -> Relayed {
        let Self { halves: (mut send, receive), place: _place } = self;
        let mut stop = pin!(stop);
        let begun = tokio::select! {
            biased;
            () = &mut stop => Err(Broken::Stopped("")),
            passed = send_all(&mut send, read) => passed,
        };
        let (ended, before) = match begun {
            Err(broken) => {
                let _ = downstream.set_zero_linger();
                send.send_reset(Reason::CANCEL);
                (StreamEnd { broken: Some(broken), ..StreamEnd::default() }, 0)
            }
            Ok(before) => {
                let stop = async {
                    stop.await;
                    ""
                };
                (relay(downstream, (send, receive), stop).await, before)
            }
        };
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        let failure = ended.broken.map(|broken| match broken {
            Broken::Tunnel => RelayFailure::Upstream(reset()),
            Broken::Socket => RelayFailure::Downstream(reset()),
            Broken::Stopped(_) => RelayFailure::Stopped,
        });
        Relayed { sent: before + ended.to_tunnel, received: ended.to_socket, failure }
    }
}

impl SharedStream for Shared {
    fn relay<'a>(
        self: Box<Self>,
        downstream: &'a mut TcpStream,
        read: Bytes,
        stop: Pin<Box<dyn Future<Output = ()> + 'a>>,
    ) -> Pin<Box<dyn Future<Output = Relayed> + 'a>> {
        Box::pin(self.run(downstream, read, stop))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Shared({:?})", self.halves.0.stream_id())
    }
}
