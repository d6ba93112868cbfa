//! The classes of a container, with what the host says of them.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tracing::{debug, warn};

use crate::config::{BlockIoParameters, Config, RdtClass, RdtClasses};
use crate::error::{Result, invalid, precondition};
use crate::glob::Glob;
use crate::proto::cri::{ContainerConfig, PodSandboxConfig};
use crate::spec::classes::{self, BlockIo, Chosen, ClassKind, Classes, ThrottleDevice, WeightDevice};

/// Where the kernel shows the classes of RDT.
const RESCTRL: &str = "/sys/fs/resctrl";
/// What is in the folder of each, and in the first.
const TASKS: &str = "tasks";
/// goresctrl's name of the class that everything is in.
const ROOT_CLASS: &str = "system/default";
/// The most devices of one class.
const DEVICES_MAX: usize = 1024;

/// Reads what the host says of the classes that a container and its pod choose (OCI-45).
///
/// # Errors
/// FailedPrecondition for a class where there are none, unless that is to be ignored;
/// InvalidArgument for one that is not known or not for the one who chose it.
pub fn of(config: &ContainerConfig, pod: &PodSandboxConfig, options: &Config) -> Result<Classes> {
    let name = config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
    let chosen = |kind| classes::chosen(kind, name, &config.annotations, &pod.annotations);
    let section = &options.file.container;
    let mut found = Classes::default();
    if let Some(Chosen { class, .. }) = chosen(ClassKind::BlockIo) {
        match &options.block_io {
            Some(known) => {
                let items = known.0.get(&class).ok_or_else(|| {
                    invalid(format!("block I/O class {class:?} is not in {:?}", section.blockio_config_file))
                })?;
                found.block_io = Some(block_io(items));
            }
            None if section.ignore_blockio_not_enabled_errors => debug!(class, "no block I/O classes"),
            None => {
                return Err(precondition(format!(
                    "block I/O class {class:?} is asked for, but container.blockio_config_file is not set"
                )));
            }
        }
    }
    if let Some(chosen) = chosen(ClassKind::Rdt) {
        found.rdt = rdt(&chosen, Path::new(RESCTRL), &options.rdt, section.ignore_rdt_not_enabled_errors)?;
    }
    Ok(found)
}

/// The RDT class, if it is another than the one that everything is in.
fn rdt(chosen: &Chosen, resctrl: &Path, known: &RdtClasses, may_ignore: bool) -> Result<Option<String>> {
    let Chosen { class, is_pods } = chosen;
    if !resctrl.join(TASKS).is_file() {
        if may_ignore {
            debug!(class, "no RDT classes");
            return Ok(None);
        }
        return Err(precondition(format!(
            "RDT class {class:?} is asked for, but {resctrl:?} is not mounted"
        )));
    }
    let is_root = class == ROOT_CLASS;
    let RdtClass { deny_pod_annotation, deny_container_annotation } =
        known.get(class).copied().unwrap_or_default();
    if if *is_pods { deny_pod_annotation } else { deny_container_annotation } {
        let whose = if *is_pods { "pods" } else { "containers" };
        return Err(invalid(format!("RDT class {class:?} must not be chosen by annotations of {whose}")));
    }
    if is_root {
        return Ok(None);
    }
    let is_name = class.len() < 4096 && class != "." && class != ".." && !class.contains(['/', '\n', '\0']);
    if !is_name || !resctrl.join(class).join(TASKS).is_file() {
        return Err(invalid(format!("RDT class {class:?} is not in {resctrl:?}")));
    }
    Ok(Some(class.clone()))
}

/// The parameters with the devices that there are now; a later item goes over an earlier one.
fn block_io(items: &[BlockIoParameters]) -> BlockIo {
    let mut found = BlockIo::default();
    for item in items {
        let Some(globs) = &item.devices else {
            found.weight = item.weight.or(found.weight);
            continue;
        };
        let devices = block_devices(globs);
        if devices.is_empty() {
            warn!(?globs, "block I/O parameters are for no device");
        }
        for (major, minor) in devices {
            if let Some(weight) = item.weight {
                let list = &mut found.weight_device;
                list.retain(|other| (other.major, other.minor) != (major, minor));
                list.push(WeightDevice { major, minor, weight });
            }
            for (list, rate) in [
                (&mut found.throttle_read_bps_device, item.read_bps),
                (&mut found.throttle_write_bps_device, item.write_bps),
                (&mut found.throttle_read_iops_device, item.read_iops),
                (&mut found.throttle_write_iops_device, item.write_iops),
            ] {
                let Some(rate) = rate else { continue };
                list.retain(|other| (other.major, other.minor) != (major, minor));
                list.push(ThrottleDevice { major, minor, rate });
            }
        }
    }
    found
}

