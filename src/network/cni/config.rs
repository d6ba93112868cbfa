//! Network configurations: the files of a directory, parsed but never interpreted.
//!
//! A configuration is the administrator's word to the plugins. It passes through as raw
//! JSON; only what the runtime must know is read (name, version, types, capabilities),
//! and only what the specification demands is put in: `name`, `cniVersion`,
//! `prevResult`, `runtimeConfig` (CNI-12, CNI-15).
//!
//! A `.conflist` file holds a list of plugins that work one after the other, a `.conf`
//! or `.json` file a single plugin, which becomes a list of one. Unless the list says
//! `loadOnlyInlinedPlugins`, further plugins come from `<directory>/<network name>/*.conf`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Version;
use crate::error::{Context, Result, invalid, precondition};

/// Bytes of the largest configuration file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The most networks of one pod, whatever the configured number.
const NETWORKS_MAX: usize = 64;

/// The loopback network as libcni's users add it (CNI-03).
const LOOPBACK: &[u8] = br#"{"cniVersion":"0.3.1","name":"cni-loopback","plugins":[{"type":"loopback"}]}"#;

/// The name of the loopback network.
pub(crate) const LOOPBACK_NAME: &str = "cni-loopback";

/// One plugin's part of a list.
#[derive(Clone, Debug)]
pub(crate) struct Plugin {
    /// `type`: the name of the binary.
    pub(crate) kind: String,
    /// Names of the capabilities that it declares.
    capabilities: Vec<String>,
    raw: Map<String, Value>,
}

/// A list of plugins: one network.
#[derive(Clone, Debug)]
pub(crate) struct NetworkList {
    /// The network's name, which is valid.
    pub(crate) name: String,
    /// `cniVersion` as written, or the highest known one of `cniVersions`.
    pub(crate) version_text: String,
    /// The same, parsed.
    pub(crate) version: Version,
    /// CHECK is not to be called.
    pub(crate) disable_check: bool,
    /// GC is not to be called.
    pub(crate) disable_gc: bool,
    /// The plugins in the order of ADD; at least one.
    pub(crate) plugins: Vec<Plugin>,
    /// The list as JSON, as it goes into the cache.
    pub(crate) bytes: Vec<u8>,
}

/// A network and the interface that a pod gets in it.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) list: NetworkList,
    /// `eth0`, `eth1`, … in the order of the files; `lo` for the loopback network.
    pub(crate) interface: String,
    /// The file, for messages.
    pub(crate) source: PathBuf,
}

impl Network {
    /// The loopback network.
    pub(crate) fn loopback() -> Network {
        let list = NetworkList::parse(LOOPBACK).expect("the constant is valid");
        Network { list, interface: "lo".to_owned(), source: PathBuf::new() }
    }

    /// All that matters of it: two networks with the same content are alike.
    pub(crate) fn content(&self) -> (&Path, &[u8]) {
        (&self.source, &self.list.bytes)
    }
}

/// Loads the first `max` configurations of `directory` in the order of their names
/// (CNI-01 to CNI-03); 0 means all. One invalid file fails the whole load (CNI-04).
///
/// # Errors
/// What is wrong, with the file or the directory.
pub(crate) fn load(directory: &Path, max: usize) -> Result<Vec<Network>> {
    let mut files = conf_files(directory, &["conflist", "conf", "json"])
        .context(|| format!("read the network configurations in {directory:?}"))?;
    if files.is_empty() {
        return Err(precondition(format!(
            "no network configuration (*.conflist, *.conf, *.json) in {directory:?}"
        )));
    }
    files.truncate(if max == 0 { NETWORKS_MAX } else { max.min(NETWORKS_MAX) });
    let mut networks = Vec::with_capacity(files.len());
    for (index, file) in files.into_iter().enumerate() {
        let list = load_file(&file).context(|| format!("network configuration {file:?}"))?;
        networks.push(Network { list, interface: format!("eth{index}"), source: file });
    }
    Ok(networks)
}

