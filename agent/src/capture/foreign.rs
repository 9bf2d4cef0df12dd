//! Programs of others on the hooks that ours use: what they decide comes before or after ours, so an operator shall know.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};

use aya::programs::tc::{SchedClassifier, TcAttachType};
use aya::programs::{ProgramInfo, loaded_programs};
use futures_util::stream::TryStreamExt;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};
use rtnetlink::Handle;

use super::features::cgroup2_mount;
use super::interfaces::Hooked;
use super::{CaptureError, guard, kernel_call, pod_guard};

/// The hooks that are looked at, as the metric's label names them.
pub const HOOKS: [&str; 4] = ["tcx", "clsact", "xdp", "cgroup"];

/// Attach types of a cgroup that decide about sockets: inet ingress and egress, `sock_ops`, connect, sendmsg, recvmsg,
/// getpeername, each for both families; the kernel's `enum bpf_attach_type`.
const CGROUP_TYPES: [(u32, &str); 11] = [
    (0, "ingress"),
    (1, "egress"),
    (3, "sock_ops"),
    (10, "connect4"),
    (11, "connect6"),
    (14, "sendmsg4"),
    (15, "sendmsg6"),
    (19, "recvmsg4"),
    (20, "recvmsg6"),
    (29, "getpeername4"),
    (30, "getpeername6"),
];

/// A program on a hook.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sighting {
    /// One of [`HOOKS`].
    pub hook: &'static str,
    /// The interface and the side, or the cgroup's attach type.
    pub place: String,
    /// The kernel's number of the program.
    pub program: u32,
}

/// A program that is not ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Foreign {
    /// Where it is.
    pub seen: Sighting,
    /// Its name; empty where it has none.
    pub name: String,
}

/// Which of the programs are not ours.
pub fn not_ours(
    seen: Vec<Sighting>,
    own: &BTreeSet<u32>,
    names: impl FnOnce() -> BTreeMap<u32, String>,
) -> Vec<Foreign> {
    let mut others: Vec<Sighting> = seen.into_iter().filter(|one| !own.contains(&one.program)).collect();
    if others.is_empty() {
        return Vec::new();
    }
    others.sort();
    others.dedup();
    let names = names();
    let name_of = |program: u32| names.get(&program).cloned().unwrap_or_default();
    others.into_iter().map(|seen| Foreign { name: name_of(seen.program), seen }).collect()
}

/// The names of the packet programs of an agent, whichever it is.
pub fn is_an_agents(name: &str) -> bool {
    let capture = Hooked::ALL.map(Hooked::program);
    let policy = pod_guard::HOOKS.map(|(program, _)| program);
    capture.into_iter().chain(policy).chain([guard::PROGRAM]).any(|own| own == name)
}

/// Who has the XDP hook of an interface, where somebody does.
pub async fn xdp_holder(handle: &Handle, interface: &str) -> Option<Foreign> {
    let links: Vec<_> = handle
        .link()
        .get()
        .match_name(interface.to_owned())
        .execute()
        .try_collect()
        .await
        .unwrap_or_default();
    let seen = xdp_sighting(&links, interface)?;
    not_ours(vec![seen], &BTreeSet::new(), names).into_iter().next()
}

/// Names the program that keeps the guard off its interface, where that is the reason.
pub async fn name_holder(handle: &Handle, error: CaptureError) -> CaptureError {
    let CaptureError::Guard { interface, reason } = error else { return error };
    let reason = match xdp_holder(handle, &interface).await {
        Some(holder) if !is_an_agents(&holder.name) => format!("{reason}; {}", held_by(&interface, &holder)),
        _ => reason,
    };
    CaptureError::Guard { interface, reason }
}

/// Who is in the guard's place.
pub fn held_by(interface: &str, Foreign { seen, name }: &Foreign) -> String {
    let name = if name.is_empty() { "without a name" } else { name };
    format!(
        "XDP program {name} (id {}) is on it, and there is one place; `ip link set dev {interface} xdp off` takes it \
         off where no link holds it",
        seen.program
    )
}

/// The names of all programs that are loaded.
pub fn names() -> BTreeMap<u32, String> {
    let named = |info: ProgramInfo| (info.id(), info.name_as_str().unwrap_or_default().to_owned());
    loaded_programs().flatten().map(named).collect()
}

