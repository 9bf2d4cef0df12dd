//! The header changes of a route and of its backend, applied while a head is written, and what a limit tells beside them.

use crate::http::FieldSink;
use crate::model::{HeaderChange, HeaderOp};
use crate::proxy::limits::Left;

/// What is changed about a head.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::proxy) struct Changes<'a> {
    /// The route's changes, then the backend's.
    pub ops: [&'a [HeaderOp]; 2],
    /// What is left of a limit, where the client is told.
    pub left: Option<Left<'a>>,
}

impl<'a> Changes<'a> {
    fn iter(&self) -> impl Iterator<Item = &'a HeaderOp> + Clone {
        self.ops.into_iter().flatten()
    }

    /// Most routes change nothing.
    fn is_empty(&self) -> bool {
        self.ops.iter().all(|ops| ops.is_empty())
    }

    /// Whether received (and own) values of a field go.
    pub fn replaces(&self, name: &[u8]) -> bool {
        !self.is_empty() && self.iter().any(|op| replaces(op, name))
    }

    /// The authority that is set by way of the `host` field.
    pub fn into_authority(self) -> Option<&'a str> {
        self.iter().filter(|op| is_authority(op)).fold(None, |last, op| match &op.change {
            HeaderChange::Set(value) => Some(&**value),
            HeaderChange::Add(_) | HeaderChange::Remove => last,
        })
    }

    /// Writes the fields that are set or added and not taken away by a later change.
    pub fn write(&self, out: &mut impl FieldSink) {
        if let Some(left) = &self.left {
            left.write_fields(out);
        }
        if self.is_empty() {
            return;
        }
        let mut rest = self.iter();
        while let Some(op) = rest.next() {
            let value = match &op.change {
                HeaderChange::Set(value) | HeaderChange::Add(value) => value,
                HeaderChange::Remove => continue,
            };
            let overruled = rest.clone().any(|later| replaces(later, op.name.as_bytes()));
            if !overruled && !is_authority(op) {
                out.field(op.name.as_bytes(), value.as_bytes());
            }
        }
    }
}

fn replaces(op: &HeaderOp, name: &[u8]) -> bool {
    !matches!(op.change, HeaderChange::Add(_)) && op.name.as_bytes().eq_ignore_ascii_case(name)
}

fn is_authority(op: &HeaderOp) -> bool {
    &*op.name == "host" || &*op.name == ":authority"
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    fn op(text: &str) -> HeaderOp {
        let (name, change) = match (text.split_once('='), text.split_once('+')) {
            (Some((name, value)), _) => (name, HeaderChange::Set(value.into())),
            (None, Some((name, value))) => (name, HeaderChange::Add(value.into())),
            (None, None) => (text, HeaderChange::Remove),
        };
        HeaderOp { name: name.into(), change }
    }

    #[test]
    fn later_changes_overrule_earlier_ones() {
        let check = |route: &[&str], backend: &[&str], written: &str, replaced: &[&str]| {
            let route: Vec<_> = route.iter().map(|text| op(text)).collect();
            let backend: Vec<_> = backend.iter().map(|text| op(text)).collect();
            let changes = Changes { ops: [&route, &backend], left: None };
            let mut out = BytesMut::new();
            changes.write(&mut out);
            assert_eq!(String::from_utf8_lossy(&out), written, "{route:?} {backend:?}");
            for name in ["a", "b"] {
                assert_eq!(
                    changes.replaces(name.as_bytes()),
                    replaced.contains(&name),
                    "{name} by {changes:?}"
                );
            }
        };
        check(&[], &[], "", &[]);
        check(&["a=1"], &[], "a: 1\r\n", &["a"]);
        check(&["a+1", "a+2"], &[], "a: 1\r\na: 2\r\n", &[]);
        check(&["a=1", "a+2"], &["b"], "a: 1\r\na: 2\r\n", &["a", "b"]);
        check(&["a+1"], &["a=2"], "a: 2\r\n", &["a"]);
        check(&["a=1"], &["a"], "", &["a"]);
        check(&["a"], &["a+1"], "a: 1\r\n", &["a"]);
        check(&["host=x", "b+1"], &[], "b: 1\r\n", &["b"][..0]);
    }

    #[test]
    fn the_last_authority_counts() {
        let ops = [op("host=a"), op("x=y"), op("host=b"), op("host+c")];
        assert_eq!(Changes { ops: [&ops, &[]], left: None }.into_authority(), Some("b"));
        assert_eq!(Changes::default().into_authority(), None);
    }
}
