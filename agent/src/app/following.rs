//! Where tables come from: the documents of a directory, or the cluster.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::follow::{Follower, retry};
use super::status::Observed;
use super::{DocumentSource, Settings, cluster};
use crate::capture::policies_left;
use crate::cluster::{Handle, Readiness};
use crate::config::{self, State};
use crate::health::PodHealth;

/// How long the store may take to hear that this agent ends.
const GOODBYE: Duration = Duration::from_secs(2);

/// Whoever puts tables in force.
pub(super) enum Following {
    /// A directory whose first documents are in force, and those that come.
    /// Its pods that fail their checks are told by the last.
    Read(Box<Follower>, mpsc::Receiver<State>, watch::Sender<Arc<PodHealth>>),
    /// The directory is followed.
    Directory(JoinHandle<()>),
    /// The cluster, and the listeners that could not be opened.
    Cluster(Box<Handle>, JoinHandle<()>),
    /// Nobody any more.
    Stopped,
}

impl Following {
    /// Puts the first table in force, where there is one at once.
    pub(super) fn start(
        settings: &Settings,
        observed: &Arc<Observed>,
        mut follower: Follower,
    ) -> anyhow::Result<Self> {
        match &settings.documents {
            DocumentSource::Directory(dir) => {
                let (state, changes) = config::watch(dir.clone()).context("--config")?;
                follower.first(state, settings.capture.is_some())?;
                Ok(Self::Read(Box::new(follower), changes, watch::Sender::default()))
            }
            DocumentSource::Cluster(options) => {
                let follower = Arc::new(Mutex::new(follower));
                let handle = cluster::join(settings, options, observed, &follower)?;
                Ok(Self::Cluster(Box::new(handle), tokio::spawn(retry(follower))))
            }
        }
    }

    /// Waits until a table is in force: whoever captures without one would lift what an earlier agent's refuses.
    pub(super) async fn wait_for_table(&mut self, settings: &Settings) -> anyhow::Result<()> {
        let Self::Cluster(handle, _) = self else { return Ok(()) };
        let bpffs = settings.capture.as_ref().map(|capture| &capture.bpffs);
        let enough = match bpffs.map(policies_left).transpose()? {
            Some(true) => Readiness::InForce,
            _ => Readiness::Empty,
        };
        if *handle.ready.borrow() < enough {
            tracing::info!("waiting for the first table of the cluster");
        }
        handle.ready.wait_for(|ready| *ready >= enough).await.context("the cluster's tasks have ended")?;
        Ok(())
    }

    /// Follows what comes.
    pub(super) fn go_on(&mut self) {
        *self = match std::mem::replace(self, Self::Stopped) {
            Self::Read(follower, changes, health) => {
                Self::Directory(tokio::spawn(follower.run(changes, health.subscribe())))
            }
            other => other,
        };
    }

    /// Where it is told how the pods of this node are.
    pub(super) fn health(&self) -> watch::Sender<Arc<PodHealth>> {
        match self {
            Self::Read(_, _, health) => health.clone(),
            Self::Cluster(handle, _) => handle.health(),
            Self::Directory(_) | Self::Stopped => watch::Sender::default(),
        }
    }

    /// Puts no table in force any more; the cluster hears that this agent ends.
    pub(super) async fn drain(&mut self) {
        match self {
            Self::Directory(task) => task.abort(),
            Self::Cluster(handle, retry) => {
                retry.abort();
                handle.drain(GOODBYE).await;
            }
            Self::Read(..) | Self::Stopped => {}
        }
    }

    /// Likewise, and the cluster hears no more of this agent.
    pub(super) async fn stop(self) {
        match self {
            Self::Directory(task) => task.abort(),
            Self::Cluster(handle, retry) => {
                retry.abort();
                handle.stop(GOODBYE).await;
            }
            Self::Read(..) | Self::Stopped => {}
        }
    }
}
