//! The store in Redis 6.0 or newer, or what speaks as it does: one server, Sentinels, or Redis Cluster.
//!
//! Every method is one script, so that it happens as a whole; times are the server's. `docs/cluster.md` lists the keys.

mod counters;
mod dial;
mod documents;
mod failure;
mod keys;
mod link;
mod reply;
mod scripts;
mod target;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::redis::Value;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::broadcast;

pub use self::counters::{CountersReading, NodeHolds, RedisCounters};
use self::keys::Keys;
use self::link::Link;
use self::target::Target;
use super::store::{
    Acquired, BYTES_MAX, Candidate, DELTAS_MAX, Delta, Deltas, DocumentWrite, Documents, EPOCH_MAX, Event,
    HISTORY_MAX, Lease, LeaseState, MEMBER_KEPT, Member, Published, RECORD_MAX, RECORDS_MAX, Snapshot, Store,
    StoreError, Sums, Written, checked_node, checked_size,
};
use crate::compile::Token;

/// How far above all that a candidate knows a stored epoch may be: more than one term each second for a century, and
/// so little that somebody who writes nonsense there can do it two million times before no epoch is left.
const EPOCH_STEP: u64 = 1 << 32;

/// How Redis is reached.
#[derive(Clone)]
pub struct RedisOptions {
    /// `redis[s][+sentinel|+cluster]://[[USER]:PASSWORD@]HOST[:PORT][,...][/DATABASE or /MASTER]`.
    pub url: String,
    /// The cluster's name, which is part of every key.
    pub cluster: String,
    /// A file with the password, instead of one in the URL.
    pub password_file: Option<PathBuf>,
    /// The authorities, as PEM, of which one must have signed the server's certificate; without, the system's.
    pub ca_file: Option<PathBuf>,
    /// The certificate, as PEM, that is shown to the server, and its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// How long one call may take: less than a third of the shortest time that a lease or a heartbeat lives. What may be as
    /// large as a table has a minute, and no longer than this without any sign of the server.
    pub limit: Duration,
}

impl fmt::Debug for RedisOptions {
    /// Without the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl RedisOptions {
    /// Options for a URL and a cluster, and nothing else.
    pub fn new(url: &str, cluster: &str) -> Self {
        Self {
            url: url.to_owned(),
            cluster: cluster.to_owned(),
            password_file: None,
            ca_file: None,
            client_certificate: None,
            limit: Duration::from_secs(1),
        }
    }
}

/// A store in Redis. Clones share its connection.
#[derive(Clone)]
pub struct RedisStore {
    link: Arc<Link>,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").finish_non_exhaustive()
    }
}

impl RedisStore {
    /// Begins to connect, within a tokio runtime. A server that can't be reached is no error here, but one of each
    /// call until it can; a URL that can't be read, or a wrong name of a cluster, is one.
    pub fn connect(options: RedisOptions) -> Result<Self, StoreError> {
        let target = Target::parse(&options.url)?;
        let keys = Keys::new(&options.cluster)?;
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Somebody else may be first, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        Ok(Self { link: Arc::new(Link::new(options, target, keys)) })
    }

    fn keys(&self) -> &Keys {
        self.link.keys()
    }
}

impl Store for RedisStore {
    async fn acquire(&self, candidate: &Candidate, ttl: Duration) -> Result<Acquired, StoreError> {
        checked_node(&candidate.node)?;
        if candidate.above >= EPOCH_MAX {
            return Err(no_epoch());
        }
        let keys = self.keys();
        let nonce = format!("{:016x}", candidate.nonce);
        let arguments: [&[u8]; 8] = [
            candidate.node.as_bytes(),
            nonce.as_bytes(),
            &digits(candidate.above),
            &milliseconds(ttl),
            keys.events.as_bytes(),
            &digits(HISTORY_MAX as u64),
            &digits(EPOCH_MAX),
            &digits(EPOCH_STEP),
        ];
        let answer =
            self.link.run(&scripts::ACQUIRE, &[&keys.leader, &keys.epoch, &keys.terms], &arguments).await?;
        let mut answer = reply::list(answer)?.into_iter();
        let mut next = || answer.next().ok_or_else(reply::odd);
        match reply::number(&next()?)? {
            0 => Ok(Acquired::Held(reply::text(next()?)?.and_then(|text| Lease::parse(&text)))),
            1 => {
                let epoch = reply::number(&next()?)?;
                let passed = reply::text(next()?)?.unwrap_or_default();
                if !passed.is_empty() {
                    tracing::warn!(keys = passed.trim(), "foreign values were overwritten by an election");
                }
                let token = Token { epoch, nonce: candidate.nonce };
                Ok(Acquired::Yes(Lease { token, node: candidate.node.clone() }))
            }
            _ => Err(no_epoch()),
        }
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        let lease = lease.to_string();
        let arguments: [&[u8]; 2] = [lease.as_bytes(), &milliseconds(ttl)];
        let answer = self.link.run(&scripts::RENEW, &[&self.keys().leader], &arguments).await?;
        Ok(reply::number(&answer)? == 1)
    }

