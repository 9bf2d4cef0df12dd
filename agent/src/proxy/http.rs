//! HTTP/1.1 client connections, captured or accepted on a Gateway listener, from their first byte to their end.
//!
//! [`serve`] loops over the requests of one connection: [`connection`] reads a head, [`plan`] finds what its route asks
//! for, [`respond`] does it, with [`upstream`] for the connection to the endpoint and [`exchange`] for the streaming.

pub(super) mod changes;
mod connection;
mod exchange;
pub(super) mod heads;
mod plan;
mod record;
mod respond;
mod settings;
mod upstream;
mod wire;
mod worker;

pub use settings::HttpSettings;
pub use worker::HttpWorker;

use std::pin::pin;

use connection::{Connection, Ending, HeadRead};

use super::answer::Problem;
use super::{Context, Downstream};

/// Serves one client connection until it is closed. Runs within a local runtime.
///
/// Most connections are idle at any time, and their future is most of what each costs: what only a request needs is
/// boxed, and there for as long as the request. The allocator hands the same warm memory to one request after another.
pub async fn serve(ctx: Context, downstream: Downstream) {
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
            HeadRead::Closed => break Ending::Now,
            HeadRead::Refused(refusal) => break Box::pin(connection.refuse(Problem::Refused(refusal))).await,
            HeadRead::TooLate => break Box::pin(connection.refuse(Problem::HeaderTimeout)).await,
        }
        if let Some(ending) = Box::pin(connection.respond()).await {
            break ending;
        }
    };
    Box::pin(connection.close(ending)).await;
}

#[cfg(test)]
mod tests;
