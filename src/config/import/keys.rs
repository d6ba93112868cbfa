//! What becomes of each key of containerd's CRI plugin, of all its versions from 1.6 on.
//!
//! Keys that need more than their own value are in the other files of this folder.

use std::path::{Path, PathBuf};

use toml::Value;

use super::source::Generation;
use crate::config::file::File;

/// One key.
pub(super) struct Rule {
    /// Where it is in [`super::source::Source`].
    pub(super) path: &'static [&'static str],
    /// Its values, as TOML, that ask for nothing: mostly the plugin's default.
    pub(super) silent: &'static [&'static str],
    /// What it becomes.
    pub(super) then: Then,
}

/// How a value gets into our configuration; the error says why it does not.
pub(super) type Set = fn(&mut File, &Value) -> Result<(), String>;

/// What a key becomes.
pub(super) enum Then {
    /// A key of ours.
    Becomes(&'static str, Set),
    /// Nothing, and why.
    Lost(&'static str),
}
use Then::{Becomes, Lost};

/// What is not there has nothing to set.
const STATS: &str = "the rate of a cpu is that of the time before it is asked for";
const CHECKPOINTS: &str = "checkpoints are not served yet";

const fn rule(path: &'static [&'static str], silent: &'static [&'static str], then: Then) -> Rule {
    Rule { path, silent, then }
}

