//! Why a TLS peer is refused: one list of names, for the log, the metric and `status`.

use std::io;

use rustls::{AlertDescription, CertificateError};
use thiserror::Error;

use super::{SpiffeId, Untrusted};

/// Why a handshake with a peer failed, or what it asks of a tunnel is refused. [`PeerRefusal::name`] is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[expect(missing_docs, reason = "the messages say what each variant is")]
pub enum PeerRefusal {
    #[error("the peer speaks no TLS")]
    NotTls,
    #[error("the peer offers no TLS 1.3, or nothing else that is asked for")]
    Incompatible,
    #[error("the peer does not offer HTTP/2 (ALPN h2)")]
    NoAlpn,
    #[error("the peer shows no certificate")]
    NoCertificate,
    #[error("the peer's chain has too many certificates, or too large ones")]
    ChainTooLarge,
    #[error("the peer's certificate is malformed")]
    Malformed,
    #[error("the peer's certificate has expired")]
    Expired,
    #[error("the peer's certificate is not valid yet")]
    NotYetValid,
    #[error("what issued the peer's certificate is not valid now")]
    IssuerNotValid,
    #[error("no root of the bundle stands behind the peer's certificate")]
    UnknownIssuer,
    #[error("the peer's certificate, or what issued it, was revoked")]
    Revoked,
    #[error("the peer's certificate is one of a CA")]
    CaCertificate,
    #[error("the peer's certificate is not made for this use")]
    WrongUsage,
    #[error("the peer's certificate is signed in a way that is not taken")]
    UnsupportedAlgorithm,
    #[error("the peer's certificate has a critical extension that is not understood, or breaks a constraint")]
    Constrained,
    #[error("the peer's certificate has no SPIFFE id")]
    NoIdentity,
    #[error("the peer's certificate has several URIs")]
    SeveralIdentities,
    #[error("the peer is of another trust domain")]
    WrongTrustDomain,
    #[error("the peer is another workload than the one at its address")]
    OtherIdentity,
    #[error("the peer's certificate was made on another node than the one that runs the workload")]
    WrongNode,
    #[error("the peer's signature does not fit its certificate")]
    BadSignature,
    #[error("no workload is known at the peer's address")]
    UnknownPeer,
    #[error("there is no certificate for the workload at this end")]
    NoOwnCertificate,
    #[error("the peer refused this end")]
    Refused,
    #[error("the peer closed the connection")]
    Closed,
    #[error("the peer took too long")]
    Timeout,
    #[error("the peer asks a tunnel for something else than a connection (CONNECT)")]
    NotConnect,
    #[error("the peer asks a tunnel for another destination than the pod that it dialled")]
    OtherDestination,
}

impl PeerRefusal {
    /// Every reason, for tables of counters.
    pub const ALL: [Self; 28] = [
        Self::NotTls,
        Self::Incompatible,
        Self::NoAlpn,
        Self::NoCertificate,
        Self::ChainTooLarge,
        Self::Malformed,
        Self::Expired,
        Self::NotYetValid,
        Self::IssuerNotValid,
        Self::UnknownIssuer,
        Self::Revoked,
        Self::CaCertificate,
        Self::WrongUsage,
        Self::UnsupportedAlgorithm,
        Self::Constrained,
        Self::NoIdentity,
        Self::SeveralIdentities,
        Self::WrongTrustDomain,
        Self::OtherIdentity,
        Self::WrongNode,
        Self::BadSignature,
        Self::UnknownPeer,
        Self::NoOwnCertificate,
        Self::Refused,
        Self::Closed,
        Self::Timeout,
        Self::NotConnect,
        Self::OtherDestination,
    ];

