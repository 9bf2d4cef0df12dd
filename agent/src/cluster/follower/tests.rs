//! Every step and every refusal.

use super::*;
use crate::cluster::publisher::{Contents, DraftForm, Publisher};
use crate::cluster::sample::{self, ByName};
use crate::cluster::seal::{Header, first_digest, seal};
use crate::cluster::store::Lease;
use crate::compile::Token;
use crate::model::Model;

/// A cluster whose tables are not signed.
struct Open;

impl Verify for Open {
    fn signer(&self, _: &[u8], _: &[u8]) -> Result<Option<Arc<str>>, Refusal> {
        Ok(None)
    }
}

fn untrusted() -> Refusal {
    Refusal::Untrusted { reason: "signature", detail: "it names nobody".to_owned() }
}

fn version(epoch: u64, version: u64) -> TableVersion {
    TableVersion { token: Token { epoch, nonce: 1 }, version }
}

/// The leader of a term: node `a`.
struct Leader(Publisher);

impl Leader {
    fn of(epoch: u64) -> Self {
        let lease = Lease { token: version(epoch, 0).token, node: "a".into() };
        Self(Publisher::new("c".into(), lease))
    }

    /// What it publishes, and the store has.
    fn publish(&mut self, model: Model, whole: bool, allow_shrink: bool) -> Vec<u8> {
        self.publish_of(&Contents { allow_shrink, ..Contents::of(model, 1) }, whole)
    }

    fn publish_of(&mut self, contents: &Contents, whole: bool) -> Vec<u8> {
        let draft = self.0.draft(contents, whole, |_| sample::sign("a")).expect("is another table");
        self.0.committed(draft.clone());
        match draft.form {
            DraftForm::Whole(snapshot) => snapshot.sealed,
            DraftForm::Change(delta) => delta.sealed,
        }
    }

    /// Tables of so many endpoints, one after the other.
    fn tables(&mut self, endpoints: &[u8]) -> Vec<Vec<u8>> {
        endpoints.iter().map(|endpoints| self.publish(sample::model(*endpoints, 0), false, false)).collect()
    }
}

fn follower() -> Follower {
    Follower::new("c".into(), TableVersion::default())
}

fn step(follower: &mut Follower, bytes: &[u8]) -> Result<Step, Refusal> {
    follower.receive(bytes, &ByName)
}

/// Refused, and nothing has changed.
fn check_refused(follower: &mut Follower, bytes: &[u8], refusal: &Refusal) {
    let before = (follower.in_force(), follower.highest(), follower.parts().model());
    assert_eq!(step(follower, bytes).as_ref(), Err(refusal));
    assert_eq!((follower.in_force(), follower.highest(), follower.parts().model()), before, "{refusal}");
}

/// A snapshot of no records with a header that somebody wrote.
fn snapshot(change: impl FnOnce(&mut Header), signature: &[u8]) -> Vec<u8> {
    let body = Change::default().encode();
    let mut header = Header {
        schema: SCHEMA,
        cluster: "c".into(),
        leader: "a".into(),
        version: version(1, 1).into(),
        form: Form::Snapshot { chain: first_digest(version(1, 1), &body) },
        allow_shrink: false,
        shrinks_from: 0,
        revision: 1,
        generation: 0,
    };
    change(&mut header);
    seal(&header, &body, |_| signature.to_vec())
}

#[test]
fn who_was_away_takes_what_came_of_a_table_that_was_let_shrink() {
    let of = |routes: u8, revision: u64| Contents::of(sample::model(1, routes), revision);
    let mut leader = Leader::of(1);
    let (large, next) = (leader.publish_of(&of(20, 4), true), leader.publish_of(&of(21, 5), false));
    let small = leader.publish_of(&Contents { shrinks_from: 4, ..of(2, 6) }, true);
    let (mut away, mut beside) = (follower(), follower());
    assert_eq!(step(&mut away, &large), Ok(Step::Applied));
    for bytes in [&large, &next] {
        assert_eq!(step(&mut beside, bytes), Ok(Step::Applied));
    }
    // What it had was let, and what the other one has was not.
    check_refused(&mut beside, &small, &Refusal::Shrinks { what: "routes", before: 21, after: 2 });
    assert_eq!(step(&mut away, &small), Ok(Step::Applied));
    assert_eq!(away.in_force().map(|at| at.shrinks_from), Some(4));
}

