//! A request with everything else that decides a spec, and its translation.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use longshore::config::{Config, Handler, Overrides};
use longshore::error::Result;
use longshore::proto::cri::{ContainerConfig, PodSandboxConfig};
use longshore::spec::selinux::Policy;
use longshore::spec::{
    Accounts, ContainerInput, Features, Host, HostDevice, HostMount, ImageConfig, LocalProfile, Modes,
    PauseInput, Spec, annotations, gather, mounts, pause_seccomp, security,
};
use longshore::sys::apparmor::Support;
use serde_json::Value;

use crate::random::Random;
use crate::world::World;

/// Everything that decides two specs.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) pod: PodSandboxConfig,
    pub(crate) config: ContainerConfig,
    pub(crate) image: ImageConfig,
    pub(crate) accounts: (Vec<u8>, Vec<u8>),
    pub(crate) host: Host,
    pub(crate) features: Features,
    pub(crate) base_spec: Option<Value>,
    /// Whether a mount of the host is shared, or a slave.
    pub(crate) shared: (bool, bool),
    pub(crate) profile: String,
}

/// What came of it.
pub(crate) struct Specs {
    pub(crate) pause: Result<Spec>,
    pub(crate) container: Result<Spec>,
}

/// A world that is nowhere: the pure layer looks at no file.
pub(crate) fn world() -> World {
    let images = ["plain", "rich", "web"].map(|name| format!("registry.test/{name}:1"));
    World { folder: "/host".into(), images: images.into(), cgroup: "/parent".into(), has_options: false }
}

