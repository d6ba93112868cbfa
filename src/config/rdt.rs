//! Which classes of RDT annotations may not choose: `container.rdt_config_file` (OCI-45).
//!
//! The file is the one that containerd's tasks service has under the same key: that service
//! makes the classes, in resctrl, when containerd starts. What they may have of the caches
//! is its business; here only who may choose them is read.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

/// Who may choose a class, where a file says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RdtClass {
    /// Not annotations of pods.
    pub deny_pod_annotation: bool,
    /// Not annotations of containers.
    pub deny_container_annotation: bool,
}

/// The classes of the file by name.
pub type RdtClasses = BTreeMap<String, RdtClass>;

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    partitions: BTreeMap<String, Option<Partition>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Partition {
    classes: BTreeMap<String, Option<Class>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Class {
    kubernetes: RdtClass,
}

/// Reads the file at `path`; gives what is wrong with it.
pub(super) fn read(path: &Path) -> Result<RdtClasses, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("read {path:?}: {error}"))?;
    parse(&text).map_err(|wrong| format!("parse {path:?}: {wrong}"))
}

fn parse(text: &str) -> Result<RdtClasses, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let file: Option<File> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    let partitions = file.unwrap_or_default().partitions.into_values().flatten();
    let classes = partitions.flat_map(|partition| partition.classes);
    Ok(classes.map(|(name, class)| (name, class.unwrap_or_default().kubernetes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_the_file_is_passed_over() {
        let text = "options: {l3: {optional: true}}\npartitions:\n  default:\n    l3Allocation: '100%'\n    mbAllocation: ['100%']\n    classes:\n      gold:\n        l3Allocation: {all: '60%', 1: '50-60%'}\n        kubernetes: {denyPodAnnotation: true}\n      silver:\n  other: {classes: {system: {kubernetes: {denyContainerAnnotation: true}}}}\n  none:\n";
        let class =
            |pod, container| RdtClass { deny_pod_annotation: pod, deny_container_annotation: container };
        let want =
            [("gold", class(true, false)), ("silver", class(false, false)), ("system", class(false, true))];
        assert_eq!(parse(text), Ok(want.map(|(name, class)| (name.to_owned(), class)).into()));
        assert_eq!(parse(""), Ok(RdtClasses::new()));
        assert!(parse("partitions: [a]").is_err());
    }
}
