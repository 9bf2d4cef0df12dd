//! What follows for a model from pods that fail.

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::{Model, ObjectName};

/// Takes the endpoints of pods out of the work. `fails`: whether a pod does, by its node and its uid.
///
/// However few are left: a pod that says itself that it can't take work is given none, as in Kubernetes, and a service without
/// any is answered for with 503.
pub fn take_out(model: &mut Model, fails: impl Fn(Option<&Arc<str>>, &Arc<str>) -> bool) {
    // An EndpointSlice may give an endpoint another uid than the Pod's document has, or none.
    let pods: HashSet<ObjectName> = model
        .workloads
        .iter()
        .filter(|pod| fails(pod.node.as_ref(), &pod.uid))
        .map(|pod| pod.name.clone())
        .collect();
    for endpoints in [&mut model.endpoints, &mut model.datagram_endpoints] {
        endpoints.take_out(|endpoint| {
            let named = endpoint.pod.as_ref().is_some_and(|pod| pods.contains(pod));
            named || fails(endpoint.node.as_ref(), &endpoint.uid)
        });
    }
}
