//! What can be wrong with files of identities, and why a signature is not believed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use thiserror::Error;

use crate::telemetry::rfc3339;

/// Why identity files cannot be used or made. Each variant names the file and what to do about it.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each message names the fields of its variant")]
pub enum IdentityError {
    /// It cannot be read.
    #[error("reading {file}: {source}", file = file.display())]
    Read { file: PathBuf, source: io::Error },
    /// It cannot be written.
    #[error("writing {file}: {source}", file = file.display())]
    Write { file: PathBuf, source: io::Error },
    /// It is there, and nobody asked for it to be replaced.
    #[error("{file} is there already and was left alone; {advice}", file = file.display())]
    Exists { file: PathBuf, advice: &'static str },
    /// Anybody may change what is in this directory.
    #[error("{file} may be written by others (mode {mode:04o}): keys and roots are not kept there; chmod 700 it", file = file.display())]
    OpenDirectory { file: PathBuf, mode: u32 },
    /// It holds more than such a file ever does.
    #[error("{file} has more than {max} bytes: that is no key, certificate or bundle", file = file.display())]
    TooLarge { file: PathBuf, max: usize },
    /// Its content is not what its name says.
    #[error("{file}: {what}", file = file.display())]
    Content { file: PathBuf, what: Content },
    /// Everybody on the machine can read the key.
    #[error("{file} can be read by everybody (mode {mode:04o}): chmod 600 it, and replace the key", file = file.display())]
    OpenKey { file: PathBuf, mode: u32 },
    /// Key and certificate are of two pairs.
    #[error("{key} is not the key of {certificate}: both must come from the same `sluice ca` run",
        key = key.display(), certificate = certificate.display())]
    KeyMismatch { key: PathBuf, certificate: PathBuf },
    /// The node's certificate would be believed by nobody who trusts the bundle beside it.
    #[error("{certificate} does not verify against {bundle}: {reason}",
        certificate = certificate.display(), bundle = bundle.display())]
    NotTrusted { certificate: PathBuf, bundle: PathBuf, reason: Untrusted },
    /// What is there belongs to another node.
    #[error("{file} is the certificate of node {found}, not of {wanted}: give each node a directory of its own",
        file = file.display())]
    OtherNode { file: PathBuf, found: String, wanted: String },
    /// What is there belongs to another operator.
    #[error("{file} is the certificate of operator {found}, not of {wanted}: give each operator a directory of its own",
        file = file.display())]
    OtherOperator { file: PathBuf, found: String, wanted: String },
    /// A certificate must end before the one that issues it.
    #[error("{file} ends at {ends}, before the asked life would: ask for a shorter --life, or make a new root",
        file = file.display(), ends = rfc3339(*ends))]
    OutlivesRoot { file: PathBuf, ends: SystemTime },
    /// A root that is not valid now issues nothing.
    #[error("{file} is not valid now ({from} to {until}): is the clock right? An expired root must be replaced",
        file = file.display(), from = rfc3339(*from), until = rfc3339(*until))]
    RootNotValid { file: PathBuf, from: SystemTime, until: SystemTime },
    /// An issuer that is not valid now issues nothing.
    #[error("{file} is not valid now ({from} to {until}): renew the node with `sluice ca node --renew`",
        file = file.display(), from = rfc3339(*from), until = rfc3339(*until))]
    IssuerNotValid { file: PathBuf, from: SystemTime, until: SystemTime },
    /// What a node's workloads are issued by would be believed by nobody who trusts the bundle beside it.
    #[error("{file} may issue no certificate of a workload: {reason}", file = file.display())]
    NotAnIssuer { file: PathBuf, reason: Untrusted },
    /// The root has taken back what this node's workloads are issued by.
    #[error("{file} was revoked: renew the node with `sluice ca node --renew`, if it may still be one", file = file.display())]
    IssuerRevoked { file: PathBuf },
    /// A list says less than the one in force.
    #[error("{file} is older than what was read before, or gone: put the newest one of the CA there", file = file.display())]
    ListWentBack { file: PathBuf },
    /// Nothing is known that could be taken back.
    #[error("{file} names no certificate of {what} {name} whose time is not over: give its file with --certificate",
        file = file.display())]
    NothingIssued { file: PathBuf, what: &'static str, name: String },
    /// What shall be taken back is another CA's.
    #[error("{file} holds a certificate that no root of this directory has issued, or a root: only who issues takes back; a workload's \
             ends with its node's, and a root is replaced by `sluice ca rotate`", file = file.display())]
    NotIssuedHere { file: PathBuf },
    /// That is no number of a certificate.
    #[error("{text:?} is no serial number: pairs of hexadecimal digits, with or without colons")]
    NotASerial { text: String },
    /// The step before was not done.
    #[error("{file} is not there: {advice}", file = file.display())]
    NoRotation { file: PathBuf, advice: &'static str },
    /// Somebody would be believed by nobody.
    #[error("{file} has issued the only certificates of {names}: renew them, or let them go with --force", file = file.display())]
    LeftBehind { file: PathBuf, names: String },
    /// The nodes would not believe what the root issues.
    #[error("{file} does not hold {root}: put it there, or nodes believe nothing that this CA issues",
        file = file.display(), root = root.display())]
    BundleWithoutRoot { file: PathBuf, root: PathBuf },
    /// The life that was asked for is none that a certificate can have.
    #[error("a life of {seconds} s ends after the year 9999, the last that a certificate can name")]
    LifeTooLong { seconds: u64 },
    /// A Workload API has no such identity for this agent.
    #[error("the Workload API at {socket} hands out no certificate of {id} that holds now: it has to be registered for this agent",
        socket = socket.display())]
    NotHandedOut { socket: PathBuf, id: String },
    /// A Workload API does not answer as it should.
    #[error("the Workload API at {socket}: {what}", socket = socket.display())]
    WorkloadApi { socket: PathBuf, what: Arc<str> },
    /// The system's random numbers or the crypto library failed.
    #[error("making a key or certificate: {0}")]
    Issue(#[from] rcgen::Error),
}

