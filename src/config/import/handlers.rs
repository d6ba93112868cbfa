//! The handlers: `containerd.runtimes`, `default_runtime_name`, and what 1.x had before them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::{Table, Value};

use super::keys::{count, flag, path, text, texts};
use super::source::{Entry, Generation, Source};
use super::{Draft, NO_KEY};
use crate::config::file::Handler;
use crate::config::runtimes::{CgroupDriver, RUNC_SHIM, runc_options};

/// Shims of containerd 1.x that ran runc, too.
const OLD_SHIMS: [&str; 2] = ["io.containerd.runc.v1", "io.containerd.runtime.v1.linux"];
/// The keys of one handler, with the rest of their path.
type Keys = Vec<(Vec<String>, Entry)>;

/// Takes the handlers over.
pub(super) fn import(source: &mut Source, draft: &mut Draft) {
    let mut handlers: BTreeMap<String, Keys> = BTreeMap::new();
    for (path, entry) in source.take_below(&["runtime", "containerd", "runtimes"]) {
        // An empty table is a handler, too.
        let Some((name, rest)) = path.split_first() else { continue };
        handlers.entry(name.clone()).or_default().push((rest.to_vec(), entry));
    }
    // The table of containerd 1.x is replaced as a whole, that of 2.x laid over the default.
    if handlers.is_empty() || draft.generation == Generation::Two {
        handlers.entry("runc".to_owned()).or_default();
    }
    let mut default = source.take(&["runtime", "containerd", "default_runtime_name"]);
    for (key, name) in [("default_runtime", "default"), ("untrusted_workload_runtime", "untrusted")] {
        let keys = source.take_below(&["runtime", "containerd", key]);
        let has_type = keys.iter().any(|(path, entry)| path == &["runtime_type"] && !is_empty(&entry.value));
        if has_type && draft.generation == Generation::One {
            handlers.insert(name.to_owned(), keys);
            if name == "default" {
                default = None;
                draft.set("runtime.default", key, |file| name.clone_into(&mut file.runtime.default));
            }
            continue;
        }
        for (_, entry) in keys.into_iter().filter(|(_, entry)| !is_empty(&entry.value)) {
            draft.lose(entry, "containerd does not read it: it is of 1.x, and needs a runtime_type");
        }
    }
    if let Some(entry) = default {
        match text(&entry.value) {
            Ok(name) => draft.set("runtime.default", &entry.written, |file| file.runtime.default = name),
            Err(reason) => draft.lose(entry, &reason),
        }
    }
    let old = Old {
        systemd_cgroup: source.take(&["runtime", "systemd_cgroup"]),
        no_pivot: source.take(&["runtime", "containerd", "no_pivot"]),
    };
    let mut is_old_used = false;
    draft.file.runtime.handlers.clear();
    for (name, keys) in handlers {
        let (handler, is_old) = handler(keys, &old, draft);
        is_old_used |= is_old;
        draft.file.runtime.handlers.insert(name, handler);
    }
    if !is_old_used {
        for entry in [old.systemd_cgroup, old.no_pivot].into_iter().flatten() {
            if entry.value.as_bool() != Some(false) {
                draft.lose(entry, "is for io.containerd.runtime.v1.linux; other handlers have options");
            }
        }
    }
    platforms(source, draft);
}

/// Options of the shim of version 1 that stand outside of its handler.
struct Old {
    systemd_cgroup: Option<Entry>,
    no_pivot: Option<Entry>,
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Boolean(flag) => !flag,
        Value::Integer(number) => *number == 0,
        Value::Array(list) => list.is_empty(),
        Value::Table(table) => table.is_empty(),
        Value::Float(_) | Value::Datetime(_) => false,
    }
}

/// One handler, and whether it is one of the shim of version 1.
fn handler(keys: Keys, old: &Old, draft: &mut Draft) -> (Handler, bool) {
    let mut handler = Handler::default();
    let mut options = Vec::new();
    let mut kind = String::new();
    for (path, entry) in keys {
        let [key, rest @ ..] = path.as_slice() else { continue };
        let set = match (key.as_str(), rest) {
            ("options", []) => Ok(()),
            ("options", rest) => {
                options.push((rest.to_vec(), entry));
                continue;
            }
            ("runtime_type", []) => text(&entry.value).map(|text| {
                kind = text;
                if OLD_SHIMS.contains(&kind.as_str()) {
                    let reason =
                        "there is no such shim any more; runc's of version 2 runs it, with the same options";
                    draft.lose(entry.clone(), reason);
                }
            }),
            _ => set(&mut handler, key, rest, &entry.value),
        };
        if let Err(reason) = set {
            draft.lose(entry, &reason);
        }
    }
    let is_old = OLD_SHIMS.contains(&kind.as_str());
    if kind.is_empty() || kind == RUNC_SHIM || is_old {
        if is_old {
            for (entry, option) in [(&old.systemd_cgroup, "SystemdCgroup"), (&old.no_pivot, "NoPivotRoot")] {
                if entry.as_ref().is_some_and(|entry| entry.value.as_bool() == Some(true)) {
                    handler.options.insert(option.to_owned(), Value::Boolean(true));
                }
            }
        }
        runc(&mut handler, options, draft);
    } else {
        handler.kind = kind;
        for (path, entry) in options {
            insert(&mut handler.options, &path, entry.value);
        }
    }
    (handler, is_old)
}

