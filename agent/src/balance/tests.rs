//! Tables and properties of the pickers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use proptest::prelude::*;

use crate::compile::{Cluster, ClusterKey, Upstream};
use crate::model::{AppProtocol, LbPolicy, ObjectName};

use super::Pick;

fn address(index: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, index], 80))
}

fn cluster(policy: LbPolicy, count: u8) -> Cluster {
    let key = ClusterKey { service: ObjectName::new("default", "web"), port: 80, subset: None };
    let endpoints =
        (0..count).map(|index| Arc::new(Upstream::new(address(index), "uid".into(), None))).collect();
    Cluster::new(key, AppProtocol::Http, policy, endpoints)
}

fn picked(pick: Option<&Pick>) -> u8 {
    match pick.expect("has endpoints").upstream().address {
        SocketAddr::V4(v4) => v4.ip().octets()[3],
        SocketAddr::V6(_) => unreachable!("the endpoints are v4"),
    }
}

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 10, 1, 2));
const POLICIES: [LbPolicy; 3] = [LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::LeastRequest];

#[test]
fn a_client_keeps_its_endpoint_and_loses_it_only_with_it() {
    let (before, after) = (cluster(LbPolicy::SourceIp, 5), cluster(LbPolicy::SourceIp, 4));
    let mut met = [0_u32; 5];
    for last in 0..=255 {
        let client = IpAddr::V4(Ipv4Addr::new(10, 10, 1, last));
        let first = picked(before.pick(client, 1, &[]).as_ref());
        met[usize::from(first)] += 1;
        assert_eq!(picked(before.pick(client, 2, &[]).as_ref()), first);
        assert_ne!(picked(before.pick(client, 3, &[address(first)]).as_ref()), first);
        if first != 4 {
            assert_eq!(picked(after.pick(client, 4, &[]).as_ref()), first, "{client} moved without need");
        }
    }
    assert!(met.iter().all(|count| (26..=77).contains(count)), "256 clients met {met:?}");
}

#[test]
fn an_empty_cluster_has_nothing_to_pick() {
    for policy in POLICIES {
        assert!(cluster(policy, 0).pick(CLIENT, 7, &[]).is_none());
        assert!(cluster(policy, 0).pick(CLIENT, 7, &[address(1)]).is_none());
    }
}

#[test]
fn round_robin_alternates_exactly() {
    let cluster = cluster(LbPolicy::RoundRobin, 3);
    let order: Vec<u8> = (0..7).map(|random| picked(cluster.pick(CLIENT, random, &[]).as_ref())).collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0]);
}

#[test]
fn round_robin_skips_what_is_avoided() {
    let cluster = cluster(LbPolicy::RoundRobin, 3);
    let order: Vec<u8> = (0..4).map(|_| picked(cluster.pick(CLIENT, 0, &[address(1)]).as_ref())).collect();
    assert_eq!(order, [0, 2, 2, 0]);
}

#[test]
fn avoided_endpoints_come_back_when_nothing_else_is_left() {
    for policy in POLICIES {
        let cluster = cluster(policy, 2);
        assert!(cluster.pick(CLIENT, 3, &[address(0), address(1)]).is_some(), "{policy:?}");
    }
}

#[test]
fn picks_count_as_load_until_dropped() {
    let cluster = cluster(LbPolicy::RoundRobin, 1);
    let first = cluster.pick(CLIENT, 0, &[]);
    let second = cluster.pick(CLIENT, 0, &[]);
    assert_eq!(cluster.endpoints[0].active(), 2);
    drop(first);
    assert_eq!(cluster.endpoints[0].active(), 1);
    drop(second);
    assert_eq!(cluster.endpoints[0].active(), 0);
}

#[test]
fn least_request_leaves_the_loaded_one_of_two_alone() {
    let cluster = cluster(LbPolicy::LeastRequest, 2);
    let held: Vec<_> = std::iter::repeat_with(|| Pick::new(&cluster.endpoints[0])).take(3).collect();
    for random in [0, 1, u64::MAX, u64::MAX / 2, 1 << 32, 0x8000_0000] {
        assert_eq!(picked(cluster.pick(CLIENT, random, &[]).as_ref()), 1, "{random:#x}");
    }
    drop(held);
}

#[test]
fn random_reaches_every_endpoint() {
    let cluster = cluster(LbPolicy::Random, 4);
    let quarters: Vec<u8> =
        (0..4).map(|quarter: u64| picked(cluster.pick(CLIENT, quarter << 30, &[]).as_ref())).collect();
    assert_eq!(quarters, [0, 1, 2, 3]);
}

proptest! {
    #[test]
    fn an_avoided_endpoint_is_never_picked_while_another_is_left(
        policy in prop::sample::select(&POLICIES[..]),
        count in 1_u8..8,
        avoid in prop::collection::vec(0_u8..10, 0..10),
        randoms in prop::collection::vec(any::<u64>(), 1..20),
    ) {
        let cluster = cluster(policy, count);
        let avoided: Vec<SocketAddr> = avoid.iter().copied().map(address).collect();
        let left = (0..count).any(|index| !avoid.contains(&index));
        for random in randoms {
            let pick = cluster.pick(CLIENT, random, &avoided);
            prop_assert!(!left || !avoid.contains(&picked(pick.as_ref())));
        }
        prop_assert!(cluster.endpoints.iter().all(|upstream| upstream.active() == 0));
    }

    #[test]
    fn least_request_never_takes_the_busiest_of_three(random in any::<u64>(), busiest in 0_usize..3) {
        let cluster = cluster(LbPolicy::LeastRequest, 3);
        let held = Pick::new(&cluster.endpoints[busiest]);
        let pick = cluster.pick(CLIENT, random, &[]);
        prop_assert_ne!(usize::from(picked(pick.as_ref())), busiest);
        drop(held);
    }
}

#[test]
fn the_clients_family_is_used_where_the_cluster_has_it() {
    let v6: SocketAddr = "[fd00::1]:80".parse().expect("an address");
    let dual = |addresses: &[SocketAddr]| {
        let endpoints = addresses.iter().map(|a| Arc::new(Upstream::new(*a, "uid".into(), None))).collect();
        let key = ClusterKey { service: ObjectName::new("default", "web"), port: 80, subset: None };
        Cluster::new(key, AppProtocol::Http, LbPolicy::Random, endpoints)
    };
    let client6: IpAddr = "fd00::9".parse().expect("an address");
    for random in 0..64 {
        let both = dual(&[address(1), address(2), v6]);
        let to = |client| both.pick(client, random << 26, &[]).expect("has endpoints").upstream().address;
        assert!(to(CLIENT).is_ipv4());
        assert_eq!(to(client6), v6);
        assert_eq!(dual(&[v6]).pick(CLIENT, random, &[]).expect("has one").upstream().address, v6);
    }
}
