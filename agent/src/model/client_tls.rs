//! TLS that clients speak with the endpoints of a Service: DestinationRule `tls`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::BackendTls;

/// What a `tls` of a DestinationRule asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientTls {
    /// `DISABLE`: none beyond what the mesh does of its own accord.
    Disable,
    /// `ISTIO_MUTUAL`: the mesh's own mutual TLS, and nothing without it.
    Mesh,
    /// `SIMPLE` and `MUTUAL`.
    Own(Arc<BackendTls>),
}

/// What is asked for of the ports of a Service, or of one of its subsets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsRules<T> {
    /// For ports without an entry of their own; `None`: nothing is said.
    #[serde(default = "nothing", skip_serializing_if = "Option::is_none")]
    pub others: Option<T>,
    /// For single ports. As in Istio a port inherits nothing: `None` is no TLS, whatever `others` says.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<(u16, Option<T>)>,
}

fn nothing<T>() -> Option<T> {
    None
}

impl<T> Default for TlsRules<T> {
    fn default() -> Self {
        Self { others: None, ports: Vec::new() }
    }
}

impl<T> TlsRules<T> {
    /// Whether no TLS is spoken of.
    pub fn is_silent(&self) -> bool {
        self.all().next().is_none()
    }

    /// Whether it is as if there were none, as ports without TLS say something against `others` alone.
    pub fn is_empty(&self) -> bool {
        self.others.is_none() && self.ports.is_empty()
    }

    /// What is said of a port; `None`: nothing, and what is wider counts.
    pub fn on(&self, port: u16) -> Option<Option<&T>> {
        let of_port = self.ports.iter().find(|(number, _)| *number == port);
        of_port.map(|(_, said)| said.as_ref()).or_else(|| self.others.as_ref().map(Some))
    }

    /// All that is asked for.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.others.iter().chain(self.ports.iter().filter_map(|(_, said)| said.as_ref()))
    }

    /// The same with each said otherwise.
    pub fn map<U>(&self, mut each: impl FnMut(&T) -> U) -> TlsRules<U> {
        TlsRules {
            others: self.others.as_ref().map(&mut each),
            ports: self.ports.iter().map(|(port, said)| (*port, said.as_ref().map(&mut each))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_inherits_nothing() {
        let rules = TlsRules { others: Some("all"), ports: vec![(80, Some("80")), (81, None)] };
        assert_eq!(rules.on(80), Some(Some(&"80")));
        assert_eq!(rules.on(81), Some(None));
        assert_eq!(rules.on(82), Some(Some(&"all")));
        assert_eq!(TlsRules::<&str>::default().on(80), None);
        assert!(!rules.is_silent() && TlsRules::<()> { others: None, ports: vec![(1, None)] }.is_silent());
    }
}
