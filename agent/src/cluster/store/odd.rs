//! Documents that somebody has written past all that writes documents, so that the store says two things of them.

use std::fmt;
use std::sync::Arc;

/// A document that somebody has written past all that writes documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Odd {
    /// Which.
    pub id: Arc<str>,
    /// What is odd about it.
    pub what: Oddity,
}

/// What is odd about a document. It is there where it has a revision and a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// It is there, and among the deleted ones as well.
    Deleted,
    /// It was deleted and still has a text.
    Left,
    /// It has a revision and no text, and was not deleted.
    Textless,
    /// Its text is bytes that are none.
    Garbled,
}

impl Oddity {
    /// Whether a text is missing that nobody deleted: only a seal tells whether there has to be one.
    pub fn is_loss(self) -> bool {
        matches!(self, Self::Textless | Self::Garbled)
    }
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            Oddity::Deleted => "is there and among the deleted ones",
            Oddity::Left => "was deleted and has a text",
            Oddity::Textless => "has a revision and no text",
            Oddity::Garbled => "has bytes that are no text",
        };
        // Whoever can write to the store chooses the name, and this goes to logs and terminals.
        write!(f, "{} {what}", self.id.replace(char::is_control, "\u{fffd}"))
    }
}
