//! What stands where Redis should be, from the beginning or all of a sudden, and answers nonsense, closes or says nothing: nobody waits
//! for it for long, and what the limit's `fail` allows is let through.

#[path = "rate_limit_cluster/nodes.rs"]
mod nodes;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use agent::limit::quota::{SharedSettings, WhenAway};
use anyhow::{Context, Result, ensure};
use lab::redis::Redis;
use lab::wait::PATIENCE;
use nodes::{Node, SOON, exact, leased, start_at, tell, wait_away, wait_up, window};

/// What it does instead of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Odd {
    /// To each question, these bytes.
    Says(&'static [u8]),
    /// Ends the connection at the first question.
    Closes,
    /// Hears all and says nothing.
    Silent,
}

/// What is no protocol, what is no answer of a script, numbers that are none of ours, and a length that never comes.
const ODD: [Odd; 7] = [
    Odd::Says(b"*4\r\n:9999999999999\r\n$-7\r\n%%%\r\n\0\0+OK\r\n"),
    Odd::Says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    Odd::Says(b"*4\r\n:-1\r\n:-1\r\n:4294967295\r\n:-9223372036854775808\r\n"),
    Odd::Says(b"*2147483647\r\n"),
    Odd::Says(b"$536870912\r\nx"),
    Odd::Closes,
    Odd::Silent,
];

/// The place of [`ODD`] that is none: all goes to Redis.
const HONEST: usize = ODD.len();

/// Stands before Redis, or where none is.
struct Stand {
    address: SocketAddr,
    does: Arc<AtomicUsize>,
}

impl Stand {
    fn new(does: usize, redis: Option<SocketAddr>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let does = Arc::new(AtomicUsize::new(does));
        let shared = Arc::clone(&does);
        std::thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                let does = Arc::clone(&shared);
                // Whoever has gone hears nothing.
                std::thread::spawn(move || serve(stream, &does, redis));
            }
        });
        Ok(Self { address, does })
    }

    fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    fn does(&self, what: usize) {
        self.does.store(what, Ordering::SeqCst);
    }
}

fn serve(mut client: TcpStream, does: &AtomicUsize, redis: Option<SocketAddr>) -> std::io::Result<()> {
    let mut server = redis.map(TcpStream::connect).transpose()?;
    if let Some(server) = &server {
        let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    }
    let mut buffer = [0; 4096];
    loop {
        let read = client.read(&mut buffer)?;
        if read == 0 {
            return server.map_or(Ok(()), |server| server.shutdown(Shutdown::Both));
        }
        match (ODD.get(does.load(Ordering::SeqCst)), &mut server) {
            (None, Some(server)) => server.write_all(&buffer[..read])?,
            (None, None) | (Some(Odd::Silent), _) => {}
            (Some(Odd::Says(bytes)), _) => client.write_all(bytes)?,
            (Some(Odd::Closes), _) => return client.shutdown(Shutdown::Both),
        }
    }
}

/// All ways to count and what each lets through of a limit of ninety, where so many nodes are known and a node is asked ever so often.
fn ways(nodes: usize) -> [(SharedSettings, Option<usize>); 5] {
    [
        (exact(WhenAway::Share), Some(90 / nodes)),
        (leased(WhenAway::Share), Some(90 / nodes)),
        (leased(WhenAway::Open), None),
        (exact(WhenAway::Open), None),
        (exact(WhenAway::Closed), Some(0)),
    ]
}

const ASKED: usize = 120;

async fn let_through(nodes: &[Node], key: &str, each: Option<usize>) -> Result<()> {
    for node in nodes {
        let count = node.lets_through(node.key(key), ASKED).await;
        ensure!(count == each.unwrap_or(ASKED), "{count} of {key}, and not {each:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_redis_stops_nobody() -> Result<()> {
    for (place, odd) in ODD.iter().enumerate() {
        let stand = Stand::new(place, None)?;
        for (settings, each) in ways(1) {
            let nodes = start_at(&stand.url(), window(90), settings)?;
            let what = || format!("{odd:?}, {settings:?}");
            let asked = Instant::now();
            for node in &nodes {
                let first = node.asks(node.key("one")).await;
                ensure!(first == (each != Some(0)), "{}: the first", what());
            }
            ensure!(asked.elapsed() < SOON * 3, "{}: three took {:?}", what(), asked.elapsed());
            wait_away(&nodes).with_context(what)?;
            // Whoever knows of no others has it all.
            let_through(&nodes, "two", each).await.with_context(what)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_answers_nonsense_all_of_a_sudden_stops_nobody() -> Result<()> {
    let redis = Redis::start("")?;
    tell(&redis)?;
    let stand = Stand::new(HONEST, Some(redis.address))?;
    for (settings, each) in ways(3) {
        let nodes = start_at(&stand.url(), window(90), settings)?;
        for (place, odd) in ODD.iter().enumerate() {
            let what = || format!("{odd:?}, {settings:?}");
            wait_up(&nodes).with_context(what)?;
            stand.does(place);
            let asked = Instant::now();
            for node in &nodes {
                let _ = node.asks(node.key("another")).await;
            }
            ensure!(asked.elapsed() < SOON * 3, "{}: three took {:?}", what(), asked.elapsed());
            wait_away(&nodes).with_context(what)?;
            let_through(&nodes, &format!("{place}"), each).await.with_context(what)?;
            stand.does(HONEST);
        }
        // Redis counts again.
        wait_up(&nodes)?;
        let (begun, mut counted) = (Instant::now(), 0);
        while counted < 60 && begun.elapsed() < PATIENCE {
            counted += nodes[0].lets_through(nodes[0].key("in the end"), 1).await;
            counted += nodes[1].lets_through(nodes[1].key("in the end"), 1).await;
        }
        ensure!(counted >= 60, "{settings:?}: {counted} in the end");
        redis.ask(&["FLUSHALL"])?;
        tell(&redis)?;
    }
    Ok(())
}
