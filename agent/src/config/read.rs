//! Files of a directory, or those a user names, as text.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::load::{State, load};
use super::report::Report;

/// The largest file that is read.
const FILE_MAX_BYTES: u64 = 16 << 20;

/// Extensions of the files that are read.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// A file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFile {
    /// Its path, as messages show it.
    pub path: Arc<str>,
    /// Its text, or why there is none.
    pub text: Result<String, FileProblem>,
}

/// Why a file has no text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FileProblem {
    /// The system refuses it.
    #[error("can't be read: {0}")]
    Unreadable(String),
    /// It is larger than any file of documents.
    #[error("is larger than {} MiB", FILE_MAX_BYTES >> 20)]
    TooLarge,
    /// It holds bytes that are no UTF-8.
    #[error("is no UTF-8 text (byte {0})")]
    NotUtf8(usize),
}

impl From<io::Error> for FileProblem {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// Reads the documents of a directory. A directory that can't be read is an empty state whose report says so.
pub fn load_dir(dir: &Path) -> State {
    load(
        &State::default(),
        read_dir(dir).unwrap_or_else(|problem| vec![InputFile { path: display(dir), text: Err(problem) }]),
    )
}

/// Checks files and directories offline, as the agent would. `-` is the standard input.
pub fn analyze(paths: &[PathBuf]) -> Report {
    load(&State::default(), read_inputs(paths)).report
}

/// Reads files and the documents of directories. `-` is the standard input.
pub fn read_inputs(paths: &[PathBuf]) -> Vec<InputFile> {
    let mut files = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            files.push(InputFile { path: "<stdin>".into(), text: read_all(io::stdin()) });
        } else if path.is_dir() {
            files.extend(
                read_dir(path)
                    .unwrap_or_else(|problem| vec![InputFile { path: display(path), text: Err(problem) }]),
            );
        } else {
            files.push(read_file(path));
        }
    }
    files
}

/// Reads the files of a directory that hold documents, sorted by name. Hidden files are left out, which are also the
/// directories behind a mounted ConfigMap; its files are links into them and are read.
pub(super) fn read_dir(dir: &Path) -> Result<Vec<InputFile>, FileProblem> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if is_document(&path) && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    let files = paths.iter().map(|path| read_file(path));
    // A file that went away since it was listed is simply not there.
    Ok(files.filter(|file| file.text.is_ok() || fs::symlink_metadata(&*file.path).is_ok()).collect())
}

/// Whether a path names a file of documents.
pub(super) fn is_document(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
}

fn read_file(path: &Path) -> InputFile {
    InputFile { path: display(path), text: read_text(path) }
}

fn read_text(path: &Path) -> Result<String, FileProblem> {
    let file = fs::File::open(path)?;
    // A pipe or a device would never end.
    if !file.metadata()?.is_file() {
        return Err(FileProblem::Unreadable("no regular file".to_owned()));
    }
    read_all(file)
}

fn read_all(source: impl Read) -> Result<String, FileProblem> {
    let mut bytes = Vec::new();
    source.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(FileProblem::TooLarge);
    }
    String::from_utf8(bytes).map_err(|error| FileProblem::NotUtf8(error.utf8_error().valid_up_to()))
}

fn display(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}
