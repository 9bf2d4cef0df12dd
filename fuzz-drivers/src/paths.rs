//! Path normalisation against a model of it, and what must hold of a path in its one form.

use agent::route::{EscapedSlashes, InvalidPath, Normalisation, PathPolicy, normalise};

use crate::target::simplest;

/// The first byte is the policy, the rest a path without its first `/`.
pub fn path_normalisation(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else { return };
    let path = format!("/{}", String::from_utf8_lossy(rest));
    // The parsers let neither into a path.
    if path.contains(['?', '#']) {
        return;
    }
    let policy = policy(*choice);
    match normalise(&path, policy) {
        Ok(one_form) => check(&path, &one_form, policy),
        Err(invalid) => check_refusal(&path, invalid, policy),
    }
}

fn policy(choice: u8) -> PathPolicy {
    let normalisation = match choice % 3 {
        0 => Normalisation::None,
        1 => Normalisation::Base,
        _ => Normalisation::MergeSlashes,
    };
    let escaped_slashes = match choice / 3 % 3 {
        0 => EscapedSlashes::Keep,
        1 => EscapedSlashes::Reject,
        _ => EscapedSlashes::Decode,
    };
    PathPolicy { normalisation, escaped_slashes, strict: choice / 9 % 2 == 1 }
}

fn check(path: &str, one_form: &str, policy: PathPolicy) {
    if policy.normalisation == Normalisation::None {
        return assert_eq!(path, one_form);
    }
    let decodes = policy.escaped_slashes == EscapedSlashes::Decode;
    assert!(one_form.starts_with('/'), "{path:?} {one_form:?}");
    assert_eq!(normalise(one_form, policy).as_deref(), Ok(one_form), "{path:?} is normalised in one go");
    assert_eq!(
        simplest(path.as_bytes(), decodes),
        simplest(one_form.as_bytes(), decodes),
        "{path:?} becomes {one_form:?}, which is another path"
    );
    let upper = one_form.to_ascii_uppercase();
    let mut gone = vec!["%2E", "%00", "%41", "%7E"];
    // A digit may stay escaped behind a lone `%`, which only lenient policies let pass.
    if !policy.strict && one_form.contains('%') {
        gone.pop();
        gone.pop();
    }
    if policy.escaped_slashes != EscapedSlashes::Keep {
        gone.extend(["%2F", "%5C"]);
    }
    if policy.normalisation == Normalisation::MergeSlashes {
        gone.push("//");
    }
    for what in gone {
        assert!(!upper.contains(what), "{path:?} becomes {one_form:?}, with {what}");
    }
    let dots = one_form.split('/').any(|element| element == "." || element == "..");
    assert!(!dots && !one_form.contains('\\'), "{path:?} becomes {one_form:?}");
    if policy.strict {
        assert!(!has_lone_percent(path) && !has_lone_percent(one_form), "{path:?}");
    }
}

fn check_refusal(path: &str, invalid: InvalidPath, policy: PathPolicy) {
    assert!(policy.normalisation != Normalisation::None, "{path:?}");
    let lower = path.to_ascii_lowercase();
    let justified = match invalid {
        InvalidPath::Escape => policy.strict && has_lone_percent(path),
        InvalidPath::Null => lower.contains("%00"),
        InvalidPath::ControlByte => {
            policy.strict && (lower.contains("%0") || lower.contains("%1") || lower.contains("%7f"))
        }
        InvalidPath::EscapedSlash => {
            policy.escaped_slashes == EscapedSlashes::Reject
                && (lower.contains("%2f") || lower.contains("%5c"))
        }
        InvalidPath::AboveRoot => policy.strict && (lower.contains("..") || lower.contains("%2e")),
    };
    assert!(justified, "{path:?} is refused as {invalid:?}");
}

fn has_lone_percent(path: &str) -> bool {
    let mut parts = path.split('%');
    parts.next();
    parts.any(|part| part.len() < 2 || !part.bytes().take(2).all(|byte| byte.is_ascii_hexdigit()))
}
