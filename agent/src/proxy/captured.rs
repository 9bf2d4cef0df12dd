//! A captured connection, from a pod or to one: who dialled what, and which proxy takes it.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;
use futures_util::FutureExt;
use futures_util::future::OptionFuture;
use tokio::net::TcpStream;

use super::detect::{Told, detect};
use super::tcp::{self, Dial};
use super::{Context, Downstream, http};
use crate::compile::RoutingTable;
use crate::model::AppProtocol;
use crate::telemetry::Origin;

/// Serves one captured connection to its end. What not every connection needs is boxed, as the future of the idle ones is
/// most of what they cost; for the same reason what the beginning needs is gone before there is one.
pub(super) fn serve(
    context: Context,
    (io, peer): (TcpStream, SocketAddr),
    listener: SocketAddr,
    origin: Origin,
) -> impl Future<Output = ()> {
    let begun = begin(&context, (io, peer), listener, origin);
    let served = begun.map(|(downstream, table, to)| by_protocol(context, downstream, table, to));
    OptionFuture::from(served).map(|_| ())
}

/// Where a connection goes by the table; `None`: nowhere.
fn begin(
    context: &Context,
    (io, peer): (TcpStream, SocketAddr),
    listener: SocketAddr,
    origin: Origin,
) -> Option<(Downstream, Arc<RoutingTable>, (Dial, AppProtocol))> {
    let original_destination = io.local_addr().ok()?;
    if original_destination == listener {
        // Somebody dialled the listener itself; there is nothing behind it.
        tracing::debug!(%peer, "connection to the capture listener refused");
        return None;
    }
    let table = context.tables.load_full();
    let shown = context.open.show(peer, original_destination, (&origin, SystemTime::now()));
    let downstream = Downstream {
        io,
        read: BytesMut::new(),
        peer,
        original_destination,
        origin,
        early: None,
        shown,
        tls: None,
    };
    let to = match table.frontends.get(&original_destination) {
        // Only the first bytes tell whether there are requests to judge.
        _ if downstream.origin.is_inbound() => (Dial::pod(original_destination), AppProtocol::Undeclared),
        Some(frontend) => (Dial::frontend(frontend, original_destination), frontend.protocol),
        // The table changed between the kernel's decision and now.
        None => (Dial::unknown(original_destination), AppProtocol::Tcp),
    };
    Some((downstream, table, to))
}

/// Serves a connection to a pod whose bytes come from elsewhere than its client's socket.
pub(super) async fn serve_inbound(context: Context, downstream: Downstream) {
    let table = context.tables.load_full();
    let to = (Dial::pod(downstream.original_destination), AppProtocol::Undeclared);
    by_protocol(context, downstream, table, to).await;
}

async fn by_protocol(
    context: Context,
    mut downstream: Downstream,
    table: Arc<RoutingTable>,
    (dial, protocol): (Dial, AppProtocol),
) {
    match protocol {
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => {
            // Each request takes the table of its time; this one is old before the connection ends.
            drop((table, dial));
            http::serve(context, downstream).await;
        }
        AppProtocol::Tcp => {
            Box::pin(tcp::serve(&context, downstream, table, dial, None)).await;
        }
        AppProtocol::Undeclared => match Box::pin(detect(&context, &mut downstream, &dial)).await {
            Told::Http(dialled) => {
                let dialled = dialled.filter(|_| dial.is_as_it_comes());
                downstream.early = dialled.map(tcp::Dialled::into_early);
                drop((table, dial));
                http::serve(context, downstream).await;
            }
            Told::Opaque(dialled) => {
                Box::pin(tcp::serve(&context, downstream, table, dial, Some(dialled))).await;
            }
        },
    }
}
