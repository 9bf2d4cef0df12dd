//! Limits of the kernel where they are held to: raw requests for connections and real clients, in both families; a counter within
//! the pod shows what got through.

mod common;

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use lab::documents::replace_file;
use lab::{
    AgentOptions, Footprint, Lab, PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for,
};
use serde_json::Value;

const NODE: &str = "node1";
const PORT: u16 = 8080;
/// How long a client waits that is expected to get nothing; the kernel asks anew after a second.
const BRIEF: Duration = Duration::from_millis(600);
const KERNEL_TOTAL: &str = "sluice_rate_limit_kernel_total";
/// Sends requests for connections to an address and port, each from another port, so many, with so long between two.
const SYNS: &str = "import socket,sys,time
to,port,count,gap=sys.argv[1],int(sys.argv[2]),int(sys.argv[3]),float(sys.argv[4])
s=socket.socket(socket.AF_INET6 if ':' in to else socket.AF_INET, socket.SOCK_RAW, 6)
for n in range(count):
 own=1024+n%60000
 head=own.to_bytes(2,'big')+port.to_bytes(2,'big')+bytes([0,0,0,1, 0,0,0,0, 0x50,2,255,255, 0,0,0,0])
 s.sendto(head,(to,0))
 if gap: time.sleep(gap)
";

fn topology() -> Topology {
    let client = |name: &str, node: &str, namespace: &str| PodSpec {
        namespace: namespace.to_owned(),
        ..PodSpec::new(name, node)
    };
    Topology::with_nodes(2)
        .pod(client("alice", NODE, "good"))
        .pod(client("twin", NODE, "good"))
        .pod(client("bob", NODE, "bad"))
        .pod(client("far", "node2", "bad"))
        .pod(PodSpec::new("server", NODE).label("app", "server").runs(Program::Http { port: PORT }))
        .service(ServiceSpec::new("server").port("http", 80, PORT))
}

/// A RateLimit of the service, with this limit alone.
fn document(limit: &str) -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: calm}}\nspec:\n  \
         targetRefs: [{{kind: Service, name: server}}]\n  limits:\n  - {{name: dials, {limit}{}",
        if limit.ends_with('\n') { "" } else { "}\n" }
    )
}

/// One agent, on the server's node, with further arguments.
fn up(name: &str, limit: &str, arguments: &[&str]) -> Result<Mesh> {
    let lab = Lab::for_test(name, topology())?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    replace_file(&config.join("limit.yaml"), &document(limit))?;
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    count_in_server(&mesh, &["alice", "twin", "bob", "far"])?;
    let options = AgentOptions::new(&mesh.config)?.with(arguments.iter().copied());
    mesh.agents.push(mesh.lab.node(NODE)?.start_agent(&options)?);
    Ok(mesh)
}

/// Counts requests for connections, within the server and before anything else sees them, by pod.
fn count_in_server(mesh: &Mesh, pods: &[&str]) -> Result<()> {
    let (mut names, mut chain) = (String::new(), String::new());
    for pod in pods {
        writeln!(names, "counter {pod} {{}}")?;
        for (family, word) in ["ip", "ip6"].into_iter().enumerate() {
            let source = mesh.pod_ip(pod, family)?;
            writeln!(chain, "{word} saddr {source} tcp flags & (syn | ack) == syn counter name {pod}")?;
        }
    }
    let hook = "type filter hook prerouting priority -400;";
    let table = format!("table inet seen {{\n{names}chain in {{ {hook}\n{chain}}}\n}}\n");
    mesh.lab.pod("server")?.netns().nft(&table)
}

fn seen(mesh: &Mesh, pod: &str) -> Result<u64> {
    let mut nft = mesh.lab.pod("server")?.command("nft")?;
    let text = exec::stdout(nft.args(["list", "counter", "inet", "seen", pod]))?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let packets = words.iter().position(|word| *word == "packets").context("no packets in the counter")?;
    words[packets + 1].parse().with_context(|| text.clone())
}

/// Sends so many requests for connections from a pod; how many got through, and how long it took.
fn flood(mesh: &Mesh, pod: &str, to: IpAddr, (count, gap): (u32, &str)) -> Result<(u64, Duration)> {
    let (before, begin) = (seen(mesh, pod)?, Instant::now());
    let arguments = [&to.to_string(), &PORT.to_string(), &count.to_string(), gap];
    exec::stdout(mesh.lab.pod(pod)?.command("python3")?.args(["-c", SYNS]).args(arguments))?;
    Ok((seen(mesh, pod)? - before, begin.elapsed()))
}

