//! The machine, event by event.

use super::*;

const TTL: Duration = Duration::from_secs(3);

fn at(millis: u64) -> Millis {
    Millis(millis)
}

fn machine() -> Election {
    Election::new("a".into(), 7, TTL, Token { epoch: 4, nonce: 9 }, at(0))
}

fn lease(epoch: u64) -> Lease {
    Lease { token: Token { epoch, nonce: 7 }, node: "a".into() }
}

fn ask(above: u64) -> Action {
    Action::Acquire(Candidate { node: "a".into(), nonce: 7, above })
}

/// A machine that leads since the start.
fn leader() -> Election {
    let mut machine = machine();
    assert_eq!(machine.on(Event::Tick, at(0), 0), [ask(4)]);
    let granted = Event::Acquired(Ok(Acquired::Yes(lease(5))));
    assert_eq!(machine.on(granted, at(10), 0), [Action::Lead(lease(5))]);
    machine
}

#[test]
fn the_deadline_counts_from_when_the_question_was_sent() {
    let mut machine = leader();
    assert_eq!(machine.leads_until(), Some(at(2100)));
    assert_eq!(machine.wake_at(), Some(at(1000)));
    assert_eq!(machine.on(Event::Tick, at(1000), 0), [Action::Renew(lease(5))]);
    assert_eq!(machine.on(Event::Renewed(Ok(true)), at(1900), 0), []);
    assert_eq!(machine.leads_until(), Some(at(3100)));
    assert_eq!(machine.leads(at(3099)), Some(&lease(5)));
    assert_eq!(machine.leads(at(3100)), None);
}

#[test]
fn who_was_paused_leads_no_more_whatever_comes_first() {
    let events = [
        Event::Tick,
        Event::Renewed(Ok(true)),
        Event::Changed,
        Event::Saw(Token { epoch: 5, nonce: 7 }),
        Event::Unfit,
        Event::Stop,
    ];
    for event in events {
        let mut machine = leader();
        machine.on(Event::Tick, at(1000), 0);
        let actions = machine.on(event.clone(), at(9000), 0);
        assert_eq!(actions.first(), Some(&Action::Yield(Why::TimedOut)), "{event:?}");
        assert!(!actions.contains(&Action::Renew(lease(5))) && machine.leads(at(9000)).is_none());
    }
}

#[test]
fn an_unreachable_store_is_asked_again_until_the_deadline() {
    let mut machine = leader();
    let lost = || Event::Renewed(Err(StoreError::Unreachable("x".into())));
    let mut now = 1000;
    let mut asked = 0;
    while machine.leads(at(now + 100)).is_some() {
        assert_eq!(machine.on(Event::Tick, at(now), 0), [Action::Renew(lease(5))], "at {now}");
        assert_eq!(machine.on(lost(), at(now + 100), 0), []);
        now = machine.wake_at().expect("it wants to try again").0;
        asked += 1;
    }
    assert!(asked >= 4, "only {asked} tries");
    assert_eq!(machine.on(lost(), at(2100), 0), [Action::Yield(Why::TimedOut)]);
}

#[test]
fn a_lease_that_came_too_late_is_given_back() {
    let mut machine = machine();
    machine.on(Event::Tick, at(0), 0);
    let granted = Event::Acquired(Ok(Acquired::Yes(lease(5))));
    assert_eq!(machine.on(granted, at(2100), 0), [Action::Release(lease(5))]);
    assert_eq!(machine.leads(at(2100)), None);
    // And the next one is above it.
    let next = machine.wake_at().expect("it goes on");
    assert_eq!(machine.on(Event::Tick, next, 0), [ask(5)]);
}

#[test]
fn a_grant_whose_answer_was_lost_is_never_used() {
    let mut machine = machine();
    machine.on(Event::Tick, at(0), 0);
    machine.on(Event::Acquired(Err(StoreError::Unreachable("x".into()))), at(500), 0);
    let now = machine.wake_at().expect("it goes on");
    assert_eq!(machine.on(Event::Tick, now, 0), [ask(4)]);
    let held = Event::Acquired(Ok(Acquired::Held(Some(lease(5)))));
    assert_eq!(machine.on(held, now, 0), [Action::Release(lease(5))]);
    // Where that is lost as well it is not given back as fast as the store answers.
    assert_eq!(machine.wake_at(), Some(now.after(TTL / 20)));
    machine.on(Event::Changed, now, 0);
    assert_eq!(machine.on(Event::Tick, now, 0), [ask(5)], "the store told that it is free");
}

#[test]
fn others_are_waited_for_and_their_end_is_heard() {
    let mut machine = machine();
    machine.on(Event::Tick, at(0), 0);
    let theirs = Lease { token: Token { epoch: 9, nonce: 1 }, node: "b".into() };
    assert_eq!(machine.on(Event::Acquired(Ok(Acquired::Held(Some(theirs)))), at(5), 0), []);
    assert_eq!(machine.wake_at(), Some(at(1005)), "at every third of the lease's life");
    assert_eq!(machine.on(Event::Tick, at(500), 0), []);
    assert_eq!(machine.on(Event::Changed, at(600), 7), []);
    assert_eq!(machine.wake_at(), Some(at(607)), "at once, and not all at the same time");
    assert_eq!(machine.on(Event::Tick, at(607), 0), [ask(4)]);
}

