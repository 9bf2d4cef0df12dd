//! What a node keeps in its state directory: the table in force, the documents, and the highest token that it ever applied.
//! All of it is this node's own, and read again only by itself; a checksum tells what a crash or the disk left half written.
//!
//! Files are written beside the old ones and put in their place, so that a full disk costs the new version and not the old one.
//! The highest token alone is written in place, in one of two slots that are there from the start: a full disk can't keep it
//! from being known.

mod changes;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IntoInnerError, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ring::digest::{self, SHA256, digest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::changes::Changes;
use super::seal::{Digest, Position, Version};
use crate::compile::{TableVersion, Token};
use crate::model::SharedMap;
use crate::priority::give_way;

pub use self::changes::KeptChange;

const MAGIC: &[u8; 4] = b"SLD1";
const SUM: usize = 32;
/// So many bytes go to a file at once.
const FILE_BUFFER: usize = 32 << 10;
/// zstd's level for documents: the fastest.
const LEVEL: i32 = 1;
/// The largest file that is read.
const FILE_MAX: u64 = 512 << 20;
const TABLE: &str = "table";
const CHANGES: &str = "changes";
const DOCUMENTS: &str = "documents";
const HIGHEST: &str = "highest";
/// Epoch, nonce, version, a counter of writes, and the sum of these.
const SLOT: usize = 4 * 8 + SUM;
/// Slots lie in blocks of their own, so that a write that is cut can't hit both.
const SLOT_APART: u16 = 4096;

/// What went wrong with a file of the state directory.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The system refuses.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What is there is not what was written.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: String,
        /// How.
        what: &'static str,
    },
}

/// A state directory. Each of its files is written by one at a time; nobody waits for who writes another one.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    highest: File,
    /// How often the highest token was written.
    writes: Mutex<u64>,
    changes: Changes,
}

/// A table with its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptTable {
    /// Which it is.
    pub at: Position,
    /// The generation of its documents' seal; 0: they had none, or it is not known.
    pub generation: u64,
    /// All records, compressed.
    pub body: Vec<u8>,
}

/// The documents as a store had them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeptDocuments {
    /// Which store it was.
    pub store: Arc<str>,
    /// Its revision.
    pub revision: u64,
    /// Texts by `KIND/NAMESPACE/NAME`, each with the revision at which it came to be so.
    pub texts: Texts,
}

/// Texts with their revisions, by what they are called.
type Texts = SharedMap<Arc<str>, (u64, Arc<str>)>;

#[derive(Serialize, Deserialize)]
struct TableHead {
    version: Version,
    chain: Digest,
    revision: u64,
    #[serde(default)]
    shrinks_from: u64,
    #[serde(default)]
    generation: u64,
}

#[derive(Serialize, Deserialize)]
struct DocumentsHead {
    store: Arc<str>,
    revision: u64,
}