impl IdentityError {
    /// Whether it says that a certificate that is held should be held no more.
    pub(super) fn takes_back(&self) -> bool {
        matches!(self, Self::IssuerRevoked { .. } | Self::NotHandedOut { .. })
    }
}

/// What is wrong with the content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say what each variant is")]
pub enum Content {
    #[error("it holds no PEM block CERTIFICATE")]
    NoCertificate,
    #[error("it holds no PEM block X509 CRL")]
    NoList,
    #[error("it holds {count} certificates, where one is expected")]
    SeveralCertificates { count: usize },
    #[error("it holds {count} roots, at most {max} are looked at")]
    TooManyRoots { count: usize, max: usize },
    #[error("its PEM is broken: {0}")]
    Pem(String),
    #[error("it holds no PEM block PRIVATE KEY (PKCS #8)")]
    NoKey,
    #[error("its key is none for ECDSA P-256 (PKCS #8)")]
    Key,
    #[error("its certificate has {bytes} bytes, at most {max} fit into a signature")]
    LargeCertificate { bytes: usize, max: usize },
    #[error("its certificate number {0} {1}")]
    Root(usize, RootFault),
    #[error("its certificates are of two trust domains, {0} and {1}")]
    MixedTrustDomains(String, String),
    #[error("its certificate is not that of a node: {0}")]
    NotNode(Untrusted),
    #[error("its certificate is not that of an operator: {0}")]
    NotOperator(Untrusted),
    #[error("its line {line} is not what `sluice ca` writes there")]
    Ledger { line: usize },
    #[error("it holds more than {max} lists")]
    TooManyLists { max: usize },
    #[error("its list number {0} {1}")]
    List(usize, ListFault),
}

/// Why a list of revoked certificates is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say what each variant is")]
pub enum ListFault {
    #[error("is not DER of an X.509 v2 CRL")]
    Der,
    #[error("is not signed by the root that it names (ECDSA P-256 with SHA-256)")]
    Signature,
    #[error("has a critical extension: lists in parts, or of other issuers' certificates, are not taken")]
    Critical,
    #[error("has no CRL number, or one above 2^64")]
    Number,
    #[error("is of the same root as another one")]
    Second,
}

