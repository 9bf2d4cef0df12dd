//! What nodes count together in a real Redis: exactly, by leases, and while it is away.

#[path = "rate_limit_cluster/nodes.rs"]
mod nodes;

use std::time::{Duration, Instant};

use agent::cluster::{RedisCounters, RedisOptions};
use agent::limit::counters::{Answer, Ask, Counters, KeyWriter, SharedRule};
use agent::limit::quota::{SharedQuota, WhenAway, shared_rate};
use agent::limit::{Bucket, Counter, Log, Verdict, Window};
use anyhow::{Context, Result, ensure};
use lab::redis::Redis;
use lab::wait::{PATIENCE, wait_for};
use nix::sys::signal::Signal;
use nodes::{Node, SOON, exact, leased, rate, start, start_at, tell, wait_away, wait_up, window};

const MINUTE: Duration = Duration::from_mins(1);

/// All nodes at once; how many requests each lets through.
async fn together(nodes: &[Node], key: &str, of: usize) -> Result<Vec<usize>> {
    let tasks: Vec<_> = nodes
        .iter()
        .map(|node| {
            let (node, key) = (node.clone(), node.key(key));
            tokio::spawn(async move { node.lets_through(key, of).await })
        })
        .collect();
    let mut counts = Vec::new();
    for task in tasks {
        counts.push(task.await?);
    }
    Ok(counts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_in_a_quarter_of_an_hour_whoever_is_asked() -> Result<()> {
    let redis = Redis::start_with_clock()?;
    // Whoever is in doubt refuses, so that a slow machine is told from a wrong count.
    let nodes = start(&redis, window(100), exact(WhenAway::Closed))?;
    for run in 0..20_u32 {
        let key = format!("client-{run}");
        let begun = MINUTE * 60 * run;
        redis.set_clock_ahead(begun)?;
        let counts = together(&nodes, &key, 60).await?;
        ensure!(counts.iter().sum::<usize>() == 100, "run {run}: {counts:?}");
        redis.set_clock_ahead(begun + MINUTE * 14 + MINUTE / 2)?;
        let more = together(&nodes, &key, 20).await?;
        ensure!(more == [0, 0, 0], "run {run}, before the window's end: {more:?}");
        redis.set_clock_ahead(begun + MINUTE * 15 + MINUTE / 2)?;
        // A refusal is believed for a tenth of a second more.
        let (mut total, asked) = (0, Instant::now());
        while total < 100 && asked.elapsed() < PATIENCE {
            total += together(&nodes, &key, 60).await?.iter().sum::<usize>();
        }
        ensure!(total == 100, "run {run}, after its end: {total}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_keep_their_bound_and_ask_seldom() -> Result<()> {
    const RATE: u32 = 6000;
    const REQUESTS: u32 = 40_000;
    let redis = Redis::start("")?;
    let nodes = start(&redis, rate(RATE)?, leased(WhenAway::Share))?;
    let begun = Instant::now();
    let load = |node: Node| async move {
        let (key, mut count) = (node.key("all"), 0_u32);
        for number in 0..REQUESTS / 3 {
            // A third of 20,000 each second.
            let due = begun + Duration::from_micros(u64::from(number) * 150);
            if due > Instant::now() {
                tokio::time::sleep_until(due.into()).await;
            }
            count += u32::from(node.asks(key).await);
        }
        count
    };
    let tasks: Vec<_> = nodes.iter().cloned().map(|node| tokio::spawn(load(node))).collect();
    let mut admitted = 0;
    for task in tasks {
        admitted += task.await?;
    }
    let elapsed = begun.elapsed();
    let budget = f64::from(RATE) * (1.0 + elapsed.as_secs_f64());
    let most = budget + f64::from(RATE) / 10.0;
    ensure!(f64::from(admitted) <= most, "{admitted} of at most {most} in {elapsed:?}");
    let least = budget.min(f64::from(REQUESTS)) * 0.9;
    ensure!(f64::from(admitted) >= least, "{admitted} of at least {least} in {elapsed:?}");
    let calls: u64 = nodes.iter().map(|node| node.limit.usage(0).asked).sum();
    ensure!(calls * 20 < u64::from(REQUESTS), "{calls} questions for {REQUESTS} requests");
    println!("{admitted} of {REQUESTS} let through in {elapsed:?}, at most {most:.0}; {calls} questions");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_leased_and_not_used_goes_back() -> Result<()> {
    let redis = Redis::start("")?;
    let nodes = start(&redis, window(600), leased(WhenAway::Share))?;
    let key = nodes[0].key("one");
    // Enough that portions have grown, and then nothing more.
    let first = nodes[0].lets_through(key, 40).await;
    ensure!(first == 40, "{first}");
    let held = || nodes[0].limit.usage(0).leased;
    ensure!(held() > 0, "nothing is leased");
    let taken = || redis.ask(&["--raw", "EVAL", COUNT, "0"]).unwrap_or_default();
    wait_for("what was not used to go back", PATIENCE, || taken() == "40")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_hears_what_each_has_leased() -> Result<()> {
    let redis = Redis::start("")?;
    let nodes = start(&redis, window(600), leased(WhenAway::Share))?;
    let heard = |units: [Option<u64>; 3]| {
        let names = ["node1", "node2", "node3"].map(str::to_owned);
        Some(names.into_iter().zip(units).collect::<Vec<_>>())
    };
    ensure!(nodes[0].hears() == heard([None; 3]), "nobody has told anything: {:?}", nodes[0].hears());
    // What somebody else has put there says nothing.
    redis.ask(&["SET", "{sluice:x}:leased:node3", "7"])?;
    for (node, name) in nodes.iter().zip(["node1", "node2"]) {
        node.tells(name);
    }
    wait_for("two to be heard", PATIENCE, || nodes[0].hears() == heard([Some(0), Some(0), None]))?;
    nodes[2].tells("node3");
    wait_for("all to be heard", PATIENCE, || nodes[0].hears() == heard([Some(0); 3]))?;
    let (mut spent, begun) = (0, Instant::now());
    loop {
        spent += together(&nodes[1..], "one", 10).await?.iter().sum::<usize>();
        let counted: usize = redis.ask(&["--raw", "EVAL", COUNT, "0"])?.parse()?;
        // The one that has leased nothing hears what the others hold: all that the store has given out and nobody has spent.
        let fits = || match nodes[0].hears().as_deref() {
            Some([(_, Some(0)), (_, Some(second @ 1..)), (_, Some(third @ 1..))]) => {
                u64::try_from(counted - spent) == Ok(second + third)
            }
            _ => false,
        };
        // Portions run out within a second, and a question may have been under way: then once more.
        if wait_for("the sum", Duration::from_secs(1), fits).is_ok() {
            break;
        }
        ensure!(begun.elapsed() < PATIENCE, "{counted} given out, {spent} spent, {:?}", nodes[0].hears());
    }
    wait_for("what ran out to be told", PATIENCE, || nodes[0].hears() == heard([Some(0); 3]))?;
    redis.signal(Signal::SIGSTOP)?;
    wait_away(&nodes)?;
    ensure!(nodes[0].hears().is_none(), "a store that is away says nothing: {:?}", nodes[0].hears());
    Ok(())
}

/// How many requests the only counter holds.
const COUNT: &str = "local keys = redis.call('KEYS', 'sluice:x:limit:*') return redis.call('LLEN', keys[1])";

/// Ninety in a quarter of an hour, of which the first node has had thirty; then Redis goes.
async fn until_redis_goes(away: WhenAway) -> Result<(Redis, Vec<Node>, String)> {
    let mut redis = Redis::start("")?;
    let nodes = start(&redis, window(90), exact(away))?;
    let key = "one".to_owned();
    let first = nodes[0].lets_through(nodes[0].key(&key), 30).await;
    ensure!(first == 30, "{first}");
    redis.stop();
    let asked = Instant::now();
    for node in &nodes {
        let _ = node.asks(node.key("another")).await;
    }
    ensure!(asked.elapsed() < SOON * 3, "three decisions took {:?}", asked.elapsed());
    wait_away(&nodes)?;
    Ok((redis, nodes, key))
}

/// Redis comes back and knows nothing.
fn come_back(redis: &mut Redis, nodes: &[Node]) -> Result<()> {
    redis.restart()?;
    tell(redis)?;
    wait_up(nodes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_each_node_has_its_share() -> Result<()> {
    let (mut redis, nodes, key) = until_redis_goes(WhenAway::Share).await?;
    let counts = together(&nodes, &key, 60).await?;
    ensure!(counts == [0, 30, 30], "thirty each: {counts:?}");
    come_back(&mut redis, &nodes)?;
    let counts = together(&nodes, &key, 60).await?;
    ensure!(counts == [0, 0, 0], "a Redis that has forgotten gives no second helping: {counts:?}");
    // Whoever had nothing is not hurt.
    let counts = together(&nodes, "a third", 60).await?;
    ensure!(counts == [30, 30, 30], "shares hold until the window is over: {counts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_none_are_let_through() -> Result<()> {
    let (mut redis, nodes, key) = until_redis_goes(WhenAway::Closed).await?;
    let counts = together(&nodes, &key, 60).await?;
    ensure!(counts == [0, 0, 0], "{counts:?}");
    come_back(&mut redis, &nodes)?;
    let counts = together(&nodes, &key, 60).await?;
    ensure!(counts == [0, 30, 30], "with the thirty before, no more than ninety: {counts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_all_are_let_through() -> Result<()> {
    let (mut redis, nodes, key) = until_redis_goes(WhenAway::Open).await?;
    let counts = together(&nodes, &key, 200).await?;
    ensure!(counts == [200, 200, 200], "{counts:?}");
    come_back(&mut redis, &nodes)?;
    let counts = together(&nodes, &key, 60).await?;
    ensure!(counts.iter().sum::<usize>() == 90, "as Redis counts from then on: {counts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_slept_has_forgotten_nothing() -> Result<()> {
    let redis = Redis::start("")?;
    let nodes = start(&redis, window(90), exact(WhenAway::Share))?;
    let key = nodes[0].key("one");
    ensure!(nodes[0].lets_through(key, 20).await == 20, "before");
    redis.signal(Signal::SIGSTOP)?;
    let asked = Instant::now();
    ensure!(nodes[0].asks(key).await, "its share is not used up");
    ensure!(asked.elapsed() < SOON, "it took {:?}", asked.elapsed());
    wait_for("the node to miss Redis", PATIENCE, || nodes[0].reading().state == "away")?;
    ensure!(nodes[0].lets_through(key, 60).await == 9, "thirty are its share");
    redis.signal(Signal::SIGCONT)?;
    wait_up(&nodes)?;
    // What was let through meanwhile counts, and the question that got no answer in time is not counted twice.
    let first = nodes[0].lets_through(key, 1).await;
    let counts = together(&nodes, "one", 90).await?;
    ensure!(first == 1 && counts.iter().sum::<usize>() == 59, "no shares hold: {counts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_without_its_scripts_learns_them_again() -> Result<()> {
    let redis = Redis::start("")?;
    let nodes = start(&redis, window(90), exact(WhenAway::Closed))?;
    for round in 1..=3 {
        let counts = together(&nodes, "one", 10).await?;
        ensure!(counts == [10, 10, 10], "round {round}: {counts:?}");
        redis.ask(&["SCRIPT", "FLUSH"])?;
    }
    let counts = together(&nodes, "one", 10).await?;
    ensure!(counts == [0, 0, 0], "{counts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_value_is_of_no_concern_to_other_keys() -> Result<()> {
    let redis = Redis::start("")?;
    let nodes = start(&redis, window(90), exact(WhenAway::Share))?;
    let key = nodes[0].key("one");
    let counter = format!("sluice:x:limit:{{{:032x}}}", u128::from_be_bytes(key.0));
    redis.ask(&["HSET", &counter, "a", "b"])?;
    ensure!(nodes[0].lets_through(key, 60).await == 30, "the node's share");
    let counts = together(&nodes, "two", 60).await?;
    ensure!(counts.iter().sum::<usize>() == 90 && nodes[0].reading().state == "up", "{counts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_spread_over_a_redis_cluster() -> Result<()> {
    let servers = Redis::start_cluster("")?;
    let addresses: Vec<_> = servers.iter().map(|server| server.address.to_string()).collect();
    let url = format!("redis+cluster://{}", addresses.join(","));
    let nodes = start_at(&url, window(20), exact(WhenAway::Closed))?;
    wait_for("the nodes to reach the cluster", PATIENCE, || {
        nodes.iter().all(|node| node.reading().state == "up")
    })?;
    for key in 0..30 {
        let counts = together(&nodes, &format!("key-{key}"), 10).await?;
        ensure!(counts.iter().sum::<usize>() == 20, "key {key}: {counts:?}");
    }
    for server in &servers {
        let held = server.ask(&["DBSIZE"])?;
        ensure!(held != "0", "{} has none of thirty keys", server.address);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_rights_are_enough() -> Result<()> {
    let text = include_str!("../../docs/cluster.md");
    let line = text.lines().find(|line| line.starts_with("user sluice ")).context("no line of rights")?;
    let redis = Redis::start(&line.replace("CLUSTER", "x").replace("PASSWORD", "secret"))?;
    let url = format!("redis://sluice:secret@{}", redis.address);
    for (quota, settings) in [(window(90), exact(WhenAway::Closed)), (rate(90)?, leased(WhenAway::Closed))] {
        let nodes = start_at(&url, quota, settings)?;
        tell(&redis)?;
        wait_up(&nodes)?;
        // One is given back.
        let key = nodes[0].key("one");
        ensure!(nodes[0].lets_through(key, 1).await == 1, "{quota:?}");
        nodes[0].gives_back(key);
        let counts = together(&nodes, "one", 10).await?;
        ensure!(counts == [10, 10, 10], "{quota:?}: {counts:?}");
        ensure!(nodes.iter().all(|node| node.reading().failures == 0), "{quota:?}: a script was refused");
        redis.ask(&["FLUSHALL"])?;
    }
    Ok(())
}

/// The script asked alone.
struct Script {
    counters: RedisCounters,
    rule: SharedRule,
}

impl Script {
    async fn take(&self, name: &str, (count, step): (u32, u32)) -> Result<Answer> {
        let mut writer = KeyWriter::new(b"script");
        std::hash::Hasher::write(&mut writer, name.as_bytes());
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let done = move |answer| {
            // Whoever asked waits.
            let _ = sender.send(answer);
        };
        self.counters.take(Ask { key: writer.key(), rule: self.rule, count, step }, Box::new(done));
        receiver.await?.ok().context("Redis is away")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_script_counts_as_the_node_does() -> Result<()> {
    let redis = Redis::start("")?;
    let quick = Window { requests: 7, window: 40_000 };
    let steady = shared_rate(997, 1_000_000_000, 13).context("a rate")?;
    let (unit, leak, capacity) = steady.numbers();
    let rules = [SharedRule::Window { requests: 7, span: 40_000 }, SharedRule::Rate { unit, leak, capacity }];
    let mut random = 88_172_645_463_325_252_u64;
    for (name, rule) in ["window", "rate"].into_iter().zip(rules) {
        let counters = RedisCounters::start(RedisOptions::new(&format!("redis://{}", redis.address), "x"))?;
        let script = Script { counters, rule };
        let (mut log, mut bucket) = (Log::default(), Bucket::default());
        for round in 0..400 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let step = u32::try_from(random % 3)? + 1;
            let count = (u32::try_from(random / 3 % 3)? + 1) * step;
            let answer = script.take(name, (count, step)).await?;
            let mut expected = 0;
            for _ in 0..count / step {
                let verdict = match rule {
                    SharedRule::Window { .. } => quick.take(&mut log, answer.at, step),
                    SharedRule::Rate { .. } => steady.take(&mut bucket, answer.at, step),
                };
                match verdict {
                    Verdict::Admitted { .. } => expected += step,
                    Verdict::Refused { wait } => {
                        ensure!(answer.wait == wait, "{rule:?} {round}: {answer:?}, and it is {wait}");
                        break;
                    }
                }
            }
            ensure!(
                answer.granted == expected,
                "{rule:?} {round}: {answer:?} of {count} by {step}, and it is {expected}"
            );
            tokio::time::sleep(Duration::from_micros(random % 6000)).await;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_about_one_key_go_together() -> Result<()> {
    let redis = Redis::start("")?;
    let nodes = start(&redis, window(500), exact(WhenAway::Closed))?;
    let before = nodes[0].reading().calls;
    let node = nodes[0].clone();
    let key = node.key("one");
    let asks: Vec<_> = (0..1000)
        .map(|_| {
            let node = node.clone();
            tokio::spawn(async move { node.asks(key).await })
        })
        .collect();
    let mut admitted = 0;
    for ask in asks {
        admitted += u32::from(ask.await?);
    }
    let calls = nodes[0].reading().calls - before;
    ensure!(admitted == 500 && calls < 300, "{admitted} by {calls} calls");
    Ok(())
}

#[test]
fn quotas_are_what_they_say() -> Result<()> {
    ensure!(matches!(rate(6000)?, SharedQuota::Rate(..)));
    ensure!(shared_rate(1, 86_400_000_000_000, u32::MAX).is_none(), "its level has more than 53 bits");
    Ok(())
}