    async fn release(&self, lease: &Lease) -> Result<bool, StoreError> {
        let (keys, lease) = (self.keys(), lease.to_string());
        let arguments = [lease.as_bytes(), keys.events.as_bytes()];
        let answer = self.link.run(&scripts::RELEASE, &[&keys.leader], &arguments).await?;
        Ok(reply::number(&answer)? == 1)
    }

    async fn lease(&self) -> Result<LeaseState, StoreError> {
        let keys = self.keys();
        let most = digits(HISTORY_MAX as u64);
        let answer = self.link.run(&scripts::LEASE, &[&keys.leader, &keys.terms], &[&most]).await?;
        let [held, left, terms] = reply::fields(answer)?;
        let held = match reply::bytes(held)? {
            None => None,
            Some(bytes) => {
                let lease = String::from_utf8(bytes).ok().and_then(|text| Lease::parse(&text));
                let what = "is no lease".to_owned();
                let lease = lease.ok_or_else(|| StoreError::Foreign { key: keys.leader.clone(), what })?;
                Some((lease, Duration::from_millis(reply::number(&left)?)))
            }
        };
        let terms = reply::list(terms)?.into_iter().filter_map(|term| reply::text(term).ok().flatten());
        let history = terms.filter_map(|term| {
            let (at, lease) = term.split_once(' ')?;
            Some((Lease::parse(lease)?, at.parse().ok()?))
        });
        Ok(LeaseState { held, history: history.collect() })
    }

    async fn beat(&self, node: &str, record: &[u8], ttl: Duration, changed: bool) -> Result<(), StoreError> {
        checked_node(node)?;
        checked_size("a record", record.len())?;
        let keys = self.keys();
        let changed: &[u8] = if changed { b"1" } else { b"0" };
        let (ttl, kept) = (milliseconds(ttl), milliseconds(MEMBER_KEPT));
        let arguments = [node.as_bytes(), record, &ttl, changed, keys.events.as_bytes(), &kept];
        self.link.run(&scripts::BEAT, &[&keys.nodes, &keys.record(node)], &arguments).await.map(drop)
    }

    async fn leave(&self, node: &str) -> Result<(), StoreError> {
        let keys = self.keys();
        let arguments = [node.as_bytes(), keys.events.as_bytes()];
        self.link.run(&scripts::LEAVE, &[&keys.nodes, &keys.record(node)], &arguments).await.map(drop)
    }

    async fn members(&self) -> Result<Vec<Member>, StoreError> {
        let keys = self.keys();
        let (kept, most) = (milliseconds(MEMBER_KEPT), digits(RECORD_MAX as u64));
        let arguments = [keys.node.as_bytes(), &kept, &most, &digits(RECORDS_MAX as u64)];
        let answer = self.link.run(&scripts::MEMBERS, &[&keys.nodes], &arguments).await?;
        let mut members = Vec::new();
        for member in reply::list(answer)? {
            let [node, alive, record] = reply::fields(member)?;
            // What is no name was not written by a node.
            if let Some(node) = reply::text(node)?.filter(|node| checked_node(node).is_ok()) {
                let (alive, record) = (reply::number(&alive)? == 1, reply::bytes(record)?);
                members.push(Member { node: node.into(), alive, record });
            }
        }
        members.sort_by(|one, other| one.node.cmp(&other.node));
        Ok(members)
    }

