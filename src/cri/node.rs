//! Version, Status, RuntimeConfig, UpdateRuntimeConfig: what the kubelet asks of the node.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use super::Cri;
use crate::config::CgroupDriver;
use crate::containerd::Link;
use crate::error::Result;
use crate::flow::lock;
use crate::pod::Recovery;
use crate::proto::cri;

/// How long containerd gets to answer while Status waits (SVC-14).
const PING_LIMIT: Duration = Duration::from_millis(800);
/// What Version says before containerd ever answered.
const UNKNOWN_VERSION: &str = "0.0.0";

/// What is remembered between calls.
#[derive(Default)]
pub(super) struct Node {
    last_version: Mutex<String>,
}

impl Cri {
    /// Version (SVC-05); with containerd away, the version that it last had (SVC-37).
    pub(super) fn version(&self) -> cri::VersionResponse {
        let mut last = lock(&self.node.last_version);
        if let Ok(capabilities) = self.pods.containers.containerd.capabilities() {
            *last = capabilities.semantic_version();
        }
        let runtime_version = if last.is_empty() { UNKNOWN_VERSION.to_owned() } else { last.clone() };
        cri::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: self.config.file.server.runtime_name.clone(),
            runtime_version,
            runtime_api_version: "v1".to_owned(),
        }
    }

    /// Status (SVC-12 … SVC-21): always answers, within about a second.
    pub(super) async fn node_status(&self, verbose: bool) -> cri::StatusResponse {
        let (runtime, network, deprecations) =
            tokio::join!(self.runtime_condition(), self.network_condition(), self.deprecation_condition());
        let info = if verbose { self.node_info() } else { BTreeMap::new() };
        cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions: vec![runtime, network, deprecations] }),
            info,
            runtime_handlers: self.handlers(),
            features: Some(cri::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: self.user_namespaces_on_the_hosts_network(),
                mount_options: true,
            }),
        }
    }

    async fn runtime_condition(&self) -> cri::RuntimeCondition {
        let recovery = self.pods.recovery().borrow().clone();
        let trouble = match (self.pods.containers.containerd.link(), recovery) {
            (Link::Down(reason), _) => {
                Some(("ContainerdUnavailable", format!("containerd does not answer: {reason}")))
            }
            (_, Recovery::Refused(reason)) => Some(("BuiltinPluginActive", reason)),
            (_, Recovery::Pending) => Some(("Recovering", "pods and containers are being loaded".to_owned())),
            (Link::Up(_), Recovery::Done) => {
                match self.pods.containers.containerd.version(PING_LIMIT).await {
                    Ok(_) => None,
                    Err(error) => Some(("ContainerdUnavailable", error.message().to_owned())),
                }
            }
        };
        condition("RuntimeReady", trouble)
    }

    async fn network_condition(&self) -> cri::RuntimeCondition {
        let asked = tokio::time::timeout(PING_LIMIT, self.pods.network.ready()).await;
        let trouble = match asked {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.message().to_owned()),
            // They take their time: what they have said last holds until they have answered.
            Err(_) => match self.pods.network.last_status() {
                Some(last) => last.err().map(|error| error.message().to_owned()),
                None => Some("the CNI plugins' STATUS does not answer".to_owned()),
            },
        };
        condition("NetworkReady", trouble.map(|message| ("NetworkPluginNotReady", message)))
    }

    /// SVC-16. What cannot be asked counts as no warning.
    async fn deprecation_condition(&self) -> cri::RuntimeCondition {
        let list = match self.pods.containers.containerd.link() {
            Link::Up(_) => self.pods.containers.containerd.deprecations(PING_LIMIT).await.unwrap_or_default(),
            Link::Down(_) => Vec::new(),
        };
        deprecations(list, &self.config.file.server.ignore_deprecation_warnings)
    }

    /// Whether a pod can have a user namespace and the host's network (SVC-21): it then sees
    /// the host's /sys, recursively read-only (SBX-28).
    fn user_namespaces_on_the_hosts_network(&self) -> bool {
        let handlers = self.config.handlers.iter();
        handlers
            .map(|handler| self.pods.containers.features_of(handler))
            .any(|features| features.user_namespaces && features.recursive_read_only)
    }

    /// Every handler and the default one under the empty name, sorted (SVC-17).
    fn handlers(&self) -> Vec<cri::RuntimeHandler> {
        let of = |name: &str, handler: &str| cri::RuntimeHandler {
            name: name.to_owned(),
            // Without features, but listed, where they are not known (SVC-19).
            features: self.pods.containers.known_features(handler).map(|features| {
                cri::RuntimeHandlerFeatures {
                    recursive_read_only_mounts: features.recursive_read_only,
                    user_namespaces: features.user_namespaces,
                }
            }),
        };
        let mut list: Vec<_> =
            self.config.handlers.iter().map(|handler| of(&handler.name, &handler.name)).collect();
        list.push(of("", &self.config.default_handler));
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// The verbose part (SVC-26, SVC-27).
    fn node_info(&self) -> BTreeMap<String, String> {
        let file = &self.config.file;
        let mut config = serde_json::to_value(file).unwrap_or(Value::Null);
        config["stateDir"] = json!(file.state);
        config["rootDir"] = json!(file.root);
        config["containerdEndpoint"] = json!(file.containerd.address);
        let mut info = BTreeMap::from([
            ("config".to_owned(), config.to_string()),
            ("cniconfig".to_owned(), self.pods.network.describe().to_string()),
            ("longshore".to_owned(), json!(env!("CARGO_PKG_VERSION")).to_string()),
        ]);
        if let Ok(capabilities) = self.pods.containers.containerd.capabilities() {
            info.insert("containerd".to_owned(), json!(capabilities.raw_version()).to_string());
            info.insert("containerdPlugins".to_owned(), json!(capabilities.plugin_states()).to_string());
        }
        for (handler, status) in self.pods.network.load_status() {
            let key = if handler.is_empty() { String::new() } else { format!(".{handler}") };
            let text = status.err().unwrap_or_else(|| "OK".to_owned());
            info.insert(format!("lastCNILoadStatus{key}"), text);
        }
        info
    }

    /// RuntimeConfig (SVC-22 … SVC-24).
    pub(super) fn runtime_config(&self) -> cri::RuntimeConfigResponse {
        let driver = match self.config.default_handler().cgroup_driver {
            CgroupDriver::Systemd => cri::CgroupDriver::Systemd,
            CgroupDriver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
        };
        cri::RuntimeConfigResponse {
            linux: Some(cri::LinuxRuntimeConfiguration { cgroup_driver: driver as i32 }),
        }
    }

    /// UpdateRuntimeConfig (SVC-25).
    pub(super) async fn update_runtime_config(&self, config: Option<cri::RuntimeConfig>) -> Result<()> {
        let cidr = config.and_then(|config| config.network_config).map(|network| network.pod_cidr);
        match cidr {
            Some(cidr) if !cidr.is_empty() => self.pods.network.write_from_template(&cidr).await,
            _ => Ok(()),
        }
    }
}