/// The files of `directory` with one of `extensions`, sorted by name; without a directory none.
pub(crate) fn conf_files(directory: &Path, extensions: &[&str]) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let wanted = path.extension().and_then(|extension| extension.to_str());
        if wanted.is_some_and(|found| extensions.contains(&found)) && !entry.file_type()?.is_dir() {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn load_file(path: &Path) -> Result<NetworkList> {
    let bytes = read(path)?;
    if path.extension().is_some_and(|extension| extension == "conflist") {
        NetworkList::with_folder(&bytes, path.parent().unwrap_or(Path::new("/")))
    } else {
        NetworkList::from_single(&bytes)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    // A FIFO would make the open wait.
    if !std::fs::metadata(path)?.is_file() {
        return Err(invalid("not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(invalid(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

impl NetworkList {
    /// Parses a list all of whose plugins are in it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<NetworkList> {
        let (list, _) = NetworkList::parse_inlined(bytes)?;
        list.validated()
    }

    /// Parses a list with the plugins that stand below `directory`, and makes its bytes
    /// hold them all, so that the cached copy is complete.
    fn with_folder(bytes: &[u8], directory: &Path) -> Result<NetworkList> {
        let (mut list, mut raw) = NetworkList::parse_inlined(bytes)?;
        check_name(&list.name)?;
        if !flag(&raw, "loadOnlyInlinedPlugins")? {
            let folder = directory.join(&list.name);
            let files =
                conf_files(&folder, &["conf"]).context(|| format!("read the plugins in {folder:?}"))?;
            for file in &files {
                let plugin = read(file).and_then(|bytes| Plugin::parse(parse_json(&bytes)?));
                list.plugins.push(plugin.context(|| format!("plugin {file:?}"))?);
            }
            if !files.is_empty() {
                let plugins: Vec<Value> =
                    list.plugins.iter().map(|plugin| plugin.raw.clone().into()).collect();
                raw.insert("plugins".to_owned(), plugins.into());
                raw.insert("loadOnlyInlinedPlugins".to_owned(), true.into());
                list.bytes = Value::Object(raw).to_string().into_bytes();
            }
        }
        list.validated()
    }

    /// Makes a list of a single plugin's configuration.
    fn from_single(bytes: &[u8]) -> Result<NetworkList> {
        let plugin = Plugin::parse(parse_json(bytes)?)?;
        let text = |key: &str| string(&plugin.raw, key).map(Option::unwrap_or_default);
        let (name, version) = (text("name")?, text("cniVersion")?);
        let list = json!({ "name": name, "cniVersion": version, "plugins": [plugin.raw] });
        NetworkList::parse(list.to_string().as_bytes())
    }

    fn parse_inlined(bytes: &[u8]) -> Result<(NetworkList, Map<String, Value>)> {
        let Value::Object(raw) = parse_json(bytes)? else { return Err(invalid("not a JSON object")) };
        let name = string(&raw, "name")?.ok_or_else(|| invalid("\"name\" is missing"))?;
        let plugins = match raw.get("plugins") {
            None => Vec::new(),
            Some(Value::Array(plugins)) => plugins
                .iter()
                .enumerate()
                .map(|(index, plugin)| {
                    Plugin::parse(plugin.clone()).context(|| format!("\"plugins\"[{index}]"))
                })
                .collect::<Result<Vec<_>>>()?,
            Some(_) => return Err(invalid("\"plugins\" is not a list")),
        };
        if raw.contains_key("plugins") && plugins.is_empty() {
            return Err(invalid("\"plugins\" is empty"));
        }
        let (version_text, version) = chosen_version(&raw)?;
        let list = NetworkList {
            name,
            version_text,
            version,
            disable_check: flag(&raw, "disableCheck")?,
            disable_gc: flag(&raw, "disableGC")?,
            plugins,
            bytes: bytes.to_vec(),
        };
        Ok((list, raw))
    }

    fn validated(self) -> Result<NetworkList> {
        check_name(&self.name)?;
        if self.plugins.is_empty() {
            return Err(invalid("there are no plugins"));
        }
        Ok(self)
    }
}

impl Plugin {
    fn parse(raw: Value) -> Result<Plugin> {
        let Value::Object(raw) = raw else { return Err(invalid("not a JSON object")) };
        let kind = string(&raw, "type")?.unwrap_or_default();
        if kind.is_empty() {
            return Err(invalid("\"type\" is missing: there is no plugin to call"));
        }
        if kind.contains('/') {
            return Err(invalid(format!("\"type\" {kind:?} is a path, not a name")));
        }
        let capabilities = match raw.get("capabilities") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(declared)) => {
                let mut names = Vec::new();
                for (name, supported) in declared {
                    match supported {
                        Value::Bool(true) => names.push(name.clone()),
                        Value::Bool(false) => {}
                        _ => {
                            return Err(invalid(format!("capability {name:?} is neither true nor false")));
                        }
                    }
                }
                names
            }
            Some(_) => return Err(invalid("\"capabilities\" is not an object")),
        };
        Ok(Plugin { kind, capabilities, raw })
    }

    /// The configuration for the plugin's standard input: its part of `list` with
    /// `injected` over it and those of `capability_args` that it declares.
    pub(crate) fn input(
        &self,
        list: &NetworkList,
        injected: &[(&str, &Value)],
        capability_args: &Map<String, Value>,
    ) -> Vec<u8> {
        let mut raw = self.raw.clone();
        raw.insert("name".to_owned(), list.name.clone().into());
        raw.insert("cniVersion".to_owned(), list.version_text.clone().into());
        for &(key, value) in injected {
            raw.insert(key.to_owned(), value.clone());
        }
        let runtime: Map<String, Value> = self
            .capabilities
            .iter()
            .filter_map(|name| Some((name.clone(), capability_args.get(name)?.clone())))
            .collect();
        if !runtime.is_empty() {
            raw.insert("runtimeConfig".to_owned(), runtime.into());
        }
        Value::Object(raw).to_string().into_bytes()
    }

    /// The plugin that it asks for addresses, if it does.
    pub(crate) fn ipam(&self) -> Option<&str> {
        self.raw.get("ipam")?.get("type")?.as_str().filter(|kind| !kind.is_empty())
    }

    /// The parts that libcni knows of a plugin and the whole text, for verbose Status.
    pub(crate) fn describe(&self) -> Value {
        let mut known = Map::new();
        for key in ["cniVersion", "name", "type", "capabilities", "dns"] {
            if let Some(value) = self.raw.get(key) {
                known.insert(key.to_owned(), value.clone());
            }
        }
        let ipam = self.raw.get("ipam").and_then(|ipam| ipam.get("type"));
        known.insert("ipam".to_owned(), ipam.map_or_else(|| json!({}), |kind| json!({ "type": kind })));
        json!({ "Network": known, "Source": Value::Object(self.raw.clone()).to_string() })
    }
}

fn parse_json(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|error| invalid(format!("not valid JSON: {error}")))
}

/// A text field; None if it is not there.
fn string(raw: &Map<String, Value>, key: &str) -> Result<Option<String>> {
    match raw.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(invalid(format!("\"{key}\" is not a text"))),
    }
}

/// A truth value, which may be written as a text.
fn flag(raw: &Map<String, Value>, key: &str) -> Result<bool> {
    match raw.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(invalid(format!("\"{key}\" is neither true nor false"))),
    }
}

