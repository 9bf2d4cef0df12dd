//! The lab: a cluster made of network namespaces, for tests, demonstrations and benchmarks.
//!
//! Nodes are namespaces joined by a bridge, pods are namespaces behind a veth in their node, each pod has a cgroup
//! of its own, services have ClusterIPs that nft translates on every node as kube-proxy does, and real programs
//! (nginx, Redis, NATS, curl) run inside. The agent under test is started in a node like any other process.
//!
//! A lab is described by a [`Topology`] (a plain value), brought up by [`Lab::up`] or [`Lab::for_test`], and known
//! by an id that every name in the kernel carries, so that several live side by side and [`Lab::down`] can clear
//! one of them even when whoever made it has crashed.

pub mod address;
pub mod documents;
pub mod hosts;
pub mod kube_proxy;
pub mod topology;
pub mod wiring;

pub mod cgroup;
pub mod emulated;
pub mod ethernet;
pub mod exec;
pub mod netns;
pub mod sandbox;
pub mod state;
pub mod wait;

pub mod agent;
pub mod backend;
pub mod footprint;
pub mod frames;
pub mod http;
pub mod limit_host;
pub mod load;
pub mod loopback;
pub mod pingpong;
pub mod program;
pub mod promtext;
pub mod random;
pub mod redis;
pub mod store;
pub mod witness;

mod lab;
mod privilege;
mod teardown;

pub use agent::{Agent, AgentOptions, built_binary};
pub use footprint::Footprint;
pub use lab::{Lab, Node, Pod};
pub use privilege::{accelerates_nothing, is_root, kernel_version, unaccelerated, unprivileged};
pub use topology::{Pod as PodSpec, Program, Service as ServiceSpec, Topology};
pub use wait::{wait_for, wait_until};