#[test]
fn a_table_of_documents_that_were_sealed_before_is_refused() {
    let of = |epoch: u64, generation: u64| {
        let at = version(epoch, 1);
        let change = |header: &mut Header| {
            (header.version, header.generation) = (at.into(), generation);
            header.form = Form::Snapshot { chain: first_digest(at, &Change::default().encode()) };
        };
        let unsigned = snapshot(change, b"");
        let signed = Sealed::open(&unsigned).expect("is sealed").signed;
        [signed, &sample::sign("a")].concat()
    };
    let mut follower = follower();
    follower.hold(4);
    check_refused(&mut follower, &of(1, 3), &Refusal::OlderDocuments(3, 4));
    assert_eq!(step(&mut follower, &of(1, 4)), Ok(Step::Applied));
    assert_eq!(step(&mut follower, &of(2, 6)), Ok(Step::Applied));
    check_refused(&mut follower, &of(3, 5), &Refusal::OlderDocuments(5, 6));
    check_refused(&mut follower, &of(3, 0), &Refusal::OlderDocuments(0, 6));
    assert_eq!(step(&mut follower, &of(4, 6)), Ok(Step::Applied));
}

#[test]
fn a_term_is_followed_from_its_snapshot() {
    let mut follower = follower();
    assert_eq!((follower.in_force(), follower.highest()), (None, TableVersion::default()));
    for (number, bytes) in Leader::of(1).tables(&[2, 3, 1]).iter().enumerate() {
        assert_eq!(step(&mut follower, bytes), Ok(Step::Applied), "table {number}");
        let at = follower.in_force().expect("is in force");
        assert_eq!(
            (at.version, at.chain),
            (follower.highest(), Sealed::open(bytes).expect("is one").digest())
        );
        assert_eq!(step(&mut follower, bytes), Ok(Step::Known), "table {number} again");
    }
    assert_eq!((follower.highest(), follower.parts().model()), (version(1, 3), sample::model(1, 0)));
}

#[test]
fn what_does_not_prove_where_it_comes_from_is_refused() {
    let good = snapshot(|_| (), b"by a");
    let cases = [
        (b"{}".to_vec(), Refusal::Malformed(Malformed::Foreign)),
        (good[..40].to_vec(), Refusal::Malformed(Malformed::Foreign)),
        (snapshot(|header| header.schema = SCHEMA + 1, b"by a"), Refusal::Schema(SCHEMA + 1)),
        (snapshot(|header| header.cluster = "d".into(), b"by a"), Refusal::Cluster("d".into())),
        (snapshot(|_| (), b""), untrusted()),
        (snapshot(|_| (), b"forged"), untrusted()),
        (snapshot(|_| (), b"by b"), Refusal::Signer { signer: "b".into(), leader: "a".into() }),
        (
            snapshot(|header| header.leader = "b".into(), b"by a"),
            Refusal::Signer { signer: "a".into(), leader: "b".into() },
        ),
    ];
    let mut follower = follower();
    for (bytes, refusal) in &cases {
        check_refused(&mut follower, bytes, refusal);
    }
    // Where nothing is signed the leader's name is what it says.
    let anybody = snapshot(|header| header.leader = "b".into(), b"");
    assert_eq!(follower.receive(&anybody, &Open), Ok(Step::Applied));
    for (bytes, refusal) in &cases {
        check_refused(&mut follower, bytes, refusal);
    }
}

#[test]
fn records_that_cannot_be_read_are_refused() {
    let mut follower = follower();
    let mut leader = Leader::of(1);
    let tables = leader.tables(&[1]);
    assert_eq!(step(&mut follower, &tables[0]), Ok(Step::Applied));
    let Position { chain, .. } = follower.in_force().expect("is in force");
    // Taking away a record that is not there, in a change that says that it follows.
    let stray = Change::between(&sample::model(3, 0), &sample::model(2, 0)).encode();
    for (form, body) in [
        (Form::Snapshot { chain: first_digest(version(1, 2), b"") }, b"".to_vec()),
        (Form::Snapshot { chain: first_digest(version(1, 2), b"") }, b"\x01nonsense".to_vec()),
        (Form::Snapshot { chain: first_digest(version(1, 2), b"") }, stray.clone()),
        (Form::Delta { previous: chain }, b"\x01nonsense".to_vec()),
        (Form::Delta { previous: chain }, stray),
    ] {
        let header = Sealed::open(&tables[0]).expect("is a table").header;
        let bytes =
            seal(&Header { version: version(1, 2).into(), form, ..header }, &body, |_| sample::sign("a"));
        let refusal = step(&mut follower, &bytes).expect_err("is refused");
        assert_eq!(refusal.as_str(), "records", "{refusal}");
        check_refused(&mut follower, &bytes, &refusal);
    }
    // And what follows in truth goes on.
    assert_eq!(step(&mut follower, &leader.tables(&[2])[0]), Ok(Step::Applied));
}

