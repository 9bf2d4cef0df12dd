//! Which documents are taken over, and what is done about the others.

use proptest::prelude::*;
use ring::digest::{SHA512, digest};

use super::*;
use crate::cluster::store::Document;

const CLUSTER: &str = "shop";

/// Those of a root of two: what they sign is a hash, as everybody here can tell.
struct Root;

fn signature(by: &str, message: &[u8]) -> Signature {
    let length = u16::try_from(by.len()).expect("is short").to_be_bytes();
    let sum = digest(&SHA512, message);
    Signature::from_bytes(&[&[1], &length[..], by.as_bytes(), sum.as_ref()].concat()).expect("has the form")
}

impl Operators for Root {
    fn operator(&self, at: SystemTime, sealed: &[u8], found: &Signature) -> Result<Arc<str>, Untrusted> {
        let by = ["alice", "bob"].into_iter().find(|by| found.to_bytes()[3..].starts_with(by.as_bytes()));
        let by = by.ok_or(Untrusted::UnknownIssuer)?;
        if *found != signature(by, sealed) {
            return Err(Untrusted::BadSignature);
        }
        if at < second(10) { Err(Untrusted::NotYetValid) } else { Ok(by.into()) }
    }
}

fn second(second: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(second)
}

fn plain(documents: &[(&str, &str)]) -> Texts {
    documents.iter().map(|(id, text)| ((*id).into(), (1, (*text).into()))).collect()
}

/// Documents with a seal over them, made upon whatever was there.
fn set(documents: &[(&str, &str)], by: &str, at: u64) -> Texts {
    set_upon(documents, by, at, |head| head.follows = head.generation - 1)
}

fn set_upon(documents: &[(&str, &str)], by: &str, at: u64, change: impl FnOnce(&mut Head)) -> Texts {
    let mut texts = plain(documents);
    let mut head = Head::new(CLUSTER, &texts, None, second(at));
    change(&mut head);
    texts.insert(SEAL.into(), (1, head.sealed(|bytes| signature(by, bytes))));
    texts
}

fn believed(texts: &Texts) -> Seal {
    seal(CLUSTER, texts, &Root).expect("is a seal")
}

fn checked(there: &Texts, held: Option<&Texts>) -> Result<u64, &'static str> {
    let seal = held.map(believed);
    let held = held.zip(seal.as_ref());
    check(CLUSTER, there, &mut Sums::default(), &Root, held)
        .map(|seal| seal.head.generation)
        .map_err(|refused| refused.as_str())
}

const TWO: [(&str, &str); 2] = [("Service/d/a", "x"), ("Service/d/b", "y")];

#[test]
fn a_set_is_taken_over_as_it_was_sealed_and_not_otherwise() {
    let held = set(&TWO, "alice", 20);
    let with = |change: &dyn Fn(&mut Texts)| {
        let mut texts = held.clone();
        change(&mut texts);
        checked(&texts, Some(&held))
    };
    assert_eq!(with(&|_| {}), Ok(20_000));
    // What no seal is over.
    let restored = |texts: &mut Texts| drop(texts.insert(RESTORED.into(), (9, "s@3".into())));
    assert_eq!(with(&restored), Ok(20_000));
    let later = |texts: &mut Texts| {
        *texts = texts.iter().map(|(id, (at, text))| (id.clone(), (at + 1, text.clone()))).collect();
    };
    assert_eq!(with(&later), Ok(20_000));
    let put = |id: &'static str, text: &'static str| {
        move |texts: &mut Texts| drop(texts.insert(id.into(), (2, text.into())))
    };
    assert_eq!(with(&put("Service/d/c", "z")), Err("altered"));
    assert_eq!(with(&put("sluice.dev/other", "")), Err("altered"));
    assert_eq!(with(&put("Service/d/a", "z")), Err("altered"));
    assert_eq!(with(&|texts| drop(texts.remove("Service/d/a"))), Err("altered"));
    assert_eq!(with(&|texts| drop(texts.remove(SEAL))), Err("unsigned"));
    assert_eq!(with(&put(SEAL, "nonsense")), Err("malformed"));
    assert_eq!(with(&put(SEAL, "{}\nAQAA")), Err("malformed"));
}

