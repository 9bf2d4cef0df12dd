//! A line for commands alone: that of the counters, which hear of no events and never wait behind anything else.

use ::redis::cluster::ClusterClientBuilder;
use ::redis::{AsyncConnectionConfig, ProtocolVersion, RedisResult, Value};

use super::{Access, Failure, Keys, Line, RedisOptions, Script, Target, Way, ask_sentinels, fit, reply, tcp};
use crate::cluster::redis::scripts;

/// A line to one server, or to those of a Redis Cluster. Clones share it, and what they ask goes out without waiting for what was
/// asked before.
#[derive(Clone)]
pub(in crate::cluster::redis) struct Alone {
    line: Line,
    /// Which run of which server this is; empty where several are behind it.
    pub run: String,
}

impl Alone {
    /// Runs a script, by name if the server knows it.
    pub async fn call(&mut self, script: &Script, key: &str, arguments: &[&[u8]]) -> RedisResult<Value> {
        match self.line.send(&script.call(true, &[key], arguments)).await {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                self.line.send(&script.call(false, &[key], arguments)).await
            }
            answer => answer,
        }
    }
}

/// Opens such a line.
pub(in crate::cluster::redis) async fn dial_alone(
    options: &RedisOptions,
    target: &Target,
    keys: &Keys,
) -> Result<Alone, Failure> {
    let access = Access::read(options, target)?;
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(options.limit))
        // Every call has a limit of its own around it.
        .set_response_timeout(None);
    let one = async |host: &(String, u16), database| {
        let client = access.client(host, database)?;
        client.get_multiplexed_async_connection_with_config(&config).await.map(Line::One)
    };
    let line = match &target.way {
        Way::Single { database } => one(&target.hosts[0], *database).await?,
        Way::Sentinel { master } => {
            one(&ask_sentinels(&access, &target.hosts, master, &config, options.limit).await?, 0).await?
        }
        Way::Cluster => {
            let nodes: Result<Vec<_>, _> = target.hosts.iter().map(|host| access.info(host, 0)).collect();
            let mut builder = ClusterClientBuilder::new(nodes?)
                .connection_timeout(options.limit)
                .response_timeout(options.limit)
                .tcp_settings(tcp())
                .use_protocol(ProtocolVersion::RESP3);
            if let Some(certificates) = &access.certificates {
                builder = builder.certs(certificates.clone());
            }
            Line::Many(builder.build()?.get_async_connection().await?)
        }
    };
    let single = matches!(line, Line::One(_));
    let mut alone = Alone { line, run: String::new() };
    let info = match alone.call(&scripts::FITNESS, &keys.leader, &[]).await? {
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => text,
        other => reply::text(other)?.unwrap_or_default(),
    };
    fit(&info, matches!(target.way, Way::Sentinel { .. } | Way::Cluster))?;
    let run = info.lines().find_map(|line| line.strip_prefix("run_id:")).filter(|_| single);
    alone.run = run.unwrap_or_default().to_owned();
    Ok(alone)
}
