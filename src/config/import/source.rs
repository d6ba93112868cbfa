//! containerd's configuration files as containerd itself understands them.
//!
//! Four formats are about: in 1 the CRI plugin is called `cri`, in 2
//! `io.containerd.grpc.v1.cri`; from 3 on it is cut into `io.containerd.cri.v1.runtime`,
//! `io.containerd.cri.v1.images` and a rest under the old name; 4 has containerd's socket
//! in a plugin, too. A file may name others in `imports`, which go over it: containerd 1.x
//! replaces a plugin's whole section by that of a later file, 2.x lays one over the other.
//!
//! Here all of them become one list of values under the names of format 3, each with its
//! name as written, for people.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Component, Path, PathBuf};

use toml::{Table, Value};

/// The largest file.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The most files.
const FILES_MAX: usize = 256;
/// How deeply tables may be nested.
const DEPTH_MAX: usize = 32;
/// Where containerd listens by default.
const DEFAULT_ADDRESS: &str = "/run/containerd/containerd.sock";
/// The plugin of formats 2 (all of it) and 3 (its server).
const CRI: &str = "io.containerd.grpc.v1.cri";

/// Plugins beside the CRI's of which something concerns pods, and what they are called here.
const NEIGHBOURS: [(&str, &str); 5] = [
    ("io.containerd.nri.v1.nri", "nri"),
    ("io.containerd.service.v1.tasks-service", "tasks"),
    ("io.containerd.transfer.v1.local", "transfer"),
    ("io.containerd.image-verifier.v1.bindir", "verifier"),
    ("io.containerd.server.v1.grpc", "grpc"),
];

/// Keys that stand outside of plugins and are of use here.
const TOP: [&str; 4] = ["root", "state", "disabled_plugins", "required_plugins"];

/// What has a meaning of its own in containerd 1.x and in 2.x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// 1.6 and 1.7.
    One,
    /// 2.0 and newer.
    Two,
}

impl Generation {
    /// Of a version such as `1.7.24~ds1` or `v2.3.4`.
    #[must_use]
    pub fn of_version(version: &str) -> Option<Generation> {
        match version.trim_start_matches('v').split('.').next()?.parse::<u32>() {
            Ok(1) => Some(Generation::One),
            Ok(2..) => Some(Generation::Two),
            _ => None,
        }
    }

    /// The one that writes a format by itself.
    #[must_use]
    pub fn of_format(format: i64) -> Generation {
        if format >= 3 { Generation::Two } else { Generation::One }
    }
}

/// The files as they are written, the first one first.
#[derive(Debug)]
pub struct Files(Vec<(PathBuf, Table)>);

impl Files {
    /// Reads `path` and what it imports, in containerd's order.
    ///
    /// # Errors
    /// What is wrong with which file, without quoting it: it can hold passwords.
    pub fn read(path: &Path) -> Result<Files, String> {
        let mut list: Vec<(PathBuf, Table)> = Vec::new();
        let mut pending = VecDeque::from([path.to_owned()]);
        let mut seen = BTreeSet::new();
        while let Some(next) = pending.pop_front() {
            if !seen.insert(next.clone()) {
                continue;
            }
            if list.len() == FILES_MAX {
                return Err(format!("{} imports more than {FILES_MAX} files", path.display()));
            }
            let table = read(&next).map_err(|error| format!("{}: {error}", next.display()))?;
            for import in texts(table.get("imports")) {
                pending.extend(resolve(&next, &import));
            }
            list.push((next, table));
        }
        Ok(Files(list))
    }

    #[cfg(test)]
    pub(crate) fn of_text(text: &str) -> Result<Files, String> {
        Ok(Files(vec![("config.toml".into(), parse(text)?)]))
    }

    /// The first file's format; one without a version is of format 1.
    #[must_use]
    pub fn format(&self) -> i64 {
        format_of(&self.0[0].1).max(1)
    }

    /// All files, the first one first.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(path, _)| path.as_path())
    }

    /// containerd's socket.
    #[must_use]
    pub fn address(&self) -> String {
        let mut source = self.merge(Generation::Two);
        let entry = source.take(&["grpc", "address"]);
        let text = entry.and_then(|entry| entry.value.as_str().map(str::to_owned));
        text.filter(|text| !text.is_empty()).unwrap_or_else(|| DEFAULT_ADDRESS.to_owned())
    }

    /// Lays the files over each other, as that generation of containerd does it.
    #[must_use]
    pub fn merge(&self, generation: Generation) -> Source {
        let mut source = Source::default();
        for (_, table) in &self.0 {
            let format = match generation {
                // It looks at the merged version when it reads a plugin's section.
                Generation::One => self.format(),
                Generation::Two => format_of(table),
            };
            let mut leaves = Vec::new();
            flatten(table, &mut Vec::new(), &mut leaves);
            if generation == Generation::One
                && let Some(Value::Table(plugins)) = table.get("plugins")
            {
                source.entries.retain(|_, entry| !plugins.contains_key(&entry.plugin));
            }
            for (path, value) in leaves {
                source.add(format, generation, &path, value);
            }
        }
        source
    }
}

