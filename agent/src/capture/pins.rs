//! What outlives the agent in the kernel: maps and links as files of a BPF file system.
//!
//! One directory per network namespace holds `links/` and one directory of maps per layout. A new agent opens the maps
//! that an earlier one left, puts its own programs into the links that are there, each in one step, and then lets go of
//! what it did not take over. Where maps have another layout they are made anew, and the old ones go with the last link.
//!
//! A feature that is pinned names its maps in [`PINNED`](super::programs::PINNED) where their contents shall be carried
//! on, fills what it has made anew, and then gives each link a name: [`Pins::take_over`] where there is one, else attach
//! and [`Pins::link`]. All of that comes before [`Pins::sweep`].

mod kept;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use aya::programs::links::FdLink;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{CaptureError, kernel_call};
use kept::Kept;

/// Where a machine's BPF file system usually is.
const USUAL_MOUNT: &str = "/sys/fs/bpf";
/// Our directory there.
const USUAL_DIRECTORY: &str = "/sys/fs/bpf/sluice";

/// Where the operator wants pins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Bpffs {
    /// In the usual place, where there is a BPF file system.
    #[default]
    Usual,
    /// Below this directory, which must be on one.
    At(PathBuf),
    /// Nowhere.
    Off,
}

impl FromStr for Bpffs {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "off" => Self::Off,
            path => Self::At(path.into()),
        })
    }
}

impl Bpffs {
    /// Why nothing is pinned, where nothing shall be.
    pub const OFF: &'static str = "--bpffs off";
    /// Why nothing is pinned, where nothing is asked for.
    pub const NOT_MOUNTED: &'static str = "no BPF file system at /sys/fs/bpf";

    /// The directory, made where it is missing; `None` with the reason where nothing is pinned.
    fn directory(&self) -> Result<Result<PathBuf, &'static str>, CaptureError> {
        match self {
            Self::Off => Ok(Err(Self::OFF)),
            Self::Usual if !is_bpffs(Path::new(USUAL_MOUNT)) => Ok(Err(Self::NOT_MOUNTED)),
            Self::Usual => made(Path::new(USUAL_DIRECTORY)).map(Ok),
            Self::At(path) if path.ancestors().find(|path| path.exists()).is_some_and(is_bpffs) => {
                made(path).map(Ok)
            }
            Self::At(path) => {
                let reason = "not on a BPF file system; `mount -t bpf bpf DIRECTORY` makes one".to_owned();
                Err(CaptureError::Bpffs { path: path.clone(), reason })
            }
        }
    }
}

/// The pins of one network namespace.
#[derive(Debug)]
pub struct Pins {
    place: Result<Place, &'static str>,
}

#[derive(Debug)]
struct Place {
    /// What the operator named; stays.
    base: PathBuf,
    /// This namespace's directory.
    root: PathBuf,
    maps: PathBuf,
    links: PathBuf,
    /// Whether the maps are those of an earlier agent.
    adopted: bool,
    /// Links that this agent has.
    taken: BTreeSet<String>,
    /// What this agent has pinned.
    kept: Kept,
}

/// What a stop leaves to the next agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// The links whose names begin so.
    pub links: &'static str,
    /// The maps of these names.
    pub maps: &'static [&'static str],
}

/// A program's place on a hook. Dropped, a pinned one stays and one that is not pinned goes.
#[derive(Debug)]
pub struct Link {
    /// Its pin.
    path: Option<PathBuf>,
    #[expect(dead_code, reason = "holds the link, so that it stays if somebody removes its pin")]
    held: Held,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held, never used")]
enum Held {
    Unpinned(FdLink),
    Pinned(Arc<OwnedFd>),
}

impl Link {
    /// Takes the program off its hook.
    pub fn detach(self) {
        if let Some(path) = &self.path
            && let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(path = %path.display(), %error, "a link could not be unpinned; its program stays");
        }
    }
}

impl Pins {
    /// Opens or makes the directories of the caller's network namespace, for maps of this layout.
    pub fn open(bpffs: &Bpffs, layout: &str) -> Result<Self, CaptureError> {
        let base = match bpffs.directory()? {
            Ok(base) => base,
            Err(reason) => return Ok(Self { place: Err(reason) }),
        };
        let cookie = kernel_call::netns_cookie().map_err(|source| CaptureError::Listener {
            doing: "asking for the namespace's cookie",
            source,
        })?;
        let root = base.join(format!("netns-{cookie}"));
        let (maps, links) = (root.join(format!("maps-{layout}")), root.join("links"));
        let adopted = maps.is_dir();
        for directory in [&maps, &links] {
            made(directory)?;
        }
        Ok(Self {
            place: Ok(Place {
                base,
                root,
                maps,
                links,
                adopted,
                taken: BTreeSet::new(),
                kept: Kept::default(),
            }),
        })
    }

