//! What a test does where it lacks the privilege to run, or the kernel what it is about.

/// Whether this process may make namespaces and load programs.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether a test that needs root must be skipped. It says so, and where `CI` is set it panics instead: a test
/// that quietly did not run proves nothing.
pub fn unprivileged(test: &str) -> bool {
    if is_root() {
        return false;
    }
    assert!(std::env::var_os("CI").is_none(), "{test} was not run: it needs root");
    eprintln!("SKIPPED {test}: it needs root (network namespaces, cgroups)");
    true
}

/// Whether the kernel can accelerate nothing, so that a test of it must be skipped. It says so.
pub fn unaccelerated(test: &str) -> bool {
    let old = accelerates_nothing();
    if old {
        eprintln!("SKIPPED {test}: this kernel's FIONREAD does not see what is handed over");
    }
    old
}

/// Whether this is Linux 6.1 or older, on which acceleration stays off: FIONREAD says 0 there whatever was handed over.
pub fn accelerates_nothing() -> bool {
    kernel_version() <= (6, 1)
}

/// The running kernel's version, as far as its second number.
pub fn kernel_version() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
