//! What requests cost of a limit, through the real binary.

mod common;
mod edge;
mod limited;

use anyhow::{Context, Result, ensure};
use common::LIMIT;
use edge::{PORT, send};
use lab::exec;
use lab::wait_for;
use limited::{HOST, ON_SERVICE, admitted, limits, rate_limit, site};

#[test]
fn a_request_of_five_units_is_let_through_a_fifth_as_often() -> Result<()> {
    let both = "[{name: window, key: [{type: Header, name: x-user}], window: {requests: 100, per: 15m}, cost: {units: 5}}, \
                {name: rate, key: [{type: Header, name: x-user}], rate: {requests: 100, per: 24h}, cost: {units: 4}}]";
    let site = site(&rate_limit(ON_SERVICE, both, "  response: {fields: Always}\n"))?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    let seen = send(to, HOST, "/x", &[("x-user", "ann")])?;
    ensure!(seen.got("ratelimit") == ["\"window\";r=95"], "what is left is told in units: {seen:?}");
    ensure!(admitted(to, 24, &[("x-user", "ann")])? == 19, "twenty in all");
    // Whoever the window refused has spent nothing of the rate.
    site.write(
        "limit.yaml",
        &rate_limit(ON_SERVICE, &both.replace("requests: 100, per: 15m", "requests: 500, per: 15m"), ""),
    )?;
    wait_for("the wider window", LIMIT, || {
        limits(&agent, &[]).is_ok_and(|shown| shown[0]["quota"] == "500 in any 900s")
    })?;
    ensure!(admitted(to, 9, &[("x-user", "ann")])? == 5, "a hundred of the rate in all");
    let shown = limits(&agent, &[])?;
    ensure!(shown[0]["cost"] == "5" && shown[1]["cost"] == "4" && shown[1]["admitted"] == 25, "{shown}");
    Ok(())
}

#[test]
fn a_request_says_what_it_costs_within_bounds() -> Result<()> {
    let each = "[{name: each, key: [{type: Header, name: x-user}], window: {requests: 12, per: 15m}, \
                cost: {units: 2, header: X-Cost, max: 20}}]";
    let site = site(&rate_limit(ON_SERVICE, each, ""))?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    let user = |user: &'static str, cost: &'static str| {
        admitted(to, 15, &[("x-user", user), ("x-cost", cost)]).with_context(|| format!("{user} {cost:?}"))
    };
    ensure!(user("ann", "1")? == 12 && user("bob", "3")? == 4 && user("cid", " 012 ")? == 1, "said");
    // What is no number is what a request costs that says nothing.
    for (name, cost) in [("dan", "0"), ("eve", "-1"), ("fay", "many"), ("gus", "1.5"), ("hal", "1, 1")] {
        ensure!(user(name, cost)? == 6, "{cost:?}");
    }
    ensure!(admitted(to, 15, &[("x-user", "ida")])? == 6, "nothing is said");
    // The largest of several.
    ensure!(admitted(to, 15, &[("x-user", "jon"), ("x-cost", "1"), ("X-Cost", "6")])? == 2, "twice");
    // More than could ever be let through: refused by name, without a time to come again, and for nothing.
    let seen = send(to, HOST, "/x", &[("x-user", "kim"), ("x-cost", "99999999999999")])?;
    ensure!(seen.response.status == 429 && seen.got("retry-after").is_empty(), "{seen:?}");
    ensure!(seen.got("ratelimit-policy") == ["\"each\";q=12;w=900"], "{seen:?}");
    ensure!(seen.got("proxy-status").concat().contains("rate_limit_cost"), "{seen:?}");
    ensure!(admitted(to, 15, &[("x-user", "kim"), ("x-cost", "4")])? == 3, "all of it is left");
    let url = format!("http://{to}/x");
    let mut curl = exec::command("curl", ["-sSi", "--max-time", "5", "--http2-prior-knowledge"]);
    let fields = ["-H", "host: shop.test", "-H", "x-user: lea", "-H", "x-cost: 13"];
    let said = exec::stdout(curl.args(fields).arg(&url))?;
    ensure!(said.starts_with("HTTP/2 429") && said.contains("rate_limit_cost"), "{said}");
    let shown = limits(&agent, &[])?;
    ensure!(shown[0]["cost"] == "2, or what the header x-cost says, at most 20", "{shown}");
    let named = || {
        let log = site.access().unwrap_or_default();
        let details = "rate_limit_cost_by[default/calm limit each]";
        log.iter().filter(|line| line["response_code_details"] == details).count() == 2
    };
    wait_for("both in the access log", LIMIT, named)?;
    Ok(())
}

#[test]
fn queries_say_it_too_and_requests_in_flight_hold_it() -> Result<()> {
    let both = "[{name: size, window: {requests: 10, per: 15m}, cost: {query: size, max: 8}}, \
                {name: busy, inFlight: 4, cost: {query: busy, max: 9}}]";
    let site = site(&rate_limit(ON_SERVICE, both, ""))?;
    let _agent = site.start(&[])?;
    let to = site.at(PORT);
    let who = |path: &str| send(to, HOST, path, &[]).map(|seen| seen.who());
    // Beyond what may ever be in flight, and none of the window is spent by it.
    ensure!(who("/?busy=5&size=8")? == "429", "five of four");
    ensure!(who("/?busy=4&size=1000")? == "web" && who("/?size=%33")? == "429", "eight of ten are spent");
    ensure!(who("/?size=2&size=1")? == "web" && who("/")? == "429", "all are spent");
    Ok(())
}
