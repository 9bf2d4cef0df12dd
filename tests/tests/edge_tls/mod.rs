//! Certificates made by `openssl`, Secrets and Gateways that hold them, and clients that are `openssl` and `curl`.
#![allow(dead_code, reason = "every test binary uses its own part of this")]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::backend::listen;
use lab::exec::{command, run, stdout};
use lab::loopback::LoopbackAgent;
use lab::wait_for;
use serde_json::Value;

/// The port of the tests' TLS listeners.
pub const TLS_PORT: u16 = 8443;
/// How long a server may take to listen.
const LIMIT: Duration = Duration::from_secs(20);

/// A CA in a directory of its own.
pub struct Pki {
    directory: tempfile::TempDir,
}

/// A certificate with its key, in PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    pub chain: String,
    pub key: String,
    pub chain_path: PathBuf,
    pub key_path: PathBuf,
}

impl Pki {
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("sluice-pki-").tempdir()?;
        let pki = Self { directory };
        let (key, certificate) = (pki.path("ca.key"), pki.path("ca.pem"));
        let config = pki.path("openssl.cnf");
        // The machine's own would add extensions of its choice.
        fs::write(&config, "[req]\ndistinguished_name=dn\n[dn]\n")?;
        let fixed =
            ["req", "-x509", "-nodes", "-days", "30", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
        run(command("openssl", fixed)
            // Several CAs of one test are not to be taken for one another by their names.
            .args(["-subj", &format!("/CN={}", pki.name()), "-addext", "basicConstraints=critical,CA:TRUE"])
            .args(["-addext", "keyUsage=critical,keyCertSign,cRLSign", "-config"])
            .arg(config)
            .arg("-keyout")
            .arg(key)
            .arg("-out")
            .arg(certificate))?;
        Ok(pki)
    }

