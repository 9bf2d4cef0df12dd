//! The Sluice agent: documents in, a compiled routing table out, and proxies that follow it.
//!
//! Modules are listed in reading order, from the data that everything stands on to the edge that wires it.

pub mod model;

pub mod compile;
pub mod limit;

pub mod balance;
pub mod route;

pub mod config;
pub mod health;
pub mod http;
pub mod identity;
pub mod net;
pub mod priority;
pub mod telemetry;

pub mod hbone;
pub mod pool;
pub mod spiffe;

pub mod admin;
pub mod capture;
pub mod cluster;
pub mod proxy;

pub mod app;
pub mod cli;
