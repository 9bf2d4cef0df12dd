//! PeerAuthentications -> which pods take plaintext. Those that never count are named.

use std::collections::{BTreeMap, BTreeSet};

use super::super::field::Field;
use super::super::kinds::Spec;
use super::super::report::{Code, Severity};
use super::authorization::ROOT_NAMESPACE;
use super::{LinkNotes, World};
use crate::model::{ObjectName, PeerAuthentication, PeerLevel, PolicyScope, Workload};

/// All of them, sorted by name.
pub(super) fn peers<'w>(
    world: &World<'_>,
    pods: impl Iterator<Item = &'w Workload>,
    notes: &mut LinkNotes<'_>,
) -> Vec<PeerAuthentication> {
    let by_age = world.by_age(|spec| match spec {
        Spec::PeerAuthentication(peer) => Some(peer),
        _ => None,
    });
    let linked = by_age.into_iter().map(|(position, object, peer)| {
        let name = object.name().clone();
        let mesh = *name.namespace == *ROOT_NAMESPACE;
        let linked = PeerAuthentication {
            created: object.created.clone(),
            scope: if mesh { PolicyScope::Mesh } else { PolicyScope::Namespace },
            selector: peer.selector.clone(),
            mode: peer.mode,
            ports: peer.ports.clone(),
            name,
        };
        (position, linked)
    });
    let linked: Vec<_> = linked.collect();
    report(&linked, pods, notes);
    let mut peers: Vec<_> = linked.into_iter().map(|(_, peer)| peer).collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    peers
}

/// Says which never count, and which do not for some pod because an older one does. `peers`: the oldest first.
fn report<'w>(
    peers: &[(usize, PeerAuthentication)],
    pods: impl Iterator<Item = &'w Workload>,
    notes: &mut LinkNotes<'_>,
) {
    let ignored = (Severity::Warning, Code::Ignored);
    let mut first: BTreeMap<(PeerLevel, &str), &ObjectName> = BTreeMap::new();
    for (position, peer) in peers {
        if peer.level() == PeerLevel::Workload {
            if peer.scope == PolicyScope::Mesh {
                let text =
                    format!("in {ROOT_NAMESPACE} a selector selects nothing, as in Istio: it has no effect");
                notes.say(*position, ignored, &Field::spec().key("selector"), text);
            }
            continue;
        }
        let winner = *first.entry((peer.level(), &peer.name.namespace)).or_insert(&peer.name);
        if *winner != peer.name {
            let text = format!("{winner} is older and about the same pods: this one has no effect");
            notes.say(*position, ignored, &Field::spec(), text);
        }
    }
    let with_labels: Vec<_> = peers.iter().filter(|(_, peer)| peer.level() == PeerLevel::Workload).collect();
    if with_labels.len() < 2 {
        return;
    }
    let mut told = BTreeSet::new();
    for pod in pods {
        let selecting = with_labels.iter().filter(|(_, peer)| peer.selects(&pod.name.namespace, &pod.labels));
        let mut selecting = selecting.peekable();
        let Some((_, winner)) = selecting.next() else { continue };
        for (position, _) in selecting {
            if told.insert(*position) {
                let text = format!("{} is older and counts for the pod {}", winner.name, pod.name);
                notes.say(*position, ignored, &Field::spec().key("selector"), text);
            }
        }
    }
}
