//! A connection to the server that has our keys: found, opened, looked at, subscribed.

mod alone;

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::cluster::ClusterClientBuilder;
use ::redis::cluster_async::ClusterConnection;
use ::redis::io::tcp::TcpSettings;
use ::redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, Value,
};

use super::failure::Failure;
use super::keys::Keys;
use super::scripts::{self, Lane, Script};
use super::target::{Target, Way};
use super::{RedisOptions, reply};
use crate::cluster::StoreError;

pub(super) use self::alone::{Alone, dial_alone};

/// How long a call may take whose question or answer may be as large as a table: 64 MiB at 9 Mbit/s.
pub(super) const BULK_LIMIT: Duration = Duration::from_mins(1);
/// The oldest major version that has ACL, RESP3 and scripts that replicate what they did.
const OLDEST: u32 = 6;

/// Where pushed messages go; called on the connection's task.
pub(super) type OnPush = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// Two lines to the server, so that what is short never waits behind what is long: answers come in the order of the questions.
/// Events come by the prompt one. Redis ends a subscriber's when more than 32 MiB wait to be sent by it
/// (`client-output-buffer-limit pubsub`), which the documents of a large cluster exceed.
#[derive(Clone)]
pub(super) struct Connection {
    prompt: Line,
    bulk: Line,
}

/// A line to one server, or to those of a Redis Cluster.
#[derive(Clone)]
enum Line {
    One(MultiplexedConnection),
    Many(ClusterConnection),
}

impl Connection {
    /// Runs a script, by name if the server knows it.
    pub async fn run(&mut self, script: &Script, keys: &[&str], arguments: &[&[u8]]) -> RedisResult<Value> {
        let line = match script.lane {
            Lane::Prompt => &mut self.prompt,
            Lane::Bulk => &mut self.bulk,
        };
        match line.send(&script.call(true, keys, arguments)).await {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                line.send(&script.call(false, keys, arguments)).await
            }
            answer => answer,
        }
    }

    /// Asks for next to nothing, to see that the server that has this key answers.
    pub async fn probe(&mut self, key: &str) -> RedisResult<()> {
        self.prompt.send(::redis::cmd("TYPE").arg(key)).await.map(drop)
    }
}

impl Line {
    async fn send(&mut self, command: &Cmd) -> RedisResult<Value> {
        let answer = match self {
            Self::One(connection) => connection.req_packed_command(command).await,
            Self::Many(connection) => connection.req_packed_command(command).await,
        };
        answer?.extract_error()
    }

    async fn subscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::One(connection) => connection.subscribe(channel).await,
            Self::Many(connection) => connection.subscribe(channel).await,
        }
    }
}

/// How far a connection that is being made has come: what is waited for.
#[derive(Debug, Default)]
pub(super) struct Stage(Mutex<String>);

