//! Other numbers for some keys of a limit, and the keys that come most often, through the real binary.

mod common;
mod edge;
mod limited;

use anyhow::{Context, Result, ensure};
use common::LIMIT;
use edge::{PORT, send};
use lab::wait_for;
use limited::{HOST, ON_SERVICE, admitted, limits, rate_limit, site};

#[test]
fn some_keys_have_other_numbers() -> Result<()> {
    let each = |others: &str| {
        let limits = format!(
            "[{{name: each, key: [{{type: Header, name: x-user}}, {{type: Method}}], \
             window: {{requests: 3, per: 15m}}, overrides: [{others}]}}]"
        );
        rate_limit(ON_SERVICE, &limits, "  response: {fields: Always}\n")
    };
    let gold = "{values: [gold, GET], window: {requests: 6, per: 15m}}";
    let site = site(&each(gold))?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    let user = |name: &str, times| admitted(to, times, &[("x-user", name)]);
    ensure!(user("gold", 4)? == 4 && user("ann", 9)? == 3, "their own");
    let seen = send(to, HOST, "/x", &[("x-user", "gold")])?;
    ensure!(seen.got("ratelimit-policy") == ["\"each\";q=6;w=900"], "{seen:?}");
    ensure!(seen.got("ratelimit") == ["\"each\";r=1"], "{seen:?}");
    // Neither another spelling nor a second value is that key.
    ensure!(user("GOLD", 9)? == 3, "another value");
    ensure!(admitted(to, 9, &[("x-user", "gold"), ("x-user", "gold")])? == 3, "two values");
    for number in 0..4 {
        let seen = send(to, HOST, "POST /x", &[("x-user", "gold"), ("content-length", "0")])?;
        ensure!((seen.who() == "web") == (number < 3), "another method has the limit's numbers: {seen:?}");
    }
    // What means the same keeps its counters, whatever comes beside it.
    let more = format!("{{values: [bob, GET], window: {{requests: 9, per: 15m}}}}, {gold}");
    site.write("limit.yaml", &each(&more))?;
    let shown = || limits(&agent, &[]);
    wait_for("the other override", LIMIT, || {
        shown().is_ok_and(|shown| shown[0]["overrides"].as_array().is_some_and(|others| others.len() == 2))
    })?;
    ensure!(user("gold", 9)? == 1 && user("ann", 9)? == 0 && user("bob", 20)? == 9, "as before, and nine");
    let shown = shown()?;
    let gold = &shown[0]["overrides"][1];
    ensure!(gold["quota"] == "6 in any 900s" && gold["values"][1] == "GET", "{shown}");
    ensure!(!shown.to_string().contains("gold"), "a value that may be a secret is shown: {shown}");
    Ok(())
}

#[test]
fn networks_have_other_numbers_and_the_narrowest_decides() -> Result<()> {
    let each = "[{name: each, key: [{type: SourceAddress}], rate: {requests: 2, per: 24h}, cost: {units: 2}, overrides: [\
                {values: ['192.0.2.0/24'], rate: {requests: 8, per: 24h}}, \
                {values: [192.0.2.7], rate: {requests: 4, per: 24h, burst: 12}}, \
                {values: ['2001:db8::/32'], rate: {requests: 4, per: 24h}}]}]";
    let site = site(&rate_limit(ON_SERVICE, each, ""))?;
    let _agent = site.start(&["--set", "gateway.http.trusted-hops=1"])?;
    let to = site.at(PORT);
    for (client, expected) in [
        ("203.0.113.1", 1),
        ("192.0.2.1", 4),
        ("192.0.2.2", 4),
        ("::ffff:192.0.2.3", 4),
        ("192.0.2.7", 6),
        ("2001:db8::1", 2),
        ("2001:db9::1", 1),
    ] {
        let count = admitted(to, 9, &[("x-forwarded-for", client)])?;
        ensure!(count == expected, "{client}: {count} and not {expected}");
    }
    Ok(())
}

/// Unless the document bounds it, what a request says that it costs is bounded by the numbers of its own key.
#[test]
fn what_a_request_says_it_costs_is_bounded_by_the_numbers_of_its_key() -> Result<()> {
    let each = "[{name: each, key: [{type: Header, name: x-user}], rate: {requests: 10, per: 24h}, cost: {header: x-cost}, \
                overrides: [{values: [gold], rate: {requests: 30, per: 24h}}, {values: [tin], rate: {requests: 5, per: 24h}}]}]";
    let site = site(&rate_limit(ON_SERVICE, each, ""))?;
    let _agent = site.start(&[])?;
    let to = site.at(PORT);
    for (user, cost, expected) in [("ann", "200", 1), ("gold", "200", 1), ("tin", "10", 1), ("bob", "5", 2)] {
        let count = admitted(to, 9, &[("x-user", user), ("x-cost", cost)])?;
        ensure!(count == expected, "{user} {cost}: {count} and not {expected}");
    }
    Ok(())
}

#[test]
fn the_keys_that_come_most_often_are_shown_and_no_secret_is() -> Result<()> {
    let each = "[{name: each, key: [{type: SourceAddress}, {type: Header, name: authorization}, {type: Path}], \
                window: {requests: 3, per: 15m}}, {name: all, rate: {requests: 100000, per: 1s}}]";
    let site = site(&rate_limit(ON_SERVICE, each, ""))?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    for (token, times) in [("ann", 9), ("bob", 5), ("cid", 2)] {
        admitted(to, times, &[("authorization", token)])?;
    }
    admitted(to, 1, &[])?;
    let shown = limits(&agent, &["--top", "3"])?;
    let top = shown[0]["top"].as_array().context("no keys")?;
    ensure!(top.len() == 3 && shown[1]["top"].is_null(), "{shown}");
    // As `printf ann | sha256sum` begins.
    let key = top[0]["key"].as_str().unwrap_or_default();
    ensure!(key.starts_with("127.") && key.ends_with(", sha256:49915e0d7d4b, /x"), "{shown}");
    ensure!(top[0]["admitted"] == 3 && top[0]["refused"] == 6 && top[1]["refused"] == 2, "{shown}");
    ensure!(top[2]["admitted"] == 2 && top[2]["refused"] == 0, "{shown}");
    let all = limits(&agent, &["--top", "100"])?;
    let last = all[0]["top"][3]["key"].as_str().unwrap_or_default();
    ensure!(last.starts_with("without a value, 127."), "{all}");
    ensure!(!all.to_string().contains("ann") && limits(&agent, &[])?[0]["top"].is_null(), "{all}");
    let table = agent.verb(&["limits", "--top", "1"])?;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    ensure!(table.contains("sha256:49915e0d7d4b"), "{table}");
    let metrics = agent.scrape()?;
    ensure!(!format!("{metrics:?}").contains("49915e0d7d4b"), "keys are in the metrics");
    Ok(())
}
