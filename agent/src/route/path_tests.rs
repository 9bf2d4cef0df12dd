//! Paths and what becomes of them, by policy.

use proptest::prelude::*;

use super::*;

const BASE: PathPolicy = PathPolicy::captured();
const GATEWAY: PathPolicy = PathPolicy::gateway();

fn with(normalisation: Normalisation, escaped_slashes: EscapedSlashes, strict: bool) -> PathPolicy {
    PathPolicy { normalisation, escaped_slashes, strict }
}

fn check(policy: PathPolicy, path: &str, expected: Result<&str, &str>) {
    let seen = normalise(path, policy);
    let seen = seen.as_ref().map(|path| &**path).map_err(|invalid| invalid.reason());
    assert_eq!(seen, expected, "{path:?} by {policy:?}");
}

#[test]
fn both_defaults_agree_on_what_is_plain() {
    let same = [
        "/",
        "/a",
        "/a/",
        "/a.b/c..d/...",
        "/.well-known/x",
        "/..a/.b",
        "/%20/%C3%A4",
        "/a;b=c,d@e:f",
        "/%252e%252e/a",
        "/\u{e4}",
        "/{a}|b",
    ];
    for policy in [BASE, GATEWAY] {
        for path in same {
            let seen = normalise(path, policy).expect(path);
            assert!(matches!(seen, Cow::Borrowed(_)), "{path} is copied");
            assert_eq!(seen, path);
        }
    }
}

#[test]
fn one_look_tells_what_is_plain() {
    for path in ["/", "/a", "/a/", "/a.b/c.", "/a..", "/\u{e4}"] {
        assert!(is_plain(path.as_bytes()), "{path}");
    }
    for path in ["/%", "/a%20", "/\\", "/a\\b", "//", "/a//", "/.", "/..", "/a/.b", "/a/./b"] {
        assert!(!is_plain(path.as_bytes()), "{path}");
    }
}

#[test]
fn spellings_of_one_path_become_one() {
    for policy in [BASE, GATEWAY] {
        let check = |path, expected| check(policy, path, Ok(expected));
        for path in [
            "/%61dmin",
            "/%61%64%6D%69%6e",
            "/a/../admin",
            "/a/%2e%2e/admin",
            "/a/%2E./admin",
            "/a/.%2e/admin",
            "/./admin",
            "/%2e/admin",
            "/.\\admin",
            "/a\\..\\admin",
            "/a\\%2e%2E\\admin",
            "/a/b/../../admin",
        ] {
            check(path, "/admin");
        }
        check("/admin/.", "/admin/");
        check("/admin/a/..", "/admin/");
        check("/admin/..", "/");
        check("/.", "/");
        check("/%2e", "/");
        check("/%c3%a4%2a", "/%C3%A4%2A");
        check("/%7euser/%2D%5f", "/~user/-_");
        check("/%5B%5d%25", "/%5B%5D%25");
        check("/a/../\u{e4}/%61", "/\u{e4}/a");
        check("/a//../b", "/a/b");
    }
}

#[test]
fn slashes() {
    check(BASE, "/a//b", Ok("/a//b"));
    check(BASE, "//a", Ok("//a"));
    check(BASE, "/a//", Ok("/a//"));
    check(BASE, "/a\\\\b", Ok("/a//b"));
    check(GATEWAY, "/a//b", Ok("/a/b"));
    check(GATEWAY, "//a", Ok("/a"));
    check(GATEWAY, "////", Ok("/"));
    check(GATEWAY, "/a//", Ok("/a/"));
    check(GATEWAY, "/a\\/b", Ok("/a/b"));
    check(GATEWAY, "//../a", Ok("/a"));
    check(BASE, "/a%2fb%5c", Ok("/a%2Fb%5C"));
    check(BASE, "/a%2F..%2fb", Ok("/a%2F..%2Fb"));
    check(GATEWAY, "/a%2fb", Err("path_escaped_slash"));
    check(GATEWAY, "/a%5Cb", Err("path_escaped_slash"));
    let decode = with(Normalisation::MergeSlashes, EscapedSlashes::Decode, true);
    check(decode, "/a%2fb", Ok("/a/b"));
    check(decode, "/a%5C%5cb", Ok("/a/b"));
    check(decode, "/a%2f%2e%2E%2Fb", Ok("/b"));
    check(decode, "/a/%2F..", Ok("/a/"));
    check(decode, "/%2f..%2f..", Err("path_above_root"));
    check(decode, "/a%252fb", Ok("/a%252fb"));
    let base = with(Normalisation::Base, EscapedSlashes::Decode, false);
    check(base, "/a%2f%2fb", Ok("/a//b"));
}