/// The keys, in the order in which they are applied.
pub(super) const RULES: &[Rule] = &[
    rule(&["top", "root"], &[], Becomes("root", |file, value| folder(&mut file.root, value))),
    rule(&["top", "state"], &[], Becomes("state", |file, value| folder(&mut file.state, value))),
    rule(
        &["top", "timeouts", "io.containerd.timeout.cri.defercleanup"],
        &["\"1m0s\"", "\"1m\"", "\"60s\""],
        Lost("the time that undoing may take is fixed"),
    ),
    rule(
        &["grpc", "address"],
        &["\"\""],
        Becomes("containerd.address", |file, value| set(&mut file.containerd.address, socket(value))),
    ),
    // [plugins."io.containerd.cri.v1.runtime"]
    rule(
        &["runtime", "max_container_log_line_size"],
        &["16384"],
        Becomes("container.log_line_bytes_max", |file, value| {
            let bytes = number(value)?.max(0);
            set(&mut file.container.log_line_bytes_max, usize::try_from(bytes).map_err(|_| too_large()))
        }),
    ),
    rule(&["runtime", "disable_cgroup"], &["false"], Lost("containers always have a cgroup")),
    rule(
        &["runtime", "disable_apparmor"],
        &["false"],
        Becomes("container.disable_apparmor", |file, value| {
            set(&mut file.container.disable_apparmor, flag(value))
        }),
    ),
    rule(
        &["runtime", "restrict_oom_score_adj"],
        &["false"],
        Becomes("sandbox.restrict_oom_score_adj", |file, value| {
            let text = if flag(value)? { "yes" } else { "no" };
            set(&mut file.sandbox.restrict_oom_score_adj, Ok(text.to_owned()))
        }),
    ),
    rule(
        &["runtime", "disable_proc_mount"],
        &["false"],
        Becomes("container.disable_proc_mount", |file, value| {
            set(&mut file.container.disable_proc_mount, flag(value))
        }),
    ),
    rule(
        &["runtime", "unset_seccomp_profile"],
        &["\"\"", "\"unconfined\""],
        Becomes("container.unset_seccomp_profile", |file, value| {
            let profile = match text(value)?.as_str() {
                "runtime/default" | "docker/default" => "RuntimeDefault".to_owned(),
                other if other.starts_with("localhost//") => other.to_owned(),
                _ => return Err("is no profile that the plugin knows".to_owned()),
            };
            set(&mut file.container.unset_seccomp_profile, Ok(profile))
        }),
    ),
    rule(
        &["runtime", "tolerate_missing_hugetlb_controller"],
        &["true"],
        Becomes("container.tolerate_missing_hugetlb_controller", |file, value| {
            set(&mut file.container.tolerate_missing_hugetlb_controller, flag(value))
        }),
    ),
    rule(
        &["runtime", "disable_hugetlb_controller"],
        &[],
        Becomes("container.disable_hugetlb_controller", |file, value| {
            set(&mut file.container.disable_hugetlb_controller, flag(value))
        }),
    ),
    rule(
        &["runtime", "device_ownership_from_security_context"],
        &["false"],
        Becomes("container.device_ownership_from_security_context", |file, value| {
            set(&mut file.container.device_ownership_from_security_context, flag(value))
        }),
    ),
    rule(
        &["runtime", "ignore_image_defined_volumes"],
        &["false"],
        Becomes("container.ignore_image_volumes", |file, value| {
            set(&mut file.container.ignore_image_volumes, flag(value))
        }),
    ),
    rule(
        &["runtime", "netns_mounts_under_state_dir"],
        &["false"],
        Becomes("cni.netns_dir", |file, value| {
            if flag(value)? {
                file.cni.netns_dir = file.state.join("netns");
            }
            Ok(())
        }),
    ),
    rule(
        &["runtime", "enable_unprivileged_ports"],
        &[],
        Becomes("sandbox.unprivileged_ports", |file, value| {
            set(&mut file.sandbox.unprivileged_ports, flag(value))
        }),
    ),
    rule(
        &["runtime", "enable_unprivileged_icmp"],
        &[],
        Becomes("sandbox.unprivileged_icmp", |file, value| {
            set(&mut file.sandbox.unprivileged_icmp, flag(value))
        }),
    ),
    rule(
        &["runtime", "drain_exec_sync_io_timeout"],
        &["\"\"", "\"0\"", "\"0s\""],
        Becomes("container.exec_drain_timeout_s", |file, value| {
            set(&mut file.container.exec_drain_timeout_s, seconds(value))
        }),
    ),
    rule(
        &["runtime", "ignore_deprecation_warnings"],
        &["[]"],
        Becomes("server.ignore_deprecation_warnings", |file, value| {
            set(&mut file.server.ignore_deprecation_warnings, texts(value))
        }),
    ),
    rule(
        &["runtime", "enable_selinux"],
        &["false"],
        Becomes("sandbox.enable_selinux", |file, value| set(&mut file.sandbox.enable_selinux, flag(value))),
    ),
    rule(
        &["runtime", "selinux_category_range"],
        &["1024", "0"],
        Becomes("sandbox.selinux_category_range", |file, value| {
            let range = u32::try_from(number(value)?).ok().filter(|range| (2..=1024).contains(range));
            set(&mut file.sandbox.selinux_category_range, range.ok_or_else(|| "is not 2 to 1024".to_owned()))
        }),
    ),
    rule(
        &["runtime", "enable_cdi"],
        &[],
        Becomes("container.enable_cdi", |file, value| set(&mut file.container.enable_cdi, flag(value))),
    ),
    rule(
        &["runtime", "cdi_spec_dirs"],
        &["[]"],
        Becomes("container.cdi_spec_dirs", |file, value| {
            set(
                &mut file.container.cdi_spec_dirs,
                texts(value)?.into_iter().map(|text| path(&text.into())).collect(),
            )
        }),
    ),
    rule(&["runtime", "stats_collect_period"], &["\"\"", "\"1s\""], Lost(STATS)),
    rule(&["runtime", "stats_retention_period"], &["\"\"", "\"2m\"", "\"2m0s\""], Lost(STATS)),
    rule(&["runtime", "enable_criu"], &["true"], Lost(CHECKPOINTS)),
    rule(&["runtime", "enable_experimental_restore_via_create"], &["false"], Lost(CHECKPOINTS)),
    rule(
        &["runtime", "containerd", "ignore_blockio_not_enabled_errors"],
        &[],
        Becomes("container.ignore_blockio_not_enabled_errors", |file, value| {
            set(&mut file.container.ignore_blockio_not_enabled_errors, flag(value))
        }),
    ),
    rule(
        &["runtime", "containerd", "ignore_rdt_not_enabled_errors"],
        &[],
        Becomes("container.ignore_rdt_not_enabled_errors", |file, value| {
            set(&mut file.container.ignore_rdt_not_enabled_errors, flag(value))
        }),
    ),
    rule(
        &["runtime", "cni", "conf_dir"],
        &[],
        Becomes("cni.conf_dir", |file, value| set(&mut file.cni.conf_dir, path(value))),
    ),
    rule(
        &["runtime", "cni", "max_conf_num"],
        &[],
        Becomes("cni.max_conf_num", |file, value| set(&mut file.cni.max_conf_num, count(value))),
    ),
    rule(
        &["runtime", "cni", "setup_serially"],
        &["false"],
        Becomes("cni.serial", |file, value| set(&mut file.cni.serial, flag(value))),
    ),
    rule(
        &["runtime", "cni", "conf_template"],
        &["\"\""],
        Becomes("cni.conf_template", |file, value| set(&mut file.cni.conf_template, text(value))),
    ),
    rule(
        &["runtime", "cni", "ip_pref"],
        &["\"\""],
        Becomes("cni.ip_preference", |file, value| {
            let preference = text(value)?;
            if !["ipv4", "ipv6", "cni"].contains(&preference.as_str()) {
                return Err("is not ipv4, ipv6 or cni; the plugin takes ipv4 then".to_owned());
            }
            set(&mut file.cni.ip_preference, Ok(preference))
        }),
    ),
    rule(
        &["runtime", "cni", "use_internal_loopback"],
        // Both ways lo is up; false would only cost a process.
        &["false"],
        Becomes("cni.loopback", |file, value| {
            flag(value)?;
            set(&mut file.cni.loopback, Ok("internal".to_owned()))
        }),
    ),
    // [plugins."io.containerd.cri.v1.images"]
    rule(
        &["images", "snapshotter"],
        &["\"\""],
        Becomes("image.snapshotter", |file, value| set(&mut file.image.snapshotter, text(value))),
    ),
    rule(
        &["images", "disable_snapshot_annotations"],
        &["true"],
        Lost("snapshots get no annotations for remote snapshotters: layers are fetched whole"),
    ),
    rule(
        &["images", "discard_unpacked_layers"],
        &["false"],
        Lost("layers stay in the content store after they were unpacked"),
    ),
    rule(
        &["images", "image_decryption", "key_model"],
        &["\"node\""],
        Lost("encrypted layers are left to containerd's stream processors"),
    ),
    rule(
        &["images", "max_concurrent_downloads"],
        &["3"],
        Becomes("image.max_concurrent_downloads", |file, value| {
            let downloads = match count(value)? {
                0 => Err("there is no pull without a limit".to_owned()),
                downloads => Ok(downloads),
            };
            set(&mut file.image.max_concurrent_downloads, downloads)
        }),
    ),
    rule(
        &["images", "concurrent_layer_fetch_buffer"],
        &["0"],
        Lost("a layer is fetched by one request at a time"),
    ),
    rule(
        &["images", "image_pull_progress_timeout"],
        &[],
        Becomes("image.pull_progress_timeout_s", |file, value| {
            set(&mut file.image.pull_progress_timeout_s, seconds(value))
        }),
    ),
    rule(
        &["images", "image_pull_with_sync_fs"],
        &["false"],
        Lost("file systems are not synchronised after unpacking"),
    ),
    rule(
        &["images", "stats_collect_period"],
        &["10"],
        Lost("what snapshots take is measured when it is asked for"),
    ),
    rule(
        &["images", "use_local_image_pull"],
        &["false"],
        Becomes("image.puller", |file, value| {
            if flag(value)? {
                file.image.puller = "client".to_owned();
            }
            Ok(())
        }),
    ),
    // [plugins."io.containerd.grpc.v1.cri"]
    rule(&["server", "disable_tcp_service"], &["true"], Lost("the CRI is served on a Unix socket only")),
    rule(
        &["server", "stream_server_address"],
        &[],
        Becomes("stream.address", |file, value| match text(value)?.as_str() {
            "" => Err("means the host's address, which has to be named here".to_owned()),
            address => set(&mut file.stream.address, Ok(address.to_owned())),
        }),
    ),
    rule(
        &["server", "stream_server_port"],
        &["\"\""],
        Becomes("stream.port", |file, value| {
            let port = text(value)?.parse().map_err(|_| "is not a port".to_owned());
            set(&mut file.stream.port, port)
        }),
    ),
    rule(
        &["server", "stream_idle_timeout"],
        &["\"\""],
        Becomes("stream.idle_timeout_s", |file, value| match seconds(value)? {
            0 => Err("there is no session without a limit".to_owned()),
            limit => set(&mut file.stream.idle_timeout_s, Ok(limit)),
        }),
    ),
    // Other plugins.
    rule(
        &["verifier", "bin_dir"],
        &["\"\""],
        Becomes("image.verifier_dir", |file, value| set(&mut file.image.verifier_dir, path(value))),
    ),
    rule(
        &["tasks", "blockio_config_file"],
        &["\"\""],
        Becomes("container.blockio_config_file", |file, value| {
            set(&mut file.container.blockio_config_file, path(value))
        }),
    ),
    rule(
        &["tasks", "rdt_config_file"],
        &["\"\""],
        Becomes("container.rdt_config_file", |file, value| {
            set(&mut file.container.rdt_config_file, path(value))
        }),
    ),
];

