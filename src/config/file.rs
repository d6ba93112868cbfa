//! The configuration file as it is typed: TOML, every key optional, unknown keys refused.
//!
//! The defaults stand in the `Default` impls here and nowhere else;
//! `deploy/longshore.toml` shows them with comments, and a test holds the two equal.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    /// The format of this file; 1.
    pub version: u32,
    /// Folder of what must survive a reboot (`<root>` of the built-in plugin's layout).
    pub root: PathBuf,
    /// Folder of what goes with a reboot (`<state>`).
    pub state: PathBuf,
    /// The CRI socket.
    pub server: Server,
    /// The containerd that does the work.
    pub containerd: ContainerdSection,
    /// Logs of the server itself.
    pub log: Log,
    /// Pod networks.
    pub cni: Cni,
    /// Pod sandboxes.
    pub sandbox: Sandbox,
    /// Containers.
    pub container: ContainerSection,
    /// exec, attach and port-forward.
    pub stream: Stream,
    /// Images.
    pub image: Image,
    /// The server's own metrics.
    pub metrics: Metrics,
    /// The page.
    pub page: Page,
    /// What was done for a call, for a collector of traces.
    pub traces: Traces,
    /// What was done for a call, for `longshore trace`.
    pub trace: Trace,
    /// OCI runtimes.
    pub runtime: Runtimes,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// The Unix socket of the CRI.
    pub listen: PathBuf,
    /// What Version says as `runtime_name`, the prefix of container ids in pod status (SVC-06).
    pub runtime_name: String,
    /// Seconds that running calls get to end after SIGTERM.
    pub shutdown_timeout_s: u64,
    /// Seconds between two comparisons of what is known with what there is; 0 means only at
    /// the start (REC-15).
    pub reconcile_period_s: u64,
    /// Ids of containerd's deprecation warnings that Status does not count (SVC-16).
    pub ignore_deprecation_warnings: Vec<String>,
}

/// `[containerd]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerdSection {
    /// containerd's gRPC socket.
    pub address: PathBuf,
    /// containerd's namespace.
    pub namespace: String,
    /// Seconds after which a containerd call without a limit of its own fails.
    pub call_timeout_s: u64,
    /// Start although the built-in CRI plugin is active in the same namespace.
    pub allow_builtin_cri: bool,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// error, warn, info, debug or trace.
    pub level: String,
    /// text or json.
    pub format: String,
}

/// `[cni]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cni {
    /// Folder of network configurations.
    pub conf_dir: PathBuf,
    /// Folders of plugin binaries, searched in order.
    pub bin_dirs: Vec<PathBuf>,
    /// How many configurations are used, in lexical order; 0 means all.
    pub max_conf_num: usize,
    /// libcni's cache folder.
    pub cache_dir: PathBuf,
    /// Where network namespaces are pinned.
    pub netns_dir: PathBuf,
    /// ipv4, ipv6 or cni: which address of several is the pod's first.
    pub ip_preference: String,
    /// Add the networks of one pod one after the other.
    pub serial: bool,
    /// internal: `lo` is brought up by longshore; plugin: by the loopback plugin.
    pub loopback: String,
    /// Template of the configuration that UpdateRuntimeConfig writes; empty means none.
    pub conf_template: String,
    /// Seconds after which a plugin is killed.
    pub timeout_s: u64,
    /// Call the plugins' GC (CNI 1.1) after start.
    pub gc: bool,
}

/// `[sandbox]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sandbox {
    /// Reference of the pause image; empty means the one built in.
    pub image: String,
    /// Pods may bind ports below 1024 without a capability (SBX-31).
    pub unprivileged_ports: bool,
    /// Pods without a user namespace may send ICMP echo without a capability (SBX-31).
    pub unprivileged_icmp: bool,
    /// yes, no or auto: never ask for an OOM score below the server's own. auto means
    /// yes exactly where the server lacks CAP_SYS_RESOURCE.
    pub restrict_oom_score_adj: String,
    /// Set the labels of SELinux, where it is in force (SBX-33).
    pub enable_selinux: bool,
    /// Categories that the levels of pods are made of: those below this number.
    pub selinux_category_range: u32,
    /// Bytes of a pod's /dev/shm.
    pub shm_bytes: u64,
    /// Seconds that making a pod's task may take.
    pub start_timeout_s: u64,
}