    async fn documents(&self, store: &str, after: u64) -> Result<Documents, StoreError> {
        self.changed(store, after).await
    }

    async fn sums(&self, ids: &[Arc<str>]) -> Result<Sums, StoreError> {
        self.summed(ids).await
    }

    async fn write(&self, writes: &[DocumentWrite]) -> Result<Written, StoreError> {
        self.put(writes, String::new()).await
    }

    async fn restore(&self, writes: &[DocumentWrite], above: u64) -> Result<Written, StoreError> {
        self.put(writes, above.to_string()).await
    }

    async fn publish(&self, lease: &Lease, snapshot: &Snapshot) -> Result<Published, StoreError> {
        checked_size("a table", snapshot.sealed.len())?;
        let (keys, lease) = (self.keys(), lease.to_string());
        let arguments =
            [lease.as_bytes(), snapshot.digest.as_bytes(), &snapshot.sealed, keys.events.as_bytes()];
        published(
            self.link.run(&scripts::PUBLISH, &[&keys.leader, &keys.table, &keys.log], &arguments).await?,
        )
    }

    async fn append(&self, lease: &Lease, delta: &Delta) -> Result<Published, StoreError> {
        checked_size("a delta", delta.sealed.len())?;
        let (keys, lease) = (self.keys(), lease.to_string());
        let (most, bytes) = (digits(DELTAS_MAX as u64), digits(BYTES_MAX as u64));
        let arguments = [
            lease.as_bytes(),
            delta.previous.as_bytes(),
            delta.digest.as_bytes(),
            &delta.sealed,
            keys.events.as_bytes(),
            &most,
            &bytes,
        ];
        published(self.link.run(&scripts::APPEND, &[&keys.leader, &keys.table, &keys.log], &arguments).await?)
    }

    async fn snapshot(&self) -> Result<Option<(Vec<u8>, String)>, StoreError> {
        let answer =
            self.link.run(&scripts::SNAPSHOT, &[&self.keys().table], &[&digits(BYTES_MAX as u64)]).await?;
        if answer == Value::Nil {
            return Ok(None);
        }
        let [body, position] = reply::fields(answer)?;
        let body = reply::bytes(body)?.ok_or_else(reply::odd)?;
        Ok(Some((body, reply::text(position)?.unwrap_or_default())))
    }

    async fn deltas(&self, position: &str) -> Result<Deltas, StoreError> {
        let (most, bytes) = (digits(DELTAS_MAX as u64), digits(BYTES_MAX as u64));
        let arguments = [position.as_bytes(), &most, &bytes];
        let keys = [&*self.keys().log, &self.keys().table];
        let answer = self.link.run(&scripts::DELTAS, &keys, &arguments).await?;
        let [position, found, snapshot] = reply::fields(answer)?;
        let snapshot = reply::text(snapshot)?.unwrap_or_default();
        let mut sealed = Vec::new();
        for delta in reply::list(found)? {
            sealed.push(reply::bytes(delta)?.ok_or_else(reply::odd)?);
        }
        Ok(Deltas { position: reply::text(position)?.ok_or_else(reply::odd)?, snapshot, sealed })
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.link.events()
    }
}

fn published(answer: Value) -> Result<Published, StoreError> {
    let mut answer = reply::list(answer)?.into_iter();
    match answer.next().map(|code| reply::number(&code)).transpose()? {
        Some(0) => {
            let holder = answer.next().map(reply::text).transpose()?.flatten();
            Ok(Published::NotLeader(holder.and_then(|text| Lease::parse(&text))))
        }
        Some(1) => Ok(Published::Yes),
        Some(2) => Ok(Published::NeedsSnapshot),
        _ => Err(reply::odd()),
    }
}

fn no_epoch() -> StoreError {
    StoreError::Unfit(format!("no epoch is left below {EPOCH_MAX}"))
}

/// 128 random bits.
fn drawn() -> Result<String, StoreError> {
    let mut bytes = [0; 16];
    let drawn = SystemRandom::new().fill(&mut bytes);
    drawn.map_err(|_| StoreError::Unfit("this machine gives no random bits".to_owned()))?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

fn digits(number: u64) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// At least one, as Redis takes no lifetime of none.
fn milliseconds(time: Duration) -> Vec<u8> {
    digits(u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1))
}