#[test]
fn only_operators_seal_and_only_while_they_may() {
    assert_eq!(checked(&set(&TWO, "mallory", 20), None), Err("unknown_issuer"));
    assert_eq!(checked(&set(&TWO, "bob", 20), None), Ok(20_000));
    // The time that counts is that of the seal.
    assert_eq!(checked(&set(&TWO, "bob", 9), None), Err("not_yet_valid"));
    let mut altered = set(&TWO, "alice", 20);
    let (_, text) = altered[SEAL].clone();
    altered.insert(SEAL.into(), (1, text.replace("\"count\":2", "\"count\":3").into()));
    assert_eq!(checked(&altered, None), Err("bad_signature"));
    let mut other = plain(&TWO);
    let head = Head::new("other", &other, None, second(20));
    other.insert(SEAL.into(), (1, head.sealed(|bytes| signature("alice", bytes))));
    assert_eq!(checked(&other, None), Err("cluster"));
    let head = Head { schema: 2, ..Head::new(CLUSTER, &plain(&TWO), None, second(20)) };
    other.insert(SEAL.into(), (1, head.sealed(|bytes| signature("alice", bytes))));
    assert_eq!(checked(&other, None), Err("schema"));
}

#[test]
fn generations_only_rise() {
    let (old, held) = (set(&TWO, "alice", 20), set(&TWO[..1], "alice", 21));
    assert_eq!(checked(&old, Some(&held)), Err("outdated"));
    assert_eq!(checked(&held, Some(&old)), Ok(21_000));
    let fork = set(&[("Service/d/c", "z")], "bob", 21);
    assert_eq!(checked(&fork, Some(&held)), Err("forked"));
    // A clock that is behind makes none that is lower.
    let next = Head::new(CLUSTER, &plain(&TWO), Some(&believed(&held)), second(12));
    assert_eq!((next.generation, next.follows), (21_001, 21_000));
}

#[test]
fn what_was_sealed_without_knowing_what_is_held_does_not_count() {
    let held = set(&TWO, "alice", 20);
    let follows = |follows: u64| set_upon(&TWO[..1], "bob", 30, |head| head.follows = follows);
    for (upon, expected) in
        [(0, Err("unaware")), (19_999, Err("unaware")), (20_000, Ok(30_000)), (25_000, Ok(30_000))]
    {
        assert_eq!(checked(&follows(upon), Some(&held)), expected, "{upon}");
        assert_eq!(checked(&follows(upon), None), Ok(30_000), "{upon}: who has nothing loses nothing");
    }
    let anew = set_upon(&TWO[..1], "bob", 30, |head| head.anew = true);
    assert_eq!(checked(&anew, Some(&held)), Ok(30_000));
    assert_eq!(checked(&set_upon(&TWO, "bob", 19, |head| head.anew = true), Some(&held)), Err("outdated"));
    // Whoever leads has taken it over.
    let seal = believed(&held);
    for (in_force, expected) in [(20_000, false), (30_000, true), (31_000, true)] {
        let beside = (Some((&held, &seal)), in_force);
        let found = check_beside(CLUSTER, &follows(0), &mut Sums::default(), &Root, beside);
        assert_eq!(found.is_ok(), expected, "{in_force}");
    }
    // The table in force came before the documents that it is made of.
    for (upon, in_force, expected) in
        [(20_000, 25_000, false), (25_000, 25_000, true), (20_000, 30_000, true)]
    {
        for held in [Some((&held, &seal)), None] {
            let beside = (held, in_force);
            let found = check_beside(CLUSTER, &follows(upon), &mut Sums::default(), &Root, beside);
            assert_eq!(found.is_ok(), expected, "{upon}, {in_force}, {}", beside.0.is_some());
        }
    }
}

/// What is given back is not refused by those who give it, whatever was taken back of its operator.
#[test]
fn what_is_held_counts_whatever_becomes_of_its_operator() {
    struct Nobody;
    impl Operators for Nobody {
        fn operator(&self, _: SystemTime, _: &[u8], _: &Signature) -> Result<Arc<str>, Untrusted> {
            Err(Untrusted::Revoked)
        }
    }
    let held = set(&TWO, "alice", 20);
    let seal = believed(&held);
    let judged = |there: &Texts| {
        let found = check_beside(CLUSTER, there, &mut Sums::default(), &Nobody, (Some((&held, &seal)), 0));
        found.map(|seal| seal.head.generation).map_err(|refused| refused.as_str())
    };
    assert_eq!(judged(&held), Ok(20_000));
    let mut altered = held.clone();
    altered.remove(&Arc::<str>::from(TWO[0].0));
    assert_eq!(judged(&altered), Err("altered"));
    assert_eq!(judged(&set(&TWO, "alice", 21)), Err("revoked"));
}