#[test]
fn what_no_honest_client_sends() {
    for (path, reason, lenient) in [
        ("/%", "path_escape", "/%"),
        ("/100%", "path_escape", "/100%"),
        ("/%zz", "path_escape", "/%zz"),
        ("/%4", "path_escape", "/%4"),
        ("/%4/%61", "path_escape", "/%4/a"),
        ("/%\u{e4}", "path_escape", "/%\u{e4}"),
        ("/%u002e", "path_escape", "/%u002e"),
        ("/..", "path_above_root", "/"),
        ("/../a", "path_above_root", "/a"),
        ("/a/../../b", "path_above_root", "/b"),
        ("/%2e%2e/a", "path_above_root", "/a"),
        ("/..\\a", "path_above_root", "/a"),
        ("/%0a", "path_control_byte", "/%0A"),
        ("/%0D%0aX", "path_control_byte", "/%0D%0AX"),
        ("/%7f", "path_control_byte", "/%7F"),
        ("/%1F", "path_control_byte", "/%1F"),
    ] {
        check(GATEWAY, path, Err(reason));
        check(BASE, path, Ok(lenient));
    }
    check(BASE, "/a%00.png", Err("path_null"));
    check(GATEWAY, "/a%00.png", Err("path_null"));
}

#[test]
fn decoding_makes_up_no_escapes() {
    check(BASE, "/%2%65%2e/a", Ok("/%2%65./a"));
    check(BASE, "/%%32%65", Ok("/%%32e"));
    check(BASE, "/%%32%65%2e", Ok("/%%32e."));
    check(BASE, "/%%61", Ok("/%%61"));
    check(BASE, "/%g%65", Ok("/%ge"));
    check(BASE, "/%%7a", Ok("/%z"));
    check(BASE, "/%2525", Ok("/%2525"));
}

#[test]
fn no_normalisation_means_none() {
    for escaped in [EscapedSlashes::Keep, EscapedSlashes::Reject, EscapedSlashes::Decode] {
        let none = with(Normalisation::None, escaped, true);
        for path in ["/a/../%2e%2e//b\\%2f", "/%00", "/%zz", "/.."] {
            check(none, path, Ok(path));
        }
    }
}

#[test]
fn rules_spell_escapes_as_paths_do() {
    for (rule, expected) in [
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/%61dmin", "/admin"),
        ("/a/../b", "/a/../b"),
        ("/a%2fb", "/a%2Fb"),
        ("/a%00", "/a%00"),
        ("/a", "/a"),
    ] {
        assert_eq!(canonical_escapes(rule), expected);
    }
}

fn policies() -> impl Strategy<Value = PathPolicy> {
    let normalisation =
        prop_oneof![Just(Normalisation::None), Just(Normalisation::Base), Just(Normalisation::MergeSlashes)];
    let escaped =
        prop_oneof![Just(EscapedSlashes::Keep), Just(EscapedSlashes::Reject), Just(EscapedSlashes::Decode)];
    (normalisation, escaped, any::<bool>()).prop_map(|(one, two, strict)| with(one, two, strict))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_normalised_path_is_one(
        rest in prop_oneof![
            "([/\\\\.%]|%2[eEfF]|%5[cC]|%25|%3[0-9]|%6[1-6]|[0-9a-fA-F]|\\.\\.|%00|\u{e4}){0,12}",
            "\\PC{0,12}",
        ],
        policy in policies(),
    ) {
        let path = format!("/{rest}");
        let Ok(once) = normalise(&path, policy) else { return Ok(()) };
        prop_assert!(once.starts_with('/'));
        let twice = normalise(&once, policy).map(Cow::into_owned);
        prop_assert_eq!(twice.as_deref(), Ok(&*once), "{} once more", path);
        if policy.normalisation == Normalisation::None {
            prop_assert_eq!(&*once, &*path);
            return Ok(());
        }
        prop_assert!(!once.contains('\\'), "{once}");
        prop_assert!(once.split('/').all(|element| element != "." && element != ".."), "{once}");
        prop_assert!(!policy.merges() || !once.contains("//"), "{once}");
        let lower = once.to_ascii_lowercase();
        prop_assert!(policy.escaped_slashes == EscapedSlashes::Keep || !lower.contains("%2f") && !lower.contains("%5c"), "{once}");
        // Whoever decodes escapes once more on its way finds no dots that were not there.
        prop_assert!(!lower.contains("%2e"), "{once}");
    }
}
