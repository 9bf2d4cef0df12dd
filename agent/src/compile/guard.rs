//! What all EdgeGuards say together.

use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{EdgeGuard, SourceRate};

/// What the guard at the edge holds sources to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuardPolicy {
    /// Who denies whom, sorted by name; where two deny the same network, the first is named.
    pub rules: Vec<GuardRule>,
    /// Sources that neither lists nor limits hold for, whoever denies them.
    pub allow: Vec<Arc<[IpNet]>>,
    /// What one source may send: the lowest rate and the smallest burst that any document asks for.
    pub packets: Option<SourceRate>,
    /// How many TCP connections one source may ask for, likewise.
    pub syns: Option<SourceRate>,
}

/// One document's deny list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardRule {
    /// The document's name.
    pub name: Arc<str>,
    /// Whom it denies.
    pub deny: Arc<[IpNet]>,
}

impl GuardPolicy {
    /// Whether it holds anyone to anything.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.packets.is_none() && self.syns.is_none()
    }
}

/// Merges the documents; an unchanged outcome is the previous one.
pub(super) fn compile<'m>(
    guards: &(impl Iterator<Item = &'m EdgeGuard> + Clone),
    previous: &Arc<GuardPolicy>,
) -> Arc<GuardPolicy> {
    let strictest = |of: fn(&EdgeGuard) -> Option<SourceRate>| {
        guards.clone().filter_map(of).reduce(SourceRate::strictest)
    };
    let denying = guards.clone().filter(|guard| !guard.deny.is_empty());
    let allowing = guards.clone().filter(|guard| !guard.allow.is_empty());
    let policy = GuardPolicy {
        rules: denying
            .map(|guard| GuardRule { name: Arc::clone(&guard.name.name), deny: Arc::clone(&guard.deny) })
            .collect(),
        allow: allowing.map(|guard| Arc::clone(&guard.allow)).collect(),
        packets: strictest(|guard| guard.packets),
        syns: strictest(|guard| guard.syns),
    };
    if **previous == policy { Arc::clone(previous) } else { Arc::new(policy) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    fn guard(name: &str, deny: &[&str], allow: &[&str], packets: Option<(u32, u32)>) -> EdgeGuard {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        EdgeGuard {
            name: ObjectName::new("", name),
            deny: nets(deny),
            allow: nets(allow),
            packets: packets.map(|(per_second, burst)| SourceRate { per_second, burst }),
            syns: None,
        }
    }

    #[test]
    fn lists_are_joined_and_the_strictest_limit_counts() {
        let guards = [
            guard("a", &["10.0.0.0/8"], &[], Some((100, 10))),
            guard("b", &["fd00::/8", "10.0.0.0/8"], &["10.1.0.0/16"], Some((50, 20))),
            guard("c", &[], &[], None),
        ];
        let policy = compile(&guards.iter(), &Arc::default());
        let names: Vec<&str> = policy.rules.iter().map(|rule| &*rule.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(policy.allow.len(), 1);
        assert_eq!(policy.packets, Some(SourceRate { per_second: 50, burst: 10 }));
        assert_eq!(policy.syns, None);
        assert!(!policy.is_empty());
    }

    #[test]
    fn what_is_unchanged_is_shared() {
        let guards = [guard("a", &["10.0.0.0/8"], &[], None)];
        let first = compile(&guards.iter(), &Arc::default());
        assert!(Arc::ptr_eq(&first, &compile(&guards.clone().iter(), &first)));
        assert!(!Arc::ptr_eq(&first, &compile(&[].iter(), &first)));
        assert!(compile(&[].iter(), &first).is_empty());
    }
}
