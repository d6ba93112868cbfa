//! What happens to a single pod: its worker does it, and so knows what may come of it.

use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{DeleteTaskRequest, KillRequest};
use rustix::process::Signal;
use tonic::{Code, Request};

use super::faults::signal;
use super::figures::Op;
use super::model::{KILLED, UNKNOWN};
use super::work::{Patience, Worker};
use crate::harness::{Chance, procfs};

fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().expect("a namespace"));
    request
}

/// The first process of a container, by a verbose status: none if it cannot be asked now.
fn pid_in(info: &std::collections::BTreeMap<String, String>) -> Option<u32> {
    let info: serde_json::Value = serde_json::from_str(info.get("info")?).expect("JSON");
    u32::try_from(info["pid"].as_u64()?).ok().filter(|pid| *pid > 0)
}

/// Whether a process is in the cgroup of a container: it is no other one with its number.
fn is_of(pid: u32, id: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(id))
}

impl Worker {
    /// SIGKILL for a container's first process, sometimes while it is asked to stop.
    pub(super) async fn kill_process(&mut self, slot: usize, number: u64, chance: &mut Chance) {
        let is_stopped_too = chance.one_in(3);
        let stage = self.stage.clone();
        let Some(known) = self.pod(slot).running(number) else { return };
        let container = known.container.clone();
        let name = known.container.config.metadata.clone().expect("metadata").name;
        let status = stage.done(Op::Status, &container.id, async || {
            container.cri.container_status(&container.id, true).await
        });
        let status = status.await;
        let pid = pid_in(&status.info).expect("a running container has a process");
        assert!(is_of(pid, &container.id), "process {pid} is not that of {}", container.id);
        let at = self.pod(slot).wanted.containers.iter().position(|want| want.name == name).expect("ours");
        let known = self.known(slot, at);
        known.may_end_with(&[KILLED]);
        stage.figures.done(Op::KillProcess);
        if is_stopped_too {
            let kill = async { signal(pid, Signal::KILL) };
            if let super::model::Kind::Obeys(code) = known.kind {
                known.may_end_with(&[code]);
            }
            tokio::join!(stage.call(Op::Stop, &container.id, container.stop(1)), kill);
        } else {
            signal(pid, Signal::KILL);
        }
        self.wait_ended(slot, at).await;
        self.ensure_container(slot, at).await;
    }

    /// As who uses `ctr task delete --force`.
    pub(super) async fn delete_task(&mut self, slot: usize, number: u64) {
        let stage = self.stage.clone();
        let Some(known) = self.pod(slot).running(number) else { return };
        // Whether it is gone before anybody has read its code is a matter of luck.
        known.may_end_with(&[KILLED, UNKNOWN]);
        let id = known.container.id.clone();
        let name = known.container.config.metadata.clone().expect("metadata").name;
        let at = self.pod(slot).wanted.containers.iter().position(|want| want.name == name).expect("ours");
        stage.figures.done(Op::DeleteTask);
        let mut tasks = TasksClient::new(stage.node.containerd().channel());
        let mut patience = Patience::new(&stage);
        loop {
            let kill = KillRequest { container_id: id.clone(), signal: 9, all: true, ..Default::default() };
            let _ = tasks.kill(in_namespace(kill)).await;
            let delete = DeleteTaskRequest { container_id: id.clone() };
            match tasks.delete(in_namespace(delete)).await {
                Ok(_) => break,
                Err(error) if error.code() == Code::NotFound => break,
                Err(error) => patience.wait(&stage, || format!("the end of a task: {error:?}")).await,
            }
        }
        self.wait_ended(slot, at).await;
        self.ensure_container(slot, at).await;
    }

    /// SIGKILL for the pod's shim: all that it served has ended, and is told so.
    pub(super) async fn kill_shim(&mut self, slot: usize) {
        let id = self.pod(slot).pod.id.clone();
        let shims = self.stage.node.place().processes().into_iter().filter(|process| {
            process.program().starts_with("containerd-shim") && process.arguments.contains(&id)
        });
        let shims: Vec<u32> = shims.map(|process| process.pid).collect();
        assert!(!shims.is_empty(), "{id} has no shim");
        self.pod(slot).may_be_notready = true;
        for known in self.pod(slot).containers.iter_mut().flatten() {
            known.may_end_with(&[KILLED, UNKNOWN]);
        }
        self.stage.figures.done(Op::KillShim);
        shims.into_iter().for_each(|pid| signal(pid, Signal::KILL));
        self.wait_notready(slot).await;
        for number in 0..self.pod(slot).containers.len() {
            self.wait_ended(slot, number).await;
        }
        self.assert_no_process(slot).await;
        self.another_sandbox(slot).await;
    }