/// The condition of containerd's deprecation warnings, but for those that are ignored.
fn deprecations(list: Vec<(String, String)>, ignored: &[String]) -> cri::RuntimeCondition {
    let texts: BTreeMap<String, String> = list.into_iter().filter(|(id, _)| !ignored.contains(id)).collect();
    let trouble = (!texts.is_empty()).then(|| ("ContainerdHasDeprecationWarnings", json!(texts).to_string()));
    condition("ContainerdHasNoDeprecationWarnings", trouble)
}

fn condition(kind: &str, trouble: Option<(&str, String)>) -> cri::RuntimeCondition {
    let status = trouble.is_none();
    let (reason, message) = trouble.unwrap_or_default();
    cri::RuntimeCondition { r#type: kind.to_owned(), status, reason: reason.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SVC-16.
    #[test]
    fn deprecation_warnings_count_unless_they_are_ignored() {
        let list = || vec![("a".to_owned(), "old".to_owned()), ("b".to_owned(), "older".to_owned())];
        let of = |ignored: &[&str]| {
            let ignored: Vec<String> = ignored.iter().map(ToString::to_string).collect();
            let condition = deprecations(list(), &ignored);
            (condition.status, condition.reason, condition.message)
        };
        let reason = "ContainerdHasDeprecationWarnings".to_owned();
        assert_eq!(of(&["a"]), (false, reason, r#"{"b":"older"}"#.to_owned()));
        assert_eq!(of(&["a", "b"]), (true, String::new(), String::new()));
    }
}
