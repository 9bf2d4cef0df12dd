//! Why a document is not what its kind says, in words for people who write YAML.

use std::fmt;

use serde::de;

use crate::config::field::{Field, Step};

/// Why a node is not what its type says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DecodeError {
    /// The field.
    pub field: Field,
    /// Its line; 0 until a value on the way out knows one.
    pub line: u32,
    /// What is wrong.
    pub text: String,
}

impl DecodeError {
    /// An error on the value itself.
    pub(super) fn new(text: String) -> Self {
        Self { field: Field::root(), line: 0, text }
    }

    /// The error as the value around it sees it.
    pub(super) fn within(mut self, step: Step, line: u32) -> Self {
        self.field.prepend(step);
        self.or_line(line)
    }

    /// Gives the line where none is known yet.
    pub(super) fn or_line(mut self, line: u32) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.text)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::new(text.to_string())
    }

    fn unknown_field(_field: &str, expected: &'static [&'static str]) -> Self {
        let names = expected.join(", ");
        Self::new(format!("unknown field; fields here are: {names}"))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(format!("the required field `{field}` is missing"))
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("expected {}, found {}", describe(expected), describe_found(found)))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("`{variant}` is none of {}", expected.join(", ")))
    }
}

/// Rust's names of types in the words of YAML.
fn describe(expected: &dyn de::Expected) -> String {
    match expected.to_string().as_str() {
        "u16" => "a number from 0 to 65535".to_owned(),
        "u32" => "a number from 0 to 4294967295".to_owned(),
        "i64" => "a whole number".to_owned(),
        // A version such as 1.10 is a number to YAML, and not the one that is meant.
        "a string" => "a string (in quotes if it looks like a number)".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a mapping".to_owned(),
        other if other.starts_with("struct ") => "a mapping".to_owned(),
        other => other.to_owned(),
    }
}

fn describe_found(found: de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Unit => "nothing (null)".to_owned(),
        de::Unexpected::Bool(value) => value.to_string(),
        de::Unexpected::Unsigned(value) => format!("the number {value}"),
        de::Unexpected::Signed(value) => format!("the number {value}"),
        de::Unexpected::Float(value) => format!("the number {value}"),
        de::Unexpected::Str(text) => format!("the text `{text}`"),
        de::Unexpected::Seq => "a list".to_owned(),
        de::Unexpected::Map => "a mapping".to_owned(),
        other => other.to_string(),
    }
}