#[test]
fn an_older_term_is_refused_and_a_newer_one_is_not() {
    let mut follower = follower();
    let mut old = Leader::of(4);
    let tables = old.tables(&[1, 2, 3]);
    assert_eq!(step(&mut follower, &tables[0]), Ok(Step::Applied));
    assert_eq!(step(&mut follower, &Leader::of(5).tables(&[4])[0]), Ok(Step::Applied));
    let outdated = Refusal::Outdated { highest: version(5, 1) };
    for bytes in &tables {
        check_refused(&mut follower, bytes, &outdated);
    }
    check_refused(&mut follower, &old.publish(sample::model(9, 0), true, false), &outdated);
    // A term of the same epoch is another one: the higher nonce is the later.
    let twin = |nonce| {
        let token = Token { epoch: 5, nonce };
        let mut twin = Leader(Publisher::new("c".into(), Lease { token, node: "a".into() }));
        twin.publish(sample::model(5, 0), false, false)
    };
    check_refused(&mut follower, &twin(0), &outdated);
    assert_eq!(step(&mut follower, &twin(2)), Ok(Step::Applied));
}

#[test]
fn what_was_in_force_before_the_process_began_is_not_gone_below() {
    for highest in [version(4, 0), version(4, 7), version(5, 1)] {
        let mut follower = Follower::new("c".into(), highest);
        check_refused(&mut follower, &Leader::of(3).tables(&[1])[0], &Refusal::Outdated { highest });
    }
}

#[test]
fn another_table_of_the_same_name_is_told() {
    let mut follower = follower();
    assert_eq!(step(&mut follower, &Leader::of(1).tables(&[2])[0]), Ok(Step::Applied));
    check_refused(&mut follower, &Leader::of(1).tables(&[3])[0], &Refusal::Forked(version(1, 1)));
    // One that was lower is not looked at any more.
    let mut leader = Leader::of(2);
    for bytes in leader.tables(&[2, 3]) {
        assert_eq!(step(&mut follower, &bytes), Ok(Step::Applied));
    }
    assert_eq!(step(&mut follower, &Leader::of(2).tables(&[9])[0]), Ok(Step::Known));
}

#[test]
fn a_change_of_what_is_not_here_waits_for_the_snapshot() {
    let mut leader = Leader::of(1);
    let tables = leader.tables(&[1, 2, 3, 4]);
    let mut follower = follower();
    assert_eq!(step(&mut follower, &tables[1]), Ok(Step::Gap), "nothing is here");
    assert_eq!(step(&mut follower, &tables[0]), Ok(Step::Applied));
    assert_eq!(step(&mut follower, &tables[2]), Ok(Step::Gap), "one is missing");
    assert_eq!((follower.highest(), follower.parts().counts().endpoints), (version(1, 1), 1));
    let whole = leader.publish(sample::model(4, 0), true, false);
    assert_eq!(step(&mut follower, &whole), Ok(Step::Applied));
    assert_eq!(step(&mut follower, &tables[3]), Ok(Step::Known), "it is in the snapshot");
    assert_eq!(follower.highest(), version(1, 5));
    // A change in another term's chain is no change of this one.
    let mut next = Leader::of(2);
    let tables = next.tables(&[1, 2]);
    assert_eq!(step(&mut follower, &tables[1]), Ok(Step::Gap));
    assert_eq!(step(&mut follower, &tables[0]), Ok(Step::Applied));
}

