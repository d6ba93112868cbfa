//! `longshore config import`: the configuration of containerd's CRI plugin as ours.
//!
//! Whatever differs from the plugin's default either becomes a key of ours or is named
//! with the reason why not; unknown keys are named, too. What concerns containerd itself
//! stays where it is: containerd goes on running.
//!
//! ```text
//! files ─▶ one list of values (source) ─▶ rules (keys, handlers) ─▶ our File ─▶ text (write)
//! ```

mod handlers;
mod keys;
mod source;
mod write;

use std::collections::BTreeMap;
use std::fmt;

use toml::Value;

use super::file::{self, File};
use keys::{Rule, Then};
use source::{Entry, Source, one_line};
pub use source::{Files, Generation};

/// Of a key that nobody knows.
const NO_KEY: &str = "is not a key of containerd's CRI plugin";
/// Pause images that the plugin has as its default, by version; ours is built in.
const PAUSE_IMAGES: [&str; 5] = [
    "registry.k8s.io/pause:3.6",
    "registry.k8s.io/pause:3.8",
    "registry.k8s.io/pause:3.10",
    "registry.k8s.io/pause:3.10.1",
    "registry.k8s.io/pause:3.10.2",
];
/// The plugin's parts, as `disabled_plugins` names them.
const PARTS: [&str; 3] =
    ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"];

/// A key that could not be carried over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The dotted key, as it is written there.
    pub key: String,
    /// Its value as TOML, in one line.
    pub value: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not carried over: {} = {}: {}", self.key, self.value, self.reason)
    }
}

/// A configuration made from containerd's.
#[derive(Clone, Debug)]
pub struct Imported {
    /// Our configuration, as TOML with comments.
    pub text: String,
    /// What is not in it.
    pub lost: Vec<Lost>,
    /// What has to be done besides.
    pub hints: Vec<String>,
}

/// What is being made.
struct Draft {
    generation: Generation,
    file: File,
    /// The key from which a key of ours comes.
    origins: BTreeMap<String, String>,
    lost: Vec<Lost>,
}

impl Draft {
    fn lose(&mut self, entry: Entry, reason: &str) {
        let Entry { written: key, value, .. } = entry;
        self.lost.push(Lost { key, value: one_line(&value), reason: reason.to_owned() });
    }

    /// As [`Draft::lose`], of a key whose value may be a secret.
    fn lose_secret(&mut self, entry: Entry, reason: &str) {
        self.lost.push(Lost { key: entry.written, value: "…".to_owned(), reason: reason.to_owned() });
    }

    fn set(&mut self, key: &str, origin: &str, set: impl FnOnce(&mut File)) {
        set(&mut self.file);
        self.origins.insert(key.to_owned(), origin.to_owned());
    }
}

/// Makes our configuration of containerd's, as that generation of it reads it. `version`
/// says for people where the generation is known from.
#[must_use]
pub fn import(files: &Files, generation: Generation, version: &str) -> Imported {
    let mut source = files.merge(generation);
    let mut draft = Draft { generation, file: File::default(), origins: BTreeMap::new(), lost: Vec::new() };
    let disabled = list(source.take(&["top", "disabled_plugins"]));
    let required = list(source.take(&["top", "required_plugins"]));
    transfer(&mut source, generation);
    rules(&mut source, &mut draft);
    network_plugins(&mut source, &mut draft);
    images(&mut source, &mut draft);
    certificates(&mut source, &mut draft);
    handlers::import(&mut source, &mut draft);
    registries(files, &mut source, &mut draft);
    nri(&mut source, &mut draft);
    rest(source, &mut draft);
    let hints = hints(files, generation, &disabled, &required);
    let text = write::file(&draft, &head(files, version, &hints));
    Imported { text, lost: draft.lost, hints }
}

fn list(entry: Option<Entry>) -> Vec<String> {
    entry.and_then(|entry| keys::texts(&entry.value).ok()).unwrap_or_default()
}

/// Keys that need only their own value.
fn rules(source: &mut Source, draft: &mut Draft) {
    let mut defaults = BTreeMap::from(keys::defaults(draft.generation));
    for Rule { path, silent, then } in keys::RULES {
        let default = defaults.remove(path);
        let (entry, is_default) = match (source.take(path), default) {
            (Some(entry), _) => (entry, false),
            (None, Some(value)) => (Entry::assumed(value), true),
            (None, None) => continue,
        };
        if silent.contains(&one_line(&entry.value).as_str()) {
            continue;
        }
        match then {
            Then::Lost(reason) => draft.lose(entry, reason),
            Then::Becomes(ours, set) => match set(&mut draft.file, &entry.value) {
                Err(reason) => draft.lose(entry, &reason),
                Ok(()) => {
                    let origin = if is_default {
                        format!("{}: containerd's default", path[1..].join("."))
                    } else {
                        entry.written
                    };
                    draft.origins.insert((*ours).to_owned(), origin);
                }
            },
        }
    }
}

