//! Volumes: where the kubelet has them, for the mounts of a container.

use serde_json::Value;

use super::{Manifest, flag, text};
use crate::proto::cri::{ImageSpec, Mount, MountPropagation};

/// Volumes that the kubelet makes itself: the field, and the folder of their plugin.
const OWN: [(&str, &str, bool); 6] = [
    ("emptyDir", "empty-dir", false),
    ("configMap", "configmap", true),
    ("secret", "secret", true),
    ("downwardAPI", "downward-api", true),
    ("projected", "projected", true),
    ("nfs", "nfs", false),
];

impl Manifest<'_> {
    pub(super) fn mounts(&mut self, container: &str, given: &Value) -> Vec<Mount> {
        let mut mounts = Vec::new();
        for (place, mount) in given["volumeMounts"].as_array().into_iter().flatten().enumerate() {
            if let Some(mount) = self.mount(container, place, mount) {
                mounts.push(mount);
            }
        }
        let folder = self.folder();
        let has = |mounts: &[Mount], target: &str| mounts.iter().any(|mount| mount.container_path == target);
        let bind = |host_path: String, target: &str| Mount {
            host_path,
            container_path: target.to_owned(),
            selinux_relabel: true,
            ..Mount::default()
        };
        // The kubelet writes the names of the pod, and waits for a last word.
        if !has(&mounts, "/etc/hosts") {
            mounts.push(bind(format!("{folder}/etc-hosts"), "/etc/hosts"));
        }
        let log = text(given, "/terminationMessagePath").unwrap_or("/dev/termination-log");
        mounts.push(bind(format!("{folder}/containers/{container}/RANDOM"), log));
        if self.spec["automountServiceAccountToken"] != false {
            self.say("the token of the service account is a volume that the API server adds; it is not here unless the manifest has it");
        }
        mounts
    }

    fn mount(&mut self, container: &str, place: usize, given: &Value) -> Option<Mount> {
        let (name, target) = (text(given, "/name")?, text(given, "/mountPath")?);
        let volumes = self.spec["volumes"].as_array().into_iter().flatten();
        let Some(volume) = volumes.into_iter().find(|volume| volume["name"] == name) else {
            self.say(format!("container {container:?}: there is no volume {name:?}"));
            return None;
        };
        let propagation = match text(given, "/mountPropagation") {
            Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => MountPropagation::PropagationBidirectional,
            _ => MountPropagation::PropagationPrivate,
        };
        let mut mount = Mount {
            container_path: target.to_owned(),
            readonly: flag(given, "/readOnly"),
            recursive_read_only: text(given, "/recursiveReadOnly") == Some("Enabled"),
            propagation: propagation as i32,
            selinux_relabel: volume["hostPath"].is_null(),
            ..Mount::default()
        };
        if text(given, "/recursiveReadOnly") == Some("IfPossible") {
            self.say(format!("container {container:?}: recursiveReadOnly IfPossible: taken as not possible"));
        }
        if let Some(reference) = text(volume, "/image/reference") {
            mount.image = Some(ImageSpec { image: reference.to_owned(), ..ImageSpec::default() });
            mount.readonly = true;
            mount.image_sub_path = text(given, "/subPath").unwrap_or_default().to_owned();
            return Some(mount);
        }
        let sub_path = text(given, "/subPath").or(text(given, "/subPathExpr"));
        mount.host_path = match sub_path {
            // The kubelet binds what it found there, so that nobody changes it under its feet.
            Some(_) => format!("{}/volume-subpaths/{name}/{container}/{place}", self.folder()),
            None => self.source(name, volume),
        };
        Some(mount)
    }

    /// The folder of a volume.
    fn source(&mut self, name: &str, volume: &Value) -> String {
        if let Some(path) = text(volume, "/hostPath/path") {
            return path.to_owned();
        }
        let folder = format!("{}/volumes", self.folder());
        for (field, plugin, is_clusters) in OWN {
            if !volume[field].is_null() {
                if is_clusters {
                    self.say(format!("volume {name:?}: what is in it ({field}) is the cluster's to know"));
                }
                return format!("{folder}/kubernetes.io~{plugin}/{name}");
            }
        }
        self.say(format!("volume {name:?}: which driver has it says the cluster; taken for one of CSI"));
        format!("{folder}/kubernetes.io~csi/{name}/mount")
    }
}
