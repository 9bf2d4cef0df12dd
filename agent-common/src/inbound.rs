//! Inbound capture: which connections to pods the agent takes, because only the request tells who may have what, or
//! because they are counted.

use crate::packet::{Family, Segment};
use crate::policy::{Access, CLOSED, PolicyAddress, PolicyMaps, class_of, verdict};

/// Whether the agent takes a new connection to a pod. What it does not take meets the pod's guard, which lets nothing by
/// that has to be asked for its request, or counted.
#[inline(always)]
pub fn takes(segment: &Segment, maps: &impl PolicyMaps) -> bool {
    let family = match segment.family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    let destination = PolicyAddress { family, address: segment.destination };
    let Some(pod) = maps.pod(&destination) else { return false };
    if pod.captured == 0 || pod.set == CLOSED {
        return false;
    }
    let source = PolicyAddress { family, address: segment.source };
    let class = class_of(&pod, (&source, &destination), maps);
    match verdict(pod.set, class, segment.destination_port, maps) {
        Some(value) => Access::is_taken(value.access),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{PROVEN, PolicyFlow, PolicyPod, PolicyRuleKey, PolicyRuleValue, PolicySourceKey};

    /// Class 1 is 10.0.0.1; port 80 of the pod has a verdict of its own.
    struct Maps {
        pod: Option<PolicyPod>,
        on_80: Access,
        others: Access,
        proven: bool,
    }

    impl PolicyMaps for Maps {
        fn pod(&self, address: &PolicyAddress) -> Option<PolicyPod> {
            self.pod.filter(|_| address.address[..4] == [10, 0, 0, 9])
        }
        fn class(&self, key: &PolicySourceKey) -> u32 {
            match (key.side, key.source.family, key.source.address[3]) {
                (1, 4, 1) => 1,
                // The same where it is proven.
                (1, family, 3) if family == 4 | PROVEN => 1,
                _ => 0,
            }
        }
        fn rule(&self, key: &PolicyRuleKey) -> Option<PolicyRuleValue> {
            let access = match (key.set, key.class, key.port) {
                (7, 1, 80) => self.on_80,
                (7, 0, 0) => self.others,
                _ => return None,
            };
            Some(PolicyRuleValue { access: access as u32, slot: 0 })
        }
        fn began(&self, _: &PolicyFlow) -> bool {
            false
        }
        fn proves(&self, _: &PolicyAddress, _: &PolicyAddress) -> bool {
            self.proven
        }
    }

    fn segment(source: u8, destination: u8, port: u16) -> Segment {
        let wide = |last: u8| {
            let mut address = [0; 16];
            address[..4].copy_from_slice(&[10, 0, 0, last]);
            address
        };
        Segment {
            family: Family::V4,
            source: wide(source),
            destination: wide(destination),
            source_port: [1, 1],
            destination_port: port.to_be_bytes(),
            flags: 2,
        }
    }

    #[test]
    fn only_what_the_request_decides_or_is_counted_is_taken() {
        use Access::{Allowed, ByRequest, Counted, Denied, DeniedEverywhere, Watched};
        let pod = |captured, set| Some(PolicyPod { set, side: 1, captured, proofs: 1, padding: 0, since: 0 });
        let here = pod(1, 7);
        // (pod, verdicts on port 80 of 10.0.0.1 and on the rest), (source, destination, port) -> taken
        let cases = [
            ((here, ByRequest, Denied), (1, 9, 80), true),
            ((here, ByRequest, Denied), (1, 9, 81), false),
            ((here, ByRequest, Denied), (2, 9, 80), false),
            ((here, ByRequest, Denied), (1, 8, 80), false),
            ((here, Allowed, ByRequest), (1, 9, 80), false),
            ((here, Allowed, ByRequest), (1, 9, 81), true),
            ((here, DeniedEverywhere, ByRequest), (2, 9, 80), true),
            ((here, Denied, Counted), (2, 9, 80), true),
            ((here, Denied, Counted), (1, 9, 80), false),
            ((here, Denied, Watched), (2, 9, 80), true),
            ((pod(0, 7), Counted, Counted), (1, 9, 80), false),
            ((None, ByRequest, ByRequest), (1, 9, 80), false),
            ((pod(0, 7), ByRequest, ByRequest), (1, 9, 80), false),
            ((pod(1, CLOSED), ByRequest, ByRequest), (1, 9, 80), false),
            ((pod(1, 8), ByRequest, ByRequest), (1, 9, 80), false),
        ];
        for ((pod, on_80, others), (source, destination, port), expected) in cases {
            let taken =
                takes(&segment(source, destination, port), &Maps { pod, on_80, others, proven: false });
            assert_eq!(taken, expected, "{pod:?} {on_80:?} {others:?}: {source} to {destination}:{port}");
        }
        for proven in [false, true] {
            let maps = Maps { pod: here, on_80: ByRequest, others: Denied, proven };
            assert_eq!(takes(&segment(3, 9, 80), &maps), proven, "by its own interface: {proven}");
        }
    }
}
