//! What an agent asks before its start: whether an earlier one has left policies in force.

use agent_common::policy::{PolicyAddress, PolicyPod};
use aya::maps::{HashMap as KernelMap, Map, MapData};

use super::CaptureError;
use super::pins::{self, Bpffs};

/// Whether the maps that are pinned for the caller's namespace hold pods under policy.
pub fn policies_left(bpffs: &Bpffs) -> Result<bool, CaptureError> {
    let Some((pins, names)) = pins::left_behind(bpffs)? else { return Ok(false) };
    let Ok(root) = pins.directory() else { return Ok(false) };
    let mut maps = names.iter().filter(|name| name.ends_with("/POLICY_PODS"));
    // What can't be opened can't be replaced either: the start itself fails, and says why.
    Ok(maps.any(|name| MapData::from_pin(root.join(name)).is_ok_and(holds_pods)))
}

/// A map of another shape may hold anything.
fn holds_pods(data: MapData) -> bool {
    let pods: Result<KernelMap<_, PolicyAddress, PolicyPod>, _> = KernelMap::try_from(Map::HashMap(data));
    pods.map_or(true, |pods| pods.keys().next().is_some())
}
