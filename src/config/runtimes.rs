//! Runtime handlers: which shim runs a pod, with which options (SBX-11, COX-12).

use std::path::PathBuf;

use prost::Message;
use prost_types::Any;

use super::file;
use super::{Problem, problem};
use crate::glob::Glob;
use crate::proto::{runc, runtimeoptions};

/// containerd's name of runc's shim, which also runs crun and nvidia's wrapper.
pub const RUNC_SHIM: &str = "io.containerd.runc.v2";

/// When the pause container is made, seen from the pod's network (design D6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkOrder {
    /// At the same time: the runtime only needs the namespace to exist.
    Concurrent,
    /// After it: the runtime looks at the interfaces when it starts (VM runtimes).
    First,
}

/// The cgroup driver, which decides how cgroup paths are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// systemd makes the cgroups: `slice:prefix:name`.
    Systemd,
    /// The runtime makes them itself: a path.
    Cgroupfs,
}

/// One handler, validated.
#[derive(Clone, Debug)]
pub struct Handler {
    /// The name pods ask for.
    pub name: String,
    /// containerd's name of the shim.
    pub shim: String,
    /// Path of the shim binary, when given.
    pub shim_path: Option<String>,
    /// The shim's options as containerd wants them.
    pub options: Option<Any>,
    /// The OCI runtime's binary (for its `features`), when the shim is runc's.
    pub binary: Option<String>,
    /// The snapshotter of this handler's pods.
    pub snapshotter: String,
    /// Order of network and pause container.
    pub network: NetworkOrder,
    /// CNI configuration of its own.
    pub cni: Option<(PathBuf, usize)>,
    /// Globs of pod annotations for the OCI specs.
    pub pod_annotations: Vec<Glob>,
    /// Globs of container annotations for the OCI spec.
    pub container_annotations: Vec<Glob>,
    /// Privileged containers do not get host devices.
    pub privileged_without_host_devices: bool,
    /// Privileged containers may use all devices nonetheless.
    pub all_devices_allowed: bool,
    /// The cgroup mount of containers is writable.
    pub cgroup_writable: bool,
    /// The base OCI spec, read and parsed.
    pub base_spec: Option<serde_json::Value>,
    /// The cgroup driver in force.
    pub cgroup_driver: CgroupDriver,
}

impl Handler {
    /// The shim's options with the owner of the pipes that a process has its output in: who
    /// is somebody else than root on the host must own them to open them by name
    /// (`/dev/stdout`). None for shims other than runc's, which make no such pipes.
    #[must_use]
    pub fn options_with_io_owner(&self, (uid, gid): (u32, u32)) -> Option<Any> {
        let given = self.options.as_ref().filter(|_| self.shim == RUNC_SHIM)?;
        let mut options = runc::Options::decode(given.value.as_slice()).ok()?;
        (options.io_uid, options.io_gid) = (uid, gid);
        Some(Any { type_url: given.type_url.clone(), value: options.encode_to_vec() })
    }

