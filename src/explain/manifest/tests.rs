use super::*;
use serde_json::json;

const AROUND: Around = Around { driver: CgroupDriver::Cgroupfs, cgroup_v2: true, memory_bytes: 8 << 30 };

fn manifest() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "web", "namespace": "shop", "uid": "u-1", "labels": { "app": "web" } },
        "spec": {
            "securityContext": { "runAsUser": 1000, "fsGroup": 2000, "supplementalGroups": [3000] },
            "containers": [{
                "name": "main",
                "image": "registry.test/web:1",
                "command": ["/bin/web", "--port=$(PORT)"],
                "env": [
                    { "name": "PORT", "value": "80" },
                    { "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } },
                ],
                "ports": [{ "containerPort": 80, "hostPort": 8080 }],
                "resources": { "requests": { "cpu": "100m" }, "limits": { "memory": "64Mi" } },
                "securityContext": {
                    "runAsUser": 1,
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] },
                    "seccompProfile": { "type": "RuntimeDefault" },
                },
                "livenessProbe": { "httpGet": { "port": 80 } },
                "volumeMounts": [
                    { "name": "host", "mountPath": "/host", "readOnly": true },
                    { "name": "scratch", "mountPath": "/scratch" },
                    { "name": "scratch", "mountPath": "/part", "subPath": "part" },
                    { "name": "conf", "mountPath": "/conf" },
                ],
            }],
            "volumes": [
                { "name": "host", "hostPath": { "path": "/srv" } },
                { "name": "scratch", "emptyDir": {} },
                { "name": "conf", "configMap": { "name": "c" } },
            ],
        },
    })
}

#[test]
fn a_pod_becomes_what_the_kubelet_asks_for() {
    let requests = requests(&manifest(), "", &AROUND).expect("requests");
    let pod = &requests.pod;
    assert_eq!((pod.hostname.as_str(), pod.log_directory.as_str()), ("web", "/var/log/pods/shop_web_u-1"));
    assert_eq!(pod.port_mappings[0].host_port, 8080);
    let linux = pod.linux.clone().expect("linux");
    assert_eq!(linux.cgroup_parent, "/kubepods/burstable/podu-1");
    let context = linux.security_context.expect("a context");
    assert_eq!(context.run_as_user, Some(Int64Value { value: 1000 }));
    assert_eq!(context.supplemental_groups, [2000, 3000]);
    assert_eq!(context.namespace_options.map(|options| options.pid), Some(NamespaceMode::Container as i32));

    let container = &requests.containers[0];
    assert_eq!(container.command, ["/bin/web", "--port=80"]);
    assert_eq!(container.log_path, "main/0.log");
    let linux = container.linux.clone().expect("linux");
    let limits = linux.resources.expect("limits");
    assert_eq!((limits.cpu_shares, limits.memory_limit_in_bytes), (102, 64 << 20));
    assert_eq!(limits.unified["memory.oom.group"], "1");
    let context = linux.security_context.expect("a context");
    assert_eq!(context.run_as_user, Some(Int64Value { value: 1 }));
    assert!(context.no_new_privs && context.readonly_rootfs && !context.privileged);
    assert_eq!(context.masked_paths.len(), 11);
    let sources: Vec<(&str, &str, bool)> = container
        .mounts
        .iter()
        .map(|mount| (mount.container_path.as_str(), mount.host_path.as_str(), mount.readonly))
        .collect();
    assert_eq!(
        sources,
        [
            ("/host", "/srv", true),
            ("/scratch", "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~empty-dir/scratch", false),
            ("/part", "/var/lib/kubelet/pods/u-1/volume-subpaths/scratch/main/2", false),
            ("/conf", "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~configmap/conf", false),
            ("/etc/hosts", "/var/lib/kubelet/pods/u-1/etc-hosts", false),
            ("/dev/termination-log", "/var/lib/kubelet/pods/u-1/containers/main/RANDOM", false),
        ]
    );
}

#[test]
fn what_only_the_cluster_knows_is_said() {
    let mut value = manifest();
    value["spec"]["runtimeClassName"] = "kata".into();
    value["spec"]["unheardOf"] = 1.into();
    value["spec"]["containers"][0]["envFrom"] = json!([{ "configMapRef": { "name": "c" } }]);
    let requests = requests(&value, "", &AROUND).expect("requests");
    for part in
        ["secret s/k", "configMap", "envFrom", "runtimeClassName", "spec.unheardOf", "service account"]
    {
        assert!(requests.said.iter().any(|said| said.contains(part)), "{part}: {:?}", requests.said);
    }
    let env = &requests.containers[0].envs[1];
    assert_eq!((env.key.as_str(), env.value.as_slice()), ("KEY", b"<secret s/k>".as_slice()));
}

#[test]
fn the_hosts_namespaces_and_privileges_reach_the_pod() {
    let mut value = manifest();
    value["spec"]["hostNetwork"] = true.into();
    value["spec"]["hostPID"] = true.into();
    value["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true });
    let pod = requests(&value, "", &AROUND).expect("requests").pod;
    assert!(pod.hostname.is_empty());
    let context = pod.linux.and_then(|linux| linux.security_context).expect("a context");
    let options = context.namespace_options.expect("options");
    assert!(context.privileged && options.network == 2 && options.pid == 2 && options.ipc == 0);
}

#[test]
fn the_user_of_an_image_is_a_number_or_a_name_alone() {
    let mut value = manifest();
    value["spec"]["securityContext"] = json!({});
    value["spec"]["containers"][0]["securityContext"] = json!({});
    for (user, uid, name) in [("", Some(0), ""), ("33:34", Some(33), ""), ("web:staff", None, "web")] {
        let mut config = requests(&value, "", &AROUND).expect("requests").containers.remove(0);
        let image = crate::spec::ImageConfig { user: user.into(), ..Default::default() };
        give_image_user(&mut config, &image);
        let context = config.linux.and_then(|linux| linux.security_context).expect("a context");
        assert_eq!(context.run_as_user.map(|user| user.value), uid, "{user}");
        assert_eq!(context.run_as_username, name);
    }
}

#[test]
fn a_template_is_a_pod() {
    let pod = manifest();
    let value = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "d", "namespace": "n" },
        "spec": { "template": { "metadata": pod["metadata"], "spec": pod["spec"] } },
    });
    let requests = requests(&value, "", &AROUND).expect("requests");
    assert_eq!(requests.pod.metadata.map(|metadata| metadata.namespace).as_deref(), Some("n"));
    assert!(super::requests(&json!({ "spec": {} }), "", &AROUND).is_err());
}