/// One value and how its key is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The dotted key, with quotes where TOML needs them.
    pub written: String,
    /// Its value.
    pub value: Value,
    /// The plugin in whose section it stands, or nothing.
    plugin: String,
}

/// All values that concern the CRI, by their names in format 3: `runtime`, `images` and
/// `server` are the plugin's parts, `top` is what stands outside of plugins.
#[derive(Clone, Debug, Default)]
pub struct Source {
    entries: BTreeMap<Vec<String>, Entry>,
}

impl Entry {
    /// What is not written, but is so.
    pub(super) fn assumed(value: Value) -> Entry {
        Entry { written: String::new(), value, plugin: String::new() }
    }
}

impl Source {
    /// One value.
    #[must_use]
    pub fn get(&self, path: &[&str]) -> Option<&Value> {
        let path: Vec<String> = path.iter().map(ToString::to_string).collect();
        self.entries.get(&path).map(|entry| &entry.value)
    }

    /// Puts a value in, instead of what may be there.
    pub fn put(&mut self, path: &[&str], entry: Entry) {
        self.entries.insert(path.iter().map(ToString::to_string).collect(), entry);
    }

    /// Takes one value out.
    pub fn take(&mut self, path: &[&str]) -> Option<Entry> {
        let path: Vec<String> = path.iter().map(ToString::to_string).collect();
        self.entries.remove(&path)
    }

    /// Takes everything below `path` out, with the rest of its path.
    pub fn take_below(&mut self, path: &[&str]) -> Vec<(Vec<String>, Entry)> {
        let is_below = |key: &[String]| key.len() >= path.len() && key.iter().zip(path).all(|(a, b)| a == b);
        let keys: Vec<_> = self.entries.keys().filter(|key| is_below(key)).cloned().collect();
        let taken = keys.into_iter().filter_map(|key| self.entries.remove_entry(&key));
        taken.map(|(key, entry)| (key[path.len()..].to_vec(), entry)).collect()
    }

    /// What was not taken.
    pub fn rest(self) -> impl Iterator<Item = (Vec<String>, Entry)> {
        self.entries.into_iter()
    }

    fn add(&mut self, format: i64, generation: Generation, path: &[String], value: Value) {
        let Some(place) = place(format, generation, path) else { return };
        let is_list = matches!(path[0].as_str(), "disabled_plugins" | "required_plugins");
        if let (true, Some(Entry { value: Value::Array(list), .. }), Value::Array(more)) =
            (is_list, self.entries.get_mut(&place), &value)
        {
            list.extend(more.iter().cloned());
            return;
        }
        // Of what stands outside of plugins, an empty text says nothing.
        if path[0] != "plugins" && value.as_str() == Some("") && self.entries.contains_key(&place) {
            return;
        }
        let plugin = if path[0] == "plugins" { path[1].clone() } else { String::new() };
        self.entries.insert(place, Entry { written: dotted(path), value, plugin });
    }
}

/// Where a key goes, or nowhere: the rest is containerd's own.
fn place(format: i64, generation: Generation, path: &[String]) -> Option<Vec<String>> {
    let owned = |head: &str, rest: &[String]| {
        let mut place = vec![head.to_owned()];
        place.extend_from_slice(rest);
        place
    };
    let [first, rest @ ..] = path else { return None };
    if first != "plugins" {
        return match (first.as_str(), rest) {
            ("grpc", [key]) => Some(vec!["grpc".into(), key.clone()]),
            ("timeouts", [key]) if key == "io.containerd.timeout.cri.defercleanup" => {
                Some(owned("top", path))
            }
            (key, []) if TOP.contains(&key) => Some(vec!["top".into(), first.clone()]),
            _ => None,
        };
    }
    let [plugin, rest @ ..] = rest else { return None };
    if let Some((_, name)) = NEIGHBOURS.iter().find(|(name, _)| name == plugin) {
        return Some(owned(name, rest));
    }
    match plugin.as_str() {
        "io.containerd.cri.v1.runtime" => Some(owned("runtime", rest)),
        "io.containerd.cri.v1.images" => Some(owned("images", rest)),
        "cri" if format < 2 => Some(of_one_section(rest)),
        "cri" => Some(owned("unread", rest)),
        // containerd 1.x knows plugins by their short names in a file without a version.
        CRI if format < 2 && generation == Generation::One => Some(owned("unread", rest)),
        CRI if format < 3 => Some(of_one_section(rest)),
        CRI => Some(owned("server", rest)),
        _ => None,
    }
}

