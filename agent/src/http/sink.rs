//! Where fields are written to: HTTP/1 text or the map of an HTTP/2 head. What is written is decided once for both.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::h1::Field;

/// Takes fields that have been checked.
pub trait FieldSink {
    /// Takes one field.
    fn field(&mut self, name: &[u8], value: &[u8]);

    /// Takes a field of a head that was received.
    fn received(&mut self, field: &Field<'_>) {
        self.field(field.name, field.value);
    }

    /// Takes one field whose value is these parts one after the other.
    fn joined<'a>(&mut self, name: &[u8], parts: impl Iterator<Item = &'a [u8]>);
}

impl FieldSink for BytesMut {
    fn field(&mut self, name: &[u8], value: &[u8]) {
        self.reserve(name.len() + value.len() + 4);
        self.extend_from_slice(name);
        self.extend_from_slice(b": ");
        self.extend_from_slice(value);
        self.extend_from_slice(b"\r\n");
    }

    /// As the line that it came in, where that is one copy.
    fn received(&mut self, field: &Field<'_>) {
        match field.line {
            Some(line) => self.extend_from_slice(line),
            None => self.field(field.name, field.value),
        }
    }

    fn joined<'a>(&mut self, name: &[u8], parts: impl Iterator<Item = &'a [u8]>) {
        self.extend_from_slice(name);
        self.extend_from_slice(b": ");
        for part in parts {
            self.extend_from_slice(part);
        }
        self.extend_from_slice(b"\r\n");
    }
}

/// Names become lower case, as HTTP/2 wants them. Both codecs check fields more strictly than the map does, so that it
/// takes them all.
impl FieldSink for HeaderMap {
    fn field(&mut self, name: &[u8], value: &[u8]) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            // Fails for more fields than a head may have.
            let _ = self.try_append(name, value);
        }
    }

    fn joined<'a>(&mut self, name: &[u8], parts: impl Iterator<Item = &'a [u8]>) {
        let value: Vec<u8> = parts.flatten().copied().collect();
        self.field(name, &value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_map_get_the_same_fields() {
        let (mut text, mut map) = (BytesMut::new(), HeaderMap::new());
        for (name, value) in [("X-A", "1"), ("x-a", "2"), ("Cookie", "a=b; c=d")] {
            text.field(name.as_bytes(), value.as_bytes());
            map.field(name.as_bytes(), value.as_bytes());
        }
        text.joined(b"via", [&b"1.1 "[..], b"sluice"].into_iter());
        map.joined(b"via", [&b"1.1 "[..], b"sluice"].into_iter());
        assert_eq!(text, "X-A: 1\r\nx-a: 2\r\nCookie: a=b; c=d\r\nvia: 1.1 sluice\r\n");
        let values: Vec<_> = map.get_all("x-a").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(values, [b"1", b"2"]);
        assert_eq!((map["cookie"].as_bytes(), map["via"].as_bytes()), (&b"a=b; c=d"[..], &b"1.1 sluice"[..]));
    }
}