/// Fails where fewer got through than a burst, or more than that and what came to it meanwhile.
fn within((through, took): (u64, Duration), burst: u64, per_second: u64, who: &str) -> Result<()> {
    let came = u64::try_from(took.as_millis())? * per_second / 1000 + 1;
    ensure!((burst..=burst + came).contains(&through), "{who}: {through} of {burst} and {came} in {took:?}");
    Ok(())
}

fn counted(mesh: &Mesh, outcome: &str) -> Result<u64> {
    let series = format!("{KERNEL_TOTAL}{{limit=\"dials\",outcome=\"{outcome}\",policy=\"default/calm\"}}");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of packets")]
    let count = mesh.metric(NODE, &series)? as u64;
    Ok(count)
}

/// Replaces the limit and waits until it is in force.
fn edit(mesh: &Mesh, limit: &str) -> Result<()> {
    let version = mesh.version(NODE)?;
    mesh.write("limit.yaml", &document(limit))?;
    mesh.wait_version_above(NODE, version)?;
    wait_for("the kernel to be told", LIMIT, || {
        // A limit that means another thing begins to count anew.
        counted(mesh, "admitted").is_ok_and(|admitted| admitted == 0)
    })
}

fn programs(mesh: &Mesh) -> Result<usize> {
    let footprint = Footprint::of(&mesh.lab.node(NODE)?)?;
    Ok(footprint.lines().filter(|line| line.contains("limit_pod")).count())
}

#[test]
fn each_source_is_held_to_its_rate_until_the_limit_changes_or_goes() -> Result<()> {
    if unprivileged("each_source_is_held_to_its_rate_until_the_limit_changes_or_goes") {
        return Ok(());
    }
    let rate = "kernel: {count: Connections}, key: [{type: SourceAddress}]";
    let mesh = up("kernel_rate", &format!("{rate}, rate: {{requests: 10, per: 1s, burst: 20}}"), &[])?;
    ensure!(programs(&mesh)? >= 4, "{} programs at four pods", programs(&mesh)?);
    let (mut through, mut sent) = (0, 0);
    for family in 0..2 {
        let server = mesh.pod_ip("server", family)?;
        for pod in ["alice", "far"] {
            let flooded = flood(&mesh, pod, server, (500, "0"))?;
            within(flooded, 20, 10, pod)?;
            // Whoever floods has used up nothing but its own.
            let (bobs, _) = flood(&mesh, "bob", server, (5, "0"))?;
            ensure!(bobs == 5, "{bobs} of bob's five got through");
            (through, sent) = (through + flooded.0 + bobs, sent + 505);
        }
    }
    ensure!(counted(&mesh, "admitted")? == through, "{} of {through}", counted(&mesh, "admitted")?);
    ensure!(counted(&mesh, "refused")? == sent - through, "{} of {sent}", counted(&mesh, "refused")?);
    it_is_shown(&mesh, through)?;

    edit(&mesh, &format!("{rate}, rate: {{requests: 1000, per: 1s, burst: 1000}}"))?;
    for family in 0..2 {
        let (through, _) = flood(&mesh, "alice", mesh.pod_ip("server", family)?, (300, "0"))?;
        ensure!(through == 300, "{through} of 300 within a wider limit");
    }
    // Neither who is exempt nor what a limit only counts is dropped.
    let narrow = format!("{rate}, rate: {{requests: 1, per: 1m, burst: 2}}");
    for more in ["exempt: [10.0.0.0/8, 'fd00::/8']}\n", "exempt: [192.0.2.0/24]}\n  mode: Shadow\n"] {
        edit(&mesh, &format!("{narrow}, {more}"))?;
        for family in 0..2 {
            let (through, _) = flood(&mesh, "alice", mesh.pod_ip("server", family)?, (50, "0"))?;
            ensure!(through == 50, "{more}: {through} of 50");
        }
        let shadow = more.contains("Shadow");
        ensure!(shadow || counted(&mesh, "admitted")? == 0, "who is exempt is counted");
    }
    ensure!(counted(&mesh, "shadow_refused")? >= 96, "{} counted", counted(&mesh, "shadow_refused")?);

    std::fs::remove_file(mesh.config.join("limit.yaml"))?;
    wait_for("the program to go", LIMIT, || programs(&mesh).is_ok_and(|programs| programs == 0))?;
    for family in 0..2 {
        let (through, _) = flood(&mesh, "alice", mesh.pod_ip("server", family)?, (300, "0"))?;
        ensure!(through == 300, "{through} of 300 without a limit");
    }
    Ok(())
}

