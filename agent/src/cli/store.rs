//! What verbs that talk to the cluster's store have in common: where it is, and asking it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use crate::cluster::{Documents, RedisOptions, RedisStore, Store as _};

/// How long a verb waits for the store.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the cluster's store is.
#[derive(Debug, Clone, Args)]
pub(super) struct StoreArgs {
    /// The Redis that the cluster shares: `redis://`, `rediss://` (TLS), `redis+sentinel://HOST,HOST/MASTER`,
    /// `redis+cluster://HOST,HOST`, each with `USER:PASSWORD@` before the host where it asks for them.
    #[arg(long, env = "SLUICE_REDIS", value_name = "URL", hide_env_values = true)]
    pub redis: Option<String>,
    /// A file with the password of --redis, instead of one in the URL.
    #[arg(long, env = "SLUICE_REDIS_PASSWORD_FILE", value_name = "FILE")]
    redis_password_file: Option<PathBuf>,
    /// The authorities (PEM) of which one must have signed Redis' certificate. Default: the system's.
    #[arg(long, env = "SLUICE_REDIS_CA", value_name = "FILE")]
    redis_ca: Option<PathBuf>,
    /// The certificate (PEM) that is shown to Redis.
    #[arg(long, env = "SLUICE_REDIS_CERT", value_name = "FILE", requires = "redis_key")]
    redis_cert: Option<PathBuf>,
    /// The key (PEM) of --redis-cert.
    #[arg(long, env = "SLUICE_REDIS_KEY", value_name = "FILE", requires = "redis_cert")]
    redis_key: Option<PathBuf>,
}

impl StoreArgs {
    /// How Redis is reached; `None`: it is not named.
    pub(super) fn options(&self, cluster: &str, limit: Duration) -> Option<RedisOptions> {
        let url = self.redis.as_ref()?;
        Some(RedisOptions {
            password_file: self.redis_password_file.clone(),
            ca_file: self.redis_ca.clone(),
            client_certificate: self.redis_cert.clone().zip(self.redis_key.clone()),
            limit,
            ..RedisOptions::new(url, cluster)
        })
    }
}

/// A verb's way to the store.
#[derive(Debug, Clone, Args)]
pub(super) struct StoreClientArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The cluster's name.
    #[arg(long, env = "SLUICE_CLUSTER", default_value = "Kubernetes")]
    cluster: String,
}

impl StoreClientArgs {
    /// The cluster's name.
    pub(super) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Runs something with the store.
    pub(super) fn with<T>(
        &self,
        run: impl AsyncFnOnce(&RedisStore) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let options =
            self.store.options(&self.cluster, PATIENCE).context("--redis says where the store is")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let store = RedisStore::connect(options)?;
            run(&store).await
        })
    }
}

/// All documents of the store.
pub(super) async fn all(store: &RedisStore) -> anyhow::Result<Documents> {
    let found = store.documents("", 0).await?;
    for odd in &found.odd {
        eprintln!("somebody has written to the store past all that writes documents: {odd}");
    }
    Ok(found)
}
