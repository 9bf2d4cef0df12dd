//! What is large travels beside what can't wait.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use agent::cluster::{Event, Lease, RedisOptions, RedisStore, Store, StoreError};
use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::MissedTickBehavior;

use crate::redis::Servers;
use crate::suite::{Site, candidate, put, snapshot, taken, told};

/// How long a prompt call may take: that of an agent with `--lease-ttl 6s`.
const LIMIT: Duration = Duration::from_secs(1);
/// The life of its lease.
const TTL: Duration = Duration::from_secs(6);
/// What is read and written: it takes three times [`LIMIT`], and is more than the sockets on the way hold.
const LARGE: usize = 24 << 20;
/// What each connection gets through at a turn, in either direction.
const PIECE: usize = 64 << 10;
/// Between two turns: 8 MB/s.
const TURN: Duration = Duration::from_millis(8);

/// A way to a server on which each connection is slow.
fn slow_way(to: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let serve = async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let ((client, _), server) = (listener.accept().await?, TcpStream::connect(to).await?);
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(slowly(from_client, to_server));
            tokio::spawn(slowly(from_server, to_client));
        }
    };
    std::thread::spawn(move || -> std::io::Result<()> { runtime.block_on(serve) });
    Ok(address)
}

/// Passes on one piece at each turn.
async fn slowly(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> std::io::Result<()> {
    let mut turns = tokio::time::interval(TURN);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut piece = vec![0; PIECE];
    loop {
        turns.tick().await;
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&piece[..length]).await?;
    }
}

/// Renews the lease for as long as something goes on, and fails with the first renewal that does.
async fn renewed_beside<T>(
    store: &RedisStore,
    lease: &Lease,
    what: impl Future<Output = Result<T, StoreError>>,
) -> Result<T> {
    let begun = Instant::now();
    let renewals = async {
        loop {
            match store.renew(lease, TTL).await {
                // The pace of a leader, several times.
                Ok(true) => tokio::time::sleep(LIMIT / 10).await,
                other => return anyhow!("a renewal after {:?}: {other:?}", begun.elapsed()),
            }
        }
    };
    tokio::select! {
        done = what => {
            ensure!(begun.elapsed() > 2 * LIMIT, "it took {:?}, which is not slow", begun.elapsed());
            Ok(done?)
        }
        failure = renewals => Err(failure),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_renewed_beside_what_is_large_on_a_slow_link() -> Result<()> {
    let site = Servers::one("")?;
    let way = slow_way(site.servers[0].address)?;
    let options = RedisOptions { limit: LIMIT, ..RedisOptions::new(&format!("redis://{way}"), "x") };
    let (store, near) = (RedisStore::connect(options)?, site.client().await?);
    let mut events = store.events();
    told(&mut events, Event::Connected).await?;
    let lease = taken(&store, &candidate("a", 1, 0), TTL).await?;

    let text = "x".repeat(LARGE);
    let writes = [put("a", &text, None)];
    renewed_beside(&store, &lease, store.write(&writes)).await.context("a write")?;
    let documents = renewed_beside(&store, &lease, store.documents("", 0)).await.context("documents")?;
    ensure!(documents.changed.iter().any(|found| found.text.as_deref() == Some(&text)), "it is not there");
    near.publish(&lease, &snapshot("d", text.as_bytes())).await?;
    let found = renewed_beside(&store, &lease, store.snapshot()).await.context("a table")?;
    ensure!(found.is_some_and(|(sealed, _)| sealed == text.as_bytes()), "the table is another one");
    let mut told = std::iter::from_fn(|| events.try_recv().ok());
    ensure!(told.all(|event| event != Event::Connected), "the connection was lost in between");
    Ok(())
}

#[tokio::test]
async fn what_is_large_waits_no_longer_for_a_stuck_server_than_what_is_small() -> Result<()> {
    let mut site = Servers::one("")?;
    site.options.limit = Duration::from_millis(500);
    let store = site.client().await?;
    site.servers[0].signal(Signal::SIGSTOP)?;
    let began = Instant::now();
    let failed = store.documents("", 0).await;
    ensure!(matches!(&failed, Err(StoreError::Unreachable(_))), "{failed:?}");
    // Some limits, and not the minute that a server has which answers otherwise.
    ensure!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
    Ok(())
}