/// Where a key of formats 1 and 2 went with format 3.
fn of_one_section(path: &[String]) -> Vec<String> {
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    let mut place: Vec<&str> = match names.as_slice() {
        ["sandbox_image"] => vec!["images", "pinned_images", "sandbox"],
        [
            "registry"
            | "image_decryption"
            | "max_concurrent_downloads"
            | "image_pull_progress_timeout"
            | "image_pull_with_sync_fs"
            | "stats_collect_period",
            ..,
        ] => vec!["images"],
        [
            "disable_tcp_service"
            | "stream_server_address"
            | "stream_server_port"
            | "stream_idle_timeout"
            | "enable_tls_streaming"
            | "x509_key_pair_streaming",
            ..,
        ] => vec!["server"],
        [
            "containerd",
            key @ ("snapshotter" | "disable_snapshot_annotations" | "discard_unpacked_layers"),
        ] => {
            vec!["images", key]
        }
        ["containerd", "runtimes", name, "sandbox_mode"] => {
            vec!["runtime", "containerd", "runtimes", name, "sandboxer"]
        }
        _ => vec!["runtime"],
    };
    if place.len() == 1 {
        place.extend(names);
    }
    place.into_iter().map(str::to_owned).collect()
}

fn read(path: &Path) -> Result<Table, String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(format!("larger than {FILE_BYTES_MAX} bytes"));
    }
    parse(&std::fs::read_to_string(path).map_err(|error| error.to_string())?)
}

fn parse(text: &str) -> Result<Table, String> {
    text.parse::<Table>().map_err(|error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        format!("line {}: {}", line.unwrap_or(1), error.message().replace('\n', " "))
    })
}

fn format_of(table: &Table) -> i64 {
    table.get("version").and_then(Value::as_integer).unwrap_or(0)
}

fn texts(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

/// The files of one import: relative to the file that names it, a pattern where it has an
/// asterisk.
fn resolve(parent: &Path, import: &str) -> Vec<PathBuf> {
    let path = clean(&parent.parent().unwrap_or(Path::new("/")).join(import));
    if !import.contains('*') {
        return vec![path];
    }
    let mut found = vec![PathBuf::new()];
    for part in path.components() {
        let part = part.as_os_str().to_string_lossy();
        let is_pattern = part.contains(['*', '?', '[']);
        found = found
            .into_iter()
            .flat_map(|folder| if is_pattern { matching(&folder, &part) } else { vec![folder.join(&*part)] })
            .filter(|path| path.exists())
            .collect();
    }
    found
}

/// Without `.` and `..`, by name alone.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if clean.file_name().is_some() => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

fn matching(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| is_match(pattern.as_bytes(), name.as_bytes()));
    names.sort();
    names.into_iter().map(|name| folder.join(name)).collect()
}

/// Go's patterns of one name: `*`, `?`, `[a-z]`, `[^a]` and a backslash before a character.
fn is_match(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skip| is_match(rest, &name[skip..])),
        ([b'?', rest @ ..], [_, more @ ..]) => is_match(rest, more),
        ([b'[', rest @ ..], [c, more @ ..]) => {
            let Some(end) = rest.iter().position(|c| *c == b']') else { return false };
            let (set, rest) = (&rest[..end], &rest[end + 1..]);
            let (set, negated) = match set {
                [b'^', set @ ..] => (set, true),
                _ => (set, false),
            };
            let is_in = (0..set.len()).any(|at| {
                set[at] == *c || matches!(set[at..], [low, b'-', high, ..] if (low..=high).contains(c))
            });
            is_in != negated && is_match(rest, more)
        }
        ([b'\\', p, rest @ ..], [c, more @ ..]) => p == c && is_match(rest, more),
        ([p, rest @ ..], [c, more @ ..]) => p == c && is_match(rest, more),
        _ => false,
    }
}

/// The values of all tables, an empty table as itself.
fn flatten(table: &Table, path: &mut Vec<String>, leaves: &mut Vec<(Vec<String>, Value)>) {
    for (key, value) in table {
        path.push(key.clone());
        match value {
            Value::Table(inner) if !inner.is_empty() && path.len() < DEPTH_MAX => {
                flatten(inner, path, leaves)
            }
            _ => leaves.push((path.clone(), value.clone())),
        }
        path.pop();
    }
}

/// A key as TOML has it.
pub(super) fn dotted(path: &[String]) -> String {
    path.iter().map(|part| quoted(part)).collect::<Vec<_>>().join(".")
}

/// A part of a key, in quotes where it needs them.
pub(super) fn quoted(part: &str) -> String {
    let is_bare = !part.is_empty() && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"_-".contains(&c));
    if is_bare { part.to_owned() } else { basic(part) }
}

/// A text as a basic string of TOML.
fn basic(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

/// A value in one line, without characters that a comment may not have.
pub(super) fn one_line(value: &Value) -> String {
    let text = match value {
        Value::String(text) => return basic(text),
        other => other.to_string(),
    };
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests;
