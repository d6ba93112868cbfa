//! What vendors change in a container's spec (CDI), applied after everything else (OCI-42).
//!
//! | edit | OCI | rule |
//! |---|---|---|
//! | variables | `process.env`; one that is there is replaced in its place | |
//! | device nodes | `linux.devices` in place of one with the same path, a rule in `resources.devices` | the container's user owns what has no owner |
//! | network devices | `linux.netDevices` by the host's name | |
//! | mounts | `mounts` in place of one with the same target; then all by depth of the target | `idmap` in user namespaces |
//! | hooks | `hooks.KIND`, at the end | |
//! | RDT | `linux.intelRdt`, as a whole | |
//! | groups | `process.user.additionalGids`; 0 and what is there are passed over | |

use std::path::{Component, Path};

use serde_json::{Map, Value, json};

use super::oci::{Device, DeviceRule, Linux, Mount, Process, Resources, Spec};

/// Edits of a spec, with everything that had to be read from the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edits {
    /// `NAME=VALUE`
    pub env: Vec<String>,
    /// Nodes, and what the device cgroup allows of each: of `r`, `w`, `m`.
    pub devices: Vec<(Device, String)>,
    /// Interfaces: the host's name, and that in the container.
    pub net_devices: Vec<(String, String)>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Hooks: kind, and OCI form.
    pub hooks: Vec<(String, Value)>,
    /// `linux.intelRdt`
    pub intel_rdt: Option<Value>,
    /// Supplemental groups.
    pub groups: Vec<u32>,
}

/// Applies `edits` to a spec that is whole otherwise.
pub(super) fn apply(edits: &Edits, spec: &mut Spec) {
    let process = spec.process.get_or_insert_with(Process::default);
    for variable in &edits.env {
        let name = |text: &str| text.split('=').next().unwrap_or_default().to_owned();
        match process.env.iter_mut().rfind(|old| name(old) == name(variable)) {
            Some(old) => old.clone_from(variable),
            None => process.env.push(variable.clone()),
        }
    }
    for group in &edits.groups {
        let groups = &mut process.user.additional_gids;
        if *group != 0 && !groups.contains(group) {
            groups.push(*group);
        }
    }
    let owner = (process.user.uid, process.user.gid);
    let section = spec.linux.get_or_insert_with(Linux::default);
    for (device, access) in &edits.devices {
        add_device(device, access, owner, section);
    }
    for (host, name) in &edits.net_devices {
        set(&mut section.extra, "netDevices", host, json!({ "name": name }));
    }
    if let Some(rdt) = &edits.intel_rdt {
        section.extra.insert("intelRdt".into(), rdt.clone());
    }
    let is_mapped = section.namespaces.iter().any(|namespace| namespace.kind == "user");
    for mount in &edits.mounts {
        if let Some(old) = spec.mounts.iter().position(|old| old.destination == mount.destination) {
            spec.mounts.remove(old);
        }
        let mut mount = mount.clone();
        if is_mapped {
            map_ids(&mut mount);
        }
        spec.mounts.push(mount);
    }
    if !edits.mounts.is_empty() {
        spec.mounts.sort_by_key(|mount| depth(&mount.destination));
    }
    for (kind, hook) in &edits.hooks {
        push(&mut spec.extra, "hooks", kind, hook.clone());
    }
}

fn add_device(device: &Device, access: &str, (uid, gid): (u32, u32), section: &mut Linux) {
    let mut device = device.clone();
    device.uid = device.uid.or((uid > 0).then_some(uid));
    device.gid = device.gid.or((gid > 0).then_some(gid));
    // A pipe has no rule; an unbuffered character device is one to the cgroup.
    let kind = match device.kind.as_str() {
        "u" => "c",
        kind => kind,
    };
    if matches!(kind, "b" | "c") {
        section.resources.get_or_insert_with(Resources::default).devices.push(DeviceRule {
            allow: true,
            kind: kind.to_owned(),
            major: Some(device.major),
            minor: Some(device.minor),
            access: access.to_owned(),
        });
    }
    section.devices.retain(|old| old.path != device.path);
    section.devices.push(device);
}

/// A bind mount of the host's shows the container's ids.
fn map_ids(mount: &mut Mount) {
    let has = |option: &str| mount.options.iter().any(|own| own == option);
    if has("idmap") || has("ridmap") {
        return;
    }
    let option = match () {
        () if has("rbind") => "ridmap",
        () if has("bind") || mount.kind == "bind" => "idmap",
        () => return,
    };
    mount.options.push(option.to_owned());
}

/// How many names a target has; the root has none, and comes first.
fn depth(target: &str) -> usize {
    let mut depth = 0_usize;
    for part in Path::new(target).components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    depth
}

/// The object `key` of `to`, made where it is missing.
fn object<'a>(to: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = to.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was just made one")
}