/// Why a certificate is none of a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say what each variant is")]
pub enum RootFault {
    #[error("is not DER of X.509 v3")]
    Der,
    #[error("is not one of a CA (basicConstraints CA, keyUsage keyCertSign)")]
    NotCa,
    #[error("has a key other than ECDSA P-256")]
    Key,
    #[error("names no trust domain: exactly one URI spiffe://TRUST-DOMAIN is expected")]
    NoTrustDomain,
}

/// Why a signature is not believed. [`Untrusted::name`] is stable; metrics and `status` show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Untrusted {
    /// The signature or its certificate cannot be read.
    #[error("the signature or its certificate is malformed")]
    Malformed,
    /// No root of the bundle has issued the certificate. That of a node's intermediate is none.
    #[error("no root of the bundle has issued the certificate")]
    UnknownIssuer,
    /// The root that issued the certificate has taken it back.
    #[error("the certificate was revoked")]
    Revoked,
    /// The certificate has expired.
    #[error("the certificate has expired")]
    Expired,
    /// The certificate is not valid yet.
    #[error("the certificate is not valid yet")]
    NotYetValid,
    /// The root that issued it is not valid now.
    #[error("the root that issued the certificate is not valid now")]
    RootNotValid,
    /// A certificate of a CA signs certificates, not tables.
    #[error("the certificate is one of a CA")]
    CaCertificate,
    /// Its key usage or extended key usage allows no signatures of a node.
    #[error("the certificate's key usage allows no such signature")]
    WrongUsage,
    /// Its key is none for ECDSA P-256.
    #[error("the certificate's key is not ECDSA P-256")]
    UnsupportedKey,
    /// It is signed with something other than ECDSA P-256 with SHA-256.
    #[error("the certificate is not signed with ECDSA P-256 and SHA-256")]
    UnsupportedAlgorithm,
    /// It has a critical extension that is not understood.
    #[error(
        "the certificate has a critical extension that is not understood, or its issuer's constraints forbid it"
    )]
    Constrained,
    /// It has no URI, or one that is no SPIFFE id.
    #[error("the certificate has no SPIFFE id")]
    NoIdentity,
    /// It has more than one URI, so that nobody can say whose it is.
    #[error("the certificate has several URIs")]
    SeveralIdentities,
    /// Its id is of another trust domain than the bundle's.
    #[error("the certificate is of another trust domain")]
    WrongTrustDomain,
    /// Its id is not that of a node.
    #[error("the certificate is not that of a node")]
    NotANode,
    /// Its id is not that of an operator.
    #[error("the certificate is not that of an operator")]
    NotAnOperator,
    /// The message is not the one that was signed, or somebody else signed it.
    #[error("the signature does not fit the message")]
    BadSignature,
}

impl Untrusted {
    /// Every reason, for tables of counters.
    pub const ALL: [Self; 17] = [
        Self::Malformed,
        Self::UnknownIssuer,
        Self::Revoked,
        Self::Expired,
        Self::NotYetValid,
        Self::RootNotValid,
        Self::CaCertificate,
        Self::WrongUsage,
        Self::UnsupportedKey,
        Self::UnsupportedAlgorithm,
        Self::Constrained,
        Self::NoIdentity,
        Self::SeveralIdentities,
        Self::WrongTrustDomain,
        Self::NotANode,
        Self::NotAnOperator,
        Self::BadSignature,
    ];

    /// The reason's stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::RootNotValid => "root_not_valid",
            Self::CaCertificate => "ca_certificate",
            Self::WrongUsage => "wrong_usage",
            Self::UnsupportedKey => "unsupported_key",
            Self::UnsupportedAlgorithm => "unsupported_algorithm",
            Self::Constrained => "constrained",
            Self::NoIdentity => "no_identity",
            Self::SeveralIdentities => "several_identities",
            Self::WrongTrustDomain => "wrong_trust_domain",
            Self::NotANode => "not_a_node",
            Self::NotAnOperator => "not_an_operator",
            Self::BadSignature => "bad_signature",
        }
    }
}
