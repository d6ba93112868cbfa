//! Runtime handlers: what each can have of its own, with real effects.

use std::path::{Path, PathBuf};

use longshore::proto::cri::{ContainerState, Mount, NamespaceMode};
use serde_json::json;
use tonic::Code;

use crate::harness::{Node, Server, has_crun, image_mount, images, wait_until};

/// A program of the test, below the node's folder.
fn script(node_folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = node_folder.join(name);
    std::fs::write(&path, text).expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).expect("permissions");
    path
}

/// SVC-17, SVC-20: as vendors do who change a container's spec on its way to runc.
#[tokio::test]
async fn a_handlers_binary_may_be_a_wrapper() {
    let config = "[runtime.handlers.wrapped.options]\nBinaryName = \"{folder}/wrapper\"\nRoot = \"{folder}/wrapped\"\n";
    let builder = Node::with(Server::Longshore).config(config).before(|place| {
        let log = place.path("wrapper.log");
        let text = format!("#!/bin/sh\necho \"$@\" >>{}\nexec runc \"$@\"\n", log.display());
        script(place.folder(), "wrapper", &text);
    });
    let node = builder.start().await;
    let log = node.place().path("wrapper.log");
    // Every handler tells its features, the default one under both names.
    let handlers = node.status(false).await.expect("a status").runtime_handlers;
    let names: Vec<&str> = handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert_eq!(names, ["", "runc", "wrapped"]);
    assert!(handlers.iter().all(|handler| handler.features.is_some()), "{handlers:?}");
    assert!(std::fs::read_to_string(&log).expect("a log").contains("features"));
    let is_told_by_containerd = !node.longshore().log().contains("containerd does not tell");
    assert_eq!(is_told_by_containerd, node.containerd_version().major >= 2);

    let pod = node.pod("wrapped").handler("wrapped").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    assert_eq!(container.sh("echo inside").await, "inside");
    container.stop(10).await.expect("stopped");
    assert_eq!(container.status().await.expect("a status").exit_code, 0);
    // The container's task is deleted after its exit was told.
    for call in ["create", "start", "exec", "kill", "delete"] {
        wait_until(call, async || {
            let calls = std::fs::read_to_string(&log).expect("a log");
            calls.split_whitespace().any(|word| word == call)
        })
        .await;
    }
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
async fn another_oci_runtime_serves_a_handler() {
    if !has_crun() {
        eprintln!("skipped: crun is not installed");
        return;
    }
    let node = Node::with(Server::Longshore).crun().start().await;
    let pod = node.pod("crun").handler("crun").run().await.expect("a pod");
    assert_eq!(pod.status().await.expect("a status").runtime_handler, "crun");
    let container = pod
        .container("c")
        .forever()
        .resources(|resources| resources.memory_limit_in_bytes = 64 << 20)
        .run()
        .await
        .expect("a container");
    assert_eq!(container.sh("hostname").await, "crun");
    let made = std::fs::read_dir(node.place().path("crun/k8s.io")).expect("crun's folder");
    assert_eq!(made.count(), 2, "pause and the container");
    container.stop(10).await.expect("stopped");
    assert_eq!(container.status().await.expect("a status").exit_code, 0);
    // One of each at the same time.
    let other = node.pod("runc").run().await.expect("a pod");
    other.container("c").forever().run().await.expect("a container");
    node.remove_all().await;
    node.finish().await;
}

/// COX-12: the shim may be anywhere.
#[tokio::test]
async fn a_shim_may_have_a_path() {
    let config = "[runtime.handlers.path]\npath = \"{folder}/the-shim\"\n";
    let builder = Node::with(Server::Longshore).config(config).before(|place| {
        let log = place.path("shim.log");
        let text =
            format!("#!/bin/sh\necho called >>{}\nexec containerd-shim-runc-v2 \"$@\"\n", log.display());
        script(place.folder(), "the-shim", &text);
    });
    let node = builder.start().await;
    let log = node.place().path("shim.log");
    let pod = node.pod("path").handler("path").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    assert_eq!(container.sh("echo inside").await, "inside");
    assert!(log.is_file());
    node.remove_all().await;
    node.finish().await;
}

/// OCI-16.
#[tokio::test]
async fn a_handler_may_keep_the_hosts_devices_from_privileged_containers() {
    let config = "[runtime.handlers.kept]\nprivileged_without_host_devices = true\n[runtime.handlers.kept.options]\nRoot = \"{folder}/kept\"\n";
    let node = Node::with(Server::Longshore).config(config).start().await;
    for (handler, has_devices) in [("runc", true), ("kept", false)] {
        let pod = node.pod(handler).handler(handler).security(|security| security.privileged = true);
        let pod = pod.run().await.expect("a pod");
        let asked = pod.container("c").forever().security(|security| security.privileged = true);
        let container = asked.run().await.expect("a container");
        let kmsg = container.sh("test -c /dev/kmsg && echo yes || echo no").await;
        assert_eq!(kmsg, if has_devices { "yes" } else { "no" }, "{handler}");
    }
    node.remove_all().await;
    node.finish().await;
}

/// SBX-36: within a part of the name, and the container's own ones besides.
#[tokio::test]
async fn annotations_pass_by_globs() {
    let config = "[runtime.handlers.runc]\npod_annotations = [\"vendor.test/[a-c]*\", \"plain\"]\ncontainer_annotations = [\"own.?\"]\n";
    let node = Node::with(Server::Longshore).config(config).start().await;
    let given = [("vendor.test/all", "1"), ("vendor.test/xyz", "2"), ("plain", "3"), ("own.1", "4")];
    let pod = node.pod("globs").annotations(given).run().await.expect("a pod");
    let container = pod
        .container("c")
        .config(|config| {
            config.annotations.extend([("own.2".into(), "5".into()), ("other".into(), "6".into())])
        })
        .create()
        .await
        .expect("a container");
    let passed = |info: &serde_json::Value| -> Vec<String> {
        let all = info["runtimeSpec"]["annotations"].as_object().expect("annotations");
        let own = all.iter().filter(|(key, _)| !key.starts_with("io.kubernetes.cri"));
        own.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect()
    };
    assert_eq!(passed(&pod.info().await), ["plain=3", "vendor.test/all=1"]);
    assert_eq!(passed(&container.info().await), ["own.2=5", "plain=3", "vendor.test/all=1"]);
    node.remove_all().await;
    node.finish().await;
}

/// OCI-48: of containers, not of pause.
#[tokio::test]
async fn a_base_spec_lies_below_a_containers_own() {
    let config = "[runtime.handlers.based]\nbase_runtime_spec = \"{folder}/base.json\"\n[runtime.handlers.based.options]\nRoot = \"{folder}/based\"\n";
    let builder = Node::with(Server::Longshore).config(config);
    // The file is read at the start, when the folder is there already.
    let node = builder.before(|place| {
        let default = std::process::Command::new("runc").arg("spec").current_dir(place.folder()).status();
        assert!(default.expect("runc runs").success());
        let path = place.path("config.json");
        let mut base: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).expect("a spec")).expect("JSON");
        base["process"]["env"] = json!(["BASE=1", "OWN=base"]);
        base["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 77, "soft": 77}]);
        let mounts = base["mounts"].as_array_mut().expect("mounts");
        // Every container gets one anyway.
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
        mounts.push(
            json!({"destination": "/extra", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}),
        );
        std::fs::write(place.path("base.json"), base.to_string()).expect("written");
        std::fs::remove_file(path).expect("removed");
    });
    let node = node.start().await;
    let pod = node.pod("based").handler("based").run().await.expect("a pod");
    let container = pod.container("c").forever().env("OWN", "mine").run().await.expect("a container");
    assert_eq!(container.sh("echo $BASE $OWN; ulimit -n").await, "1 mine\n77");
    assert_eq!(container.sh("stat -f -c %T /extra").await, "tmpfs");
    assert_eq!(container.sh("cat /etc/hostname").await, "based");
    assert!(pod.info().await["runtimeSpec"]["process"]["rlimits"].is_null());
    node.remove_all().await;
    node.finish().await;
}

