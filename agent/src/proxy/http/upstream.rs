//! Getting a connection to an endpoint: opened early, kept from before, or dialled, with other endpoints behind it.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::caller::Caller;
use super::connection::Connection;
use super::passed::Passed;
use super::plan::Planned;
use crate::balance::Pick;
use crate::compile::{Cluster, Denied, OUTSIDE_MESH, Security, Upstream, Within};
use crate::model::Asked;
use crate::net::{ConnectTarget, Stream};
use crate::pool::{Liveness, Pool, PoolKey, is_quiet};
use crate::proxy::access::Refused;
use crate::proxy::answer::Problem;
use crate::proxy::{Early, access, upstream_tls};

/// A connection to an endpoint, in use for one request.
#[derive(Debug)]
pub(in crate::proxy) struct UpstreamConnection {
    /// The socket.
    pub io: Stream,
    /// Where it is kept afterwards.
    pub key: PoolKey,
    /// Whether it has served a request before, so that its peer may have closed it meanwhile.
    pub reused: bool,
    /// Whether it was there without anything having been waited for.
    pub at_once: bool,
    /// Whether it was opened with the client's connection, whatever the pool had.
    pub early: bool,
    /// The endpoint's load; `None` for an address that no table names.
    pub pick: Option<Pick>,
}

impl UpstreamConnection {
    /// Keeps it for further requests; it is between two messages since `now`.
    pub fn keep(self, pool: &Pool, now: Instant) {
        if self.early { pool.put_unasked(self.key, self.io, now) } else { pool.put(self.key, self.io, now) }
    }
}

/// No endpoint could be connected to.
#[derive(Debug)]
pub(in crate::proxy) struct Unreached {
    /// Why the last one could not.
    pub problem: Problem,
    /// The last one that was tried: its address, and what the table knows of it.
    pub last: Option<(SocketAddr, Option<Arc<Upstream>>)>,
    /// The policy that refuses, where that is why.
    pub denied: Option<Denied>,
}

/// Where a request is to go.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) enum Goal<'t> {
    /// To an endpoint of a cluster.
    Cluster(&'t Arc<Cluster>),
    /// To the address that the client dialled.
    Address(SocketAddr),
    /// To an address that no table knows any more: the node's NAT may.
    Unknown(SocketAddr),
}

/// When a request must be over, and what it is then.
pub(in crate::proxy) type Deadline = Option<(Instant, Problem)>;

/// What a connection for a request must be.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct Wanted {
    /// Whether a kept connection will do, and how sure one must be of it; `None`: a new one.
    pub kept: Option<Liveness>,
    /// When the request must be over, and what it is then.
    pub deadline: Deadline,
    /// When the request came: a kept connection's age is counted to then.
    pub start: Instant,
}

impl Connection {
    /// A connection for a request.
    pub(super) async fn acquire(
        &mut self,
        goal: Goal<'_>,
        wanted: Wanted,
        planned: &Planned<'_>,
    ) -> Result<UpstreamConnection, Unreached> {
        // For the first request that is sent on or for none: it does not grow old here.
        let early = self.early.take();
        let passed = self.passed(planned);
        self.caller().acquire(goal, wanted, early, &passed).await
    }

    /// The request as its endpoint gets to see it.
    pub(in crate::proxy) fn passed<'a>(&'a self, planned: &Planned<'a>) -> Passed<'a> {
        Passed::new(self.caller(), planned, &self.buffers.head, &self.buffers.request_id)
    }
}

