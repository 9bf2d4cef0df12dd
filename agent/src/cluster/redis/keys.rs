//! The keys of one cluster. They share a hash tag, so that they share a slot of a Redis Cluster.

use crate::cluster::StoreError;

/// The longest name of a cluster.
const NAME_MAX: usize = 63;

pub(super) struct Keys {
    pub leader: String,
    pub epoch: String,
    pub terms: String,
    pub nodes: String,
    /// What the key of a node's record begins with.
    pub node: String,
    pub store: String,
    pub revision: String,
    pub config: String,
    pub revisions: String,
    pub deleted: String,
    pub table: String,
    pub log: String,
    /// The channel.
    pub events: String,
    /// What the keys of counters begin with. They are many, and so spread over a Redis Cluster: their hash tag comes after.
    pub limit: String,
    /// What the key begins with of what a node has leased.
    pub leased: String,
}

impl Keys {
    /// The keys of the cluster of this name.
    pub fn new(cluster: &str) -> Result<Self, StoreError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if cluster.is_empty() || cluster.len() > NAME_MAX || !cluster.bytes().all(fits) {
            return Err(StoreError::Unfit(format!(
                "a cluster's name is of 1 to {NAME_MAX} letters, digits, dots, hyphens and underscores"
            )));
        }
        let key = |name: &str| format!("{{sluice:{cluster}}}:{name}");
        Ok(Self {
            leader: key("leader"),
            epoch: key("epoch"),
            terms: key("terms"),
            nodes: key("nodes"),
            node: key("node:"),
            store: key("store"),
            revision: key("revision"),
            config: key("config"),
            revisions: key("revisions"),
            deleted: key("deleted"),
            table: key("table"),
            log: key("log"),
            events: key("events"),
            limit: format!("sluice:{cluster}:limit:"),
            leased: key("leased:"),
        })
    }

    /// The key of a node's record.
    pub fn record(&self, node: &str) -> String {
        format!("{}{node}", self.node)
    }
}
