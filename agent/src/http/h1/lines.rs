//! Field lines (RFC 9112 section 5), found in one pass over a head.
//!
//! Takes lines of one form only: a token, a colon, a value without control bytes, CR LF. [`super::head::explain_fields`]
//! says what is wrong with every other.

use super::fields::Span;
use super::head::{MAX_FIELDS, is_token};

/// What each byte may stand in, so that a name costs one look-up a byte.
const IN_TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    loop {
        table[byte as usize] = is_token(byte);
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};

/// What looking for field lines came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lines {
    /// The empty line ends here.
    End(usize),
    /// More bytes are needed.
    Incomplete,
    /// Some line has another form.
    Malformed,
    /// There are more than [`MAX_FIELDS`].
    TooMany,
}

/// One line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    /// The name.
    pub name: Span,
    /// The value without the blanks around it.
    pub value: Span,
    /// Whether it reads `name: value` with one space.
    pub plain: bool,
}

/// Finds the lines that begin at `at` and hands over each.
pub(super) fn find_lines(bytes: &[u8], mut at: usize, mut take: impl FnMut(Line)) -> Lines {
    let mut left = MAX_FIELDS;
    loop {
        let line = &bytes[at..];
        match line {
            [b'\r', b'\n', ..] => return Lines::End(at + 2),
            [] | [b'\r'] => return Lines::Incomplete,
            _ => {}
        }
        let Some(colon) = first(line, |word| is_byte(word, b':'), |byte| byte == b':') else {
            return if line.iter().all(|byte| in_token(*byte)) {
                Lines::Incomplete
            } else {
                Lines::Malformed
            };
        };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        // Without a way out of the loop, which names are too short to be worth.
        if colon == 0 || !name.iter().fold(true, |all, byte| all & in_token(*byte)) {
            return Lines::Malformed;
        }
        let len = text_len(value);
        match &value[len..] {
            [b'\r', b'\n', ..] => {}
            [] | [b'\r'] => return Lines::Incomplete,
            _ => return Lines::Malformed,
        }
        if left == 0 {
            return Lines::TooMany;
        }
        left -= 1;
        let start = at + colon + 1;
        let (before, end) = trim(&value[..len]);
        take(Line {
            name: Span::from(at..at + colon),
            value: Span::from(start + before..start + end),
            plain: before == 1 && end == len && value[0] == b' ',
        });
        at = start + len + 2;
    }
}

fn in_token(byte: u8) -> bool {
    IN_TOKEN[usize::from(byte)]
}

/// Where a value begins and ends without the blanks around it.
fn trim(value: &[u8]) -> (usize, usize) {
    let is_blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
    let mut start = 0;
    while value.get(start).is_some_and(is_blank) {
        start += 1;
    }
    let mut end = value.len();
    while end > start && is_blank(&value[end - 1]) {
        end -= 1;
    }
    (start, end)
}

/// How many bytes stand before the first control byte other than a tab.
fn text_len(bytes: &[u8]) -> usize {
    let mut len = 0;
    while let Some(found) = first(&bytes[len..], controls, is_control) {
        len += found;
        if bytes[len] != b'\t' {
            return len;
        }
        len += 1;
    }
    bytes.len()
}

fn is_control(byte: u8) -> bool {
    byte < b' ' || byte == 0x7f
}

/// The first byte that is `wanted`. `marks` looks at eight bytes at once, and sets the highest bit of the first that is
/// wanted and of none before it.
fn first(bytes: &[u8], marks: impl Fn(u64) -> u64, wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let mut words = bytes.chunks_exact(8);
    let mut at = 0;
    for word in words.by_ref() {
        let marked = marks(u64::from_le_bytes(word.try_into().expect("chunks of eight")));
        if marked != 0 {
            return Some(at + (marked.trailing_zeros() / 8) as usize);
        }
        at += 8;
    }
    words.remainder().iter().position(|byte| wanted(*byte)).map(|found| at + found)
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);

/// Marks bytes below `limit`, which is 128 at most. A borrow may mark what follows a marked byte.
fn below(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(ONES * u64::from(limit)) & !word & (ONES << 7)
}

fn is_byte(word: u64, byte: u8) -> u64 {
    below(word ^ (ONES * u64::from(byte)), 1)
}

/// Marks control bytes, tabs among them.
fn controls(word: u64) -> u64 {
    below(word, b' ') | is_byte(word, 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(input: &str) -> (Lines, Vec<(&str, &str)>) {
        let mut found = Vec::new();
        let at = |span: Span| std::str::from_utf8(span.of(input.as_bytes())).expect("text");
        let end = find_lines(input.as_bytes(), 0, |line| found.push((at(line.name), at(line.value))));
        (end, found)
    }

    #[test]
    fn plain_lines() {
        let check = |input: &str, lines: &[(&str, &str)]| {
            assert_eq!(find(input), (Lines::End(input.len()), lines.to_vec()), "{input:?}");
        };
        check("\r\n", &[]);
        check("a: b\r\n\r\n", &[("a", "b")]);
        check(
            "a:b\r\nA-_1:  long value, with more than eight  \t\r\n\r\n",
            &[("a", "b"), ("A-_1", "long value, with more than eight")],
        );
        check("a:\r\nb: \r\nc:\t\u{e4}\ty\r\n\r\n", &[("a", ""), ("b", ""), ("c", "\u{e4}\ty")]);
    }

    #[test]
    fn what_is_no_line() {
        let check = |input: &str, end| assert_eq!(find(input).0, end, "{input:?}");
        for input in ["", "\r", "a", "a:", "a: b", "a: b\r", "a: b\r\n", "a: b\r\n\r", "abcdefgh: 12345678"] {
            check(input, Lines::Incomplete);
        }
        for input in [
            ": b\r\n\r\n",
            " a: b\r\n\r\n",
            "a : b\r\n\r\n",
            "a\r\n\r\n",
            "a: b\n\r\n",
            "a: b\rc\r\n\r\n",
            "a: b\0\r\n\r\n",
            "a: 1234567890\x7f\r\n\r\n",
            "a: b\r\n c\r\n\r\n",
            "\u{e4}: b\r\n\r\n",
            "\n",
        ] {
            check(input, Lines::Malformed);
        }
        check(&format!("{}\r\n", "a: b\r\n".repeat(MAX_FIELDS)), Lines::End(602));
        check(&format!("{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1)), Lines::TooMany);
    }

    #[test]
    fn the_first_control_byte_is_found_wherever_it_is() {
        for byte in 0..=u8::MAX {
            for place in 0..20 {
                let mut bytes = *b"abc~\xff \xe4hijklmnopqrst";
                bytes[place] = byte;
                bytes[19] = b'\r';
                let expected = if is_control(byte) && byte != b'\t' { place } else { 19 };
                assert_eq!(text_len(&bytes), expected, "{byte:#x} at {place}");
            }
        }
    }
}