/// The numbers of the block devices that match, also by a link; what is no block device is
/// told and passed over.
fn block_devices(globs: &[String]) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    for glob in globs {
        for path in matching(glob) {
            let metadata = match std::fs::metadata(&path) {
                Ok(metadata) if metadata.file_type().is_block_device() => metadata,
                Ok(_) => {
                    warn!(?path, glob, "what block I/O parameters name is no block device");
                    continue;
                }
                // It went in this moment, or its link leads nowhere.
                Err(_) => continue,
            };
            let numbers = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
            if !found.contains(&numbers) {
                found.push(numbers);
            }
        }
    }
    found
}

/// The paths that match a glob, in order.
fn matching(glob: &str) -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::from("/")];
    for part in glob.split('/').filter(|part| !part.is_empty()) {
        if !part.contains(['*', '?', '[', '\\']) {
            paths.iter_mut().for_each(|path| path.push(part));
            continue;
        }
        let Ok(glob) = Glob::new(part) else { return Vec::new() };
        let names = paths.iter().flat_map(|path| {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries
                .filter(|entry| glob.matches(&entry.file_name().to_string_lossy()))
                .map(|entry| entry.path())
        });
        paths = names.take(DEVICES_MAX).collect();
        paths.sort_unstable();
    }
    paths.retain(|path| path.exists());
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_find_what_is_there() {
        let folder = tempfile::tempdir().expect("a folder");
        for path in ["a/x1", "a/x2", "a/y1", "b/x3"] {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, "").expect("written");
        }
        std::os::unix::fs::symlink("nowhere", folder.path().join("a/x9")).expect("linked");
        let of = |glob: &str| -> Vec<String> {
            let below = matching(&format!("{}/{glob}", folder.path().display()));
            let below = below.iter().filter_map(|path| path.strip_prefix(folder.path()).ok());
            below.map(|path| path.display().to_string()).collect()
        };
        assert_eq!(of("a/x[0-9]"), ["a/x1", "a/x2"]);
        assert_eq!(of("*/x*"), ["a/x1", "a/x2", "b/x3"]);
        assert_eq!(of("a/y1"), ["a/y1"]);
        assert!(of("c/*").is_empty() && of("a/z").is_empty());
    }

    #[test]
    fn what_is_no_block_device_is_passed_over() {
        assert!(
            block_devices(&["/dev/null".into(), "/dev/there-is-none".into(), "/etc/*".into()]).is_empty()
        );
    }

    #[test]
    fn a_weight_without_devices_is_the_default() {
        let item = |weight| BlockIoParameters { weight, ..Default::default() };
        assert_eq!(
            block_io(&[item(Some(80)), item(None)]),
            BlockIo { weight: Some(80), ..BlockIo::default() }
        );
    }

    /// OCI-45.
    #[test]
    fn a_class_of_rdt_must_be_in_resctrl() {
        let folder = tempfile::tempdir().expect("a folder");
        let known = RdtClasses::from([
            ("system".to_owned(), RdtClass { deny_pod_annotation: true, deny_container_annotation: false }),
            ("plain".to_owned(), RdtClass { deny_pod_annotation: false, deny_container_annotation: true }),
        ]);
        let of = |class: &str, is_pods, may_ignore| {
            rdt(&Chosen { class: class.into(), is_pods }, folder.path(), &known, may_ignore)
        };
        assert_eq!(of("gold", true, true), Ok(None));
        assert!(of("gold", true, false).is_err_and(|error| error.message().ends_with("is not mounted")));
        std::fs::write(folder.path().join(TASKS), "").expect("written");
        for class in ["gold", "system", "plain"] {
            std::fs::create_dir(folder.path().join(class)).expect("made");
            std::fs::write(folder.path().join(class).join(TASKS), "").expect("written");
        }
        assert_eq!(of("gold", true, false), Ok(Some("gold".into())));
        assert_eq!(of("system", false, false), Ok(Some("system".into())));
        assert_eq!(of("system/default", true, false), Ok(None));
        for (class, is_pods) in
            [("lead", true), ("system", true), ("plain", false), ("..", true), ("gold/.", true)]
        {
            assert!(of(class, is_pods, true).is_err(), "{class}");
        }
    }
}
