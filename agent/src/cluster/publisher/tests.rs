//! What is drafted, and what a draft that came to nothing leaves behind.

use super::*;
use crate::cluster::sample;
use crate::compile::Token;
use crate::compile::wire::Parts;

fn publisher() -> Publisher {
    Publisher::new("c".into(), Lease { token: Token { epoch: 3, nonce: 9 }, node: "a".into() })
}

fn contents(endpoints: u8) -> Contents {
    Contents::of(sample::model(endpoints, 0), u64::from(endpoints))
}

fn unsigned(_: &[u8]) -> Vec<u8> {
    Vec::new()
}

fn draft(publisher: &mut Publisher, endpoints: u8, whole: bool) -> Draft {
    publisher.draft(&contents(endpoints), whole, unsigned).expect("there is something to be published")
}

fn publish(publisher: &mut Publisher, endpoints: u8, whole: bool) -> Draft {
    let draft = draft(publisher, endpoints, whole);
    publisher.committed(draft.clone());
    draft
}

fn whole(draft: &Draft) -> &Snapshot {
    match &draft.form {
        DraftForm::Whole(snapshot) => snapshot,
        DraftForm::Change(_) => panic!("{} is a change", draft.version()),
    }
}

fn change(draft: &Draft) -> &Delta {
    match &draft.form {
        DraftForm::Change(delta) => delta,
        DraftForm::Whole(_) => panic!("{} is whole", draft.version()),
    }
}

#[test]
fn a_term_begins_with_the_whole_table_and_goes_on_with_changes() {
    let mut publisher = publisher();
    assert_eq!((publisher.version(), publisher.model()), (None, None));
    let first = publish(&mut publisher, 2, false);
    let sealed = Sealed::open(&whole(&first).sealed).expect("is a table");
    let version = TableVersion { token: publisher.lease().token, version: 1 };
    assert_eq!((first.version(), publisher.version()), (version, Some(version)));
    assert_eq!(sealed.digest().to_string(), whole(&first).digest);
    assert_eq!((sealed.header.schema, &*sealed.header.cluster, &*sealed.header.leader), (SCHEMA, "c", "a"));
    assert_eq!((sealed.header.revision, sealed.header.allow_shrink), (2, false));
    let second = publish(&mut publisher, 3, false);
    let delta = change(&second);
    assert_eq!((&delta.previous, second.version().version), (&whole(&first).digest, 2));
    let sealed = Sealed::open(&delta.sealed).expect("is a table");
    assert_eq!((sealed.digest().to_string(), sealed.signature), (delta.digest.clone(), &b""[..]));
    let mut parts = Parts::default();
    for bytes in [&whole(&first).sealed, &delta.sealed] {
        let body = Sealed::open(bytes).expect("is a table").body.to_vec();
        parts.apply(&Change::decode(&body).expect("is a change")).expect("follows");
    }
    assert_eq!(&parts.model(), &*contents(3).model);
    assert_eq!(publisher.model().expect("was published").endpoints.len(), 3);
}

#[test]
fn a_term_that_goes_on_with_what_it_does_not_know_writes_it_whole() {
    let with = || {
        let mut before = publisher();
        publish(&mut before, 2, false);
        let version = before.version().expect("was published");
        let chain = before.chain().expect("was published");
        Continued { at: Position { version, chain, revision: 2, shrinks_from: 1 }, generation: 5 }
    };
    let lease = Lease { token: Token { epoch: 4, nonce: 2 }, node: "b".into() };
    let mut next = Publisher::new("c".into(), lease);
    let lost = next.go_on(with(), unsigned).expect("nothing is out");
    let sealed = Sealed::open(&change(&lost).sealed).expect("is a table");
    assert_eq!((change(&lost).previous.clone(), lost.version().version), (with().at.chain.to_string(), 1));
    let header = &sealed.header;
    assert_eq!((header.revision, header.generation, header.shrinks_from), (2, 5, 1));
    // Nobody knows what became of it: its number is used no more, and what comes next is whole.
    let again = next.go_on(with(), unsigned).expect("nothing is out");
    assert_eq!(again.version().version, 2);
    assert_ne!(again.chain(), lost.chain());
    next.committed(again.clone());
    assert_eq!((next.go_on(with(), unsigned), next.lacks_model()), (None, Some(again.chain())));
    assert_eq!(whole(&draft(&mut next, 2, false)).digest.len(), 64);
    // Where it is known, what differs is enough, and where nothing does, nothing is published.
    next.committed(again);
    next.knows(contents(2).model);
    assert_eq!(next.lacks_model(), None);
}

