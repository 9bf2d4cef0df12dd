//! Requests that say nothing by which they could be counted, or far more than is needed for it: what the limit allows is let through.

mod common;
mod edge;
mod limited;

use anyhow::{Context, Result, ensure};
use edge::{PORT, send};
use lab::loopback::Site;
use limited::{HOST, ON_SERVICE, admitted, limits, rate_limit, site};

/// So many of each key are let through.
const EACH: usize = 3;
/// As long as a field can be beside the rest of a head (`gateway.http.header.max-bytes`), and a target.
const HEADER: usize = 60 * 1024;
const TARGET: usize = 8000;

fn limited_by(key: &str, rest: &str) -> Result<Site> {
    let limit = format!("[{{name: each, key: [{key}], window: {{requests: {EACH}, per: 15m}}{rest}}}]");
    site(&rate_limit(ON_SERVICE, &limit, ""))
}

#[test]
fn who_says_nothing_is_counted_as_the_document_has_it() -> Result<()> {
    let keys = [
        "{type: Header, name: x-user}",
        "{type: Cookie, name: user}",
        "{type: Query, name: user}",
        "{type: SourceIdentity}",
        "{type: Path}, {type: Header, name: x-user}",
    ];
    // What `ifMissing` is -> how many of ten are let through.
    let missing =
        [("", EACH), (", ifMissing: Shared", EACH), (", ifMissing: Exempt", 10), (", ifMissing: Refuse", 0)];
    for key in keys {
        let site = limited_by(key, ", ifMissing: Refuse")?;
        let agent = site.start(&[])?;
        for (if_missing, expected) in missing {
            let what = || format!("{key}{if_missing}");
            let limit =
                format!("[{{name: each, key: [{key}], window: {{requests: {EACH}, per: 15m}}{if_missing}}}]");
            agent.apply("limit.yaml", &rate_limit(ON_SERVICE, &limit, "")).with_context(what)?;
            ensure!(admitted(site.at(PORT), 10, &[])? == expected, "{}", what());
            // Who is known is not hurt by strangers.
            if key.contains("x-user") {
                ensure!(
                    admitted(site.at(PORT), 10, &[("x-user", "ann")])? == EACH,
                    "{}: who says it",
                    what()
                );
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_empty_or_no_text_is_a_value_like_others() -> Result<()> {
    let site = limited_by("{type: Header, name: x-user}", ", ifMissing: Refuse")?;
    let _agent = site.start(&[])?;
    for value in ["", "=;,\"", "%00", "a:b", "\u{fc}"] {
        ensure!(admitted(site.at(PORT), 5, &[("x-user", value)])? == EACH, "{value:?}");
    }
    Ok(())
}

#[test]
fn huge_values_are_counted_apart_and_let_through() -> Result<()> {
    let huge = |end: &str, len: usize| "v".repeat(len) + end;
    for (key, field) in [
        ("{type: Header, name: x-user}", ("x-user", "")),
        ("{type: Cookie, name: user}", ("cookie", "user=")),
    ] {
        let site = limited_by(key, ", ifMissing: Refuse")?;
        let agent = site.start(&[])?;
        // They are the same but for the last byte.
        for end in ["a", "b", "c"] {
            let value = field.1.to_owned() + &huge(end, HEADER);
            ensure!(admitted(site.at(PORT), 5, &[(field.0, &value)])? == EACH, "{key}, {end}");
        }
        let many: Vec<_> =
            (0..80).map(|number| format!("{}{}", field.1, huge(&number.to_string(), 500))).collect();
        let many: Vec<_> = many.iter().map(|value| (field.0, &**value)).collect();
        ensure!(admitted(site.at(PORT), 5, &many)? == EACH, "{key}, eighty fields");
        let shown = limits(&agent, &["--top", "5"])?;
        ensure!(shown[0]["keys"] == 4 && shown[0]["refused"] == 8, "{key}: {shown}");
    }
    for (key, what) in [("{type: Query, name: user}", "/?user="), ("{type: Path}", "/")] {
        let site = limited_by(key, ", ifMissing: Refuse")?;
        let _agent = site.start(&[])?;
        for end in ["a", "b", "c"] {
            let target = what.to_owned() + &huge(end, TARGET);
            let mut seen = Vec::new();
            for _ in 0..5 {
                seen.push(send(site.at(PORT), HOST, &target, &[])?.who());
            }
            ensure!(seen == ["web", "web", "web", "429", "429"], "{key}, {end}: {seen:?}");
        }
    }
    Ok(())
}

#[test]
fn a_huge_cost_is_no_more_than_may_be() -> Result<()> {
    let site = limited_by("{type: Header, name: x-user}", ", cost: {units: 1, header: x-cost}")?;
    let _agent = site.start(&[])?;
    let digits = "9".repeat(HEADER);
    let letters = "x".repeat(HEADER);
    for (user, cost, expected) in
        [("ann", digits.as_str(), 1), ("bob", letters.as_str(), EACH), ("cid", "-1", EACH), ("dan", "", EACH)]
    {
        let count = admitted(site.at(PORT), 5, &[("x-user", user), ("x-cost", cost)])?;
        ensure!(count == expected, "{user}: {count}");
    }
    Ok(())
}
