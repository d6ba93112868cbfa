//! Containers: a request that is built, and what comes of it.

use std::path::{Path, PathBuf};

use longshore::proto::cri;
use longshore::proto::cri::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, CreateContainerRequest,
    ExecSyncRequest, ExecSyncResponse, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, Mount, NamespaceMode, NamespaceOption,
};
use tonic::Status;

use super::cri::{Cri, image_spec};
use super::pod::Pod;
use super::process::read_log;
use super::{images, wait_for, wait_until};

/// A container to be created. Without further words it runs what the busybox image runs,
/// with a pid namespace of its own and a log at `NAME/ATTEMPT.log`.
#[derive(Clone)]
pub(crate) struct ContainerBuilder {
    pod: Pod,
    config: ContainerConfig,
}

impl ContainerBuilder {
    pub(crate) fn new(pod: &Pod, name: &str) -> ContainerBuilder {
        let asked = pod.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = asked.and_then(|security| security.namespace_options.clone());
        let options = options.unwrap_or_else(|| NamespaceOption {
            pid: NamespaceMode::Container as i32,
            ..Default::default()
        });
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            log_path: format!("{name}/0.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(options),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        ContainerBuilder { pod: pod.clone(), config }
    }

    /// The image, as it is given; busybox otherwise, which is pulled when missing.
    pub(crate) fn image(mut self, image: &str) -> ContainerBuilder {
        self.config.image = Some(image_spec(image));
        self
    }

    pub(crate) fn attempt(mut self, attempt: u32) -> ContainerBuilder {
        let metadata = self.config.metadata.get_or_insert_default();
        metadata.attempt = attempt;
        self.config.log_path = format!("{}/{attempt}.log", metadata.name);
        self
    }

    pub(crate) fn command<T: Into<String>>(
        mut self,
        command: impl IntoIterator<Item = T>,
    ) -> ContainerBuilder {
        self.config.command = command.into_iter().map(Into::into).collect();
        self
    }

    pub(crate) fn args<T: Into<String>>(mut self, args: impl IntoIterator<Item = T>) -> ContainerBuilder {
        self.config.args = args.into_iter().map(Into::into).collect();
        self
    }

    /// A script for `/bin/sh`.
    pub(crate) fn sh(self, script: &str) -> ContainerBuilder {
        self.command(["/bin/sh", "-c", script])
    }

    /// Something that runs for ever and ends at once with SIGTERM.
    pub(crate) fn forever(self) -> ContainerBuilder {
        self.sh("trap 'exit 0' TERM; while :; do sleep 1000 & wait; done")
    }

    pub(crate) fn env(mut self, key: &str, value: &str) -> ContainerBuilder {
        self.config.envs.push(KeyValue { key: key.into(), value: value.as_bytes().to_vec() });
        self
    }

    /// Mounts a path of the host, writable and private.
    pub(crate) fn mount(self, host: impl AsRef<Path>, inside: &str) -> ContainerBuilder {
        let host_path = host.as_ref().display().to_string();
        self.mount_as(Mount { host_path, container_path: inside.into(), ..Default::default() })
    }

    /// Mounts an image, as the kubelet asks for it: read-only.
    pub(crate) fn image_volume(self, image: &str, inside: &str) -> ContainerBuilder {
        self.mount_as(image_mount(image, inside))
    }

    pub(crate) fn mount_as(mut self, mount: Mount) -> ContainerBuilder {
        self.config.mounts.push(mount);
        self
    }

    pub(crate) fn tty(mut self) -> ContainerBuilder {
        self.config.tty = true;
        self
    }

    pub(crate) fn stdin(mut self) -> ContainerBuilder {
        self.config.stdin = true;
        self
    }

    pub(crate) fn labels<K: Into<String>, V: Into<String>>(
        mut self,
        labels: impl IntoIterator<Item = (K, V)>,
    ) -> ContainerBuilder {
        self.config.labels.extend(labels.into_iter().map(|(key, value)| (key.into(), value.into())));
        self
    }

    pub(crate) fn resources(mut self, change: impl FnOnce(&mut LinuxContainerResources)) -> ContainerBuilder {
        change(self.config.linux.get_or_insert_default().resources.get_or_insert_default());
        self
    }

    pub(crate) fn security(
        mut self,
        change: impl FnOnce(&mut LinuxContainerSecurityContext),
    ) -> ContainerBuilder {
        change(self.config.linux.get_or_insert_default().security_context.get_or_insert_default());
        self
    }

    pub(crate) fn config(mut self, change: impl FnOnce(&mut ContainerConfig)) -> ContainerBuilder {
        change(&mut self.config);
        self
    }

    /// The request as it is sent; an image that is not given is missing in it.
    pub(crate) fn request(&self) -> CreateContainerRequest {
        CreateContainerRequest {
            pod_sandbox_id: self.pod.id.clone(),
            config: Some(self.config.clone()),
            sandbox_config: Some(self.pod.config.clone()),
        }
    }

    /// CreateContainer.
    pub(crate) async fn create(mut self) -> Result<Container, Status> {
        let cri = self.pod.cri.clone();
        if self.config.image.is_none() {
            // The kubelet gives the id, too.
            let id = cri.ensure_image(images::BUSYBOX).await?;
            let image = self.config.image.insert(image_spec(images::BUSYBOX));
            image.image = id;
        }
        let id = cri.runtime().create_container(self.request()).await?.into_inner().container_id;
        let log = Path::new(&self.pod.config.log_directory).join(&self.config.log_path);
        Ok(Container { id, config: self.config, cri, log })
    }

    /// CreateContainer and StartContainer.
    pub(crate) async fn run(self) -> Result<Container, Status> {
        let container = self.create().await?;
        container.start().await?;
        Ok(container)
    }
}

/// The mount of an image at `inside`, as the kubelet asks for it.
pub(crate) fn image_mount(image: &str, inside: &str) -> Mount {
    Mount {
        image: Some(image_spec(image)),
        container_path: inside.into(),
        readonly: true,
        ..Default::default()
    }
}

/// A container that was created.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    /// Its id.
    pub(crate) id: String,
    /// What was asked for.
    pub(crate) config: ContainerConfig,
    /// Its server.
    pub(crate) cri: Cri,
    log: PathBuf,
}

