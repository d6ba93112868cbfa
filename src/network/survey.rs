//! The network as it is configured, for who only looks: which configurations are chosen and
//! which programs they need, and what the cache holds. Nothing is called but VERSION.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cni::cache::Cache;
use super::cni::config;
use super::cni::invoke::Plugins;
use super::cni::{self, Version};
use crate::error::Result;
use crate::ids::is_id;
use crate::sys;

/// A folder of configurations, and what is taken from it.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    /// How many configurations are taken at most; 0 for all.
    pub max: usize,
    /// All that could be taken, in the order in which they are.
    pub candidates: Vec<PathBuf>,
    /// Those that are, or what is wrong.
    pub chosen: Result<Vec<Chosen>, String>,
}

/// A configuration that pods get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Its file.
    pub file: PathBuf,
    /// The network's name.
    pub name: String,
    /// Its `cniVersion`.
    pub version: String,
    /// Its plugins in the order of ADD.
    pub plugins: Vec<String>,
    /// The plugins that those call for addresses.
    pub ipam: Vec<String>,
}

/// A plugin's program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The plugin's `type`.
    pub plugin: String,
    /// Where it was found, or that it was not.
    pub path: Result<PathBuf, String>,
    /// Whether it may be executed.
    pub is_executable: bool,
    /// The versions that it knows, or why it does not say.
    pub versions: Result<Vec<String>, String>,
}

/// A file of the cache: an attachment of a sandbox to a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// The file.
    pub file: PathBuf,
    /// The sandbox.
    pub id: String,
    /// Where its namespace is, as far as the file tells.
    pub netns: PathBuf,
    /// Whether the file says that it is of a pod.
    pub is_pod: bool,
}

/// Reads a folder of configurations as the server does. Blocks.
#[must_use]
pub fn folder(path: &Path, max: usize) -> Folder {
    let candidates = config::conf_files(path, &["conflist", "conf", "json"]).unwrap_or_default();
    let chosen = config::load(path, max).map_err(|error| error.message().to_owned()).map(|networks| {
        let chosen = networks.into_iter().map(|network| Chosen {
            file: network.source,
            name: network.list.name,
            version: network.list.version_text,
            ipam: network.list.plugins.iter().filter_map(|p| p.ipam().map(str::to_owned)).collect(),
            plugins: network.list.plugins.into_iter().map(|plugin| plugin.kind).collect(),
        });
        chosen.collect()
    });
    Folder { path: path.to_owned(), max, candidates, chosen }
}

/// Looks for the program of `plugin` in `folders` and asks it which versions it knows.
pub async fn program(folders: &[PathBuf], plugin: &str, limit: Duration) -> Program {
    let plugins = Plugins::new(folders);
    let path = plugins.find(plugin).map_err(|error| error.message().to_owned());
    let is_executable = path
        .as_ref()
        .is_ok_and(|path| std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o111 != 0));
    let versions = match is_executable {
        true => cni::versions(&plugins, plugin, limit).await.map_err(|error| error.message().to_owned()),
        false => Err(String::new()),
    };
    Program { plugin: plugin.to_owned(), path, is_executable, versions }
}

/// Whether two versions are one: `1.0` and `1.0.0`.
#[must_use]
pub fn is_same_version(one: &str, other: &str) -> bool {
    matches!((Version::parse(one), Version::parse(other)), (Ok(one), Ok(other)) if one == other)
}

/// All attachments of the cache below `directory` whose sandbox `is_id` knows as an id. Files
/// that cannot be read count by their name. Blocks.
///
/// # Errors
/// If the folder cannot be read; that it is missing is none.
pub fn attachments(directory: &Path, is_id: impl Fn(&str) -> bool) -> Result<Vec<Attached>> {
    let cache = Cache::new(directory);
    let mut attachments = Vec::new();
    for (file, entry) in cache.survey()? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(id) = name.split('-').find(|part| is_id(part)) else { continue };
        let mut attached = Attached { file, id: id.to_owned(), ..Attached::default() };
        if let Some(entry) = entry.filter(|entry| entry.container_id == id) {
            let interfaces = entry.result.as_ref().and_then(|result| result["interfaces"].as_array());
            let in_result =
                interfaces.into_iter().flatten().filter_map(|interface| interface["sandbox"].as_str());
            let mut known = [entry.netns.as_str()].into_iter().chain(in_result);
            attached.netns = known.find(|path| path.starts_with('/')).unwrap_or_default().into();
            attached.is_pod = entry.cni_args.iter().any(|(name, _)| name == "K8S_POD_INFRA_CONTAINER_ID");
        }
        attachments.push(attached);
    }
    attachments.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(attachments)
}