    /// The CA's own name.
    fn name(&self) -> String {
        let name = self.directory.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The file of the CA's certificate.
    pub fn root(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A certificate for DNS names and URIs.
    pub fn issue(&self, file: &str, names: &[&str]) -> Result<Issued> {
        self.issue_with(file, names, &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
    }

    /// The same with a key of the caller's kind, as `openssl req` is told.
    pub fn issue_with(&self, file: &str, names: &[&str], key_kind: &[&str]) -> Result<Issued> {
        let (key_path, chain_path) = (self.path(&format!("{file}.key")), self.path(&format!("{file}.crt")));
        let kind = |name: &str| if name.contains("://") { "URI" } else { "DNS" };
        let names: Vec<String> = names.iter().map(|name| format!("{}:{name}", kind(name))).collect();
        run(command("openssl", ["req", "-x509", "-nodes", "-days", "30", "-CA"])
            .arg(self.root())
            .arg("-CAkey")
            .arg(self.path("ca.key"))
            .args(key_kind)
            .arg("-config")
            .arg(self.path("openssl.cnf"))
            .args(["-subj", &format!("/CN={file}"), "-addext"])
            .arg(format!("subjectAltName={}", names.join(",")))
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
            .arg(&key_path)
            .arg("-out")
            .arg(&chain_path))?;
        Issued::read(chain_path, key_path)
    }

    /// A certificate of X.509 v1, which has no extensions.
    pub fn issue_v1(&self, file: &str) -> Result<Issued> {
        let [key, asked, chain] = ["key", "csr", "crt"].map(|kind| self.path(&format!("{file}.{kind}")));
        run(command("openssl", ["req", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .arg("-config")
            .arg(self.path("openssl.cnf"))
            .args(["-subj", &format!("/CN={file}"), "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&asked))?;
        run(command("openssl", ["x509", "-req", "-days", "30", "-CAcreateserial", "-in"])
            .arg(&asked)
            .arg("-CA")
            .arg(self.root())
            .arg("-CAkey")
            .arg(self.path("ca.key"))
            .arg("-out")
            .arg(&chain))?;
        let text = stdout(command("openssl", ["x509", "-noout", "-text", "-in"]).arg(&chain))?;
        ensure!(text.contains("Version: 1 "), "{text}");
        Issued::read(chain, key)
    }

    /// The CA's own certificate.
    pub fn itself(&self) -> Result<Issued> {
        Issued::read(self.root(), self.path("ca.key"))
    }
}

impl Issued {
    fn read(chain_path: PathBuf, key_path: PathBuf) -> Result<Self> {
        let (chain, key) = (fs::read_to_string(&chain_path)?, fs::read_to_string(&key_path)?);
        Ok(Self { chain, key, chain_path, key_path })
    }
}

/// A text as the content of a block of YAML.
pub fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |all, line| all + "    " + line + "\n")
}

/// A Secret `infra/NAME` with a certificate.
pub fn secret(name: &str, issued: &Issued) -> String {
    secret_of("infra", name, &issued.chain, &issued.key)
}

pub fn secret_of(namespace: &str, name: &str, chain: &str, key: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         type: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        indented(chain),
        indented(key)
    )
}

/// A listener on [`TLS_PORT`] that ends TLS with these Secrets; `hostname` may be empty.
pub fn https(name: &str, hostname: &str, secrets: &[&str], further: &str) -> String {
    let mut text = format!("  - {{name: {name}, port: {TLS_PORT}, protocol: HTTPS");
    if !hostname.is_empty() {
        // Writing to a String cannot fail.
        let _ = write!(text, ", hostname: \"{hostname}\"");
    }
    let refs: Vec<String> = secrets.iter().map(|name| format!("{{name: {name}}}")).collect();
    let _ = writeln!(
        text,
        ", allowedRoutes: {{namespaces: {{from: All}}}}, tls: {{certificateRefs: [{}]{further}}}}}",
        refs.join(", ")
    );
    text
}

/// What `curl` got.
#[derive(Debug)]
pub struct Got {
    pub status: String,
    pub version: String,
    pub headers: String,
    pub body: Vec<u8>,
    /// What the backend says that it saw.
    pub seen: Value,
}

impl Got {
    /// The backend that answered, or the status.
    pub fn who(&self) -> String {
        match self.seen["backend"].as_str() {
            Some(backend) if self.status == "200" => backend.to_owned(),
            _ => self.status.clone(),
        }
    }

    /// All values of a field that the backend saw.
    pub fn sent(&self, name: &str) -> Vec<&str> {
        let headers = self.seen["headers"].as_array().map_or(&[][..], Vec::as_slice);
        headers.iter().filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str()).collect()
    }
}

/// Asks with `curl`, which verifies the certificate for `host`.
pub fn curl(root: &Path, to: SocketAddr, host: &str, path: &str, further: &[&str]) -> Result<Got> {
    let output = curl_output(root, to, host, path, further)?;
    ensure!(
        output.status.success(),
        "curl of {host}{path} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let split = b"\n<<<";
    let at = output.stdout.windows(split.len()).rposition(|window| window == split).context("no trailer")?;
    let (body, trailer) = output.stdout.split_at(at);
    let trailer = String::from_utf8_lossy(&trailer[split.len()..]).into_owned();
    let (status, version) = trailer.trim().split_once(' ').context("no status and version")?;
    let seen = serde_json::from_slice(body).unwrap_or_default();
    let headers = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(Got { status: status.to_owned(), version: version.to_owned(), headers, body: body.to_vec(), seen })
}

/// The same, whatever comes of it. The answer's head goes to standard error.
pub fn curl_output(root: &Path, to: SocketAddr, host: &str, path: &str, further: &[&str]) -> Result<Output> {
    Command::new("curl")
        .args(["-sS", "--max-time", "20", "-D", "/dev/stderr", "--cacert"])
        .arg(root)
        .args(["--resolve", &format!("{host}:{}:{}", to.port(), to.ip())])
        .args(["-w", "\n<<<%{http_code} %{http_version}"])
        .args(further)
        .arg(format!("https://{host}:{}{path}", to.port()))
        .stdin(Stdio::null())
        .output()
        .context("running curl")
}

/// What `openssl s_client` says of a handshake; it sends nothing.
pub fn handshake(to: SocketAddr, further: &[&str]) -> Result<String> {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &to.to_string()])
        .args(further)
        .stdin(Stdio::null())
        .output()
        .context("running openssl")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// An HTTP/1.1 client over `openssl s_client`, whose connection is kept.
pub struct Session {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    pub fn open(to: SocketAddr, further: &[&str]) -> Result<Self> {
        let mut child = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &to.to_string()])
            .args(further)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting openssl")?;
        let input = child.stdin.take().context("piped")?;
        let output = BufReader::new(child.stdout.take().context("piped")?);
        Ok(Self { child, input, output })
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.input.write_all(bytes)?;
        Ok(self.input.flush()?)
    }

    /// Sends a GET and reads its answer: the status, and what the backend saw.
    pub fn get(&mut self, host: &str, path: &str) -> Result<(u16, Value)> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
        let (status, body) = self.answer()?;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// Reads the head of an answer; gives its status and length.
    pub fn head(&mut self) -> Result<(u16, usize)> {
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            ensure!(self.output.read_line(&mut line)? > 0, "the connection ended within a head");
            let line = line.trim_end();
            if line.is_empty() {
                return Ok((status, length));
            }
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest.get(..3).and_then(|code| code.parse().ok()).context("no status")?;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                length = value.parse()?;
            }
        }
    }

    fn answer(&mut self) -> Result<(u16, Vec<u8>)> {
        let (status, length) = self.head()?;
        let mut body = vec![0; length];
        self.output.read_exact(&mut body)?;
        Ok((status, body))
    }

    pub fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        Ok(self.output.read_exact(bytes)?)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An `openssl s_server` that says something about itself to whoever asks, until it is dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    pub fn start(issued: &Issued, further: &[&str]) -> Result<Self> {
        let address = listen()?.local_addr()?;
        let child = Command::new("openssl")
            .args(["s_server", "-www", "-quiet", "-accept", &address.to_string(), "-cert"])
            .arg(&issued.chain_path)
            .arg("-key")
            .arg(&issued.key_path)
            .args(further)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting openssl s_server")?;
        let server = Self { child, address };
        wait_for("the server", LIMIT, || TcpStream::connect_timeout(&address, LIMIT).is_ok())?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many handshakes with clients of Gateways ended so.
pub fn handshakes(agent: &LoopbackAgent<'_>, outcome: &str) -> Result<f64> {
    let labels = [("role", "gateway"), ("outcome", outcome)];
    Ok(agent.scrape()?.sum("sluice_tls_handshakes_total", &labels))
}
