//! A pod's life over the CRI, as a kubelet would lead it, with the time of each step.
//!
//! `demo SOCKET IMAGE LOG_FOLDER`: a pod of two containers, a web server and a client that
//! asks it over the pod's own loopback; shows the pod's address, a request from the host,
//! both logs and an ExecSync, then stops and removes everything. `demo.sh` prepares what
//! it needs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper_util::rt::TokioIo;
use longshore::proto::cri::runtime_service_client::RuntimeServiceClient;
use longshore::proto::cri::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint};

/// How long something that should be there at once is waited for.
const LIMIT: Duration = Duration::from_secs(20);
const WEB: &str = "echo the web server starts; echo hello from the pod > /tmp/index.html; \
                   exec httpd -f -v -p 8080 -h /tmp";
const CLIENT: &str = "until wget -q -O - http://127.0.0.1:8080/index.html; do sleep 0.1; done; \
                      echo the client is done >&2; exec sleep 1000";

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, image, logs] = arguments.as_slice() else { bail!("usage: demo SOCKET IMAGE LOG_FOLDER") };
    let mut demo =
        Demo { cri: connect(socket).await?, image: image.clone(), logs: logs.into(), pod: String::new() };
    let shown = demo.show().await;
    // Whatever happened: nothing stays.
    let removed = demo.remove().await;
    shown.and(removed)
}

struct Demo {
    cri: RuntimeServiceClient<Channel>,
    image: String,
    logs: PathBuf,
    pod: String,
}

impl Demo {
    async fn show(&mut self) -> Result<()> {
        let version = self.cri.version(VersionRequest::default()).await?.into_inner();
        println!(
            "\n{} {}, CRI {}\n",
            version.runtime_name, version.runtime_version, version.runtime_api_version
        );
        let config = self.pod_config();
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        self.pod = timed("RunPodSandbox", self.cri.run_pod_sandbox(request)).await?.pod_sandbox_id;
        let mut ids = Vec::new();
        for (name, script) in [("web", WEB), ("client", CLIENT)] {
            let request = CreateContainerRequest {
                pod_sandbox_id: self.pod.clone(),
                config: Some(self.container_config(name, script)),
                sandbox_config: Some(config.clone()),
            };
            let created =
                timed(&format!("CreateContainer {name}"), self.cri.create_container(request)).await?;
            let request = StartContainerRequest { container_id: created.container_id.clone() };
            timed(&format!("StartContainer {name}"), self.cri.start_container(request)).await?;
            ids.push(created.container_id);
        }
        let request = PodSandboxStatusRequest { pod_sandbox_id: self.pod.clone(), verbose: false };
        let status = timed("PodSandboxStatus", self.cri.pod_sandbox_status(request)).await?;
        let address = status.status.and_then(|status| status.network).unwrap_or_default().ip;
        let client = self.logs.join("client/0.log");
        self.await_line(&client, "the client is done").await?;
        let cmd = ["sh", "-c", "echo as $(id -un) on $(hostname); exit 3"].map(str::to_owned).to_vec();
        let request = ExecSyncRequest { container_id: ids[1].clone(), cmd, timeout: 10 };
        let exec = timed("ExecSync", self.cri.exec_sync(request)).await?;

        println!("\npod {}\n  address {address}", self.pod);
        println!("  from the host, http://{address}:8080/index.html: {}", get(&address).await?.trim());
        println!(
            "  ExecSync: {:?}, exit code {}",
            String::from_utf8_lossy(&exec.stdout).trim(),
            exec.exit_code
        );
        for name in ["web", "client"] {
            let path = self.logs.join(name).join("0.log");
            let log = std::fs::read_to_string(&path).with_context(|| format!("read {path:?}"))?;
            println!("\nlog of {name}");
            log.lines().for_each(|line| println!("  {line}"));
        }
        println!();
        for (name, id) in ["web", "client"].iter().zip(ids) {
            let request = StopContainerRequest { container_id: id.clone(), timeout: 0 };
            timed(&format!("StopContainer {name}"), self.cri.stop_container(request)).await?;
            let request = RemoveContainerRequest { container_id: id };
            timed(&format!("RemoveContainer {name}"), self.cri.remove_container(request)).await?;
        }
        ensure!(!address.is_empty(), "the pod has no address");
        ensure!(exec.exit_code == 3, "ExecSync gave the exit code {}", exec.exit_code);
        Ok(())
    }

    async fn remove(&mut self) -> Result<()> {
        if self.pod.is_empty() {
            return Ok(());
        }
        let pod_sandbox_id = self.pod.clone();
        let request = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        timed("StopPodSandbox", self.cri.stop_pod_sandbox(request)).await?;
        timed("RemovePodSandbox", self.cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }))
            .await?;
        let left = self.cri.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
        ensure!(left.is_empty(), "pods are left: {left:?}");
        Ok(())
    }

    fn pod_config(&self) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "demo".into(),
                uid: "demo-uid".into(),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: "demo".into(),
            log_directory: self.logs.to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig::default()),
            ..Default::default()
        }
    }

    fn container_config(&self, name: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec { image: self.image.clone(), ..Default::default() }),
            command: vec!["sh".into(), "-c".into(), script.into()],
            log_path: format!("{name}/0.log"),
            ..Default::default()
        }
    }

    async fn await_line(&self, path: &PathBuf, line: &str) -> Result<()> {
        let end = Instant::now() + LIMIT;
        while !std::fs::read_to_string(path).unwrap_or_default().contains(line) {
            ensure!(Instant::now() < end, "{path:?} does not get the line {line:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// Makes a call and prints how long it took.
async fn timed<T>(
    what: &str,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T> {
    let begun = Instant::now();
    let answer =
        call.await.map_err(|status| anyhow::anyhow!("{what}: {}: {}", status.code(), status.message()))?;
    println!("{:24} {:8.1} ms", what, begun.elapsed().as_secs_f64() * 1e3);
    Ok(answer.into_inner())
}

/// A page of the pod's web server, over its network.
async fn get(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect((address, 8080)).await.context("connect to the pod")?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer of the web server")?;
    Ok(body.to_owned())
}

async fn connect(socket: &str) -> Result<RuntimeServiceClient<Channel>> {
    let path = PathBuf::from(socket);
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
    Ok(RuntimeServiceClient::new(channel))
}
