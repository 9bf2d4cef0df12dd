//! Paths in the one form that rules are matched against and upstreams get, so that no spelling leads around a rule
//! (RFC 3986 section 6.2.2). Pure; a path that is in that form already costs one look at its bytes.

use std::borrow::Cow;

use memchr::memchr2_iter;

/// What is done to paths before they are matched and forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathPolicy {
    /// How far paths are normalised.
    pub normalisation: Normalisation,
    /// What is done with `%2F` and `%5C`, which some servers take for `/` and `\`.
    pub escaped_slashes: EscapedSlashes,
    /// Whether what no honest client sends is refused: a `%` that begins no escape, escaped control bytes, and `..` above
    /// the root. Else it passes, but that `..` ends at the root.
    pub strict: bool,
}

/// How far paths are normalised. The names are those of Istio's `meshConfig.pathNormalization`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalisation {
    /// Not at all: paths are matched and forwarded as they came, and nothing about them is refused.
    None,
    /// Escapes of letters, digits and `-._~` decoded, the digits of others in upper case, `\` taken for `/`, then `.` and
    /// `..` resolved. `%00` is refused.
    Base,
    /// The same, then each run of `/` made one.
    MergeSlashes,
}

/// What is done with `%2F` and `%5C`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// They stay, and are part of a path's element.
    Keep,
    /// The request is refused.
    Reject,
    /// They become `/` before anything else is done.
    Decode,
}

/// Why a path is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidPath {
    /// A `%` without two hexadecimal digits.
    Escape,
    /// `%00`, where programs written in C stop reading.
    Null,
    /// Another escaped control byte.
    ControlByte,
    /// `%2F` or `%5C`.
    EscapedSlash,
    /// More `..` than there are elements before them.
    AboveRoot,
}

impl InvalidPath {
    /// The reason code that logs and metrics carry.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Escape => "path_escape",
            Self::Null => "path_null",
            Self::ControlByte => "path_control_byte",
            Self::EscapedSlash => "path_escaped_slash",
            Self::AboveRoot => "path_above_root",
        }
    }
}

impl PathPolicy {
    /// For captured connections: `base`, escaped slashes kept, nothing odd refused, so that applications get what their
    /// clients mean.
    pub const fn captured() -> Self {
        Self { normalisation: Normalisation::Base, escaped_slashes: EscapedSlashes::Keep, strict: false }
    }

    /// For Gateway listeners: `merge_slashes`, escaped slashes rejected, strict.
    pub const fn gateway() -> Self {
        Self {
            normalisation: Normalisation::MergeSlashes,
            escaped_slashes: EscapedSlashes::Reject,
            strict: true,
        }
    }

    fn merges(self) -> bool {
        self.normalisation == Normalisation::MergeSlashes
    }
}

/// A path in the form that `policy` asks for. `path` begins with `/`; so does the result, and normalising it once more
/// changes nothing.
pub fn normalise(path: &str, policy: PathPolicy) -> Result<Cow<'_, str>, InvalidPath> {
    if policy.normalisation == Normalisation::None || is_plain(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode(path, policy)?;
    let resolved = resolve(decoded, policy.strict)?;
    Ok(if policy.merges() { merge(resolved) } else { resolved })
}

/// A rule's path or the beginning of one with its escapes spelled as those of normalised paths are.
pub fn canonical_escapes(path: &str) -> Cow<'_, str> {
    decode(path, PathPolicy::captured()).unwrap_or(Cow::Borrowed(path))
}

/// Whether a path holds nothing that could have to be changed. Looks at all bytes without branching, which the compiler
/// makes into vector instructions: most paths are plain.
#[expect(
    clippy::needless_bitwise_bool,
    reason = "a lazy operator is a branch, which takes four times as long"
)]
fn is_plain(path: &[u8]) -> bool {
    let suspect = |byte: u8, next: u8| {
        (byte == b'%') | (byte == b'\\') | ((byte == b'/') & ((next == b'.') | (next == b'/')))
    };
    let pairs = path.iter().zip(path.iter().skip(1));
    let found = pairs.fold(false, |found, (byte, next)| found | suspect(*byte, *next));
    !found && !path.last().is_some_and(|last| suspect(*last, 0))
}

/// What stands in for a `%` or `\` and how many bytes it takes the place of.
enum Change {
    Nothing,
    Byte(u8, usize),
    Escape([u8; 2]),
}

