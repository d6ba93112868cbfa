//! What the crate depends on: where it comes from, under which licence, and nothing of
//! weight twice. Needs no network: Cargo.lock, and what cargo has downloaded for the build.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The only place where crates come from.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Licences that go with Apache-2.0 without further conditions than a notice.
const LICENCES: [&str; 11] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates of which two versions would not fit together, or cost much.
const ONCE: [&str; 14] = [
    "http",
    "hyper",
    "hyper-util",
    "prost",
    "prost-types",
    "rustix",
    "rustls",
    "serde",
    "tokio",
    "toml",
    "tonic",
    "tonic-prost",
    "tower",
    "tracing",
];

/// What our own choices keep out: other TLS and C libraries, asynchronous runtimes.
const NEVER: [&str; 7] =
    ["aws-lc-rs", "aws-lc-sys", "native-tls", "openssl", "openssl-sys", "async-std", "reqwest"];

#[test]
fn every_crate_comes_from_crates_io_with_a_checksum() {
    for package in locked() {
        let name = package["name"].as_str().expect("a name");
        if name == env!("CARGO_PKG_NAME") {
            assert!(package.get("source").is_none(), "{name} is this crate");
            continue;
        }
        let source = package.get("source").and_then(|source| source.as_str());
        assert_eq!(source, Some(CRATES_IO), "{name}");
        let checksum = package.get("checksum").and_then(|sum| sum.as_str()).unwrap_or_default();
        assert_eq!(checksum.len(), 64, "{name} has no checksum");
    }
}

#[test]
fn crates_of_weight_are_there_once_and_some_never() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in locked() {
        let text = |key: &str| package[key].as_str().expect("text").to_owned();
        versions.entry(text("name")).or_default().insert(text("version"));
    }
    for name in ONCE {
        let found = versions.get(name).unwrap_or_else(|| panic!("{name} is not in Cargo.lock any more"));
        assert_eq!(found.len(), 1, "{name}: {found:?}");
    }
    for name in NEVER {
        assert!(!versions.contains_key(name), "{name} came in");
    }
}

#[test]
fn every_licence_is_one_that_we_take() {
    let packages = metadata();
    let mut wrong = Vec::new();
    for package in &packages {
        let licence = package["license"].as_str().unwrap_or_default();
        if !is_taken(licence) {
            wrong.push(format!("{} {}: {licence:?}", package["name"], package["version"]));
        }
    }
    assert!(wrong.is_empty(), "licences that are not in the list:\n{}", wrong.join("\n"));
    assert!(packages.len() > 100, "only {} crates", packages.len());
}

#[test]
fn licences_are_read_as_spdx_has_them() {
    for taken in ["MIT", "MIT/Apache-2.0", "(MIT OR GPL-2.0-only) AND Unicode-3.0", "GPL-3.0-only OR ISC"] {
        assert!(is_taken(taken), "{taken}");
    }
    for refused in ["", "GPL-3.0-only", "MIT AND GPL-3.0-only", "(MIT OR ISC) AND MPL-2.0", "MITx"] {
        assert!(!is_taken(refused), "{refused}");
    }
}

/// Whether an SPDX expression can be met with [`LICENCES`]. The slash is the old way to
/// write OR.
fn is_taken(expression: &str) -> bool {
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut words = words.as_slice();
    either(&mut words).is_some_and(|taken| taken && words.is_empty())
}

fn either(words: &mut &[&str]) -> Option<bool> {
    let mut taken = both(words)?;
    while let Some(("OR", rest)) = words.split_first().map(|(word, rest)| (*word, rest)) {
        *words = rest;
        taken |= both(words)?;
    }
    Some(taken)
}

fn both(words: &mut &[&str]) -> Option<bool> {
    let mut taken = licence(words)?;
    while let Some(("AND", rest)) = words.split_first().map(|(word, rest)| (*word, rest)) {
        *words = rest;
        taken &= licence(words)?;
    }
    Some(taken)
}

fn licence(words: &mut &[&str]) -> Option<bool> {
    let (name, rest) = words.split_first()?;
    *words = rest;
    if *name == "(" {
        let taken = either(words)?;
        let (end, rest) = words.split_first()?;
        *words = rest;
        return (*end == ")").then_some(taken);
    }
    if let [with @ "WITH", exception, rest @ ..] = words {
        let name = format!("{name} {with} {exception}");
        *words = rest;
        return Some(LICENCES.contains(&name.as_str()));
    }
    Some(LICENCES.contains(name))
}

fn locked() -> Vec<toml::Table> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    let text = std::fs::read_to_string(path).expect("Cargo.lock");
    let lock: toml::Table = text.parse().expect("TOML");
    let packages = lock["package"].as_array().expect("packages");
    packages.iter().map(|package| package.as_table().expect("a package").clone()).collect()
}

/// The packages that are built on this machine.
fn metadata() -> Vec<Value> {
    let host = Command::new(env!("CARGO")).args(["-vV"]).output().expect("cargo runs");
    let host = String::from_utf8(host.stdout).expect("text");
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    metadata["packages"].as_array().expect("packages").clone()
}
