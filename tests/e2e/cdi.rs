//! Devices of vendors (OCI-41, OCI-42), with a vendor that is made up.

use std::path::Path;

use longshore::proto::cri::{CdiDevice, Int64Value};
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{ContainerBuilder, Node, Server};

/// A node with two folders of specs, the second of which goes over the first.
async fn start() -> Node {
    let dirs = "[container]\ncdi_spec_dirs = [\"{folder}/cdi/low\", \"{folder}/cdi/high\"]\n";
    Node::with(Server::Longshore).config(dirs).start().await
}

/// Writes a spec as careful tools do.
fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).expect("written");
    std::fs::rename(beside, path).expect("renamed");
}

/// A spec of `vendor.test/KIND` with devices and their edits.
fn spec(kind: &str, devices: &[(&str, Value)]) -> Value {
    let devices: Vec<Value> =
        devices.iter().map(|(name, edits)| json!({"name": name, "containerEdits": edits})).collect();
    json!({"cdiVersion": "0.7.0", "kind": format!("vendor.test/{kind}"), "devices": devices})
}

fn env(value: &str) -> Value {
    json!({"env": [format!("FROM={value}")]})
}

trait Devices {
    fn device(self, name: &str) -> Self;
}

impl Devices for ContainerBuilder {
    fn device(self, name: &str) -> ContainerBuilder {
        self.config(|config| config.cdi_devices.push(CdiDevice { name: name.into() }))
    }
}

/// Everything that an edit can do, seen inside.
#[tokio::test]
async fn a_device_brings_nodes_mounts_variables_groups_and_hooks() {
    let node = start().await;
    let shared = node.place().path("shared");
    std::fs::create_dir_all(&shared).expect("made");
    std::fs::write(shared.join("library"), "from the vendor\n").expect("written");
    // Hooks have the container's state on their standard input.
    let script = node.place().path("hook");
    let text = format!("#!/bin/sh\ncat >/dev/null\necho \"$1 $MODEL\" >>{}/hooks\n", shared.display());
    std::fs::write(&script, text).expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).expect("permissions");
    let hook = |kind: &str| json!({"hookName": kind, "path": script, "args": ["hook", kind], "env": ["MODEL=X"], "timeout": 30});
    let inside = json!({"hookName": "startContainer", "path": "/bin/sh",
        "args": ["sh", "-c", "echo startContainer inside >>/vendor/hooks"], "env": ["PATH=/bin"]});
    let mut file = spec(
        "gpu",
        &[(
            "0",
            json!({
                "env": ["DEVICE=0", "OWN=vendor"],
                "deviceNodes": [
                    {"path": "/dev/vendor0", "hostPath": "/dev/zero", "permissions": "rw", "fileMode": 0o640, "gid": 44},
                    {"path": "/dev/vendor1", "type": "c", "major": 10, "minor": 229, "permissions": "r"},
                ],
                "mounts": [{"hostPath": shared, "containerPath": "/vendor", "options": ["rbind", "rw"]}],
                "hooks": [hook("prestart"), hook("createRuntime"), hook("createContainer"), inside, hook("poststart"), hook("poststop")],
                "additionalGids": [44, 0],
            }),
        )],
    );
    file["containerEdits"] = env("the file");
    write(&node.place().path("cdi/low/vendor.json"), &file.to_string());

    let pod = node.pod("gpu").run().await.expect("a pod");
    let asked =
        pod.container("c").forever().env("OWN", "mine").mount("/etc", "/vendor").device("vendor.test/gpu=0");
    let container = asked.run().await.expect("a container");
    assert_eq!(container.sh("echo $DEVICE $OWN $FROM").await, "0 vendor the file");
    // The vendor's mount takes the place of the other.
    assert_eq!(container.sh("cat /vendor/library").await, "from the vendor");
    assert_eq!(container.sh("stat -c '%t:%T %a %u:%g' /dev/vendor0").await, "1:5 640 0:44");
    assert_eq!(container.sh("head -c 4 /dev/vendor0 | wc -c; echo x >/dev/vendor0").await, "4");
    assert_eq!(container.sh("id -G").await.split(' ').filter(|group| *group == "44").count(), 1);
    // The device cgroup lets it be read and not be written.
    container.sh("exec 3</dev/vendor1").await;
    let refused = container.exec(["/bin/sh", "-c", "exec 3>/dev/vendor1"]).await.expect("it runs");
    assert_ne!(refused.exit_code, 0);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not permitted"), "{refused:?}");
    container.stop(0).await.expect("stopped");
    container.remove().await.expect("removed");
    let hooks = std::fs::read_to_string(shared.join("hooks")).expect("hooks ran");
    let ran: Vec<&str> = hooks.lines().collect();
    assert_eq!(ran[..3], ["prestart X", "createRuntime X", "createContainer X"], "{ran:?}");
    // The one is the runtime's, the other the container's first process: nobody waits.
    let mut started = ran[3..ran.len() - 1].to_vec();
    started.sort_unstable();
    assert_eq!(started, ["poststart X", "startContainer inside"], "{ran:?}");
    assert_eq!(ran.last(), Some(&"poststop X"), "{ran:?}");
    node.remove_all().await;
    node.finish().await;
}

