//! The made-up cluster as documents: a Service, an EndpointSlice of all its endpoints, and an HTTPRoute for each service.

use std::fmt::Write;
use std::sync::Arc;

use agent::cluster::DocumentWrite;

use super::world::World;

/// The documents of one service.
#[derive(Debug, Clone, Copy)]
pub struct Documents(pub World);

impl Documents {
    /// The same with another number of services.
    pub fn of_services(self, services: u32) -> Self {
        Self(World { services, ..self.0 })
    }

    /// All of a service.
    pub fn of(self, service: u32) -> Vec<DocumentWrite> {
        vec![service_of(service), self.slice(service, |_| true), route(service)]
    }

    /// The endpoints of a service, those ready of which the number says so.
    pub fn slice(self, service: u32, ready: impl Fn(u32) -> bool) -> DocumentWrite {
        let (namespace, name) = (namespace(service), name(service));
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-x7k2p\n  namespace: {namespace}\n  \
             labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\nports: [{{name: http, port: 8080, protocol: TCP}}]\n\
             endpoints:\n"
        );
        for nth in 0..self.0.endpoints {
            let _ = write!(
                text,
                "- addresses: [{}]\n  conditions: {{ready: {}}}\n  nodeName: node-{}\n  targetRef: {{kind: Pod, name: \
                 {name}-5d8f7c9b4-{nth:05}, namespace: {namespace}, uid: 00000000-0000-4000-8000-{service:06}{nth:06}}}\n",
                self.0.address(service, nth),
                ready(nth),
                (service + nth * 7) % 100,
            );
        }
        write("EndpointSlice", service, "-x7k2p", &text)
    }
}

fn service_of(service: u32) -> DocumentWrite {
    let (namespace, name, ip) = (namespace(service), name(service), World::cluster_ip(service));
    write(
        "Service",
        service,
        "",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  clusterIP: {ip}\n  \
         ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]\n"
        ),
    )
}

fn route(service: u32) -> DocumentWrite {
    let (namespace, name) = (namespace(service), name(service));
    write(
        "HTTPRoute",
        service,
        "",
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  parentRefs: [{{kind: Service, group: \"\", name: {name}}}]\n  rules:\n  - matches: [{{path: {{type: \
         PathPrefix, value: /cart}}}}]\n    backendRefs: [{{name: {name}, port: 80}}]\n    filters: [{{type: \
         RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-shop, value: \"yes\"}}]}}}}]\n  \
         - backendRefs: [{{name: {name}, port: 80}}]\n"
        ),
    )
}

fn write(kind: &str, service: u32, suffix: &str, text: &str) -> DocumentWrite {
    let id: Arc<str> = format!("{kind}/{}/{}{suffix}", namespace(service), name(service)).into();
    DocumentWrite { id, text: Some(text.into()), expected: None }
}

fn namespace(service: u32) -> String {
    format!("team-{}", service % 100)
}

fn name(service: u32) -> String {
    format!("shop-{service}")
}

#[cfg(test)]
mod tests {
    use agent::config::{State, load, stored_files};

    use super::*;

    #[test]
    fn the_documents_are_good() {
        let documents = Documents(World { services: 3, endpoints: 4 });
        let writes: Vec<DocumentWrite> = (0..3).flat_map(|service| documents.of(service)).collect();
        let texts = writes.iter().map(|write| (&write.id, write.text.as_ref().expect("it has a text")));
        let state = load(&State::default(), stored_files(texts));
        let said: Vec<_> = state.report.lines().map(|(_, line)| line).collect();
        assert_eq!(said, Vec::<String>::new());
        assert_eq!((state.model.services.len(), state.model.endpoints.len()), (3, 12));
        assert_eq!(state.model.mesh_routes.len(), 3);
    }
}