/// `[container]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerSection {
    /// The longest content of one log entry; 0 means no limit (LOG-04).
    pub log_line_bytes_max: usize,
    /// How many bytes of each stream of a container go into its log in a second; 0 means as
    /// many as come. A container that says more waits.
    pub log_bytes_per_second_max: u64,
    /// Bytes of each of stdout and stderr that ExecSync keeps (EXE-03).
    pub exec_sync_bytes_max: usize,
    /// Seconds that ExecSync and Exec wait for the end of output after the process ended (EXE-05).
    pub exec_drain_timeout_s: u64,
    /// Seconds that an exit waits for the end of output (CTR-46).
    pub exit_drain_timeout_s: u64,
    /// Leave out the volumes that images declare (CTR-08).
    pub ignore_image_volumes: bool,
    /// Containers may ask for devices by the Container Device Interface (OCI-41).
    pub enable_cdi: bool,
    /// Folders of CDI specs; a later one goes over an earlier one.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// YAML file of block I/O classes; empty means none (OCI-45).
    pub blockio_config_file: PathBuf,
    /// Pass over block I/O classes that are asked for where there are none.
    pub ignore_blockio_not_enabled_errors: bool,
    /// YAML file that says who may choose a class of RDT; empty means everybody (OCI-45).
    pub rdt_config_file: PathBuf,
    /// Pass over classes of RDT that are asked for where there are none.
    pub ignore_rdt_not_enabled_errors: bool,
    /// Seccomp profile where the kubelet gives none: empty (unconfined), RuntimeDefault or
    /// localhost/PATH (OCI-18).
    pub unset_seccomp_profile: String,
    /// As if the host had no AppArmor (OCI-19).
    pub disable_apparmor: bool,
    /// Masked and read-only paths are the base spec's, or the usual ones, whatever the
    /// kubelet says (OCI-17).
    pub disable_proc_mount: bool,
    /// Huge page limits are not set, also where the host could (OCI-43).
    pub disable_hugetlb_controller: bool,
    /// Tolerate missing cgroup controllers of resources asked for.
    pub tolerate_missing_hugetlb_controller: bool,
    /// Give a device node in a container the container's user and group.
    pub device_ownership_from_security_context: bool,
}

/// `[stream]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stream {
    /// Address of the server for exec, attach and port-forward (STM-01).
    pub address: String,
    /// Its port; 0 means any that is free.
    pub port: u16,
    /// Seconds without a byte after which a session ends (STM-05).
    pub idle_timeout_s: u64,
    /// Seconds that a client may take to open its streams (STM-05).
    pub creation_timeout_s: u64,
    /// PEM file of the certificate chain; empty, like the key: no TLS.
    pub tls_cert_file: PathBuf,
    /// PEM file of the key.
    pub tls_key_file: PathBuf,
    /// TLS with a certificate that is made at each start.
    pub tls_self_signed: bool,
}

/// `[image]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Image {
    /// auto, client or transfer: who pulls, longshore or containerd's Transfer service.
    pub puller: String,
    /// Folder of containerd's image verifiers, the bin_dir of its plugin: with something
    /// in it, auto means transfer (IMG-39).
    pub verifier_dir: PathBuf,
    /// Folders with one folder a registry, each with a hosts.toml.
    pub registry_config_dirs: Vec<PathBuf>,
    /// containerd's configuration, of which the registries are read; empty means none.
    pub containerd_config: PathBuf,
    /// The snapshotter of handlers that do not name one.
    pub snapshotter: String,
    /// Layers of one image that are fetched at the same time.
    pub max_concurrent_downloads: usize,
    /// Seconds without a byte after which a pull fails; 0 means never.
    pub pull_progress_timeout_s: u64,
    /// auto: longshore unpacks layers itself where it can; containerd: containerd always does.
    pub unpack: String,
    /// References that the kubelet must never collect, besides the pause image.
    pub pinned: Vec<String>,
}