/// A node without an owner is the container's user's; one that is not there is told.
#[tokio::test]
async fn a_node_belongs_to_the_containers_user() {
    let node = start().await;
    let devices = [
        ("own", json!({"deviceNodes": [{"path": "/dev/own", "hostPath": "/dev/zero"}]})),
        ("gone", json!({"deviceNodes": [{"path": "/dev/gone", "hostPath": "/dev/there-is-none"}]})),
    ];
    write(&node.place().path("cdi/low/vendor.json"), &spec("gpu", &devices).to_string());
    let pod = node.pod("owner").run().await.expect("a pod");
    let asked = pod.container("c").forever().device("vendor.test/gpu=own").security(|security| {
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.run_as_group = Some(Int64Value { value: 1001 });
    });
    let container = asked.run().await.expect("a container");
    assert_eq!(container.sh("stat -c '%u:%g' /dev/own").await, "1000:1001");
    let error =
        pod.container("gone").device("vendor.test/gpu=gone").create().await.expect_err("no such node");
    assert!(error.message().contains("CDI device node \"/dev/there-is-none\""), "{error}");
    node.remove_all().await;
    node.finish().await;
}

/// What changes while the server runs counts for the next container; what is broken or in
/// conflict is told to who asks for it, and to nobody else.
#[tokio::test]
async fn specs_change_while_the_server_runs() {
    let node = start().await;
    let path = |name: &str| node.place().path("cdi").join(name);
    let pod = node.pod("change").run().await.expect("a pod");
    let attempt = std::cell::Cell::new(0);
    // What FROM is in a container that asks for the devices, or the error.
    let from = async |devices: &[&str]| {
        let mut asked = pod.container("c").attempt(attempt.replace(attempt.get() + 1)).sh("echo $FROM");
        for device in devices {
            asked = asked.device(device);
        }
        let container = asked.run().await?;
        container.wait_exited().await;
        Ok::<String, tonic::Status>(container.log_entries().await[0].text())
    };
    let missing = from(&["vendor.test/gpu=a"]).await.expect_err("there is no folder yet");
    assert_eq!(missing.code(), Code::FailedPrecondition);
    write(&path("low/v.json"), &spec("gpu", &[("a", env("one")), ("b", env("b"))]).to_string());
    assert_eq!(from(&["vendor.test/gpu=a"]).await.expect("it is there"), "one");
    let yaml = "cdiVersion: 0.5.0\nkind: vendor.test/gpu\ndevices:\n- name: a\n  containerEdits:\n    env:\n    - FROM=two\n";
    write(&path("high/v.yaml"), yaml);
    assert_eq!(from(&["vendor.test/gpu=a"]).await.expect("the later folder"), "two");
    std::fs::remove_file(path("high/v.yaml")).expect("removed");
    assert_eq!(from(&["vendor.test/gpu=a"]).await.expect("the former"), "one");

    write(&path("low/broken.json"), "{\"cdiVersion\": \"0.5.0\"");
    write(&path("low/w.json"), &spec("gpu", &[("b", env("other"))]).to_string());
    assert_eq!(from(&["vendor.test/gpu=a"]).await.expect("others' trouble"), "one");
    let error = from(&["vendor.test/gpu=b", "vendor.test/gpu=a", "vendor.test/gpu=x"]).await;
    let error = error.expect_err("a conflict, and one that is missing");
    let low = path("low").display().to_string();
    let want = format!(
        "CDI devices cannot be resolved: vendor.test/gpu=b (it is in {low}/v.json and {low}/w.json), vendor.test/gpu=x (no CDI spec has it)"
    );
    assert!(error.message().contains(&want), "{error}");
    let log = node.longshore().log();
    assert!(log.contains("low/broken.json") && log.contains("a CDI spec cannot be used"));
    // A failed creation leaves nothing.
    assert!(node.containers().await.expect("a list").iter().all(|one| one.metadata.is_some()));
    node.remove_all().await;
    node.finish().await;
}

/// Annotations of the container ask, too; those of the pod do not.
#[tokio::test]
async fn annotations_ask_for_devices() {
    let node = start().await;
    let devices =
        [("a", json!({"env": ["A=1"]})), ("b", json!({"env": ["B=1"]})), ("c", json!({"env": ["C=1"]}))];
    write(&node.place().path("cdi/high/v.json"), &spec("gpu", &devices).to_string());
    let pod =
        node.pod("ask").annotations([("cdi.k8s.io/pods", "vendor.test/gpu=c")]).run().await.expect("a pod");
    let annotated = |value: &str| {
        let value = value.to_owned();
        pod.container("c")
            .forever()
            .device("vendor.test/gpu=a")
            .config(|config| drop(config.annotations.insert("cdi.k8s.io/plugin_x".into(), value)))
    };
    let container = annotated("vendor.test/gpu=b,vendor.test/gpu=a").run().await.expect("a container");
    assert_eq!(container.sh("echo $A $B .$C").await, "1 1 .");
    let env = container.info().await["runtimeSpec"]["process"]["env"].clone();
    let given = env.as_array().expect("a list").iter().filter(|one| one.as_str() == Some("A=1"));
    assert_eq!(given.count(), 1);
    for wrong in ["", "vendor.test/gpu", "vendor.test/gpu=a, vendor.test/gpu=b"] {
        let error = annotated(wrong).attempt(1).create().await.expect_err("no qualified name");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
async fn devices_are_refused_where_cdi_is_off() {
    let node = Node::with(Server::Longshore).config("[container]\nenable_cdi = false\n").start().await;
    let pod = node.pod("off").run().await.expect("a pod");
    let error = pod.container("c").device("vendor.test/gpu=a").create().await.expect_err("off");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("vendor.test/gpu=a"), "{error}");
    pod.container("c").create().await.expect("one that asks for nothing");
    node.remove_all().await;
    node.finish().await;
}
