//! What an open tunnel rests on: the certificates that its peer has shown last. They are looked at again whenever whom to
//! believe changes and when their time is over, and the end that dialled has both ends show new ones before that.
//!
//! ```text
//! handshake ──▶ stands ──own certificate renewed, 3/4 of the peer's time over, or no longer believed──▶ proof asked (client)
//!                 ▲  │                                                                                    │
//!                 └──┼──────────────────────────────── both ends show new certificates ◀─────────────────┘
//!                    └──revoked, root gone, time over──▶ lost: every stream is reset
//! ```
//! A proof is one request on the tunnel itself ([`is_proof`]). A peer that knows nothing of proofs answers 400, like to
//! anything that is no CONNECT; its tunnels end with its certificates.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};

use super::{Mesh, Role};
use crate::identity::{Binding, Chain, Expected, PROOF_MAX_BYTES, PeerRefusal, WorkloadCertificate, tls};

/// Where a proof is asked for. The host is nobody's: the tunnel leads to one peer.
const PROOF_URI: &str = "https://tunnel.sluice.invalid/proof";
const PROOF_PATH: &str = "/proof";
/// How long an exchange of proofs may take.
const PROOF_WAIT: Duration = Duration::from_secs(2);
/// The least time between two exchanges; also what the last second of a certificate takes.
const RETRY: Duration = Duration::from_secs(1);
/// After an exchange that came to nothing the next one is tried so much later.
const LATER: Duration = Duration::from_secs(5);
/// The shortest wait.
const PAUSE: Duration = Duration::from_millis(50);
/// Clocks may be set: a wait for a moment is looked at again after so long.
const LOOK: Duration = Duration::from_hours(1);

/// What one tunnel rests on; it lives on its worker's thread.
#[derive(Debug)]
pub struct Standing {
    role: Role,
    binding: Binding,
    peer: Expected,
    own: RefCell<Arc<WorkloadCertificate>>,
    shown: RefCell<Chain>,
    /// Whether a proof is being looked at: one at a time.
    answering: Cell<bool>,
}

impl Standing {
    /// That of a handshake that went well: what this end has shown, and the peer.
    pub(super) fn new(
        role: Role,
        binding: Binding,
        (own, peer): (Arc<WorkloadCertificate>, Expected),
        shown: Chain,
    ) -> Self {
        let (own, shown, answering) = (RefCell::new(own), RefCell::new(shown), Cell::new(false));
        Self { role, binding, peer, own, shown, answering }
    }

    /// Whom it leads to, or comes from.
    pub fn peer(&self) -> &Expected {
        &self.peer
    }

    /// Whether the tunnel may go on; until when, if nothing changes.
    pub(super) fn check(&self, mesh: &Mesh) -> Result<SystemTime, PeerRefusal> {
        let (now, certificates) = (mesh.now(), mesh.certificates());
        // One that was revoked or withdrawn is not held any more; a newer one is shown to the peer in time.
        if certificates.get(self.own.borrow().id(), now).is_none() {
            return Err(PeerRefusal::NoOwnCertificate);
        }
        tls::check(&certificates.bundle(), &self.peer, &self.shown.borrow(), self.role.peer(), now)
    }

    /// Until when new streams are given to it: each end's certificate then holds for another quarter of its time, or is shown
    /// anew for the streams that are there.
    pub(super) fn takes_streams_until(&self, mesh: &Mesh) -> SystemTime {
        let own = self.own.borrow().not_after();
        self.check(mesh).map_or(SystemTime::UNIX_EPOCH, |until| three_quarters(mesh.now(), until.min(own)))
    }

    /// Waits until the tunnel may not go on: for the end that was dialled, which is shown proofs and asks for none.
    pub async fn lost(&self, mesh: &Mesh) -> PeerRefusal {
        let mut changes = mesh.certificates().changes();
        loop {
            let seen = changes.borrow_and_update().source;
            let until = match self.check(mesh) {
                Ok(until) => until,
                Err(why) => return why,
            };
            tokio::select! {
                // The last second counts as a whole.
                () = sleep_to(mesh, until + RETRY) => {}
                _ = changes.wait_for(|changes| changes.source != seen) => {}
            }
        }
    }

