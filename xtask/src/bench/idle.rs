//! Connections that have had one answer each and then stay silent.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::http::Connection;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Opens that many from the calling thread's namespace. They close when the value is dropped.
pub fn open(address: SocketAddr, count: usize) -> Result<Vec<Connection>> {
    (0..count)
        .map(|index| {
            let what = || format!("idle connection {index} of {count}");
            let mut connection = Connection::open(address, TIMEOUT).with_context(what)?;
            let response = connection.get("bench", "/100", &[]).with_context(what)?;
            ensure!(response.status == 200 && connection.is_reusable(), "{}: {response:?}", what());
            Ok(connection)
        })
        .collect()
}
