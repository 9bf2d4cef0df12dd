//! YAML and JSON text as a tree of values that know their line. Objects are decoded from it one by one, so that a
//! wrong object names its own line and field and leaves the other objects of the file alone.

mod decode;
mod error;

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

use super::field::{Field, Step};

pub(crate) use decode::{Decoded, Extra, Known, check_names, decode};
pub(crate) use error::DecodeError;

/// Values of one file, aliases expanded, beyond which it is refused. A file of the largest permitted size with one
/// value for each eight bytes stays below it; an alias bomb does not.
const NODES_MAX: usize = 2 << 20;

/// Values that aliases may repeat in one file.
const ALIAS_EVENTS_MAX: usize = 100_000;

/// Nesting beyond which a file is refused; real objects stay below 30.
const DEPTH_MAX: usize = 64;

/// A value and the line (from 1) where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// The line.
    pub line: u32,
    /// The value.
    pub value: Value,
}

/// A YAML value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer; wide enough for both signs.
    Int(i128),
    /// Any other number.
    Float(f64),
    /// Text.
    String(Box<str>),
    /// A sequence.
    Seq(Vec<Node>),
    /// A mapping in written order; a key may occur twice, which [`Node::duplicate`] finds.
    Map(Vec<Entry>),
}

/// One entry of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// The key.
    pub key: Box<str>,
    /// The key's line.
    pub line: u32,
    /// The value.
    pub value: Node,
}

/// A file that is no YAML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct InvalidYaml {
    /// Where, counted from 1; 0 where it is not known.
    pub line: u32,
    /// What the parser says.
    pub reason: String,
}

/// Reads all documents of a text; empty ones are left out.
pub(crate) fn parse(text: &str) -> Result<Vec<Node>, InvalidYaml> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: NODES_MAX * 2,
            max_documents: NODES_MAX / 16,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: ALIAS_EVENTS_MAX },
        // Seen and reported on the object instead, with its path.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options::<Spanned<Value>>(text, options)
        .map(|documents| documents.into_iter().map(Node::from).collect())
        .map_err(|error| {
            let line = error.location().map_or(0, |location| line_of(location.line()));
            InvalidYaml { line, reason: error.without_snippet().to_string() }
        })
}

fn line_of(line: u64) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

impl Node {
    /// The value under a key of a mapping.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| &*entry.key == key).map(|entry| &entry.value),
            _ => None,
        }
    }

    /// The text, where the value is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The line of a field, or of the deepest value on the way to it that exists.
    pub fn line_at(&self, field: &Field) -> u32 {
        let mut node = self;
        let mut line = self.line;
        for step in field.steps() {
            match (&node.value, step) {
                (Value::Map(entries), Step::Key(key)) => {
                    let Some(entry) = entries.iter().find(|entry| *entry.key == **key) else { break };
                    line = entry.line;
                    node = &entry.value;
                }
                (Value::Seq(items), Step::Index(index)) => {
                    let Some(item) = items.get(*index) else { break };
                    line = item.line;
                    node = item;
                }
                _ => break,
            }
        }
        line
    }

    /// The first key that a mapping gives twice, with the second one's line.
    pub fn duplicate(&self) -> Option<(Field, u32)> {
        match &self.value {
            Value::Map(entries) => {
                let mut seen = HashSet::with_capacity(entries.len());
                entries.iter().find_map(|entry| {
                    if !seen.insert(&*entry.key) {
                        return Some((Field::root().key(&entry.key), entry.line));
                    }
                    let (mut field, line) = entry.value.duplicate()?;
                    field.prepend(Step::Key(entry.key.to_string()));
                    Some((field, line))
                })
            }
            Value::Seq(items) => items.iter().enumerate().find_map(|(index, item)| {
                let (mut field, line) = item.duplicate()?;
                field.prepend(Step::Index(index));
                Some((field, line))
            }),
            _ => None,
        }
    }

    /// Whether it holds nothing: null, or an empty collection.
    pub fn is_empty(&self) -> bool {
        match &self.value {
            Value::Null => true,
            Value::Seq(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
            _ => false,
        }
    }
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { line: line_of(spanned.referenced.line()), value: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Deserialize::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Value>>()? {
            items.push(item.into());
        }
        Ok(Value::Seq(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let line = line_of(key.referenced.line());
            let value = map.next_value::<Spanned<Value>>()?;
            entries.push(Entry { key: key.value.into(), line, value: value.into() });
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_knows_its_line() {
        let documents = parse("a: 1\nb:\n  - x\n  - c: {d: \"1\"}\n---\nsecond: true\n").expect("valid");
        assert_eq!(documents.len(), 2);
        let check = |field: Field, line| assert_eq!(documents[0].line_at(&field), line, "{field}");
        check(Field::root(), 1);
        check(Field::root().key("b"), 2);
        check(Field::root().key("b").index(0), 3);
        check(Field::root().key("b").index(1).key("c").key("d"), 4);
        check(Field::root().key("b").index(7), 2);
        assert_eq!(documents[1].line, 6);
    }

    #[test]
    fn json_and_empty_documents_are_read() {
        let check = |text, expected| assert_eq!(parse(text).expect("valid").len(), expected, "{text:?}");
        check("", 0);
        check("# only a comment\n", 0);
        check("---\n---\n", 0);
        check("{\"a\": [1, 2, {\"b\": null}]}", 1);
        check("a: 1\n---\n# nothing\n---\nb: 2\n", 2);
    }

    #[test]
    fn broken_text_names_its_line() {
        let check = |text: &str, line| {
            let error = parse(text).expect_err(text);
            assert_eq!(error.line, line, "{text:?}: {error}");
        };
        check("a: 1\nb: [1, 2\n", 2);
        check("a: 1\n  b: 2\n", 2);
        check("a: \"open\n", 2);
        check("a: 1\nb: }\n", 2);
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let levels = (1..10).map(|level| {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            format!("a{level}: &a{level} [{aliases}]")
        });
        let first = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]".to_owned();
        let text = std::iter::once(first).chain(levels).collect::<Vec<_>>().join("\n");
        assert!(parse(&text).is_err());
    }

    #[test]
    fn nesting_without_end_is_refused() {
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&format!("{}{}", "[".repeat(200), "]".repeat(200))).is_err());
    }

    #[test]
    fn a_key_given_twice_is_found() {
        let documents = parse("a:\n  - b: 1\n    c: 2\n    b: 3\n").expect("valid");
        let (field, line) = documents[0].duplicate().expect("a duplicate");
        assert_eq!((field.to_string().as_str(), line), ("a[0].b", 4));
    }
}
