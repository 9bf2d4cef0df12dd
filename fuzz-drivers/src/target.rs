//! Targets compared by what they name: coarse on purpose, as the agent may pass on a path in a simpler spelling.

/// The authority of an absolute-form target, and the rest; the rest begins with `/`, `?`, or is `*`.
pub fn split(target: &[u8]) -> (Option<&[u8]>, &[u8]) {
    if target.starts_with(b"/") {
        return (None, target);
    }
    let Some(at) = target.windows(3).position(|window| window == b"://") else { return (None, target) };
    let rest = &target[at + 3..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    (Some(&rest[..end]), &rest[end..])
}

/// Whether two targets have one path, but for spelling, and the same query.
pub fn same(one: &[u8], other: &[u8]) -> bool {
    if one == other || one == b"*" || other == b"*" {
        return one == other;
    }
    let (one, other) = (parts(one), parts(other));
    one.1 == other.1 && simplest(one.0, false) == simplest(other.0, false)
}

fn parts(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match target.iter().position(|byte| *byte == b'?') {
        Some(mark) => (&target[..mark], Some(&target[mark + 1..])),
        None => (target, None),
    }
}

/// A path's elements, each byte told apart from its escape unless they mean the same, after `.` and `..` are resolved
/// (RFC 3986 section 5.2.4); empty elements count for `..` and are then left out. `slashes`: escaped ones separate too.
pub fn simplest(path: &[u8], slashes: bool) -> Vec<Vec<Letter>> {
    let separates = |letter: &Letter| match letter {
        Letter::Plain(byte) => matches!(byte, b'/' | b'\\'),
        Letter::Escaped(byte) => slashes && matches!(byte, b'/' | b'\\'),
    };
    let letters = letters(path);
    let mut elements: Vec<Vec<Letter>> = Vec::new();
    for element in letters.split(separates).skip(1) {
        match element {
            [Letter::Plain(b'.')] => {}
            [Letter::Plain(b'.'), Letter::Plain(b'.')] => drop(elements.pop()),
            element => elements.push(element.to_vec()),
        }
    }
    elements.retain(|element| !element.is_empty());
    elements
}

/// A byte of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Letter {
    /// As it is, or an escape of what needs none.
    Plain(u8),
    /// Escaped.
    Escaped(u8),
}

fn letters(path: &[u8]) -> Vec<Letter> {
    let digit = |at: usize| path.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut letters, mut at) = (Vec::new(), 0);
    while at < path.len() {
        let (letter, len) = match (path[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                let byte = u8::try_from(high * 16 + low).unwrap_or_default();
                let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
                (if plain { Letter::Plain(byte) } else { Letter::Escaped(byte) }, 3)
            }
            (byte, ..) => (Letter::Plain(byte), 1),
        };
        letters.push(letter);
        at += len;
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let check = |one: &str, other: &str, expected| {
            assert_eq!(same(one.as_bytes(), other.as_bytes()), expected, "{one} {other}");
        };
        check("/a/b", "/a/b", true);
        check("/a/%2e%2E/b", "/b", true);
        check("//a/.\\b/", "/a/b", true);
        check("", "/", true);
        check("/a?b=%2e", "/a?b=.", false);
        check("/a", "/b", false);
        check("/a%2fb/../c", "/c", true);
        check("/a//../c", "/a/c", true);
        check("/a%2f..", "/", false);
        check("/%%41", "/%A", true);
        check("/..", "/", true);
        assert_eq!(split(b"http://a:80?b"), (Some(&b"a:80"[..]), &b"?b"[..]));
        assert_eq!(split(b"/http://a"), (None, &b"/http://a"[..]));
    }
}
