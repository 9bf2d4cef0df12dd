//! What limits are about.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::{Labels, ObjectName, Workload};

/// Which requests a document is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitTarget {
    /// Those on their way to a service, by whatever route.
    Service(ObjectName),
    /// Those that came in by a Gateway; by one listener of it where that is named.
    Gateway(ObjectName, Option<Arc<str>>),
    /// Those that a route of this kind took; one rule of it where that is named.
    Route(LimitedRoute, ObjectName, Option<Arc<str>>),
    /// Those that pods send.
    SentBy(LimitedPods),
    /// Those that the pods of a node send; of each node where none is named.
    SentFrom(Option<Arc<str>>),
    /// Those that enter pods, whoever sends them.
    Enters(LimitedPods),
    /// Those that enter the pods of a node; of each node where none is named.
    EntersNode(Option<Arc<str>>),
}

impl LimitTarget {
    /// Whether it is about what enters a pod. One whose node is not known has no agent that could count for it alone.
    pub fn is_entered(&self, pod: &Workload) -> bool {
        let Some(node) = &pod.node else { return false };
        match self {
            Self::Enters(pods) => pods.select(pod),
            Self::EntersNode(one) => one.as_ref().is_none_or(|one| one == node),
            _ => false,
        }
    }

    /// Whether it is about what enters pods.
    pub fn enters(&self) -> bool {
        matches!(self, Self::Enters(_) | Self::EntersNode(_))
    }

    /// Whether it is about pods, by themselves or by their node.
    pub fn is_of_pods(&self) -> bool {
        self.enters() || matches!(self, Self::SentBy(_) | Self::SentFrom(_))
    }
}

/// Pods by their labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LimitedPods {
    /// Their namespace; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    /// Labels that they have; empty: all pods.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl LimitedPods {
    /// Whether a pod is one of them.
    pub fn select(&self, pod: &Workload) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| *namespace == pod.name.namespace)
            && self.labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    }
}

impl fmt::Display for LimitedPods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/")?,
            None => f.write_str("*/")?,
        }
        if self.labels.is_empty() {
            return f.write_str("*");
        }
        for (at, (key, value)) in self.labels.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

/// Kinds of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LimitedRoute {
    /// Gateway API HTTPRoute
    HttpRoute,
    /// Istio VirtualService
    VirtualService,
}

impl LimitedRoute {
    /// The kind as documents and routes of the table write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HttpRoute => "HTTPRoute",
            Self::VirtualService => "VirtualService",
        }
    }
}
