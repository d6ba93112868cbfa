//! The whole module with real plugins (bridge, host-local, portmap, loopback) and with a
//! shell script that records what it is told and does what files beside it say.

mod attach;
mod node;
mod remove;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::error::Kind;
use crate::flow::Stage;
use crate::ids::random_hex;
use crate::proto::cri::{PodSandboxMetadata, PortMapping};
use crate::sys::netns::testing::on_own_host;

/// Where distributions put the plugins.
const PLUGIN_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// Logs each call, keeps what it was told, fails or prints as files beside it say.
const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*} call=${0##*/}.$CNI_COMMAND
echo "$call $CNI_IFNAME" >> "$dir/log"
env | grep ^CNI_ | sort > "$dir/$call.env"
cat > "$dir/$call.stdin"
if [ -e "$dir/$call.fail" ]; then cat "$dir/$call.fail"; exit 1; fi
while [ -e "$dir/$call.hang" ]; do sleep 0.02; done
if [ -e "$dir/$call.out" ]; then cat "$dir/$call.out"; fi
"#;

struct Scene {
    folder: tempfile::TempDir,
    network: Network,
    loopback: Loopback,
}

impl Scene {
    fn new(configurations: &[(&str, Value)]) -> Scene {
        Scene::with("", configurations)
    }

    /// `settings` go into `[cni]`, and what follows another section's head below it.
    fn with(settings: &str, configurations: &[(&str, Value)]) -> Scene {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["net.d", "bin"] {
            std::fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        for (name, configuration) in configurations {
            std::fs::write(folder.path().join("net.d").join(name), configuration.to_string())
                .expect("written");
        }
        let path = folder.path().display();
        let text = format!(
            "[cni]\nconf_dir = \"{path}/net.d\"\nbin_dirs = [\"{path}/bin\", \"{}\", \"{}\"]\n\
             cache_dir = \"{path}/cache\"\nnetns_dir = \"/run/netns\"\n{settings}\n",
            PLUGIN_DIRS[0], PLUGIN_DIRS[1],
        );
        std::fs::write(folder.path().join("config.toml"), text).expect("written");
        let config = load(folder.path());
        Scene { network: Network::new(&config), loopback: config.loopback, folder }
    }

    /// The same as after a restart of the server.
    fn restart(&mut self) {
        self.network = Network::new(&load(self.folder.path()));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, name: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path("bin").join(name);
        std::fs::write(&path, SCRIPT).expect("written");
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("executable");
    }

    /// Has the scripts do something: `fake.ADD.out`, `fake.DEL.fail`, …
    fn order(&self, name: &str, text: &str) {
        std::fs::write(self.path("bin").join(name), text).expect("written");
    }

    fn told(&self, name: &str) -> Value {
        let text = std::fs::read(self.path("bin").join(name)).expect("the script was called");
        serde_json::from_slice(&text).expect("JSON")
    }

    fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.path("bin/log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    fn entries(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(folder)) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }

    /// Addresses that host-local has given away in network `name`.
    fn leases(&self, name: &str) -> Vec<String> {
        let mut names = self.entries(&format!("ipam/{name}"));
        names.retain(|name| name.parse::<std::net::IpAddr>().is_ok());
        names
    }

    /// A bridge network with real plugins and `more` of them behind.
    fn bridge(folder: &Path, name: &str, more: Value) -> Value {
        let subnet = if name == "second" { "10.67.0.0/24" } else { "10.66.0.0/24" };
        let bridge = json!({
            "type": "bridge", "bridge": format!("br-{name}"), "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": folder.join("ipam"),
                "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        });
        let mut plugins = vec![bridge];
        plugins.extend(more.as_array().expect("a list").iter().cloned());
        json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins})
    }

    fn configure(&self, file: &str, configuration: &Value) {
        std::fs::write(self.path("net.d").join(file), configuration.to_string()).expect("written");
        self.network.reload();
    }

    /// A scene whose only network is a bridge followed by `more`.
    fn bridged(settings: &str, more: Value) -> Scene {
        let scene = Scene::with(settings, &[]);
        scene.configure("10-net.conflist", &Scene::bridge(scene.folder.path(), "first", more));
        scene
    }

    async fn pod(&self) -> PodNetwork {
        let path = netns::new_path(Path::new("/run/netns"));
        netns::create(&path, self.loopback).await.expect("a namespace");
        let metadata = PodSandboxMetadata {
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
            uid: "u1".to_owned(),
            attempt: 0,
        };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            ..Default::default()
        };
        PodNetwork {
            id: random_hex::<32>(),
            handler: String::new(),
            netns: Some(path),
            config: Arc::new(config),
        }
    }

    async fn attach(&self, pod: &PodNetwork) -> Result<Attachment> {
        self.network.attach(pod, &Stage::default()).await
    }

    async fn detached(&self, pod: &PodNetwork) {
        self.network.detach(pod).await.expect("detaches");
        assert_eq!(self.entries("cache/results"), Vec::<String>::new(), "the cache is empty");
    }
}

fn load(folder: &Path) -> Config {
    Config::load(Some(&folder.join("config.toml")), &Default::default()).expect("a valid configuration")
}

/// Runs `test` on a host of its own if it has the plugins.
fn with_plugins<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    if !PLUGIN_DIRS.iter().any(|directory| Path::new(directory).join("bridge").exists()) {
        eprintln!("skipped: no CNI plugins in {PLUGIN_DIRS:?}");
        return;
    }
    on_own_host(test);
}

fn interfaces() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").expect("the list of interfaces");
    text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

fn veths() -> usize {
    interfaces().iter().filter(|name| name.starts_with("veth")).count()
}

async fn interfaces_of(pod: &PodNetwork) -> Vec<String> {
    let path = pod.netns.as_deref().expect("a namespace");
    crate::sys::netns::within(path, || Ok(interfaces())).await.expect("the namespace")
}

fn ips(attachment: &Attachment) -> Vec<String> {
    attachment.ips.iter().map(ToString::to_string).collect()
}

fn fake(name: &str, version: &str) -> Value {
    let plugin = json!({"type": "fake", "capabilities": {"portMappings": true, "dns": true}});
    json!({"cniVersion": version, "name": name, "plugins": [plugin]})
}

fn result(version: &str, address: &str) -> String {
    json!({
        "cniVersion": version, "interfaces": [{"name": "eth0", "sandbox": "/ns"}],
        "ips": [{"address": address, "interface": 0}],
    })
    .to_string()
}