#[test]
fn a_process_that_begins_without_its_table_catches_up_with_itself() {
    let tables = Leader::of(3).tables(&[1, 2, 3, 4]);
    let mut follower = Follower::new("c".into(), version(3, 3));
    for (bytes, expected) in tables.iter().zip([Step::Behind, Step::Behind, Step::Applied, Step::Applied]) {
        assert_eq!(step(&mut follower, bytes), Ok(expected));
        assert_eq!(follower.in_force().is_some(), expected == Step::Applied);
        assert!(follower.highest() >= version(3, 3));
    }
    assert_eq!((follower.highest(), follower.parts().model()), (version(3, 4), sample::model(4, 0)));
    // Those that are behind are followed, and not taken twice.
    let mut follower = Follower::new("c".into(), version(3, 3));
    assert_eq!(step(&mut follower, &tables[0]), Ok(Step::Behind));
    assert_eq!(step(&mut follower, &tables[0]), Ok(Step::Known));
    assert_eq!(step(&mut follower, &tables[2]), Ok(Step::Gap));
}

#[test]
fn a_process_begins_with_the_table_that_it_kept() {
    let mut leader = Leader::of(3);
    let tables = leader.tables(&[1, 2, 3]);
    let chain = Sealed::open(&tables[1]).expect("is a table").digest();
    let at = Position { version: version(3, 2), chain, revision: 1, shrinks_from: 0 };
    let restored = |highest| {
        let mut follower = Follower::new("c".into(), highest);
        follower.restore(at, &Change::whole(&sample::model(2, 0))).expect("is a model");
        follower
    };
    // The highest was written before the table, or is not there any more.
    for highest in [TableVersion::default(), version(3, 1), version(3, 2)] {
        let mut follower = restored(highest);
        assert_eq!((follower.in_force(), follower.highest()), (Some(at), version(3, 2)));
        assert_eq!(step(&mut follower, &tables[0]), Ok(Step::Known));
        assert_eq!(step(&mut follower, &tables[2]), Ok(Step::Applied));
    }
    let mut follower = restored(version(3, 3));
    assert_eq!(follower.in_force(), None, "a later one was in force, and is not here");
    assert_eq!(step(&mut follower, &tables[2]), Ok(Step::Applied));
    // What can't be read is not begun with.
    let mut follower = self::follower();
    let stray = Change::between(&sample::model(3, 0), &sample::model(2, 0));
    assert!(follower.restore(at, &stray).is_err());
    assert_eq!((follower.in_force(), follower.highest()), (None, TableVersion::default()));
}

#[test]
fn most_of_a_table_goes_only_if_somebody_said_so() {
    // Endpoints and routes before and after, and what is refused.
    let cases = [
        ((2, 0), (1, 0), None),
        ((1, 0), (0, 0), Some(("endpoints", 1, 0))),
        ((7, 0), (0, 0), Some(("endpoints", 7, 0))),
        ((8, 0), (1, 0), None),
        ((8, 0), (0, 0), Some(("endpoints", 8, 0))),
        ((0, 7), (0, 0), None),
        ((0, 8), (0, 4), None),
        ((0, 8), (0, 3), Some(("routes", 8, 3))),
        ((0, 9), (0, 5), None),
        ((0, 9), (0, 4), Some(("routes", 9, 4))),
        ((20, 20), (0, 0), Some(("endpoints", 20, 0))),
        ((20, 20), (30, 9), Some(("routes", 20, 9))),
    ];
    for (before, after, refused) in cases {
        for whole in [false, true] {
            let mut leader = Leader::of(1);
            let mut follower = follower();
            let first = leader.publish(sample::model(before.0, before.1), false, false);
            assert_eq!(step(&mut follower, &first), Ok(Step::Applied));
            let model = || sample::model(after.0, after.1);
            let next = leader.publish(model(), whole, false);
            match refused {
                None => assert_eq!(step(&mut follower, &next), Ok(Step::Applied), "{before:?} to {after:?}"),
                Some((what, before, after)) => {
                    check_refused(&mut follower, &next, &Refusal::Shrinks { what, before, after });
                    let allowed = leader.publish(model(), true, true);
                    assert_eq!(step(&mut follower, &allowed), Ok(Step::Applied));
                    assert_eq!(follower.parts().model(), model());
                }
            }
        }
    }
    // Said of the change itself.
    let mut leader = Leader::of(1);
    let mut follower = follower();
    assert_eq!(step(&mut follower, &leader.tables(&[9])[0]), Ok(Step::Applied));
    assert_eq!(step(&mut follower, &leader.publish(sample::model(0, 0), false, true)), Ok(Step::Applied));
}

