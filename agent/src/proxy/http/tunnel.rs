//! A connection that has switched protocols: bytes both ways until both sides have closed theirs or one breaks off.

use std::cell::Cell;
use std::net::SocketAddr;

use super::caller::Caller;
use super::connection::{Connection, Ending};
use super::passed::Passed;
use super::plan::Planned;
use super::record::Trail;
use super::upstream::UpstreamConnection;
use super::wire::write_parts;
use super::worker::{Buffers, Held};
use crate::model::Asked;
use crate::net::{ConnectSource, RelayFailure, Relayed, Stream, relay_stream};
use crate::proxy::Protocol;
use crate::proxy::access::{self, ACCESS_DENIED};
use crate::telemetry::Flag;

impl Connection {
    /// Runs the tunnel to its end. It may be silent for as long as it likes, and outlives a drain's beginning: only its
    /// two ends know when it is over.
    /// Policies go on to be asked about the request that opened it.
    pub(super) async fn tunnel(
        &mut self,
        upstream: UpstreamConnection,
        planned: &Planned<'_>,
        trail: &mut Trail<'_>,
    ) -> Ending {
        // The pick goes on to count as load of its endpoint.
        let UpstreamConnection { io: mut upstream, key, pick: _pick, .. } = upstream;
        let (sent, received) = (Cell::new(0), Cell::new(0));
        let mut failure = self.pass_ahead(&mut upstream, &sent, &received).await.err();
        self.release_buffers();
        self.shown.is(Protocol::Tunnel, Some(key.address));
        // From here on it is a connection like an opaque one, and no request that keeps a worker busy.
        trail.slot = None;
        let (mut sent, mut received) = (sent.get(), received.get());
        if failure.is_none() {
            let relayed = self.relay(&mut upstream, planned, (key.address, key.source)).await;
            sent += relayed.sent;
            received += relayed.received;
            failure = relayed.failure;
        } else {
            let _ = self.io.set_zero_linger();
            let _ = upstream.set_zero_linger();
        }
        (trail.request_bytes, trail.response_bytes) = (sent, received);
        if let Some(failure) = failure {
            let (flag, details) = match failure {
                RelayFailure::Downstream(_) => (Flag::DownstreamClosed, "downstream_reset"),
                RelayFailure::Upstream(_) => (Flag::UpstreamClosed, "upstream_reset"),
                RelayFailure::Stopped => (Flag::AccessDenied, ACCESS_DENIED),
            };
            trail.flags.insert(flag);
            trail.details = details;
        }
        Ending::Now
    }

    async fn relay(
        &mut self,
        upstream: &mut Stream,
        planned: &Planned<'_>,
        endpoint: (SocketAddr, ConnectSource),
    ) -> Relayed {
        let Self { ctx, settings, io, buffers, peer, origin, original_destination, tls, .. } = self;
        let (peer, original_destination) = (*peer, *original_destination);
        let caller = Caller { ctx, settings, origin, peer, original_destination, tls: tls.as_deref() };
        let passed = Passed::new(caller, planned, &buffers.head, &buffers.request_id);
        let refused = access::until_refused(ctx, caller.client(), endpoint, Asked::Request(&passed));
        relay_stream(io, upstream, refused).await
    }

    /// Passes on what either side sent before it could know of the switch, or right behind it.
    async fn pass_ahead(
        &mut self,
        upstream: &mut Stream,
        sent: &Cell<u64>,
        received: &Cell<u64>,
    ) -> Result<(), RelayFailure> {
        let Buffers { client_in, upstream_in, .. } = &*self.buffers;
        tokio::try_join!(
            async {
                write_parts(upstream, [client_in, &[], &[]], None, sent).await.map_err(RelayFailure::Upstream)
            },
            async {
                let io = &mut self.io;
                write_parts(io, [upstream_in, &[], &[]], None, received)
                    .await
                    .map_err(RelayFailure::Downstream)
            },
        )?;
        Ok(())
    }

    /// Gives back all but what the record and policies need: a tunnel is mostly idle, and may be there for hours.
    fn release_buffers(&mut self) {
        let mut buffers = std::mem::replace(&mut self.buffers, Held::fresh());
        self.buffers.head = std::mem::take(&mut buffers.head);
        self.buffers.request_id = std::mem::take(&mut buffers.request_id);
        self.ctx.http.keep_buffers(buffers);
    }
}
