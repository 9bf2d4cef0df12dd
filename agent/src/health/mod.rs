//! Health checks: the agent asks the pods of its node whether they can take work, as their documents say.
//!
//! [`standing`] counts outcomes and [`roster`] knows who is to be asked when; both are pure, as is what follows for
//! a model ([`take_out`]). [`check`] asks one pod once, and
//! [`checker`] runs all of it. Who hears of a pod that fails is none of its business.

mod check;
mod checker;
mod grpc;
mod overlay;
mod roster;
mod standing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

pub use check::{Failed, probe};
pub use checker::{Asked, Checker, ProbeCounts};
pub use overlay::take_out;
pub use roster::{Job, ProbeId, Roster};
pub use standing::{Standing, Thresholds};

use crate::model::ObjectName;

/// What is known of the pods of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodHealth {
    /// How many there are, asked or not.
    pub pods: usize,
    /// Those that take no work, by uid.
    pub failing: BTreeMap<Arc<str>, Failing>,
}

/// A pod that takes no work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// The pod.
    pub pod: ObjectName,
    /// Why, as it was found last.
    pub why: String,
    /// Since when.
    pub since: SystemTime,
}
