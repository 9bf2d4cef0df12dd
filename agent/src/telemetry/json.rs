//! One JSON object on one line, written into a buffer that is used again.

use std::fmt;
use std::io::Write;

/// An object under construction. Field names are the caller's own and need no escaping.
pub(super) struct JsonLine<'a> {
    buffer: &'a mut Vec<u8>,
}

impl<'a> JsonLine<'a> {
    /// Clears the buffer and opens the object.
    pub(super) fn new(buffer: &'a mut Vec<u8>) -> Self {
        buffer.clear();
        buffer.push(b'{');
        Self { buffer }
    }

    /// A text.
    pub(super) fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.name(name);
        self.buffer.push(b'"');
        escape(self.buffer, value);
        self.buffer.push(b'"');
        self
    }

    /// A text, or `null`.
    pub(super) fn optional(&mut self, name: &str, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(name, value),
            None => self.raw(name, "null"),
        }
    }

    /// A text made by formatting.
    pub(super) fn display(&mut self, name: &str, value: impl fmt::Display) -> &mut Self {
        self.name(name);
        self.buffer.push(b'"');
        // Writing into a Vec cannot fail.
        let _ = write!(Escaper(self.buffer), "{value}");
        self.buffer.push(b'"');
        self
    }

    /// A number or another value that is JSON as it stands.
    pub(super) fn raw(&mut self, name: &str, value: impl fmt::Display) -> &mut Self {
        self.name(name);
        let _ = write!(self.buffer, "{value}");
        self
    }

    /// Closes the object and the line.
    pub(super) fn finish(&mut self) {
        self.buffer.extend_from_slice(b"}\n");
    }

    fn name(&mut self, name: &str) {
        if self.buffer.len() > 1 {
            self.buffer.push(b',');
        }
        self.buffer.push(b'"');
        self.buffer.extend_from_slice(name.as_bytes());
        self.buffer.extend_from_slice(b"\":");
    }
}

/// Escapes what is formatted into it.
struct Escaper<'a>(&'a mut Vec<u8>);

impl Escaper<'_> {
    fn write_fmt(&mut self, arguments: fmt::Arguments<'_>) -> fmt::Result {
        fmt::Write::write_fmt(self, arguments)
    }
}

impl fmt::Write for Escaper<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape(self.0, text);
        Ok(())
    }
}

/// RFC 8259, section 7: quotes, backslashes and control characters. The rest of UTF-8 stands for itself.
fn escape(buffer: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => buffer.extend_from_slice(&[b'\\', byte]),
            b'\n' => buffer.extend_from_slice(b"\\n"),
            b'\r' => buffer.extend_from_slice(b"\\r"),
            b'\t' => buffer.extend_from_slice(b"\\t"),
            // DEL is allowed in JSON, but terminals act on it.
            0..=0x1f | 0x7f => {
                buffer.extend_from_slice(b"\\u00");
                buffer.push(HEX[usize::from(byte >> 4)]);
                buffer.push(HEX[usize::from(byte & 15)]);
            }
            _ => buffer.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(text: &str) -> Vec<u8> {
        let mut buffer = b"left over".to_vec();
        JsonLine::new(&mut buffer).text("text", text).display("shown", text).optional("none", None).finish();
        buffer
    }

    fn check(text: &str) {
        let line = line(text);
        assert_eq!(line.split(|byte| *byte == b'\n').count() - 1, 1);
        let value: serde_json::Value = serde_json::from_slice(&line).expect("is JSON");
        assert_eq!(value, serde_json::json!({"text": text, "shown": text, "none": null}));
    }

    #[test]
    fn hostile_texts() {
        for text in
            ["", "\"", "\\", "\\\"", "a\nb\r\t\0\u{1b}[31m\u{7f}", "</script>", "\u{2028}é🦀", "{}[],:"]
        {
            check(text);
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in any::<String>()) {
            check(&text);
        }
    }
}
