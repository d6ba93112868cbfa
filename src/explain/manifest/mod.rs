//! A Pod of Kubernetes, as the requests that the kubelet makes of it.
//!
//! | manifest | request | |
//! |---|---|---|
//! | `metadata` | name, labels, annotations, log directory | `uid` is the API server's to give |
//! | `hostNetwork`, `hostPID`, `hostIPC`, `shareProcessNamespace`, `hostUsers` | namespaces | |
//! | `securityContext` of pod and container | `security_context` of both | |
//! | `resources` | cgroup parent by class, limits, OOM score | [`resources`] |
//! | `volumes`, `volumeMounts` | binds of `/var/lib/kubelet/pods/UID/…` | [`volumes`] |
//! | `command`, `args`, `env`, `image`, … | the container's config | [`container`] |
//! | probes, lifecycle hooks, scheduling | nothing | |
//!
//! What only the cluster knows (secrets, config maps, the downward API, its services and its
//! DNS) is said, and a word stands in its place.

mod container;
mod resources;
mod volumes;

use std::collections::BTreeMap;

use serde_json::Value;

use super::read::Requests;
use crate::config::CgroupDriver;
use crate::error::{Result, invalid};
use crate::proto::cri::security_profile::ProfileType;
use crate::proto::cri::{
    DnsConfig, IdMapping, Int64Value, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol, SeLinuxOption,
    SecurityProfile, SupplementalGroupsPolicy, UserNamespace,
};
pub(super) use container::give_image_user;

/// The kubelet's folder of pods.
const PODS: &str = "/var/lib/kubelet/pods";
/// Its folder of seccomp profiles.
const SECCOMP: &str = "/var/lib/kubelet/seccomp";
/// Fields of a pod's spec that are not the runtime's business.
const IGNORED: [&str; 24] = [
    "activeDeadlineSeconds",
    "affinity",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "hostAliases",
    "imagePullSecrets",
    "nodeName",
    "nodeSelector",
    "os",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "schedulingGates",
    "serviceAccount",
    "serviceAccountName",
    "setHostnameAsFQDN",
    "subdomain",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
];
const READ: [&str; 16] = [
    "containers",
    "dnsConfig",
    "dnsPolicy",
    "ephemeralContainers",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostUsers",
    "hostname",
    "initContainers",
    "overhead",
    "resources",
    "securityContext",
    "shareProcessNamespace",
    "volumes",
    "template",
];

/// What of the node decides a request.
#[derive(Clone, Debug)]
pub struct Around {
    /// The cgroup driver, which the kubelet asks the server for.
    pub driver: CgroupDriver,
    /// cgroup v2 alone.
    pub cgroup_v2: bool,
    /// Bytes of memory of the node.
    pub memory_bytes: u64,
}

/// A pod that is being read.
struct Manifest<'a> {
    spec: &'a Value,
    metadata: PodSandboxMetadata,
    around: &'a Around,
    said: Vec<String>,
}

/// The requests for a manifest: of a Pod, or of what has the template of one.
///
/// # Errors
/// InvalidArgument for one without containers, and for a value that is none.
pub fn requests(value: &Value, handler: &str, around: &Around) -> Result<Requests> {
    let mut said = Vec::new();
    let nested = ["/spec/template", "/spec/jobTemplate/spec/template"];
    let template = nested.iter().find_map(|place| value.pointer(place));
    let object = template.unwrap_or(value);
    if template.is_some() {
        let kind = value["kind"].as_str().unwrap_or_default();
        said.push(format!("this is a pod of the template of the {kind}"));
    }
    let metadata = PodSandboxMetadata {
        name: text(object, "/metadata/name").or(text(value, "/metadata/name")).unwrap_or("POD").to_owned(),
        namespace: text(value, "/metadata/namespace").unwrap_or("default").to_owned(),
        uid: text(object, "/metadata/uid").unwrap_or("POD-UID").to_owned(),
        attempt: 0,
    };
    if metadata.uid == "POD-UID" {
        said.push("the pod's uid is the API server's to give: POD-UID stands for it".into());
    }
    let spec = &object["spec"];
    if !spec["containers"].is_array() {
        return Err(invalid("the manifest has no spec.containers"));
    }
    let mut manifest = Manifest { spec, metadata, around, said };
    manifest.say_unread("spec", spec, &READ, &IGNORED);
    let mut pod = manifest.pod(object)?;
    let mut containers = Vec::new();
    for place in ["initContainers", "containers"] {
        for container in spec[place].as_array().into_iter().flatten() {
            containers.push(manifest.container(container)?);
        }
    }
    if spec["ephemeralContainers"].is_array() {
        manifest.say("ephemeral containers are not shown");
    }
    if let Some(linux) = &mut pod.linux
        && let Some(context) = &mut linux.security_context
    {
        context.privileged = containers.iter().any(|config| {
            let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
            context.is_some_and(|context| context.privileged)
        });
    }
    Ok(Requests {
        pod,
        handler: handler.to_owned(),
        containers,
        shows_pod: true,
        is_kubelets: true,
        said: manifest.said,
    })
}

