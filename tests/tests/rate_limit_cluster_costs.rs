//! What nodes count together in a real Redis where requests cost more than one unit: exactly, by leases, and while it is away.

#[path = "rate_limit_cluster/nodes.rs"]
mod nodes;

use std::time::Duration;

use agent::limit::quota::WhenAway;
use anyhow::{Result, ensure};
use lab::redis::Redis;
use nodes::{Node, exact, leased, rate, start, wait_away, window};

/// All nodes at once, one request of these costs after the other; the units that each lets through.
async fn together(nodes: &[Node], key: &str, costs: &[u32]) -> Result<Vec<u32>> {
    let tasks: Vec<_> = nodes
        .iter()
        .map(|node| {
            let (node, key, costs) = (node.clone(), node.key(key), costs.to_vec());
            tokio::spawn(async move {
                let mut units = 0;
                for cost in costs {
                    if node.asks_for(key, cost).await {
                        units += cost;
                    }
                }
                units
            })
        })
        .collect();
    let mut units = Vec::new();
    for task in tasks {
        units.push(task.await?);
    }
    Ok(units)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_units_are_twenty_requests_of_five_whoever_is_asked() -> Result<()> {
    let redis = Redis::start("")?;
    for quota in [window(100), rate_of_a_day()?] {
        let nodes = start(&redis, quota, exact(WhenAway::Closed))?;
        for run in 0..10 {
            let units = together(&nodes, &format!("fives-{run}"), &[5; 15]).await?;
            ensure!(units.iter().sum::<u32>() == 100, "run {run} of {quota:?}: {units:?}");
        }
        // Of many costs: nobody takes a part of what he needs, and in the end nothing is left.
        let key = "mixed";
        let units = together(&nodes, key, &[7, 1, 30, 3, 11, 2, 5, 1]).await?;
        let first: u32 = units.iter().sum();
        let ones = together(&nodes, key, &[1; 110]).await?;
        ensure!(first <= 100 && first + ones.iter().sum::<u32>() == 100, "{quota:?}: {units:?}, {ones:?}");
        redis.ask(&["FLUSHALL"])?;
        nodes::tell(&redis)?;
    }
    Ok(())
}

/// A hundred at once, and one more in a quarter of an hour: none while a test runs.
fn rate_of_a_day() -> Result<agent::limit::quota::SharedQuota> {
    nodes::rate_in(100, Duration::from_hours(24))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_costs_too_much_takes_nothing_from_who_costs_less() -> Result<()> {
    let redis = Redis::start("")?;
    let nodes = start(&redis, window(100), exact(WhenAway::Closed))?;
    let key = nodes[0].key("one");
    ensure!(nodes[0].asks_for(key, 97).await, "ninety-seven of a hundred");
    for node in &nodes {
        ensure!(!node.asks_for(key, 5).await && !node.asks_for(key, 4).await, "three are left");
        ensure!(!node.asks_for(key, 101).await, "beyond the whole");
    }
    // On the nodes where the larger ones were refused, at once.
    for node in &nodes {
        ensure!(node.asks_for(key, 1).await, "a part of the three was taken");
    }
    ensure!(!nodes[0].asks_for(key, 1).await, "a hundred and one");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_keep_their_bound_in_units() -> Result<()> {
    let redis = Redis::start("")?;
    let nodes = start(&redis, window(3000), leased(WhenAway::Share))?;
    let costs: Vec<u32> = (0..600).map(|number| 1 + number % 7).collect();
    let units = together(&nodes, "one", &costs).await?;
    let sum: u32 = units.iter().sum();
    ensure!((2700..=3000).contains(&sum), "of three thousand: {units:?}");
    let asked: u64 = nodes.iter().map(|node| node.limit.usage(0).asked).sum();
    ensure!(asked < 900, "{asked} questions for 1,800 requests");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_each_node_has_its_share_in_units() -> Result<()> {
    for quota in [window(90), rate(90)?] {
        let mut redis = Redis::start("")?;
        let nodes = start(&redis, quota, exact(WhenAway::Share))?;
        redis.stop();
        for node in &nodes {
            let _ = node.asks_for(node.key("another"), 1).await;
        }
        wait_away(&nodes)?;
        let begun = std::time::Instant::now();
        let units = together(&nodes, "one", &[5; 20]).await?;
        // Of a rate, each share goes on by thirty a second.
        let more = if matches!(quota, agent::limit::quota::SharedQuota::Rate(..)) {
            30 * (u32::try_from(begun.elapsed().as_secs())? + 1)
        } else {
            0
        };
        ensure!(units.iter().all(|units| (30..=30 + more).contains(units)), "{quota:?}: {units:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_let_through_unknown_is_paid_in_units() -> Result<()> {
    let redis = Redis::start("")?;
    let nodes = start(&redis, window(90), exact(WhenAway::Share))?;
    let key = nodes[0].key("one");
    redis.signal(nix::sys::signal::Signal::SIGSTOP)?;
    let mut units = 0;
    for _ in 0..9 {
        units += if nodes[0].asks_for(key, 5).await { 5 } else { 0 };
    }
    ensure!(units == 30, "its share: {units}");
    redis.signal(nix::sys::signal::Signal::SIGCONT)?;
    nodes::wait_up(&nodes)?;
    // What was let through meanwhile is paid with the first question, which is not counted twice.
    let first = u32::from(nodes[0].asks_for(key, 5).await) * 5;
    let more = together(&nodes, "one", &[5; 20]).await?;
    ensure!(first == 5 && units + first + more.iter().sum::<u32>() == 90, "{units}, {first}, {more:?}");
    Ok(())
}
