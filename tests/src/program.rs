//! The servers that pods run: their configuration and command lines.
//!
//! Every server stays in the foreground and writes below the pod's own directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::address::Dual;
use crate::topology::{Pod, Program};

/// How a program is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Its command line.
    pub argv: Vec<String>,
    /// Whether it listens on IPv6 too.
    pub dual_stack: bool,
}

/// Where a program of a pod keeps its files, below the lab's directory.
pub fn directory(lab: &Path, pod: &Pod) -> PathBuf {
    lab.join("pods").join(&pod.name)
}

/// Writes a program's configuration below `directory` and says how to start it.
pub fn prepare(program: &Program, pod: &Pod, address: Dual, directory: &Path) -> Result<Launch> {
    fs::create_dir_all(directory.join("www/static"))
        .with_context(|| format!("creating {}", directory.display()))?;
    let argv = match program {
        Program::Http { port } => nginx(*port, pod, directory)?,
        Program::Redis { port } => redis(*port, address),
        Program::Nats { port } => words(&["nats-server", "--addr", "::", "--port", &port.to_string()]),
        Program::Server { argv, .. } => {
            return Ok(Launch { argv: argv.clone(), dual_stack: false });
        }
    };
    Ok(Launch { argv, dual_stack: true })
}

fn nginx(port: u16, pod: &Pod, directory: &Path) -> Result<Vec<String>> {
    let path = directory.join(format!("nginx-{port}.conf"));
    let text = nginx_config(port, pod, directory);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    let (path, prefix) = (path.display().to_string(), directory.display().to_string());
    Ok(words(&["nginx", "-e", "stderr", "-c", &path, "-p", &prefix]))
}

/// The configuration of a pod's nginx: every path answers `VERSION POD PEER PATH`, as JSON with the headers seen
/// when that is what the client accepts; `/static/` serves files, `/chunked/` the same without a length.
fn nginx_config(port: u16, pod: &Pod, directory: &Path) -> String {
    let version = if pod.version().is_empty() { "-" } else { pod.version() };
    let (name, root) = (&pod.name, directory.display());
    // One process without a master: there is nothing to fork that could outlive it.
    format!(
        r#"daemon off;
master_process off;
pid {root}/nginx-{port}.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000;
  client_max_body_size 0;
  client_body_temp_path {root}/body;
  proxy_temp_path {root}/proxy;
  fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi;
  scgi_temp_path {root}/scgi;
  sendfile on;
  tcp_nopush on;
  default_type text/plain;
  map $http_accept $as_json {{ default 0; application/json 1; }}
  server {{
    listen 0.0.0.0:{port} backlog=4096;
    listen [::]:{port} ipv6only=on backlog=4096;
    root {root}/www;
    add_header x-pod "{name}" always;
    add_header x-version "{version}" always;
    location / {{
      if ($as_json) {{
        add_header x-pod "{name}" always;
        add_header content-type application/json;
        return 200 '{{"version":"{version}","pod":"{name}","peer":"$remote_addr","method":"$request_method","path":"$request_uri","host":"$http_host","x-request-id":"$http_x_request_id","x-forwarded-for":"$http_x_forwarded_for","x-forwarded-proto":"$http_x_forwarded_proto","x-user-group":"$http_x_user_group","via":"$http_via","connection":"$http_connection"}}\n';
      }}
      return 200 "{version} {name} $remote_addr $request_uri\n";
    }}
    location /static/ {{ }}
    location /chunked/ {{
      alias {root}/www/static/;
      sub_filter_types *;
      sub_filter "no such text: it only takes the length away" "";
    }}
  }}
}}
"#
    )
}

fn redis(port: u16, address: Dual) -> Vec<String> {
    words(&[
        "redis-server",
        "--port",
        &port.to_string(),
        "--bind",
        &address.v4.to_string(),
        &address.v6.to_string(),
        "127.0.0.1",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--appendonly",
        "no",
    ])
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nginx_names_its_pod_and_version_on_both_families() {
        let pod = Pod::new("order-v1-a", "node1").label("version", "v1");
        let text = nginx_config(8080, &pod, Path::new("/run/x"));
        for line in [
            "listen 0.0.0.0:8080 backlog=4096;",
            "listen [::]:8080 ipv6only=on backlog=4096;",
            "return 200 \"v1 order-v1-a $remote_addr $request_uri\\n\";",
        ] {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
