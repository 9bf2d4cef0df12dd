//! The strangler fig: callers dial the monolith throughout, while its paths move to new services under load.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::Lab;
use lab::load::{Load, Plan, Report};

use super::ledger::{Ledger, headline, millis};
use super::site::Site;
use super::traffic::shares;

/// The node on which documents are applied.
const AT: &str = "node3";
/// The document of the last step.
const LAST: &str = "step-5.yaml";
/// The paths that callers ask for.
const PATHS: &[&str] = &["/api/products/7", "/api/orders/7", "/api/users/7"];
const RATE: u32 = 200;
/// An edit applies in less than this.
const APPLY_LIMIT: Duration = Duration::from_secs(1);
/// Requests between two steps: 2 s of load, of which the first may pass before the step applies.
const REQUESTS_PER_STEP: usize = 400;
const PATIENCE: Duration = Duration::from_secs(30);

/// A step: its document, and which service's pods answer each of [`PATHS`] from then on.
struct Step {
    what: &'static str,
    file: &'static str,
    answered_by: [&'static str; 3],
}

const STEPS: &[Step] = &[
    Step { what: "step 1: all to the monolith", file: "step-1.yaml", answered_by: ["monolith"; 3] },
    Step {
        what: "step 3: products move",
        file: "step-3.yaml",
        answered_by: ["product", "monolith", "monolith"],
    },
    Step { what: "step 4: orders move", file: "step-4.yaml", answered_by: ["product", "order", "monolith"] },
    Step {
        what: "back to step 3: orders return",
        file: "step-3.yaml",
        answered_by: ["product", "monolith", "monolith"],
    },
    Step { what: "step 4 again", file: "step-4.yaml", answered_by: ["product", "order", "monolith"] },
    Step { what: "step 5: the monolith is idle", file: LAST, answered_by: ["product", "order", "user"] },
];

/// Flips every step under load and checks who answers, how soon, and that nothing failed.
pub fn show(site: &Site<'_>, examples: &Path, ledger: &mut Ledger) -> Result<()> {
    headline("Strangler fig: sluice apply changes the document under 200 requests/s to http://monolith:8080");
    let load = start_load(site.lab)?;
    load.wait_requests(REQUESTS_PER_STEP / 2, PATIENCE)?;
    let mut flips = Vec::new();
    for step in STEPS {
        flips.push(Instant::now());
        site.apply(AT, &examples.join("strangler").join(step.file))?;
        load.wait_requests(REQUESTS_PER_STEP, PATIENCE)?;
    }
    let end = Instant::now();
    show_broken_edit(site, examples, &load, ledger)?;
    let report = load.stop()?;
    for (index, step) in STEPS.iter().enumerate() {
        let until = flips.get(index + 1).copied().unwrap_or(end);
        check_step(step, &report, flips[index]..until, ledger);
    }
    ledger.none_failed(&report);
    Ok(())
}

fn start_load(lab: &Lab) -> Result<Load> {
    let plan = Plan {
        address: SocketAddr::new(lab.cluster_ip("monolith")?.v4.into(), 8080),
        host: "monolith:8080".to_owned(),
        paths: PATHS.iter().map(|path| (*path).to_owned()).collect(),
        rate: RATE,
    };
    Load::start(&lab.pod("client")?.netns(), &plan)
}

/// Who answered the requests that were sent later than the apply limit after a step, and when the last answer of
/// anyone else was asked for.
fn check_step(step: &Step, report: &Report, window: std::ops::Range<Instant>, ledger: &mut Ledger) {
    let mut pods: BTreeMap<&str, usize> = BTreeMap::new();
    let mut wrong_late = 0;
    let mut last_wrong = window.start;
    for sample in report.samples.iter().filter(|sample| window.contains(&sample.sent)) {
        let Some(index) = PATHS.iter().position(|path| *path == sample.path) else { continue };
        let Ok(pod) = &sample.outcome else { continue };
        if pod.starts_with(step.answered_by[index]) {
            *pods.entry(pod).or_default() += 1;
            continue;
        }
        last_wrong = last_wrong.max(sample.sent);
        wrong_late += usize::from(sample.sent > window.start + APPLY_LIMIT);
    }
    let applied = last_wrong.duration_since(window.start);
    let expected = format!("{} within {} s", step.answered_by.join(", "), APPLY_LIMIT.as_secs());
    let seen = if wrong_late == 0 {
        format!("{} (after {})", shares(pods), millis(applied))
    } else {
        format!("{wrong_late} answers of others after {} s", APPLY_LIMIT.as_secs())
    };
    ledger.check(step.what, expected, seen, wrong_late == 0);
}

/// An edit that is wrong is refused with its file and line, and changes nothing.
fn show_broken_edit(site: &Site<'_>, examples: &Path, load: &Load, ledger: &mut Ledger) -> Result<()> {
    let source = examples.join("strangler").join(LAST);
    let good = fs::read_to_string(&source).with_context(|| format!("reading {}", source.display()))?;
    let broken = good.replace("prefix: /api/products/", "prefixx: /api/products/");
    let line = 1 + broken.lines().take_while(|line| !line.contains("prefixx")).count();
    let path = site.lab.directory().join("monolith.yaml");
    fs::write(&path, &broken).with_context(|| format!("writing {}", path.display()))?;
    let said = match site.apply(AT, &path) {
        Ok(()) => "it was taken".to_owned(),
        Err(error) => error.to_string(),
    };
    let begin = Instant::now();
    load.wait_requests(REQUESTS_PER_STEP, PATIENCE)?;
    let pods = load.so_far().pods(PATHS[0], begin);
    let unchanged = !pods.is_empty() && pods.keys().all(|pod| pod.starts_with("product"));
    let seen = shares(pods.iter().map(|(pod, count)| (pod.as_str(), *count)));
    ledger.check("a broken edit changes nothing", "product pods answer on", seen, unchanged);
    // The directory before the file's name and the words after its place say nothing here.
    let expected = format!("monolith.yaml:{line}");
    let holds = said.contains(&format!("{expected}:")) && said.contains("nothing was changed");
    let seen = if holds { expected.clone() } else { said };
    ledger.check("sluice apply names its file and line", expected, seen, holds);
    Ok(())
}