/// Keys whose default in the plugin a pod could tell from ours: what they are where they
/// are not written.
pub(super) fn defaults(generation: Generation) -> [(&'static [&'static str], Value); 6] {
    let is_two = generation == Generation::Two;
    [
        (&["top", "root"], Value::String("/var/lib/containerd".into())),
        (&["top", "state"], Value::String("/run/containerd".into())),
        (&["runtime", "enable_unprivileged_ports"], Value::Boolean(is_two)),
        (&["runtime", "enable_unprivileged_icmp"], Value::Boolean(is_two)),
        (&["runtime", "enable_cdi"], Value::Boolean(is_two)),
        (&["runtime", "disable_hugetlb_controller"], Value::Boolean(true)),
    ]
}

fn set<T>(to: &mut T, from: Result<T, String>) -> Result<(), String> {
    *to = from?;
    Ok(())
}

/// The plugin's folder in one of containerd's.
fn folder(to: &mut PathBuf, value: &Value) -> Result<(), String> {
    set(to, path(value).map(|path| path.join("io.containerd.grpc.v1.cri")))
}

fn too_large() -> String {
    "is too large".to_owned()
}

pub(super) fn flag(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| "is not true or false".to_owned())
}

pub(super) fn text(value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| "is not a text".to_owned())
}