fn set(handler: &mut Handler, key: &str, rest: &[String], value: &Value) -> Result<(), String> {
    if !rest.is_empty() {
        return Err(NO_KEY.to_owned());
    }
    let empty_or_path = |value: &Value| match value.as_str() {
        Some("") => Ok(PathBuf::new()),
        _ => path(value),
    };
    match key {
        "runtime_path" => handler.path = text(value)?,
        // Of the shim of version 1.
        "runtime_engine" | "runtime_root" => {
            let option = if key == "runtime_engine" { "BinaryName" } else { "Root" };
            let value = text(value)?;
            if !value.is_empty() {
                handler.options.insert(option.to_owned(), Value::String(value));
            }
        }
        "pod_annotations" => handler.pod_annotations = texts(value)?,
        "container_annotations" => handler.container_annotations = texts(value)?,
        "privileged_without_host_devices" => handler.privileged_without_host_devices = flag(value)?,
        "privileged_without_host_devices_all_devices_allowed" => {
            handler.privileged_without_host_devices_all_devices_allowed = flag(value)?;
        }
        "cgroup_writable" => handler.cgroup_writable = flag(value)?,
        "base_runtime_spec" => handler.base_runtime_spec = empty_or_path(value)?,
        "cni_conf_dir" => handler.cni_conf_dir = empty_or_path(value)?,
        "cni_max_conf_num" => handler.cni_max_conf_num = count(value)?,
        "snapshotter" => handler.snapshotter = text(value)?,
        "sandboxer" => match text(value)?.as_str() {
            "" | "podsandbox" => {}
            _ => return Err("pods are made by longshore itself, with a pause container".to_owned()),
        },
        "io_type" => match text(value)?.as_str() {
            "" | "fifo" => {}
            _ => return Err("containers write into FIFOs".to_owned()),
        },
        "disable_pause_image_pull" => {
            if flag(value)? {
                return Err("the pause image is built in, or needed".to_owned());
            }
        }
        _ => return Err(NO_KEY.to_owned()),
    }
    Ok(())
}

/// The options of runc's shim, of which containerd knows the names in any case.
fn runc(handler: &mut Handler, options: Vec<(Vec<String>, Entry)>, draft: &mut Draft) {
    const NAMES: [&str; 11] = [
        "BinaryName",
        "Root",
        "ShimCgroup",
        "CriuPath",
        "CriuImagePath",
        "CriuWorkPath",
        "SystemdCgroup",
        "NoPivotRoot",
        "NoNewKeyring",
        "IoUid",
        "IoGid",
    ];
    for (path, entry) in options {
        let written = path.join(".");
        let name = NAMES.iter().find(|name| name.eq_ignore_ascii_case(&written)).copied().unwrap_or(&written);
        let single = Table::from_iter([(name.to_owned(), entry.value.clone())]);
        match runc_options(&single, CgroupDriver::Cgroupfs) {
            Ok(_) if is_empty(&entry.value) => {}
            Ok(_) => {
                handler.options.insert(name.to_owned(), entry.value);
            }
            Err((_, reason)) => draft.lose(entry, &reason),
        }
    }
    // Not written, it is false there, and the host's choice here.
    handler.options.entry("SystemdCgroup").or_insert(Value::Boolean(false));
}

fn insert(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [key, rest @ ..] => {
            let inner = table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// `images.runtime_platforms`: the snapshotter for which a handler's images are unpacked.
fn platforms(source: &mut Source, draft: &mut Draft) {
    for (path, entry) in source.take_below(&["images", "runtime_platforms"]) {
        let (name, key) = match path.as_slice() {
            [name, key] => (name.as_str(), key.as_str()),
            _ => ("", ""),
        };
        let handler = draft.file.runtime.handlers.get_mut(name);
        let value = entry.value.as_str().unwrap_or_default();
        match (key, handler) {
            ("snapshotter" | "platform", _) if value.is_empty() => {}
            ("snapshotter", Some(handler)) if handler.snapshotter.is_empty() => {
                value.clone_into(&mut handler.snapshotter);
            }
            ("snapshotter", Some(handler)) if handler.snapshotter == value => {}
            ("snapshotter", Some(_)) => {
                draft.lose(entry, "the handler has another snapshotter, which its pods use");
            }
            ("snapshotter" | "platform", None) => draft.lose(entry, "there is no such handler"),
            ("platform", Some(_)) if is_own_platform(value) => {}
            ("platform", Some(_)) => draft.lose(entry, "images are pulled for the node's own platform"),
            _ => draft.lose(entry, NO_KEY),
        }
    }
}

fn is_own_platform(text: &str) -> bool {
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    text == format!("linux/{own}") || text == own
}
