//! What a figure depends on beside the programs: the machine, the kernel, the versions.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::contender::{Binaries, Contender};

/// Cores that may be used.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The machine and the versions of who takes part.
pub fn gather(contenders: &[Contender], binaries: &Binaries) -> Vec<(&'static str, String)> {
    let mut facts = machine();
    for contender in contenders.iter().filter(|contender| **contender != Contender::Direct) {
        let version = contender.program(binaries).ok().and_then(|program| version(*contender, &program));
        facts.push((contender.name(), version.unwrap_or_else(|| "unknown".to_owned())));
    }
    facts
}

/// The machine alone.
pub fn machine() -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    vec![
        ("processor", processor(&cpuinfo)),
        // All of them: whoever asks may be pinned to one by now.
        ("cores", online(&cpuinfo).to_string()),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
    ]
}

fn online(cpuinfo: &str) -> usize {
    cpuinfo.lines().filter(|line| line.starts_with("processor")).count()
}

fn processor(cpuinfo: &str) -> String {
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned())
}

/// The first line that a program says of its version, on either output.
fn version(contender: Contender, program: &Path) -> Option<String> {
    let flag = if matches!(contender, Contender::Nginx | Contender::Haproxy) { "-v" } else { "--version" };
    let output = Command::new(program).arg(flag).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&said);
    let line = text.lines().find(|line| !line.trim().is_empty())?;
    // Some say where they were started from.
    Some(line.rsplit_once("version: ").map_or(line, |(_, version)| version).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named() {
        assert_eq!(processor("processor\t: 0\nmodel name\t: Fast One\n"), "Fast One");
        assert_eq!(processor(""), "unknown");
        assert_eq!(online("processor\t: 0\nmodel name\t: A\n\nprocessor\t: 1\n"), 2);
    }
}
