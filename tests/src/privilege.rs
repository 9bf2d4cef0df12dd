//! What a test does where it lacks the privilege to run.

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