/// SBX-12.
#[tokio::test]
async fn an_untrusted_pod_has_its_handler_and_nothing_of_the_host() {
    let config = "[runtime.handlers.untrusted.options]\nRoot = \"{folder}/untrusted\"\n";
    let node = Node::with(Server::Longshore).config(config).start().await;
    let asked = || node.pod("untrusted").annotations([("io.kubernetes.cri.untrusted-workload", "true")]);
    let pod = asked().run().await.expect("a pod");
    assert!(node.place().path("untrusted").join("k8s.io").is_dir());
    pod.remove().await.expect("removed");
    for change in [
        (|options| options.pid = NamespaceMode::Node as i32)
            as fn(&mut longshore::proto::cri::NamespaceOption),
        |options| options.ipc = NamespaceMode::Node as i32,
        |options| options.network = NamespaceMode::Node as i32,
    ] {
        let pod = asked()
            .hostname("")
            .security(|security| change(security.namespace_options.get_or_insert_default()));
        let error = pod.run().await.expect_err("a namespace of the host");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    let error = asked().handler("runc").run().await.expect_err("another handler");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    node.remove_all().await;
    node.finish().await;
}

/// OCI-35.
#[tokio::test]
async fn mount_options_are_in_force() {
    let node = Node::with(Server::Longshore).start().await;
    let features = node.status(false).await.expect("a status").features.expect("features");
    assert!(features.mount_options);
    let folder = node.place().path("data");
    std::fs::create_dir_all(&folder).expect("made");
    script(&folder, "run", "#!/bin/sh\necho it runs\n");
    let image = node.ensure_image(images::BUSYBOX).await.expect("an image");
    let bind = |options: &[&str]| Mount {
        host_path: folder.display().to_string(),
        container_path: "/data".into(),
        mount_options: options.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let volume = Mount { mount_options: vec!["noexec".into()], ..image_mount(&image, "/image") };
    let pod = node.pod("options").run().await.expect("a pod");
    let plain = pod.container("plain").forever().mount_as(bind(&[])).run().await.expect("a container");
    assert_eq!(plain.sh("/data/run").await, "it runs");
    let asked = bind(&["noexec", "nosuid", "nodev"]);
    let container =
        pod.container("c").forever().mount_as(asked).mount_as(volume).run().await.expect("a container");
    for program in ["/data/run", "/image/bin/busybox"] {
        let refused = container.exec(["/bin/sh", "-c", program]).await.expect("it runs");
        assert_eq!(refused.exit_code, 126, "{program}: {refused:?}");
    }
    assert_eq!(container.sh("echo x >/data/new; cat /data/new").await, "x");
    let mounts = container.sh("grep -w /data /proc/mounts").await;
    for option in ["noexec", "nosuid", "nodev"] {
        assert!(mounts.contains(option), "{mounts}");
    }
    let error =
        pod.container("wrong").mount_as(bind(&["noexec", "sync"])).create().await.expect_err("not known");
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("\"sync\""), "{error}");
    node.remove_all().await;
    node.finish().await;
}

/// OCI-45: with the limits of the first disk that there is.
#[tokio::test]
async fn block_io_classes_are_in_force() {
    let Some((name, numbers)) = disk() else {
        eprintln!("skipped: there is no disk");
        return;
    };
    let config = "[container]\nblockio_config_file = \"{folder}/blockio.yaml\"\n";
    let node = Node::with(Server::Longshore).config(config).before(move |place| {
        // The glob also matches partitions, of which the kernel knows no limits.
        let (begin, end) = name.split_at(name.len() - 1);
        let text = format!(
            "Classes:\n  slow:\n  - Devices: [\"/dev/{begin}[{end}]\"]\n    ThrottleReadBps: 1Mi\n    ThrottleWriteIOPS: 2k\n"
        );
        std::fs::write(place.path("blockio.yaml"), text).expect("written");
    });
    let node = node.start().await;
    let pod = node.pod("slow").annotations([("blockio.resources.beta.kubernetes.io/container.c", "slow")]);
    let pod = pod.run().await.expect("a pod");
    let limits_of = async |container: &crate::harness::Container| {
        let pid = container.info().await["pid"].as_u64().expect("it runs");
        let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process");
        let (v1, v2) = ("blkio.throttle.read_bps_device", "io.max");
        let path = |names: &str| {
            lines.lines().find_map(|line| line.split_once(names).map(|(_, path)| path.to_owned()))
        };
        let file = match path(":blkio:") {
            Some(path) => format!("/sys/fs/cgroup/blkio{path}/{v1}"),
            None => format!("/sys/fs/cgroup{}/{v2}", path("0::").expect("a cgroup")),
        };
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"))
    };
    let container = pod.container("c").forever().run().await.expect("a container");
    let limits = limits_of(&container).await;
    assert!(limits.contains(&numbers) && limits.contains("1048576"), "{limits}");
    let other = pod.container("d").forever().run().await.expect("a container");
    assert!(!limits_of(&other).await.contains("1048576"));
    let own = |class: &str| {
        let class = class.to_owned();
        pod.container("e")
            .config(|config| drop(config.annotations.insert("io.kubernetes.cri.blockio-class".into(), class)))
    };
    let error = own("fast").create().await.expect_err("no such class");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    let spec = own("slow").create().await.expect("a container").info().await["runtimeSpec"].clone();
    let throttle = &spec["linux"]["resources"]["blockIO"]["throttleWriteIOPSDevice"];
    assert_eq!(throttle[0]["rate"], 2000, "{spec}");
    node.remove_all().await;
    node.finish().await;
}

/// OCI-45.
#[tokio::test]
async fn classes_are_refused_or_ignored_where_there_are_none() {
    let annotated = |node: &Node| {
        node.pod("classes").annotations([
            ("blockio.resources.beta.kubernetes.io/pod", "slow"),
            ("rdt.resources.beta.kubernetes.io/pod", "no-such-class"),
        ])
    };
    let node = Node::with(Server::Longshore).start().await;
    let pod = annotated(&node).run().await.expect("a pod");
    let error = pod.container("c").create().await.expect_err("no classes");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("block I/O class \"slow\""), "{error}");
    node.remove_all().await;
    node.finish().await;
    if Path::new("/sys/fs/resctrl/tasks").exists() {
        return;
    }
    let config =
        "[container]\nignore_blockio_not_enabled_errors = true\nignore_rdt_not_enabled_errors = true\n";
    let node = Node::with(Server::Longshore).config(config).start().await;
    let pod = annotated(&node).run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    assert_eq!(container.status().await.expect("a status").state(), ContainerState::ContainerRunning);
    node.remove_all().await;
    node.finish().await;
}