#[test]
fn what_is_counted_before_a_change_is_what_is_there_after_it() {
    let steps = [(0, 0), (5, 3), (5, 3), (2, 9), (12, 1), (0, 4), (0, 0)];
    let mut parts = Parts::default();
    for (before, after) in steps.iter().zip(&steps[1..]) {
        // Whether an endpoint is ready goes by its number and by how many there are.
        let model = |(endpoints, routes): &(u8, u8)| {
            let mut model = sample::model(*endpoints, *routes);
            model.endpoints.edit(|all| {
                for endpoint in all.iter_mut().skip(usize::from(endpoints % 2)).step_by(2) {
                    endpoint.ready = false;
                }
            });
            model
        };
        let (before, after) = (model(before), model(after));
        let change = Change::between(&before, &after);
        let counted = parts.counts_after(&change).expect("is a change");
        parts.apply(&change).expect("follows");
        assert_eq!(counted, parts.counts());
        assert_eq!(counted, Counts::of(&parts.model()));
        assert_eq!((counted.endpoints, counted.routes), (after.endpoints.len(), after.mesh_routes.len()));
    }
}

/// What the next leader says of the table in force of a follower.
fn went_on(leader: &mut Leader, follower: &Follower) -> Vec<u8> {
    let with = follower.continued().expect("a table is in force");
    let draft = leader.0.go_on(with, |_| sample::sign("a")).expect("nothing is out yet");
    leader.0.committed(draft.clone());
    match draft.form {
        DraftForm::Change(delta) => delta.sealed,
        DraftForm::Whole(_) => panic!("nothing is sent again"),
    }
}

#[test]
fn the_next_term_goes_on_with_the_table_in_force() {
    let tables = Leader::of(1).tables(&[2, 3]);
    let (mut here, mut behind) = (follower(), follower());
    for table in &tables {
        step(&mut here, table).expect("is taken");
    }
    step(&mut behind, &tables[0]).expect("is taken");
    here.take_touched();
    let mut next = Leader::of(2);
    let first = went_on(&mut next, &here);
    assert_eq!(step(&mut here, &first), Ok(Step::Applied));
    let at = here.in_force().expect("is in force");
    assert_eq!((at.version, at.revision, here.parts().counts().endpoints), (version(2, 1), 1, 3));
    assert_eq!(here.take_touched(), Some(Touched::default()), "nothing is to be compiled");
    // Who has another table can't take it for its own, and no table of the term before is obeyed any more.
    assert_eq!(step(&mut behind, &first), Ok(Step::Gap));
    let stale = Leader::of(1).tables(&[1]).remove(0);
    check_refused(&mut here, &stale, &Refusal::Outdated { highest: version(2, 1) });
    // The changes that follow are changes of what was in force.
    assert_eq!(next.0.lacks_model(), Some(at.chain));
    next.0.knows(Arc::new(here.parts().model()));
    let bytes = next.publish(sample::model(4, 0), false, false);
    assert!(matches!(Sealed::open(&bytes).expect("is a table").header.form, Form::Delta { .. }));
    assert_eq!(step(&mut here, &bytes), Ok(Step::Applied));
    assert_eq!(here.parts().model(), sample::model(4, 0));
}

#[test]
fn no_term_begins_with_a_table_that_somebody_would_refuse() {
    let mut follower = follower();
    assert_eq!(follower.continued(), None, "nothing is here");
    let tables = Leader::of(1).tables(&[2, 3]);
    step(&mut follower, &tables[0]).expect("is taken");
    assert!(follower.continued().is_some_and(|with| with.generation == 0));
    // Documents that were sealed later are known, and the table is not made of them.
    follower.hold(7);
    assert_eq!(follower.continued(), None);
    // Of a table that was kept it has to be heard first what it is made of.
    let kept = Sealed::open(&tables[1]).expect("is a table").position();
    let mut restarted = self::follower();
    let whole = Change::whole(&sample::model(3, 0));
    restarted.restore(kept, &whole).expect("is a model");
    assert_eq!(restarted.continued(), None);
    assert_eq!(step(&mut restarted, &tables[0]), Ok(Step::Known));
    assert_eq!(restarted.continued(), None);
    assert_eq!(step(&mut restarted, &tables[1]), Ok(Step::Known));
    assert_eq!(restarted.continued().map(|with| with.at), Some(kept));
}
