//! The shop that the demonstration runs: a client, a monolith, and the services that take over from it.

use lab::{PodSpec, Program, ServiceSpec, Topology};

/// What every backend's nginx listens on.
const BACKEND: Program = Program::Http { port: 8080 };

/// The shop over `nodes` nodes. On more than one, every service has a backend that is not the client's neighbour.
pub fn topology(nodes: usize) -> Topology {
    let far = if nodes > 1 { "node2" } else { "node1" };
    let pod = |name: &str, app: &str, version: &str, node: &str| {
        PodSpec::new(name, node).label("app", app).label("version", version).runs(BACKEND)
    };
    Topology::with_nodes(nodes)
        .pod(PodSpec::new("client", "node1").label("app", "client"))
        .pod(pod("monolith", "monolith", "v1", far))
        .pod(pod("order-v1-a", "order-service", "v1", "node1"))
        .pod(pod("order-v1-b", "order-service", "v1", far))
        .pod(pod("order-v2-a", "order-service", "v2", far))
        .pod(pod("product-a", "product-service", "v1", "node1"))
        .pod(pod("product-b", "product-service", "v1", far))
        .pod(pod("user-a", "user-service", "v1", far))
        .service(ServiceSpec::new("monolith").port("http", 8080, 8080))
        .service(ServiceSpec::new("order-service").port("http", 80, 8080).port("http", 3002, 8080))
        .service(ServiceSpec::new("product-service").port("http", 3001, 8080))
        .service(ServiceSpec::new("user-service").port("http", 3001, 8080))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_shop_is_a_good_topology_on_any_count_of_nodes() {
        for nodes in 1..=3 {
            super::topology(nodes).check().expect("a good topology");
        }
    }
}
