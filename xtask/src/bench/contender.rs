//! Who is compared: their programs, configurations and command lines.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use lab::http;
use lab::wait::{PATIENCE, wait_until};

use super::track::{BACKEND, PROXY, Place, Server, Track};

/// The backend's ports: HTTP/1.1 and HTTP/2.
const BACKEND_PORTS: [u16; 2] = [8000, 8001];
/// How long one look at a proxy may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// A way from the client to the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Contender {
    /// No proxy: the kernel routes.
    Direct,
    /// nginx
    Nginx,
    /// HAProxy
    Haproxy,
    /// Envoy
    Envoy,
    /// A minimal proxy on the pingora crate
    Pingora,
    /// The agent as a gateway
    Sluice,
    /// Another build of the agent, to see what a change did
    #[value(skip)]
    Before,
}

/// The builds of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The one that is compared.
    pub sluice: PathBuf,
    /// The one before a change.
    pub before: Option<PathBuf>,
}

/// A contender that takes requests.
#[derive(Debug)]
pub struct Running {
    /// Which one.
    pub contender: Contender,
    /// Its process; `direct` has none.
    pub server: Option<Server>,
}

impl Contender {
    /// All but `Before`, in the order of the tables.
    pub const ALL: [Self; 6] =
        [Self::Direct, Self::Nginx, Self::Haproxy, Self::Envoy, Self::Pingora, Self::Sluice];

    /// Its name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Pingora => "pingora",
            Self::Sluice => "sluice",
            Self::Before => "before",
        }
    }

    /// Where the client finds it over HTTP/1.1.
    pub fn address(self) -> SocketAddr {
        match self {
            Self::Direct => SocketAddr::new(BACKEND.into(), BACKEND_PORTS[0]),
            _ => SocketAddr::new(PROXY.into(), self.ports()[0]),
        }
    }

    /// Where the client finds it over HTTP/2 with prior knowledge.
    pub fn h2_address(self) -> SocketAddr {
        match self {
            Self::Direct => SocketAddr::new(BACKEND.into(), BACKEND_PORTS[1]),
            // They tell the two apart by the first bytes.
            Self::Envoy | Self::Pingora | Self::Sluice | Self::Before => self.address(),
            Self::Nginx | Self::Haproxy => SocketAddr::new(PROXY.into(), self.ports()[1]),
        }
    }

    /// Its program, or how to get it.
    pub fn program(self, binaries: &Binaries) -> Result<PathBuf, String> {
        let target = crate::workspace().join("target");
        let (path, hint) = match self {
            Self::Direct | Self::Nginx => (PathBuf::from("/usr/sbin/nginx"), "run 'scripts/setup'"),
            Self::Haproxy => (PathBuf::from("/usr/sbin/haproxy"), "run 'scripts/setup --bench'"),
            Self::Envoy => (envoy_binary(&target.join("bench/venv")), "run 'scripts/setup --bench'"),
            Self::Pingora => {
                (target.join("bench/pingora/release/pingora-peer"), "run 'scripts/setup --bench'")
            }
            Self::Sluice => (binaries.sluice.clone(), "run 'cargo build --release --package agent'"),
            Self::Before => (binaries.before.clone().unwrap_or_default(), "give --before"),
        };
        if path.is_file() {
            return Ok(path);
        }
        // Where the workspace lies is nothing for a record.
        let shown = path.strip_prefix(crate::workspace()).unwrap_or(&path);
        Err(format!("{} is not there: {hint}", shown.display()))
    }

    /// Starts it and waits until it passes requests on.
    pub fn start(self, track: &Track, binaries: &Binaries) -> Result<Running> {
        let mut server = if self == Self::Direct {
            None
        } else {
            let program = self.program(binaries).map_err(anyhow::Error::msg)?;
            let argv = self.argv(&program, track.directory())?;
            Some(track.start(Place::Proxy, self.name(), &argv)?)
        };
        let looked = wait_until(&format!("{} to answer", self.name()), PATIENCE, || {
            if let Some(Err(error)) = server.as_mut().map(Server::check) {
                return Some(Err(error));
            }
            self.answers(track).then_some(Ok(()))
        });
        looked?.map(|()| Running { contender: self, server })
    }

    fn answers(self, track: &Track) -> bool {
        let look = || http::get(self.address(), "bench", "/100", LOOK_TIMEOUT);
        matches!(track.client.enter(look), Ok(Ok(response)) if response.status == 200 && response.body.len() == 100)
    }

    fn ports(self) -> [u16; 2] {
        let first = 8100 + 10 * self as u16;
        [first, first + 1]
    }

    fn template(self) -> &'static str {
        match self {
            Self::Direct => include_str!("peers/backend.conf"),
            Self::Nginx => include_str!("peers/nginx.conf"),
            Self::Haproxy => include_str!("peers/haproxy.conf"),
            Self::Envoy => include_str!("peers/envoy.conf"),
            Self::Pingora => "",
            Self::Sluice | Self::Before => include_str!("peers/sluice.conf"),
        }
    }

    /// Writes its configuration and says how it is started.
    fn argv(self, program: &Path, directory: &Path) -> Result<Vec<String>> {
        let text = self.config(directory);
        let program = program.display().to_string();
        // Envoy tells the form of its configuration by the name.
        let ending = if self == Self::Envoy { "yaml" } else { "conf" };
        let file = directory.join(format!("{}.{ending}", self.name())).display().to_string();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        if matches!(self, Self::Sluice | Self::Before) {
            let documents = directory.join(self.name());
            fs::create_dir_all(&documents).context("creating the directory of documents")?;
            fs::write(documents.join("bench.yaml"), text).context("writing the agent's documents")?;
            let config = documents.display().to_string();
            let mut argv: Vec<String> = words(&[&program, "agent", "--node", "bench", "--config", &config]);
            argv.extend(words(&[
                "--capture",
                "off",
                "--workers",
                "1",
                // Connections are not closed after so many requests, as with the peers.
                "--set",
                "gateway.http.connection.max-requests=off",
                "--access-log",
                "off",
                "--log",
                "warn",
            ]));
            for (flag, offset) in [("--admin", 2), ("--metrics", 3), ("--health", 4)] {
                argv.extend([flag.to_owned(), format!("127.0.0.1:{}", self.ports()[0] + offset)]);
            }
            return Ok(argv);
        }
        fs::write(&file, text).with_context(|| format!("writing {file}"))?;
        Ok(match self {
            Self::Haproxy => words(&[&program, "-db", "-f", &file]),
            Self::Envoy => {
                let flags = [
                    "--concurrency",
                    "1",
                    "--config-path",
                    &file,
                    "--disable-hot-restart",
                    "--log-level",
                    "warn",
                ];
                [words(&[&program]), words(&flags)].concat()
            }
            Self::Pingora => {
                let backend = SocketAddr::new(BACKEND.into(), BACKEND_PORTS[0]).to_string();
                words(&[&program, &self.address().to_string(), &backend])
            }
            _ => words(&[&program, "-e", "stderr", "-c", &file, "-p", &directory.display().to_string()]),
        })
    }

    fn config(self, directory: &Path) -> String {
        let [port, h2_port] = if self == Self::Direct { BACKEND_PORTS } else { self.ports() };
        [
            ("{{DIR}}", directory.display().to_string()),
            ("{{ADDRESS}}", PROXY.to_string()),
            ("{{PORT}}", port.to_string()),
            ("{{H2_PORT}}", h2_port.to_string()),
            ("{{ADMIN_PORT}}", (h2_port + 1).to_string()),
            ("{{BACKEND}}", BACKEND.to_string()),
            ("{{BACKEND_PORT}}", BACKEND_PORTS[0].to_string()),
        ]
        .iter()
        .fold(self.template().to_owned(), |text, (name, value)| text.replace(name, value))
    }
}

