//! What a lab leaves on disk: `/run/sluice-lab/ID/`, from which it can be opened again and taken down.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::netns::{self, Netns};
use crate::topology::{Topology, check_id};

const ROOT: &str = "/run/sluice-lab";
const RECORD: &str = "lab.json";

/// A lab as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it consists of.
    pub topology: Topology,
    /// The process that it belongs to; none for one that stays until it is taken down.
    pub owner: Option<Owner>,
}

/// A process, told apart from later ones with the same number by when it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its number.
    pub pid: u32,
    /// Its start, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub started: u64,
}

impl Owner {
    /// This process.
    pub fn this_process() -> Result<Self> {
        let pid = std::process::id();
        Ok(Self { pid, started: start_of(pid).context("reading /proc/self/stat")? })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        start_of(self.pid) == Some(self.started)
    }
}

/// The names that a lab's id stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    id: String,
}

impl Names {
    /// The names of the lab `id`.
    pub fn of(id: &str) -> Result<Self> {
        check_id(id)?;
        Ok(Self { id: id.to_owned() })
    }

    /// The id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What every namespace of the lab begins with.
    pub fn prefix(&self) -> String {
        format!("sluice-{}-", self.id)
    }

    /// The namespace of a node, a pod or the underlay.
    pub fn netns(&self, name: &str) -> Netns {
        Netns::named(format!("{}{name}", self.prefix()))
    }

    /// The lab's directory.
    pub fn directory(&self) -> PathBuf {
        Path::new(ROOT).join(&self.id)
    }

    /// Writes the record. It comes before anything is made, so that whatever is made can be found again.
    pub fn write(&self, record: &Record) -> Result<()> {
        let directory = self.directory();
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let path = directory.join(RECORD);
        let text = serde_json::to_string_pretty(record).context("a record is plain data")?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Reads the record.
    pub fn read(&self) -> Result<Record> {
        let path = self.directory().join(RECORD);
        let text = fs::read_to_string(&path).with_context(|| format!("there is no lab '{}'", self.id))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }
}

/// The ids of all labs on this machine, those included of which only namespaces are left.
pub fn all_ids() -> Result<Vec<String>> {
    let mut ids = Vec::new();
    match fs::read_dir(ROOT) {
        Ok(entries) => ids.extend(entries.flatten().filter_map(|e| e.file_name().into_string().ok())),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).context(format!("reading {ROOT}")),
    }
    for netns in netns::with_prefix("sluice-")? {
        ids.extend(netns.name().split('-').nth(1).map(str::to_owned));
    }
    ids.retain(|id| check_id(id).is_ok());
    ids.sort();
    ids.dedup();
    Ok(ids)
}

fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the command's name, may itself hold spaces and brackets.
    stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_told_from_a_later_process_of_its_number() {
        let owner = Owner::this_process().expect("this process is there");
        assert!(owner.is_alive());
        assert!(!Owner { started: owner.started + 1, ..owner }.is_alive());
        assert!(!Owner { pid: u32::MAX, started: 0 }.is_alive());
    }

    #[test]
    fn names_carry_the_id() {
        let names = Names::of("demo").expect("a good id");
        assert_eq!(names.netns("node1").name(), "sluice-demo-node1");
        assert_eq!(names.directory(), Path::new("/run/sluice-lab/demo"));
        Names::of("../etc").expect_err("an id is no path");
    }
}