    /// The namespace's directory, or why nothing is pinned.
    pub fn directory(&self) -> Result<&Path, &'static str> {
        self.place.as_ref().map(|place| place.root.as_path()).map_err(|reason| *reason)
    }

    /// Whether maps of an earlier agent are carried on.
    pub fn adopted(&self) -> bool {
        self.place.as_ref().is_ok_and(|place| place.adopted)
    }

    /// Where the map of this name is, or shall be, pinned.
    pub fn map(&self, name: &str) -> Option<PathBuf> {
        self.place.as_ref().ok().map(|place| place.maps.join(name))
    }

    /// Puts a program into the link that an earlier agent left under this name, in one step. `None`: there is none that
    /// takes it (its interface is gone, or it is of another kind), so the program has to be attached.
    pub fn take_over(&mut self, name: &str, program: BorrowedFd<'_>) -> Option<Link> {
        let place = self.place.as_mut().ok()?;
        let path = place.links.join(name);
        let link = kernel_call::pinned(&path).ok()?;
        if let Err(error) = kernel_call::replace_program(&link, program) {
            tracing::debug!(name, %error, "an earlier agent's link is of no use");
            return None;
        }
        Some(place.keep(name, path, link))
    }

    /// Keeps a link that has just been made under this name. One of that name that could not be taken over goes now, when
    /// the new one is in place.
    pub fn link(&mut self, name: &str, link: FdLink) -> Result<Link, CaptureError> {
        let Ok(place) = &mut self.place else { return Ok(Link { path: None, held: Held::Unpinned(link) }) };
        let path = place.links.join(name);
        let failed = |reason: String| CaptureError::Bpffs { path: path.clone(), reason };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error.to_string())),
            _ => {}
        }
        // Held until there is a descriptor of our own.
        let _pinned = link.pin(&path).map_err(|error| failed(innermost(&error)))?;
        let link = kernel_call::pinned(&path).map_err(|error| failed(error.to_string()))?;
        Ok(place.keep(name, path, link))
    }

    /// Remembers the maps that have just been pinned, for [`Pins::restore`].
    pub fn keep_maps(&mut self, names: &[&str]) -> Result<(), CaptureError> {
        let Ok(place) = &mut self.place else { return Ok(()) };
        names.iter().try_for_each(|name| {
            let path = place.maps.join(name);
            let failed =
                |error: io::Error| CaptureError::Bpffs { path: path.clone(), reason: error.to_string() };
            place.kept.map(path.clone()).map_err(failed)
        })
    }

    /// Pins again what somebody has unpinned while the agent runs. Answers how much that was.
    pub fn restore(&mut self) -> Result<usize, CaptureError> {
        self.place.as_mut().map_or(Ok(0), |place| place.kept.restore(&place.base))
    }

    /// Spares a link of this name from [`Pins::sweep`]: this agent could not put its program into its place, and what an
    /// earlier one has there is better than nothing.
    pub fn spare(&mut self, name: String) {
        if let Ok(place) = &mut self.place {
            place.taken.insert(name);
        }
    }

    /// Lets go of what an earlier agent left and this one did not take over: links, and maps of other layouts.
    pub fn sweep(&self) {
        let Ok(place) = &self.place else { return };
        for name in entries(&place.links).filter(|name| !place.taken.contains(name)) {
            unpin(&place.links.join(name));
        }
        for layout in entries(&place.root).map(|name| place.root.join(name)) {
            if layout != place.maps && layout != place.links {
                clear(&layout);
            }
        }
    }

    /// Whether a link whose name begins so is pinned.
    pub fn has_link(&self, begins: &str) -> bool {
        self.place.as_ref().is_ok_and(|place| entries(&place.links).any(|name| name.starts_with(begins)))
    }

    /// Lets go of everything but what is left to the next agent. Answers what could not be removed.
    pub fn remove(self, but: Option<Left>) -> Result<(), CaptureError> {
        match (self.place, but) {
            (Ok(place), Some(but)) => {
                let unwanted = |directory: &Path, keeps: &dyn Fn(&str) -> bool| {
                    let names = entries(directory).filter(|name| !keeps(name));
                    names.for_each(|name| unpin(&directory.join(name)));
                };
                unwanted(&place.links, &|name| name.starts_with(but.links));
                unwanted(&place.maps, &|name| but.maps.contains(&name));
                Ok(())
            }
            (Ok(place), None) => {
                clear(&place.root);
                if place.base == Path::new(USUAL_DIRECTORY) {
                    // Agents of other namespaces may have theirs there.
                    let _ = fs::remove_dir(&place.base);
                }
                gone(&place.root)
            }
            (Err(_), _) => Ok(()),
        }
    }

    /// Undoes [`Pins::open`] where the programs could not be loaded; what an earlier agent left stays.
    pub fn abandon(self) {
        if let Ok(place) = self.place {
            if !place.adopted {
                clear(&place.maps);
            }
            // Each goes only where it is empty.
            for directory in [&place.links, &place.root] {
                let _ = fs::remove_dir(directory);
            }
        }
    }
}