/// One set after the other, each made upon the one before: all that an operator sees is the last.
#[test]
fn what_was_made_upon_a_set_that_does_not_count_does_not_either() {
    let chain = |seals: &[(u64, bool)]| {
        let mut last: Option<Texts> = None;
        for (at, anew) in seals {
            let before = last.as_ref().map(believed);
            last = Some(set_upon(&TWO[..1], "bob", *at, |head| {
                *head = Head::new(CLUSTER, &plain(&TWO[..1]), before.as_ref(), second(*at));
                head.anew = *anew;
            }));
        }
        last.expect("one at least")
    };
    let known = |seals: &[u64]| chain(&seals.iter().map(|at| (*at, false)).collect::<Vec<_>>());
    let held = known(&[10, 15, 20]);
    let long: Vec<u64> = (30..70).collect();
    for (there, expected) in [
        (known(&[10, 15, 20, 30]), Ok(30_000)),
        (known(&[10, 15, 20, 30, 31, 32]), Ok(32_000)),
        // The store had nothing, or went back to the 15th second.
        (known(&[30, 31]), Err("unaware")),
        (known(&[30, 31, 32]), Err("unaware")),
        (known(&[10, 15, 30, 31]), Err("unaware")),
        (chain(&[(30, true), (31, false)]), Ok(31_000)),
        (chain(&[(10, false), (30, true), (31, false), (32, false)]), Ok(32_000)),
        // No seal tells of all there ever were.
        (known(&long), Ok(69_000)),
    ] {
        assert_eq!(checked(&there, Some(&held)), expected);
    }
    let begun = |texts: &Texts, at| {
        believed(texts).head.is_begun_within(std::time::Duration::from_mins(1), second(at))
    };
    assert!(begun(&known(&[30, 31]), 40) && !begun(&known(&[30, 31]), 92) && !begun(&known(&long), 70));
    assert!(!begun(&chain(&[(30, true)]), 31));
}