    /// The same for the end that has dialled, which asks for proofs. `requests` is asked for when there is something to ask.
    pub(super) async fn kept(
        &self,
        mesh: &Mesh,
        requests: impl Fn() -> Option<SendRequest<Bytes>>,
    ) -> PeerRefusal {
        let mut changes = mesh.certificates().changes();
        let mut seen = changes.borrow_and_update().source;
        let mut until = match self.check(mesh) {
            Ok(until) => until,
            Err(why) => return why,
        };
        let mut due = three_quarters(mesh.now(), until);
        loop {
            tokio::select! {
                () = sleep_to(mesh, due.min(until + RETRY)) => {}
                _ = changes.changed() => {}
            }
            let newest = changes.borrow_and_update().source;
            let now = mesh.now();
            // Chains are only looked at when they may have become bad: certificates of others change all the time.
            let doubtful = newest != seen || now > until;
            seen = newest;
            let believed = !doubtful || self.check(mesh).is_ok();
            if believed && now < due && !self.has_newer(mesh) {
                continue;
            }
            let proven = match requests() {
                Some(requests) => self.exchange(mesh, requests).await,
                None => Err(PeerRefusal::Closed),
            };
            until = match self.check(mesh) {
                Ok(until) => until,
                Err(why) => return why,
            };
            due = self.next_try(mesh, proven, until);
        }
    }

    /// When both ends shall show new certificates after that.
    fn next_try(&self, mesh: &Mesh, proven: Result<(), PeerRefusal>, until: SystemTime) -> SystemTime {
        let now = mesh.now();
        match proven {
            Ok(()) => three_quarters(now, until).max(now + RETRY),
            // It knows no proofs; the tunnel ends with what it has shown.
            Err(PeerRefusal::Incompatible) => until + RETRY,
            Err(why) => {
                tracing::debug!(peer = %self.peer.id, reason = why.name(), "a tunnel's certificates stay");
                now + LATER
            }
        }
    }

    /// Whether this end has another certificate than the peer has seen.
    fn has_newer(&self, mesh: &Mesh) -> bool {
        let own = self.own.borrow();
        let held = mesh.certificates().get(own.id(), mesh.now());
        held.is_some_and(|held| !Arc::ptr_eq(&held, &own))
    }

    /// What this end shows now.
    fn prove(&self, mesh: &Mesh) -> Result<(Arc<WorkloadCertificate>, Vec<u8>), PeerRefusal> {
        let missing = PeerRefusal::NoOwnCertificate;
        let held = mesh.certificates().get(self.own.borrow().id(), mesh.now()).ok_or(missing)?;
        let proof = self.binding.prove(self.role.own(), &held).ok_or(missing)?;
        Ok((held, proof))
    }

    /// Takes what the peer has shown, where it is as good as in a handshake.
    fn take(&self, mesh: &Mesh, proof: &[u8]) -> Result<(), PeerRefusal> {
        let chain = self.binding.proven(self.role.peer(), proof)?;
        tls::check(&mesh.certificates().bundle(), &self.peer, &chain, self.role.peer(), mesh.now())?;
        *self.shown.borrow_mut() = chain;
        Ok(())
    }

    /// Shows this end's certificate and takes the peer's.
    async fn exchange(&self, mesh: &Mesh, requests: SendRequest<Bytes>) -> Result<(), PeerRefusal> {
        let (held, proof) = self.prove(mesh)?;
        let asked = tokio::time::timeout(PROOF_WAIT, ask(requests, proof)).await;
        let taken = asked.unwrap_or(Err(PeerRefusal::Timeout)).and_then(|answer| {
            // The peer has taken it, whatever this end thinks of the answer.
            *self.own.borrow_mut() = held;
            self.take(mesh, &answer)
        });
        mesh.counts().proofs.count(self.role, taken.as_ref().map_err(|why| *why));
        taken
    }