#[test]
fn what_is_out_is_not_published_again_unless_the_store_lost_it() {
    let mut publisher = publisher();
    publish(&mut publisher, 2, false);
    assert_eq!(publisher.draft(&contents(2), false, unsigned), None);
    let again = publish(&mut publisher, 2, true);
    assert_eq!((again.version().version, whole(&again).digest.len()), (2, 64));
    assert_eq!(publisher.draft(&contents(2), false, unsigned), None);
    let next = draft(&mut publisher, 3, false);
    assert_eq!(change(&next).previous, whole(&again).digest);
}

#[test]
fn a_number_is_used_once_whatever_became_of_its_draft() {
    let mut publisher = publisher();
    // The store may have either of these although its answer was lost.
    let lost = draft(&mut publisher, 2, false);
    let first = publish(&mut publisher, 3, false);
    assert_eq!((lost.version().version, first.version().version), (1, 2));
    assert_ne!(whole(&lost).digest, whole(&first).digest);
    let lost = draft(&mut publisher, 4, false);
    assert_eq!(change(&lost).previous, whole(&first).digest);
    // Who has applied the lost one can follow no change of the first, so the next is whole; also if it is what the first was.
    let next = publish(&mut publisher, 3, false);
    assert_eq!((lost.version().version, next.version().version), (3, 4));
    assert_eq!(publisher.version(), Some(next.version()));
    assert_eq!(change(&draft(&mut publisher, 5, false)).previous, whole(&next).digest);
}

#[test]
fn the_table_is_written_whole_after_many_changes() {
    let mut publisher = publisher();
    publish(&mut publisher, 0, false);
    for number in 0..DELTAS_MAX {
        change(&publish(&mut publisher, if number % 2 == 0 { 1 } else { 2 }, false));
    }
    whole(&publish(&mut publisher, 3, false));
    change(&publish(&mut publisher, 4, false));
}

#[test]
fn a_change_of_nearly_everything_is_written_whole() {
    let many = |ready| {
        let endpoint = |number| {
            let mut endpoint = sample::endpoint(0, None);
            endpoint.address.set_port(u16::try_from(number).expect("is a port"));
            endpoint.ready = ready;
            endpoint
        };
        let endpoints = (0..=DELTA_RECORDS_MAX).map(endpoint).collect();
        let model = Model { endpoints, ..sample::model(0, 0) };
        Contents::of(model, 1)
    };
    let mut publisher = publisher();
    let first = publisher.draft(&many(true), false, unsigned).expect("is the first");
    publisher.committed(first);
    whole(&publisher.draft(&many(false), false, unsigned).expect("all is another"));
}

#[test]
fn the_signature_is_over_all_before_it() {
    let mut publisher = publisher();
    let mut shown = Vec::new();
    let sign = |bytes: &[u8]| {
        shown = bytes.to_vec();
        b"signature".to_vec()
    };
    let draft = publisher.draft(&contents(1), false, sign).expect("is the first");
    let sealed = Sealed::open(&whole(&draft).sealed).expect("is a table");
    assert_eq!((sealed.signed, sealed.signature), (&shown[..], &b"signature"[..]));
    assert!(draft.bytes() > shown.len() && !draft.too_large());
}

#[test]
fn what_was_never_sent_leaves_no_gap() {
    let mut publisher = publisher();
    publish(&mut publisher, 2, false);
    let too_large = draft(&mut publisher, 3, true);
    publisher.unsent(&too_large);
    assert!(publisher.draft(&contents(2), false, unsigned).is_none(), "the table that is out is sent again");
    assert_eq!(draft(&mut publisher, 4, false).version(), too_large.version());
}
