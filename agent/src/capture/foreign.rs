//! Programs of others on the hooks that ours use: what they decide comes before or after ours, so an operator shall know.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use aya::programs::tc::{SchedClassifier, TcAttachType};
use aya::programs::{ProgramInfo, loaded_programs};
use futures_util::stream::TryStreamExt;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};
use rtnetlink::Handle;

use super::features::cgroup2_mount;
use super::interfaces::Hooked;
use super::{CaptureError, acceleration, connect, guard, kernel_call, limits, pod_guard, socket_events};

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
    /// Whether it comes before one of ours on its hook: packets that it passes or takes for good, ours never see.
    pub before_ours: bool,
}

/// Which of the programs are not ours. Those of one place are given in the order in which they run.
pub fn not_ours(
    seen: &[Sighting],
    own: &BTreeSet<u32>,
    names: impl FnOnce() -> BTreeMap<u32, String>,
) -> Vec<Foreign> {
    // Of several on a cgroup all are asked, whatever the others say.
    let ordered = |hook| matches!(hook, "tcx" | "clsact");
    let same_place = |one: &Sighting, other: &Sighting| (one.hook, &one.place) == (other.hook, &other.place);
    let precedes = |at: usize, one: &Sighting| {
        let later = seen[at..].iter().filter(|other| same_place(one, other));
        ordered(one.hook) && later.into_iter().any(|other| own.contains(&other.program))
    };
    let others = seen.iter().enumerate().filter(|(_, one)| !own.contains(&one.program));
    let others: BTreeMap<&Sighting, bool> = others.map(|(at, one)| (one, precedes(at, one))).collect();
    if others.is_empty() {
        return Vec::new();
    }
    let names = names();
    let name_of = |program: u32| names.get(&program).cloned().unwrap_or_default();
    let told = others.into_iter();
    told.map(|(seen, before_ours)| Foreign { name: name_of(seen.program), seen: seen.clone(), before_ours })
        .collect()
}

/// The kernel keeps this much of a program's name.
const NAME_MAX: usize = 15;

/// Whether a program is called as an agent calls its own on this hook.
fn is_called_as_ours(hook: &str, name: &str) -> bool {
    let sockets = connect::PROGRAMS.into_iter().chain([acceleration::SOCKOPS, socket_events::PROGRAM]);
    match hook {
        "cgroup" => sockets.map(|own| &own[..own.len().min(NAME_MAX)]).any(|own| own == name),
        _ => is_an_agents(name),
    }
}

/// The programs that no agent has put where these were seen: of those of an agent, which may be at work, only the names are
/// known here.
pub fn not_an_agents(seen: &[Sighting], names: &BTreeMap<u32, String>) -> Vec<Foreign> {
    let is_own =
        |one: &&Sighting| names.get(&one.program).is_some_and(|name| is_called_as_ours(one.hook, name));
    let own = seen.iter().filter(is_own).map(|one| one.program).collect();
    not_ours(seen, &own, || names.clone())
}

impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seen: Sighting { hook, place, program }, name, before_ours } = self;
        let name = if name.is_empty() { "without a name" } else { name };
        let order = if *before_ours {
            ", BEFORE OURS: it can let through or take what policy would refuse"
        } else {
            ""
        };
        write!(f, "{hook} {place}: {name} (id {program}){order}")
    }
}