/// Starts the backend with its pages, `/100` and `/16k`.
pub fn start_backend(track: &Track) -> Result<Server> {
    for (page, bytes) in [("100", 100), ("16k", 16 * 1024)] {
        fs::write(track.directory().join("www").join(page), vec![b'x'; bytes]).context("writing a page")?;
    }
    let argv = Contender::Direct.argv(Path::new("/usr/sbin/nginx"), track.directory())?;
    track.start(Place::Backend, "backend", &argv)
}

/// The package keeps the binary below the interpreter's own directory, whose name has its version.
fn envoy_binary(venv: &Path) -> PathBuf {
    let below = |version: &Path| version.join("site-packages/envoy/_bin/envoy");
    let versions = fs::read_dir(venv.join("lib")).into_iter().flatten().flatten();
    let found = versions.map(|entry| below(&entry.path())).find(|path| path.is_file());
    found.unwrap_or_else(|| below(&venv.join("lib/python3")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_filled_in() {
        for contender in Contender::ALL {
            let text = contender.config(Path::new("/run/x"));
            assert!(!text.contains("{{"), "{}: {text}", contender.name());
            assert!(
                contender == Contender::Pingora || text.contains(":8000") || text.contains("8000"),
                "{text}"
            );
        }
    }

    #[test]
    fn no_two_share_an_address() {
        let mut seen: Vec<SocketAddr> =
            Contender::ALL.iter().flat_map(|one| [one.address(), one.h2_address()]).collect();
        seen.sort_unstable();
        seen.dedup();
        // Envoy, Pingora and the agent have one for both protocols.
        assert_eq!(seen.len(), Contender::ALL.len() * 2 - 3);
    }
}
