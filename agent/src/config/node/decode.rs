//! Nodes into typed structs: a serde deserializer whose errors carry the field's path and line.
//!
//! Two habits of the Kubernetes API live here, because every kind has them. A field that is null is a field that is
//! absent. And a struct may declare, in a table beside it, fields of the real API that traffic does not depend on
//! ([`Known::Ignored`]) or that are not enforced yet ([`Known::Later`]); any other field is unknown, which is an error
//! unless the struct is [`Known::Open`].

use std::cell::RefCell;

use serde::de::value::StrDeserializer;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::error::DecodeError;
use super::{Entry, Node, Value};
use crate::config::field::{Field, Step};

/// Fields that a struct accepts beside its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extra {
    /// The struct's name.
    pub of: &'static str,
    /// The fields.
    pub fields: &'static [Known],
}

/// A field that is accepted but not decoded.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Known {
    /// Fields that say nothing about traffic.
    Ignored(&'static [&'static str]),
    /// A field that is not enforced yet, with the names of the fields within it; none: anything.
    Later(&'static str, &'static [&'static str]),
    /// Every other field: passed over and listed. For objects that the control plane writes, whose next version may have
    /// fields that say nothing about traffic.
    Open,
}

/// A decoded value with the fields that it holds but that are not enforced yet.
#[derive(Debug)]
pub(crate) struct Decoded<T> {
    /// The value.
    pub value: T,
    /// Paths of fields that are not enforced yet.
    pub later: Vec<Field>,
    /// Paths of unknown fields of structs that are open.
    pub passed_over: Vec<Field>,
}

/// Decodes a node.
pub(crate) fn decode<'de, T: Deserialize<'de>>(
    node: &'de Node,
    extras: &'static [&'static [Extra]],
) -> Result<Decoded<T>, DecodeError> {
    let context = Context { extras, later: RefCell::default(), passed_over: RefCell::default() };
    let value = T::deserialize(Reader { node, context: &context, path: &Path::Root, required: false })?;
    let Context { later, passed_over, .. } = context;
    Ok(Decoded { value, later: later.into_inner(), passed_over: passed_over.into_inner() })
}

struct Context {
    extras: &'static [&'static [Extra]],
    later: RefCell<Vec<Field>>,
    passed_over: RefCell<Vec<Field>>,
}

impl Context {
    fn known(&self, of: &str, name: &str) -> Option<Known> {
        let extras = self.extras.iter().flat_map(|table| table.iter()).filter(|extra| extra.of == of);
        let fields = || extras.clone().flat_map(|extra| extra.fields).copied();
        let named = fields().find(|known| match known {
            Known::Ignored(names) => names.contains(&name),
            Known::Later(later, _) => *later == name,
            Known::Open => false,
        });
        named.or_else(|| fields().find(|known| matches!(known, Known::Open)))
    }
}

/// The way to a node, kept on the stack: most nodes are decoded without error and need no path.
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    fn to_field(&self) -> Field {
        match self {
            Self::Root => Field::root(),
            Self::Key(parent, key) => parent.to_field().key(key),
            Self::Index(parent, index) => parent.to_field().index(*index),
        }
    }
}

#[derive(Clone, Copy)]
struct Reader<'de, 'c> {
    node: &'de Node,
    context: &'c Context,
    path: &'c Path<'c>,
    /// Whether null is refused: within lists and maps, where leaving a value out means nothing.
    required: bool,
}

impl<'de> Reader<'de, '_> {
    fn seq<V: Visitor<'de>>(self, items: &'de [Node], visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_seq(Items { items: items.iter().enumerate(), reader: self })
    }

    fn map<V: Visitor<'de>>(
        self,
        entries: &'de [Entry],
        shape: Option<Shape>,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_map(Entries { rest: entries.iter(), value: None, reader: self, shape })
    }

    fn at_line<T>(self, result: Result<T, DecodeError>) -> Result<T, DecodeError> {
        result.map_err(|error| error.or_line(self.node.line))
    }
}

/// A struct that is being filled.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    fields: &'static [&'static str],
}