fn set(to: &mut Map<String, Value>, key: &str, name: &str, value: Value) {
    object(to, key).insert(name.to_owned(), value);
}

fn push(to: &mut Map<String, Value>, key: &str, name: &str, value: Value) {
    match object(to, key).entry(name).or_insert(Value::Null) {
        Value::Array(list) => list.push(value),
        other => *other = json!([value]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::oci::{Namespace, User};

    fn mount(destination: &str, options: &[&str]) -> Mount {
        Mount {
            destination: destination.into(),
            options: options.iter().map(ToString::to_string).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn everything_finds_its_place() {
        let mut spec: Spec = serde_json::from_value(json!({
            "process": {"user": {"uid": 7, "gid": 0, "additionalGids": [5]}, "env": ["A=0", "B=0"], "cwd": "/"},
            "mounts": [{"destination": "/proc"}, {"destination": "/dev/shm"}, {"destination": "/a/b/c"}, {"destination": "/x"}],
            "hooks": {"prestart": [{"path": "/first"}]},
            "linux": {"devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 1}]},
        }))
        .expect("a spec");
        let node = |path: &str, kind: &str, gid: Option<u32>| Device {
            path: path.into(),
            kind: kind.into(),
            major: 10,
            minor: 2,
            gid,
            ..Device::default()
        };
        let edits = Edits {
            env: vec!["B=1".into(), "C=1".into(), "C=2".into()],
            devices: vec![
                (node("/dev/x", "c", Some(9)), "rw".into()),
                (node("/dev/y", "p", None), "rwm".into()),
                (node("/dev/z", "b", None), String::new()),
            ],
            net_devices: vec![("eth1".into(), "net0".into())],
            mounts: vec![mount("/x", &["ro"]), mount("/a/b", &["bind"])],
            hooks: vec![
                ("prestart".into(), json!({"path": "/second"})),
                ("poststop".into(), json!({"path": "/p"})),
            ],
            intel_rdt: Some(json!({"closID": "gold"})),
            groups: vec![5, 0, 44, 44],
        };
        apply(&edits, &mut spec);
        let spec = serde_json::to_value(&spec).expect("JSON");
        assert_eq!(spec["process"]["env"], json!(["A=0", "B=1", "C=2"]));
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([5, 44]));
        let targets: Vec<_> =
            spec["mounts"].as_array().expect("a list").iter().map(|mount| &mount["destination"]).collect();
        assert_eq!(targets, ["/proc", "/x", "/dev/shm", "/a/b", "/a/b/c"]);
        assert_eq!(
            spec["hooks"],
            json!({"prestart": [{"path": "/first"}, {"path": "/second"}], "poststop": [{"path": "/p"}]})
        );
        let linux = &spec["linux"];
        assert_eq!(
            linux["devices"],
            json!([
                {"path": "/dev/x", "type": "c", "major": 10, "minor": 2, "uid": 7, "gid": 9},
                {"path": "/dev/y", "type": "p", "major": 10, "minor": 2, "uid": 7},
                {"path": "/dev/z", "type": "b", "major": 10, "minor": 2, "uid": 7},
            ])
        );
        assert_eq!(
            linux["resources"]["devices"],
            json!([
                {"allow": true, "type": "c", "major": 10, "minor": 2, "access": "rw"},
                {"allow": true, "type": "b", "major": 10, "minor": 2},
            ])
        );
        assert_eq!(linux["netDevices"], json!({"eth1": {"name": "net0"}}));
        assert_eq!(linux["intelRdt"], json!({"closID": "gold"}));
    }

    #[test]
    fn no_edits_change_nothing() {
        let spec = Spec {
            process: Some(Process { user: User { uid: 1, ..User::default() }, ..Process::default() }),
            mounts: vec![mount("/a/b", &[]), mount("/a", &[])],
            linux: Some(Linux::default()),
            ..Spec::default()
        };
        let mut edited = spec.clone();
        apply(&Edits::default(), &mut edited);
        assert_eq!(edited, spec);
    }

    #[test]
    fn binds_are_id_mapped_in_a_user_namespace() {
        let mut spec = Spec {
            linux: Some(Linux {
                namespaces: vec![Namespace { kind: "user".into(), ..Namespace::default() }],
                ..Linux::default()
            }),
            ..Spec::default()
        };
        let mounts = vec![
            mount("/a", &["bind", "ro"]),
            mount("/b", &["rbind"]),
            mount("/c", &["bind", "idmap"]),
            mount("/d", &["size=1"]),
        ];
        apply(&Edits { mounts, ..Edits::default() }, &mut spec);
        let options: Vec<_> = spec.mounts.iter().map(|mount| mount.options.join(",")).collect();
        assert_eq!(options, ["bind,ro,idmap", "rbind,ridmap", "bind,idmap", "size=1"]);
    }
}
