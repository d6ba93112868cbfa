//! Ids, names, references, profiles, and what CNI plugins answer.

use longshore::proto::cri::{
    self, AttachRequest, DnsConfig, ExecRequest, LinuxContainerResources, PodSandboxStatsRequest,
    PortForwardRequest, ReopenContainerLogRequest, SecurityProfile, UpdateContainerResourcesRequest,
    security_profile,
};
use serde_json::json;
use tonic::{Code, Status};

use super::Outside;
use crate::harness::{Node, Pod, Server, cni};

fn code<T>(done: Result<T, Status>) -> Code {
    done.map_or_else(|error| error.code(), |_| Code::Ok)
}

/// SVC-29, ERR-02, ERR-03: an id is looked up and is never part of a path before it is found.
#[tokio::test]
async fn an_id_that_is_a_path_is_unknown() {
    let node = Node::with(Server::Longshore).start().await;
    let outside = Outside::new(&node);
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("it runs");
    let ids = ["../../outside", "..", ".", "/", "../containers", "*", "\0", "a\nb"].map(String::from);
    let more = [format!("{}/..", container.id), format!("../{}", pod.id), outside.text()];
    for id in ids.into_iter().chain(more) {
        let mut container = container.clone();
        container.id.clone_from(&id);
        let pod = Pod { id: id.clone(), ..pod.clone() };
        for (call, done) in [
            ("RemoveContainer", code(container.remove().await)),
            ("StopContainer", code(container.stop(0).await)),
            ("RemovePodSandbox", code(pod.remove().await)),
            ("StopPodSandbox", code(pod.stop().await)),
        ] {
            assert_eq!(done, Code::Ok, "{call} {id:?}");
        }
        let mut runtime = node.runtime();
        let (container_id, pod_sandbox_id) = (id.clone(), id.clone());
        let exec = ExecRequest { container_id, cmd: vec!["true".into()], stdout: true, ..Default::default() };
        let attach = AttachRequest { container_id: id.clone(), stdout: true, ..Default::default() };
        let forward = PortForwardRequest { pod_sandbox_id, port: vec![] };
        let linux = Some(LinuxContainerResources::default());
        let update =
            UpdateContainerResourcesRequest { container_id: id.clone(), linux, ..Default::default() };
        for (call, done) in [
            ("ContainerStatus", code(node.container_status(&id, true).await)),
            ("PodSandboxStatus", code(node.pod_status(&id, true).await)),
            ("StartContainer", code(container.start().await)),
            ("CreateContainer", code(pod.container("x").create().await)),
            ("ExecSync", code(container.exec(["true"]).await)),
            ("Exec", code(runtime.exec(exec).await)),
            ("Attach", code(runtime.attach(attach).await)),
            ("PortForward", code(runtime.port_forward(forward).await)),
            ("ContainerStats", code(node.container_stats(&id).await)),
            ("UpdateContainerResources", code(runtime.update_container_resources(update).await)),
            (
                "PodSandboxStats",
                code(runtime.pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id: id.clone() }).await),
            ),
            (
                "ReopenContainerLog",
                code(
                    runtime
                        .reopen_container_log(ReopenContainerLogRequest { container_id: id.clone() })
                        .await,
                ),
            ),
        ] {
            assert_eq!(done, Code::NotFound, "{call} {id:?}");
        }
    }
    outside.assert_untouched("ids that are paths");
    assert_eq!(container.sh("echo still here").await, "still here");
    node.remove_all().await;
    node.finish().await;
}

/// NAM-01, OCI-45: names and annotations are texts of records, and name no files.
#[tokio::test]
async fn names_and_annotations_are_no_paths() {
    let node = Node::with(Server::Longshore).start().await;
    let outside = Outside::new(&node);
    let name = "../../../outside";
    let pod = node.pod(name).config(|config| {
        let metadata = config.metadata.get_or_insert_default();
        (metadata.namespace, metadata.uid) = ("..".into(), "/../outside/new".into());
    });
    let pod = pod
        .log_dir(&node.place().text("logs/a"))
        .cgroup_parent(&node.cgroup_parent("names"))
        .labels([("../x", "../y")]);
    let pod = pod.run().await.expect("a pod");
    let container = pod.container(name).labels([("/../../outside/new", "x")]);
    let container = container.config(|config| config.log_path = "c.log".into()).forever();
    let container = container.run().await.expect("it runs");
    assert_eq!(container.sh("echo inside").await, "inside");
    let bad = |key: &str, value: &str| {
        let annotation = (key.to_owned(), value.to_owned());
        pod.container("bad").config(|config| config.annotations.extend([annotation]))
    };
    for (key, value) in [
        ("io.kubernetes.cri.rdt-class", "../../outside"),
        ("io.kubernetes.cri.blockio-class", "../../outside"),
        ("cdi.k8s.io/a", "../../outside/x=y"),
        ("cdi.k8s.io/b", "vendor.com/class=../../outside"),
    ] {
        let done = code(bad(key, value).forever().create().await);
        assert!(matches!(done, Code::InvalidArgument | Code::FailedPrecondition), "{key}: {done:?}");
    }
    let done = node.pod("b").handler("../runc").run().await;
    assert!(done.is_err());
    outside.assert_untouched("names with paths");
    pod.remove().await.expect("removed");
    outside.assert_untouched("the removal");
    node.finish().await;
}

/// SBX-17: a text is no second line of the pod's files.
#[tokio::test]
async fn hostname_and_dns_have_no_line_breaks() {
    let node = Node::with(Server::Longshore).start().await;
    let bad = || vec!["1.1.1.1\nnameserver 6.6.6.6".to_owned()];
    for dns in [
        DnsConfig { servers: bad(), ..Default::default() },
        DnsConfig { searches: bad(), ..Default::default() },
        DnsConfig { options: bad(), ..Default::default() },
    ] {
        assert_eq!(code(node.pod("a").dns(dns).run().await), Code::InvalidArgument);
    }
    assert_eq!(code(node.pod("a").hostname("a\n6.6.6.6 registry").run().await), Code::InvalidArgument);
    assert!(node.pods().await.expect("pods").is_empty());
    node.finish().await;
}