impl<'de> Deserializer<'de> for Reader<'de, '_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.at_line(match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                _ => visitor.visit_i128(*value),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(value) => visitor.visit_borrowed_str(value),
            Value::Seq(items) => self.seq(items, visitor),
            Value::Map(entries) => self.map(entries, None, visitor),
        })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.node.value {
            Value::Null if !self.required => self.seq(&[], visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.node.value {
            Value::Null if !self.required => self.map(&[], None, visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let shape = Some(Shape { name, fields });
        self.at_line(match &self.node.value {
            Value::Null if !self.required => self.map(&[], shape, visitor),
            Value::Map(entries) => self.map(entries, shape, visitor),
            // A list would fill the fields by position, which no document means.
            Value::Seq(_) => Err(de::Error::invalid_type(de::Unexpected::Seq, &"a mapping")),
            _ => self.deserialize_any(visitor),
        })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        // Enums of the API are plain strings.
        self.at_line(match &self.node.value {
            Value::String(text) => {
                let text: StrDeserializer<'_, DecodeError> = (**text).into_deserializer();
                visitor.visit_enum(text)
            }
            _ => self.deserialize_any(visitor),
        })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Items<'de, 'c> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
    reader: Reader<'de, 'c>,
}

impl<'de> de::SeqAccess<'de> for Items<'de, '_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let path = Path::Index(self.reader.path, index);
        let reader = Reader { node, context: self.reader.context, path: &path, required: true };
        seed.deserialize(reader).map(Some).map_err(|error| error.within(Step::Index(index), node.line))
    }
}

struct Entries<'de, 'c> {
    rest: std::slice::Iter<'de, Entry>,
    value: Option<&'de Entry>,
    reader: Reader<'de, 'c>,
    shape: Option<Shape>,
}

impl Entries<'_, '_> {
    /// Whether the entry is one that the struct accepts without decoding it.
    fn skip(&self, entry: &Entry) -> Result<bool, DecodeError> {
        let Some(shape) = self.shape.filter(|shape| !shape.fields.contains(&&*entry.key)) else {
            return Ok(false);
        };
        match self.reader.context.known(shape.name, &entry.key) {
            None => Ok(false),
            Some(Known::Ignored(_)) => Ok(true),
            Some(Known::Open) => {
                let field = self.reader.path.to_field().key(&entry.key);
                self.reader.context.passed_over.borrow_mut().push(field);
                Ok(true)
            }
            Some(Known::Later(_, names)) => {
                check_names(&entry.value, names)
                    .map_err(|error| error.within(key_step(entry), entry.line))?;
                if !entry.value.is_empty() {
                    let field = self.reader.path.to_field().key(&entry.key);
                    self.reader.context.later.borrow_mut().push(field);
                }
                Ok(true)
            }
        }
    }
}

/// Refuses keys that a field of the API does not have; lists are checked item by item.
pub(crate) fn check_names(node: &Node, names: &'static [&'static str]) -> Result<(), DecodeError> {
    if names.is_empty() {
        return Ok(());
    }
    match &node.value {
        Value::Map(entries) => match entries.iter().find(|entry| !names.contains(&&*entry.key)) {
            Some(entry) => Err(<DecodeError as de::Error>::unknown_field(&entry.key, names)
                .within(key_step(entry), entry.line)),
            None => Ok(()),
        },
        Value::Seq(items) => items.iter().enumerate().try_for_each(|(index, item)| {
            check_names(item, names).map_err(|error| error.within(Step::Index(index), item.line))
        }),
        Value::Null => Ok(()),
        _ => Err(DecodeError::new(format!("expected a mapping of {}", names.join(", "))).or_line(node.line)),
    }
}

fn key_step(entry: &Entry) -> Step {
    Step::Key(entry.key.to_string())
}

