//! A captured connection, from a pod or to one: who dialled what, and which proxy takes it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;
use tokio::net::TcpStream;

use super::detect::{Told, detect};
use super::tcp::{self, Dial};
use super::{Context, Downstream, http};
use crate::compile::RoutingTable;
use crate::model::AppProtocol;
use crate::telemetry::Origin;

/// Serves one captured connection to its end. What not every connection needs is boxed, as the future of the idle ones is
/// most of what they cost.
pub(super) async fn serve(
    context: Context,
    (io, peer): (TcpStream, SocketAddr),
    listener: SocketAddr,
    origin: Origin,
) {
    let Ok(original_destination) = io.local_addr() else { return };
    if original_destination == listener {
        // Somebody dialled the listener itself; there is nothing behind it.
        tracing::debug!(%peer, "connection to the capture listener refused");
        return;
    }
    let table = context.tables.load_full();
    let shown = context.open.show(peer, original_destination, (&origin, SystemTime::now()));
    let downstream =
        Downstream { io, read: BytesMut::new(), peer, original_destination, origin, early: None, shown };
    let to = match table.frontends.get(&original_destination) {
        // Only the first bytes tell whether there are requests to judge.
        _ if downstream.origin == Origin::Inbound => {
            (Dial::pod(original_destination), AppProtocol::Undeclared)
        }
        Some(frontend) => (Dial::frontend(frontend, original_destination), frontend.protocol),
        None => {
            // The table changed between the kernel's decision and now.
            let dial = Dial::unknown(original_destination);
            return Box::pin(tcp::serve(&context, downstream, table, dial, None)).await;
        }
    };
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