/// The names of the packet programs of an agent, whichever it is.
pub fn is_an_agents(name: &str) -> bool {
    let capture = Hooked::ALL.map(Hooked::program);
    let pods = pod_guard::HOOKS.into_iter().chain(limits::HOOKS).map(|(program, _)| program);
    capture.into_iter().chain(pods).chain([guard::PROGRAM]).any(|own| own == name)
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
    not_ours(&[seen], &BTreeSet::new(), names).into_iter().next()
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
pub fn held_by(interface: &str, Foreign { seen, name, .. }: &Foreign) -> String {
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

/// Looks at the hooks of these interfaces, and of the root of cgroup v2 and the groups from there to `cgroup`. What can't be
/// asked for has no programs: an older kernel, or an interface that has just gone.
pub async fn look(handle: &Handle, interfaces: &[(u32, String)], cgroup: Option<&Path>) -> Vec<Sighting> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let groups = groups(cgroup2_mount(&mounts), cgroup);
    let mut seen: Vec<_> = groups.iter().flat_map(|(path, of)| attached(path, of)).collect();
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

/// The groups whose programs see the sockets below `cgroup`, the outermost first, each with what is said of its programs'
/// places. Those of groups further in are not looked for.
fn groups(root: Option<PathBuf>, cgroup: Option<&Path>) -> Vec<(PathBuf, String)> {
    let within = |path: &&Path| root.as_ref().is_none_or(|root| path.starts_with(root) && *path != root);
    let inner = cgroup.into_iter().flat_map(Path::ancestors).take_while(within);
    let mut inner: Vec<_> = inner.map(|path| (path.to_owned(), format!(" of {}", path.display()))).collect();
    if root.is_none() {
        inner.truncate(1);
    }
    inner.reverse();
    root.map(|root| (root, String::new())).into_iter().chain(inner).collect()
}

/// The programs of one group; `of` is put after their places.
fn attached(group: &Path, of: &str) -> Vec<Sighting> {
    let Ok(group) = File::open(group) else { return Vec::new() };
    let mut seen = Vec::new();
    for (attach_type, place) in CGROUP_TYPES {
        let programs = kernel_call::attached_to(&group, attach_type).unwrap_or_default();
        seen.extend(programs.into_iter().map(|program| Sighting {
            hook: "cgroup",
            place: format!("{place}{of}"),
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
        let holder = |name: &str| Foreign {
            seen: sighting("xdp", "eth0", 9),
            name: name.to_owned(),
            before_ours: false,
        };
        let said = held_by("eth0", &holder("xdp_pass"));
        assert!(said.contains("xdp_pass (id 9)") && said.contains("dev eth0 xdp off"), "{said}");
        assert!(held_by("eth0", &holder("")).contains("without a name"));
        for (name, own) in [("xdp_guard", true), ("from_pod", true), ("guard_pod", true), ("xdp_pass", false)]
        {
            assert_eq!(is_an_agents(name), own, "{name}");
        }
    }

    #[test]
    fn one_that_comes_before_ours_is_told_so() {
        let (names, order) = (
            BTreeMap::from([(7, "from_pod".to_owned()), (8, "cil_from_pod".to_owned())]),
            |hook, programs: &[u32]| {
                programs.iter().map(|id| sighting(hook, "pod-a ingress", *id)).collect::<Vec<_>>()
            },
        );
        for (hook, programs, before) in
            [("tcx", [8, 7], true), ("tcx", [7, 8], false), ("clsact", [8, 7], true), ("xdp", [8, 7], false)]
        {
            let mut seen = order(hook, &programs);
            // One of ours on another hook does not count.
            seen.push(sighting("tcx", "pod-b ingress", 7));
            let found = not_an_agents(&seen, &names);
            let told: Vec<_> = found.iter().map(|one| (one.seen.program, one.before_ours)).collect();
            assert_eq!(told, [(8, before)], "{hook} {programs:?}");
            assert_eq!(found[0].to_string().contains("BEFORE OURS"), before, "{}", found[0]);
        }
        let sockets = BTreeMap::from([(1, "balance_connect".to_owned()), (2, "cil_sock4_conn".to_owned())]);
        let seen = [1, 2].map(|id| sighting("cgroup", "connect4", id));
        let found = not_an_agents(&seen, &sockets);
        assert_eq!(found.iter().map(|one| one.seen.program).collect::<Vec<_>>(), [2]);
        assert_eq!(found[0].to_string(), "cgroup connect4: cil_sock4_conn (id 2)");
    }

    #[test]
    fn groups_above_the_pods_decide_too() {
        let check = |root: Option<&str>, cgroup: Option<&str>, expected: &[&str]| {
            let found = groups(root.map(PathBuf::from), cgroup.map(Path::new));
            let paths: Vec<_> = found.iter().map(|(path, _)| path.to_str().unwrap()).collect();
            assert_eq!(paths, expected, "{root:?} {cgroup:?}");
        };
        check(Some("/cg"), Some("/cg/kube/pods"), &["/cg", "/cg/kube", "/cg/kube/pods"]);
        check(Some("/cg"), Some("/cg"), &["/cg"]);
        check(Some("/cg"), Some("/elsewhere/pods"), &["/cg"]);
        check(Some("/cg"), None, &["/cg"]);
        check(None, Some("/x/pods"), &["/x/pods"]);
        check(None, None, &[]);
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
        let found = not_ours(&seen, &own, || BTreeMap::from([(8, "cil_from_netdev".to_owned())]));
        let told: Vec<_> = found.iter().map(|one| (one.seen.place.as_str(), one.name.as_str())).collect();
        assert_eq!(told, [("eth0 ingress", "cil_from_netdev"), ("eth0", "")]);
        assert!(found.iter().all(|one| !one.before_ours), "ours is the first: {found:?}");
        let all = BTreeSet::from([7, 8, 9]);
        assert_eq!(not_ours(&seen, &all, || unreachable!("nobody needs a name")), []);
    }
}
