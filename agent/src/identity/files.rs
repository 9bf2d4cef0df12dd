//! The files of a CA and of a node: their names, reading them with a bound, and writing them whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::IdentityError;

/// The key of a CA's root. It never leaves the CA's machine.
pub(super) const ROOT_KEY: &str = "root.key";
/// The certificate of a CA's root.
pub(super) const ROOT: &str = "root.pem";
/// The root that will follow, while one is prepared; as `root.key` and `root.pem`.
pub(super) const NEXT_ROOT: &str = "next-root.pem";
pub(super) const NEXT_ROOT_KEY: &str = "next-root.key";
/// The root that went before, while it is still in bundles.
pub(super) const OLD_ROOT: &str = "old-root.pem";
pub(super) const OLD_ROOT_KEY: &str = "old-root.key";
/// What the CA has issued, a line each.
pub(super) const ISSUED: &str = "issued.jsonl";
/// The roots that are trusted: in a CA's directory what nodes get, in a node's what it goes by.
pub(super) const BUNDLE: &str = "bundle.pem";
/// What the roots have taken back. It may be missing: nothing then.
pub(super) const REVOKED: &str = "revoked.crl";
/// The certificate of a node.
pub(super) const NODE: &str = "node.pem";
/// The key of a node.
pub(super) const NODE_KEY: &str = "node.key";
/// The certificate with which a node issues those of its workloads.
pub(super) const INTERMEDIATE: &str = "intermediate.pem";
/// Its key.
pub(super) const INTERMEDIATE_KEY: &str = "intermediate.key";
/// The certificate of an operator.
pub(super) const OPERATOR: &str = "operator.pem";
/// The key of an operator.
pub(super) const OPERATOR_KEY: &str = "operator.key";

/// Longest file that is read, in bytes: a bundle of sixteen roots has a tenth of that.
const FILE_MAX_BYTES: usize = 256 * 1024;
/// Bits of a mode that let everybody read or change a file.
const OTHERS: u32 = 0o007;
/// Bits of a mode that let others than the owner put files into a directory.
const OTHERS_WRITE: u32 = 0o022;
/// The bit of a directory's mode by which others than a file's owner neither remove nor replace it.
const STICKY: u32 = 0o1000;
const MODE_BITS: u32 = 0o7777;
const DIRECTORY_MODE: u32 = 0o700;
const SECRET_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;

/// A file that is to be written.
pub(super) struct Writing {
    name: &'static str,
    text: Zeroizing<String>,
    mode: u32,
}

impl Writing {
    /// A key: its owner alone reads it.
    pub(super) fn secret(name: &'static str, text: Zeroizing<String>) -> Self {
        Self { name, text, mode: SECRET_MODE }
    }

    /// A certificate: it is no secret, and the directory's mode decides who sees it.
    pub(super) fn public(name: &'static str, text: String) -> Self {
        Self { name, text: Zeroizing::new(text), mode: PUBLIC_MODE }
    }
}

/// What becomes of files that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    /// They stay, and nothing is written; the advice ends the error.
    Refuse(&'static str),
    /// They are replaced.
    Replace,
}

/// Reads a file of certificates.
pub(super) fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let opened = File::open(file).map_err(|source| read_error(file, source))?;
    read_opened(file, opened)
}

/// Reads a file of certificates that may be missing.
pub(super) fn read_optional(file: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
    match read(file) {
        Err(IdentityError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Reads a file of lines that grows with the years and may be missing.
pub(super) fn read_lines(file: &Path) -> Result<Option<String>, IdentityError> {
    match fs::read_to_string(file) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|source| read_error(file, source)),
    }
}

/// Reads a file of a key, unless everybody can. The owner's group may, for what mounts secrets gives them to one.
pub(super) fn read_secret(file: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let opened = File::open(file).map_err(|source| read_error(file, source))?;
    let mode = opened.metadata().map_err(|source| read_error(file, source))?.mode() & MODE_BITS;
    if mode & OTHERS != 0 {
        return Err(IdentityError::OpenKey { file: file.to_owned(), mode });
    }
    read_opened(file, opened)
}

/// The buffer has its full size from the start: growing would leave copies of a key in memory that is given back.
fn read_opened(file: &Path, opened: File) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let expected = opened.metadata().map_err(|source| read_error(file, source))?.len();
    let capacity = usize::try_from(expected).unwrap_or(usize::MAX).min(FILE_MAX_BYTES) + 1;
    let mut content = Zeroizing::new(Vec::with_capacity(capacity));
    let bound = u64::try_from(FILE_MAX_BYTES).expect("a small constant") + 1;
    opened.take(bound).read_to_end(&mut content).map_err(|source| read_error(file, source))?;
    if content.len() > FILE_MAX_BYTES {
        return Err(IdentityError::TooLarge { file: file.to_owned(), max: FILE_MAX_BYTES });
    }
    Ok(content)
}

fn read_error(file: &Path, source: io::Error) -> IdentityError {
    IdentityError::Read { file: file.to_owned(), source }
}

