//! longshore as the service of deploy/longshore.service.

use std::path::PathBuf;
use std::process::Command;

use super::cgroup_of;
use crate::harness::{Longshore, Node, Server, wait_until};

/// The unit as it is delivered, with the program and the configuration of a test.
struct Service {
    name: String,
    unit: PathBuf,
}

fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl").args(arguments).output().expect("systemd");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    assert!(output.status.success(), "systemctl {arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

impl Service {
    fn new(node: &Node) -> Service {
        let delivered = include_str!("../../../deploy/longshore.service");
        let command = "/usr/local/bin/longshore serve --config /etc/longshore/longshore.toml";
        let own =
            format!("{} serve --config {}", Longshore::program(), node.longshore().config_file().display());
        let text = delivered.replace(command, &own);
        assert_ne!(text, delivered);
        // It is not this machine's containerd that it belongs to.
        let text = text.replace("Wants=network-online.target containerd.service\n", "");
        let name = format!("{}.service", node.place().name());
        let unit = PathBuf::from("/run/systemd/system").join(&name);
        std::fs::write(&unit, text).expect("a unit");
        systemctl(&["daemon-reload"]);
        Service { name, unit }
    }

    fn pid(&self) -> u64 {
        systemctl(&["show", "--value", "--property", "MainPID", &self.name]).parse().expect("a number")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = Command::new("systemctl").args(["stop", &self.name]).status();
        let _ = std::fs::remove_file(&self.unit);
        let _ = Command::new("systemctl").arg("daemon-reload").status();
    }
}

/// The keeper of logs and the containers are in no cgroup that ends with the server.
#[tokio::test]
#[ignore = "needs cgroup v2, systemd and AppArmor: make test-vm"]
async fn pods_and_the_keeper_outlive_a_restart_of_the_service() {
    let node = Node::with(Server::Longshore).start().await;
    // Writes the configuration; the service is the server from here on.
    node.longshore().terminate().await;
    let service = Service::new(&node);
    systemctl(&["start", &service.name]);
    node.wait_until_network_ready().await;
    let pod = node.pod("service").run().await.expect("a pod");
    let script = "trap 'exit 0' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 1; done";
    let container = pod.container("c").sh(script).run().await.expect("a container");
    container.wait_log("line 1").await;

    let (server, keeper) = (service.pid(), node.longshore().keeper_pid());
    let own = cgroup_of(server);
    assert_eq!(cgroup_of(keeper.into()), own.join("keeper"));
    assert!(!cgroup_of(super::pid(&container).await).starts_with(&own));
    systemctl(&["restart", &service.name]);
    assert_ne!(service.pid(), server);
    assert_eq!(node.longshore().keeper_pid(), keeper);
    let before = container.log().await.lines().count();
    wait_until("further lines", async || container.log().await.lines().count() > before + 1).await;
    let texts: Vec<String> =
        container.log_entries().await.iter().map(crate::harness::LogEntry::text).collect();
    let wanted: Vec<String> = (1..=texts.len()).map(|number| format!("line {number}")).collect();
    assert_eq!(texts, wanted, "none is lost, none is twice");

    node.remove_all().await;
    systemctl(&["stop", &service.name]);
    drop(service);
    node.longshore().start().await;
    node.finish().await;
}