/// `[metrics]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Where Prometheus reads them: `unix://PATH` or `IP:PORT`; empty means nowhere.
    pub address: String,
}

/// `[page]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Page {
    /// Where it is served: `unix://PATH`, or an IP address of this host alone and a port;
    /// empty means nowhere.
    pub address: String,
}

/// `[traces]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Traces {
    /// The collector's address, which takes OTLP over gRPC; empty means no traces.
    pub endpoint: String,
    /// The share of the calls that come without a trace for which one is kept, 0 to 1.
    pub sampling_ratio: f64,
}

/// `[trace]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trace {
    /// Record what is done for each call.
    pub enabled: bool,
    /// The most memory that the record takes.
    pub bytes_max: usize,
}

/// `[runtime]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runtimes {
    /// The handler of pods that name none.
    pub default: String,
    /// systemd, cgroupfs or auto: for handlers whose options do not say.
    pub cgroup_driver: String,
    /// The handlers by name.
    pub handlers: BTreeMap<String, Handler>,
}

/// `[runtime.handlers.NAME]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Handler {
    /// containerd's name of the runtime; io.containerd.runc.v2 when empty.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path of the shim binary, if not found by its name.
    pub path: String,
    /// Snapshotter of this handler's pods; empty means the default one.
    pub snapshotter: String,
    /// concurrent or first: whether the pause container may be made before the network
    /// is there. Empty means concurrent for runc's shim and first for all others.
    pub network: String,
    /// CNI configuration folder of this handler's pods; empty means the default one.
    pub cni_conf_dir: PathBuf,
    /// Like cni.max_conf_num, for cni_conf_dir; 0 means that number.
    pub cni_max_conf_num: usize,
    /// Globs of pod annotations that go into the OCI specs (SBX-36).
    pub pod_annotations: Vec<String>,
    /// Globs of container annotations that go into the OCI spec.
    pub container_annotations: Vec<String>,
    /// Privileged containers do not get the host's devices (OCI-16).
    pub privileged_without_host_devices: bool,
    /// But may use all devices, if they find a node (OCI-16).
    pub privileged_without_host_devices_all_devices_allowed: bool,
    /// The cgroup mount of containers is writable (OCI-39).
    pub cgroup_writable: bool,
    /// JSON file of an OCI spec that CRI values are laid over (OCI-48).
    pub base_runtime_spec: PathBuf,
    /// The shim's options: BinaryName, Root, SystemdCgroup, NoPivotRoot, NoNewKeyring,
    /// ShimCgroup, IoUid, IoGid, CriuImagePath, CriuWorkPath for runc; ConfigPath or
    /// anything else (passed as TOML) for others.
    pub options: toml::Table,
}

impl ContainerSection {
    /// Whether huge page limits may be passed over on a host that has none, or is treated
    /// as if it had none.
    #[must_use]
    pub fn tolerates_missing_hugetlb(&self) -> bool {
        self.tolerate_missing_hugetlb_controller || self.disable_hugetlb_controller
    }
}

impl Default for File {
    fn default() -> File {
        File {
            version: 1,
            root: "/var/lib/longshore".into(),
            state: "/run/longshore".into(),
            server: Server::default(),
            containerd: ContainerdSection::default(),
            log: Log::default(),
            cni: Cni::default(),
            sandbox: Sandbox::default(),
            container: ContainerSection::default(),
            stream: Stream::default(),
            image: Image::default(),
            metrics: Metrics::default(),
            page: Page::default(),
            traces: Traces::default(),
            trace: Trace::default(),
            runtime: Runtimes::default(),
        }
    }
}

