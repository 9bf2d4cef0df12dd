//! What is wrong keeps its last good version; everything else goes on.

use super::{file, messages};
use crate::config::read::{FileProblem, InputFile};
use crate::config::{Severity, State, load};
use crate::model::MtlsMode;

fn service(name: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n---\n"
    )
}

/// `name:port` of all services.
fn services(state: &State) -> Vec<String> {
    let services = state.model.services.iter();
    services.map(|service| format!("{}:{}", service.name.name, service.ports[0].port)).collect()
}

fn states(state: &State) -> Vec<&'static str> {
    state.report.objects.iter().map(|object| object.state.as_str()).collect()
}

/// Loads `a.yaml` with two services and `b.yaml` with one, then what `a.yaml` became.
fn after(text: &str) -> State {
    let before = [
        file("a.yaml", &(service("one", "1") + &service("two", "2"))),
        file("b.yaml", &service("three", "3")),
    ];
    let state = load(&State::default(), before.to_vec());
    assert_eq!(services(&state), ["one:1", "three:3", "two:2"]);
    load(&state, vec![file("a.yaml", text), before[1].clone()])
}

#[test]
fn a_good_change_is_taken() {
    let state = after(&service("one", "10"));
    assert_eq!(services(&state), ["one:10", "three:3"]);
    assert_eq!(messages(&state.report, Severity::Info), [""; 0]);
}

/// `name:selector:rules` of all policies, the number of rules at the end.
fn policies(state: &State) -> Vec<String> {
    let policies = state.model.authorization.iter();
    policies.map(|one| format!("{}:{:?}:{}", one.name.name, one.selector, one.rules.len())).collect()
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
    )
}

