//! A model as bytes: what the leader publishes, and what a follower makes of it.
//!
//! A model is split into records, each with a key that stays the same for as long as what it is about does. A [`Change`] puts
//! some and removes others; one from nothing holds the whole model. [`Parts`] is a model that takes changes.
//!
//! What has an order of precedence, mesh routes and listeners, names its predecessor in its record: what is put in between
//! changes one record besides its own, wherever that is.

mod chain;
mod change;
mod draft;
mod edit;
mod index;
mod interned;
mod key;
mod lookup;
mod parts;
mod record;
mod touched;

pub use change::Change;
pub use parts::{Counts, Parts};
pub use touched::Touched;
pub(in crate::compile) use touched::Whole;

/// Which agents can read each other's tables.
///
/// An agent passes over what it does not know of a table of its own schema: fields of records, and kinds of records. So a
/// version that adds any leaves the number as it is if an agent that passes it over does no harm by it, such as letting
/// through what a policy refuses or sending traffic where it must not go; otherwise the number is raised. It is raised as well
/// when something comes to mean something else, or when a field that was always there no longer is. A variant that an agent
/// does not know is never passed over: it makes the agent refuse the table.
pub const SCHEMA: u32 = 3;

/// Why a change can't be read or applied. None of it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It is larger than anything that is published.
    #[error("{what} exceeds {limit}")]
    TooLarge {
        /// What is.
        what: &'static str,
        /// How much there may be.
        limit: usize,
    },
    /// It is no change, or of another form.
    #[error("the form {0} of a change is unknown")]
    Form(u8),
    /// It can't be decompressed.
    #[error("the change is damaged: {0}")]
    Damaged(String),
    /// It ends in the middle.
    #[error("the change ends early")]
    Truncated,
    /// Something follows its end.
    #[error("{0} bytes follow the end of the change")]
    Trailing(usize),
    /// A record's key is none.
    #[error("{key:?} is no key of a record")]
    Key {
        /// What stands there, the beginning of it where it is long.
        key: String,
    },
    /// Records are not in the order of their keys, or one is there twice.
    #[error("the record {key} is out of order")]
    Order {
        /// The later one.
        key: String,
    },
    /// A record holds something that this version can't read.
    #[error("the record {key} can't be read: {field}: {problem}")]
    Record {
        /// The record.
        key: String,
        /// The field's path; `.`: the record as a whole.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// It removes a record that is not there: it does not follow what it is applied to.
    #[error("there is no record {key} to be removed")]
    Missing {
        /// The record.
        key: String,
    },
    /// The records name predecessors that make no order: it does not follow what it is applied to.
    #[error("the record {key} has no place in the order of precedence")]
    Precedence {
        /// One of those that are wrong.
        key: String,
    },
}

#[cfg(test)]
mod tests;
