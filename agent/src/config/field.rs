//! The path of a field within a document, as users write it: `spec.http[0].route[1].weight`.

use std::fmt;

/// One step into a document.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// Into a mapping, by key.
    Key(String),
    /// Into a sequence, by position.
    Index(usize),
}

/// A path from the object's root; the empty path is the object itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Field(Vec<Step>);

impl Field {
    /// The object itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// The `spec` of the object.
    pub fn spec() -> Self {
        Self::root().key("spec")
    }

    /// This path, one key further.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.with(Step::Key(key.to_owned()))
    }

    /// This path, one position further.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    /// The steps, outermost first.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Puts a step before the path: how an error finds its way out of nested values.
    pub(crate) fn prepend(&mut self, step: Step) {
        self.0.insert(0, step);
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = Vec::with_capacity(self.0.len() + 1);
        steps.extend_from_slice(&self.0);
        steps.push(step);
        Self(steps)
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if key.is_empty() || key.contains(['.', '[', ' ']) => write!(f, "[{key:?}]")?,
                Step::Key(key) if position == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Field;

    #[test]
    fn fields_read_as_users_write_them() {
        let check = |field: Field, expected: &str| assert_eq!(field.to_string(), expected);
        check(Field::root(), "");
        check(
            Field::spec().key("http").index(0).key("route").index(1).key("weight"),
            "spec.http[0].route[1].weight",
        );
        check(
            Field::root().key("metadata").key("labels").key("app.kubernetes.io/name"),
            "metadata.labels[\"app.kubernetes.io/name\"]",
        );
        check(Field::root().key("metadata").key("labels").key(""), "metadata.labels[\"\"]");
    }
}