pub(super) fn texts(value: &Value) -> Result<Vec<String>, String> {
    let list = value.as_array().ok_or_else(|| "is not a list".to_owned())?;
    list.iter().map(text).collect()
}

fn number(value: &Value) -> Result<i64, String> {
    value.as_integer().ok_or_else(|| "is not a number".to_owned())
}

pub(super) fn count(value: &Value) -> Result<usize, String> {
    usize::try_from(number(value)?).map_err(|_| "is negative".to_owned())
}

pub(super) fn path(value: &Value) -> Result<PathBuf, String> {
    let path = text(value)?;
    if Path::new(&path).is_absolute() { Ok(path.into()) } else { Err("is not an absolute path".to_owned()) }
}

fn socket(value: &Value) -> Result<PathBuf, String> {
    // A Unix socket's address has 108 bytes, the last one NUL.
    path(value).and_then(|path| if path.as_os_str().len() > 107 { Err(too_large()) } else { Ok(path) })
}

/// A duration as Go writes it, in seconds, a started one counting as a whole.
fn seconds(value: &Value) -> Result<u64, String> {
    let text = text(value)?;
    let nanoseconds = duration(&text).ok_or_else(|| "is not a duration".to_owned())?;
    Ok(nanoseconds.div_ceil(1_000_000_000))
}

/// `1h2m3.5s` and the like in nanoseconds; none for what is no duration, or negative.
fn duration(text: &str) -> Option<u64> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        // The longer name first: "ms" is not "m".
        let units =
            [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)];
        let (unit, factor) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        sum += number * factor;
    }
    // Go's durations end at 292 years; what is longer is no duration there.
    (!text.is_empty() && sum < 9.3e18).then_some(sum as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, want) in [
            ("0", Some(0)),
            ("5m0s", Some(300_000_000_000)),
            ("1h2m3.5s", Some(3_723_500_000_000)),
            ("10ms", Some(10_000_000)),
            ("1us2ns", Some(1002)),
            ("", None),
            ("5", None),
            ("-1s", None),
            ("1d", None),
            ("999999999h", None),
        ] {
            assert_eq!(duration(text), want, "{text:?}");
        }
        assert_eq!(seconds(&Value::String("1500ms".into())), Ok(2));
    }

    /// A key stands once, and becomes a key that there is.
    #[test]
    fn the_rules_name_keys_that_there_are() {
        let ours = toml::Table::try_from(File::default()).expect("a table");
        let mut seen = std::collections::BTreeSet::new();
        for Rule { path, then, .. } in RULES {
            assert!(seen.insert(path.to_vec()), "{path:?} twice");
            let Becomes(key, _) = then else { continue };
            let mut value = Some(&Value::Table(ours.clone())).cloned();
            for part in key.split('.') {
                value = value.and_then(|value| value.get(part).cloned());
            }
            assert!(value.is_some(), "there is no key {key}");
        }
    }
}
