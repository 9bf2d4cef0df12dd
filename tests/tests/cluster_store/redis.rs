//! The store in Redis, in all the ways in which Redis can be run.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use agent::cluster::{Event, RedisOptions, RedisStore, Store};
use anyhow::{Context, Result, ensure};
use lab::redis::Redis;
use lab::wait::{PATIENCE, wait_for};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::suite::{self, Site, candidate, put, snapshot, taken, told, until};

/// Servers, and how a client gets there.
pub struct Servers {
    pub servers: Vec<Redis>,
    pub options: RedisOptions,
}

impl Servers {
    /// One server, and whoever asks it.
    pub fn one(config: &str) -> Result<Self> {
        let server = Redis::start(config)?;
        let options = RedisOptions::new(&format!("redis://{}", server.address), "x");
        Ok(Self { servers: vec![server], options: patient(options) })
    }

    pub fn store(&self) -> Result<RedisStore> {
        Ok(RedisStore::connect(self.options.clone())?)
    }
}

/// A loaded machine may be slow, and a test that is slow is not wrong.
pub fn patient(options: RedisOptions) -> RedisOptions {
    RedisOptions { limit: Duration::from_secs(15), ..options }
}

impl Site for Servers {
    type Store = RedisStore;

    async fn client(&self) -> Result<RedisStore> {
        let store = self.store()?;
        // Once it answers, it is told of what happens.
        store.lease().await?;
        Ok(store)
    }

    async fn lose(&self) -> Result<()> {
        self.servers.iter().try_for_each(|server| server.ask(&["FLUSHALL"]).map(drop))
    }

