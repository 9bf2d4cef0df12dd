//! As whom a Gateway speaks: as a workload of its own, like the pods that Istio runs for one.

use std::sync::Arc;

use ring::digest::{SHA256, digest};

use super::{Labels, ObjectName, Workload};

/// What the service account of every Gateway ends with. Istio gives the one that it makes for a Gateway the name of the class
/// likewise.
const ACCOUNT_SUFFIX: &str = "-sluice";

/// A Gateway's name as a number, so that whoever dials for it can be told apart by a plain value. Two names never share
/// one: it is a cut SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayKey([u8; 16]);

/// A Gateway as the other end of its connections sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Speaker {
    /// Which one.
    pub key: GatewayKey,
    /// As what workload. It has no address, and every node may be the one that runs it.
    pub workload: Arc<Workload>,
}

impl Speaker {
    /// That of a Gateway.
    pub fn new(gateway: &ObjectName) -> Self {
        let uid = format!("gateway/{gateway}");
        let hash = digest(&SHA256, uid.as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&hash.as_ref()[..16]);
        let workload = Workload {
            name: gateway.clone(),
            uid: uid.into(),
            workload: Arc::clone(&gateway.name),
            node: None,
            service_account: format!("{}{ACCOUNT_SUFFIX}", gateway.name).into(),
            addresses: Vec::new(),
            labels: Arc::new(Labels::new()),
            accelerated: false,
            ready: true,
            probes: Vec::new(),
        };
        Self { key: GatewayKey(key), workload: Arc::new(workload) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_speak_each_as_itself() {
        let one = Speaker::new(&ObjectName::new("infra", "edge"));
        assert_eq!(&*one.workload.service_account, "edge-sluice");
        assert_eq!(&*one.workload.name.namespace, "infra");
        assert_eq!(one, Speaker::new(&ObjectName::new("infra", "edge")));
        for (namespace, name) in [("infra", "edge2"), ("shop", "edge"), ("inf", "ra/edge")] {
            assert_ne!(one.key, Speaker::new(&ObjectName::new(namespace, name)).key, "{namespace}/{name}");
        }
    }
}
