//! Two well-behaved clients at a fixed rate, one of HTTP/1.1 and one of HTTP/2. A request's time counts from when it was
//! due, so that a stall counts for all that waited behind it.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lab::frames::{END_STREAM, RawHttp2, Said, headers};
use lab::http::Connection;

/// No answer may take longer.
const LIMIT: Duration = Duration::from_secs(10);
/// Requests on one connection; the agent ends its connections after 1,000.
const REQUESTS_PER_CONNECTION: u32 = 500;
const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "/")];

/// The p99 of each client, in microseconds.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// HTTP/1.1.
    pub http1: u128,
    /// HTTP/2.
    pub http2: u128,
}

/// Runs both for a time. Every request must be answered with 200.
pub fn measure(to: SocketAddr, rate: u32, time: Duration) -> Result<Window> {
    thread::scope(|scope| {
        let http1 = scope.spawn(|| {
            let mut connection = Connection::open(to, LIMIT)?;
            paced(rate, time, |number| {
                if number % REQUESTS_PER_CONNECTION == 0 {
                    connection = Connection::open(to, LIMIT)?;
                }
                let answer = connection.get("web", "/", &[])?;
                ensure!(answer.status == 200, "status {}", answer.status);
                Ok(())
            })
        });
        let http2 = scope.spawn(|| {
            let mut connection = RawHttp2::open(to, LIMIT)?;
            paced(rate, time, |number| {
                let at = number % REQUESTS_PER_CONNECTION;
                if at == 0 {
                    connection = RawHttp2::open(to, LIMIT)?;
                }
                let stream = 2 * at + 1;
                connection.send(&headers(stream, END_STREAM, &GET))?;
                let said = connection.hear(stream)?;
                ensure!(said == Said::Status(200), "{said:?}");
                connection.body(stream).map(drop).context("the body")
            })
        });
        let joined = |outcome: thread::Result<Result<u128>>| {
            outcome.map_err(|_| anyhow!("a client panicked"))?.context("a well-behaved client")
        };
        Ok(Window { http1: joined(http1.join())?, http2: joined(http2.join())? })
    })
}

/// Sends when it is time; gives the p99.
fn paced(rate: u32, time: Duration, mut send: impl FnMut(u32) -> Result<()>) -> Result<u128> {
    let begin = Instant::now();
    let mut taken = Vec::new();
    for number in 0.. {
        let after = Duration::from_secs_f64(f64::from(number) / f64::from(rate));
        if after >= time {
            break;
        }
        let due = begin + after;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        send(number).with_context(|| format!("request {number}"))?;
        taken.push(due.elapsed());
    }
    taken.sort_unstable();
    let at = (taken.len() * 99 / 100).min(taken.len().saturating_sub(1));
    Ok(taken.get(at).context("no request")?.as_micros())
}
