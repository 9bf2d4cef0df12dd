//! Whether a TLS peer is the workload that it should be: its chain, its times, its one name, and the node on which that
//! name was made. Pure but for the crypto: the time is passed in.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use super::certificate::{IntermediateCertificate, Validity, WorkloadLeaf, seconds};
use super::handed;
use super::trust::{Issuers, reason};
use super::{PeerRefusal, SpiffeId, TrustBundle, TrustDomain, Untrusted};

/// Most certificates that a peer may send behind its own: two overlapping intermediates, and one that nobody needs.
pub(super) const INTERMEDIATES_MAX: usize = 3;
/// Most bytes of all certificates of a peer; ours have less than 2 KiB together.
pub(super) const CHAIN_MAX_BYTES: usize = 16 * 1024;

/// Who a peer has to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Expected {
    /// The id of the workload at the peer's address.
    pub id: SpiffeId,
    /// The node that runs it.
    pub node: Arc<str>,
}

/// Whom a handshake takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// The one workload at the peer's address.
    Workload(Expected),
    /// Any of these Gateways: the peer's address is no workload's. Every node may serve every Gateway, so that any node's
    /// intermediate may have made the certificate.
    Gateway(Arc<HashSet<SpiffeId>>),
}

impl From<Expected> for Peer {
    fn from(expected: Expected) -> Self {
        Self::Workload(expected)
    }
}

impl Peer {
    /// Who it has to be, where that is one.
    pub fn id(&self) -> Option<&SpiffeId> {
        match self {
            Self::Workload(expected) => Some(&expected.id),
            Self::Gateway(_) => None,
        }
    }

    /// Who a peer has to be that shows this: of Gateways the one that it says, of the node that its issuer names. Neither is
    /// believed before [`check`] has been asked.
    pub fn expected(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<Expected, PeerRefusal> {
        let ids = match self {
            Self::Workload(expected) => return Ok(expected.clone()),
            Self::Gateway(ids) => ids,
        };
        let id = WorkloadLeaf::read(leaf)?.id;
        if !ids.contains(&id) {
            return Err(PeerRefusal::OtherIdentity);
        }
        let issuers = intermediates.iter().take(INTERMEDIATES_MAX);
        let node =
            issuers.filter_map(|der| IntermediateCertificate::read(der).ok()).map(|issuer| issuer.node);
        Ok(Expected { id, node: node.map(Arc::from).next().unwrap_or_default() })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(Expected { id, node }) => write!(f, "{id} on {node}"),
            Self::Gateway(_) => f.write_str("a Gateway"),
        }
    }
}

/// Which end of a connection the peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// It was dialled.
    Server,
    /// It dialled.
    Client,
}

/// Checks a peer's certificate and what it sent along. Answers the last second in which all of it holds.
pub(super) fn check(
    bundle: &TrustBundle,
    expected: &Expected,
    (leaf, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
    role: PeerRole,
    now: SystemTime,
) -> Result<SystemTime, PeerRefusal> {
    let bytes: usize = intermediates.iter().map(|der| der.len()).sum();
    if intermediates.len() > INTERMEDIATES_MAX || leaf.len() + bytes > CHAIN_MAX_BYTES {
        return Err(PeerRefusal::ChainTooLarge);
    }
    let said = WorkloadLeaf::read(leaf)?;
    said.validity.check(now)?;
    let parsed = EndEntityCert::try_from(leaf).map_err(|error| reason(&error))?;
    let anchors = bundle.anchors(now);
    if anchors.is_empty() {
        return Err(PeerRefusal::IssuerNotValid);
    }
    let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds(now).try_into().unwrap_or(0)));
    let usage = match role {
        PeerRole::Server => KeyUsage::server_auth(),
        PeerRole::Client => KeyUsage::client_auth(),
    };
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    let path = parsed
        .verify_for_usage(algorithms, &anchors, intermediates, time, usage, None, None)
        .map_err(|error| match PeerRefusal::from(reason(&error)) {
            // Its own times were looked at before.
            PeerRefusal::Expired | PeerRefusal::NotYetValid => PeerRefusal::IssuerNotValid,
            other => other,
        })?;
    if said.id.trust_domain() != bundle.trust_domain() {
        return Err(PeerRefusal::WrongTrustDomain);
    }
    if said.id != expected.id {
        return Err(PeerRefusal::OtherIdentity);
    }
    let root = bundle.root_of(&path)?;
    let issuer = match bundle.issuers() {
        Issuers::Nodes => check_issuer(&path, bundle.trust_domain(), expected)?,
        Issuers::Attesting => {
            let between: Vec<_> = path.intermediate_certificates().map(webpki::Cert::der).collect();
            handed::common_validity(&between)
        }
    };
    let until = said.validity.end().min(root.end());
    Ok(issuer.map_or(until, |issuer| until.min(issuer.end())))
}

/// What a root has issued itself may be anybody; what an intermediate has issued is of the node that it names. Answers when
/// the intermediate holds.
fn check_issuer(
    path: &VerifiedPath<'_>,
    trust_domain: &TrustDomain,
    expected: &Expected,
) -> Result<Option<Validity>, PeerRefusal> {
    let mut intermediates = path.intermediate_certificates();
    let Some(issuer) = intermediates.next() else { return Ok(None) };
    if intermediates.next().is_some() {
        return Err(PeerRefusal::ChainTooLarge);
    }
    let issuer = IntermediateCertificate::read(&issuer.der()).map_err(|why| match why {
        Untrusted::NotANode | Untrusted::NoIdentity => PeerRefusal::WrongNode,
        other => other.into(),
    })?;
    if issuer.id.trust_domain() != trust_domain {
        return Err(PeerRefusal::WrongTrustDomain);
    }
    if *issuer.node == *expected.node { Ok(Some(issuer.validity)) } else { Err(PeerRefusal::WrongNode) }
}