/// `limits`, `observe`, `why` and the metrics tell of what was refused, and by which limit.
fn it_is_shown(mesh: &Mesh, admitted: u64) -> Result<()> {
    let dump = mesh.verb(NODE, "limits")?;
    let limit = &dump["limits"][0];
    ensure!(limit["tier"] == "kernel" && limit["admitted"] == admitted, "{limit}");
    // Three pods, in two families.
    ensure!(limit["keys"] == 6 && limit["evicted"] == 0, "{limit}");
    let held = limit["held"].as_str().is_some_and(|held| held.contains("at this node's pods"));
    let why = limit["why"].as_str().is_some_and(|why| why.contains("tc drops"));
    ensure!(held && why && limit["counts"] == "connections", "{limit}");
    let sluice = |arguments: &[&str]| -> Result<String> {
        let binary = lab::agent::built_binary()?;
        exec::stdout(mesh.lab.node(NODE)?.command(binary)?.args(arguments))
    };
    let told = sluice(&["observe", "-o", "json", "--last", "1000", "--verdict", "rate_limited"])?;
    let told: Value = serde_json::from_str(told.lines().next().context("nothing was told")?)?;
    ensure!(
        told["policy"] == "default/calm" && told["rule"] == "dials" && told["tier"] == "kernel",
        "{told}"
    );
    let lines = sluice(&["observe", "--last", "1000", "--verdict", "rate_limited"])?;
    ensure!(lines.contains("RateLimit default/calm limit dials"), "{lines}");
    let to = SocketAddr::new(mesh.pod_ip("server", 0)?, PORT).to_string();
    let why = sluice(&["why", &mesh.pod_ip("alice", 0)?.to_string(), &to])?;
    ensure!(why.contains("RateLimit default/calm limit dials (connections, 10 in 1s, 20 at once"), "{why}");
    let buckets = mesh.metric(NODE, "sluice_bpf_map_capacity{map=\"LIMIT_BUCKETS\"}")?;
    ensure!(buckets > 65_535.0, "room for {buckets}");
    ensure!(
        mesh.metric(NODE, "sluice_rate_limit_keys{limit=\"dials\",policy=\"default/calm\"}")? > 5.5,
        "no keys"
    );
    wait_for("the map's use to be told", LIMIT, || {
        mesh.metric(NODE, "sluice_bpf_map_entries{map=\"LIMIT_BUCKETS\"}").is_ok_and(|entries| entries > 5.5)
    })
}

/// How many of so many connections are accepted, one after another.
fn dial(mesh: &Mesh, pod: &str, to: SocketAddr, count: usize) -> Result<usize> {
    let dial = || (0..count).filter(|_| TcpStream::connect_timeout(&to, BRIEF).is_ok()).count();
    mesh.lab.pod(pod)?.in_netns(dial)
}

/// What the agent takes is counted where it takes it, and its own connections to the pod are not counted again.
#[test]
fn real_clients_are_counted_once_whichever_way_they_come() -> Result<()> {
    if unprivileged("real_clients_are_counted_once_whichever_way_they_come") {
        return Ok(());
    }
    let rate = "kernel: {count: Connections}, rate: {requests: 1, per: 10m, burst: 5}";
    let mesh = up("kernel_taken", &format!("{rate}, key: [{{type: SourceAddress}}]"), &[])?;
    for family in 0..2 {
        let service = mesh.service("server", family, 80)?;
        let pod = SocketAddr::new(mesh.pod_ip("server", family)?, PORT);
        ensure!(dial(&mesh, "alice", service, 9)? == 5, "taken by the agent");
        ensure!(dial(&mesh, "alice", pod, 3)? == 0, "her bucket is one");
        ensure!(dial(&mesh, "bob", pod, 3)? == 3 && dial(&mesh, "bob", service, 9)? == 2, "bob has his own");
        // Requests on a connection that is there are not counted.
        let answers = mesh.lab.pod("twin")?.in_netns(|| -> Result<usize> {
            let mut connection = lab::http::Connection::open(service, LIMIT)?;
            let ask = |connection: &mut lab::http::Connection| connection.get("server", "/", &[]);
            Ok((0..20).filter(|_| ask(&mut connection).is_ok_and(|answer| answer.status == 200)).count())
        })??;
        ensure!(answers == 20, "{answers} of 20 requests of one connection");
    }
    ensure!(counted(&mesh, "admitted")? == 22, "{} connections", counted(&mesh, "admitted")?);

    edit(&mesh, &format!("{rate}, key: [{{type: SourceIdentity}}], ifMissing: Exempt"))?;
    for family in 0..2 {
        let pod = SocketAddr::new(mesh.pod_ip("server", family)?, PORT);
        let of = |name: &str, count| dial(&mesh, name, pod, count);
        // One identity for both families: the first round uses it up.
        let expected = if family == 0 { (3, 2, 5) } else { (0, 0, 0) };
        let got = (of("alice", 3)?, of("twin", 4)?, of("bob", 7)?);
        ensure!(got == expected, "family {family}: {got:?} by identity");
    }
    edit(&mesh, &format!("{rate}, key: []"))?;
    let pod = SocketAddr::new(mesh.pod_ip("server", 1)?, PORT);
    let got = (dial(&mesh, "alice", pod, 3)?, dial(&mesh, "bob", pod, 4)?);
    ensure!(got == (3, 2), "{got:?} all together");
    Ok(())
}

