//! Documents -> [`crate::model::Model`]: read, checked, watched and reported on. A wrong document is reported on
//! itself and changes nothing else; its last good version stays.

mod closing;
mod ended;
mod field;
mod kinds;
mod link;
mod load;
mod node;
mod object;
mod read;
mod report;
mod shown;
mod stored;
mod update;
mod watch;

#[cfg(test)]
mod tests;

pub use kinds::is_kind;
pub use load::{State, load};
pub use read::{FileProblem, InputFile, analyze, load_dir, read_inputs};
pub use report::{Code, FileReport, Message, ObjectReport, ObjectState, Report, Severity};
pub use shown::{is_secret, shown};
pub use stored::{NotStorable, StoredDocument, check, consequences, documents, stored_files};
pub use watch::{WatchError, watch};
