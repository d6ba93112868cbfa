//! Classes of block I/O and of RDT (caches, memory bandwidth), chosen by annotations.
//!
//! | annotation | OCI | rule |
//! |---|---|---|
//! | `…blockio.resources.beta.kubernetes.io/…` | `resources.blockIO`: the parameters of the class | OCI-45 |
//! | `…rdt.resources.beta.kubernetes.io/…` | `linux.intelRdt.closID`: the class | OCI-45 |
//!
//! Each has three forms, of which the first that is there counts:
//!
//! | of | key |
//! |---|---|
//! | the container | `io.kubernetes.cri.blockio-class`, `io.kubernetes.cri.rdt-class` |
//! | the pod, for one container | `KIND.resources.beta.kubernetes.io/container.NAME` |
//! | the pod, for all | `KIND.resources.beta.kubernetes.io/pod` |

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::oci::{Linux, Resources};

/// What a class is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassKind {
    /// Block I/O.
    BlockIo,
    /// Caches and memory bandwidth.
    Rdt,
}

impl ClassKind {
    fn word(self) -> &'static str {
        match self {
            ClassKind::BlockIo => "blockio",
            ClassKind::Rdt => "rdt",
        }
    }
}

/// A class, and who has chosen it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Its name.
    pub class: String,
    /// By an annotation of the pod, not of the container.
    pub is_pods: bool,
}

/// The class of a container; none where nothing or the empty one is chosen.
#[must_use]
pub fn chosen(
    kind: ClassKind,
    container_name: &str,
    container: &BTreeMap<String, String>,
    pod: &BTreeMap<String, String>,
) -> Option<Chosen> {
    let word = kind.word();
    let own = container.get(&format!("io.kubernetes.cri.{word}-class")).map(|class| (class, false));
    let of_pod = |form: &str| {
        pod.get(&format!("{word}.resources.beta.kubernetes.io/{form}")).map(|class| (class, true))
    };
    let found = own.or_else(|| of_pod(&format!("container.{container_name}"))).or_else(|| of_pod("pod"));
    found
        .filter(|(class, _)| !class.is_empty())
        .map(|(class, is_pods)| Chosen { class: class.clone(), is_pods })
}

/// `resources.blockIO`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the OCI runtime spec is the documentation
pub struct BlockIo {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weight_device: Vec<WeightDevice>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleReadIOPSDevice", skip_serializing_if = "Vec::is_empty")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleWriteIOPSDevice", skip_serializing_if = "Vec::is_empty")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// The weight of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct WeightDevice {
    pub major: u32,
    pub minor: u32,
    pub weight: u16,
}

/// A limit of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct ThrottleDevice {
    pub major: u32,
    pub minor: u32,
    pub rate: u64,
}

/// The classes of a container, with what had to be read from the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    /// The parameters of the block I/O class.
    pub block_io: Option<BlockIo>,
    /// The RDT class.
    pub rdt: Option<String>,
}

/// Puts the classes into a spec.
pub(super) fn apply(classes: &Classes, section: &mut Linux) {
    if let Some(block_io) = &classes.block_io {
        let value = serde_json::to_value(block_io).expect("the keys are text");
        let limits = section.resources.get_or_insert_with(Resources::default);
        limits.extra.insert("blockIO".into(), value);
    }
    if let Some(class) = &classes.rdt {
        section.extra.insert("intelRdt".into(), Value::from_iter([("closID", json!(class))]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// OCI-45.
    #[test]
    fn the_containers_form_goes_before_the_pods() {
        let mut container = annotations(&[("io.kubernetes.cri.rdt-class", "own")]);
        let mut pod = annotations(&[
            ("rdt.resources.beta.kubernetes.io/container.c", "named"),
            ("rdt.resources.beta.kubernetes.io/container.d", "other"),
            ("rdt.resources.beta.kubernetes.io/pod", "all"),
            ("blockio.resources.beta.kubernetes.io/pod", ""),
        ]);
        let of = |container: &_, pod: &_| chosen(ClassKind::Rdt, "c", container, pod);
        let class = |class: &str, is_pods| Some(Chosen { class: class.into(), is_pods });
        assert_eq!(of(&container, &pod), class("own", false));
        container.clear();
        assert_eq!(of(&container, &pod), class("named", true));
        pod.remove("rdt.resources.beta.kubernetes.io/container.c");
        assert_eq!(of(&container, &pod), class("all", true));
        assert_eq!(chosen(ClassKind::BlockIo, "c", &container, &pod), None);
    }

    #[test]
    fn classes_have_the_oci_form() {
        let device = |rate| vec![ThrottleDevice { major: 8, minor: 16, rate }];
        let classes = Classes {
            block_io: Some(BlockIo {
                weight: Some(80),
                weight_device: vec![WeightDevice { major: 8, minor: 16, weight: 50 }],
                throttle_read_bps_device: device(1),
                throttle_write_bps_device: device(2),
                throttle_read_iops_device: device(3),
                throttle_write_iops_device: device(4),
            }),
            rdt: Some("gold".into()),
        };
        let mut section = Linux::default();
        apply(&classes, &mut section);
        let rate = |rate: u64| json!([{"major": 8, "minor": 16, "rate": rate}]);
        assert_eq!(
            serde_json::to_value(&section).expect("JSON"),
            json!({
                "resources": {"blockIO": {
                    "weight": 80,
                    "weightDevice": [{"major": 8, "minor": 16, "weight": 50}],
                    "throttleReadBpsDevice": rate(1), "throttleWriteBpsDevice": rate(2),
                    "throttleReadIOPSDevice": rate(3), "throttleWriteIOPSDevice": rate(4),
                }},
                "intelRdt": {"closID": "gold"},
            })
        );
    }
}
