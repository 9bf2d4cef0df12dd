//! Servers that are gone, stuck, full, read-only, too old, or want something else than they are given.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use agent::cluster::{Event, Published, RedisOptions, RedisStore, Store, StoreError};
use anyhow::{Context, Result, ensure};
use lab::redis::Redis;
use lab::wait::{PATIENCE, wait_for};
use nix::sys::signal::Signal;

use crate::redis::{Certificates, Servers, documented_user, patient, with_tls};
use crate::suite::{Site, TTL, candidate, put, snapshot, taken, told, until};

/// What a store with these options says at last.
async fn refusal(options: RedisOptions) -> Result<StoreError> {
    let store = RedisStore::connect(options)?;
    store.lease().await.err().context("it was let in")
}

#[tokio::test]
async fn a_full_server_takes_no_writes_and_lets_its_leader_lead_on() -> Result<()> {
    let site = Servers::one("maxmemory-policy noeviction\n")?;
    let (store, redis) = (site.client().await?, &site.servers[0]);
    let lease = taken(&store, &candidate("a", 1, 0), TTL).await?;
    store.write(&[put("a", "1", None)]).await?;
    redis.ask(&["CONFIG", "SET", "maxmemory", "1"])?;
    let written = store.write(&[put("a", "2", None)]).await;
    ensure!(matches!(&written, Err(StoreError::ReadOnly(why)) if why.contains("OOM")), "{written:?}");
    let published = store.publish(&lease, &snapshot("d", b"table")).await;
    ensure!(matches!(published, Err(StoreError::ReadOnly(_))), "{published:?}");
    let beat = store.beat("a", b"", TTL, false).await;
    ensure!(matches!(beat, Err(StoreError::ReadOnly(_))), "{beat:?}");
    ensure!(store.renew(&lease, TTL).await?, "a full server ends the term");
    ensure!(store.documents("", 0).await?.revision == 1, "something was written");
    ensure!(store.release(&lease).await?, "a full server keeps the lease");
    let acquired = store.acquire(&candidate("a", 1, 0), TTL).await;
    ensure!(matches!(acquired, Err(StoreError::ReadOnly(_))), "{acquired:?}");
    redis.ask(&["CONFIG", "SET", "maxmemory", "0"])?;
    ensure!(
        taken(&store, &candidate("a", 1, 0), TTL).await?.token.epoch == 2,
        "the refused try took an epoch"
    );
    Ok(())
}

