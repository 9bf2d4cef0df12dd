//! Waiting on conditions: the one place where the lab sleeps, between two looks at a condition.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::emulated::patience;

const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long anything in the lab may take to become ready, on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds; past `limit` the error names `what` was waited for.
pub fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_until(what, limit, || condition().then_some(()))
}

/// Waits until `look` finds something and returns it.
pub fn wait_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let limit = patience(limit);
    let end = Instant::now() + limit;
    loop {
        // The look comes before the clock, so that a machine that stalls for the whole limit still gets one.
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= end {
            bail!("waited {:.1} s in vain: {what}", limit.as_secs_f64());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_late_is_found_and_what_never_comes_is_named() {
        let mut looks = 0;
        let found = wait_until("third look", Duration::from_secs(5), || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(found.expect("the third look finds it"), 3);
        let error = wait_for("the end of days", Duration::ZERO, || false).expect_err("it never comes");
        assert!(error.to_string().contains("the end of days"), "{error}");
    }
}