/// Looks at the hooks of these interfaces and of the root of cgroup v2. What can't be asked for has no programs: an older
/// kernel, or an interface that has just gone.
pub async fn look(handle: &Handle, interfaces: &[(u32, String)]) -> Vec<Sighting> {
    let mut seen = cgroup();
    for (index, name) in interfaces {
        for (side, attach) in [("ingress", TcAttachType::Ingress), ("egress", TcAttachType::Egress)] {
            let programs = SchedClassifier::query_tcx(name, attach).map_or(Vec::new(), |(_, found)| found);
            let place = format!("{name} {side}");
            let sighting =
                |info: &ProgramInfo| Sighting { hook: "tcx", place: place.clone(), program: info.id() };
            seen.extend(programs.iter().map(sighting));
        }
        seen.extend(filters(handle, *index, name).await);
        seen.extend(xdp(handle, *index, name).await);
    }
    seen
}

async fn filters(handle: &Handle, index: u32, name: &str) -> Vec<Sighting> {
    let Ok(index) = i32::try_from(index) else { return Vec::new() };
    let all = || handle.traffic_filter(index).get();
    let mut seen = Vec::new();
    for (side, request) in [("ingress", all().ingress()), ("egress", all().egress())] {
        let messages: Vec<TcMessage> = request.execute().try_collect().await.unwrap_or_default();
        seen.extend(messages.iter().filter_map(filter_program).map(|program| Sighting {
            hook: "clsact",
            place: format!("{name} {side}"),
            program,
        }));
    }
    seen
}

fn filter_program(message: &TcMessage) -> Option<u32> {
    let options = message.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options.iter()),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    })
}

async fn xdp(handle: &Handle, index: u32, name: &str) -> Option<Sighting> {
    let messages: Vec<_> =
        handle.link().get().match_index(index).execute().try_collect().await.unwrap_or_default();
    xdp_sighting(&messages, name)
}

fn xdp_sighting(links: &[LinkMessage], name: &str) -> Option<Sighting> {
    let attributes = links.iter().flat_map(|message| &message.attributes);
    let program = attributes.flat_map(|attribute| match attribute {
        LinkAttribute::Xdp(parts) => parts.as_slice(),
        _ => &[],
    });
    program.clone().find_map(|part| match part {
        LinkXdp::ProgId(id) if *id != 0 => {
            Some(Sighting { hook: "xdp", place: name.to_owned(), program: *id })
        }
        _ => None,
    })
}

fn cgroup() -> Vec<Sighting> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let Some(root) = cgroup2_mount(&mounts) else { return Vec::new() };
    let Ok(root) = File::open(root) else { return Vec::new() };
    let mut seen = Vec::new();
    for (attach_type, place) in CGROUP_TYPES {
        let programs = kernel_call::attached_to(&root, attach_type).unwrap_or_default();
        seen.extend(programs.into_iter().map(|program| Sighting {
            hook: "cgroup",
            place: place.to_owned(),
            program,
        }));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sighting(hook: &'static str, place: &str, program: u32) -> Sighting {
        Sighting { hook, place: place.to_owned(), program }
    }

    #[test]
    fn who_is_in_the_guards_place_is_named() {
        let holder = |name: &str| Foreign { seen: sighting("xdp", "eth0", 9), name: name.to_owned() };
        let said = held_by("eth0", &holder("xdp_pass"));
        assert!(said.contains("xdp_pass (id 9)") && said.contains("dev eth0 xdp off"), "{said}");
        assert!(held_by("eth0", &holder("")).contains("without a name"));
        for (name, own) in [("xdp_guard", true), ("from_pod", true), ("guard_pod", true), ("xdp_pass", false)]
        {
            assert_eq!(is_an_agents(name), own, "{name}");
        }
    }

    #[test]
    fn only_others_are_told_once_each_with_their_names() {
        let seen = vec![
            sighting("tcx", "eth0 ingress", 7),
            sighting("xdp", "eth0", 9),
            sighting("tcx", "eth0 ingress", 8),
            sighting("tcx", "eth0 ingress", 8),
        ];
        let own = BTreeSet::from([7]);
        let found = not_ours(seen.clone(), &own, || BTreeMap::from([(8, "cil_from_netdev".to_owned())]));
        let told: Vec<_> = found.iter().map(|one| (one.seen.place.as_str(), one.name.as_str())).collect();
        assert_eq!(told, [("eth0 ingress", "cil_from_netdev"), ("eth0", "")]);
        let all = BTreeSet::from([7, 8, 9]);
        assert_eq!(not_ours(seen, &all, || unreachable!("nobody needs a name")), []);
    }
}
