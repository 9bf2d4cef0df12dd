//! Who ends TLS: configurations and command lines. The programs are those of `bench http`.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use lab::wait::{PATIENCE, wait_until};

use super::super::contender::{Binaries, Contender, Running};
use super::super::track::{BACKEND, PROXY, Place, Server, Track};
use super::client::{self, Manner};
use super::material::Material;

/// Who takes part, in the order of the table.
pub const ALL: [Contender; 4] = [Contender::Nginx, Contender::Haproxy, Contender::Envoy, Contender::Sluice];
/// Who asks clients for certificates.
pub const MUTUAL: [Contender; 3] = [Contender::Nginx, Contender::Haproxy, Contender::Sluice];
/// The backend's port.
const BACKEND_PORT: u16 = 8000;

/// Where clients find one; where they show certificates, on a port of its own.
pub fn address(contender: Contender, mutual: bool) -> SocketAddr {
    SocketAddr::new(PROXY.into(), port(contender) + u16::from(mutual))
}

fn port(contender: Contender) -> u16 {
    8400 + 10 * contender as u16
}

/// Starts one and waits until it passes requests on.
pub fn start(
    contender: Contender,
    (track, material): (&Track, &Material),
    binaries: &Binaries,
) -> Result<Running> {
    let argv = argv(contender, (track, material), binaries)?;
    let mut server = track.start(Place::Proxy, &format!("tls-{}", contender.name()), &argv)?;
    let config = client::config(material, Manner { resumes: false, mutual: false })?;
    wait_until(&format!("{} to answer", contender.name()), PATIENCE, || {
        if let Err(error) = Server::check(&mut server) {
            return Some(Err(error));
        }
        let once = track.client.enter(|| client::once(address(contender, false), &config));
        matches!(once, Ok(Ok(_))).then_some(Ok(()))
    })??;
    Ok(Running { contender, server: Some(server) })
}

fn argv(
    contender: Contender,
    (track, material): (&Track, &Material),
    binaries: &Binaries,
) -> Result<Vec<String>> {
    let program = contender.program(binaries).map_err(anyhow::Error::msg)?.display().to_string();
    let directory = track.directory();
    let text = filled(contender, &directory.display().to_string());
    let admin = |offset: u16| format!("127.0.0.1:{}", port(contender) + offset);
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    if contender == Contender::Sluice {
        let documents = directory.join("tls-sluice");
        fs::create_dir_all(&documents).context("creating the directory of documents")?;
        fs::write(documents.join("bench.yaml"), text).context("writing the agent's documents")?;
        fs::write(documents.join("secret.yaml"), secrets(material)?).context("writing the agent's Secret")?;
        let config = documents.display().to_string();
        let mut argv =
            words(&[&program, "agent", "--node", "bench", "--config", &config, "--capture", "off"]);
        argv.extend(words(&["--workers", "1", "--set", "gateway.http.connection.max-requests=off"]));
        argv.extend(words(&["--access-log", "off", "--log", "warn"]));
        for (flag, offset) in [("--admin", 2), ("--metrics", 3), ("--health", 4)] {
            argv.extend([flag.to_owned(), admin(offset)]);
        }
        return Ok(argv);
    }
    let ending = if contender == Contender::Envoy { "yaml" } else { "conf" };
    let file = directory.join(format!("tls-{}.{ending}", contender.name()));
    fs::write(&file, text).context("writing a configuration")?;
    let file = file.display().to_string();
    Ok(match contender {
        Contender::Haproxy => words(&[&program, "-db", "-f", &file]),
        Contender::Envoy => words(&[
            &program,
            "--concurrency",
            "1",
            "--config-path",
            &file,
            "--disable-hot-restart",
            "--log-level",
            "warn",
        ]),
        _ => words(&[&program, "-e", "stderr", "-c", &file, "-p", &directory.display().to_string()]),
    })
}

fn filled(contender: Contender, directory: &str) -> String {
    let template = match contender {
        Contender::Haproxy => include_str!("../peers/tls-haproxy.conf"),
        Contender::Envoy => include_str!("../peers/tls-envoy.conf"),
        Contender::Sluice => include_str!("../peers/tls-sluice.conf"),
        _ => include_str!("../peers/tls-nginx.conf"),
    };
    [
        ("{{DIR}}", directory.to_owned()),
        ("{{ADDRESS}}", PROXY.to_string()),
        ("{{PORT}}", port(contender).to_string()),
        ("{{MUTUAL_PORT}}", (port(contender) + 1).to_string()),
        ("{{ADMIN_PORT}}", (port(contender) + 2).to_string()),
        ("{{BACKEND}}", BACKEND.to_string()),
        ("{{BACKEND_PORT}}", BACKEND_PORT.to_string()),
    ]
    .iter()
    .fold(template.to_owned(), |text, (name, value)| text.replace(name, value))
}

/// The certificate and the clients' CA as the agent reads them.
fn secrets(material: &Material) -> Result<String> {
    let block = |path: PathBuf| -> Result<String> {
        let pem = fs::read_to_string(path).context("reading a certificate")?;
        Ok(pem.lines().fold(String::new(), |all, line| all + "    " + line + "\n"))
    };
    let (server, ca) = (block(material.server())?, block(material.ca())?);
    Ok(format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: bench, namespace: default}}\ntype: kubernetes.io/tls\n\
         stringData:\n  tls.crt: |\n{server}  tls.key: |\n{server}\
         ---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: clients, namespace: default}}\n\
         data:\n  ca.crt: |\n{ca}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_filled_in() {
        for contender in ALL {
            let text = filled(contender, "/run/x");
            assert!(!text.contains("{{") && text.contains(&port(contender).to_string()), "{text}");
        }
    }
}