    /// SIGKILL for the pod's pause: it is not ready, its containers run on.
    pub(super) async fn kill_pause(&mut self, slot: usize) {
        let stage = self.stage.clone();
        let pod = self.pod(slot).pod.clone();
        let status = stage.done(Op::PodStatus, &pod.id, async || pod.status_verbose().await).await;
        let pid = pid_in(&status.info).expect("a ready pod has a process");
        assert!(is_of(pid, &pod.id), "process {pid} is not that of {}", pod.id);
        self.pod(slot).may_be_notready = true;
        stage.figures.done(Op::KillPause);
        signal(pid, Signal::KILL);
        self.wait_notready(slot).await;
        // What runs there still must be told to run, and end as it is asked to.
        self.look(slot).await;
        self.another_sandbox(slot).await;
    }

    /// The kubelet's way with a sandbox that is not ready: containers, sandbox, all anew.
    async fn another_sandbox(&mut self, slot: usize) {
        self.stop_containers(slot).await;
        self.remove_pod(slot).await;
        self.next_attempt(slot);
        self.ensure(slot).await;
    }

    /// Of a pod all of whose containers have ended no process lives.
    async fn assert_no_process(&mut self, slot: usize) {
        let mut patience = Patience::new(&self.stage);
        let pod = &self.pod(slot).pod.config;
        let uid = pod.metadata.clone().unwrap_or_default().uid;
        loop {
            let roots = self.stage.node.place().cgroup_folders();
            let below = roots.iter().flat_map(|root| procfs::folders_below(&root.join(&uid)));
            let alive: Vec<String> = below
                .map(|folder| std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default())
                .filter(|pids| !pids.is_empty())
                .collect();
            if alive.is_empty() {
                return;
            }
            patience.wait(&self.stage, || format!("the end of processes {alive:?} of {uid}")).await;
        }
    }

    /// A container that takes more memory than it may is killed by the kernel.
    pub(super) async fn memory(&mut self, slot: usize) {
        let stage = self.stage.clone();
        let pod = self.pod(slot).pod.clone();
        let eater = pod.container("eater").command(["tail", "/dev/zero"]);
        let eater = eater.resources(|resources| resources.memory_limit_in_bytes = 32 << 20);
        let (before, deaths) = (stage.faults.mark(), stage.faults.containerd_deaths());
        if let Some(container) = stage.call(Op::Create, &pod.id, eater.create()).await {
            let is_started = stage.call(Op::Start, &container.id, container.start()).await.is_some();
            let mut patience = Patience::new(&stage);
            loop {
                if !is_started {
                    break;
                }
                let status = stage.done(Op::Status, &container.id, async || container.status().await).await;
                if status.finished_at > 0 {
                    let is_forgotten =
                        status.exit_code == UNKNOWN && stage.faults.containerd_deaths() > deaths;
                    assert!(status.exit_code == KILLED || is_forgotten, "{status:?}");
                    // The event that says why may be lost with who was to tell it.
                    let is_told = status.reason == "OOMKilled";
                    assert!(is_told || stage.faults.any_since(&before), "{status:?}");
                    stage.figures.done(Op::Memory);
                    break;
                }
                patience.wait(&stage, || format!("the end of {status:?}")).await;
            }
            self.stop_by_id(&container.id, 0).await;
            self.remove_by_id(&container.id).await;
            return;
        }
        // Whether it was made is not known; its name is no wanted one.
        let filter =
            longshore::proto::cri::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
        let cri = self.cri().clone();
        let list = async || cri.list_containers(Some(filter.clone())).await;
        for item in stage.done(Op::ListContainers, &pod.id, list).await {
            if item.metadata.as_ref().is_some_and(|metadata| metadata.name == "eater") {
                self.stop_by_id(&item.id, 0).await;
                self.remove_by_id(&item.id).await;
            }
        }
    }
}
