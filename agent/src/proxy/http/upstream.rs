//! Getting a connection to an endpoint: opened early, kept from before, or dialled, with other endpoints behind it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::connection::Connection;
use crate::balance::Pick;
use crate::compile::{Cluster, Upstream};
use crate::net::{ConnectSource, ConnectTarget};
use crate::pool::{Liveness, PoolKey};
use crate::proxy::answer::Problem;
use crate::telemetry::Origin;

/// A connection to an endpoint, in use for one request.
#[derive(Debug)]
pub(super) struct UpstreamConnection {
    /// The socket.
    pub io: TcpStream,
    /// Where it is kept afterwards.
    pub key: PoolKey,
    /// Whether it has served a request before, so that its peer may have closed it meanwhile.
    pub reused: bool,
    /// The endpoint's load; `None` for an address that no table names.
    pub pick: Option<Pick>,
}

/// No endpoint could be connected to.
#[derive(Debug)]
pub(super) struct Unreached {
    /// Why the last one could not.
    pub problem: Problem,
    /// The last one that was tried: its address, and what the table knows of it.
    pub last: Option<(SocketAddr, Option<Arc<Upstream>>)>,
}

/// Where a request is to go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Goal<'t> {
    /// To an endpoint of a cluster.
    Cluster(&'t Arc<Cluster>),
    /// To the address that the client dialled.
    Address(SocketAddr),
}

/// What a connection for a request must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Whether a kept connection will do, and how sure one must be of it; `None`: a new one.
    pub kept: Option<Liveness>,
    /// When the request must be over, and what it is then.
    pub deadline: Option<(Instant, Problem)>,
}

impl Connection {
    /// A connection for a request. Failing to connect is always safe to try again elsewhere: nothing has been sent.
    pub(super) async fn acquire(
        &mut self,
        goal: Goal<'_>,
        wanted: Wanted,
    ) -> Result<UpstreamConnection, Unreached> {
        if let Goal::Cluster(cluster) = goal
            && let Some(early) = self.take_early(cluster)
        {
            return Ok(early);
        }
        let mut avoid = Vec::new();
        let mut unreached = Unreached { problem: Problem::NoEndpoint, last: None };
        for _ in 0..self.settings.connect_attempts.max(1) {
            let pick = match goal {
                Goal::Cluster(cluster) => {
                    match cluster.pick(self.peer.ip(), self.ctx.random.next(), &avoid) {
                        Some(pick) => Some(pick),
                        None => break,
                    }
                }
                Goal::Address(_) => None,
            };
            let address = match goal {
                Goal::Cluster(_) => {
                    pick.as_ref().map_or(self.original_destination, |pick| pick.upstream().address)
                }
                Goal::Address(address) => address,
            };
            if avoid.contains(&address) {
                // The cluster has no endpoint left that has not been tried.
                break;
            }
            let endpoint = pick.as_ref().map(|pick| Arc::clone(pick.upstream()));
            match self.connect(address, pick, wanted).await {
                Ok(connection) => return Ok(connection),
                Err(problem) => unreached = Unreached { problem, last: Some((address, endpoint)) },
            }
            if matches!(unreached.problem, Problem::RequestTimeout | Problem::TryTimeout) {
                break;
            }
            avoid.push(address);
        }
        Err(unreached)
    }

    /// The connection that was opened while the protocol was being told, if it leads to one of the cluster's endpoints.
    fn take_early(&mut self, cluster: &Cluster) -> Option<UpstreamConnection> {
        let belongs =
            |early: &Pick| cluster.endpoints.iter().any(|upstream| Arc::ptr_eq(upstream, early.upstream()));
        let (pick, io) = self.early.take_if(|(early, _)| belongs(early))?;
        let key = PoolKey {
            uid: Some(Arc::clone(&pick.upstream().uid)),
            address: pick.upstream().address,
            source: self.upstream_source(),
        };
        // It may have been closed meanwhile, like one that was kept.
        Some(UpstreamConnection { io, key, reused: true, pick: Some(pick) })
    }

    async fn connect(
        &mut self,
        address: SocketAddr,
        pick: Option<Pick>,
        wanted: Wanted,
    ) -> Result<UpstreamConnection, Problem> {
        let source = self.upstream_source();
        let uid = pick.as_ref().map(|pick| Arc::clone(&pick.upstream().uid));
        let key = PoolKey { uid, address, source };
        if let Some(io) = wanted.kept.and_then(|liveness| self.ctx.http.pool().take(&key, liveness)) {
            return Ok(UpstreamConnection { io, key, reused: true, pick });
        }
        let connect_by = Instant::now() + self.settings.connect_timeout;
        let (until, late) = match wanted.deadline {
            Some((at, problem)) if at < connect_by => (at, problem),
            _ => (connect_by, Problem::ConnectTimeout),
        };
        let source = match source {
            Some(pod) => ConnectSource::Pod(pod),
            None if self.unknown => ConnectSource::Translated,
            None => ConnectSource::Node,
        };
        let connecting = self.ctx.connector.connect(ConnectTarget { address, source });
        match Box::pin(tokio::time::timeout_at(until, connecting)).await {
            Ok(Ok(io)) => Ok(UpstreamConnection { io, key, reused: false, pick }),
            Ok(Err(error)) => Err(Problem::Connect(error.kind())),
            Err(_) => Err(late),
        }
    }

    /// The address that the endpoint sees: a captured pod's own.
    fn upstream_source(&self) -> Option<IpAddr> {
        match self.origin {
            Origin::Outbound if !self.unknown => Some(self.peer.ip()),
            Origin::Outbound | Origin::Gateway(_) => None,
        }
    }
}
