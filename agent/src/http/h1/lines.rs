//! Field lines (RFC 9112 section 5), found in one pass over a head.
//!
//! Takes lines of one form only: a token, a colon, a value without control bytes, CR LF. [`super::head::explain_fields`]
//! says what is wrong with every other.

use super::fields::Span;
use super::head::{MAX_FIELDS, is_token};

/// What each byte may stand in, so that a name costs one look-up a byte.
const IN_TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_token(byte as u8);
        byte += 1;
    }
    table
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
        match &bytes[at..] {
            [b'\r', b'\n', ..] => return Lines::End(at + 2),
            [] | [b'\r'] => return Lines::Incomplete,
            _ => {}
        }
        let Some(name_len) = bytes[at..].iter().position(|byte| !IN_TOKEN[usize::from(*byte)]) else {
            return Lines::Incomplete;
        };
        let colon = at + name_len;
        if name_len == 0 || bytes[colon] != b':' {
            return Lines::Malformed;
        }
        let blanks = bytes[colon + 1..].iter().take_while(|byte| is_blank(**byte)).count();
        let start = colon + 1 + blanks;
        let line_end = start + text_len(&bytes[start..]);
        match &bytes[line_end..] {
            [b'\r', b'\n', ..] => {}
            [] | [b'\r'] => return Lines::Incomplete,
            _ => return Lines::Malformed,
        }
        if left == 0 {
            return Lines::TooMany;
        }
        left -= 1;
        let trailing = bytes[start..line_end].iter().rev().take_while(|byte| is_blank(**byte)).count();
        let plain = blanks == 1 && trailing == 0 && bytes[colon + 1] == b' ';
        take(Line { name: Span::from(at..colon), value: Span::from(start..line_end - trailing), plain });
        at = line_end + 2;
    }
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// How many bytes stand before the first control byte other than a tab.
fn text_len(bytes: &[u8]) -> usize {
    let mut len = 0;
    for chunk in bytes.chunks_exact(8) {
        let word = u64::from_le_bytes(chunk.try_into().expect("chunks of eight"));
        if has_control(word) {
            break;
        }
        len += 8;
    }
    len + bytes[len..].iter().take_while(|byte| **byte >= b' ' && **byte != 0x7f || **byte == b'\t').count()
}

/// Whether one of eight bytes is below the space or DEL; tabs count, as the byte by byte look that follows is right.
fn has_control(word: u64) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGHS;
    below(word, 0x20) | below(word ^ (ONES * 0x7f), 1) != 0
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
    fn control_bytes_are_seen_wherever_they_are() {
        for byte in 0..=u8::MAX {
            for place in 0..8 {
                let mut word = *b"abcdefgh";
                word[place] = byte;
                let control = byte < 0x20 || byte == 0x7f;
                // A borrow from a control byte below may report a neighbour too, never hide one.
                assert_eq!(has_control(u64::from_le_bytes(word)), control, "{byte:#x} at {place}");
            }
        }
    }
}
