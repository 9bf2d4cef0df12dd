//! Limits of what pods send, or of what enters them, by the pods and by their node. Looked through without a hash: where there are
//! none, there is nothing to do.

use std::sync::Arc;

use super::LimitPolicy;
use crate::model::{LimitTarget, LimitedPods, Workload};

/// Those of one table, in one direction.
#[derive(Debug, Default)]
pub(super) struct OfPods {
    /// Those of all namespaces first, then sorted by namespace.
    pods: Vec<(LimitedPods, Arc<LimitPolicy>)>,
    /// `None`: of each node.
    nodes: Vec<(Option<Arc<str>>, Arc<LimitPolicy>)>,
}

impl OfPods {
    pub fn add(&mut self, target: &LimitTarget, policy: &Arc<LimitPolicy>) {
        match target {
            LimitTarget::SentBy(pods) | LimitTarget::Enters(pods) => {
                let at = self.pods.partition_point(|(other, _)| other.namespace <= pods.namespace);
                self.pods.insert(at, (pods.clone(), Arc::clone(policy)));
            }
            LimitTarget::SentFrom(node) | LimitTarget::EntersNode(node) => {
                self.nodes.push((node.clone(), Arc::clone(policy)));
            }
            _ => {}
        }
    }

    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.nodes.is_empty()
    }

    /// Those of a pod of this node; of one that no document names, those of the node.
    pub fn of<'a>(
        &'a self,
        pod: Option<&Workload>,
        node: &str,
    ) -> impl Iterator<Item = &'a Arc<LimitPolicy>> {
        let everywhere = self.pods.partition_point(|(pods, _)| pods.namespace.is_none());
        let (everywhere, elsewhere) = self.pods.split_at(everywhere);
        let own = pod.map_or(&[][..], |pod| {
            let own = Some(&pod.name.namespace);
            let first = elsewhere.partition_point(|(pods, _)| pods.namespace.as_ref() < own);
            let rest = &elsewhere[first..];
            &rest[..rest.partition_point(|(pods, _)| pods.namespace.as_ref() == own)]
        });
        let of_pod = everywhere.iter().chain(own);
        let of_pod = of_pod.filter(move |(pods, _)| pod.is_some_and(|pod| pods.select(pod)));
        let of_node = self.nodes.iter().filter(move |(one, _)| one.as_deref().is_none_or(|one| one == node));
        of_pod.map(|(_, policy)| policy).chain(of_node.map(|(_, policy)| policy))
    }
}