impl Case {
    /// Chosen by `random`.
    pub(crate) fn generate(random: &mut Random) -> Case {
        let world = world();
        let pod = crate::pods::pod(random, &world, 1).config.unwrap_or_default();
        let has_target = random.chance(50);
        let config = crate::containers::container(random, &world, &pod, 1, has_target);
        let list = |random: &mut Random, words: &[&str]| random.some(4, |random| random.word(words));
        let image = ImageConfig {
            user: random.word(&["", "web", "33", "33:34", "web:staff", "a:b:c", ":7", "web:", "-1"]),
            env: list(random, &["PATH=/image", "A=image", "A=again", "NO", "=", "", "HOSTNAME=x"]),
            entrypoint: list(random, &["/e", "", "a b"]),
            cmd: list(random, &["/c", "", "ünï"]),
            volumes: list(random, &["/v", "rel", "/proc", "/dev", "", "/a/../v", "/etc/hosts"]),
            working_dir: random.word(&["", "/w", "rel"]),
            stop_signal: random.word(&["", "15", "SIGRTMIN+3", "nonsense"]),
            ..ImageConfig::default()
        };
        let passwd = "root:x:0:0::/:\nweb:x:33:34::/:\nbroken:x:abc:0\n:x:0:0\nbig:x:4294967296:0\n";
        let group = "root:x:0:\nstaff:x:50:web\nwheel:x:10:root,web\nbad:x:y:web\n";
        let accounts =
            if random.chance(80) { (passwd.into(), group.into()) } else { (Vec::new(), Vec::new()) };
        let host = Host {
            cgroup_v2: random.chance(50),
            capabilities: random.pick(&[(1 << 41) - 1, (1 << 12) | 1, 0, u64::MAX]),
            seccomp: random.chance(90),
            apparmor: random.pick(&[Support::Absent, Support::Absent, Support::InForce, Support::NoParser]),
            apparmor_profiles: list(random, &["cri-containerd.apparmor.d", "/host/profiles/good.json"]),
            selinux: random.maybe(10, |_| {
                Policy::parse("process = \"system_u:system_r:container_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"")
            }),
            kernel: random.pick(&[(6, 1), (4, 7), (0, 0)]),
            hostname: "node".into(),
            user_namespaces: random.chance(80),
            swap_controller: random.chance(50),
            cgroup_mount_options: list(random, &["nsdelegate"]),
            hugetlb_controller: random.chance(50),
            oom_score_adj: random.pick(&[0, -999, 1000]),
            restrict_oom_score_adj: random.chance(50),
        };
        Case {
            pod,
            config,
            image,
            accounts,
            host,
            features: Features {
                recursive_read_only: random.chance(70),
                user_namespaces: random.chance(70),
                id_mapped_mounts: random.chance(70),
                net_devices: random.chance(50),
            },
            base_spec: random.maybe(25, |_| base_spec()),
            shared: (random.chance(70), random.chance(50)),
            profile: random.word(&[
                "{\"defaultAction\":\"SCMP_ACT_ALLOW\"}",
                "{\"defaultAction\":\"SCMP_ACT_ALLOW\"}",
                "[]",
                "",
            ]),
        }
    }

    /// The default handler, with the base spec.
    pub(crate) fn handler(&self) -> Handler {
        static CONFIG: LazyLock<Config> =
            LazyLock::new(|| Config::load(None, &Overrides::default()).expect("the defaults"));
        Handler { base_spec: self.base_spec.clone(), ..CONFIG.default_handler().clone() }
    }

    /// Checks and translates, as the verbs do, with facts instead of the host.
    pub(crate) fn translate(&self) -> Specs {
        let accounts = Accounts::parse(&self.accounts.0, &self.accounts.1);
        let handler = self.handler();
        Specs { pause: self.pause(&handler, &accounts), container: self.container(&handler, &accounts) }
    }

    fn pause(&self, handler: &Handler, accounts: &Accounts) -> Result<Spec> {
        let modes = Modes::of_pod(&self.pod)?;
        modes.require_startable(&handler.name, self.features)?;
        let profile = self.local(&pause_seccomp(&self.pod, "")?);
        let image = ImageConfig { entrypoint: vec!["/pause".into()], ..ImageConfig::default() };
        let files = paths().pause_files(&ID.to_owned().into(), &self.pod);
        longshore::spec::pause(&PauseInput {
            id: ID,
            pod: &self.pod,
            netns: (!modes.host_network()).then_some(Path::new("/run/netns/x")),
            user_namespace: modes.user.map(|_| Path::new("/run/userns/x")),
            image: (&image, "pause"),
            accounts,
            handler,
            namespace: "k8s.io",
            host: &self.host,
            files: &files,
            seccomp: profile.as_ref(),
            unprivileged: (true, true),
            unset_seccomp: "",
        })
    }

    fn container(&self, handler: &Handler, accounts: &Accounts) -> Result<Spec> {
        Modes::of_container(&self.pod, &self.config)?;
        mounts::check(&self.config.mounts, self.features)?;
        longshore::spec::process::stop_signal(&self.config, &self.image)?;
        let options = longshore::config::file::ContainerSection::default();
        let gathered = self.gathered(&options)?;
        let is_target = longshore::spec::pid_target(&self.config).is_some();
        longshore::spec::container(&ContainerInput {
            id: ID,
            config: &self.config,
            pod_id: POD_ID,
            pod: &self.pod,
            pause_pid: PAUSE_PID,
            target_pid: is_target.then_some(9),
            image: (&self.image, annotations::image_name(&self.config, "image")),
            accounts,
            handler,
            namespace: "k8s.io",
            features: self.features,
            host: &self.host,
            files: &paths().pod_files(&POD_ID.to_owned().into(), &self.pod, &self.config),
            gathered: &gathered,
            options: &options,
        })
    }

    /// What gathering would find on a host where every path is there.
    pub(crate) fn gathered(
        &self,
        options: &longshore::config::file::ContainerSection,
    ) -> Result<gather::Gathered> {
        let mount = |mount: &longshore::proto::cri::Mount| HostMount {
            source: if mount.image.is_some() { "/image".into() } else { mount.host_path.clone().into() },
            mount_point: "/".into(),
            shared: self.shared.0,
            slave: self.shared.1,
        };
        let mut devices = Vec::new();
        for given in &self.config.devices {
            longshore::spec::devices::check_permissions(&given.permissions, &given.host_path)?;
            let path = if given.container_path.is_empty() { &given.host_path } else { &given.container_path };
            devices.push(device(path, &given.permissions));
        }
        let context = self.config.linux.clone().unwrap_or_default().security_context.unwrap_or_default();
        #[allow(deprecated)] // the text form is still understood
        let profile = gather::seccomp_profile(&context, &context.seccomp_profile_path, options)?;
        Ok(gather::Gathered {
            mounts: self.config.mounts.iter().map(mount).collect(),
            volumes: self
                .image
                .volumes
                .iter()
                .map(|target| (PathBuf::from("/volume"), target.clone()))
                .collect(),
            devices,
            host_devices: if context.privileged { vec![device("/dev/host", "rwm")] } else { Vec::new() },
            seccomp: self.local(&profile),
            ..gather::Gathered::default()
        })
    }

    pub(crate) fn local(&self, profile: &security::Profile) -> Option<LocalProfile> {
        match profile {
            security::Profile::Localhost(path) => {
                Some(LocalProfile { path: path.clone(), text: self.profile.clone() })
            }
            _ => None,
        }
    }
}

pub(crate) const ID: &str = "0123456789abcdef";
pub(crate) const POD_ID: &str = "pod";
pub(crate) const PAUSE_PID: u32 = 4242;

/// Folders that are nowhere.
fn paths() -> longshore::state::Paths {
    longshore::state::Paths::new(Path::new("/r"), Path::new("/s"))
}

fn device(path: &str, permissions: &str) -> HostDevice {
    HostDevice {
        path: path.to_owned(),
        kind: 'c',
        major: 1,
        minor: 3,
        mode: 0o666,
        uid: 0,
        gid: 0,
        permissions: permissions.to_owned(),
    }
}

fn base_spec() -> Value {
    serde_json::json!({
        "process": {
            "user": { "uid": 5, "gid": 6 },
            "capabilities": { "bounding": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1, "soft": 1 }],
            "env": ["BASE=1"],
        },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }, { "destination": "/run", "type": "tmpfs" }],
        "linux": { "maskedPaths": ["/base"], "resources": { "devices": [{ "allow": false, "access": "rwm" }] } },
        "unknown": { "kept": [1, 2] },
    })
}