impl Caller<'_> {
    /// An HTTP/1.1 connection for a request.
    pub async fn acquire(
        self,
        goal: Goal<'_>,
        wanted: Wanted,
        early: Option<Early>,
        passed: &Passed<'_>,
    ) -> Result<UpstreamConnection, Unreached> {
        let (security, server_name) = self.security(goal, passed.asked_host());
        let early = early.filter(|_| security == Security::Way);
        if let Some((Early { io, pick }, address)) =
            take_early(early, goal, |io| is_quiet(io, Liveness::Asked))
            && access::may_reach(self.ctx, self.client(), address, Asked::Request(passed))
        {
            let key = self.pool_key(goal, address, pick.as_ref(), (security, server_name));
            // It may have been closed meanwhile, like one that was kept.
            let io = io.into();
            return Ok(UpstreamConnection { io, key, reused: true, at_once: true, early: true, pick });
        }
        let mut tries = 0;
        let connect = async |key: PoolKey| {
            tries += 1;
            if let Some(io) =
                wanted.kept.and_then(|liveness| self.ctx.http.pool().take(&key, liveness, wanted.start))
            {
                return Ok((io, key, true));
            }
            let io = self.dial(&key, Within::Http1, wanted.deadline).await?;
            Ok((io, key, false))
        };
        let reached = self.reach(goal, passed, connect).await;
        reached.map(|((io, key, reused), pick)| UpstreamConnection {
            io,
            key,
            reused,
            at_once: reused && tries == 1,
            early: false,
            pick,
        })
    }

    /// Chooses endpoints until one can be connected to. Failing to connect is always safe to try again elsewhere: nothing
    /// has been sent.
    pub async fn reach<T>(
        self,
        goal: Goal<'_>,
        passed: &Passed<'_>,
        mut connect: impl AsyncFnMut(PoolKey) -> Result<T, Problem>,
    ) -> Result<(T, Option<Pick>), Unreached> {
        let mut avoid = Vec::new();
        let security = self.security(goal, passed.asked_host());
        let mut unreached = Unreached { problem: Problem::NoEndpoint, last: None, denied: None };
        for _ in 0..self.settings.connect_attempts.max(1) {
            let (address, pick) = match goal {
                Goal::Cluster(cluster) => {
                    match cluster.pick(self.peer.ip(), self.ctx.random.next(), &avoid) {
                        Some(pick) => (pick.upstream().address, Some(pick)),
                        None => break,
                    }
                }
                Goal::Address(address) | Goal::Unknown(address) => (address, None),
            };
            if avoid.contains(&address) {
                // The cluster has no endpoint left that has not been tried.
                break;
            }
            if let Err(refused) = self.check_access(goal, address, passed) {
                // Other endpoints would refuse as well, or should not hide that this one does.
                let endpoint = pick.map(|pick| Arc::clone(pick.upstream()));
                let problem = Problem::Denied(refused.details());
                return Err(Unreached { problem, last: Some((address, endpoint)), denied: refused.0 });
            }
            if security.0 == Security::Mesh && !self.is_in_mesh(goal, address) {
                let endpoint = pick.map(|pick| Arc::clone(pick.upstream()));
                let problem = Problem::UpstreamTls(OUTSIDE_MESH);
                self.ctx.recorder.turned_away(OUTSIDE_MESH, self.peer, address);
                unreached = Unreached { problem, last: Some((address, endpoint)), denied: None };
                avoid.push(address);
                continue;
            }
            match connect(self.pool_key(goal, address, pick.as_ref(), security.clone())).await {
                Ok(connection) => return Ok((connection, pick)),
                Err(problem) => {
                    let endpoint = pick.map(|pick| Arc::clone(pick.upstream()));
                    unreached = Unreached { problem, last: Some((address, endpoint)), denied: None };
                }
            }
            if matches!(unreached.problem, Problem::RequestTimeout | Problem::TryTimeout) {
                break;
            }
            avoid.push(address);
        }
        Err(unreached)
    }

    /// Whether the mesh proves both ends of a connection to an endpoint.
    fn is_in_mesh(self, goal: Goal<'_>, address: SocketAddr) -> bool {
        upstream_tls::is_in_mesh(&self.ctx.tables.load(), self.upstream_source(goal), address.ip())
    }

    /// Whether the client may have what it asks for of an address.
    fn check_access(self, goal: Goal<'_>, address: SocketAddr, passed: &Passed<'_>) -> Result<(), Refused> {
        if matches!(goal, Goal::Unknown(_)) {
            access::check_translated(self.ctx)?;
        }
        access::check(self.ctx, self.client(), address, Asked::Request(passed))
    }

    /// What a connection to this endpoint is kept under.
    pub fn pool_key(
        self,
        goal: Goal<'_>,
        address: SocketAddr,
        pick: Option<&Pick>,
        (security, server_name): (Security, Option<Arc<str>>),
    ) -> PoolKey {
        let uid = match (pick, goal) {
            (Some(pick), _) => Some(Arc::clone(&pick.upstream().uid)),
            // A pod that was dialled by its own address, which will be another's one day.
            (None, Goal::Address(address)) => {
                let table = self.ctx.tables.load();
                table.workloads.get(&address.ip().to_canonical()).map(|pod| Arc::clone(&pod.uid))
            }
            (None, _) => None,
        };
        PoolKey { uid, address, source: self.upstream_source(goal), security, server_name }
    }

    /// Connects within the connect timeout and the request's own.
    pub async fn dial(self, key: &PoolKey, within: Within, deadline: Deadline) -> Result<Stream, Problem> {
        let (until, late) = self.connect_by(deadline);
        let target = ConnectTarget { address: key.address, source: key.source };
        let connecting = tokio::time::timeout_at(until, self.ctx.connector.connect(target));
        let io = match Box::pin(connecting).await {
            Ok(Ok(io)) => io,
            Ok(Err(error)) => {
                let problem = Problem::from(error);
                if let Problem::NoTunnel(why) = problem {
                    self.ctx.recorder.turned_away(why.name(), self.peer, key.address);
                }
                return Err(problem);
            }
            Err(_) => return Err(late),
        };
        let Some(tls) = key.security.tls() else { return Ok(Stream::Plain(io)) };
        let asked = (within, key.server_name.as_deref().unwrap_or_default());
        match Box::pin(tokio::time::timeout_at(until, upstream_tls::shake(io, tls, asked))).await {
            Ok(Ok(shaken)) => Ok(shaken),
            Ok(Err(why)) => {
                self.ctx.recorder.turned_away(why, self.peer, key.address);
                Err(Problem::UpstreamTls(why))
            }
            Err(_) => Err(late),
        }
    }

    /// Until when connecting may take, and what it is if it takes longer.
    pub fn connect_by(self, deadline: Deadline) -> (Instant, Problem) {
        let connect_by = Instant::now() + self.settings.connect_timeout;
        match deadline {
            Some((at, problem)) if at < connect_by => (at, problem),
            _ => (connect_by, Problem::ConnectTimeout),
        }
    }
}

/// The connection that was opened while the protocol was being told, and the address it leads to, if the request goes
/// there and the connection still `lives`.
pub(in crate::proxy) fn take_early(
    early: Option<Early>,
    goal: Goal<'_>,
    lives: impl Fn(&TcpStream) -> bool,
) -> Option<(Early, SocketAddr)> {
    let early = early.filter(|early| lives(&early.io))?;
    let address = match (goal, &early.pick) {
        (Goal::Cluster(cluster), Some(pick)) => {
            let endpoints = &cluster.endpoints;
            let picked = endpoints.iter().find(|upstream| Arc::ptr_eq(upstream, pick.upstream()));
            picked?.address
        }
        (Goal::Address(dialled), None) => dialled,
        _ => return None,
    };
    Some((early, address))
}
