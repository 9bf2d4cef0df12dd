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
    if one == other {
        return true;
    }
    let (one, other) = (parts(one), parts(other));
    one.1 == other.1 && simplest(one.0) == simplest(other.0)
}

fn parts(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match target.iter().position(|byte| *byte == b'?') {
        Some(mark) => (&target[..mark], Some(&target[mark + 1..])),
        None => (target, None),
    }
}

/// A path without escapes, dot segments, backslashes and empty segments.
fn simplest(path: &[u8]) -> Vec<Vec<u8>> {
    let mut segments: Vec<Vec<u8>> = Vec::new();
    let plain = unescape(path);
    for segment in plain.split(|byte| matches!(byte, b'/' | b'\\')) {
        match segment {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            segment => segments.push(segment.to_vec()),
        }
    }
    segments
}

fn unescape(path: &[u8]) -> Vec<u8> {
    let digit = |at: usize| path.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut plain, mut at) = (Vec::new(), 0);
    while at < path.len() {
        match (path[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                plain.push(u8::try_from(high * 16 + low).unwrap_or_default());
                at += 3;
            }
            (byte, ..) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    plain
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
        check("//a/./b/", "/a/b", true);
        check("", "/", true);
        check("/a?b=%2e", "/a?b=.", false);
        check("/a", "/b", false);
        check("/..", "/", true);
        assert_eq!(split(b"http://a:80?b"), (Some(&b"a:80"[..]), &b"?b"[..]));
        assert_eq!(split(b"/http://a"), (None, &b"/http://a"[..]));
    }
}
