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
