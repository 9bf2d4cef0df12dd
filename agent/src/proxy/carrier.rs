//! What an opaque connection of a client may be on: a socket, or TLS that ends here.

use std::os::fd::AsRawFd;

use tokio::net::TcpStream;

use super::access::{self, Client};
use super::tcp::{self, Dial, Dialled, Undialled};
use super::{Context, Downstream};
use crate::model::Asked;
use crate::net::{ConnectSource, Line, Relayed, Stream, relay_stream};

/// What carries a client's bytes.
pub(super) trait Carrier: AsRawFd + Sized {
    /// Whether its bytes are what a client sent, and not what was within its TLS.
    const IS_RAW: bool;
    /// What is dialled for it.
    type Upstream;

    /// A connection that was dialled before, for it.
    fn upstream(io: TcpStream) -> Self::Upstream;

    /// Connects to an endpoint, and to another one where the first can't be reached.
    async fn dial(
        context: &Context,
        client: Client<'_>,
        dial: &Dial,
    ) -> Result<Dialled<Self::Upstream>, Undialled>;

    /// Relays to the end.
    async fn carry(
        context: &Context,
        downstream: &mut Downstream<Self>,
        dialled: Dialled<Self::Upstream>,
        source: ConnectSource,
    ) -> Relayed;

    /// Makes a reset of the connection's end.
    fn reset(&self);
}

impl Carrier for TcpStream {
    const IS_RAW: bool = true;
    type Upstream = Line;

    fn upstream(io: TcpStream) -> Line {
        Line::Socket(io)
    }

    async fn dial(context: &Context, client: Client<'_>, dial: &Dial) -> Result<Dialled<Line>, Undialled> {
        tcp::dial_line(context, client, dial).await
    }

    async fn carry(
        context: &Context,
        downstream: &mut Downstream,
        dialled: Dialled<Line>,
        source: ConnectSource,
    ) -> Relayed {
        tcp::relay_with_prefix(context, downstream, dialled, source).await
    }

    fn reset(&self) {
        let _ = self.set_zero_linger();
    }
}

/// Nobody dials for TLS before it has ended here, and nothing of what is within was read before.
impl Carrier for Stream {
    const IS_RAW: bool = false;
    type Upstream = TcpStream;

    fn upstream(io: TcpStream) -> TcpStream {
        io
    }

    async fn dial(context: &Context, client: Client<'_>, dial: &Dial) -> Result<Dialled, Undialled> {
        tcp::dial(context, client, dial).await
    }

    async fn carry(
        context: &Context,
        downstream: &mut Downstream<Self>,
        dialled: Dialled,
        source: ConnectSource,
    ) -> Relayed {
        let (address, upstream) = (dialled.address, dialled.io);
        let client = Client { peer: downstream.peer, origin: &downstream.origin };
        let refused = access::until_refused(context, client, (address, source), Asked::Opaque);
        relay_stream(&mut downstream.io, &mut Stream::Plain(upstream), refused).await
    }

    fn reset(&self) {
        let _ = self.set_zero_linger();
    }
}