    /// Answers a request for a proof.
    pub async fn answer(&self, mesh: &Mesh, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let mut response = Response::new(());
        if self.answering.replace(true) {
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            let _ = respond.send_response(response, true);
            return;
        }
        let read = tokio::time::timeout(PROOF_WAIT, read(request.into_body())).await;
        self.answering.set(false);
        let taken = read.unwrap_or(Err(PeerRefusal::Timeout)).and_then(|proof| {
            self.take(mesh, &proof)?;
            self.prove(mesh)
        });
        mesh.counts().proofs.count(self.role, taken.as_ref().map_err(|why| *why));
        match taken {
            Ok((held, proof)) => {
                if let Ok(mut send) = respond.send_response(response, false)
                    && send.send_data(proof.into(), true).is_ok()
                {
                    *self.own.borrow_mut() = held;
                }
            }
            Err(why) => {
                tracing::debug!(peer = %self.peer.id, reason = why.name(), "certificates shown anew were refused");
                *response.status_mut() = StatusCode::FORBIDDEN;
                // A peer that is gone needs no answer.
                let _ = respond.send_response(response, true);
            }
        }
    }
}

/// Whether a request on a tunnel is one for a proof.
pub fn is_proof<Body>(request: &Request<Body>) -> bool {
    request.method() == Method::POST && request.uri().path() == PROOF_PATH
}

/// When a quarter of the time is left. A peer renews its certificate before, at 70 % of its life at the latest.
fn three_quarters(now: SystemTime, until: SystemTime) -> SystemTime {
    let left = until.duration_since(now).unwrap_or_default();
    now + left / 4 * 3
}

/// Waits for a moment. The mesh's clock has whole seconds, so that it may be asked once more.
async fn sleep_to(mesh: &Mesh, moment: SystemTime) {
    let left = moment.duration_since(mesh.now()).unwrap_or_default();
    tokio::time::sleep(left.clamp(PAUSE, LOOK)).await;
}

async fn ask(requests: SendRequest<Bytes>, proof: Vec<u8>) -> Result<Vec<u8>, PeerRefusal> {
    let closed = |_: h2::Error| PeerRefusal::Closed;
    let mut requests = requests.ready().await.map_err(closed)?;
    let request = Request::builder().method(Method::POST).uri(PROOF_URI).body(());
    let request = request.map_err(|_| PeerRefusal::Incompatible)?;
    let (answer, mut send) = requests.send_request(request, false).map_err(closed)?;
    drop(requests);
    send.send_data(proof.into(), true).map_err(closed)?;
    let answer = answer.await.map_err(closed)?;
    match answer.status() {
        StatusCode::OK => read(answer.into_body()).await,
        StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => Err(PeerRefusal::Refused),
        _ => Err(PeerRefusal::Incompatible),
    }
}

async fn read(mut body: RecvStream) -> Result<Vec<u8>, PeerRefusal> {
    let mut bytes = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(|_| PeerRefusal::Closed)?;
        if bytes.len() + piece.len() > PROOF_MAX_BYTES {
            return Err(PeerRefusal::ChainTooLarge);
        }
        bytes.extend_from_slice(&piece);
        let _ = body.flow_control().release_capacity(piece.len());
    }
    Ok(bytes)
}

/// What a tunnel is closed with whose certificates no longer hold.
pub const LOST: Reason = Reason::INADEQUATE_SECURITY;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_the_time_is_left() {
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        for (now, until, expected) in [(100, 200, 175), (100, 104, 103), (100, 100, 100), (100, 50, 100)] {
            assert_eq!(three_quarters(at(now), at(until)), at(expected), "from {now} to {until}");
        }
    }

    #[test]
    fn only_a_request_for_proof_is_one() {
        let cases = [
            (Method::POST, PROOF_URI, true),
            (Method::POST, "https://other/proof", true),
            (Method::GET, PROOF_URI, false),
            (Method::CONNECT, "10.0.0.9:80", false),
            (Method::POST, "https://other/proof/", false),
            (Method::POST, "/", false),
        ];
        for (method, uri, expected) in cases {
            let request = Request::builder().method(&method).uri(uri).body(()).expect("a request");
            assert_eq!(is_proof(&request), expected, "{method} {uri}");
        }
    }
}
