//! AppArmor profiles, as the kernel holds containers to them (OCI-19).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use longshore::proto::cri::LinuxContainerSecurityContext;
use longshore::proto::cri::SecurityProfile;
use longshore::proto::cri::security_profile::ProfileType;
use tonic::Code;

use crate::harness::{Container, ContainerBuilder, Node, Pod, Server};

const DEFAULT: &str = "cri-containerd.apparmor.d";
const PARSER: &str = "/sbin/apparmor_parser";

fn is_loaded(profile: &str) -> bool {
    let all = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").expect("AppArmor");
    all.lines().any(|line| line.starts_with(&format!("{profile} (")))
}

fn parser(option: &str, text: &str) {
    let mut child = Command::new(PARSER).args([option, "--skip-cache"]).stdin(Stdio::piped()).spawn();
    let child = child.as_mut().expect("apparmor_parser is installed");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success(), "{text}");
}

/// Takes the default profile away, as a node has it after a boot.
fn forget_default() {
    if is_loaded(DEFAULT) {
        parser("--remove", &format!("profile {DEFAULT} {{ }}\n"));
    }
}

/// A profile of the node's owner, which keeps containers from writing below /guarded.
struct Own(String);

impl Own {
    fn load(node: &Node) -> Own {
        let name = format!("test-{}", node.place().name());
        let text = format!(
            "profile {name} flags=(attach_disconnected) {{\n  capability,\n  file,\n  network,\n  signal,\n  \
             deny /guarded/** w,\n}}\n"
        );
        parser("--replace", &text);
        Own(name)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        parser("--remove", &format!("profile {} {{ }}\n", self.0));
    }
}

/// A file of the node that is not there for a while.
struct Hidden(PathBuf);

impl Hidden {
    fn hide(path: &str) -> Hidden {
        let path = Path::new(path).canonicalize().expect("it is there");
        std::fs::rename(&path, path.with_extension("hidden")).expect("renamed");
        Hidden(path)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = std::fs::rename(self.0.with_extension("hidden"), &self.0);
    }
}

fn profile(kind: ProfileType, reference: &str) -> impl FnOnce(&mut LinuxContainerSecurityContext) {
    let profile = SecurityProfile { profile_type: kind as i32, localhost_ref: reference.to_owned() };
    move |security| security.apparmor = Some(profile)
}

fn with(pod: &Pod, name: &str, kind: ProfileType, reference: &str) -> ContainerBuilder {
    pod.container(name).forever().security(profile(kind, reference))
}

/// The profile that the kernel has a container's first process under.
async fn confinement(container: &Container) -> String {
    let pid = super::pid(container).await;
    let text = std::fs::read_to_string(format!("/proc/{pid}/attr/current")).expect("AppArmor");
    text.trim_end().to_owned()
}

/// Whether nothing holds a container: it then has the profile that its runtime left it, in
/// which all is allowed, or none.
async fn is_unconfined(container: &Container) -> bool {
    let found = confinement(container).await;
    found == "unconfined" || found.ends_with(" (unconfined)")
}

/// Whether a shell script fails inside, for lack of a permission.
async fn is_refused(container: &Container, script: &str) -> bool {
    let done = container.exec(["/bin/sh", "-c", script]).await.expect("it runs");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.exit_code == 0 || said.contains("ermission denied"), "{script}: {said}");
    done.exit_code != 0
}