/// Decodes what needs no escape, spells other escapes alike, and turns `\`.
fn decode(path: &str, policy: PathPolicy) -> Result<Cow<'_, str>, InvalidPath> {
    let bytes = path.as_bytes();
    let mut out = String::new();
    // Up to where the path has been looked at, up to where it has been copied, and where the last lone `%` stands.
    let (mut seen, mut copied, mut lone) = (0, 0, None);
    for at in memchr2_iter(b'%', b'\\', bytes) {
        if at < seen {
            continue;
        }
        let change = if bytes[at] == b'\\' {
            Change::Byte(b'/', 1)
        } else if let Some(escaped) = escaped_byte(bytes, at) {
            seen = at + 3;
            // Decoded, a digit behind a lone `%` would make up an escape that was not there.
            let completes =
                escaped.is_ascii_hexdigit() && lone.is_some_and(|lone| is_behind(bytes, lone, at));
            if completes { Change::Nothing } else { escape_change(escaped, bytes, at, policy)? }
        } else if policy.strict {
            return Err(InvalidPath::Escape);
        } else {
            lone = Some(at);
            Change::Nothing
        };
        let (new, taken) = match change {
            Change::Nothing => continue,
            Change::Byte(byte, taken) => (&[byte][..], taken),
            Change::Escape(digits) => (&[b'%', digits[0], digits[1]][..], 3),
        };
        out.push_str(&path[copied..at]);
        out.extend(new.iter().copied().map(char::from));
        copied = at + taken;
    }
    if copied == 0 {
        return Ok(Cow::Borrowed(path));
    }
    out.push_str(&path[copied..]);
    Ok(Cow::Owned(out))
}

/// The byte that the escape at `at` stands for.
fn escaped_byte(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(bytes.get(at + 1)?)? << 4 | digit(bytes.get(at + 2)?)?)
}

/// Whether what stands at `at` would be read as a digit of the lone `%`.
fn is_behind(bytes: &[u8], lone: usize, at: usize) -> bool {
    at == lone + 1 || (at == lone + 2 && bytes[lone + 1].is_ascii_hexdigit())
}

fn escape_change(escaped: u8, bytes: &[u8], at: usize, policy: PathPolicy) -> Result<Change, InvalidPath> {
    match (escaped, policy.escaped_slashes) {
        (0, _) => return Err(InvalidPath::Null),
        (0x01..=0x1f | 0x7f, _) if policy.strict => return Err(InvalidPath::ControlByte),
        (b'/' | b'\\', EscapedSlashes::Reject) => return Err(InvalidPath::EscapedSlash),
        (b'/' | b'\\', EscapedSlashes::Decode) => return Ok(Change::Byte(b'/', 3)),
        _ => {}
    }
    if escaped.is_ascii_alphanumeric() || b"-._~".contains(&escaped) {
        return Ok(Change::Byte(escaped, 3));
    }
    let digits = [bytes[at + 1], bytes[at + 2]];
    let upper = digits.map(|digit| digit.to_ascii_uppercase());
    Ok(if digits == upper { Change::Nothing } else { Change::Escape(upper) })
}

/// Takes `.` and `..` away (RFC 3986 section 5.2.4).
fn resolve(path: Cow<'_, str>, strict: bool) -> Result<Cow<'_, str>, InvalidPath> {
    if !has_dots(&path) {
        return Ok(path);
    }
    let mut out = String::with_capacity(path.len());
    let mut ends_in_dots = false;
    for element in path.split('/').skip(1) {
        ends_in_dots = matches!(element, "." | "..");
        match (element, out.rfind('/')) {
            ("..", Some(parent)) => out.truncate(parent),
            ("..", None) if strict => return Err(InvalidPath::AboveRoot),
            ("." | "..", _) => {}
            _ => {
                out.push('/');
                out.push_str(element);
            }
        }
    }
    if ends_in_dots {
        out.push('/');
    }
    Ok(Cow::Owned(out))
}

/// Whether a path has elements that [`normalise`] would resolve.
pub(super) fn has_dots(path: &str) -> bool {
    path.split('/').any(|element| matches!(element, "." | ".."))
}

/// Makes each run of `/` one.
fn merge(path: Cow<'_, str>) -> Cow<'_, str> {
    if !path.contains("//") {
        return path;
    }
    let mut out = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !out.ends_with('/') {
            out.push(character);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
