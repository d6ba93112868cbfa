//! The two servers on one containerd, and what there is to see of a pod or container.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use containerd_client::services::v1::GetContainerRequest;
use containerd_client::services::v1::containers_client::ContainersClient;
use longshore::proto::{cri, runc};
use prost::Message;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::containers::{IMAGE_ID, TARGET};
use crate::harness::{Cri, wait_until};
use crate::normal::Words;

/// One server.
pub(crate) struct Side {
    pub(crate) cri: Cri,
    pub(crate) containerd: Channel,
    /// containerd's namespace.
    pub(crate) namespace: &'static str,
    /// Its folders, each with what stands for it.
    pub(crate) folders: Vec<(PathBuf, &'static str)>,
    /// Where logs are.
    pub(crate) logs: PathBuf,
    /// Ids of images by reference.
    pub(crate) images: BTreeMap<String, String>,
}

impl Side {
    /// Text of a request as this server gets it.
    fn fill(&self, text: &mut String) {
        *text = text.replace("{logs}", &self.logs.display().to_string());
        if let Some(reference) = text.strip_prefix(IMAGE_ID) {
            *text = self.images[reference].clone();
        }
    }

    /// RunPodSandbox.
    pub(crate) async fn run(&self, request: &cri::RunPodSandboxRequest) -> Result<String, Status> {
        let mut request = request.clone();
        if let Some(config) = &mut request.config {
            self.fill(&mut config.log_directory);
        }
        Ok(self.cri.runtime().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// CreateContainer; `target` is the container that stands for itself.
    pub(crate) async fn create(
        &self,
        pod: &str,
        sandbox: Option<&cri::PodSandboxConfig>,
        config: &cri::ContainerConfig,
        target: Option<&str>,
    ) -> Result<String, Status> {
        let (mut sandbox, mut config) = (sandbox.cloned(), config.clone());
        if let Some(sandbox) = &mut sandbox {
            self.fill(&mut sandbox.log_directory);
        }
        let mounted = config.mounts.iter_mut().filter_map(|mount| mount.image.as_mut());
        for image in mounted.chain(config.image.as_mut()) {
            self.fill(&mut image.image);
        }
        let context = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        if let Some(options) = context.and_then(|context| context.namespace_options.as_mut())
            && options.target_id == TARGET
        {
            options.target_id = target.unwrap_or("no-target").to_owned();
        }
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: sandbox,
        };
        Ok(self.cri.runtime().create_container(request).await?.into_inner().container_id)
    }

    /// The record in containerd.
    pub(crate) async fn record(&self, id: &str, words: &Words) -> Value {
        let mut request = Request::new(GetContainerRequest { id: id.to_owned() });
        request.metadata_mut().insert("containerd-namespace", self.namespace.parse().expect("a namespace"));
        let mut client = ContainersClient::new(self.containerd.clone()).max_decoding_message_size(16 << 20);
        let answer = client.get(request).await.expect("a record").into_inner();
        let record = answer.container.expect("a record");
        let spec: Value = serde_json::from_slice(&record.spec.unwrap_or_default().value).expect("a spec");
        let runtime = record.runtime.unwrap_or_default();
        let options = runtime.options.map(|any| {
            let options = runc::Options::decode(any.value.as_slice()).expect("runc's options");
            json!({ "type": any.type_url, "root": format!("{}/", options.root), "systemd": options.systemd_cgroup })
        });
        let extensions: BTreeMap<String, Value> = record
            .extensions
            .into_iter()
            .map(|(key, any)| {
                let value: Value = serde_json::from_slice(&any.value).expect("JSON");
                (key, json!({ "type": any.type_url, "value": value }))
            })
            .collect();
        words.normal(json!({
            "spec": spec,
            "labels": record.labels.into_iter().collect::<BTreeMap<_, _>>(),
            "image": record.image,
            "snapshotter": record.snapshotter,
            "snapshot_key": record.snapshot_key,
            "runtime": runtime.name,
            "options": options,
            "extensions": extensions,
            "sandbox": record.sandbox,
        }))
    }

    /// PodSandboxStatus, and the pid of pause.
    pub(crate) async fn pod_status(&self, id: &str, words: &mut Words) -> Value {
        let answer = self.cri.pod_status(id, true).await.expect("a status");
        let info: Value = serde_json::from_str(&answer.info["info"]).expect("JSON");
        words.add_pid(&info["pid"], "{pause}");
        if let Some(network) = answer.status.as_ref().and_then(|status| status.network.as_ref()) {
            words.add(&network.ip, "{ip}");
        }
        let mut status = serde_json::to_value(answer.status).expect("JSON");
        hide_times(&mut status);
        words.normal(json!({
            "status": status,
            "containers": answer.containers_statuses.len(),
            "timestamp": answer.timestamp != 0,
            "listed": self.listed_pod(id).await,
            "info": shown(info),
        }))
    }

    /// ContainerStatus, and the pid.
    pub(crate) async fn container_status(&self, id: &str, words: &Words) -> (Value, u32) {
        let answer = self.cri.container_status(id, true).await.expect("a status");
        let info: Value = serde_json::from_str(&answer.info["info"]).expect("JSON");
        let mut status = serde_json::to_value(answer.status).expect("JSON");
        hide_times(&mut status);
        let pid = info["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
        let listed = self.listed_container(id).await;
        (words.normal(json!({ "status": status, "listed": listed, "info": shown(info) })), pid)
    }

    async fn listed_pod(&self, id: &str) -> Value {
        let filter = cri::PodSandboxFilter { id: id.to_owned(), ..Default::default() };
        let mut list =
            serde_json::to_value(self.cri.list_pods(Some(filter)).await.expect("a list")).expect("JSON");
        list.as_array_mut().into_iter().flatten().for_each(hide_times);
        list
    }

    async fn listed_container(&self, id: &str) -> Value {
        let filter = cri::ContainerFilter { id: id.to_owned(), ..Default::default() };
        let list = self.cri.list_containers(Some(filter)).await.expect("a list");
        let mut list = serde_json::to_value(list).expect("JSON");
        list.as_array_mut().into_iter().flatten().for_each(hide_times);
        list
    }
}

/// What is shown under `info`, but for what the record shows already, and what the two
/// have of their own.
fn shown(mut info: Value) -> Value {
    for key in ["runtimeSpec", "sandboxMetadata", "cniResult"] {
        if let Some(value) = info.get_mut(key) {
            *value = value.is_object().into();
        }
    }
    if let Some(pid) = info.get_mut("pid") {
        *pid = (*pid != 0).into();
    }
    if let Some(root) = info.pointer_mut("/runtimeOptions/root") {
        *root = format!("{}/", root.as_str().unwrap_or_default()).into();
    }
    info
}

fn hide_times(status: &mut Value) {
    for key in ["created_at", "started_at", "finished_at"] {
        if let Some(time) = status.get_mut(key) {
            *time = "{time}".into();
        }
    }
}

/// What the kernel tells of a process; none when it has ended.
pub(crate) async fn process(pid: u32, words: &Words) -> Option<Value> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    // A started process is the OCI runtime's own for a moment, and then has nothing at all.
    wait_until("the process of a container", async || {
        read("environ").is_none_or(|environ| !environ.is_empty() && !environ.contains("_LIBCONTAINER_"))
    })
    .await;
    const FIELDS: [&str; 10] = [
        "Uid:",
        "Gid:",
        "Groups:",
        "NoNewPrivs:",
        "Seccomp:",
        "CapInh:",
        "CapPrm:",
        "CapEff:",
        "CapBnd:",
        "CapAmb:",
    ];
    let status = read("status")?;
    let fields: Vec<&str> =
        status.lines().filter(|line| FIELDS.iter().any(|field| line.starts_with(field))).collect();
    let environ = read("environ")?;
    let mounts = read("mountinfo")?;
    // The spec's order is compared already; volumes of an image have none.
    let mut mounts: Vec<String> = mounts.lines().filter_map(mount).collect();
    mounts.sort();
    let cgroup = read("cgroup")?;
    Some(words.normal(json!({
        "status": fields,
        "oom_score_adj": read("oom_score_adj")?,
        "limits": read("limits")?.lines().collect::<Vec<_>>(),
        "environ": environ.split('\0').collect::<Vec<_>>(),
        "cwd": std::fs::read_link(folder.join("cwd")).ok()?,
        "mounts": mounts,
        "cgroup": cgroup.lines().collect::<Vec<_>>(),
        "namespaces": own_namespaces(&folder),
    })))
}

/// `point options propagation type`, without what differs from mount to mount.
fn mount(line: &str) -> Option<String> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(4);
    let (point, options) = (fields.next()?, fields.next()?);
    let tags: Vec<&str> =
        fields.filter_map(|tag| tag.split(':').next()).filter(|tag| !tag.is_empty()).collect();
    Some(format!("{point} {options} {} {}", tags.join(","), file_system.split(' ').next()?))
}

/// Which namespaces are this test's own.
fn own_namespaces(folder: &Path) -> Vec<&'static str> {
    let same = |kind: &&str| {
        let of = |folder: &Path| std::fs::read_link(folder.join("ns").join(kind)).ok();
        of(folder) == of(Path::new("/proc/self"))
    };
    ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"].into_iter().filter(same).collect()
}
