//! The kubelet of this node, as far as its files and its command line tell.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::KUBELET_CONFIG;
use crate::sys::processes::Process;

/// The largest configuration that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kubelet {
    /// Its process.
    pub(super) pid: Option<u32>,
    /// Its configuration file, if there is one, and what is wrong with it.
    pub(super) file: Option<(PathBuf, Result<(), String>)>,
    /// The driver that it is told to use; `None` where nobody tells.
    pub(super) driver: Option<String>,
    /// The CRI socket that it is told to use.
    pub(super) endpoint: Option<String>,
}

/// What is read of `KubeletConfiguration`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    cgroup_driver: Option<String>,
    container_runtime_endpoint: Option<String>,
}

/// Looks at the process and the file: the one that is given, else the process's, else the
/// usual one. Blocks.
pub(super) fn gather(processes: &[Process], given: Option<&Path>) -> Kubelet {
    let process = processes.iter().find(|process| process.program() == "kubelet");
    let flag = |name: &str| process.and_then(|process| process.flag(name));
    let usual = || flag("config").unwrap_or(KUBELET_CONFIG).into();
    let path: PathBuf = given.map_or_else(usual, Path::to_owned);
    let is_there = given.is_some() || path.exists();
    let read = is_there.then(|| read(&path));
    let (config, outcome) = match read {
        Some(Ok(config)) => (config, Some(Ok(()))),
        Some(Err(wrong)) => (Config::default(), Some(Err(wrong))),
        None => (Config::default(), None),
    };
    Kubelet {
        pid: process.map(|process| process.pid),
        file: outcome.map(|outcome| (path, outcome)),
        // A flag goes over the file.
        driver: flag("cgroup-driver").map(str::to_owned).or(config.cgroup_driver),
        endpoint: flag("container-runtime-endpoint")
            .map(str::to_owned)
            .or(config.container_runtime_endpoint)
            .filter(|endpoint| !endpoint.is_empty()),
    }
}

fn read(path: &Path) -> Result<Config, String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err("it is no file of a configuration".to_owned());
    }
    parse(&std::fs::read_to_string(path).map_err(|error| error.to_string())?)
}

fn parse(text: &str) -> Result<Config, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let config: Option<Config> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    Ok(config.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncgroupDriver: systemd\n\
        containerRuntimeEndpoint: unix:///run/x.sock\nevictionHard:\n  memory.available: 100Mi\n";

    #[test]
    fn the_file_is_read_and_flags_go_over_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, FILE).expect("a file");
        let process = |flags: &str| {
            let line = format!("/usr/bin/kubelet --config={} {flags}", path.display());
            Process { pid: 7, arguments: line.split_whitespace().map(str::to_owned).collect() }
        };
        let found = gather(&[process("")], None);
        assert_eq!((found.pid, found.driver.as_deref()), (Some(7), Some("systemd")));
        assert_eq!(found.endpoint.as_deref(), Some("unix:///run/x.sock"));
        let found =
            gather(&[process("--cgroup-driver cgroupfs --container-runtime-endpoint=unix:///y.sock")], None);
        assert_eq!(found.driver.as_deref(), Some("cgroupfs"));
        assert_eq!(found.endpoint.as_deref(), Some("unix:///y.sock"));
        let alone = gather(&[], Some(&path));
        assert_eq!((alone.pid, alone.driver.as_deref()), (None, Some("systemd")));
    }

    #[test]
    fn a_file_that_is_given_must_be_there_and_a_broken_one_says_so() {
        let found = gather(&[], Some(Path::new("/no/such/file")));
        assert!(matches!(found.file, Some((_, Err(_)))));
        assert!(parse("a: [").is_err());
        assert!(parse("").is_ok_and(|config| config.cgroup_driver.is_none()));
    }
}