fn write_error(file: &Path, source: io::Error) -> IdentityError {
    IdentityError::Write { file: file.to_owned(), source }
}

/// Refuses when any of these files is there.
pub(super) fn refuse_existing(
    directory: &Path,
    names: &[&str],
    advice: &'static str,
) -> Result<(), IdentityError> {
    for file in names.iter().map(|name| directory.join(name)) {
        match fs::symlink_metadata(&file) {
            Ok(_) => return Err(IdentityError::Exists { file, advice }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(read_error(&file, source)),
        }
    }
    Ok(())
}

/// Writes files into a directory, which is made where it is missing. Every file is complete under a name of its own
/// before the first gets the name that is read, so that a full disk changes nothing.
pub(super) fn write_all(
    directory: &Path,
    contents: &[Writing],
    existing: Existing,
) -> Result<(), IdentityError> {
    write_after(directory, contents, existing, || Ok(()))
}

/// The same, with something to be done when all files are complete and none has its name yet.
pub(super) fn write_after(
    directory: &Path,
    contents: &[Writing],
    existing: Existing,
    before: impl FnOnce() -> Result<(), IdentityError>,
) -> Result<(), IdentityError> {
    make_directory(directory)?;
    if let Existing::Refuse(advice) = existing {
        let names: Vec<&str> = contents.iter().map(|content| content.name).collect();
        refuse_existing(directory, &names, advice)?;
    }
    let staged: Vec<Staged> =
        contents.iter().map(|content| Staged::write(directory, content)).collect::<Result<_, _>>()?;
    before()?;
    for file in &staged {
        file.publish(existing)?;
    }
    File::open(directory)
        .and_then(|opened| opened.sync_all())
        .map_err(|source| write_error(directory, source))
}

/// Adds lines to a file that is no secret, which is made where it is missing.
pub(super) fn append(file: &Path, lines: &str) -> Result<(), IdentityError> {
    let mut options = OpenOptions::new();
    let opened = options.append(true).create(true).mode(PUBLIC_MODE).open(file);
    let write = |mut opened: File| {
        opened.write_all(lines.as_bytes())?;
        opened.sync_all()
    };
    opened.and_then(write).map_err(|source| write_error(file, source))
}

/// Removes files; those that are not there are no matter.
pub(super) fn remove(directory: &Path, names: &[&str]) -> Result<(), IdentityError> {
    for file in names.iter().map(|name| directory.join(name)) {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write_error(&file, error)),
            _ => {}
        }
    }
    Ok(())
}

fn make_directory(directory: &Path) -> Result<(), IdentityError> {
    let created = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory);
    created.map_err(|source| write_error(directory, source))?;
    match mode_of(directory)? {
        mode if mode & OTHERS_WRITE == 0 => Ok(()),
        mode => Err(IdentityError::OpenDirectory { file: directory.to_owned(), mode }),
    }
}

/// Refuses what is read from a directory in which others may replace it. In a sticky one they may not, and secrets that
/// Kubernetes mounts are in such.
pub(super) fn refuse_replaceable(file: &Path) -> Result<(), IdentityError> {
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match mode_of(directory)? {
        mode if mode & OTHERS_WRITE == 0 || mode & STICKY != 0 => Ok(()),
        mode => Err(IdentityError::OpenDirectory { file: directory.to_owned(), mode }),
    }
}

fn mode_of(directory: &Path) -> Result<u32, IdentityError> {
    let found = fs::metadata(directory).map_err(|source| read_error(directory, source))?;
    Ok(found.mode() & MODE_BITS)
}

/// A complete file that nobody reads yet; gone when it is dropped.
struct Staged {
    temporary: PathBuf,
    target: PathBuf,
}

impl Staged {
    fn write(directory: &Path, content: &Writing) -> Result<Self, IdentityError> {
        let target = directory.join(content.name);
        let temporary = directory.join(format!(".{}.{}", content.name, std::process::id()));
        // What a process of the same number left when it was killed.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write_error(&target, error)),
            _ => {}
        }
        let staged = Self { temporary, target };
        staged.fill(content).map_err(|source| write_error(&staged.target, source))?;
        Ok(staged)
    }

    fn fill(&self, content: &Writing) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(content.mode).open(&self.temporary)?;
        file.write_all(content.text.as_bytes())?;
        file.sync_all()
    }

    fn publish(&self, existing: Existing) -> Result<(), IdentityError> {
        let done = match existing {
            Existing::Replace => fs::rename(&self.temporary, &self.target),
            // Unlike renaming, a link takes no file's place.
            Existing::Refuse(_) => fs::hard_link(&self.temporary, &self.target),
        };
        match (done, existing) {
            (Err(error), Existing::Refuse(advice)) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(IdentityError::Exists { file: self.target.clone(), advice })
            }
            (done, _) => done.map_err(|source| write_error(&self.target, source)),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Renamed away, or a second name of what was linked: nothing hangs on whether it is still there.
        let _ = fs::remove_file(&self.temporary);
    }
}