impl Container {
    /// The same container, as another server has it.
    pub(crate) fn through(&self, cri: &Cri) -> Container {
        Container { cri: cri.clone(), ..self.clone() }
    }

    pub(crate) async fn start(&self) -> Result<(), Status> {
        let request = cri::StartContainerRequest { container_id: self.id.clone() };
        self.cri.runtime().start_container(request).await.map(drop)
    }

    /// StopContainer with so many seconds of grace.
    pub(crate) async fn stop(&self, timeout: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest { container_id: self.id.clone(), timeout };
        self.cri.runtime().stop_container(request).await.map(drop)
    }

    pub(crate) async fn remove(&self) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest { container_id: self.id.clone() };
        self.cri.runtime().remove_container(request).await.map(drop)
    }

    pub(crate) async fn status(&self) -> Result<ContainerStatus, Status> {
        Ok(self.cri.container_status(&self.id, false).await?.status.unwrap_or_default())
    }

    /// The JSON under `info` of the verbose status.
    pub(crate) async fn info(&self) -> serde_json::Value {
        let answer = self.cri.container_status(&self.id, true).await.expect("a verbose status");
        serde_json::from_str(&answer.info["info"]).expect("JSON")
    }

    /// ExecSync without a limit of its own.
    pub(crate) async fn exec<T: Into<String>>(
        &self,
        command: impl IntoIterator<Item = T>,
    ) -> Result<ExecSyncResponse, Status> {
        self.exec_timeout(command, 0).await
    }

    /// ExecSync with a limit in seconds.
    pub(crate) async fn exec_timeout<T: Into<String>>(
        &self,
        command: impl IntoIterator<Item = T>,
        timeout: i64,
    ) -> Result<ExecSyncResponse, Status> {
        let cmd = command.into_iter().map(Into::into).collect();
        let request = ExecSyncRequest { container_id: self.id.clone(), cmd, timeout };
        self.cri.runtime().exec_sync(request).await.map(tonic::Response::into_inner)
    }

    /// What a shell script prints inside, which must succeed.
    pub(crate) async fn sh(&self, script: &str) -> String {
        let done = self.exec(["/bin/sh", "-c", script]).await.expect("a script runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        assert_eq!(done.exit_code, 0, "{script}: {}{}", text(&done.stdout), text(&done.stderr));
        text(&done.stdout)
    }

    /// Waits until it is EXITED.
    pub(crate) async fn wait_exited(&self) -> ContainerStatus {
        wait_for(&format!("the end of container {}", self.id), async || {
            let status = self.status().await.expect("a status");
            (status.state() == ContainerState::ContainerExited).then_some(status)
        })
        .await
    }

    /// Where its log is.
    pub(crate) fn log_path(&self) -> &Path {
        &self.log
    }

    /// What its log holds now.
    pub(crate) async fn log(&self) -> String {
        read_log(&self.log)
    }

    /// The entries of its log now.
    pub(crate) async fn log_entries(&self) -> Vec<LogEntry> {
        LogEntry::parse_all(&std::fs::read(&self.log).expect("a log"))
    }

    /// Waits until its log holds `text`.
    pub(crate) async fn wait_log(&self, text: &str) {
        wait_until(&format!("{text:?} in the log"), async || self.log().await.contains(text)).await;
    }

    /// ReopenContainerLog.
    pub(crate) async fn reopen_log(&self) -> Result<(), Status> {
        let request = cri::ReopenContainerLogRequest { container_id: self.id.clone() };
        self.cri.runtime().reopen_container_log(request).await.map(drop)
    }

    /// UpdateContainerResources.
    pub(crate) async fn update(&self, linux: LinuxContainerResources) -> Result<(), Status> {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        self.cri.runtime().update_container_resources(request).await.map(drop)
    }
}

/// An entry of a log in the CRI's format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogEntry {
    pub(crate) time: String,
    pub(crate) stream: String,
    /// `F` or `P`.
    pub(crate) tag: String,
    pub(crate) content: Vec<u8>,
}

impl LogEntry {
    /// All entries of a log; each must be complete and in form (LOG-01).
    pub(crate) fn parse_all(mut log: &[u8]) -> Vec<LogEntry> {
        let mut entries = Vec::new();
        while !log.is_empty() {
            let end = log.iter().position(|byte| *byte == b'\n').expect("an entry ends with a newline");
            let mut fields = log[..end].splitn(4, |byte| *byte == b' ');
            let mut field = || fields.next().expect("an entry has four fields");
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
            let entry = LogEntry {
                time: text(field()),
                stream: text(field()),
                tag: text(field()),
                content: field().to_vec(),
            };
            assert!(matches!(entry.stream.as_str(), "stdout" | "stderr"), "{entry:?}");
            assert!(matches!(entry.tag.as_str(), "F" | "P"), "{entry:?}");
            entries.push(entry);
            log = &log[end + 1..];
        }
        entries
    }

    /// Its content as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.content).into_owned()
    }
}