impl Manifest<'_> {
    fn say(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.said.contains(&what) {
            self.said.push(what);
        }
    }

    /// Says which fields are neither read nor of no account.
    fn say_unread(&mut self, what: &str, value: &Value, read: &[&str], ignored: &[&str]) {
        let names: Vec<String> = value.as_object().into_iter().flat_map(|map| map.keys().cloned()).collect();
        for name in
            names.iter().filter(|name| !read.contains(&name.as_str()) && !ignored.contains(&name.as_str()))
        {
            self.say(format!("{what}.{name} is not looked at"));
        }
    }

    /// The folder of the pod in the kubelet's.
    fn folder(&self) -> String {
        format!("{PODS}/{}", self.metadata.uid)
    }

    fn pod(&mut self, object: &Value) -> Result<PodSandboxConfig> {
        let PodSandboxMetadata { name, namespace, uid, .. } = self.metadata.clone();
        let mut labels = strings(object, "/metadata/labels");
        labels.extend(self.own_labels());
        let class = resources::class(self.spec)?;
        let spec = self.spec;
        if text(spec, "/runtimeClassName").is_some() {
            self.say(
                "which handler the runtimeClassName stands for says the cluster: give it with --handler",
            );
        }
        let limits = resources::of_pod(spec, self.around)?;
        let overhead = resources::overhead(spec)?;
        Ok(PodSandboxConfig {
            hostname: if flag(spec, "/hostNetwork") { String::new() } else { self.hostname() },
            log_directory: format!("/var/log/pods/{namespace}_{name}_{uid}"),
            dns_config: self.dns(),
            port_mappings: self.ports(),
            labels,
            annotations: strings(object, "/metadata/annotations"),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: resources::cgroup_parent(class, &uid, self.around.driver),
                security_context: Some(self.pod_context()),
                sysctls: spec
                    .pointer("/securityContext/sysctls")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(|one| Some((text(one, "/name")?.to_owned(), text(one, "/value")?.to_owned())))
                    .collect(),
                overhead: Some(overhead),
                resources: Some(limits),
            }),
            metadata: Some(self.metadata.clone()),
            windows: None,
        })
    }

    /// Labels by which the kubelet finds its pods.
    fn own_labels(&self) -> BTreeMap<String, String> {
        let PodSandboxMetadata { name, namespace, uid, .. } = self.metadata.clone();
        [
            ("io.kubernetes.pod.name", name),
            ("io.kubernetes.pod.namespace", namespace),
            ("io.kubernetes.pod.uid", uid),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    fn hostname(&mut self) -> String {
        if flag(self.spec, "/setHostnameAsFQDN") {
            self.say("setHostnameAsFQDN: the cluster's domain is not known, and left out of the hostname");
        }
        let name = text(self.spec, "/hostname").unwrap_or(&self.metadata.name);
        let name: String = name.chars().take(63).collect();
        name.trim_end_matches(['-', '.']).to_owned()
    }

    fn dns(&mut self) -> Option<DnsConfig> {
        let list = |pointer: &str| texts(self.spec, pointer);
        let options = self.spec.pointer("/dnsConfig/options").and_then(Value::as_array).into_iter().flatten();
        let options = options.filter_map(|option| {
            let name = text(option, "/name")?;
            Some(text(option, "/value").map_or(name.to_owned(), |value| format!("{name}:{value}")))
        });
        let config = DnsConfig {
            servers: list("/dnsConfig/nameservers"),
            searches: list("/dnsConfig/searches"),
            options: options.collect(),
        };
        if text(self.spec, "/dnsPolicy") != Some("None") {
            self.say("dns_config: servers and domains of the cluster, or of the node, are the kubelet's to know; the spec does not depend on them");
        }
        Some(config)
    }

    fn ports(&self) -> Vec<PortMapping> {
        let containers = self.spec["containers"].as_array().into_iter().flatten();
        let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
        let number = |port: &Value, name: &str| port[name].as_i64().and_then(|port| i32::try_from(port).ok());
        ports
            .map(|port| PortMapping {
                protocol: match port["protocol"].as_str() {
                    Some("UDP") => Protocol::Udp as i32,
                    Some("SCTP") => Protocol::Sctp as i32,
                    _ => Protocol::Tcp as i32,
                },
                container_port: number(port, "containerPort").unwrap_or(0),
                host_port: number(port, "hostPort").unwrap_or(0),
                host_ip: port["hostIP"].as_str().unwrap_or_default().to_owned(),
            })
            .collect()
    }

    fn pod_context(&mut self) -> LinuxSandboxSecurityContext {
        let context = &self.spec["securityContext"];
        LinuxSandboxSecurityContext {
            namespace_options: Some(self.namespaces()),
            selinux_options: selinux(context),
            run_as_user: id(context, "/runAsUser"),
            run_as_group: id(context, "/runAsGroup"),
            supplemental_groups: self.groups(),
            supplemental_groups_policy: self.groups_policy(),
            // The kubelet gives pause the least of all filters, whatever the pod has.
            seccomp: Some(SecurityProfile {
                profile_type: ProfileType::RuntimeDefault as i32,
                ..SecurityProfile::default()
            }),
            ..LinuxSandboxSecurityContext::default()
        }
    }

    fn namespaces(&mut self) -> NamespaceOption {
        let spec = self.spec;
        let node = |pointer: &str, otherwise: NamespaceMode| {
            (if flag(spec, pointer) { NamespaceMode::Node } else { otherwise }) as i32
        };
        let own_pid = match flag(spec, "/shareProcessNamespace") {
            true => NamespaceMode::Pod,
            false => NamespaceMode::Container,
        };
        let mut options = NamespaceOption {
            network: node("/hostNetwork", NamespaceMode::Pod),
            ipc: node("/hostIPC", NamespaceMode::Pod),
            pid: node("/hostPID", own_pid),
            ..NamespaceOption::default()
        };
        if spec["hostUsers"] == false {
            self.say("hostUsers: which ids the pod gets is the kubelet's choice; those from 65536 on stand for them");
            let maps = vec![IdMapping { container_id: 0, host_id: 65536, length: 65536 }];
            options.userns_options =
                Some(UserNamespace { mode: NamespaceMode::Pod as i32, uids: maps.clone(), gids: maps });
        }
        options
    }

    fn groups(&self) -> Vec<i64> {
        let context = &self.spec["securityContext"];
        let more = context["supplementalGroups"].as_array().into_iter().flatten();
        context["fsGroup"].as_i64().into_iter().chain(more.filter_map(Value::as_i64)).collect()
    }

    fn groups_policy(&self) -> i32 {
        match text(self.spec, "/securityContext/supplementalGroupsPolicy") {
            Some("Strict") => SupplementalGroupsPolicy::Strict as i32,
            _ => SupplementalGroupsPolicy::Merge as i32,
        }
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer) == Some(&Value::Bool(true))
}

fn id(value: &Value, pointer: &str) -> Option<Int64Value> {
    value.pointer(pointer).and_then(Value::as_i64).map(|value| Int64Value { value })
}

fn texts(value: &Value, pointer: &str) -> Vec<String> {
    let list = value.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn strings(value: &Value, pointer: &str) -> BTreeMap<String, String> {
    let map = value.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    map.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn selinux(context: &Value) -> Option<SeLinuxOption> {
    let options = context.get("seLinuxOptions")?;
    let of = |name: &str| options[name].as_str().unwrap_or_default().to_owned();
    Some(SeLinuxOption { user: of("user"), role: of("role"), r#type: of("type"), level: of("level") })
}

/// A profile of a security context, for seccomp and AppArmor alike; `folder` is where the
/// node's are.
fn profile(context: &Value, name: &str, folder: &str) -> Option<SecurityProfile> {
    let given = context.get(name)?;
    let (profile_type, localhost_ref) = match given["type"].as_str()? {
        "RuntimeDefault" => (ProfileType::RuntimeDefault, String::new()),
        "Localhost" => {
            let reference = given["localhostProfile"].as_str().unwrap_or_default();
            let is_file = !folder.is_empty();
            (
                ProfileType::Localhost,
                if is_file { format!("{folder}/{reference}") } else { reference.to_owned() },
            )
        }
        _ => (ProfileType::Unconfined, String::new()),
    };
    Some(SecurityProfile { profile_type: profile_type as i32, localhost_ref })
}

#[cfg(test)]
mod tests;
