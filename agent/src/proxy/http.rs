//! HTTP/1.1 client connections, captured or accepted on a Gateway listener, from their first byte to their end.
//!
//! [`serve`] loops over the requests of one connection: [`connection`] reads a head, [`vet`] refuses what the settings rule
//! out, [`plan`] finds what its route asks for, [`respond`] does it, with [`upstream`] for the connection to the endpoint
//! and [`exchange`] for the streaming; [`tunnel`] takes over where the protocol is switched.

pub(super) mod caller;
pub(super) mod changes;
pub(super) mod connection;
pub(super) mod exchange;
pub(super) mod heads;
pub(super) mod pace;
pub(super) mod passed;
pub(super) mod plan;
pub(super) mod record;
mod respond;
mod settings;
pub(super) mod silence;
mod tunnel;
pub(super) mod upload;
pub(super) mod upstream;
pub(super) mod vet;
pub(super) mod wire;
pub(super) mod worker;

pub use settings::{FrameRates, Http2Settings, HttpSettings, Upgrades};
pub use worker::{HttpWorker, Share};

use std::pin::pin;

use connection::{Connection, Ending, HeadRead};

use super::answer::Problem;
use super::{Context, Downstream};
use crate::net::Stream;

/// Serves one client connection until it is closed. Runs within a local runtime.
///
/// Most connections are idle at any time, and their future is most of what each costs: what only a request needs is
/// boxed, and there for as long as the request. The allocator hands the same warm memory to one request after another.
pub fn serve(ctx: Context, downstream: Downstream<impl Into<Stream>>) -> impl Future<Output = ()> {
    serve_stream(ctx, downstream.into_stream())
}

async fn serve_stream(ctx: Context, downstream: Downstream<Stream>) {
    let mut drain = ctx.drain.clone();
    let grace = ctx.http.settings(&downstream.origin).drain_grace;
    let mut drained = pin!(async move {
        if drain.wait_for(|drains| *drains).await.is_err() {
            // Whoever could ask for a drain is gone.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(grace).await;
    });
    let mut connection = Connection::new(ctx, downstream);
    let ending = loop {
        match connection.read_head(drained.as_mut()).await {
            HeadRead::Whole => {}
            HeadRead::Http2 => {
                let (ctx, downstream) = connection.into_downstream();
                return Box::pin(super::http2::serve(ctx, downstream)).await;
            }
            HeadRead::Closed => break Ending::Now,
            HeadRead::Refused(refusal) => break Box::pin(connection.refuse(Problem::Refused(refusal))).await,
            HeadRead::TooLate => break Box::pin(connection.refuse(Problem::HeaderTimeout)).await,
        }
        if let Some(ending) = Box::pin(connection.respond()).await {
            break ending;
        }
        // Opened for the first request: one that no route wanted is closed, and counts as load no more.
        connection.early = None;
    };
    Box::pin(connection.close(ending)).await;
}

#[cfg(test)]
pub(super) mod tests;
