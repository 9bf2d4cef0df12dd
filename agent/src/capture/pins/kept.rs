//! What is pinned, by descriptors of its own: a pin that somebody removes can be put back.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use super::{is_bpffs, made};
use crate::capture::{CaptureError, kernel_call};

/// The pins of one agent.
#[derive(Debug, Default)]
pub(super) struct Kept {
    maps: BTreeMap<PathBuf, OwnedFd>,
    /// A link lives as long as its owner has it: one that is let go must not stay because of this.
    links: BTreeMap<PathBuf, Weak<OwnedFd>>,
}

impl Kept {
    /// Remembers the map that is pinned here.
    pub(super) fn map(&mut self, path: PathBuf) -> io::Result<()> {
        let map = kernel_call::pinned(&path)?;
        self.maps.insert(path, map);
        Ok(())
    }

    /// Remembers a link that is pinned here.
    pub(super) fn link(&mut self, path: PathBuf, link: &Arc<OwnedFd>) {
        self.links.insert(path, Arc::downgrade(link));
    }

    /// Pins again what is no longer pinned. Answers how much that was.
    pub(super) fn restore(&mut self, base: &Path) -> Result<usize, CaptureError> {
        self.links.retain(|_, link| link.strong_count() > 0);
        let links = self.links.iter().filter_map(|(path, link)| Some((path, link.upgrade()?)));
        let mut restored = 0;
        // Maps first: links without their maps would be of no use to the next agent.
        for (path, map) in self.maps.iter().filter(|(path, _)| !path.exists()) {
            pin(base, path, map)?;
            restored += 1;
        }
        for (path, link) in links.filter(|(path, _)| !path.exists()) {
            pin(base, path, &link)?;
            restored += 1;
        }
        Ok(restored)
    }
}

fn pin(base: &Path, path: &Path, held: &OwnedFd) -> Result<(), CaptureError> {
    let failed = |reason: String| CaptureError::Bpffs { path: path.to_owned(), reason };
    // Where it was unmounted, a directory would be made elsewhere.
    if !base.ancestors().find(|path| path.exists()).is_some_and(is_bpffs) {
        return Err(failed("the BPF file system is gone".to_owned()));
    }
    made(path.parent().unwrap_or(base))?;
    kernel_call::pin(held, path).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_held_and_missing_is_pinned_again() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path();
        let file = || Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
        let (there, missing, let_go) = (file(), file(), file());
        std::fs::write(base.join("there"), "").unwrap();
        let mut kept = Kept::default();
        kept.link(base.join("there"), &there);
        kept.link(base.join("let-go"), &let_go);
        drop(let_go);
        assert_eq!(kept.restore(base).unwrap(), 0);
        kept.link(base.join("netns-1/missing"), &missing);
        let error = kept.restore(base).unwrap_err().to_string();
        assert!(error.contains("missing") && error.contains("the BPF file system is gone"), "{error}");
        assert!(!base.join("netns-1").exists(), "a directory was made elsewhere");
        assert!(kept.map(base.join("there")).is_err(), "a plain file is no pinned map");
    }
}