impl Disk {
    /// Opens a directory, and makes it if it is not there. What can't be written to at all is told now.
    pub fn open(dir: &Path) -> Result<Self, DiskError> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |source| DiskError::Io { path, source }
        };
        fs::create_dir_all(dir).map_err(failed(dir))?;
        let path = dir.join(HIGHEST);
        let options =
            |file: &mut OpenOptions| file.read(true).write(true).create(true).mode(0o600).open(&path);
        let highest = options(&mut OpenOptions::new()).map_err(failed(&path))?;
        if highest.metadata().map_err(failed(&path))?.len() < 2 * u64::from(SLOT_APART) {
            // Written, not only lengthened: the blocks must be there when the disk is full.
            highest.write_all_at(&vec![0; 2 * usize::from(SLOT_APART)], 0).map_err(failed(&path))?;
            highest.sync_all().map_err(failed(&path))?;
        }
        let path = dir.join(CHANGES);
        let changes = Changes::open(&path).map_err(failed(&path))?;
        let disk = Self { dir: dir.to_owned(), highest, writes: Mutex::new(0), changes };
        let written = disk.slots().into_iter().flatten().map(|(writes, _)| writes).max().unwrap_or(0);
        Ok(Self { writes: Mutex::new(written), ..disk })
    }

    /// The highest table that was ever applied here; the lowest there is where nothing was.
    pub fn highest(&self) -> TableVersion {
        self.slots().into_iter().flatten().map(|(_, version)| version).max().unwrap_or_default()
    }

    /// Remembers the highest table. `durable`: it must outlive the machine's crash, not only the process's.
    pub fn keep_highest(&self, version: TableVersion, durable: bool) -> Result<(), DiskError> {
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        *writes += 1;
        let numbers = [version.token.epoch, version.token.nonce, version.version, *writes];
        let mut slot: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
        let sum = digest(&SHA256, &slot);
        slot.extend_from_slice(sum.as_ref());
        self.highest
            .write_all_at(&slot, *writes % 2 * u64::from(SLOT_APART))
            .and_then(|()| if durable { self.highest.sync_data() } else { Ok(()) })
            .map_err(|source| DiskError::Io { path: self.path(HIGHEST).display().to_string(), source })
    }

    /// The table that was kept; `None`: none was.
    pub fn table(&self) -> Result<Option<KeptTable>, DiskError> {
        let read = self.read::<TableHead>(TABLE)?;
        Ok(read.map(|(head, body)| {
            let TableHead { version, chain, revision, shrinks_from, generation } = head;
            let at = Position { version: version.into(), chain, revision, shrinks_from };
            KeptTable { at, generation, body }
        }))
    }

    /// Keeps a table.
    pub fn keep_table(&self, table: &KeptTable) -> Result<(), DiskError> {
        let KeptTable { at: Position { version, chain, revision, shrinks_from }, generation, .. } = *table;
        let head = TableHead { version: version.into(), chain, revision, shrinks_from, generation };
        self.write(TABLE, &head, |file| file.write_all(&table.body))
    }

    /// The table that was kept, with the changes that follow it.
    pub fn table_and_changes(&self) -> Result<Option<(KeptTable, Vec<KeptChange>)>, DiskError> {
        // Whoever keeps the table lets go of changes after it.
        let changes = self.changes.all().map_err(self.failed(CHANGES))?;
        let Some(table) = self.table()? else { return Ok(None) };
        let (mut at, mut follow) = (table.at, Vec::new());
        for change in changes {
            // One may be there twice, where tasks began anew.
            if change.at.version > at.version {
                if change.previous != at.chain {
                    break;
                }
                at = change.at;
                follow.push(change);
            }
        }
        Ok(Some((table, follow)))
    }

    /// What is missing of what was kept, where its table ends with that one: what was in force is known from another file.
    pub fn missing(&self, ends: Option<TableVersion>) -> Option<(&'static str, DiskError)> {
        let (highest, never) = (self.highest(), TableVersion::default());
        let (name, what) = match ends {
            None if highest > never => (TABLE, "it is gone"),
            Some(ends) if ends < highest => (CHANGES, "it lacks what was in force last"),
            Some(_) if highest == never => (HIGHEST, "nothing in it can be read"),
            _ => return None,
        };
        Some((name, self.damaged(name, what)))
    }

    /// Adds a change of the table in force. It outlives the process, and not the machine's crash.
    pub fn keep_change(&self, change: &KeptChange) -> Result<(), DiskError> {
        self.changes.append(change).map_err(self.failed(CHANGES))
    }

    /// Waits until the changes outlive the machine's crash.
    pub fn sync_changes(&self) -> Result<(), DiskError> {
        self.changes.sync().map_err(self.failed(CHANGES))
    }

    /// Lets go of the changes that the table on the disk has.
    pub fn forget_changes(&self, until: TableVersion) -> Result<(), DiskError> {
        self.changes.forget(until).map_err(self.failed(CHANGES))
    }

    /// The documents that were kept; `None`: none were.
    pub fn documents(&self) -> Result<Option<KeptDocuments>, DiskError> {
        let Some((head, body)) = self.read::<DocumentsHead>(DOCUMENTS)? else { return Ok(None) };
        let texts = texts(&body).map_err(|_| self.damaged(DOCUMENTS, "no documents"))?;
        Ok(Some(KeptDocuments { store: head.store, revision: head.revision, texts }))
    }

    /// Keeps documents.
    pub fn keep_documents(&self, documents: &KeptDocuments) -> Result<(), DiskError> {
        let head = DocumentsHead { store: Arc::clone(&documents.store), revision: documents.revision };
        self.write(DOCUMENTS, &head, |file| {
            let mut packed = zstd::Encoder::new(file, LEVEL)?;
            let mut texts = BufWriter::with_capacity(FILE_BUFFER, Paced(&mut packed));
            serde_json::to_writer(&mut texts, &documents.texts)?;
            texts.flush()?;
            drop(texts);
            packed.finish().map(drop)
        })
    }

    fn slots(&self) -> [Option<(u64, TableVersion)>; 2] {
        [0, u64::from(SLOT_APART)].map(|offset| {
            let mut slot = [0; SLOT];
            self.highest.read_exact_at(&mut slot, offset).ok()?;
            let (numbers, sum) = slot.split_at(SLOT - SUM);
            if digest(&SHA256, numbers).as_ref() != sum {
                return None;
            }
            let number = |index: usize| {
                let bytes = numbers[index * 8..][..8].try_into().expect("eight bytes");
                u64::from_le_bytes(bytes)
            };
            let token = Token { epoch: number(0), nonce: number(1) };
            Some((number(3), TableVersion { token, version: number(2) }))
        })
    }

    fn read<H: DeserializeOwned>(&self, name: &str) -> Result<Option<(H, Vec<u8>)>, DiskError> {
        let path = self.path(name);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DiskError::Io { path: path.display().to_string(), source }),
            Ok(_) => {}
        }
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| self.damaged(name, "it is no file of ours"))?;
        let (sum, rest) = rest.split_at_checked(SUM).ok_or_else(|| self.damaged(name, "it ends early"))?;
        if digest(&SHA256, rest).as_ref() != sum {
            return Err(self.damaged(name, "its checksum differs"));
        }
        let end = rest.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or_else(|| self.damaged(name, "it has no head"))?;
        let head = serde_json::from_slice(&rest[..end]);
        let head = head.map_err(|_| self.damaged(name, "its head can't be read"))?;
        Ok(Some((head, rest[end + 1..].to_vec())))
    }

    /// `body` writes what follows the head. It may be large: no more of it is in memory than a file's buffer holds.
    fn write(
        &self,
        name: &str,
        head: &impl Serialize,
        body: impl FnOnce(&mut BufWriter<Summed<&File>>) -> io::Result<()>,
    ) -> Result<(), DiskError> {
        let (path, temporary) = (self.path(name), self.path(&format!(".{name}.new")));
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(MAGIC)?;
            // The sum comes here, once it is known.
            file.write_all(&[0; SUM])?;
            let rest = Summed { inner: &file, sum: digest::Context::new(&SHA256) };
            let mut rest = BufWriter::with_capacity(FILE_BUFFER, rest);
            serde_json::to_writer(&mut rest, head)?;
            rest.write_all(b"\n")?;
            body(&mut rest)?;
            let rest = rest.into_inner().map_err(IntoInnerError::into_error)?;
            file.write_all_at(rest.sum.finish().as_ref(), MAGIC.len() as u64)?;
            file.sync_data()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| {
            // What a full disk took of it is given back.
            let _ = fs::remove_file(&temporary);
            DiskError::Io { path: path.display().to_string(), source }
        })
    }

    fn failed(&self, name: &str) -> impl FnOnce(io::Error) -> DiskError {
        let path = self.path(name).display().to_string();
        move |source| DiskError::Io { path, source }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn damaged(&self, name: &str, what: &'static str) -> DiskError {
        DiskError::Damaged { path: self.path(name).display().to_string(), what }
    }
}