    /// The reason's stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::Incompatible => "incompatible",
            Self::NoAlpn => "no_alpn",
            Self::NoCertificate => "no_certificate",
            Self::ChainTooLarge => "chain_too_large",
            Self::Malformed => "malformed",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::IssuerNotValid => "issuer_not_valid",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Revoked => "revoked",
            Self::CaCertificate => "ca_certificate",
            Self::WrongUsage => "wrong_usage",
            Self::UnsupportedAlgorithm => "unsupported_algorithm",
            Self::Constrained => "constrained",
            Self::NoIdentity => "no_identity",
            Self::SeveralIdentities => "several_identities",
            Self::WrongTrustDomain => "wrong_trust_domain",
            Self::OtherIdentity => "other_identity",
            Self::WrongNode => "wrong_node",
            Self::BadSignature => "bad_signature",
            Self::UnknownPeer => "unknown_peer",
            Self::NoOwnCertificate => "no_own_certificate",
            Self::Refused => "refused",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::NotConnect => "not_connect",
            Self::OtherDestination => "other_destination",
        }
    }

    /// What a handshake's error means. The TLS library hands our own verifier's word through.
    pub fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => Self::of_tls(error),
            None => Self::Closed,
        }
    }

    fn of_tls(error: &rustls::Error) -> Self {
        use rustls::Error;
        match error {
            Error::InvalidCertificate(CertificateError::Other(other)) => {
                other.0.downcast_ref::<RefusedPeer>().map_or(Self::Malformed, |refused| refused.why)
            }
            Error::InvalidCertificate(CertificateError::BadSignature) => Self::BadSignature,
            Error::InvalidCertificate(_) => Self::Malformed,
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::NoApplicationProtocol | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                Self::NoAlpn
            }
            // Who dials TLS 1.3 alone is told of the version by a server that does not speak it.
            Error::AlertReceived(AlertDescription::ProtocolVersion) | Error::PeerIncompatible(_) => {
                Self::Incompatible
            }
            Error::AlertReceived(_) => Self::Refused,
            _ => Self::NotTls,
        }
    }
}

/// A peer that is refused, and who it says that it is, which nobody believes: for the log alone.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{why}")]
pub struct RefusedPeer {
    /// Why.
    pub why: PeerRefusal,
    /// The id in the certificate that it has shown, where there is one.
    pub presented: Option<SpiffeId>,
}

impl RefusedPeer {
    /// What a handshake's error means.
    pub fn of(error: &io::Error) -> Self {
        use rustls::Error;
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match inner {
            Some(Error::InvalidCertificate(CertificateError::Other(other))) => {
                other.0.downcast_ref::<Self>().cloned().unwrap_or(PeerRefusal::Malformed.into())
            }
            _ => PeerRefusal::of(error).into(),
        }
    }
}

impl From<PeerRefusal> for RefusedPeer {
    fn from(why: PeerRefusal) -> Self {
        Self { why, presented: None }
    }
}

impl From<Untrusted> for PeerRefusal {
    fn from(reason: Untrusted) -> Self {
        match reason {
            Untrusted::Malformed | Untrusted::UnsupportedKey => Self::Malformed,
            Untrusted::UnknownIssuer => Self::UnknownIssuer,
            Untrusted::Revoked => Self::Revoked,
            Untrusted::Expired => Self::Expired,
            Untrusted::NotYetValid => Self::NotYetValid,
            Untrusted::RootNotValid => Self::IssuerNotValid,
            Untrusted::CaCertificate => Self::CaCertificate,
            Untrusted::WrongUsage => Self::WrongUsage,
            Untrusted::UnsupportedAlgorithm => Self::UnsupportedAlgorithm,
            Untrusted::Constrained => Self::Constrained,
            Untrusted::NoIdentity => Self::NoIdentity,
            Untrusted::SeveralIdentities => Self::SeveralIdentities,
            Untrusted::WrongTrustDomain => Self::WrongTrustDomain,
            Untrusted::NotANode | Untrusted::NotAnOperator => Self::WrongNode,
            Untrusted::BadSignature => Self::BadSignature,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_in_order() {
        let names: HashSet<_> = PeerRefusal::ALL.iter().map(|refusal| refusal.name()).collect();
        assert_eq!(names.len(), PeerRefusal::ALL.len());
        for (index, refusal) in PeerRefusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, index, "{}", refusal.name());
        }
    }
}