impl Place {
    /// A link of this agent, under the name that it has in the directory of links.
    fn keep(&mut self, name: &str, path: PathBuf, link: OwnedFd) -> Link {
        let link = Arc::new(link);
        self.kept.link(path.clone(), &link);
        self.taken.insert(name.to_owned());
        Link { path: Some(path), held: Held::Pinned(link) }
    }
}

/// What is pinned for the caller's namespace, as `cleanup` removes it: the pins' names.
pub fn left_behind(bpffs: &Bpffs) -> Result<Option<(Pins, Vec<String>)>, CaptureError> {
    let base = match bpffs {
        Bpffs::Off => return Ok(None),
        Bpffs::Usual => PathBuf::from(USUAL_DIRECTORY),
        Bpffs::At(path) => path.clone(),
    };
    let cookie = kernel_call::netns_cookie()
        .map_err(|source| CaptureError::Listener { doing: "asking for the namespace's cookie", source })?;
    let root = base.join(format!("netns-{cookie}"));
    if !root.is_dir() {
        return Ok(None);
    }
    let mut names = Vec::new();
    for directory in entries(&root) {
        names.extend(entries(&root.join(&directory)).map(|name| format!("{directory}/{name}")));
    }
    names.sort();
    let place = Place {
        base,
        maps: root.join("maps"),
        links: root.join("links"),
        root,
        adopted: true,
        taken: BTreeSet::new(),
        kept: Kept::default(),
    };
    Ok(Some((Pins { place: Ok(place) }, names)))
}

/// Whether a path is on a BPF file system.
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

fn made(path: &Path) -> Result<PathBuf, CaptureError> {
    match fs::create_dir_all(path) {
        Ok(()) => Ok(path.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(CaptureError::Privilege),
        Err(error) => Err(CaptureError::Bpffs { path: path.to_owned(), reason: error.to_string() }),
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let listed = fs::read_dir(directory).into_iter().flatten().flatten();
    listed.filter_map(|entry| entry.file_name().into_string().ok())
}

fn unpin(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "an earlier agent's pin could not be removed");
    }
}

/// Removes a directory of pins with the directories in it. A BPF file system has no links to leave it by.
fn clear(directory: &Path) {
    for path in entries(directory).map(|name| directory.join(name)) {
        if path.is_dir() { clear(&path) } else { unpin(&path) }
    }
    let _ = fs::remove_dir(directory);
}

fn gone(path: &Path) -> Result<(), CaptureError> {
    if path.exists() {
        let reason = "could not be removed".to_owned();
        return Err(CaptureError::Bpffs { path: path.to_owned(), reason });
    }
    Ok(())
}

pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_elsewhere_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let at = Bpffs::At(directory.path().to_owned());
        let error = Pins::open(&at, "1").unwrap_err().to_string();
        assert!(error.contains("not on a BPF file system") && error.contains("mount -t bpf"), "{error}");
    }

    #[test]
    fn nothing_is_pinned_where_that_is_off() {
        assert_eq!("off".parse(), Ok(Bpffs::Off));
        assert_eq!("/x/off".parse(), Ok(Bpffs::At("/x/off".into())));
        let mut pins = Pins::open(&Bpffs::Off, "1").unwrap();
        assert_eq!(pins.directory(), Err("--bpffs off"));
        assert_eq!(pins.map("COUNTERS"), None);
        let stdin = std::io::stdin();
        assert!(pins.take_over("x", std::os::fd::AsFd::as_fd(&stdin)).is_none());
        pins.remove(None).unwrap();
    }

    #[test]
    fn clearing_takes_every_file_below() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("netns-1");
        for path in ["links/tc-1", "maps-1/A", "maps-2/B"] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        clear(&root);
        gone(&root).unwrap();
        clear(&root);
    }
}