impl<'de> de::MapAccess<'de> for Entries<'de, '_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        while let Some(entry) = self.rest.next() {
            if self.skip(entry)? {
                continue;
            }
            self.value = Some(entry);
            let key: StrDeserializer<'_, DecodeError> = (*entry.key).into_deserializer();
            return seed
                .deserialize(key)
                .map(Some)
                .map_err(|error| error.within(key_step(entry), entry.line));
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        let entry = self.value.take().ok_or_else(|| DecodeError::new("a value without a key".to_owned()))?;
        let path = Path::Key(self.reader.path, &entry.key);
        let reader = Reader {
            node: &entry.value,
            context: self.reader.context,
            path: &path,
            required: self.shape.is_none(),
        };
        seed.deserialize(reader).map_err(|error| error.within(key_step(entry), entry.line))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::config::node::parse;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, rename_all = "camelCase", default)]
    struct Outer {
        name: Option<String>,
        count: Option<u16>,
        items: Vec<Inner>,
        labels: BTreeMap<String, String>,
        inner: Inner,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        weight: u32,
    }

    const EXTRAS: &[&[Extra]] = &[&[
        Extra { of: "Outer", fields: &[Known::Ignored(&["status"])] },
        Extra { of: "Inner", fields: &[Known::Later("retries", &["attempts"])] },
        Extra { of: "Grown", fields: &[Known::Ignored(&["status"]), Known::Open] },
    ]];

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Grown {
        inner: Inner,
    }

    fn read(text: &str) -> Result<Decoded<Outer>, DecodeError> {
        let documents = parse(text).expect("valid YAML");
        decode(&documents[0], EXTRAS)
    }

    #[test]
    fn good_values_are_read() {
        let outer = read("name: a\ncount: 3\nitems: [{weight: 1}]\nlabels: {a: b}\nstatus: {x: [1]}\n")
            .expect("good");
        assert_eq!(outer.value.items, [Inner { weight: 1 }]);
        assert_eq!(outer.later, []);
        let nulls = read("name: null\nitems: null\nlabels:\ninner: ~\n").expect("null is absent");
        assert_eq!(nulls.value, Outer::default());
    }

    #[test]
    fn fields_for_later_are_listed_with_their_path() {
        let outer =
            read("items:\n- retries: {attempts: 3}\n- retries: {}\ninner: {retries: [{attempts: 1}]}\n");
        let later: Vec<_> = outer.expect("good").later.iter().map(ToString::to_string).collect();
        assert_eq!(later, ["items[0].retries", "inner.retries"]);
    }

    #[test]
    fn unknown_fields_of_open_structs_are_listed_with_their_path() {
        let documents = parse("status: 1\ninner: {weight: 1}\nfresh: [1]\n").expect("valid YAML");
        let grown = decode::<Grown>(&documents[0], EXTRAS).expect("good");
        let passed_over: Vec<_> = grown.passed_over.iter().map(ToString::to_string).collect();
        assert_eq!((grown.value.inner.weight, passed_over), (1, vec!["fresh".to_owned()]));
        let documents = parse("inner: {wieght: 1}\n").expect("valid YAML");
        assert!(decode::<Grown>(&documents[0], EXTRAS).is_err(), "what is in it is as strict as ever");
    }

    #[test]
    fn bad_values_name_their_field_and_line() {
        let check = |text: &str, field: &str, line: u32, part: &str| {
            let error = read(text).expect_err(text);
            assert_eq!((error.field.to_string().as_str(), error.line), (field, line), "{error}");
            assert!(error.text.contains(part), "{error}");
        };
        check("nam: a\n", "nam", 1, "unknown field");
        check("name: a\nitems:\n- weight: 1\n- weigth: 2\n", "items[1].weigth", 4, "fields here are: weight");
        check("items:\n- weight: x\n", "items[0].weight", 2, "expected a number from 0");
        check("count: 70000\n", "count", 1, "expected a number from 0 to 65535");
        check("count: -1\n", "count", 1, "expected a number from 0 to 65535");
        check("name: 1\n", "name", 1, "expected a string");
        check("labels:\n  a: 1.5\n", "labels.a", 2, "expected a string");
        check("labels:\n  a:\n", "labels.a", 2, "expected a string");
        check("items: [null]\n", "items[0]", 1, "null");
        check("items: [[1]]\n", "items[0]", 1, "a mapping");
        check("items: {weight: 1}\n", "items", 1, "expected a list");
        check("items:\n- retries:\n    atempts: 3\n", "items[0].retries.atempts", 3, "attempts");
        check("inner: {retries: 3}\n", "inner.retries", 1, "expected a mapping of attempts");
        check("just text\n", "", 1, "expected a mapping");
    }
}