/// `cniVersion`, unless `cniVersions` has a higher one that we know.
fn chosen_version(raw: &Map<String, Value>) -> Result<(String, Version)> {
    let single = string(raw, "cniVersion")?;
    let parse = |text: String| Version::parse(&text).map(|version| (text, version));
    let Some(several) = raw.get("cniVersions") else {
        return parse(single.unwrap_or_default());
    };
    let Value::Array(several) = several else { return Err(invalid("\"cniVersions\" is not a list")) };
    let mut best: Option<(String, Version)> = None;
    let texts = several.iter().map(|value| match value {
        Value::String(text) => Ok(text.clone()),
        _ => Err(invalid("\"cniVersions\" holds something else than a text")),
    });
    for text in texts.chain(single.clone().filter(|text| !text.is_empty()).map(Ok)) {
        let candidate = parse(text?)?;
        if candidate.1 <= Version::NEWEST && best.as_ref().is_none_or(|best| best.1 < candidate.1) {
            best = Some(candidate);
        }
    }
    match best {
        Some(best) => Ok(best),
        None => parse(single.unwrap_or_default()),
    }
}

fn check_name(name: &str) -> Result<()> {
    if super::is_valid_name(name) {
        return Ok(());
    }
    Err(invalid(format!(
        "\"name\" {name:?} must begin with a letter or digit and hold only letters, digits, '.', '_' and '-'"
    )))
}

#[cfg(test)]
mod tests;
