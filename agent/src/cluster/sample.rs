//! Models of a given size and signatures that prove nothing, for the tests of this module.

use std::sync::Arc;

use super::follower::{Refusal, Verify};
use crate::model::{Endpoint, Model, ObjectName, RouteKind, RouteTable};

/// So many endpoints and routes.
pub(super) fn model(endpoints: u8, routes: u8) -> Model {
    Model {
        endpoints: (0..endpoints).map(|number| endpoint(number, None)).collect(),
        mesh_routes: (0..routes).map(|number| route(&format!("r{number:03}"))).collect(),
        ..Model::default()
    }
}

/// An endpoint with this last byte of its address, on a node.
pub(super) fn endpoint(number: u8, node: Option<&Arc<str>>) -> Endpoint {
    Endpoint {
        service: ObjectName::new("default", "web"),
        service_port: 80,
        address: ([10, 0, 0, number], 8080).into(),
        ready: true,
        pod: None,
        uid: format!("uid-{number}").into(),
        node: node.cloned(),
        labels: Arc::default(),
    }
}

/// A route without rules.
pub(super) fn route(name: &str) -> RouteTable {
    RouteTable {
        source: ObjectName::new("default", name),
        kind: RouteKind::HttpRoute,
        services: Vec::new(),
        hosts: Vec::new(),
        rules: Vec::new(),
    }
}

/// What [`ByName`] believes to be a node's signature.
pub(super) fn sign(node: &str) -> Vec<u8> {
    format!("by {node}").into_bytes()
}

/// Believes what [`sign`] gives, and nothing else.
pub(super) struct ByName;

impl Verify for ByName {
    fn signer(&self, signed: &[u8], signature: &[u8]) -> Result<Option<Arc<str>>, Refusal> {
        assert!(signed.starts_with(b"SLT1"), "the whole is signed");
        let name = str::from_utf8(signature).ok().and_then(|text| text.strip_prefix("by "));
        let untrusted = || Refusal::Untrusted { reason: "signature", detail: "it names nobody".to_owned() };
        name.map(|name| Some(name.into())).ok_or_else(untrusted)
    }
}