#[tokio::test]
#[ignore = "needs cgroup v2, systemd and AppArmor: make test-vm"]
async fn the_default_profile_is_loaded_for_who_asks_for_none() {
    forget_default();
    let node = Node::start().await;
    let pod = node.pod("default").run().await.expect("a pod");
    assert!(!is_loaded(DEFAULT), "pause needs none");
    // At once: one of them loads it.
    let (unset, asked) = tokio::join!(
        pod.container("unset").forever().run(),
        with(&pod, "asked", ProfileType::RuntimeDefault, "").run(),
    );
    let (unset, asked) = (unset.expect("a container"), asked.expect("a container"));
    assert!(is_loaded(DEFAULT));
    for container in [&unset, &asked] {
        assert_eq!(confinement(container).await, format!("{DEFAULT} (enforce)"));
        assert_eq!(container.sh("cat /proc/self/attr/current").await, format!("{DEFAULT} (enforce)"));
    }
    let open = with(&pod, "open", ProfileType::Unconfined, "").run().await.expect("a container");
    assert!(is_unconfined(&open).await);
    if !node.is_built_in() {
        assert_eq!(node.longshore().log().matches("AppArmor profile loaded").count(), 1);
    }
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
#[ignore = "needs cgroup v2, systemd and AppArmor: make test-vm"]
async fn the_default_profile_keeps_from_the_kernels_files_and_from_mounting() {
    let node = Node::start().await;
    let pod = node.pod("held").run().await.expect("a pod");
    let all = |security: &mut LinuxContainerSecurityContext| {
        let capabilities = security.capabilities.get_or_insert_default();
        capabilities.add_capabilities = vec!["ALL".into()];
    };
    let held = pod.container("held").forever().security(all).run().await.expect("a container");
    let free =
        with(&pod, "free", ProfileType::Unconfined, "").security(all).run().await.expect("a container");
    // Each is what root may with all capabilities, and nothing else hides here.
    for script in [
        "mount -t tmpfs none /root",
        "cat /proc/sys/kernel/sysrq > /tmp/old && cat /tmp/old > /proc/sys/kernel/sysrq",
        "cat /proc/sys/vm/swappiness > /tmp/old && cat /tmp/old > /proc/sys/vm/swappiness",
        "cat /proc/irq/default_smp_affinity > /tmp/old && cat /tmp/old > /proc/irq/default_smp_affinity",
        "head -c 1 /proc/kcore > /dev/null",
        "ls /sys/firmware/acpi",
    ] {
        assert!(!is_refused(&free, script).await, "free: {script}");
        assert!(is_refused(&held, script).await, "held: {script}");
    }
    // What containers need.
    for script in [
        "cat /proc/sys/kernel/shm_rmid_forced > /tmp/old && cat /tmp/old > /proc/sys/kernel/shm_rmid_forced",
        "echo 100 > /proc/self/oom_score_adj && cat /proc/1/environ > /dev/null",
        "cat /sys/fs/cgroup/memory.current /proc/meminfo /proc/sys/kernel/osrelease",
        "sleep 1000 & kill $! && umount /dev/mqueue",
        "touch /etc/new && chown 1:1 /etc/new && mknod /tmp/null c 1 3 && ping -c 1 127.0.0.1",
    ] {
        assert!(!is_refused(&held, script).await, "{script}");
    }
    // The runtime's signals arrive.
    held.stop(100).await.expect("stopped");
    assert_eq!(held.status().await.expect("a status").exit_code, 0);
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
#[ignore = "needs cgroup v2, systemd and AppArmor: make test-vm"]
async fn a_profile_of_the_node_is_in_force_and_outlives_the_server() {
    let node = Node::with(Server::Longshore).start().await;
    let own = Own::load(&node);
    let name = own.0.as_str();
    let pod = node.pod("own").run().await.expect("a pod");
    let given = with(&pod, "given", ProfileType::Localhost, name);
    let prefixed = with(&pod, "prefixed", ProfileType::Localhost, &format!("localhost/{name}"));
    let text = format!("localhost/{name}");
    #[allow(deprecated)]
    let old = pod.container("old").forever().security(|security| security.apparmor_profile = text);
    let mut containers = Vec::new();
    for container in [given, prefixed, old] {
        let container = container.run().await.expect("a container");
        assert_eq!(confinement(&container).await, format!("{name} (enforce)"));
        container.sh("mkdir /guarded && touch /elsewhere").await;
        assert!(is_refused(&container, "touch /guarded/x").await);
        containers.push(container);
    }
    node.longshore().kill().await;
    forget_default();
    node.longshore().start().await;
    assert!(is_refused(&containers[0], "touch /guarded/x").await, "an exec after the restart");
    let after = with(&pod, "after", ProfileType::Localhost, name).run().await.expect("a container");
    assert_eq!(confinement(&after).await, format!("{name} (enforce)"));
    let default = pod.container("default").forever().run().await.expect("a container");
    assert_eq!(confinement(&default).await, format!("{DEFAULT} (enforce)"));
    node.remove_all().await;
    node.finish().await;
}

/// OCI-16: none by default, but one that is asked for.
#[tokio::test]
#[ignore = "needs cgroup v2, systemd and AppArmor: make test-vm"]
async fn a_privileged_container_has_a_profile_only_where_it_names_one() {
    let node = Node::start().await;
    let own = Own::load(&node);
    let pod = node.pod("privileged").security(|security| security.privileged = true).run().await;
    let pod = pod.expect("a pod");
    let privileged = |security: &mut LinuxContainerSecurityContext| security.privileged = true;
    let plain = pod.container("plain").forever().security(privileged).run().await.expect("a container");
    assert!(is_unconfined(&plain).await);
    let asked = with(&pod, "asked", ProfileType::RuntimeDefault, "").security(privileged).run().await;
    assert!(is_unconfined(&asked.expect("a container")).await);
    let named = with(&pod, "named", ProfileType::Localhost, &own.0).security(privileged).run().await;
    assert_eq!(confinement(&named.expect("a container")).await, format!("{} (enforce)", own.0));
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
#[ignore = "needs cgroup v2, systemd and AppArmor: make test-vm"]
async fn what_cannot_be_in_force_is_refused() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("refused").run().await.expect("a pod");
    let refused = async |name: &str, kind: ProfileType, reference: &str, reason: &str| {
        let error = with(&pod, name, kind, reference).create().await.expect_err(reason);
        assert!(error.message().contains(reason), "{error}");
        error.code()
    };
    let code = refused("a", ProfileType::Localhost, "not-there", "\"not-there\" is not loaded").await;
    assert_eq!(code, Code::FailedPrecondition);
    let code = refused("b", ProfileType::RuntimeDefault, "x", "only for Localhost").await;
    assert_eq!(code, Code::InvalidArgument);
    refused("c", ProfileType::Localhost, "", "needs a localhost_ref").await;
    assert!(node.containers().await.expect("a list").is_empty());

    // Without the parser nothing is loaded, and the node does as if it had no AppArmor.
    let hidden = Hidden::hide(PARSER);
    refused("d", ProfileType::RuntimeDefault, "", "install the package apparmor").await;
    refused("e", ProfileType::Localhost, "not-there", "install the package apparmor").await;
    let unset = pod.container("f").forever().run().await.expect("a container");
    assert!(is_unconfined(&unset).await);
    drop(hidden);
    let asked = with(&pod, "g", ProfileType::RuntimeDefault, "").run().await.expect("a container");
    assert_eq!(confinement(&asked).await, format!("{DEFAULT} (enforce)"));
    node.remove_all().await;
    node.finish().await;

    let node = Node::with(Server::Longshore).config("[container]\ndisable_apparmor = true\n").start().await;
    let pod = node.pod("disabled").run().await.expect("a pod");
    let error = with(&pod, "a", ProfileType::RuntimeDefault, "").create().await.expect_err("it is disabled");
    assert!(error.message().contains("disable_apparmor"), "{error}");
    let unset = pod.container("b").forever().run().await.expect("a container");
    assert!(is_unconfined(&unset).await);
    node.remove_all().await;
    node.finish().await;
}
