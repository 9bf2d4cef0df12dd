//! Certificates of the bench: a CA, and what servers and clients show, each with its key in one file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lab::exec::{command, run};

/// The name in the servers' certificate.
pub const NAME: &str = "bench.test";

/// The directory with all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Material(PathBuf);

impl Material {
    /// Makes them, with keys on P-256, as the agent's own are.
    pub fn make(directory: &Path) -> Result<Self> {
        let made = Self(directory.to_owned());
        fs::write(made.path("openssl.cnf"), "[req]\ndistinguished_name=dn\n[dn]\n")
            .context("writing a configuration")?;
        let ca = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"];
        made.request("ca", &[], &ca)?;
        made.issue("tls", &format!("subjectAltName=DNS:{NAME}"), "extendedKeyUsage=serverAuth")?;
        made.issue("client", "subjectAltName=DNS:client.test", "extendedKeyUsage=clientAuth")?;
        Ok(made)
    }

    /// The CA's certificate, by which everybody is believed.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// What servers show, and its key.
    pub fn server(&self) -> PathBuf {
        self.path("tls.pem")
    }

    /// What clients show, and its key.
    pub fn client(&self) -> PathBuf {
        self.path("client.pem")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn issue(&self, name: &str, names: &str, usage: &str) -> Result<()> {
        let (ca, key) = (self.ca().display().to_string(), self.path("ca.key").display().to_string());
        self.request(name, &["-CA", &ca, "-CAkey", &key], &["basicConstraints=CA:FALSE", names, usage])?;
        let key = fs::read_to_string(self.path(&format!("{name}.key"))).context("reading a key")?;
        let pem = self.path(&format!("{name}.pem"));
        let both = fs::read_to_string(&pem).context("reading a certificate")? + &key;
        fs::write(&pem, both).context("writing a certificate")
    }

    fn request(&self, name: &str, issuer: &[&str], extensions: &[&str]) -> Result<()> {
        let mut openssl = command("openssl", ["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"]);
        openssl.args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", &format!("/CN=bench {name}")]);
        openssl.args(issuer).args(extensions.iter().flat_map(|one| ["-addext", one]));
        openssl.arg("-config").arg(self.path("openssl.cnf"));
        openssl.arg("-keyout").arg(self.path(&format!("{name}.key")));
        openssl.arg("-out").arg(self.path(&format!("{name}.pem")));
        run(&mut openssl).map(drop)
    }
}
