//! Pods: a request that is built, and what comes of it.

use std::net::SocketAddr;

use longshore::proto::cri;
use longshore::proto::cri::{
    DnsConfig, IdMapping, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PortMapping, RunPodSandboxRequest, UserNamespace,
};
use tokio::net::TcpListener;
use tonic::Status;

use super::container::ContainerBuilder;
use super::cri::Cri;

/// A pod to be run. Without further words it is as the kubelet makes one: a network and
/// an IPC namespace of its own, a pid namespace for each container, the hostname its
/// name, logs in a folder of its own, its cgroup in that of the node.
#[derive(Clone)]
pub(crate) struct PodBuilder {
    cri: Cri,
    request: RunPodSandboxRequest,
    has_own_cgroup_parent: bool,
    has_own_logs: bool,
}

impl PodBuilder {
    pub(crate) fn new(cri: &Cri, name: &str, uid: &str) -> PodBuilder {
        let options = NamespaceOption { pid: NamespaceMode::Container as i32, ..Default::default() };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: uid.into(),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        PodBuilder { cri: cri.clone(), request, has_own_cgroup_parent: false, has_own_logs: false }
    }

    pub(crate) fn namespace(mut self, namespace: &str) -> PodBuilder {
        self.metadata().namespace = namespace.into();
        self
    }

    pub(crate) fn uid(mut self, uid: &str) -> PodBuilder {
        self.metadata().uid = uid.into();
        self
    }

    pub(crate) fn attempt(mut self, attempt: u32) -> PodBuilder {
        self.metadata().attempt = attempt;
        self
    }

    /// On the host's network; the kubelet gives no hostname then.
    pub(crate) fn host_network(mut self) -> PodBuilder {
        self.namespaces().network = NamespaceMode::Node as i32;
        self.hostname("")
    }

    /// In a user namespace whose users and groups are the host's from those numbers on; its
    /// containers get the same.
    pub(crate) fn user_namespace(mut self, uid: u32, gid: u32) -> PodBuilder {
        let (uids, gids) = id_mappings(uid, gid);
        self.namespaces().userns_options =
            Some(UserNamespace { mode: NamespaceMode::Pod as i32, uids, gids });
        self
    }

    pub(crate) fn labels<K: Into<String>, V: Into<String>>(
        self,
        labels: impl IntoIterator<Item = (K, V)>,
    ) -> PodBuilder {
        let labels = labels.into_iter().map(|(key, value)| (key.into(), value.into()));
        self.config(|config| config.labels.extend(labels))
    }

    pub(crate) fn annotations<K: Into<String>, V: Into<String>>(
        self,
        annotations: impl IntoIterator<Item = (K, V)>,
    ) -> PodBuilder {
        let annotations = annotations.into_iter().map(|(key, value)| (key.into(), value.into()));
        self.config(|config| config.annotations.extend(annotations))
    }

    /// The folder of its logs; empty for none.
    pub(crate) fn log_dir(mut self, folder: &str) -> PodBuilder {
        self.has_own_logs = true;
        self.config(|config| config.log_directory = folder.into())
    }

    pub(crate) fn sysctl(mut self, key: &str, value: &str) -> PodBuilder {
        self.linux().sysctls.insert(key.into(), value.into());
        self
    }

    pub(crate) fn dns(self, dns: DnsConfig) -> PodBuilder {
        self.config(|config| config.dns_config = Some(dns))
    }

    pub(crate) fn hostname(self, hostname: &str) -> PodBuilder {
        self.config(|config| config.hostname = hostname.into())
    }

    /// Maps a TCP port of the host.
    pub(crate) fn port(self, host_port: i32, container_port: i32) -> PodBuilder {
        let mapping = PortMapping { host_port, container_port, ..Default::default() };
        self.config(|config| config.port_mappings.push(mapping))
    }

    /// The parent of its cgroups; empty for none.
    pub(crate) fn cgroup_parent(mut self, parent: &str) -> PodBuilder {
        self.has_own_cgroup_parent = true;
        self.linux().cgroup_parent = parent.into();
        self
    }

