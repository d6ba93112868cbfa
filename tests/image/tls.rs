//! https, with certificates of the test's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use longshore::error::Kind;
use tempfile::TempDir;

use crate::fixture;
use crate::node::Node;
use crate::registry::Registry;

/// Tells the test that is run by another one where its registry's authority is.
const AUTHORITY: &str = "LONGSHORE_TEST_AUTHORITY";

/// A self-signed certificate for 127.0.0.1 and its key; none without openssl.
fn certificate() -> Option<(TempDir, PathBuf, PathBuf)> {
    let folder = tempfile::tempdir().expect("folder");
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    match made {
        Ok(output) if output.status.success() => Some((folder, certificate, key)),
        _ => {
            eprintln!("skipped: no openssl");
            None
        }
    }
}

async fn pull_from(certificate: &Path, key: &Path) -> Option<(longshore::error::Result<String>, String)> {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::with(Some((certificate, key)))) else {
        return None;
    };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let hosts = format!("server = \"https://{}\"", registry.address);
    node.configure_registry(&registry.address, &hosts);
    Some((node.pull(&registry.name("a:1")).await, image.id()))
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_is_refused() {
    let Some((_folder, certificate, key)) = certificate() else { return };
    let Some((result, _)) = pull_from(&certificate, &key).await else { return };
    let error = result.expect_err("not trusted");
    assert_eq!(error.kind(), Kind::Unknown);
    assert!(error.message().contains("TLS: invalid peer certificate"), "{error}");
    assert!(!error.message().contains("RegistryUnavailable"), "it is there: {error}");
}

#[test]
fn a_server_that_the_system_trusts_is_pulled_from() {
    let Some((_folder, certificate, key)) = certificate() else { return };
    // The system's authorities are read once a process: a process of its own trusts ours.
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "tls::in_a_process_that_trusts_the_authority", "--ignored", "--nocapture"])
        .env("SSL_CERT_FILE", &certificate)
        .env(AUTHORITY, &key)
        .output()
        .expect("starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test]
#[ignore = "run by a_server_that_the_system_trusts_is_pulled_from"]
async fn in_a_process_that_trusts_the_authority() {
    let (Some(certificate), Some(key)) = (std::env::var_os("SSL_CERT_FILE"), std::env::var_os(AUTHORITY))
    else {
        return;
    };
    let pulled = pull_from(Path::new(&certificate), Path::new(&key)).await;
    if let Some((result, id)) = pulled {
        assert_eq!(result, Ok(id));
    }
}