/// From 2.1 on the Transfer service pulls, unless the plugin's own limit is changed.
fn transfer(source: &mut Source, generation: Generation) {
    let limits = source.take_below(&["transfer"]);
    let own = source.take(&["images", "max_concurrent_downloads"]);
    let is_local = source.get(&["images", "use_local_image_pull"]) == Some(&Value::Boolean(true));
    let is_own = generation == Generation::One
        || is_local
        || own.as_ref().is_some_and(|entry| entry.value != Value::Integer(3));
    let limit = limits.into_iter().find(|(path, entry)| {
        path == &["max_concurrent_downloads"] && entry.value.as_integer().is_some_and(|limit| limit > 0)
    });
    if let Some(entry) = limit.map(|(_, entry)| entry).filter(|_| !is_own).or(own) {
        source.put(&["images", "max_concurrent_downloads"], entry);
    }
}

/// `cni.bin_dirs`, and `cni.bin_dir`, which had only one.
fn network_plugins(source: &mut Source, draft: &mut Draft) {
    let (one, many) =
        (source.take(&["runtime", "cni", "bin_dir"]), source.take(&["runtime", "cni", "bin_dirs"]));
    let is_given = |entry: &Entry| match &entry.value {
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    };
    let Some(entry) = many.filter(is_given).or(one.filter(is_given)) else { return };
    // Ours begins with the plugin's default.
    if ["\"/opt/cni/bin\"", "[\"/opt/cni/bin\"]"].contains(&one_line(&entry.value).as_str()) {
        return;
    }
    let dirs = match &entry.value {
        Value::Array(list) => list.iter().map(keys::path).collect(),
        other => keys::path(other).map(|dir| vec![dir]),
    };
    match dirs {
        Ok(dirs) => draft.set("cni.bin_dirs", &entry.written, |file| file.cni.bin_dirs = dirs),
        Err(reason) => draft.lose(entry, &reason),
    }
}

/// `pinned_images`, with the pause image.
fn images(source: &mut Source, draft: &mut Draft) {
    for (path, entry) in source.take_below(&["images", "pinned_images"]) {
        let name = match (path.as_slice(), keys::text(&entry.value)) {
            ([name], Ok(image)) => Ok((name.as_str(), image)),
            ([], _) => continue,
            (_, Err(reason)) => Err(reason),
            _ => Err(NO_KEY.to_owned()),
        };
        match name {
            Ok(("sandbox", image)) if PAUSE_IMAGES.contains(&image.as_str()) || image.is_empty() => {}
            Ok(("sandbox", image)) => {
                draft.set("sandbox.image", &entry.written, |file| file.sandbox.image = image);
            }
            Ok((_, image)) => draft.set("image.pinned", &entry.written, |file| file.image.pinned.push(image)),
            Err(reason) => draft.lose(entry, &reason),
        }
    }
}

/// The certificate of streams, which containerd makes itself where none is given.
fn certificates(source: &mut Source, draft: &mut Draft) {
    let enabled = source.take(&["server", "enable_tls_streaming"]);
    let mut file = |name: &str| {
        let entry = source.take(&["server", "x509_key_pair_streaming", name]);
        entry.filter(|entry| entry.value.as_str() != Some(""))
    };
    let pair = (file("tls_cert_file"), file("tls_key_file"));
    let is_enabled = enabled.as_ref().is_some_and(|entry| entry.value.as_bool() == Some(true));
    match (pair, enabled) {
        ((Some(cert), Some(key)), _) if is_enabled => match (keys::path(&cert.value), keys::path(&key.value))
        {
            (Ok(cert_file), Ok(key_file)) => {
                draft
                    .set("stream.tls_cert_file", &cert.written, |file| file.stream.tls_cert_file = cert_file);
                draft.set("stream.tls_key_file", &key.written, |file| file.stream.tls_key_file = key_file);
            }
            (cert_file, key_file) => {
                for (entry, result) in [(cert, cert_file), (key, key_file)] {
                    if let Err(reason) = result {
                        draft.lose(entry, &reason);
                    }
                }
            }
        },
        ((None, None), Some(enabled)) if is_enabled => {
            draft.set("stream.tls_self_signed", &enabled.written, |file| file.stream.tls_self_signed = true);
        }
        ((cert, key), _) => {
            for entry in [cert, key].into_iter().flatten() {
                draft.lose(entry, "needs enable_tls_streaming, and both files");
            }
        }
    }
}