    async fn moment(&self) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_redis_keeps_its_promises() -> Result<()> {
    suite::run(&Servers::one("")?).await
}

/// The line of the handbook that makes a user with no more rights than it needs.
pub fn documented_user() -> Result<String> {
    let text = include_str!("../../../docs/cluster.md");
    let line =
        text.lines().find(|line| line.starts_with("user sluice ")).context("no ACL line in the handbook")?;
    Ok(line.replace("CLUSTER", "x").replace("PASSWORD", "s3cr3t/@"))
}

#[tokio::test]
async fn a_user_with_the_documented_rights_is_enough() -> Result<()> {
    let mut site = Servers::one(&documented_user()?)?;
    site.options.url = format!("redis://sluice@{}", site.servers[0].address);
    let file = site.servers[0].file("password");
    fs::write(&file, "s3cr3t/@\n")?;
    site.options.password_file = Some(file);
    suite::run(&site).await
}

/// What TLS needs, in a directory.
pub struct Certificates {
    pub directory: tempfile::TempDir,
}

impl Certificates {
    /// An authority, and a certificate of it for a server on any loopback address that is named, and one for a client.
    pub fn for_server(ip: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let key = KeyPair::generate()?;
        let authority = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);
        let write = |name: &str, text: String| fs::write(directory.path().join(name), text);
        write("ca.crt", authority.pem())?;
        for (name, subject) in [("server", ip), ("client", "agent")] {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec![subject.to_owned()])?;
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.signed_by(&key, &issuer)?;
            write(&format!("{name}.crt"), certificate.pem())?;
            write(&format!("{name}.key"), key.serialize_pem())?;
        }
        Ok(Self { directory })
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// The port of TLS beside the other one.
pub const TLS_PORT: u16 = 6380;

/// A server with TLS that wants a client's certificate.
pub fn with_tls() -> Result<(Servers, Certificates)> {
    let mut server = Redis::start("")?;
    let ip = server.address.ip().to_string();
    let certificates = Certificates::for_server(&ip)?;
    let config = fs::read_to_string(server.file("redis.conf"))?;
    let root = certificates.directory.path().display().to_string();
    let tls = format!(
        "tls-port {TLS_PORT}\ntls-cert-file {root}/server.crt\ntls-key-file {root}/server.key\n\
         tls-ca-cert-file {root}/ca.crt\ntls-auth-clients yes\n"
    );
    fs::write(server.file("redis.conf"), config + &tls)?;
    server.restart()?;
    let mut options = patient(RedisOptions::new(&format!("rediss://{ip}:{TLS_PORT}"), "x"));
    options.ca_file = Some(certificates.file("ca.crt"));
    options.client_certificate = Some((certificates.file("client.crt"), certificates.file("client.key")));
    Ok((Servers { servers: vec![server], options }, certificates))
}

#[tokio::test]
async fn a_redis_behind_tls_keeps_its_promises() -> Result<()> {
    let (site, _certificates) = with_tls()?;
    suite::run(&site).await
}

#[tokio::test]
async fn a_redis_cluster_keeps_its_promises() -> Result<()> {
    let text = include_str!("../../../docs/cluster.md");
    let (_, further) = text.split_once("In Redis Cluster also `").context("no rights for Redis Cluster")?;
    let (further, _) = further.split_once('`').context("no end of the rights")?;
    let servers = Redis::start_cluster(&format!("{} {further}\n", documented_user()?))?;
    let addresses: Vec<_> = servers.iter().map(|server| server.address.to_string()).collect();
    let url = format!("redis+cluster://sluice:s3cr3t%2F%40@{}", addresses.join(","));
    let site = Servers { servers, options: patient(RedisOptions::new(&url, "x")) };
    suite::run(&site).await?;

    // Whoever takes one of its nodes for a whole Redis is told, if our keys are not on that node.
    let mut told = 0;
    for server in &site.servers {
        let store =
            RedisStore::connect(patient(RedisOptions::new(&format!("redis://{}", server.address), "x")))?;
        if let Err(error) = store.lease().await {
            ensure!(error.to_string().contains("use redis+cluster://"), "{error}");
            told += 1;
        }
    }
    ensure!(told == 2, "{told} of three nodes refuse");
    Ok(())
}

#[tokio::test]
async fn a_store_follows_its_sentinels() -> Result<()> {
    let master = Redis::start("")?;
    let replica = Redis::start(&format!(
        "replicaof {} {}\nreplica-announce-ip IP\nreplica-priority 1\n",
        master.address.ip(),
        master.address.port()
    ))?;
    let linked = |server: &Redis| {
        server.ask(&["INFO", "replication"]).is_ok_and(|info| info.contains("master_link_status:up"))
    };
    wait_for("the replica to be linked", PATIENCE, || linked(&replica))?;
    let sentinel = Redis::start_sentinel(master.address)?;
    let sees = || {
        let known = sentinel.ask(&["SENTINEL", "REPLICAS", "sluice"]).unwrap_or_default();
        known.contains(&replica.address.ip().to_string())
    };
    wait_for("the Sentinel to see the replica", Duration::from_secs(40), sees)?;
    // The first one never answers.
    let url = format!("redis+sentinel://127.0.0.1:1,{}/sluice", sentinel.address);
    let mut site = Servers { servers: vec![master], options: patient(RedisOptions::new(&url, "x")) };
    suite::run(&site).await?;
    site.lose().await?;

    let store = site.client().await?;
    let mut events = store.events();
    let lease = taken(&store, &candidate("a", 1, 0), suite::TTL).await?;
    store.publish(&lease, &snapshot("d", b"table")).await?;
    store.write(&[put("a", "1", None)]).await?;
    site.servers[0].ask(&["WAIT", "1", "5000"])?;
    site.servers[0].stop();
    told(&mut events, Event::Connected).await?;
    until(&site, "the new master", || async { Ok(store.renew(&lease, suite::TTL).await.unwrap_or(false)) })
        .await?;
    ensure!(store.snapshot().await?.is_some_and(|(table, _)| table == b"table"), "the table was lost");
    ensure!(replica.ask(&["INFO", "replication"])?.contains("role:master"), "who answers is not the replica");
    store.beat("a", b"", suite::TTL, true).await?;
    told(&mut events, Event::Nodes).await?;

    // A planned change: the old master comes back as a replica, takes over, and the one before refuses writes.
    let store = site.client().await?;
    site.servers[0].restart()?;
    wait_for("the old master to follow", Duration::from_mins(1), || linked(&site.servers[0]))?;
    until(&site, "the planned change", || async {
        Ok(sentinel.ask(&["SENTINEL", "FAILOVER", "sluice"]).is_ok())
    })
    .await?;
    until(&site, "the old master to lead again", || async {
        let role = site.servers[0].ask(&["INFO", "replication"])?;
        Ok(role.contains("role:master") && store.renew(&lease, suite::TTL).await.unwrap_or(false))
    })
    .await?;
    Ok(())
}
