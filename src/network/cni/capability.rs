//! What plugins are told of a pod: the arguments in CNI_ARGS (CNI-11) and the values of
//! capabilities (CNI-12, CNI-13).
//!
//! The names of fields are those that the built-in plugin's JSON has (`HostPort`, not
//! `hostPort`): plugins that are written in Go read both, and both stand in the cache
//! of pods that change over.
//!
//! | CRI field | capability |
//! |---|---|
//! | `annotations` | `io.kubernetes.cri.pod-annotations` |
//! | `port_mappings` with a host port | `portMappings` |
//! | the bandwidth annotations | `bandwidth` |
//! | `dns_config` | `dns` |
//! | `linux.cgroup_parent` | `cgroupPath` |

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::quantity;
use crate::error::{Result, invalid};
use crate::proto::cri::{PodSandboxConfig, PortMapping, Protocol};

/// Bits per second below and above which a bandwidth is taken for a mistake.
const BANDWIDTH_MIN: u128 = 1_000;
const BANDWIDTH_MAX: u128 = 1_000_000_000_000_000;

/// The variables of CNI_ARGS, in order.
pub(crate) fn args(id: &str, config: &PodSandboxConfig) -> Vec<(String, String)> {
    let metadata = config.metadata.clone().unwrap_or_default();
    [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &metadata.namespace),
        ("K8S_POD_NAME", &metadata.name),
        ("K8S_POD_INFRA_CONTAINER_ID", id),
        ("K8S_POD_UID", &metadata.uid),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// Refuses values that would end theirs and begin another one.
///
/// # Errors
/// InvalidArgument with the name of the variable.
pub(crate) fn check_args(args: &[(String, String)]) -> Result<()> {
    match args.iter().find(|(_, value)| value.contains([';', '\0', '\n'])) {
        Some((name, value)) => Err(invalid(format!("{name} {value:?} cannot be a CNI argument"))),
        None => Ok(()),
    }
}

/// The values of all capabilities.
///
/// # Errors
/// InvalidArgument for a bandwidth that is unreadable or unreasonable, and for a protocol of
/// no known number.
pub(crate) fn capability_args(config: &PodSandboxConfig) -> Result<Map<String, Value>> {
    let is_unknown = |mapping: &&PortMapping| Protocol::try_from(mapping.protocol).is_err();
    if let Some(mapping) = config.port_mappings.iter().find(is_unknown) {
        return Err(invalid(format!("port mapping: protocol {} is not known", mapping.protocol)));
    }
    let mut args = unchecked(config);
    if let Some(bandwidth) = bandwidth(&config.annotations)? {
        args.insert("bandwidth".to_owned(), bandwidth);
    }
    Ok(args)
}

/// As [`capability_args`], for DEL: without a bandwidth that is wrong.
pub(crate) fn capability_args_for_removal(config: &PodSandboxConfig) -> Map<String, Value> {
    capability_args(config).unwrap_or_else(|_| unchecked(config))
}

fn unchecked(config: &PodSandboxConfig) -> Map<String, Value> {
    let mut args = Map::new();
    args.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(config.annotations));
    let ports: Vec<Value> = config
        .port_mappings
        .iter()
        // Ports without one on the host are for information only (SBX-35).
        .filter(|mapping| mapping.host_port > 0)
        .map(|mapping| {
            json!({
                "HostPort": mapping.host_port,
                "ContainerPort": mapping.container_port,
                "Protocol": protocol(mapping.protocol()),
                "HostIP": mapping.host_ip,
            })
        })
        .collect();
    if !ports.is_empty() {
        args.insert("portMappings".to_owned(), ports.into());
    }
    if let Some(dns) = &config.dns_config {
        let dns = json!({ "Servers": dns.servers, "Searches": dns.searches, "Options": dns.options });
        args.insert("dns".to_owned(), dns);
    }
    if let Some(linux) = config.linux.as_ref().filter(|linux| !linux.cgroup_parent.is_empty()) {
        args.insert("cgroupPath".to_owned(), linux.cgroup_parent.clone().into());
    }
    args
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

fn bandwidth(annotations: &BTreeMap<String, String>) -> Result<Option<Value>> {
    let ingress = rate(annotations, "kubernetes.io/ingress-bandwidth")?;
    let egress = rate(annotations, "kubernetes.io/egress-bandwidth")?;
    if ingress.is_none() && egress.is_none() {
        return Ok(None);
    }
    // A rate needs a burst: the largest one leaves the rate alone to decide.
    let burst = |rate: Option<u64>| if rate.is_some() { u32::MAX } else { 0 };
    Ok(Some(json!({
        "IngressRate": ingress.unwrap_or(0),
        "IngressBurst": burst(ingress),
        "EgressRate": egress.unwrap_or(0),
        "EgressBurst": burst(egress),
    })))
}

fn rate(annotations: &BTreeMap<String, String>, key: &str) -> Result<Option<u64>> {
    let Some(text) = annotations.get(key) else { return Ok(None) };
    let wrong = |why: &str| Err(invalid(format!("annotation {key:?}: {text:?} {why}")));
    match quantity::parse(text) {
        None => wrong("is not a quantity of bits per second"),
        Some(rate) if rate < BANDWIDTH_MIN => wrong("is unreasonably small, below 1k bit/s"),
        Some(rate) if rate > BANDWIDTH_MAX => wrong("is unreasonably large, above 1P bit/s"),
        Some(rate) => Ok(u64::try_from(rate).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cri::{DnsConfig, LinuxPodSandboxConfig, PodSandboxMetadata};

    fn port(protocol: Protocol, host_port: i32, host_ip: &str) -> PortMapping {
        PortMapping { protocol: protocol.into(), container_port: 80, host_port, host_ip: host_ip.to_owned() }
    }

    fn annotated(pairs: &[(&str, &str)]) -> PodSandboxConfig {
        let annotations = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        PodSandboxConfig { annotations, ..Default::default() }
    }

    #[test]
    fn a_protocol_of_no_known_number_is_refused() {
        let mut mapping = port(Protocol::Tcp, 80, "");
        mapping.protocol = 9;
        let config = PodSandboxConfig { port_mappings: vec![mapping], ..Default::default() };
        assert!(capability_args(&config).is_err_and(|error| error.message().contains("protocol 9")));
    }

    #[test]
    fn capabilities_are_those_of_the_built_in_plugin() {
        let config = PodSandboxConfig {
            port_mappings: vec![
                port(Protocol::Tcp, 18080, ""),
                port(Protocol::Udp, 0, ""),
                port(Protocol::Sctp, 9, "127.0.0.1"),
                port(Protocol::Tcp, -1, ""),
            ],
            dns_config: Some(DnsConfig {
                servers: vec!["10.96.0.10".into()],
                searches: vec!["svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            }),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: "/kubepods/x".into(), ..Default::default() }),
            ..annotated(&[("kubernetes.io/config.source", "api")])
        };
        let want = json!({
            "cgroupPath": "/kubepods/x",
            "dns": {"Servers": ["10.96.0.10"], "Searches": ["svc.cluster.local"], "Options": ["ndots:5"]},
            "io.kubernetes.cri.pod-annotations": {"kubernetes.io/config.source": "api"},
            "portMappings": [
                {"HostPort": 18080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""},
                {"HostPort": 9, "ContainerPort": 80, "Protocol": "sctp", "HostIP": "127.0.0.1"},
            ],
        });
        assert_eq!(Value::from(capability_args(&config).expect("valid")), want);
        let none = capability_args(&PodSandboxConfig::default()).expect("valid");
        assert_eq!(Value::from(none), json!({"io.kubernetes.cri.pod-annotations": {}}));
    }

    #[test]
    fn bandwidth_has_the_largest_burst() {
        let ingress = annotated(&[("kubernetes.io/ingress-bandwidth", "10M")]);
        let args = capability_args(&ingress).expect("valid");
        let want = json!({"IngressRate": 10_000_000, "IngressBurst": 4_294_967_295u32, "EgressRate": 0, "EgressBurst": 0});
        assert_eq!(args["bandwidth"], want);
        let both =
            annotated(&[("kubernetes.io/ingress-bandwidth", "1k"), ("kubernetes.io/egress-bandwidth", "1P")]);
        let args = capability_args(&both).expect("valid");
        assert_eq!(args["bandwidth"]["IngressRate"], 1000);
        assert_eq!(args["bandwidth"]["EgressRate"], 1_000_000_000_000_000u64);
    }

    #[test]
    fn a_wrong_bandwidth_fails_the_pod_but_not_its_removal() {
        for value in ["fast", "999", "1001T", "-1M", ""] {
            let config = annotated(&[("kubernetes.io/egress-bandwidth", value)]);
            let error = capability_args(&config).expect_err(value).to_string();
            assert!(error.contains("kubernetes.io/egress-bandwidth"), "{error}");
            assert!(!capability_args_for_removal(&config).contains_key("bandwidth"));
        }
    }

    #[test]
    fn arguments_have_their_names_and_order_and_cannot_break_out() {
        let metadata =
            PodSandboxMetadata { name: "web".into(), namespace: "shop".into(), uid: "u1".into(), attempt: 0 };
        let mut config = PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
        let found = args("abc", &config);
        let text: Vec<_> = found.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            text.join(";"),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u1"
        );
        check_args(&found).expect("fine");
        config.metadata.as_mut().expect("set").uid = "u1;K8S_POD_NAME=other".into();
        let error = check_args(&args("abc", &config)).expect_err("refused").to_string();
        assert!(error.contains("K8S_POD_UID"), "{error}");
    }
}
