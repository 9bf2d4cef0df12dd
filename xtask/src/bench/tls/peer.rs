//! Who ends TLS: configurations and command lines. The programs are those of `bench http`.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use lab::exec::{command, run};
use lab::wait::{PATIENCE, wait_until};

use super::super::contender::{Binaries, Contender, Running};
use super::super::track::{BACKEND, PROXY, Place, Server, Track};
use super::client;

/// Who takes part, in the order of the table.
pub const ALL: [Contender; 4] = [Contender::Nginx, Contender::Haproxy, Contender::Envoy, Contender::Sluice];
/// The backend's port.
const BACKEND_PORT: u16 = 8000;
/// The certificate and its key, in the track's directory.
const PEM: &str = "tls.pem";

/// Makes the certificate that all of them show, and gives the file, which has its key too.
pub fn certificate(track: &Track) -> Result<PathBuf> {
    let path = |name: &str| track.directory().join(name);
    let (pem, key, config) = (path(PEM), path("tls.key"), path("openssl.cnf"));
    fs::write(&config, "[req]\ndistinguished_name=dn\n[dn]\n").context("writing a configuration")?;
    run(command("openssl", ["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"])
        .args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=bench", "-addext"])
        .arg(format!("subjectAltName=DNS:{}", client::NAME))
        .arg("-config")
        .arg(config)
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&pem))?;
    let both = fs::read_to_string(&pem)? + &fs::read_to_string(&key)?;
    fs::write(&pem, both).context("writing the certificate")?;
    Ok(pem)
}

/// Where clients find one.
pub fn address(contender: Contender) -> SocketAddr {
    SocketAddr::new(PROXY.into(), port(contender))
}

fn port(contender: Contender) -> u16 {
    8400 + 10 * contender as u16
}

/// Starts one and waits until it passes requests on.
pub fn start(contender: Contender, track: &Track, binaries: &Binaries) -> Result<Running> {
    let argv = argv(contender, track, binaries)?;
    let mut server = track.start(Place::Proxy, &format!("tls-{}", contender.name()), &argv)?;
    let pem = track.directory().join(PEM);
    let config = client::config(&pem, false)?;
    wait_until(&format!("{} to answer", contender.name()), PATIENCE, || {
        if let Err(error) = Server::check(&mut server) {
            return Some(Err(error));
        }
        let once = track.client.enter(|| client::once(address(contender), &config));
        matches!(once, Ok(Ok(_))).then_some(Ok(()))
    })??;
    Ok(Running { contender, server: Some(server) })
}

fn argv(contender: Contender, track: &Track, binaries: &Binaries) -> Result<Vec<String>> {
    let program = contender.program(binaries).map_err(anyhow::Error::msg)?.display().to_string();
    let directory = track.directory();
    let text = filled(contender, &directory.display().to_string());
    let admin = |offset: u16| format!("127.0.0.1:{}", port(contender) + offset);
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    if contender == Contender::Sluice {
        let documents = directory.join("tls-sluice");
        fs::create_dir_all(&documents).context("creating the directory of documents")?;
        fs::write(documents.join("bench.yaml"), text).context("writing the agent's documents")?;
        fs::write(documents.join("secret.yaml"), secret(track)?).context("writing the agent's Secret")?;
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
        ("{{ADMIN_PORT}}", (port(contender) + 2).to_string()),
        ("{{BACKEND}}", BACKEND.to_string()),
        ("{{BACKEND_PORT}}", BACKEND_PORT.to_string()),
    ]
    .iter()
    .fold(template.to_owned(), |text, (name, value)| text.replace(name, value))
}

/// The certificate as the agent reads it.
fn secret(track: &Track) -> Result<String> {
    let pem = fs::read_to_string(track.directory().join(PEM)).context("reading the certificate")?;
    let block = pem.lines().fold(String::new(), |all, line| all + "    " + line + "\n");
    Ok(format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: bench, namespace: default}}\ntype: kubernetes.io/tls\n\
         stringData:\n  tls.crt: |\n{block}  tls.key: |\n{block}"
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
