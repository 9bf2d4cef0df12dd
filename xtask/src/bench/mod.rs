//! `cargo xtask bench`: the agent beside its peers, in one lab and one run. Only ratios of values taken in the same round
//! carry over to another machine.

mod chart;
mod cluster;
mod contender;
mod facts;
mod figure;
mod floods;
mod idle;
mod kernel;
mod limit;
mod load;
mod open_loop;
mod process;
mod report;
mod row;
mod run;
mod tls;
mod track;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::is_root;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use contender::{Binaries, Contender};
use row::Work;
use track::Track;

/// What is compared.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// HTTP reverse proxies: requests and connections per second, latency, processor time, memory
    Http(Options),
    /// A well-behaved client's p99 beside 10,000 slow connections and beside a flood of resets
    Floods(floods::Options),
    /// The kernel programs beside what they are held against: nanoseconds per packet, and ratios
    Kernel(kernel::Options),
    /// TLS that ends at a gateway: requests, full and resumed handshakes, processor time, memory
    Tls(tls::Options),
    /// Limits: what they cost on every request and counted by all nodes together, and a flood that the kernel drops
    Limit(limit::Options),
    /// A table of 10,000 services: bytes published, time to apply a change, memory
    Cluster(cluster::Options),
    /// One end of the traffic of `kernel`
    #[command(hide = true)]
    Peer {
        /// What is done
        #[command(subcommand)]
        verb: kernel::peer::Verb,
    },
}

/// How.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often everything is measured; the contenders take turns within a round
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Only these contenders
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Contender>,
    /// Only these rows, named as in the table
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// The agent's binary
    #[arg(long, default_value_os_t = crate::workspace().join("target/release/sluice"))]
    binary: PathBuf,
    /// A second binary of the agent, measured in the same rounds under the name `before`
    #[arg(long)]
    before: Option<PathBuf>,
    /// Where the record and the chart go; without it, a complete run writes docs/bench and a partial one writes none
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs a benchmark; fails when the run is invalid.
pub fn run(verb: &Verb) -> Result<ExitCode> {
    let options = match verb {
        Verb::Http(options) => options,
        Verb::Floods(options) => return floods::run(options),
        Verb::Kernel(options) => return kernel::run(options),
        Verb::Tls(options) => return tls::run(options),
        Verb::Limit(options) => return limit::run(options),
        Verb::Cluster(options) => return cluster::run(options),
        Verb::Peer { verb } => return kernel::peer::run(verb),
    };
    ensure!(options.rounds > 0 && options.seconds > 0, "--rounds and --seconds begin at 1");
    prepare()?;

    let report = run::http(options)?;
    println!("\n{}{}", report.table(), report.change());
    for remark in &report.remarks {
        println!("{remark}");
    }
    println!("ratios: d to direct, n to nginx, [lowest-highest] over the rounds; = within 2 %");
    println!("this run: {}", report.verdict());
    let complete = options.only.is_empty() && options.rows.is_empty() && options.before.is_none();
    let default = complete.then(|| crate::workspace().join("docs/bench"));
    if let Some(directory) = options.out.clone().or(default) {
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let record = serde_json::to_string_pretty(&report.json()).context("writing the record")?;
        for (name, text) in [("http.json", record + "\n"), ("http.svg", chart::draw(&report))] {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            println!("wrote {}", path.display());
        }
    }
    let valid = report.faults().is_none_or(|faults| faults.is_empty());
    Ok(if valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs every load of requests and connections through the agent at `binary`, for a compiler to learn from.
pub fn train(binary: &Path, seconds: u32) -> Result<()> {
    prepare()?;
    let track = Track::lay()?;
    let _backend = contender::start_backend(&track)?;
    let binaries = Binaries { sluice: binary.to_owned(), before: None };
    let running = Contender::Sluice.start(&track, &binaries)?;
    for row in row::ROWS.iter().filter(|row| row.work != Work::Memory) {
        row.measure(&track, &running, seconds).with_context(|| format!("running {}", row.name))?;
    }
    drop(running);
    tls::train(&track, binary, seconds)
}

fn prepare() -> Result<()> {
    ensure!(is_root(), "the bench makes network namespaces: run it as root");
    ensure!(facts::cores() >= 2, "the proxy and its client need a core each");
    // 5,000 idle connections, and as many behind them.
    raise_open_files()
}

fn raise_open_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")
}
