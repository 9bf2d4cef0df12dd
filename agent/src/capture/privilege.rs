//! What this process may ask of the kernel, by its capabilities, and what it cannot do without.

use std::fs;

/// A capability, by its number in the kernel's `linux/capability.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Capability {
    /// `CAP_NET_ADMIN`: interfaces, rules, routes, nft, marks and transparent sockets.
    NetAdmin = 12,
    /// `CAP_SYS_ADMIN`: pods' network namespaces, and who else has programs; stands for the two below as well.
    SysAdmin = 21,
    /// `CAP_PERFMON`: without it the verifier forbids what our programs do with pointers.
    Perfmon = 38,
    /// `CAP_BPF`: maps and programs.
    Bpf = 39,
}

/// The capabilities in effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Privileges(u64);

impl Privileges {
    /// Those of this process. Where they cannot be read it is taken to have all: what it lacks, the kernel will say.
    pub fn own() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self::read(&status).unwrap_or(Self(u64::MAX))
    }

    /// Reads them from the text of a process's `status`.
    fn read(status: &str) -> Option<Self> {
        let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(digits.trim(), 16).ok().map(Self)
    }

    fn has(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u32) != 0
    }

    /// Whether programs can be loaded.
    pub fn loads_programs(self) -> bool {
        self.has(Capability::SysAdmin) || (self.has(Capability::Bpf) && self.has(Capability::Perfmon))
    }

    /// Whether other network namespaces can be entered, and all programs of the kernel be looked at.
    pub fn sees_everything(self) -> bool {
        self.has(Capability::SysAdmin)
    }

    /// Without which of them there is no capture; empty: it has what it takes.
    pub fn missing(self) -> Vec<&'static str> {
        let needed = [
            (self.has(Capability::NetAdmin), "CAP_NET_ADMIN"),
            (self.has(Capability::Bpf) || self.has(Capability::SysAdmin), "CAP_BPF"),
            (self.has(Capability::Perfmon) || self.has(Capability::SysAdmin), "CAP_PERFMON"),
        ];
        needed.into_iter().filter(|(has, _)| !has).map(|(_, name)| name).collect()
    }

    /// Without which of them there is no acceleration: it looks for pods' namespaces, and tries itself out in one of its own.
    pub fn missing_for_acceleration(self) -> Option<String> {
        let needed = [(Capability::NetAdmin, "CAP_NET_ADMIN"), (Capability::SysAdmin, "CAP_SYS_ADMIN")];
        let missing = needed.into_iter().filter(|(capability, _)| !self.has(*capability));
        let names = missing.map(|(_, name)| name).collect::<Vec<_>>();
        (!names.is_empty()).then(|| format!("this process lacks {}", names.join(" and ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(capabilities: &[Capability]) -> Privileges {
        Privileges(capabilities.iter().fold(0, |all, one| all | (1 << *one as u32)))
    }

    #[test]
    fn they_are_read_as_the_kernel_writes_them() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(Privileges::read(text), expected.map(Privileges), "{text:?}");
        };
        check("Name:\tx\nCapPrm:\t0\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n", Some(0x1ff_ffff_ffff));
        check("CapEff:\t0000000000000000\n", Some(0));
        check("CapEff:\tnothing\n", None);
        check("CapPrm:\t1\n", None);
        check("", None);
    }

    #[test]
    fn what_is_missing_is_named() {
        use Capability::{Bpf, NetAdmin, Perfmon, SysAdmin};
        for (has, missing) in [
            (&[][..], &["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"][..]),
            (&[NetAdmin], &["CAP_BPF", "CAP_PERFMON"]),
            (&[NetAdmin, Bpf], &["CAP_PERFMON"]),
            (&[NetAdmin, Bpf, Perfmon], &[]),
            (&[NetAdmin, SysAdmin], &[]),
            (&[SysAdmin], &["CAP_NET_ADMIN"]),
        ] {
            assert_eq!(of(has).missing(), missing, "with {has:?}");
            let loads = !missing.iter().any(|name| name.ends_with("BPF") || name.ends_with("PERFMON"));
            assert_eq!(of(has).loads_programs(), loads, "with {has:?}");
        }
        let without = of(&[NetAdmin, Bpf, Perfmon]).missing_for_acceleration();
        assert_eq!(without.as_deref(), Some("this process lacks CAP_SYS_ADMIN"));
        let without = of(&[]).missing_for_acceleration().unwrap();
        assert!(without.contains("CAP_NET_ADMIN and CAP_SYS_ADMIN"), "{without}");
        assert_eq!(of(&[NetAdmin, SysAdmin]).missing_for_acceleration(), None);
    }
}
