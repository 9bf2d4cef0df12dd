//! Query parameters, compared after percent-decoding. A `+` stays a `+`: it means a space in HTML forms alone, and
//! Envoy leaves it too.

use std::borrow::Cow;

/// The first value of a parameter, still encoded; empty for a name without `=`.
pub(super) fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| decoded_eq(key, name))
        .map(|(_, value)| value)
}

/// The first value of a parameter, decoded.
pub fn query_parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, [u8]>> {
    parameter(query, name).map(decode)
}

/// Decoded bytes; allocates only where something is encoded.
pub(super) fn decode(encoded: &str) -> Cow<'_, [u8]> {
    if encoded.contains('%') {
        Cow::Owned(decoded(encoded).collect())
    } else {
        Cow::Borrowed(encoded.as_bytes())
    }
}

/// Whether the decoded text is this one.
pub(super) fn decoded_eq(encoded: &str, plain: &str) -> bool {
    decoded(encoded).eq(plain.bytes())
}

/// Whether the decoded text begins with this one.
pub(super) fn decoded_starts_with(encoded: &str, prefix: &str) -> bool {
    let mut bytes = decoded(encoded);
    prefix.bytes().all(|expected| bytes.next() == Some(expected))
}

/// A `%` that is not followed by two hexadecimal digits stands for itself.
fn decoded(encoded: &str) -> impl Iterator<Item = u8> {
    let mut rest = encoded.as_bytes();
    std::iter::from_fn(move || {
        if let [b'%', high, low, tail @ ..] = rest
            && let (Some(high), Some(low)) = (hex_digit(*high), hex_digit(*low))
        {
            rest = tail;
            return Some(high << 4 | low);
        }
        let (first, tail) = rest.split_first()?;
        rest = tail;
        Some(*first)
    })
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, name: &str, expected: Option<&str>) {
        let value = parameter(query, name).map(|value| String::from_utf8_lossy(&decode(value)).into_owned());
        assert_eq!(value.as_deref(), expected, "{name} in {query}");
    }

    #[test]
    fn parameters() {
        check("a=1&b=2", "b", Some("2"));
        check("a=1&a=2", "a", Some("1"));
        check("a", "a", Some(""));
        check("a=", "a", Some(""));
        check("a=b=c", "a", Some("b=c"));
        check("%61=%31%2f", "a", Some("1/"));
        check("a=x+y", "a", Some("x+y"));
        check("a=100%", "a", Some("100%"));
        check("a=%zz%4", "a", Some("%zz%4"));
        check("a=%FF", "a", Some("\u{fffd}"));
    }

    #[test]
    fn absent_parameters() {
        check("", "a", None);
        check("A=1", "a", None);
        check("ab=1", "a", None);
        check("&&", "a", None);
    }

    #[test]
    fn prefixes() {
        for (encoded, prefix, expected) in [
            ("%61bc", "ab", true),
            ("abc", "", true),
            ("a", "ab", false),
            ("", "a", false),
            ("%2", "%2", true),
        ] {
            assert_eq!(decoded_starts_with(encoded, prefix), expected, "{encoded} {prefix}");
        }
    }
}
