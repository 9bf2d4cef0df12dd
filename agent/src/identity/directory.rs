//! A node's directory as it is on disk now: read again when its files change, kept when what they hold is wrong.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;

use super::{IdentityError, NodeIdentity, TrustBundle, Untrusted, files};

/// Who the node is and whom it trusts, read at one time.
#[derive(Debug)]
pub struct NodeTrust {
    /// What the node signs with.
    pub identity: NodeIdentity,
    /// Whose signatures it believes.
    pub bundle: TrustBundle,
}

impl NodeTrust {
    /// Why nobody would believe this node's signature now.
    pub fn check(&self, now: SystemTime) -> Result<(), Untrusted> {
        self.identity.check(now)?;
        if self.identity.is_revoked(&self.bundle) { Err(Untrusted::Revoked) } else { Ok(()) }
    }

    fn read(directory: &Path) -> Result<Self, IdentityError> {
        let bundle = TrustBundle::load(&directory.join(files::BUNDLE))?;
        Ok(Self { identity: NodeIdentity::read(directory)?, bundle })
    }
}

/// What came of looking at the files again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// They are the ones that were read.
    Unchanged,
    /// They are others, and are used from now on.
    Changed,
}

/// A node's directory. Each caller takes [`NodeDirectory::current`] when it needs it and keeps it for one use.
#[derive(Debug)]
pub struct NodeDirectory {
    directory: PathBuf,
    current: ArcSwap<NodeTrust>,
    /// What the files were when they were last read and good; held while they are read, so that one thread does.
    seen: Mutex<Stamps>,
}

impl NodeDirectory {
    /// Reads a node's directory for the first time. All but the time must be right: a node whose certificate has
    /// expired, or whose clock is wrong, still believes others. [`NodeIdentity::check`] says whether it can sign.
    pub fn open(directory: &Path) -> Result<Self, IdentityError> {
        // What changes after the look is seen at the next one.
        let seen = stamps(directory)?;
        let trust = NodeTrust::read(directory)?;
        let (identity, bundle) = (&trust.identity, &trust.bundle);
        match identity.prove(directory, bundle, identity.not_after()) {
            // Nobody believes such a node, and it believes others as ever.
            Err(IdentityError::NotTrusted {
                reason: Untrusted::RootNotValid | Untrusted::Revoked, ..
            }) => {}
            proven => proven?,
        }
        let current = ArcSwap::from_pointee(trust);
        Ok(Self { directory: directory.to_owned(), current, seen: Mutex::new(seen) })
    }

    /// What was last read and good.
    pub fn current(&self) -> Arc<NodeTrust> {
        self.current.load_full()
    }

    /// Reads the files again if they are not those that were read: four calls of `stat` where they are. What they
    /// hold must be believed at `now`. On an error everything stays as it was, and the next call tries again; so a key that is replaced a moment before its
    /// certificate does no harm.
    pub fn reload(&self, now: SystemTime) -> Result<Reload, IdentityError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let found = stamps(&self.directory)?;
        if *seen == found {
            return Ok(Reload::Unchanged);
        }
        let fresh = NodeTrust::read(&self.directory)?;
        // Whose this node's agent speaks was settled at its start.
        let (theirs, own) = (fresh.identity.name().shared(), self.current.load().identity.name().shared());
        if theirs != own {
            let file = self.directory.join(files::NODE);
            return Err(IdentityError::OtherNode {
                file,
                found: theirs.to_string(),
                wanted: own.to_string(),
            });
        }
        match fresh.identity.prove(&self.directory, &fresh.bundle, now) {
            // What else was revoked with it has to be known here all the more.
            Err(IdentityError::NotTrusted { reason: Untrusted::Revoked, .. }) => {}
            proven => proven?,
        }
        if !fresh.bundle.remembers(&self.current.load().bundle) {
            return Err(IdentityError::ListWentBack { file: self.directory.join(files::REVOKED) });
        }
        self.current.store(Arc::new(fresh));
        *seen = found;
        Ok(Reload::Changed)
    }
}

/// What tells one content of a file from the next: files are replaced by others, or written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What the files of a directory are: three that have to be there, and the list of revoked certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamps {
    files: [Stamp; 3],
    revoked: Option<Stamp>,
}

fn stamps(directory: &Path) -> Result<Stamps, IdentityError> {
    stamps_of(directory, [files::BUNDLE, files::NODE, files::NODE_KEY])
}

/// What three files are now, and the list beside them.
pub(super) fn stamps_of(directory: &Path, names: [&str; 3]) -> Result<Stamps, IdentityError> {
    let stamp = |name: &str| {
        let file = directory.join(name);
        let found = fs::metadata(&file).map_err(|source| IdentityError::Read { file, source })?;
        Ok::<_, IdentityError>(Stamp {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    };
    let revoked = match stamp(files::REVOKED) {
        Err(IdentityError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        found => Some(found?),
    };
    let [first, second, third] = names.map(stamp);
    Ok(Stamps { files: [first?, second?, third?], revoked })
}