    /// The runtime handler.
    pub(crate) fn handler(mut self, handler: &str) -> PodBuilder {
        self.request.runtime_handler = handler.into();
        self
    }

    pub(crate) fn security(mut self, change: impl FnOnce(&mut LinuxSandboxSecurityContext)) -> PodBuilder {
        change(self.linux().security_context.get_or_insert_default());
        self
    }

    pub(crate) fn config(mut self, change: impl FnOnce(&mut PodSandboxConfig)) -> PodBuilder {
        change(self.request.config.get_or_insert_default());
        self
    }

    /// The request as it is sent.
    pub(crate) fn request(&self) -> RunPodSandboxRequest {
        let mut request = self.request.clone();
        let Some(config) = &mut request.config else { return request };
        let metadata = config.metadata.clone().unwrap_or_default();
        if !self.has_own_logs {
            let name = format!("{}_{}_{}", metadata.namespace, metadata.name, metadata.uid);
            config.log_directory = self.cri.logs().join(name).display().to_string();
        }
        if let Some(linux) = &mut config.linux
            && !self.has_own_cgroup_parent
        {
            linux.cgroup_parent = self.cri.cgroup_parent(&metadata.uid);
        }
        request
    }

    /// RunPodSandbox.
    pub(crate) async fn run(&self) -> Result<Pod, Status> {
        let request = self.request();
        let config = request.config.clone().unwrap_or_default();
        let id = self.cri.runtime().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        Ok(Pod { id, config, cri: self.cri.clone() })
    }

    fn metadata(&mut self) -> &mut PodSandboxMetadata {
        self.request.config.get_or_insert_default().metadata.get_or_insert_default()
    }

    fn linux(&mut self) -> &mut LinuxPodSandboxConfig {
        self.request.config.get_or_insert_default().linux.get_or_insert_default()
    }

    fn namespaces(&mut self) -> &mut NamespaceOption {
        self.linux().security_context.get_or_insert_default().namespace_options.get_or_insert_default()
    }
}

/// The mappings of users and of groups that the kubelet would make: 65536 ids each.
pub(crate) fn id_mappings(uid: u32, gid: u32) -> (Vec<IdMapping>, Vec<IdMapping>) {
    let of = |host_id: u32| vec![IdMapping { host_id, container_id: 0, length: 65536 }];
    (of(uid), of(gid))
}

/// A pod that was run.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    /// Its id.
    pub(crate) id: String,
    /// What was asked for.
    pub(crate) config: PodSandboxConfig,
    /// Its server.
    pub(crate) cri: Cri,
}

impl Pod {
    pub(crate) async fn stop(&self) -> Result<(), Status> {
        self.cri.stop_pod(&self.id).await
    }

    pub(crate) async fn remove(&self) -> Result<(), Status> {
        self.cri.remove_pod(&self.id).await
    }

    pub(crate) async fn status(&self) -> Result<cri::PodSandboxStatus, Status> {
        Ok(self.cri.pod_status(&self.id, false).await?.status.unwrap_or_default())
    }

    /// The whole answer, with `info`.
    pub(crate) async fn status_verbose(&self) -> Result<cri::PodSandboxStatusResponse, Status> {
        self.cri.pod_status(&self.id, true).await
    }

    /// The JSON under `info` of the verbose status.
    pub(crate) async fn info(&self) -> serde_json::Value {
        let answer = self.status_verbose().await.expect("a verbose status");
        serde_json::from_str(&answer.info["info"]).expect("JSON")
    }

    /// Its first address; empty if it has none.
    pub(crate) async fn ip(&self) -> String {
        self.status().await.expect("a status").network.unwrap_or_default().ip
    }

    /// Listens at an address inside its network, which may be the host's.
    pub(crate) async fn listen(&self, address: SocketAddr) -> Result<TcpListener, longshore::error::Error> {
        let network = format!("/proc/{}/ns/net", self.info().await["pid"]);
        let listener = longshore::sys::netns::within(network.as_ref(), move || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        Ok(TcpListener::from_std(listener.await?)?)
    }

    /// A container of this pod to be created.
    pub(crate) fn container(&self, name: &str) -> ContainerBuilder {
        ContainerBuilder::new(self, name)
    }
}
