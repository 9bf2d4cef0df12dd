//! `tls` of DestinationRules: Secrets that they name, and endpoints that it does not go with.

use std::sync::Arc;

use super::super::kinds::{ClientTlsMode, ClientTlsSpec, OwnTls};
use super::super::report::{Code, Severity};
use super::endpoints::Workloads;
use super::{LinkNotes, World};
use crate::compile::PodMtls;
use crate::model::{
    BackendRoots, BackendTls, ClientTls, Endpoint, ObjectName, PeerAuthentication, ServerCertificate,
    TlsRules,
};

/// What a rule asks for, with what its Secrets hold.
pub(super) fn resolve(
    world: &World<'_>,
    (position, rule): (usize, &ObjectName),
    asked: &TlsRules<ClientTlsSpec>,
    notes: &mut LinkNotes<'_>,
) -> TlsRules<ClientTls> {
    asked.map(|asked| match &asked.mode {
        ClientTlsMode::Disable => ClientTls::Disable,
        ClientTlsMode::IstioMutual => ClientTls::Mesh,
        ClientTlsMode::Own(own) => {
            let found = terms(world, &rule.namespace, own);
            ClientTls::Own(Arc::new(found.unwrap_or_else(|text| {
                let field = asked.field.key("credentialName");
                let text = format!("{text}: endpoints can't be reached");
                notes.say(position, (Severity::Error, Code::ReferencedResourceNotFound), &field, text);
                unreachable(own)
            })))
        }
    })
}

/// The terms, or what is missing.
fn terms(world: &World<'_>, namespace: &str, own: &OwnTls) -> Result<BackendTls, String> {
    let mut terms = BackendTls { roots: BackendRoots::System, ..unreachable(own) };
    if let Some(credential) = &own.credential {
        let name = ObjectName::new(namespace, credential);
        if own.mutual {
            terms.client = Some(certificate(world, &name)?);
        }
        if !own.anybody {
            terms.roots = BackendRoots::Bundles(vec![roots(world, &name)?]);
        }
    }
    if own.anybody {
        terms.roots = BackendRoots::Anybody;
    }
    Ok(terms)
}

/// Terms by which nobody is believed.
fn unreachable(own: &OwnTls) -> BackendTls {
    BackendTls {
        hostname: Arc::clone(&own.sni),
        names: own.names.clone(),
        roots: BackendRoots::Bundles(Vec::new()),
        client: None,
    }
}

fn certificate(world: &World<'_>, name: &ObjectName) -> Result<Arc<ServerCertificate>, String> {
    let secret = world.secrets.get(name).ok_or_else(|| format!("there is no valid Secret {name}"))?;
    let found = secret.certificate.as_ref();
    found.cloned().ok_or_else(|| format!("the Secret {name} is not of the type kubernetes.io/tls"))
}

/// The CA certificates of a Secret, or of the one beside it that Istio's Gateways look for.
fn roots(world: &World<'_>, name: &ObjectName) -> Result<Arc<str>, String> {
    let beside = ObjectName::new(&name.namespace, &format!("{}-cacert", name.name));
    let of = |name| world.secrets.get(name).and_then(|secret| secret.roots.clone());
    let missing = || format!("neither the Secret {name} nor {beside} has CA certificates (ca.crt or cacert)");
    of(name).or_else(|| of(&beside)).ok_or_else(missing)
}

/// What endpoints are known by, beside their addresses.
pub(super) struct Surroundings<'a> {
    /// Pods by name.
    pub workloads: &'a Workloads<'a>,
    /// What pods take.
    pub peers: &'a [PeerAuthentication],
}

/// Says which endpoint of one service can't be reached by what a rule asks for, or does not mean the same: one for each `tls`, as a
/// rule may be about all services of a cluster.
pub(super) fn check(
    position: usize,
    rules: (&TlsRules<ClientTlsSpec>, &TlsRules<ClientTls>),
    endpoints: &[&Endpoint],
    surroundings: &Surroundings<'_>,
    notes: &mut LinkNotes<'_>,
) {
    let (asked, linked) = rules;
    for endpoint in endpoints {
        let port = endpoint.service_port;
        let (Some(Some(asked)), Some(Some(linked))) = (asked.on(port), linked.on(port)) else { continue };
        let field = asked.field.key("mode");
        if notes.tells_of(position, &field) {
            continue;
        }
        if let Some((code, text)) = problem(linked, endpoint, surroundings) {
            notes.say(position, (Severity::Warning, code), &field, text);
        }
    }
}

/// What does not go together, for one endpoint.
fn problem(tls: &ClientTls, endpoint: &Endpoint, surroundings: &Surroundings<'_>) -> Option<(Code, String)> {
    let address = endpoint.address;
    let pod = endpoint.pod.as_ref().and_then(|name| surroundings.workloads.get(name)).map(|(pod, _)| pod);
    let tunnelled = pod.is_some_and(|pod| pod.is_tunnelled() && pod.node.is_some());
    if *tls == ClientTls::Mesh {
        let text = format!(
            "{address} is not in the mesh (no pod with networking.istio.io/tunnel: http): from other nodes it is not reached, \
             and nothing is sent in plaintext"
        );
        return (!tunnelled).then_some((Code::Ignored, text));
    }
    let pod = pod?;
    let strict = PodMtls::of_pod(surroundings.peers.iter(), pod);
    let by = strict.strict_on(Some(address.port()))?;
    let does = match tls {
        _ if !tunnelled => "it refuses what comes from other nodes without the mesh's mutual TLS",
        ClientTls::Own(_) => {
            "from other nodes connections to it go by the mesh's mutual TLS all the same, and within it the pod has to speak TLS itself"
        }
        ClientTls::Disable | ClientTls::Mesh => "connections to it go by the mesh's mutual TLS all the same",
    };
    Some((
        Code::Conflicted,
        format!("the PeerAuthentication {by} has the pod {} in mode STRICT: {does}", pod.name),
    ))
}