    pub(super) fn new(
        name: &str,
        typed: &file::Handler,
        default_snapshotter: &str,
        driver: CgroupDriver,
    ) -> Result<Handler, Problem> {
        let key = |field: &str| format!("runtime.handlers.{name}.{field}");
        let shim = if typed.kind.is_empty() { RUNC_SHIM.to_owned() } else { typed.kind.clone() };
        let is_runc = shim == RUNC_SHIM;
        if !typed.path.is_empty() && !typed.path.starts_with('/') {
            return Err(problem(key("path"), format!("{:?} must be an absolute path", typed.path)));
        }
        let network = match typed.network.as_str() {
            "concurrent" => NetworkOrder::Concurrent,
            "first" => NetworkOrder::First,
            "" if is_runc => NetworkOrder::Concurrent,
            "" => NetworkOrder::First,
            _ => return Err(problem(key("network"), "must be \"concurrent\" or \"first\"")),
        };
        let base_spec = if typed.base_runtime_spec.as_os_str().is_empty() {
            None
        } else {
            let path = &typed.base_runtime_spec;
            let text = std::fs::read_to_string(path)
                .map_err(|error| problem(key("base_runtime_spec"), format!("read {path:?}: {error}")))?;
            let spec = serde_json::from_str::<serde_json::Value>(&text)
                .map_err(|error| problem(key("base_runtime_spec"), format!("parse {path:?}: {error}")))?;
            if !spec.is_object() {
                return Err(problem(key("base_runtime_spec"), format!("{path:?} is not a JSON object")));
            }
            Some(spec)
        };
        let all_devices_allowed = typed.privileged_without_host_devices_all_devices_allowed;
        if all_devices_allowed && !typed.privileged_without_host_devices {
            return Err(problem(
                key("privileged_without_host_devices_all_devices_allowed"),
                "is for handlers with privileged_without_host_devices",
            ));
        }
        let mut cgroup_driver = driver;
        let (options, binary) = if is_runc {
            if let Some(systemd) = typed.options.get("SystemdCgroup").and_then(toml::Value::as_bool) {
                cgroup_driver = if systemd { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs };
            }
            let options = runc_options(&typed.options, cgroup_driver)
                .map_err(|(option, message)| problem(key(&format!("options.{option}")), message))?;
            let binary =
                if options.binary_name.is_empty() { "runc".into() } else { options.binary_name.clone() };
            (Some(any("containerd.runc.v1.Options", &options)), Some(binary))
        } else {
            (other_options(&typed.options), None)
        };
        Ok(Handler {
            name: name.to_owned(),
            shim,
            shim_path: Some(typed.path.clone()).filter(|path| !path.is_empty()),
            options,
            binary,
            snapshotter: if typed.snapshotter.is_empty() {
                default_snapshotter.to_owned()
            } else {
                typed.snapshotter.clone()
            },
            network,
            cni: (!typed.cni_conf_dir.as_os_str().is_empty())
                .then(|| (typed.cni_conf_dir.clone(), typed.cni_max_conf_num)),
            pod_annotations: globs(&typed.pod_annotations)
                .map_err(|wrong| problem(key("pod_annotations"), wrong))?,
            container_annotations: globs(&typed.container_annotations)
                .map_err(|wrong| problem(key("container_annotations"), wrong))?,
            privileged_without_host_devices: typed.privileged_without_host_devices,
            all_devices_allowed,
            cgroup_writable: typed.cgroup_writable,
            base_spec,
            cgroup_driver,
        })
    }
}

fn globs(texts: &[String]) -> Result<Vec<Glob>, String> {
    texts.iter().map(|text| Glob::new(text).map_err(|wrong| format!("{text:?}: {wrong}"))).collect()
}

/// containerd's short type URLs have no domain in front.
fn any(type_url: &str, message: &impl Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

pub(super) fn runc_options(
    table: &toml::Table,
    driver: CgroupDriver,
) -> Result<runc::Options, (String, String)> {
    let mut options = runc::Options { systemd_cgroup: driver == CgroupDriver::Systemd, ..Default::default() };
    for (name, value) in table {
        let wrong = |want: &str| (name.clone(), format!("must be {want}"));
        let text = || value.as_str().map(str::to_owned).ok_or_else(|| wrong("a string"));
        let flag = || value.as_bool().ok_or_else(|| wrong("true or false"));
        let number = || {
            let number = value.as_integer().and_then(|number| u32::try_from(number).ok());
            number.ok_or_else(|| wrong("a number from 0 to 4294967295"))
        };
        match name.as_str() {
            "BinaryName" => options.binary_name = text()?,
            "Root" => options.root = text()?,
            "ShimCgroup" => options.shim_cgroup = text()?,
            "CriuPath" => options.criu_path = text()?,
            "CriuImagePath" => options.criu_image_path = text()?,
            "CriuWorkPath" => options.criu_work_path = text()?,
            "SystemdCgroup" => options.systemd_cgroup = flag()?,
            "NoPivotRoot" => options.no_pivot_root = flag()?,
            "NoNewKeyring" => options.no_new_keyring = flag()?,
            "IoUid" => options.io_uid = number()?,
            "IoGid" => options.io_gid = number()?,
            _ => return Err((name.clone(), "is not an option of runc's shim".into())),
        }
    }
    Ok(options)
}

fn other_options(table: &toml::Table) -> Option<Any> {
    if table.is_empty() {
        return None;
    }
    let text = |key: &str| table.get(key).and_then(toml::Value::as_str).unwrap_or_default().to_owned();
    let config_path = text("ConfigPath");
    // One or the other: who names a file means that file.
    let config_body = if config_path.is_empty() { table.to_string().into_bytes() } else { Vec::new() };
    let options = runtimeoptions::Options { type_url: text("TypeUrl"), config_path, config_body };
    Some(any("runtimeoptions.v1.Options", &options))
}