/// The namespace that a file of the cache names, as long as it lives. Blocks.
#[must_use]
pub fn netns_in(file: &Path) -> Option<PathBuf> {
    let folder = file.parent()?.parent()?;
    let all = attachments(folder, is_id).ok()?;
    let attached = all.into_iter().find(|attached| attached.file == file)?;
    Some(attached.netns).filter(|path| sys::netns::is_alive(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("a plugin");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("permissions");
    }

    #[test]
    fn the_first_file_is_chosen_and_the_others_are_known() {
        let directory = tempfile::tempdir().expect("a folder");
        let list = |name: &str| {
            format!(
                r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"bridge","ipam":{{"type":"host-local"}}}},{{"type":"portmap"}}]}}"#
            )
        };
        for (file, name) in [("20-b.conflist", "b"), ("10-a.conflist", "a")] {
            std::fs::write(directory.path().join(file), list(name)).expect("a file");
        }
        let found = folder(directory.path(), 1);
        let chosen = found.chosen.expect("valid");
        let [network] = chosen.as_slice() else { panic!("one network: {chosen:?}") };
        assert_eq!((network.name.as_str(), network.version.as_str()), ("a", "1.0.0"));
        assert_eq!(
            (network.plugins.as_slice(), network.ipam.as_slice()),
            (&["bridge".to_owned(), "portmap".to_owned()][..], &["host-local".to_owned()][..])
        );
        assert_eq!(found.candidates.len(), 2);
        std::fs::write(directory.path().join("00-c.conflist"), "{").expect("a file");
        assert!(folder(directory.path(), 1).chosen.is_err_and(|wrong| wrong.contains("00-c.conflist")));
        assert!(is_same_version("1.0", "1.0.0") && !is_same_version("1.0", "0.4.0"));
    }

    #[tokio::test]
    async fn a_plugin_is_asked_for_its_versions_alone_and_not_for_ever() {
        let directory = tempfile::tempdir().expect("a folder");
        let folders = [directory.path().to_owned()];
        let answer = r#"#!/bin/sh
[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0"]}'"#;
        script(directory.path(), "good", answer);
        script(directory.path(), "mute", "#!/bin/sh\nexec sleep 1000\n");
        script(directory.path(), "odd", "#!/bin/sh\necho hello\n");
        std::fs::write(directory.path().join("plain"), "").expect("a file");
        let limit = Duration::from_millis(300);
        let good = program(&folders, "good", Duration::from_secs(30)).await;
        assert_eq!(good.versions, Ok(vec!["0.4.0".to_owned(), "1.0.0".to_owned()]));
        assert!(good.is_executable && good.path == Ok(directory.path().join("good")));
        assert!(
            program(&folders, "mute", limit).await.versions.is_err_and(|why| why.contains("did not end"))
        );
        assert!(program(&folders, "odd", Duration::from_secs(30)).await.versions.is_err());
        assert!(!program(&folders, "plain", limit).await.is_executable);
        assert!(program(&folders, "none", limit).await.path.is_err());
    }

    #[test]
    fn attachments_count_by_their_names_also_where_they_are_damaged() {
        let directory = tempfile::tempdir().expect("a folder");
        let results = directory.path().join("results");
        std::fs::create_dir(&results).expect("a folder");
        let (whole, damaged) = ("a".repeat(64), "b".repeat(64));
        let entry = serde_json::json!({
            "kind": "cniCacheV1", "containerId": whole, "config": "e30=", "ifName": "eth0",
            "networkName": "a-b", "cniArgs": [["K8S_POD_INFRA_CONTAINER_ID", whole]],
            "result": {"interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/run/netns/cni-1"}]},
        });
        std::fs::write(results.join(format!("a-b-{whole}-eth0")), entry.to_string()).expect("a file");
        std::fs::write(results.join(format!("a-b-{damaged}-eth0")), "{").expect("a file");
        std::fs::write(results.join("podman-x-eth0"), "{}").expect("a file");
        let found = attachments(directory.path(), crate::ids::is_id).expect("readable");
        let seen: Vec<_> =
            found.iter().map(|found| (found.id.as_str(), found.netns.as_path(), found.is_pod)).collect();
        assert_eq!(
            seen,
            [(whole.as_str(), Path::new("/run/netns/cni-1"), true), (damaged.as_str(), Path::new(""), false)]
        );
        assert!(attachments(Path::new("/no/such"), crate::ids::is_id).expect("none is none").is_empty());
    }
}
