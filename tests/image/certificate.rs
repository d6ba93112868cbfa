//! Certificates of the test's own, made by openssl.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// An elliptic curve: quickly made.
const EC: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
/// What openssl's command line can sign tokens with.
const RSA: &[&str] = &["-newkey", "rsa:2048"];

/// A certificate authority, with a folder of its own for what it issues.
pub(crate) struct Authority {
    folder: TempDir,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    /// A new one; none, after saying so, without openssl.
    pub(crate) fn new() -> Option<Authority> {
        let authority = Authority { folder: tempfile::tempdir().expect("folder") };
        if Command::new("openssl").arg("version").output().is_err() {
            eprintln!("skipped: no openssl");
            return None;
        }
        let own = ["-subj", "/CN=test authority", "-addext", "basicConstraints=critical,CA:TRUE"];
        authority.make("ca", EC, &own);
        Some(authority)
    }

    /// Its certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// A certificate for servers on this machine, also under the name `registry.example`.
    pub(crate) fn server(&self) -> Pair {
        let names = "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:registry.example";
        self.issue("server", EC, &["-addext", names])
    }

    /// A certificate for a client.
    pub(crate) fn client(&self) -> Pair {
        self.issue("client", EC, &["-addext", "extendedKeyUsage=clientAuth"])
    }

    /// A certificate for one who signs tokens.
    pub(crate) fn signer(&self) -> Pair {
        self.issue("signer", RSA, &[])
    }

    fn issue(&self, name: &str, key: &[&str], more: &[&str]) -> Pair {
        let (certificate, ca_key) = (self.certificate(), self.path("ca.key"));
        let subject = format!("/CN={name}");
        let mut arguments = vec!["-subj", &subject, "-addext", "basicConstraints=critical,CA:FALSE"];
        arguments.extend(["-CA", text(&certificate), "-CAkey", text(&ca_key)]);
        arguments.extend(more);
        self.make(name, key, &arguments)
    }

    fn make(&self, name: &str, key: &[&str], more: &[&str]) -> Pair {
        let pair =
            Pair { certificate: self.path(&format!("{name}.crt")), key: self.path(&format!("{name}.key")) };
        let made = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "2", "-config", "/dev/null"])
            .args(key)
            .args(more)
            .args(["-keyout", text(&pair.key), "-out", text(&pair.certificate)])
            .output()
            .expect("openssl starts");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        pair
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