/// SBX-57: over restarts of the server.
#[tokio::test]
async fn resources_of_a_pod_survive_a_restart() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("kept").run().await.expect("a pod");
    let request = longshore::proto::cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        overhead: None,
        resources: Some(longshore::proto::cri::LinuxContainerResources {
            cpu_shares: 300,
            ..Default::default()
        }),
    };
    node.runtime().update_pod_sandbox_resources(request).await.expect("updated");
    node.longshore().kill().await;
    node.longshore().start().await;
    wait_until("the pod", async || pod.status().await.is_ok()).await;
    let info = pod.info().await;
    assert_eq!(info["resources"]["linux"]["cpu_shares"], 300);
    assert_eq!(info["overhead"], json!({}));
    node.remove_all().await;
    node.finish().await;
}

/// The name of a disk with a node, and its numbers.
fn disk() -> Option<(String, String)> {
    let disks = std::fs::read_dir("/sys/block").ok()?.flatten();
    let mut names: Vec<String> = disks.map(|disk| disk.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names.into_iter().find_map(|name| {
        let of = |file: &str| std::fs::read_to_string(format!("/sys/block/{name}/{file}")).ok();
        let has_size = of("size")?.trim() != "0";
        let is_real =
            Path::new("/dev").join(&name).exists() && !name.starts_with("loop") && !name.starts_with("zram");
        let numbers = of("dev")?.trim().to_owned();
        (has_size && is_real).then_some((name, numbers))
    })
}
