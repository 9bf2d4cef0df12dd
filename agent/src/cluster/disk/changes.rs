//! The changes that follow the table on the disk, as they were published. Each is appended before it is in force, and nobody
//! waits for the disk: so a process that is killed begins where it ended, and after a crash of the machine those of the last second
//! may be lost.
//!
//! An entry is a length, u32 LE, of what follows the checksum; the checksum; a head in JSON and a line's end; the records. What
//! was cut at the end of the file goes when it is opened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::{FILE_MAX, SUM};
use crate::cluster::seal::{Digest, Position, Version};
use crate::compile::TableVersion;

const LENGTH: usize = 4;

/// A change with its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptChange {
    /// Where it leads.
    pub at: Position,
    /// What it follows.
    pub previous: Digest,
    /// The generation of its documents' seal; 0: they had none, or it is not known.
    pub generation: u64,
    /// The records, compressed.
    pub body: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    version: Version,
    chain: Digest,
    revision: u64,
    #[serde(default)]
    shrinks_from: u64,
    previous: Digest,
    #[serde(default)]
    generation: u64,
}

/// The file.
#[derive(Debug)]
pub(super) struct Changes {
    path: PathBuf,
    log: Mutex<Log>,
}

#[derive(Debug)]
struct Log {
    file: File,
    length: u64,
}

impl Changes {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = options().truncate(false).open(path)?;
        let (_, length) = entries(&read(&file)?);
        file.set_len(length)?;
        Ok(Self { path: path.to_owned(), log: Mutex::new(Log { file, length }) })
    }

    /// All of them, in their order.
    pub(super) fn all(&self) -> io::Result<Vec<KeptChange>> {
        Ok(entries(&read(&self.log().file)?).0)
    }

    pub(super) fn append(&self, change: &KeptChange) -> io::Result<()> {
        let mut log = self.log();
        let entry = entry(change);
        if let Err(error) = log.file.write_all_at(&entry, log.length) {
            // What follows must not come after half an entry.
            log.file.set_len(log.length)?;
            return Err(error);
        }
        log.length += entry.len() as u64;
        Ok(())
    }

    /// Lets go of those that lead no further than there.
    pub(super) fn forget(&self, until: TableVersion) -> io::Result<()> {
        let mut log = self.log();
        let (all, _) = entries(&read(&log.file)?);
        let stays: Vec<u8> = all.iter().filter(|change| change.at.version > until).flat_map(entry).collect();
        if stays.len() as u64 == log.length {
            return Ok(());
        }
        let temporary = self.path.with_extension("new");
        let mut file = options().truncate(true).open(&temporary)?;
        file.write_all(&stays)?;
        fs::rename(&temporary, &self.path)?;
        *log = Log { file, length: stays.len() as u64 };
        Ok(())
    }

    /// Waits until all of them outlive a crash of the machine. Others may be appended meanwhile.
    pub(super) fn sync(&self) -> io::Result<()> {
        let file = self.log().file.try_clone()?;
        file.sync_data()
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody but the agent reads what is published.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    options
}

fn read(file: &File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len().min(FILE_MAX);
    let mut bytes = Vec::new();
    // The file's own position is nobody's: it is read by a handle that begins at its start.
    let mut reader = Positioned { file, at: 0 };
    reader.by_ref().take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

struct Positioned<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

fn entry(change: &KeptChange) -> Vec<u8> {
    let &KeptChange {
        at: Position { version, chain, revision, shrinks_from },
        previous,
        generation,
        ref body,
    } = change;
    let head = Head { version: version.into(), chain, revision, shrinks_from, previous, generation };
    let mut rest = serde_json::to_vec(&head).expect("names and numbers are JSON");
    rest.push(b'\n');
    rest.extend_from_slice(body);
    let length = u32::try_from(rest.len()).expect("a change is smaller than 4 GiB");
    [&length.to_le_bytes()[..], digest(&SHA256, &rest).as_ref(), &rest].concat()
}

/// The whole entries at the beginning, and how long they are.
fn entries(bytes: &[u8]) -> (Vec<KeptChange>, u64) {
    let (mut changes, mut rest) = (Vec::new(), bytes);
    while let Some((change, after)) = first(rest) {
        changes.push(change);
        rest = after;
    }
    (changes, (bytes.len() - rest.len()) as u64)
}

fn first(bytes: &[u8]) -> Option<(KeptChange, &[u8])> {
    let (length, rest) = bytes.split_at_checked(LENGTH)?;
    let (sum, rest) = rest.split_at_checked(SUM)?;
    let length = u32::from_le_bytes(length.try_into().ok()?);
    let (entry, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    if digest(&SHA256, entry).as_ref() != sum {
        return None;
    }
    let end = entry.iter().position(|byte| *byte == b'\n')?;
    let Head { version, chain, revision, shrinks_from, previous, generation } =
        serde_json::from_slice(&entry[..end]).ok()?;
    let at = Position { version: version.into(), chain, revision, shrinks_from };
    Some((KeptChange { at, previous, generation, body: entry[end + 1..].to_vec() }, after))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cluster::seal::first_digest;
    use crate::compile::Token;

    fn change(number: u64) -> KeptChange {
        let position = |number| {
            let version = TableVersion { token: Token { epoch: 2, nonce: 5 }, version: number };
            Position {
                version,
                chain: first_digest(version, b"x"),
                revision: number,
                shrinks_from: number / 2,
            }
        };
        let previous = position(number - 1).chain;
        KeptChange { at: position(number), previous, generation: number + 100, body: b"a\nb".to_vec() }
    }

    #[test]
    fn what_is_appended_is_there_until_it_is_let_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("changes");
        let changes = Changes::open(&path).expect("opens");
        assert_eq!(changes.all().expect("reads"), []);
        for number in 1..=4 {
            changes.append(&change(number)).expect("writes");
        }
        let again = |path: &Path| Changes::open(path).expect("opens").all().expect("reads");
        assert_eq!(again(&path), [change(1), change(2), change(3), change(4)]);
        changes.forget(change(3).at.version).expect("writes");
        changes.append(&change(5)).expect("writes");
        assert_eq!(again(&path), [change(4), change(5)]);
        changes.forget(change(5).at.version).expect("writes");
        assert_eq!((again(&path), changes.all().expect("reads")), (Vec::new(), Vec::new()));
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "others can read it");
    }

    #[test]
    fn what_was_cut_or_damaged_ends_the_list_and_what_comes_next_follows() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("changes");
        let whole: Vec<u8> = [1, 2].iter().flat_map(|number| entry(&change(*number))).collect();
        let first = entry(&change(1)).len();
        for length in first..whole.len() {
            fs::write(&path, &whole[..length]).expect("writes");
            let changes = Changes::open(&path).expect("opens");
            assert_eq!(changes.all().expect("reads"), [change(1)], "cut at {length}");
            changes.append(&change(7)).expect("writes");
            assert_eq!(changes.all().expect("reads"), [change(1), change(7)], "cut at {length}");
        }
        for at in first..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).expect("writes");
            let changes = Changes::open(&path).expect("opens");
            assert_eq!(changes.all().expect("reads"), [change(1)], "altered at {at}");
        }
    }
}
