//! Models become changes and come back.

use proptest::prelude::*;

use super::change::Limits;
use super::{Change, Counts, Parts, WireError};
use crate::compile::tests::made;
use crate::model::Model;

mod golden;
mod refused;

fn parts_of(model: &Model) -> Parts {
    let mut parts = Parts::default();
    parts.apply(&Change::whole(model)).expect("fits");
    parts
}

fn reread(change: &Change) -> Change {
    let bytes = change.encode();
    let read = Change::decode(&bytes).expect("is what was written");
    assert_eq!(&read, change);
    assert_eq!(read.encode(), bytes);
    read
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A follower that was given `a` and the way to `b` has `b`, and nobody can tell how it came by it.
    #[test]
    fn a_change_leads_from_one_model_to_another(a in made::model(), b in made::model()) {
        let mut parts = Parts::default();
        parts.apply(&reread(&Change::whole(&a))).expect("fits");
        prop_assert_eq!(&parts.model(), &a);
        let between = reread(&Change::between(&a, &b));
        let touched = parts.apply(&between).expect("fits");
        prop_assert!(touched.is_empty() || a != b);
        prop_assert_eq!(between.is_empty(), a == b);
        prop_assert_eq!(&parts.model(), &b);
        prop_assert_eq!(Change::whole(&parts.model()).encode(), Change::whole(&b).encode());
        prop_assert_eq!(parts.counts(), parts_of(&b).counts());
        prop_assert!(Change::between(&b, &parts.model()).is_empty());
    }

    /// Where endpoints alone differ, it is enough to look at those of the services whose endpoints do.
    #[test]
    fn a_change_of_endpoints_is_found_by_their_services(a in made::model(), b in made::model()) {
        let mut after = Model { endpoints: b.endpoints, datagram_endpoints: b.datagram_endpoints, ..a.clone() };
        after.endpoints.edit(|all| all.sort());
        after.datagram_endpoints.edit(|all| all.sort());
        let mut before = a;
        before.endpoints.edit(|all| all.sort());
        before.datagram_endpoints.edit(|all| all.sort());
        let streams = before.endpoints.iter().chain(after.endpoints.iter());
        let datagrams = before.datagram_endpoints.iter().chain(after.datagram_endpoints.iter());
        let all = streams.chain(datagrams);
        let services = all.map(|endpoint| endpoint.service.clone()).collect();
        let by_services = Change::between_endpoints(&before, &after, &services);
        prop_assert_eq!(by_services, Change::between(&before, &after));
    }

    /// A change that does not fit, changes nothing.
    #[test]
    fn what_does_not_fit_changes_nothing(a in made::model(), b in made::model(), c in made::model()) {
        let mut parts = parts_of(&a);
        let before = parts.model();
        let applied = parts.apply(&Change::between(&b, &c));
        if applied.is_err() {
            prop_assert_eq!(parts.model(), before);
        }
    }

    /// Whatever comes in, it is read or refused.
    #[test]
    fn mangled_bytes_are_read_or_refused(
        model in made::model(),
        places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in any::<prop::sample::Index>(),
    ) {
        let mut bytes = Change::whole(&model).encode();
        for (place, value) in &places {
            let at = place.index(bytes.len());
            bytes[at] = *value;
        }
        bytes.truncate(end.index(bytes.len() * 2).max(1));
        read_within(&bytes);
    }

    /// As above, past the checksum.
    #[test]
    fn mangled_records_are_read_or_refused(
        model in made::model(),
        places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in any::<prop::sample::Index>(),
    ) {
        let mut plain = Change::whole(&model).plain();
        for (place, value) in &places {
            let at = place.index(plain.len());
            plain[at] = *value;
        }
        plain.truncate(end.index(plain.len() * 2).max(1));
        read_within(&Change::compress(&plain));
    }
}

fn read_within(bytes: &[u8]) {
    let limits = Limits { decompressed_max_bytes: 1 << 20, ..Limits::default() };
    if let Ok(change) = Change::decode_within(bytes, limits) {
        assert_eq!(Change::decode(&change.encode()).as_ref(), Ok(&change));
        let mut parts = Parts::default();
        if parts.apply(&change).is_ok() {
            assert_eq!(parts.model(), parts_of(&parts.model()).model());
        }
    }
}

#[test]
fn nothing_is_nothing() {
    let nothing = Change::whole(&Model::default());
    assert!(nothing.is_empty());
    assert_eq!(reread(&nothing).len(), 0);
    let mut parts = Parts::default();
    assert!(parts.apply(&nothing).expect("fits").is_empty());
    assert_eq!(parts.counts(), Counts::default());
    assert_eq!(Change::decode(&[]), Err(WireError::Truncated));
}