#[tokio::test]
async fn a_replica_takes_no_writes() -> Result<()> {
    let site = Servers::one("")?;
    let master = site.client().await?;
    let lease = taken(&master, &candidate("a", 1, 0), TTL).await?;
    let address = site.servers[0].address;
    let replica = Redis::start(&format!("replicaof {} {}\n", address.ip(), address.port()))?;
    let linked =
        || replica.ask(&["INFO", "replication"]).is_ok_and(|info| info.contains("master_link_status:up"));
    wait_for("the replica to be linked", PATIENCE, linked)?;
    let store =
        RedisStore::connect(patient(RedisOptions::new(&format!("redis://{}", replica.address), "x")))?;
    ensure!(store.lease().await?.held.is_some_and(|(held, _)| held == lease), "it can't be read");
    for refused in [
        store.renew(&lease, TTL).await.map(drop),
        store.release(&lease).await.map(drop),
        store.write(&[put("a", "1", None)]).await.map(drop),
        store.beat("a", b"", TTL, true).await,
        store.publish(&lease, &snapshot("d", b"table")).await.map(drop),
    ] {
        ensure!(
            matches!(&refused, Err(StoreError::ReadOnly(why)) if why.contains("READONLY")),
            "{refused:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_stuck_server_holds_nobody_up_and_is_used_again_when_it_moves() -> Result<()> {
    let mut site = Servers::one("")?;
    let store = site.client().await?;
    site.options.limit = Duration::from_millis(500);
    let hasty = site.client().await?;
    let mut events = hasty.events();
    let lease = taken(&store, &candidate("a", 1, 0), TTL * 60).await?;
    site.servers[0].signal(Signal::SIGSTOP)?;
    let began = Instant::now();
    let failed = hasty.lease().await;
    ensure!(matches!(&failed, Err(StoreError::Unreachable(_))), "{failed:?}");
    // Its own limit, and not the one of whoever waits longer, with room for a loaded machine.
    ensure!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    site.servers[0].signal(Signal::SIGCONT)?;
    told(&mut events, Event::Connected).await?;
    until(&site, "the server to answer", || async { Ok(hasty.lease().await.is_ok()) }).await?;
    ensure!(hasty.renew(&lease, TTL).await?, "the lease was lost");
    ensure!(store.renew(&lease, TTL).await?, "who was patient lost its connection");
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_gone_is_told_at_once_and_found_again() -> Result<()> {
    let mut site = Servers::one("")?;
    let store = site.client().await?;
    let mut events = store.events();
    site.servers[0].stop();
    until(&site, "it to be missed", || async {
        Ok(matches!(store.lease().await, Err(StoreError::Unreachable(_))))
    })
    .await?;
    site.servers[0].restart()?;
    told(&mut events, Event::Connected).await?;
    store.write(&[put("a", "1", None)]).await?;
    told(&mut events, Event::Documents).await?;

    // Who begins while there is no server is let in when there is one.
    site.servers[0].stop();
    let late = site.store()?;
    let mut events = late.events();
    let failed = late.lease().await;
    ensure!(matches!(failed, Err(StoreError::Unreachable(_))), "{failed:?}");
    site.servers[0].restart()?;
    told(&mut events, Event::Connected).await?;
    ensure!(late.lease().await?.held.is_none());
    Ok(())
}

#[tokio::test]
async fn who_waits_in_vain_is_told_for_what() -> Result<()> {
    // It takes connections, and speaks no TLS nor anything else.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let address = silent.local_addr()?;
    for (url, what) in [
        (format!("rediss://{address}"), format!("while connecting to {address} by TLS")),
        (format!("redis://{address}"), format!("while connecting to {address}")),
        (format!("redis+cluster://{address}"), format!("while connecting to {address}")),
        ("redis://no-such-host.invalid".to_owned(), "while looking up no-such-host.invalid".to_owned()),
    ] {
        let error = refusal(RedisOptions::new(&url, "x")).await?;
        let told = matches!(&error, StoreError::Unreachable(why) if why.ends_with(&what));
        ensure!(told, "{url}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn wrong_credentials_are_told_and_tried_again() -> Result<()> {
    let site = Servers::one(&format!("{}\nrequirepass other\n", documented_user()?))?;
    let address = site.servers[0].address;
    let with = |credentials: &str, cluster: &str| {
        patient(RedisOptions::new(&format!("redis://{credentials}{address}"), cluster))
    };
    for options in [
        with("", "x"),
        with(":wrong@", "x"),
        with("sluice:wrong@", "x"),
        with("nobody:s3cr3t%2F%40@", "x"),
        // The right password, for a user that may not touch another cluster's keys.
        with("sluice:s3cr3t%2F%40@", "y"),
    ] {
        let url = options.url.clone();
        let error = refusal(options).await?;
        ensure!(matches!(error, StoreError::Denied(_)), "{url}: {error}");
        ensure!(!error.to_string().contains("s3cr3t") && !error.to_string().contains('\n'), "{url}: {error}");
    }
    let mut options = with("sluice@", "x");
    let file = site.servers[0].file("password");
    options.password_file = Some(file.clone());
    let store = RedisStore::connect(options)?;
    let mut events = store.events();
    let missing = store.lease().await;
    ensure!(matches!(&missing, Err(StoreError::Unfit(why)) if why.contains("password")), "{missing:?}");
    fs::write(&file, "s3cr3t/@\n")?;
    told(&mut events, Event::Connected).await?;
    store.lease().await?;

    // Rights that are taken away while a connection is open.
    site.servers[0].ask(&[
        "--no-auth-warning",
        "-a",
        "other",
        "ACL",
        "SETUSER",
        "sluice",
        "-xadd",
        "-zadd",
    ])?;
    let beat = store.beat("a", b"", TTL, true).await;
    ensure!(matches!(beat, Err(StoreError::Denied(_))), "{beat:?}");
    store.lease().await?;
    Ok(())
}

#[tokio::test]
async fn wrong_certificates_are_told() -> Result<()> {
    let (site, _certificates) = with_tls()?;
    let good = site.options.clone();
    RedisStore::connect(good.clone())?.lease().await?;
    let ip = site.servers[0].address.ip().to_string();
    let others = Certificates::for_server(&ip)?;

    let unknown = RedisOptions { ca_file: Some(others.file("ca.crt")), ..good.clone() };
    let error = refusal(unknown).await?;
    ensure!(matches!(&error, StoreError::Unfit(why) if why.contains("invalid peer certificate")), "{error}");
    let error = refusal(RedisOptions { client_certificate: None, ..good.clone() }).await?;
    ensure!(matches!(error, StoreError::Denied(_)), "without a certificate: {error}");
    let stranger = Some((others.file("client.crt"), others.file("client.key")));
    let error = refusal(RedisOptions { client_certificate: stranger, ..good.clone() }).await?;
    ensure!(matches!(error, StoreError::Denied(_)), "with a stranger's certificate: {error}");
    let error = refusal(RedisOptions { ca_file: Some(others.file("none")), ..good.clone() }).await?;
    ensure!(matches!(&error, StoreError::Unfit(why) if why.contains("can't be read")), "{error}");
    let error = refusal(RedisOptions { ca_file: Some(others.file("client.key")), ..good.clone() }).await?;
    ensure!(matches!(error, StoreError::Unfit(_)), "a key for an authority: {error}");
    // A server without TLS waits for the end of what it takes for a command.
    let (url, limit) = (format!("rediss://{}", site.servers[0].address), Duration::from_millis(500));
    let error = refusal(RedisOptions { url, limit, ..good }).await?;
    ensure!(matches!(error, StoreError::Unreachable(_)), "TLS to a server without: {error}");
    Ok(())
}

#[tokio::test]
async fn servers_that_can_t_do_it_are_told() -> Result<()> {
    let wrong = RedisStore::connect(RedisOptions::new("redis://h:x", "x"));
    ensure!(matches!(wrong, Err(StoreError::Unfit(_))), "{wrong:?}");
    for cluster in ["", "a b", "a}", "{a", "\u{e9}"] {
        let wrong = RedisStore::connect(RedisOptions::new("redis://h", cluster));
        ensure!(matches!(wrong, Err(StoreError::Unfit(_))), "{cluster}: {wrong:?}");
    }

    // What a Redis 5 says to everything that it does not know.
    let old = TcpListener::bind("127.0.0.1:0")?;
    let address = old.local_addr()?;
    std::thread::spawn(move || -> std::io::Result<()> {
        for client in old.incoming() {
            let mut client = client?;
            if client.read(&mut [0; 512])? > 0 {
                client.write_all(b"-ERR unknown command `HELLO`, with args beginning with: `3`, \r\n")?;
            }
        }
        Ok(())
    });
    let error = refusal(patient(RedisOptions::new(&format!("redis://{address}"), "x"))).await?;
    ensure!(matches!(&error, StoreError::Unfit(why) if why.contains("older than Redis 6.0")), "{error}");

    let drops = Servers::one("maxmemory 100mb\nmaxmemory-policy allkeys-lru\n")?;
    let error = refusal(drops.options.clone()).await?;
    ensure!(matches!(&error, StoreError::Unfit(why) if why.contains("allkeys-lru")), "{error}");

    let sentinel = Redis::start_sentinel(drops.servers[0].address)?;
    let url = format!("redis+sentinel://{}/nobody", sentinel.address);
    let error = refusal(patient(RedisOptions::new(&url, "x"))).await?;
    ensure!(error.to_string().contains("knows no master nobody"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_forgot_its_scripts_is_given_them_again() -> Result<()> {
    let site = Servers::one("")?;
    let store = site.client().await?;
    let lease = taken(&store, &candidate("a", 1, 0), TTL).await?;
    site.servers[0].ask(&["SCRIPT", "FLUSH"])?;
    ensure!(store.publish(&lease, &snapshot("d", b"table")).await? == Published::Yes);
    Ok(())
}

#[tokio::test]
async fn many_nodes_come_back_without_a_stampede() -> Result<()> {
    const NODES: usize = 200;
    let mut site = Servers::one("")?;
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        let store = site.client().await?;
        nodes.push((store.events(), store));
    }
    site.servers[0].restart()?;
    let began = Instant::now();
    for (events, _) in &mut nodes {
        told(events, Event::Connected).await?;
    }
    let stats = site.servers[0].ask(&["INFO", "stats"])?;
    let accepted = stats.lines().find_map(|line| line.trim().strip_prefix("total_connections_received:"));
    let accepted: usize = accepted.context("no count of connections")?.parse()?;
    println!("{NODES} nodes came back within {:?}, by {accepted} connections", began.elapsed());
    // Two for each, one that waited for the server to listen, and the one that asks.
    ensure!((2 * NODES..=2 * NODES + 2).contains(&accepted), "{accepted} connections for {NODES} nodes");
    Ok(())
}