impl Stage {
    fn set(&self, what: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Opens a connection, and is done only when events arrive by it.
pub(super) async fn dial(
    options: &RedisOptions,
    target: &Target,
    keys: &Keys,
    on_push: OnPush,
    stage: &Stage,
) -> Result<Connection, Failure> {
    let by = if target.tls { " by TLS" } else { "" };
    if let (Way::Single { .. }, [(host, port)]) = (&target.way, &target.hosts[..]) {
        stage.set(format!("looking up {host}"));
        if let Err(error) = tokio::net::lookup_host((host.as_str(), *port)).await {
            return Err(StoreError::Unreachable(error.to_string()).into());
        }
    }
    let hosts: Vec<_> = target.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
    stage.set(format!("connecting to {}{by}", hosts.join(", ")));
    let access = Access::read(options, target)?;
    let push = move |info: PushInfo| -> Result<(), RedisError> {
        on_push(info);
        Ok(())
    };
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(options.limit))
        // Every call has a limit of its own around it.
        .set_response_timeout(None);
    let (bulk, prompt) = match &target.way {
        Way::Single { database } => {
            let client = access.client(&target.hosts[0], *database)?;
            lines(&client, &config.set_push_sender(push)).await?
        }
        Way::Sentinel { master } => {
            let host = ask_sentinels(&access, &target.hosts, master, &config, options.limit).await?;
            stage.set(format!("connecting to {}:{}{by}, the master", host.0, host.1));
            lines(&access.client(&host, 0)?, &config.set_push_sender(push)).await?
        }
        Way::Cluster => {
            let nodes: Result<Vec<_>, _> = target.hosts.iter().map(|host| access.info(host, 0)).collect();
            let nodes = nodes?;
            let line = async |limit| {
                let mut builder = ClusterClientBuilder::new(nodes.clone())
                    .connection_timeout(options.limit)
                    .response_timeout(limit)
                    .tcp_settings(tcp())
                    .use_protocol(ProtocolVersion::RESP3)
                    .push_sender(push.clone());
                if let Some(certificates) = &access.certificates {
                    builder = builder.certs(certificates.clone());
                }
                builder.build()?.get_async_connection().await.map(Line::Many)
            };
            (line(BULK_LIMIT).await?, line(options.limit).await?)
        }
    };
    stage.set("asking what it is".to_owned());
    let mut connection = Connection { prompt, bulk };
    let info = connection.run(&scripts::FITNESS, &[&keys.leader], &[]).await?;
    let promoted = matches!(target.way, Way::Sentinel { .. } | Way::Cluster);
    let info = match info {
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => text,
        other => reply::text(other)?.unwrap_or_default(),
    };
    fit(&info, promoted)?;
    connection.prompt.subscribe(&keys.events).await?;
    Ok(connection)
}

/// Two lines to one server; what is pushed tells of the end of either.
async fn lines(client: &Client, config: &AsyncConnectionConfig) -> RedisResult<(Line, Line)> {
    let line = async || client.get_multiplexed_async_connection_with_config(config).await.map(Line::One);
    Ok((line().await?, line().await?))
}

/// Where the master is, from the first Sentinel that knows.
async fn ask_sentinels(
    access: &Access,
    sentinels: &[(String, u16)],
    master: &str,
    config: &AsyncConnectionConfig,
    limit: Duration,
) -> Result<(String, u16), Failure> {
    let mut failure = None;
    for sentinel in sentinels {
        // Sentinels often have no password where their servers have one.
        for access in [access, &access.nameless()] {
            let asked = tokio::time::timeout(limit, ask_sentinel(access, sentinel, master, config)).await;
            let why = match asked {
                Ok(Ok(host)) => return Ok(host),
                Ok(Err(failed)) => failed.error,
                Err(_) => StoreError::Unreachable(format!("no answer within {limit:?}")),
            };
            let denied = matches!(why, StoreError::Denied(_));
            failure.get_or_insert_with(|| (sentinel.clone(), why));
            if !denied {
                break;
            }
        }
    }
    let why = failure.map_or_else(String::new, |((host, port), why)| format!("{host}:{port}: {why}"));
    Err(StoreError::Unreachable(format!("no Sentinel says where {master} is; {why}")).into())
}

async fn ask_sentinel(
    access: &Access,
    sentinel: &(String, u16),
    master: &str,
    config: &AsyncConnectionConfig,
) -> Result<(String, u16), Failure> {
    let client = access.client(sentinel, 0)?;
    let mut connection = client.get_multiplexed_async_connection_with_config(config).await?;
    let mut command = ::redis::cmd("SENTINEL");
    command.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
    let answer = connection.req_packed_command(&command).await?.extract_error()?;
    if answer == Value::Nil {
        return Err(StoreError::Unfit(format!("it knows no master {master}")).into());
    }
    let [host, port] = reply::fields(answer)?;
    let port = u16::try_from(reply::number(&port)?).map_err(|_| reply::odd())?;
    Ok((reply::text(host)?.ok_or_else(reply::odd)?, port))
}

/// Refuses a server that is too old, that is no master where one was promised, or that drops keys when it is full.
fn fit(info: &str, promoted: bool) -> Result<(), StoreError> {
    let field = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
            .unwrap_or_default()
    };
    let version = field("redis_version");
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < OLDEST) {
        return Err(StoreError::Unfit(format!("it is Redis {version}, and {OLDEST}.0 is needed")));
    }
    if promoted && field("role") == "slave" {
        return Err(StoreError::Unreachable("what is named as the master is a replica".to_owned()));
    }
    let policy = field("maxmemory_policy");
    if field("maxmemory") != "0" && policy.starts_with("allkeys") {
        return Err(StoreError::Unfit(format!("it drops keys when it is full (maxmemory-policy {policy})")));
    }
    Ok(())
}

