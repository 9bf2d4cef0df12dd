//! The mesh example: 90/10 between two versions, and beta users on the new one.

use anyhow::Result;
use lab::Lab;

use super::ledger::{Ledger, headline};
use super::traffic::{by_pod, curl, extremes, of_version, shares};

/// Half of these go over kept connections, half over one connection each.
const REQUESTS: usize = 2000;
/// 5 standard deviations of 2,000 draws of 10 % are 67.
const SHARE: std::ops::RangeInclusive<usize> = 133..=267;
/// What every 100 answers in a row may hold of v2.
const RUN: std::ops::RangeInclusive<usize> = 2..=25;
const BETA_REQUESTS: usize = 200;
const URL: &str = "http://order-service/";

/// Without an agent: the versions share evenly, as kube-proxy has it.
pub fn show_direct(lab: &Lab, ledger: &mut Ledger) -> Result<()> {
    headline("No agent yet: the node behaves as any node with kube-proxy");
    for family in ["-4", "-6"] {
        // Every request on a connection of its own, because kube-proxy chooses per connection.
        let answers = curl(lab, URL, 300, &[family, "-H", "Connection: close"])?;
        let v2 = of_version(&answers, "v2");
        // 5 standard deviations of 300 draws of a third are 41.
        let what = format!("order-service, 300 requests, {}", family_name(family));
        ledger.check(&what, "v2: a third, 59 to 141", format!("v2: {v2}"), (59..=141).contains(&v2));
    }
    let beta = curl(lab, URL, 60, &["-H", "x-user-group: beta", "-H", "Connection: close"])?;
    let v1 = of_version(&beta, "v1");
    ledger.check("beta header without an agent", "no effect: some v1", format!("v1: {v1} of 60"), v1 > 0);
    Ok(())
}

/// With agents: the weights and the header of `examples/order-service.yaml`.
pub fn show(lab: &Lab, ledger: &mut Ledger) -> Result<()> {
    headline("Canary: examples/order-service.yaml sends 10 % to v2");
    let mut answers = curl(lab, URL, REQUESTS / 2, &["-4"])?;
    answers.extend(curl(lab, URL, REQUESTS / 2, &["-4", "-H", "Connection: close"])?);
    let v2 = of_version(&answers, "v2");
    let expected = format!("v2: {} to {}", SHARE.start(), SHARE.end());
    ledger.check(
        &format!("order-service, {REQUESTS} requests"),
        expected,
        format!("v2: {v2}"),
        SHARE.contains(&v2),
    );
    let (low, high) = extremes(&answers, "v2", 100).unwrap_or_default();
    let holds = RUN.contains(&low) && RUN.contains(&high);
    let expected = format!("v2: {} to {} each", RUN.start(), RUN.end());
    ledger.check("every 100 answers in a row", expected, format!("v2: {low} to {high}"), holds);
    let pods = by_pod(&answers);
    let near_and_far = pods.contains_key("order-v1-a") && pods.contains_key("order-v1-b");
    ledger.check("backends on this node and on another", "both v1 pods answer", shares(pods), near_and_far);

    for family in ["-4", "-6"] {
        let answers = curl(lab, URL, 100, &[family])?;
        let own = lab.pod("client")?.address();
        let own = if family == "-4" { own.v4.to_string() } else { own.v6.to_string() };
        let others: Vec<&str> = answers.iter().map(|a| a.peer.as_str()).filter(|peer| *peer != own).collect();
        let seen =
            others.first().map_or_else(|| own.clone(), |other| format!("{} times {other}", others.len()));
        let what = format!("the backend sees the client's {} address", family_name(family));
        ledger.check(&what, own.as_str(), seen, others.is_empty());
    }
    show_beta(lab, ledger)
}

/// Beta users always get the new version. Direct traffic would not, so this also tells whether traffic is captured.
pub fn show_beta(lab: &Lab, ledger: &mut Ledger) -> Result<()> {
    let beta = curl(lab, URL, BETA_REQUESTS, &["-H", "x-user-group: beta"])?;
    let v2 = of_version(&beta, "v2");
    let expected = format!("v2: {BETA_REQUESTS}");
    ledger.check("x-user-group: beta", expected, format!("v2: {v2}"), v2 == BETA_REQUESTS);
    Ok(())
}

fn family_name(flag: &str) -> &'static str {
    if flag == "-4" { "IPv4" } else { "IPv6" }
}