#[test]
fn a_higher_token_is_heeded() {
    let mut machine = leader();
    assert_eq!(machine.on(Event::Saw(Token { epoch: 5, nonce: 7 }), at(20), 0), [], "its own");
    assert_eq!(machine.on(Event::Saw(Token { epoch: 5, nonce: 6 }), at(20), 0), [], "a lower one");
    assert_eq!(machine.on(Event::Saw(Token { epoch: u64::MAX, nonce: 0 }), at(20), 0), [], "nonsense");
    let outranked = [Action::Yield(Why::Outranked), Action::Release(lease(5))];
    assert_eq!(machine.on(Event::Saw(Token { epoch: 5, nonce: 8 }), at(30), 0), outranked);
    assert_eq!(machine.on(Event::Tick, at(30), 0), [ask(5)], "above it, at once");
}

#[test]
fn who_is_unfit_lets_others_try() {
    let mut machine = leader();
    let resigned = [Action::Yield(Why::Unfit), Action::Release(lease(5))];
    assert_eq!(machine.on(Event::Unfit, at(30), 0), resigned);
    // It hears that it has given the lease back, as all do.
    assert_eq!(machine.on(Event::Changed, at(40), 0), []);
    assert_eq!(machine.on(Event::Tick, at(3029), 0), []);
    assert_eq!(machine.on(Event::Tick, at(3030), 0), [ask(5)]);
}

#[test]
fn the_end_gives_the_lease_back() {
    let mut machine = leader();
    assert_eq!(machine.on(Event::Stop, at(30), 0), [Action::Yield(Why::Stopping), Action::Release(lease(5))]);
    assert_eq!((machine.wake_at(), machine.leads(at(31))), (None, None));
    assert_eq!(machine.on(Event::Tick, at(9999), 0), []);
    // An answer that is still to come is given back as well.
    let mut asking = self::machine();
    asking.on(Event::Tick, at(0), 0);
    assert_eq!(asking.on(Event::Stop, at(1), 0), []);
    let granted = Event::Acquired(Ok(Acquired::Yes(lease(5))));
    assert_eq!(asking.on(granted, at(2), 0), [Action::Release(lease(5))]);
}

#[test]
fn a_lease_that_is_gone_is_told_by_the_renewal() {
    let mut machine = leader();
    machine.on(Event::Tick, at(1000), 0);
    assert_eq!(machine.on(Event::Renewed(Ok(false)), at(1001), 3), [Action::Yield(Why::Lost)]);
    assert_eq!(machine.wake_at(), Some(at(1004)));
}

#[test]
fn a_term_below_what_came_to_be_known_meanwhile_is_given_back() {
    for seen in [Token { epoch: 9, nonce: 1 }, Token { epoch: 5, nonce: 8 }] {
        let mut machine = machine();
        assert_eq!(machine.on(Event::Tick, at(0), 0), [ask(4)]);
        assert_eq!(machine.on(Event::Saw(seen), at(1), 0), []);
        let granted = Event::Acquired(Ok(Acquired::Yes(lease(5))));
        assert_eq!(machine.on(granted, at(2), 0), [Action::Release(lease(5))]);
        assert_eq!((machine.leads(at(2)), machine.wake_at()), (None, Some(at(152))));
        assert_eq!(machine.on(Event::Tick, at(152), 0), [ask(seen.epoch)]);
        let granted = Event::Acquired(Ok(Acquired::Yes(lease(seen.epoch + 1))));
        assert_eq!(machine.on(granted, at(153), 0), [Action::Lead(lease(seen.epoch + 1))]);
    }
}

#[test]
fn a_renewal_that_is_under_way_is_waited_for_before_the_next_question() {
    let ends = [(Event::Tick, 2100), (Event::Saw(Token { epoch: 6, nonce: 0 }), 1500), (Event::Unfit, 1500)];
    for (end, now) in ends {
        let mut machine = leader();
        assert_eq!(machine.on(Event::Tick, at(1000), 0), [Action::Renew(lease(5))]);
        let actions = machine.on(end.clone(), at(now), 0);
        assert!(matches!(actions[0], Action::Yield(_)), "{end:?}: {actions:?}");
        assert_eq!((machine.wake_at(), machine.on(Event::Tick, at(9000), 0)), (None, vec![]), "{end:?}");
        // Its answer says nothing any more.
        assert_eq!(machine.on(Event::Renewed(Ok(true)), at(9000), 0), []);
        assert_eq!(machine.leads(at(9000)), None);
        assert!(matches!(machine.on(Event::Tick, at(9000), 0)[..], [Action::Acquire(_)]), "{end:?}");
    }
}

#[test]
fn who_has_ended_stays_so() {
    for event in [Event::Unfit, Event::Changed, Event::Saw(Token { epoch: 9, nonce: 9 }), Event::Tick] {
        let mut machine = leader();
        machine.on(Event::Stop, at(30), 0);
        assert_eq!(machine.on(event.clone(), at(40), 0), [], "{event:?}");
        assert_eq!((machine.wake_at(), machine.on(Event::Tick, at(99_999), 0)), (None, vec![]), "{event:?}");
    }
}
