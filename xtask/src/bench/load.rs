//! wrk and h2load: rates at a closed loop, and whether a contender speaks HTTP/2 at all.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lab::exec::stdout;

use super::track::{Place, Track};

/// What a load generator counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counted {
    /// Requests answered.
    pub requests: f64,
    /// Requests answered in a second.
    pub per_second: f64,
}

/// One closed loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loop {
    /// Where it goes.
    pub address: SocketAddr,
    /// Its page.
    pub path: &'static str,
    /// Connections at a time.
    pub connections: u32,
    /// Whether every request has a connection of its own.
    pub closes: bool,
    /// How long, in seconds.
    pub seconds: u32,
}

/// Runs wrk with one thread.
pub fn wrk(track: &Track, load: &Loop) -> Result<Counted> {
    wrk_by(track, load, "http")
}

/// The same in TLS. It compares no name with the certificate's.
pub fn wrk_tls(track: &Track, load: &Loop) -> Result<Counted> {
    wrk_by(track, load, "https")
}

fn wrk_by(track: &Track, load: &Loop, scheme: &str) -> Result<Counted> {
    let url = format!("{scheme}://{}{}", load.address, load.path);
    let (connections, time) = (format!("-c{}", load.connections), format!("-d{}s", load.seconds));
    let mut argv = words(&["wrk", "-t1", &connections, &time, "--timeout", "10s"]);
    if load.closes {
        argv.extend(words(&["-H", "Connection: close"]));
    }
    argv.push(url);
    let text = stdout(&mut track.command(Place::Client, &argv))?;
    read_wrk(&text)
}

/// Runs h2load: 8 connections with 32 streams each.
pub fn h2load(track: &Track, address: SocketAddr, path: &str, seconds: u32) -> Result<Counted> {
    let (time, url) = (seconds.to_string(), format!("http://{address}{path}"));
    let argv = words(&["h2load", "-t1", "-c8", "-m32", "-D", &time, &url]);
    let text = stdout(&mut track.command(Place::Client, &argv))?;
    read_h2load(&text, seconds)
}

/// Runs h2load with so many requests of HTTP/1.1 in all: a turn shorter than a second, which wrk can't do.
pub fn burst(track: &Track, load: &Loop, requests: u32) -> Result<Counted> {
    let (connections, count) = (format!("-c{}", load.connections), format!("-n{requests}"));
    let url = format!("http://{}{}", load.address, load.path);
    let argv = words(&["h2load", "--h1", "-t1", &connections, &count, &url]);
    read_burst(&stdout(&mut track.command(Place::Client, &argv))?)
}

/// Whether HTTP/2 with prior knowledge is understood.
pub fn speaks_h2(track: &Track, address: SocketAddr) -> bool {
    let argv = words(&["h2load", "-n1", "-c1", "-T", "2", "-N", "2", &format!("http://{address}/100")]);
    let text = stdout(&mut track.command(Place::Client, &argv)).unwrap_or_default();
    text.contains("1 succeeded")
}

/// Reads what wrk printed; its complaints are errors.
pub fn read_wrk(text: &str) -> Result<Counted> {
    for complaint in ["Non-2xx", "Socket errors"] {
        // A connection that the proxy closes after its last request is read to its end, and counts as one.
        let line = text.lines().find(|line| line.contains(complaint));
        ensure!(line.is_none_or(only_reads), "wrk: {}", line.unwrap_or_default().trim());
    }
    let per_second = after(text, "Requests/sec:").context("wrk printed no rate")?;
    let total = text.lines().find_map(|line| line.trim().split_once(" requests in "));
    let requests = total.and_then(|(count, _)| count.parse().ok()).context("wrk printed no count")?;
    Ok(Counted { requests, per_second })
}

fn only_reads(line: &str) -> bool {
    line.contains("connect 0,") && line.contains("write 0,") && line.contains("timeout 0")
}

fn read_h2load(text: &str, seconds: u32) -> Result<Counted> {
    let line =
        text.lines().find(|line| line.starts_with("requests:")).context("h2load printed no requests")?;
    let count = |word: &str| -> Option<f64> {
        let part = line.split(", ").find(|part| part.ends_with(word))?;
        part.trim_start_matches("requests: ").split(' ').next()?.parse().ok()
    };
    let (done, failed) = (count("succeeded").context("no count")?, count("failed").context("no failures")?);
    ensure!(done > 0.0 && failed < 1.0, "h2load: {line}");
    Ok(Counted { requests: done, per_second: done / f64::from(seconds) })
}

/// Of a run that ends by its count.
fn read_burst(text: &str) -> Result<Counted> {
    let line = text.lines().find_map(|line| line.strip_prefix("finished in "));
    let rate = line.and_then(|line| line.split(", ").find_map(|part| part.strip_suffix(" req/s")));
    let per_second = rate.and_then(|rate| rate.parse().ok()).context("h2load printed no rate")?;
    Ok(Counted { per_second, ..read_h2load(text, 1)? })
}

fn after(text: &str, label: &str) -> Option<f64> {
    text.lines().find_map(|line| line.trim().strip_prefix(label))?.trim().parse().ok()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_read_and_its_complaints_are_errors() {
        let good =
            "Running 2s test\n  1 threads\n  110420 requests in 2.00s, 25.1MB read\nRequests/sec:  55210.5\n";
        assert_eq!(read_wrk(good).expect("good"), Counted { requests: 110_420.0, per_second: 55_210.5 });
        let errors = |what: &str| format!("{good}  {what}\n");
        assert!(read_wrk(&errors("Non-2xx or 3xx responses: 3")).is_err());
        assert!(read_wrk(&errors("Socket errors: connect 1, read 0, write 0, timeout 0")).is_err());
        assert!(read_wrk(&errors("Socket errors: connect 0, read 9, write 0, timeout 0")).is_ok());
        assert!(read_wrk("").is_err());
    }

    #[test]
    fn h2load_is_read_and_its_failures_are_errors() {
        let line = |failed: u32| {
            format!(
                "finished in 2.00s\nrequests: 900 total, 960 started, 900 done, 890 succeeded, {failed} failed, 0 errored, 0 timeout\n"
            )
        };
        let counted = read_h2load(&line(0), 2).expect("good");
        assert_eq!(counted, Counted { requests: 890.0, per_second: 445.0 });
        assert!(read_h2load(&line(1), 2).is_err());
        assert!(read_h2load("", 2).is_err());
        let burst = line(0).replace("finished in 2.00s", "finished in 98.20ms, 9063.14 req/s, 2.1MB/s");
        let expected = Counted { requests: 890.0, per_second: 9063.14 };
        assert_eq!(read_burst(&burst).expect("good"), expected);
        assert!(read_burst(&line(0)).is_err());
    }
}
