//! Certificates shown anew within a connection that is open: a chain, and a signature that binds it to this connection.
//!
//! TLS 1.3 has no handshake that could be repeated, so a connection would outlive what it was made with. What is signed holds
//! 32 bytes that TLS exports (RFC 8446, section 7.5): only the two ends of this connection know them, and no other one has
//! the same. So a proof is of no use elsewhere, and whoever took a certificate whose time is over can't make one with the next.
//! It is what RFC 9261 calls an exported authenticator, in a form of our own.

use ring::digest::{SHA256, digest};
use rustls::{ConnectionCommon, SignatureScheme};
use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;
use webpki::ring::{ECDSA_P256_SHA256, ECDSA_P384_SHA384};

use super::peer::{CHAIN_MAX_BYTES, INTERMEDIATES_MAX, PeerRole};
use super::{PeerRefusal, WorkloadCertificate};

/// The name under which TLS exports what a proof is bound to.
const LABEL: &[u8] = b"EXPORTER-sluice-tunnel-proof";
/// What comes before everything that is signed: a handshake's signature begins with spaces, a table's with another word.
const CONTEXTS: [&[u8; 32]; 2] = [b"sluice tunnel client v1\0........", b"sluice tunnel server v1\0........"];
/// The first byte of the one form that there is.
const FORM: u8 = 1;
/// How is signed; which of them, the key says.
const SCHEMES: [SignatureScheme; 2] =
    [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ECDSA_NISTP384_SHA384];
/// Longest signature: two scalars of P-384 in ASN.1.
const SIGNATURE_MAX_BYTES: usize = 110;
/// The longest that a proof is, in bytes.
pub const PROOF_MAX_BYTES: usize = 2 + CHAIN_MAX_BYTES + SIGNATURE_MAX_BYTES + 2 * (INTERMEDIATES_MAX + 2);

/// A chain, the peer's own certificate first.
pub type Chain = Vec<CertificateDer<'static>>;

/// What proofs of one connection are bound to. It is no key: what it is good for needs one beside it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Binding([u8; 32]);

impl Binding {
    /// That of a connection whose handshake is over; `None`: TLS has none.
    pub fn of<Data>(connection: &ConnectionCommon<Data>) -> Option<Self> {
        connection.export_keying_material([0; 32], LABEL, None).ok().map(Self)
    }

    fn signed(&self, role: PeerRole, certificates: &[u8]) -> Vec<u8> {
        let context = CONTEXTS[match role {
            PeerRole::Client => 0,
            PeerRole::Server => 1,
        }];
        [&context[..], &self.0, digest(&SHA256, certificates).as_ref()].concat()
    }

    /// The proof of the end of that role; `None`: its key can't sign that way.
    pub fn prove(&self, role: PeerRole, own: &WorkloadCertificate) -> Option<Vec<u8>> {
        let mut bytes = vec![FORM, u8::try_from(own.key.cert.len()).ok()?];
        for der in &own.key.cert {
            put(&mut bytes, der)?;
        }
        let signer = own.key.key.choose_scheme(&SCHEMES)?;
        let signature = signer.sign(&self.signed(role, &bytes)).ok()?;
        put(&mut bytes, &signature)?;
        Some(bytes)
    }

    /// The chain of which the end of that role has the key. Whether it is a good one is for [`super::peer`] to say.
    pub fn proven(&self, role: PeerRole, proof: &[u8]) -> Result<Chain, PeerRefusal> {
        let (chain, certificates, signature) = read(proof).ok_or(PeerRefusal::Malformed)?;
        let leaf = chain.first().ok_or(PeerRefusal::NoCertificate)?;
        let leaf = EndEntityCert::try_from(leaf).map_err(|_| PeerRefusal::Malformed)?;
        let signed = self.signed(role, certificates);
        let fits = |algorithm| leaf.verify_signature(algorithm, &signed, signature).is_ok();
        // The key is of one curve, so the other one fits nothing.
        let fits = [ECDSA_P256_SHA256, ECDSA_P384_SHA384].into_iter().any(fits);
        if fits { Ok(chain) } else { Err(PeerRefusal::BadSignature) }
    }
}

/// Without what is exported.
impl std::fmt::Debug for Binding {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Binding")
    }
}

fn put(bytes: &mut Vec<u8>, part: &[u8]) -> Option<()> {
    bytes.extend_from_slice(&u16::try_from(part.len()).ok()?.to_be_bytes());
    bytes.extend_from_slice(part);
    Some(())
}

/// Form and count, so many certificates, a signature, each with its length before it. Answers the certificates, their bytes
/// with form and count, and the signature.
fn read(proof: &[u8]) -> Option<(Chain, &[u8], &[u8])> {
    let (&[form, count], mut rest) = proof.split_first_chunk()?;
    if form != FORM || usize::from(count) > INTERMEDIATES_MAX + 1 || proof.len() > PROOF_MAX_BYTES {
        return None;
    }
    let mut chain = Chain::new();
    for _ in 0..count {
        chain.push(CertificateDer::from(take(&mut rest)?.to_vec()));
    }
    let certificates = &proof[..proof.len() - rest.len()];
    let signature = take(&mut rest)?;
    rest.is_empty().then_some((chain, certificates, signature))
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk()?;
    let (part, after) = after.split_at_checked(u16::from_be_bytes(*length).into())?;
    *rest = after;
    Some(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..400), formed: bool) {
            let bytes = if formed { [&[FORM, 2][..], &bytes].concat() } else { bytes };
            prop_assert!(Binding([7; 32]).proven(PeerRole::Server, &bytes).is_err());
        }
    }
}
