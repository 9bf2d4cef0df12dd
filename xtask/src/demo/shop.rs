//! The shop that the demonstration runs: a client, a monolith, and the services that take over from it.

use lab::{PodSpec, Program, ServiceSpec, Topology};

/// What every backend's nginx listens on.
const BACKEND: Program = Program::Http { port: 8080 };
/// The nodes of the cluster that have pods and an agent.
pub const NODES: [&str; 3] = ["node1", "node2", "node3"];
/// The node of the cluster that has its Redis.
pub const STORE: &str = "store";
/// The service that is asked from every node.
pub const CART: &str = "cart";

/// The shop over `nodes` nodes. On more than one, every service has a backend that is not the client's neighbour.
pub fn topology(nodes: usize) -> Topology {
    let far = if nodes > 1 { "node2" } else { "node1" };
    Topology::with_nodes(nodes)
        .pod(PodSpec::new("client", "node1").label("app", "client"))
        .pod(backend("monolith", "monolith", "v1", far))
        .pod(backend("order-v1-a", "order-service", "v1", "node1"))
        .pod(backend("order-v1-b", "order-service", "v1", far))
        .pod(backend("order-v2-a", "order-service", "v2", far))
        .pod(backend("product-a", "product-service", "v1", "node1"))
        .pod(backend("product-b", "product-service", "v1", far))
        .pod(backend("user-a", "user-service", "v1", far))
        .service(ServiceSpec::new("monolith").port("http", 8080, 8080))
        .service(ServiceSpec::new("order-service").port("http", 80, 8080).port("http", 3002, 8080))
        .service(ServiceSpec::new("product-service").port("http", 3001, 8080))
        .service(ServiceSpec::new("user-service").port("http", 3001, 8080))
}

/// The shop over [`NODES`], with a client on each, a cart in two versions that no single node holds, and a node for the
/// store.
pub fn cluster() -> Topology {
    let mut topology = topology(NODES.len())
        .pod(PodSpec::new(client_of("node2"), "node2").label("app", "client"))
        .pod(PodSpec::new(client_of("node3"), "node3").label("app", "client"))
        .pod(backend("cart-v1-a", CART, "v1", "node1"))
        .pod(backend("cart-v1-b", CART, "v1", "node3"))
        .pod(backend("cart-v2-a", "cart-v2", "v2", "node1"))
        .pod(backend("cart-v2-b", "cart-v2", "v2", "node2"))
        .service(ServiceSpec::new(CART).port("http", 80, 8080))
        .service(ServiceSpec::new("cart-v2").port("http", 80, 8080));
    topology.nodes.push(STORE.to_owned());
    topology
}

/// The pod of a node of [`NODES`] that asks.
pub fn client_of(node: &str) -> &'static str {
    match node {
        "node2" => "client2",
        "node3" => "client3",
        _ => "client",
    }
}

/// The document that leads everybody who asks for the cart to a service.
pub fn cart_to(service: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: {CART}\nspec:\n  parentRefs:\n    \
         - {{group: \"\", kind: Service, name: {CART}}}\n  rules:\n    - backendRefs:\n        \
         - {{name: {service}, port: 80}}\n"
    )
}

fn backend(name: &str, app: &str, version: &str, node: &str) -> PodSpec {
    PodSpec::new(name, node).label("app", app).label("version", version).runs(BACKEND)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_shop_is_a_good_topology_on_any_count_of_nodes() {
        for nodes in 1..=3 {
            super::topology(nodes).check().expect("a good topology");
        }
        super::cluster().check().expect("a good topology");
    }
}