#[test]
fn a_policy_that_was_never_read_closes_its_pods_from_the_start() {
    let good = "{selector: {matchLabels: {app: web}}, rules: [{}]}";
    let bad = "{selector: {matchLabels: {app: web}}, action: DENI, rules: [{}]}";
    for (spec, expected) in [
        (good, vec![r#"p:{"app": "web"}:1"#]),
        (bad, vec![r#"p:{"app": "web"}:0"#]),
        ("{selector: {matchLabels: [web]}, action: DENY}", vec!["p:{}:0"]),
        ("[]", vec!["p:{}:0"]),
        // What would not be enforced if it were valid.
        ("{action: AUDIT, rules: [{from: 1}]}", vec![]),
        ("{action: CUSTOM, rules: 1}", vec![]),
        ("{targetRefs: [{}], rules: 1}", vec![]),
    ] {
        let state = load(&State::default(), vec![file("a.yaml", &policy("p", spec))]);
        assert_eq!(policies(&state), expected, "{spec}");
        let errors = messages(&state.report, Severity::Error);
        let told = errors.iter().any(|error| error.contains("nobody gets into the pods that it selects"));
        assert_eq!(told, spec != good && !expected.is_empty(), "{spec}: {errors:?}");
    }
    let [b, c] = [service("b", "1"), service("c", "2")].map(|text| file("b.yaml", &text));
    let first = load(&State::default(), vec![file("a.yaml", &policy("p", bad)), b.clone()]);
    assert_eq!(states(&first), ["rejected", "applied"]);
    // It stands as long as nobody mends it, whatever else changes.
    let second = load(&first, vec![file("a.yaml", &policy("p", bad)), c.clone()]);
    assert_eq!(policies(&second), [r#"p:{"app": "web"}:0"#]);
    let mended = load(&second, vec![file("a.yaml", &policy("p", good)), c.clone()]);
    assert_eq!(policies(&mended), [r#"p:{"app": "web"}:1"#]);
    assert_eq!(policies(&load(&second, vec![c.clone()])), [""; 0], "it is gone with its file");
    // A last good version stays, and one that comes later as a wrong one was never in force.
    let broken = load(&mended, vec![file("a.yaml", &policy("p", bad)), c]);
    assert_eq!(policies(&broken), [r#"p:{"app": "web"}:1"#]);
    let late = load(&load(&State::default(), vec![b.clone()]), vec![file("a.yaml", &policy("p", bad)), b]);
    assert_eq!(policies(&late), [""; 0]);
}

#[test]
fn a_peer_authentication_that_was_never_read_is_strict_from_the_start() {
    let peer = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p}}\nspec: {spec}\n"
        )
    };
    for (spec, expected, told) in [
        ("{mtls: {mode: PERMISSIVE}}", Some((Some(MtlsMode::Permissive), 0)), false),
        ("{mtls: {mode: PERMISSIV}}", Some((Some(MtlsMode::Strict), 0)), true),
        ("{selector: {matchLabels: {app: web}}, mtls: 1}", Some((Some(MtlsMode::Strict), 1)), true),
        ("[]", Some((Some(MtlsMode::Strict), 0)), true),
    ] {
        let state = load(&State::default(), vec![file("a.yaml", &peer(spec))]);
        let found = state.model.peers.first().map(|peer| (peer.mode, peer.selector.len()));
        assert_eq!(found, expected, "{spec}");
        let errors = messages(&state.report, Severity::Error);
        assert_eq!(
            errors.iter().any(|error| error.contains("no plaintext gets into")),
            told,
            "{spec}: {errors:?}"
        );
    }
    let late = load(&State::default(), vec![file("b.yaml", &service("b", "1"))]);
    assert_eq!(load(&late, vec![file("a.yaml", &peer("[]"))]).model.peers.len(), 0, "it was never in force");
}

#[test]
fn a_broken_file_keeps_all_its_objects() {
    let state = after("apiVersion: v1\nkind: [Service\n");
    assert_eq!(services(&state), ["one:1", "three:3", "two:2"]);
    let errors = messages(&state.report, Severity::Error);
    assert!(errors.len() == 1 && errors[0].starts_with("2 : no valid YAML"), "{errors:?}");
    assert!(errors[0].contains("the last good version of its 2 objects stays"), "{errors:?}");
}

#[test]
fn a_wrong_object_keeps_its_own_last_version() {
    let state = after(&(service("one", "70000") + &service("two", "20")));
    assert_eq!(services(&state), ["one:1", "three:3", "two:20"]);
    assert_eq!(states(&state), ["rejected, last good kept", "applied", "applied"]);
    let repaired = load(&state, vec![file("a.yaml", &service("one", "11"))]);
    assert_eq!(services(&repaired), ["one:11"]);
    assert_eq!(states(&repaired), ["applied"]);
}

#[test]
fn a_last_good_version_survives_further_wrong_ones() {
    let first = after(&service("one", "x"));
    let second = load(&first, vec![file("a.yaml", &service("one", "y"))]);
    assert_eq!(services(&second), ["one:1"]);
}

#[test]
fn a_wrong_object_that_never_was_right_is_not_there() {
    let state = load(&State::default(), vec![file("a.yaml", &(service("one", "x") + &service("two", "2")))]);
    assert_eq!(services(&state), ["two:2"]);
    assert_eq!(states(&state), ["rejected", "applied"]);
}

#[test]
fn a_mistyped_kind_does_not_take_the_object_away() {
    let state = after(&(service("one", "1").replace("Service", "Servce") + &service("two", "2")));
    assert_eq!(services(&state), ["one:1", "three:3", "two:2"]);
    let warnings = messages(&state.report, Severity::Warning);
    assert!(warnings.iter().any(|text| text.contains("stays in force until every document")), "{warnings:?}");
}

#[test]
fn an_empty_file_is_one_being_written() {
    let state = after("");
    assert_eq!(services(&state), ["one:1", "three:3", "two:2"]);
    assert_eq!(services(&after("# nothing here\n")), ["three:3"]);
}

#[test]
fn a_file_that_is_gone_takes_its_objects_with_it() {
    let state = after(&service("one", "1"));
    assert_eq!(services(&load(&state, vec![file("b.yaml", &service("three", "3"))])), ["three:3"]);
    assert!(services(&load(&state, Vec::new())).is_empty());
}

#[test]
fn an_object_may_move_to_another_file() {
    let state = after(&service("two", "2"));
    let moved =
        load(&state, vec![file("b.yaml", &service("three", "3")), file("c.yaml", &service("two", "x"))]);
    assert_eq!(services(&moved), ["three:3", "two:2"]);
}

#[test]
fn a_file_that_cannot_be_read_keeps_its_objects() {
    for problem in [FileProblem::TooLarge, FileProblem::NotUtf8(3), FileProblem::Unreadable("no".to_owned())]
    {
        let state = load(&State::default(), vec![file("a.yaml", &service("one", "1"))]);
        let text = problem.to_string();
        let state = load(&state, vec![InputFile { path: "a.yaml".into(), text: Err(problem) }]);
        assert_eq!(services(&state), ["one:1"]);
        assert!(messages(&state.report, Severity::Error)[0].contains(&text));
    }
}

#[test]
fn the_same_files_are_told_from_others() {
    let files = vec![file("a.yaml", &service("one", "1"))];
    let state = load(&State::default(), files.clone());
    assert!(state.is_made_of(&files));
    assert!(!state.is_made_of(&[file("a.yaml", &service("one", "2"))]));
    assert!(!state.is_made_of(&[file("b.yaml", &service("one", "1"))]));
    assert!(!state.is_made_of(&[]));
}

#[test]
fn a_broken_copy_does_not_freeze_the_good_one() {
    let good = |port: &str| file("x.yaml", &service("one", port));
    let broken = file("a.yaml", &service("one", "x"));
    let state = load(&State::default(), vec![good("1")]);
    let state = load(&state, vec![broken.clone(), good("1")]);
    assert_eq!((services(&state), states(&state)), (vec!["one:1".to_owned()], vec!["rejected", "applied"]));
    let state = load(&state, vec![broken.clone(), good("2")]);
    assert_eq!((services(&state), states(&state)), (vec!["one:2".to_owned()], vec!["rejected", "applied"]));
    // The object seems to have moved: what was in force last stays, not what was when the copy came.
    let state = load(&state, vec![broken]);
    assert_eq!(services(&state), ["one:2"]);
    assert_eq!(states(&state), ["rejected, last good kept"]);
    assert!(services(&load(&state, Vec::new())).is_empty());
}

#[test]
fn a_good_and_a_broken_copy_in_one_file() {
    for text in [service("one", "10") + &service("one", "x"), service("one", "x") + &service("one", "10")] {
        let state = after(&text);
        assert_eq!(services(&state), ["one:10", "three:3"], "{text}");
        let mut states = states(&state);
        states.sort_unstable();
        assert_eq!(states, ["applied", "applied", "rejected"], "{text}");
    }
}

#[test]
fn a_valid_object_comes_before_one_that_is_kept() {
    let state = after("kind: [\n");
    let state = load(&state, vec![file("a.yaml", "kind: [\n"), file("c.yaml", &service("one", "11"))]);
    assert_eq!(services(&state), ["one:11", "two:2"]);
}

#[test]
fn files_that_tell_nothing_of_their_documents_are_named() {
    let unreadable = |problem| InputFile { path: "a.yaml".into(), text: Err(problem) };
    for (first, expected) in [
        (file("a.yaml", &service("one", "1")), &[][..]),
        (file("a.yaml", ""), &[]),
        (file("a.yaml", "kind: Nothing\n"), &[]),
        (file("a.yaml", &policy("p", "{action: DENI}")), &[]),
        (file("a.yaml", "kind: [\n"), &["a.yaml"]),
        (unreadable(FileProblem::TooLarge), &["a.yaml"]),
        (unreadable(FileProblem::NotUtf8(3)), &["a.yaml"]),
        (unreadable(FileProblem::Unreadable("Permission denied".into())), &["a.yaml"]),
    ] {
        let said = format!("{first:?}");
        let state = load(&State::default(), vec![first, file("b.yaml", &service("two", "2"))]);
        assert_eq!(state.unread(), expected, "{said}");
        let mended = load(&state, vec![file("a.yaml", &service("one", "1"))]);
        assert_eq!(mended.unread(), [""; 0], "{said}");
    }
}