impl Default for Trace {
    fn default() -> Trace {
        Trace { enabled: true, bytes_max: 4 << 20 }
    }
}

impl Default for Server {
    fn default() -> Server {
        Server {
            listen: "/run/longshore/longshore.sock".into(),
            runtime_name: "containerd".into(),
            shutdown_timeout_s: 30,
            reconcile_period_s: 300,
            ignore_deprecation_warnings: Vec::new(),
        }
    }
}

impl Default for ContainerdSection {
    fn default() -> ContainerdSection {
        ContainerdSection {
            address: "/run/containerd/containerd.sock".into(),
            namespace: "k8s.io".into(),
            call_timeout_s: 60,
            allow_builtin_cri: false,
        }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { level: "info".into(), format: "text".into() }
    }
}

impl Default for Cni {
    fn default() -> Cni {
        Cni {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            max_conf_num: 1,
            cache_dir: "/var/lib/cni".into(),
            netns_dir: "/var/run/netns".into(),
            ip_preference: "ipv4".into(),
            serial: false,
            loopback: "internal".into(),
            conf_template: String::new(),
            timeout_s: 220,
            gc: false,
        }
    }
}

impl Default for Sandbox {
    fn default() -> Sandbox {
        Sandbox {
            image: String::new(),
            unprivileged_ports: true,
            unprivileged_icmp: true,
            restrict_oom_score_adj: "auto".into(),
            enable_selinux: false,
            selinux_category_range: 1024,
            shm_bytes: 64 << 20,
            start_timeout_s: 220,
        }
    }
}

impl Default for ContainerSection {
    fn default() -> ContainerSection {
        ContainerSection {
            log_line_bytes_max: 16 << 10,
            log_bytes_per_second_max: 0,
            exec_sync_bytes_max: 16 << 20,
            exec_drain_timeout_s: 5,
            exit_drain_timeout_s: 10,
            ignore_image_volumes: false,
            enable_cdi: true,
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            blockio_config_file: PathBuf::new(),
            ignore_blockio_not_enabled_errors: false,
            rdt_config_file: PathBuf::new(),
            ignore_rdt_not_enabled_errors: false,
            unset_seccomp_profile: String::new(),
            disable_apparmor: false,
            disable_proc_mount: false,
            disable_hugetlb_controller: false,
            tolerate_missing_hugetlb_controller: true,
            device_ownership_from_security_context: false,
        }
    }
}

impl Default for Stream {
    fn default() -> Stream {
        Stream {
            address: "127.0.0.1".into(),
            port: 0,
            idle_timeout_s: 4 * 60 * 60,
            creation_timeout_s: 30,
            tls_cert_file: PathBuf::new(),
            tls_key_file: PathBuf::new(),
            tls_self_signed: false,
        }
    }
}

impl Default for Image {
    fn default() -> Image {
        Image {
            puller: "auto".into(),
            verifier_dir: "/opt/containerd/image-verifier/bin".into(),
            registry_config_dirs: vec!["/etc/containerd/certs.d".into(), "/etc/docker/certs.d".into()],
            containerd_config: "/etc/containerd/config.toml".into(),
            snapshotter: "overlayfs".into(),
            max_concurrent_downloads: 3,
            pull_progress_timeout_s: 300,
            unpack: "auto".into(),
            pinned: Vec::new(),
        }
    }
}

impl Default for Traces {
    fn default() -> Traces {
        Traces { endpoint: String::new(), sampling_ratio: 1.0 }
    }
}

impl Default for Runtimes {
    fn default() -> Runtimes {
        Runtimes {
            default: "runc".into(),
            cgroup_driver: "auto".into(),
            handlers: BTreeMap::from([("runc".into(), Handler::default())]),
        }
    }
}