/// Passes bytes on and sums them up.
struct Summed<W> {
    inner: W,
    sum: digest::Context,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Passes bytes on and gives way after each piece.
struct Paced<W>(W);

impl<W: Write> Write for Paced<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.0.write(bytes)?;
        give_way();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The texts of documents; agents before this one wrote them uncompressed.
fn texts(body: &[u8]) -> io::Result<Texts> {
    if body.first() == Some(&b'{') {
        return Ok(serde_json::from_slice(body)?);
    }
    let mut plain = Vec::new();
    zstd::Decoder::new(body)?.take(FILE_MAX).read_to_end(&mut plain)?;
    Ok(serde_json::from_slice(&plain)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::seal::first_digest;

    fn version(epoch: u64, number: u64) -> TableVersion {
        TableVersion { token: Token { epoch, nonce: 5 }, version: number }
    }

    fn table(number: u64) -> KeptTable {
        let at = Position {
            version: version(2, number),
            chain: first_digest(version(2, number), b"x"),
            revision: 4,
            shrinks_from: 3,
        };
        KeptTable { at, generation: number + 100, body: b"records\nwith lines".to_vec() }
    }

    #[test]
    fn what_is_kept_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Disk::open(dir.path()).expect("opens");
        assert_eq!(disk.highest(), TableVersion::default());
        assert_eq!((disk.table().expect("reads"), disk.documents().expect("reads")), (None, None));
        for number in 1..=5 {
            disk.keep_highest(version(2, number), number == 3).expect("writes");
            assert_eq!(Disk::open(dir.path()).expect("opens").highest(), version(2, number));
        }
        disk.keep_table(&table(1)).expect("writes");
        disk.keep_table(&table(2)).expect("writes");
        let texts = SharedMap::from([("Service/a/b".into(), (7, "kind: Service\n".into()))]);
        let documents = KeptDocuments { store: "s".into(), revision: 7, texts };
        disk.keep_documents(&documents).expect("writes");
        let again = Disk::open(dir.path()).expect("opens");
        assert_eq!(again.table().expect("reads"), Some(table(2)));
        assert_eq!(again.documents().expect("reads").as_ref(), Some(&documents));
        // As agents of before wrote them.
        let head = DocumentsHead { store: "s".into(), revision: 7 };
        let plain = again.write(DOCUMENTS, &head, |file| Ok(serde_json::to_writer(file, &documents.texts)?));
        plain.expect("writes");
        assert_eq!(again.documents().expect("reads"), Some(documents));
        assert_eq!(again.highest(), version(2, 5));
    }

    #[test]
    fn what_is_missing_is_known_by_what_was_in_force() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Disk::open(dir.path()).expect("opens");
        let missing =
            |ends: Option<u64>| disk.missing(ends.map(|ends| version(2, ends))).map(|(name, _)| name);
        assert_eq!((missing(None), missing(Some(5))), (None, Some(HIGHEST)));
        disk.keep_highest(version(2, 5), false).expect("writes");
        assert_eq!((missing(None), missing(Some(4)), missing(Some(5))), (Some(TABLE), Some(CHANGES), None));
        // It was killed between the one and the other.
        assert_eq!(missing(Some(6)), None);
    }

    #[test]
    fn what_is_damaged_is_told_and_never_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Disk::open(dir.path()).expect("opens");
        disk.keep_table(&table(1)).expect("writes");
        let path = dir.path().join(TABLE);
        let good = fs::read(&path).expect("reads");
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).expect("writes");
            assert!(matches!(disk.table(), Err(DiskError::Damaged { .. })), "cut at {length}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).expect("writes");
            assert!(matches!(disk.table(), Err(DiskError::Damaged { .. })), "altered at {at}");
        }
    }

    #[test]
    fn a_slot_that_was_cut_leaves_the_one_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Disk::open(dir.path()).expect("opens");
        disk.keep_highest(version(2, 1), true).expect("writes");
        disk.keep_highest(version(3, 1), true).expect("writes");
        let file = OpenOptions::new().write(true).open(dir.path().join(HIGHEST)).expect("opens");
        file.write_all_at(
            &[0xff; 20],
            *disk.writes.lock().expect("nobody panics with it") % 2 * u64::from(SLOT_APART),
        )
        .expect("writes");
        assert_eq!(Disk::open(dir.path()).expect("opens").highest(), version(2, 1));
    }
}
