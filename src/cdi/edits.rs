//! From the edits of spec files to those of a spec, with what the host knows of the nodes.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::file::{self, DeviceNode};
use crate::error::{Context, Result, precondition};
use crate::spec::Edits;
use crate::spec::oci::{Device, Mount};

/// The type of a pipe.
const PIPE: &str = "p";

/// Adds what `from` says to `to`. Reads the nodes of the host: not for async threads.
///
/// # Errors
/// FailedPrecondition or Unknown for a device node that the host does not have, where the
/// spec file does not say by itself what it is.
pub(super) fn append(from: &file::Edits, to: &mut Edits) -> Result<()> {
    to.env.extend(from.env.iter().cloned());
    for node in &from.device_nodes {
        let access = match node.permissions.as_str() {
            "" => "rwm",
            "none" => "",
            given => given,
        };
        to.devices.push((device(node)?, access.to_owned()));
    }
    let net_devices =
        from.net_devices.iter().map(|device| (device.host_interface_name.clone(), device.name.clone()));
    to.net_devices.extend(net_devices);
    to.mounts.extend(from.mounts.iter().map(|mount| Mount {
        destination: mount.container_path.clone(),
        kind: mount.kind.clone(),
        source: mount.host_path.clone(),
        options: mount.options.clone(),
        ..Mount::default()
    }));
    let hooks = from.hooks.iter().map(|hook| {
        let oci = serde_json::to_value(hook).expect("a hook has text keys only");
        (hook.hook_name.clone(), oci)
    });
    to.hooks.extend(hooks);
    if let Some(rdt) = &from.intel_rdt {
        to.intel_rdt = Some(serde_json::to_value(rdt).expect("the keys are text"));
    }
    to.groups.extend(&from.additional_gids);
    Ok(())
}

/// A device node; what the file leaves out is as on the host.
fn device(node: &DeviceNode) -> Result<Device> {
    let DeviceNode { path, host_path, .. } = node;
    let host_path = if host_path.is_empty() { path } else { host_path };
    let mut device = Device {
        path: path.clone(),
        kind: node.kind.clone(),
        major: node.major,
        minor: node.minor,
        file_mode: node.file_mode,
        uid: node.uid,
        gid: node.gid,
    };
    let is_whole = !node.kind.is_empty() && (node.major != 0 || node.kind == PIPE);
    let what = || format!("CDI device node {host_path:?}");
    // Links are not followed: what a vendor names is the node itself.
    let found = match std::fs::symlink_metadata(host_path).context(what) {
        Ok(found) => found,
        Err(_) if is_whole => return Ok(device),
        Err(error) => return Err(error),
    };
    let Some(kind) = kind_of(&found) else {
        if is_whole {
            return Ok(device);
        }
        return Err(precondition(format!("{}: it is no device node", what())));
    };
    device.file_mode = device.file_mode.or(Some(found.mode() & 0o7777));
    if is_whole {
        return Ok(device);
    }
    if device.kind.is_empty() {
        kind.clone_into(&mut device.kind);
    } else if device.kind.replace('u', "c") != kind {
        let wanted = &device.kind;
        return Err(precondition(format!("{}: it is of type {kind}, not {wanted}", what())));
    }
    if kind != PIPE && device.major == 0 {
        device.major = i64::from(rustix::fs::major(found.rdev()));
        device.minor = i64::from(rustix::fs::minor(found.rdev()));
    }
    Ok(device)
}

fn kind_of(found: &Metadata) -> Option<&'static str> {
    let kind = found.file_type();
    match () {
        () if kind.is_char_device() => Some("c"),
        () if kind.is_block_device() => Some("b"),
        () if kind.is_fifo() => Some(PIPE),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_leaves_out_is_as_on_the_host() {
        let node = DeviceNode { path: "/dev/null".into(), ..DeviceNode::default() };
        let null = device(&node).expect("it is there");
        assert_eq!((null.kind.as_str(), null.major, null.minor, null.uid), ("c", 1, 3, None));
        assert_eq!(null.file_mode, std::fs::metadata("/dev/null").ok().map(|found| found.mode() & 0o7777));
        let other = DeviceNode {
            path: "/dev/mine".into(),
            host_path: "/dev/zero".into(),
            file_mode: Some(0o600),
            gid: Some(44),
            ..node.clone()
        };
        let zero = device(&other).expect("it is there");
        assert_eq!(
            (zero.path.as_str(), zero.minor, zero.file_mode, zero.gid),
            ("/dev/mine", 5, Some(0o600), Some(44))
        );
    }

    #[test]
    fn a_node_that_the_file_describes_need_not_be_there() {
        let whole = DeviceNode {
            path: "/dev/there-is-none".into(),
            kind: "c".into(),
            major: 240,
            minor: 7,
            ..DeviceNode::default()
        };
        let made = device(&whole).expect("described");
        assert_eq!((made.major, made.minor, made.file_mode), (240, 7, None));
        let pipe = DeviceNode { kind: "p".into(), major: 0, ..whole.clone() };
        assert_eq!(device(&pipe).expect("described").kind, "p");
        for lacking in [DeviceNode { major: 0, ..whole.clone() }, DeviceNode { kind: String::new(), ..whole }]
        {
            let error = device(&lacking).expect_err("not there");
            assert!(error.message().starts_with("CDI device node \"/dev/there-is-none\": "), "{error}");
        }
    }

    #[test]
    fn what_is_no_node_or_another_is_told() {
        let folder = DeviceNode { path: "/dev".into(), ..DeviceNode::default() };
        assert!(device(&folder).is_err_and(|error| error.message().ends_with("it is no device node")));
        let block = DeviceNode { path: "/dev/null".into(), kind: "b".into(), ..DeviceNode::default() };
        assert!(device(&block).is_err_and(|error| error.message().ends_with("it is of type c, not b")));
    }

    #[test]
    fn edits_are_added_to_those_before() {
        let parse = |text: &str| file::parse(text, false).expect("valid").devices.remove(0).container_edits;
        let spec = |edits: &str| {
            format!("cdiVersion: 1.1.0\nkind: v.com/c\ndevices: [{{name: a, containerEdits: {edits}}}]\n")
        };
        let first =
            parse(&spec("{env: [A=1], intelRdt: {closID: a}, hooks: [{hookName: poststop, path: /x}]}"));
        let second = parse(&spec(
            "{env: [B=1], intelRdt: {closID: b}, mounts: [{hostPath: /h, containerPath: /c, options: [bind]}], \
             deviceNodes: [{path: /dev/null, permissions: none}, {path: /dev/zero}], additionalGids: [3]}",
        ));
        let mut edits = Edits::default();
        append(&first, &mut edits).expect("appended");
        append(&second, &mut edits).expect("appended");
        assert_eq!(edits.env, ["A=1", "B=1"]);
        assert_eq!(edits.intel_rdt, Some(serde_json::json!({"closID": "b"})));
        assert_eq!(edits.hooks, [("poststop".to_owned(), serde_json::json!({"path": "/x"}))]);
        assert_eq!((edits.mounts[0].source.as_str(), edits.mounts[0].destination.as_str()), ("/h", "/c"));
        let access: Vec<_> = edits.devices.iter().map(|(_, access)| access.as_str()).collect();
        assert_eq!((access.as_slice(), edits.groups.as_slice()), (&["", "rwm"][..], &[3][..]));
    }
}