#[test]
fn what_differs_is_named() {
    let held = set(&TWO, "alice", 20);
    let mut there = held.clone();
    there.remove("Service/d/a");
    there.insert("Service/d/b".into(), (2, "other".into()));
    for name in ["Service/d/c", "Service/d/e"] {
        there.insert(name.into(), (2, "z".into()));
    }
    let seal = believed(&held);
    let refused =
        check(CLUSTER, &there, &mut Sums::default(), &Root, Some((&held, &seal))).expect_err("is altered");
    let said = refused.to_string();
    for part in ["sealed by alice", "d/a is gone", "d/b was changed", "d/c was added", "and 1 more"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

fn kept(store: &str, revision: u64, texts: Texts) -> KeptDocuments {
    KeptDocuments { store: store.into(), revision, texts }
}

fn heard(store: &str, revision: u64, texts: &Texts) -> Documents {
    let document = |(id, (revision, text)): (&Arc<str>, &(u64, Arc<str>))| Document {
        id: Arc::clone(id),
        text: Some(Arc::clone(text)),
        revision: *revision,
    };
    let changed = texts.iter().map(document).collect();
    Documents { store: store.into(), revision, changed, odd: Vec::new() }
}

fn step(before: &KeptDocuments, store: &str, revision: u64, texts: &Texts, all: bool) -> Step {
    compare_sealed(before, &heard(store, revision, texts), all, |there| {
        let seal = believed(&before.texts);
        check(CLUSTER, &there.texts, &mut Sums::default(), &Root, Some((&before.texts, &seal))).map(drop)
    })
}

#[test]
fn a_spoilt_store_gets_back_what_was_sealed_with_its_seal() {
    let held = kept("s", 5, set(&TWO, "alice", 20));
    let mut spoilt = held.texts.clone();
    spoilt.insert("Service/d/c".into(), (6, "z".into()));
    let added = plain(&[("Service/d/c", "z")]);
    assert_eq!(step(&held, "s", 6, &added, false), Step::AskAll);
    let Step::Refuse(refused, writes) = step(&held, "s", 6, &spoilt, true) else {
        panic!("is taken over");
    };
    assert_eq!(refused.as_str(), "altered");
    let said: Vec<_> =
        writes.iter().map(|write| (&*write.id, write.text.is_some(), write.expected)).collect();
    let expected = [(SEAL, true, Some(1)), ("Service/d/c", false, Some(6)), (RESTORED, true, None)];
    assert_eq!(said, expected, "the seal is compared and written whatever it is");
}

#[test]
fn a_store_that_lost_everything_gets_it_back_and_a_new_set_counts() {
    let held = kept("s", 5, set(&TWO, "alice", 20));
    assert_eq!(step(&held, "", 0, &Texts::default(), false), Step::AskAll);
    let Step::Restore(writes) = step(&held, "", 0, &Texts::default(), true) else {
        panic!("is not given back")
    };
    assert!(writes.iter().any(|write| &*write.id == SEAL && write.expected == Some(0)));
    assert_eq!(writes.len(), 4);
    // An older set is lost documents as well; a newer one counts, whichever store it is in and at whatever revision.
    let Step::Refuse(refused, writes) = step(&held, "s", 2, &set(&TWO[..1], "alice", 19), true) else {
        panic!("is taken over");
    };
    assert_eq!((refused.as_str(), writes.len()), ("outdated", 3));
    for (store, revision) in [("s", 2), ("t", 1), ("s", 9)] {
        let newer = set(&TWO[..1], "bob", 21);
        assert_eq!(step(&held, store, revision, &newer, true), Step::Adopt(kept(store, revision, newer)));
    }
    // Who has nothing gives nothing.
    let refuse = |_: &KeptDocuments| Err(Refused::Unsigned);
    let nothing = KeptDocuments::default();
    let there = heard("s", 1, &plain(&TWO));
    assert_eq!(compare_sealed(&nothing, &there, true, refuse), Step::Refuse(Refused::Unsigned, Vec::new()));
    assert_eq!(compare_sealed(&nothing, &Documents::default(), false, refuse), Step::Adopt(nothing.clone()));
}

#[test]
fn changes_are_taken_over_one_by_one() {
    let held = kept("s", 5, set(&TWO, "alice", 20));
    let after = set(&[("Service/d/a", "x"), ("Service/d/b", "new")], "bob", 22);
    let mut changed = after.clone();
    changed.remove("Service/d/a");
    let Step::Adopt(adopted) = step(&held, "s", 6, &changed, false) else { panic!("is not taken over") };
    assert_eq!((adopted.texts, adopted.revision), (after, 6));
}

fn texts() -> impl Strategy<Value = Texts> {
    let document =
        ("[a-d]{1,2}", (1_u64..3, "[xy]{0,2}").prop_map(|(at, text)| (at, Arc::<str>::from(text))));
    let documents = proptest::collection::btree_map(document.0.prop_map(Arc::<str>::from), document.1, 0..8);
    documents.prop_map(|documents| documents.into_iter().collect())
}

proptest! {
    /// What was hashed before changes no digest, and two sets have the same one only if they are the same.
    #[test]
    fn a_digest_is_that_of_the_documents(sets in proptest::collection::vec(texts(), 1..6)) {
        let mut sums = Sums::default();
        let bare = |texts: &Texts| -> Vec<_> { texts.iter().map(|(id, (_, text))| (id.clone(), text.clone())).collect() };
        for pair in sets.windows(2) {
            let digests = [&pair[0], &pair[1]].map(|texts| sums.of(texts));
            prop_assert_eq!(digests[1], Sums::default().of(&pair[1]));
            prop_assert_eq!(digests[0] == digests[1], bare(&pair[0]) == bare(&pair[1]));
        }
    }

    /// Whatever stands in the seal's place is read or refused.
    #[test]
    fn anything_is_no_seal(text in "\\PC{0,200}", line in any::<bool>()) {
        let text = if line { format!("{text}\n{text}") } else { text };
        let mut there = plain(&TWO);
        there.insert(SEAL.into(), (1, text.into()));
        prop_assert!(checked(&there, None).is_err());
    }
}