/// The registries are read from containerd's files at each start.
fn registries(files: &Files, source: &mut Source, draft: &mut Draft) {
    let mut entries = source.take_below(&["images", "registry"]);
    entries.retain(|(_, entry)| !matches!(&entry.value, Value::Table(table) if table.is_empty()));
    let has_path = entries.iter().any(|(path, entry)| {
        path == &["config_path"] && entry.value.as_str().is_some_and(|value| !value.is_empty())
    });
    for (path, entry) in entries {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match path.as_slice() {
            ["config_path"]
            | ["headers", _]
            | ["configs", _, "auth", "username" | "password" | "auth" | "identitytoken"]
            | ["auths", _, "username" | "password" | "auth" | "identitytoken"] => {}
            ["mirrors", _, "endpoint"]
            | ["configs", _, "tls", "insecure_skip_verify" | "ca_file" | "cert_file" | "key_file"] => {
                if has_path {
                    draft.lose_secret(entry, "containerd does not take it beside a config_path");
                }
            }
            _ => draft.lose_secret(entry, NO_KEY),
        }
    }
    let Some(path) = files.paths().next() else { return };
    if path != file::Image::default().containerd_config && path.is_absolute() {
        let origin = "where the registries (config_path, mirrors, configs, headers) are read from";
        draft.set("image.containerd_config", origin, |file| {
            path.clone_into(&mut file.image.containerd_config)
        });
    }
}

/// NRI is off by default in 1.7 and on in 2.x.
fn nri(source: &mut Source, draft: &mut Draft) {
    let entries = source.take_below(&["nri"]);
    let disabled = entries.iter().find(|(path, _)| path == &["disable"]);
    let is_two = draft.generation == Generation::Two;
    let is_off = disabled.map_or(!is_two, |(_, entry)| entry.value.as_bool() == Some(true));
    if is_off {
        return;
    }
    const DEFAULTS: [(&str, &str); 6] = [
        ("disable_connections", "false"),
        ("plugin_config_path", "\"/etc/nri/conf.d\""),
        ("plugin_path", "\"/opt/nri/plugins\""),
        ("plugin_registration_timeout", "\"5s\""),
        ("plugin_request_timeout", "\"2s\""),
        ("socket_path", "\"/var/run/nri/nri.sock\""),
    ];
    for (path, entry) in entries {
        let value = one_line(&entry.value);
        let is_default = match path.as_slice() {
            [key] if key == "disable" => is_two,
            [key] => DEFAULTS.contains(&(key.as_str(), value.as_str())),
            _ => ["false", "[]", "\"\""].contains(&value.as_str()),
        };
        if !is_default {
            draft.lose(entry, "NRI plugins are not asked");
        }
    }
}

/// Whatever nobody took.
fn rest(source: Source, draft: &mut Draft) {
    for (path, entry) in source.rest() {
        let is_empty = matches!(&entry.value, Value::Table(table) if table.is_empty());
        match path[0].as_str() {
            _ if is_empty => {}
            "runtime" | "images" | "server" => draft.lose(entry, NO_KEY),
            "unread" => {
                draft.lose_secret(entry, "containerd does not read this section in a file of this version")
            }
            // containerd's own.
            _ => {}
        }
    }
}

fn hints(files: &Files, generation: Generation, disabled: &[String], required: &[String]) -> Vec<String> {
    let parts: Vec<&str> = match (generation, files.format()) {
        (Generation::One, 1) => vec!["cri"],
        (Generation::One, _) => vec![PARTS[0]],
        (Generation::Two, _) => PARTS.to_vec(),
    };
    let mut hints = Vec::new();
    let missing: Vec<&str> =
        parts.iter().copied().filter(|part| !disabled.iter().any(|name| name == part)).collect();
    if !missing.is_empty() {
        let all = disabled.iter().map(String::as_str).chain(missing);
        let all: Vec<Value> = all.map(|name| Value::String(name.to_owned())).collect();
        hints.push(format!(
            "containerd's own plugin is on: switch it off in its configuration by disabled_plugins = {}, and restart containerd",
            one_line(&Value::Array(all))
        ));
    }
    for name in required.iter().filter(|name| PARTS.contains(&name.as_str()) || *name == "cri") {
        hints.push(format!(
            "containerd does not start without {name:?}: take it out of required_plugins in its configuration"
        ));
    }
    hints
}

fn head(files: &Files, version: &str, hints: &[String]) -> Vec<String> {
    let names: Vec<String> = files.paths().map(|path| path.display().to_string()).collect();
    let mut head = vec![
        format!("longshore's configuration, made by `longshore config import` from {}", names.join(", ")),
        format!("(version {}, {version}).", files.format()),
        "What is not here is as `longshore config default` shows it; a comment above a key says".to_owned(),
        "where it comes from. What concerns containerd itself stays in its own configuration.".to_owned(),
    ];
    // A file's name may hold anything.
    for line in &mut head {
        line.retain(|c| !c.is_control());
    }
    head.extend(hints.iter().cloned());
    head
}

#[cfg(test)]
mod tests;