/// What opens a server: read anew for each connection, so that files may change.
struct Access {
    user: Option<String>,
    password: Option<String>,
    certificates: Option<TlsCertificates>,
}

impl Access {
    fn read(options: &RedisOptions, target: &Target) -> Result<Self, StoreError> {
        let password = match &options.password_file {
            Some(path) => {
                Some(String::from_utf8_lossy(&read(path)?).trim_end_matches(['\r', '\n']).to_owned())
            }
            None => target.password.clone(),
        };
        let certificates = if target.tls {
            let root_cert = options.ca_file.as_deref().map(read).transpose()?;
            let client_tls = match &options.client_certificate {
                Some((certificate, key)) => {
                    Some(ClientTlsConfig { client_cert: read(certificate)?, client_key: read(key)? })
                }
                None => None,
            };
            Some(TlsCertificates { client_tls, root_cert })
        } else {
            None
        };
        Ok(Self { user: target.user.clone(), password, certificates })
    }

    fn nameless(&self) -> Self {
        Self { user: None, password: None, certificates: self.certificates.clone() }
    }

    fn info(&self, (host, port): &(String, u16), database: i64) -> Result<ConnectionInfo, RedisError> {
        let mut redis = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_db(database)
            .set_skip_set_lib_name();
        if let Some(user) = &self.user {
            redis = redis.set_username(user);
        }
        if let Some(password) = &self.password {
            redis = redis.set_password(password);
        }
        let address = if self.certificates.is_some() {
            ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host.clone(), *port)
        };
        Ok(address.into_connection_info()?.set_redis_settings(redis).set_tcp_settings(tcp()))
    }

    fn client(&self, host: &(String, u16), database: i64) -> Result<Client, RedisError> {
        let info = self.info(host, database)?;
        match &self.certificates {
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
            None => Client::open(info),
        }
    }
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    fs::read(path).map_err(|error| StoreError::Unfit(format!("{} can't be read: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_would_lose_or_refuse_what_is_written_are_told_apart() {
        let info = |version: &str, role: &str, memory: &str, policy: &str| {
            format!(
                "# Server\r\nredis_version:{version}\r\n# Memory\r\nmaxmemory:{memory}\r\nmaxmemory_human:x\r\n\
                 maxmemory_policy:{policy}\r\n# Replication\r\nrole:{role}\r\n"
            )
        };
        let good = info("6.0.0", "master", "0", "noeviction");
        assert_eq!(fit(&good, true), Ok(()));
        assert_eq!(fit(&info("255.255.255", "slave", "5", "volatile-lru"), false), Ok(()));
        assert_eq!(fit(&info("7.0.15", "master", "0", "allkeys-lru"), true), Ok(()));
        for old in ["5.0.14", "2.8", "", "x"] {
            let found = fit(&info(old, "master", "0", "noeviction"), false);
            assert!(matches!(found, Err(StoreError::Unfit(_))), "{old}: {found:?}");
        }
        let replica = fit(&info("7.0.15", "slave", "0", "noeviction"), true);
        assert!(matches!(replica, Err(StoreError::Unreachable(_))), "{replica:?}");
        let drops = fit(&info("7.0.15", "master", "1", "allkeys-lru"), true);
        assert!(matches!(drops, Err(StoreError::Unfit(_))), "{drops:?}");
    }
}