/// Of a connection that the agent does not take all packets count; of one that it takes, the first alone.
#[test]
fn packets_of_real_connections_are_counted_where_they_enter_the_pod() -> Result<()> {
    if unprivileged("packets_of_real_connections_are_counted_where_they_enter_the_pod") {
        return Ok(());
    }
    let rate = "kernel: {count: Packets}, rate: {requests: 1, per: 10m, burst: 100}";
    let mesh = up("kernel_packets", &format!("{rate}, key: [{{type: SourceAddress}}]"), &[])?;
    for family in 0..2 {
        let service = mesh.service("server", family, 80)?;
        let pod = SocketAddr::new(mesh.pod_ip("server", family)?, PORT);
        let ask = |name: &str, to: SocketAddr| -> Result<usize> {
            mesh.lab.pod(name)?.in_netns(move || {
                let mut connection = lab::http::Connection::open(to, BRIEF)?;
                Ok((0..500).take_while(|_| connection.get("server", "/", &[]).is_ok()).count())
            })?
        };
        // Each request is a packet, and its answer is acknowledged by the next or by one of its own.
        let alices = ask("alice", pod)?;
        ensure!((40..100).contains(&alices), "{alices} of alice's requests were answered");
        ensure!(ask("bob", pod)? >= 40, "bob is cut as well");
        ensure!(ask("twin", service)? == 500, "what the agent took is counted again");
        ensure!(dial(&mesh, "alice", service, 1)? == 0, "her bucket is one");
    }
    ensure!(counted(&mesh, "admitted")? == 402, "{} packets", counted(&mesh, "admitted")?);
    Ok(())
}

/// Killed, gone and started again: nothing is let through beyond the limit, and nobody's bucket begins anew.
#[test]
fn an_agent_that_comes_back_goes_on_with_the_same_buckets() -> Result<()> {
    if unprivileged("an_agent_that_comes_back_goes_on_with_the_same_buckets") {
        return Ok(());
    }
    let limit =
        "kernel: {count: Connections}, key: [{type: SourceAddress}], rate: {requests: 5, per: 1s, burst: 50}";
    let lab = Lab::for_test("kernel_adopts", topology())?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    replace_file(&config.join("limit.yaml"), &document(limit))?;
    let mesh = Mesh { agents: Vec::new(), lab, config };
    count_in_server(&mesh, &["alice", "bob"])?;
    let bpffs = mesh.lab.node(NODE)?.mount_bpffs()?;
    let options = AgentOptions::new(&mesh.config)?.with(["--bpffs".to_owned(), bpffs.display().to_string()]);
    let options = options.with(["--drain-timeout", "1"]);
    let start = || mesh.lab.node(NODE)?.start_agent(&options);
    for family in 0..2 {
        let agent = start()?;
        let server = mesh.pod_ip("server", family)?;
        let (through, took) = std::thread::scope(|scope| -> Result<(u64, Duration)> {
            // Some 3000, for as long as all that follows takes.
            let flooding = scope.spawn(|| flood(&mesh, "alice", server, (3000, "0.002")));
            agent.kill9()?;
            let (bobs, _) = flood(&mesh, "bob", server, (10, "0"))?;
            ensure!(bobs == 10, "{bobs} of bob's ten got through while no agent runs");
            let second = start()?;
            second.kill9()?;
            let third = start()?;
            let flooded = flooding.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
            ensure!(third.terminate()?.success(), "the agent failed at its stop");
            Ok(flooded)
        })?;
        println!("family {family}: {through} got through in {took:?}");
        within((through, took), 50, 5, "alice")?;
        // An agent that stops takes the limit off.
        let (through, _) = flood(&mesh, "alice", server, (100, "0"))?;
        ensure!(through == 100, "{through} of 100 after a stop");
    }
    Ok(())
}