/// IMG-01, IMG-20: the folder of a registry's hosts.toml is found by its host name, which is
/// no path; so is nothing else of a reference.
#[tokio::test]
async fn an_image_reference_is_no_path() {
    let node = Node::with(Server::Longshore).start().await;
    // What would be found if one were.
    let hosts = node.registry().hosts();
    std::fs::write(node.place().path("hosts.toml"), &hosts).expect("a file");
    std::fs::create_dir(node.place().path("trap.test")).expect("a folder");
    std::fs::write(node.place().path("trap.test/hosts.toml"), &hosts).expect("a file");
    let outside = Outside::new(&node);
    let digest = format!("sha256:{}", "../".repeat(21) + "x");
    for reference in [
        "../busybox:1",
        "./busybox:1",
        "../trap.test/busybox:1",
        "registry.test/../trap.test/busybox:1",
        "..:5000/busybox:1",
        "registry.test:/../trap.test/busybox:1",
        "/busybox:1",
        "_default/busybox:1",
        "registry.test/../../outside:1",
        "registry.test/busybox:../1",
        &format!("registry.test/busybox@{digest}"),
        "registry.test/busybox@../../outside:x",
    ] {
        assert_eq!(code(node.pull(reference).await), Code::InvalidArgument, "{reference}");
        // Not there, or no reference.
        let status = node.image(reference).await;
        assert!(!matches!(status, Ok(Some(_))), "{reference}: {status:?}");
        let _ = node.remove_image(reference).await;
    }
    outside.assert_untouched("references with paths");
    node.finish().await;
}

/// OCI-19: a profile is a regular file of the node, by its whole path.
#[tokio::test]
async fn a_seccomp_profile_is_a_regular_file() {
    let node = Node::with(Server::Longshore).start().await;
    let fifo = node.place().path("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).expect("a FIFO");
    let fifo = fifo.display().to_string();
    let pod = node.pod("a").run().await.expect("a pod");
    for path in [fifo.as_str(), "/dev/zero", "/", "../../x", "profile.json"] {
        let profile = SecurityProfile {
            profile_type: security_profile::ProfileType::Localhost as i32,
            localhost_ref: path.into(),
        };
        let container = pod.container("c").forever();
        let created = container.security(|context| context.seccomp = Some(profile)).create().await;
        assert_eq!(code(created), Code::InvalidArgument, "{path}");
    }
    node.remove_all().await;
    node.finish().await;
}

/// CNI-18, CNI-20: an answer is data. Names of interfaces and namespaces are kept and open nothing; a
/// plugin's DNS is for those who ask, and no pod's resolv.conf.
#[tokio::test]
async fn what_a_plugin_answers_opens_nothing() {
    let answer = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            { "name": "eth0", "sandbox": "{folder}/outside/file" },
            { "name": "../../../outside/new", "sandbox": "../../outside", "socketPath": "{folder}/outside/new" },
        ],
        "ips": [{ "address": "{network}.99/24", "interface": 0 }],
        "dns": {
            "nameservers": ["1.1.1.1\nnameserver 6.6.6.6"], "domain": "../x", "search": ["a\nb"], "options": ["/"],
        },
    });
    let script =
        format!("#!/bin/sh\ncat > /dev/null\n[ $CNI_COMMAND = ADD ] || exit 0\ncat <<'.'\n{answer}\n.\n");
    let list = json!({ "cniVersion": "1.0.0", "name": "{name}", "plugins": [{ "type": "odd" }] });
    let node = Node::with(Server::Longshore).cni(list).plugin("odd", &script).start().await;
    let outside = Outside::new(&node);
    let dns = DnsConfig { servers: vec!["10.0.0.1".into()], ..Default::default() };
    let pod = node.pod("a").dns(dns).run().await.expect("a pod");
    assert_eq!(pod.ip().await, format!("{}.99", node.place().network()));
    let container = pod.container("c").forever().run().await.expect("it runs");
    assert_eq!(container.sh("cat /etc/resolv.conf").await, "nameserver 10.0.0.1");
    let stats = node.pod_stats(&pod.id).await.expect("figures");
    assert_eq!(stats.attributes.expect("attributes").id, pod.id);
    let cache = cni_results(&node);
    assert_eq!(cache.len(), 1, "{cache:?}");
    outside.assert_untouched("the answer of a plugin");
    node.longshore().kill().await;
    node.longshore().start().await;
    let state = pod.status().await.expect("a status").state;
    assert_eq!(state, cri::PodSandboxState::SandboxReady as i32);
    pod.remove().await.expect("removed");
    assert!(cni_results(&node).is_empty());
    outside.assert_untouched("the removal");
    // The name of a network is part of a file's name.
    let conf = cni::conf_dir(node.place()).join("10-test.conflist");
    let list = json!({ "cniVersion": "1.0.0", "name": "../../outside/x", "plugins": [{ "type": "odd" }] });
    cni::write_conf(&conf, &list.to_string());
    crate::harness::wait_until("the refusal of the network", async || {
        !node.condition("NetworkReady").await.unwrap_or(true)
    })
    .await;
    assert!(node.pod("b").run().await.is_err());
    outside.assert_untouched("the name of a network");
    node.finish().await;
}

fn cni_results(node: &Node) -> Vec<std::path::PathBuf> {
    node.place().cni_results(&node.longshore().cni_cache().join("results"))
}
