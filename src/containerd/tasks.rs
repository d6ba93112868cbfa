//! Tasks: the running processes of containers, and exec processes in them.

use std::time::Duration;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::types::v1 as types;
use prost_types::Any;

use super::any::decode;
use super::wire::Wire;
use super::{Containerd, MESSAGE_BYTES_MAX, Mount, mounts_to, nanoseconds};
use crate::error::{Result, internal, unknown};
use crate::proto::cgroups;

/// How often a task is killed whose shim does not answer any more.
const KILL_ATTEMPTS: usize = 10;
/// The pause between two attempts.
const KILL_PAUSE: Duration = Duration::from_millis(50);

/// Type URL of an OCI process as JSON (COX-11).
const PROCESS_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Type URL of OCI resources as JSON.
const RESOURCES_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// A task to be made.
#[derive(Clone, Debug, Default)]
pub struct TaskRequest {
    /// The container.
    pub container_id: String,
    /// Mounts of the root file system.
    pub rootfs: Vec<Mount>,
    /// FIFO paths; empty for none.
    pub stdin: String,
    /// Likewise.
    pub stdout: String,
    /// Likewise.
    pub stderr: String,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// Path of the shim binary, when not found by name.
    pub runtime_path: String,
    /// Options of the shim in place of those that the container's record has.
    pub options: Option<Any>,
}

/// An exec process to be made.
#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    /// The container.
    pub container_id: String,
    /// Id of the process, unique in the container.
    pub exec_id: String,
    /// FIFO paths; empty for none.
    pub stdin: String,
    /// Likewise.
    pub stdout: String,
    /// Likewise.
    pub stderr: String,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// The OCI process, JSON.
    pub process: Vec<u8>,
}

/// The state of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessStatus {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Ended, not deleted yet.
    Stopped,
    /// Frozen.
    Paused,
    /// containerd does not know.
    Unknown,
}

/// A process of a task.
#[derive(Clone, Debug)]
pub struct Process {
    /// The container.
    pub container_id: String,
    /// Pid on the host; 0 when ended.
    pub pid: u32,
    /// State.
    pub status: ProcessStatus,
    /// FIFO paths.
    pub stdin: String,
    /// Likewise.
    pub stdout: String,
    /// Likewise.
    pub stderr: String,
    /// Exit code; meaningful when stopped.
    pub exit: Exit,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + n for death by signal n (CTR-23).
    pub code: u32,
    /// Nanoseconds since the epoch; 0 if unknown.
    pub at: i64,
}

/// What a task uses.
#[derive(Clone, Debug)]
pub struct TaskMetrics {
    /// When it was counted, in nanoseconds since the epoch.
    pub at: i64,
    /// The figures.
    pub figures: TaskFigures,
}

/// The figures of a task, by the version of the cgroups that they are from.
#[derive(Clone, Debug)]
pub enum TaskFigures {
    /// Version 1.
    V1(cgroups::v1::Metrics),
    /// Version 2.
    V2(Box<cgroups::v2::Metrics>),
}

impl Containerd {
    fn tasks(&self) -> TasksClient<Wire> {
        TasksClient::new(self.wire.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Makes a task (starts the shim, runs the OCI runtime's create) and gives its pid.
    ///
    /// # Errors
    /// The runtime's whole text, of kind Unknown.
    pub async fn create_task(&self, task: TaskRequest, limit: Duration) -> Result<u32> {
        let request = api::CreateTaskRequest {
            container_id: task.container_id,
            rootfs: mounts_to(&task.rootfs),
            stdin: task.stdin,
            stdout: task.stdout,
            stderr: task.stderr,
            terminal: task.terminal,
            runtime_path: task.runtime_path,
            options: task.options,
            ..Default::default()
        };
        Ok(self.unary_within(limit, "Tasks.Create", self.tasks().create(request)).await?.pid)
    }

    /// Starts a task (`exec_id` empty) or an exec process, and gives its pid.
    ///
    /// # Errors
    /// The runtime's whole text, of kind Unknown.
    pub async fn start_process(&self, container_id: &str, exec_id: &str, limit: Duration) -> Result<u32> {
        let request = api::StartRequest { container_id: container_id.into(), exec_id: exec_id.into() };
        Ok(self.unary_within(limit, "Tasks.Start", self.tasks().start(request)).await?.pid)
    }

    /// The main process of a task, or an exec process of it.
    ///
    /// # Errors
    /// NotFound.
    pub async fn process(&self, container_id: &str, exec_id: &str) -> Result<Process> {
        let request = api::GetRequest { container_id: container_id.into(), exec_id: exec_id.into() };
        let answer = self.unary("Tasks.Get", self.tasks().get(request)).await?;
        answer.process.map(Process::from).ok_or_else(|| internal("containerd gave no process"))
    }

    /// The main processes of all tasks. On 1.x their `container_id` is empty and `id`
    /// names the container; both forms are read.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn list_tasks(&self) -> Result<Vec<Process>> {
        let answer = self.unary("Tasks.List", self.tasks().list(api::ListTasksRequest::default())).await?;
        Ok(answer.tasks.into_iter().map(Process::from).collect())
    }

    /// Sends `signal` to the main process or an exec process; `all` means every process
    /// of the container.
    ///
    /// # Errors
    /// NotFound when the process or task is gone.
    pub async fn kill(&self, container_id: &str, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let request =
            api::KillRequest { container_id: container_id.into(), exec_id: exec_id.into(), signal, all };
        let mut attempt = 1;
        loop {
            match self.unary("Tasks.Kill", self.tasks().kill(request.clone())).await {
                // The shim ended in this moment, which containerd learns in the next.
                Err(error) if attempt < KILL_ATTEMPTS && error.message().contains("ttrpc: closed") => {
                    tokio::time::sleep(KILL_PAUSE).await;
                    attempt += 1;
                }
                other => return other.map(drop),
            }
        }
    }

    /// Deletes a stopped task, whose shim then ends, and tells how it exited.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition while it runs.
    pub async fn delete_task(&self, container_id: &str) -> Result<Exit> {
        let request = api::DeleteTaskRequest { container_id: container_id.into() };
        let answer = self.unary("Tasks.Delete", self.tasks().delete(request)).await?;
        Ok(Exit { code: answer.exit_status, at: nanoseconds(answer.exited_at) })
    }

    /// Makes an exec process in a running task.
    ///
    /// # Errors
    /// NotFound without a task; AlreadyExists for an exec id in use.
    pub async fn create_exec(&self, exec: ExecRequest) -> Result<()> {
        let request = api::ExecProcessRequest {
            container_id: exec.container_id,
            stdin: exec.stdin,
            stdout: exec.stdout,
            stderr: exec.stderr,
            terminal: exec.terminal,
            spec: Some(Any { type_url: PROCESS_TYPE_URL.to_owned(), value: exec.process }),
            exec_id: exec.exec_id,
        };
        self.unary("Tasks.Exec", self.tasks().exec(request)).await.map(drop)
    }

    /// Deletes an exec process that has ended; one that is gone is fine.
    ///
    /// # Errors
    /// FailedPrecondition while it runs.
    pub async fn delete_exec(&self, container_id: &str, exec_id: &str) -> Result<()> {
        let request =
            api::DeleteProcessRequest { container_id: container_id.into(), exec_id: exec_id.into() };
        match self.unary("Tasks.DeleteProcess", self.tasks().delete_process(request)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits for the end of a process, however long it takes.
    ///
    /// # Errors
    /// NotFound; Unavailable when the connection breaks.
    pub async fn wait(&self, container_id: &str, exec_id: &str) -> Result<Exit> {
        let request = api::WaitRequest { container_id: container_id.into(), exec_id: exec_id.into() };
        let answer = self
            .tasks()
            .wait(request)
            .await
            .map_err(|status| super::error::from_status("Tasks.Wait", &status))?
            .into_inner();
        Ok(Exit { code: answer.exit_status, at: nanoseconds(answer.exited_at) })
    }

    /// Sets the size of the terminal of the main process or of an exec process.
    ///
    /// # Errors
    /// NotFound; those of the shim: it has no terminal, or not yet.
    pub async fn resize_pty(&self, container_id: &str, exec_id: &str, width: u16, height: u16) -> Result<()> {
        let request = api::ResizePtyRequest {
            container_id: container_id.into(),
            exec_id: exec_id.into(),
            width: width.into(),
            height: height.into(),
        };
        self.unary("Tasks.ResizePty", self.tasks().resize_pty(request)).await.map(drop)
    }

    /// Lets the standard input of a process end, as far as its shim holds it open.
    ///
    /// # Errors
    /// NotFound.
    pub async fn close_stdin(&self, container_id: &str, exec_id: &str) -> Result<()> {
        let request =
            api::CloseIoRequest { container_id: container_id.into(), exec_id: exec_id.into(), stdin: true };
        self.unary("Tasks.CloseIO", self.tasks().close_io(request)).await.map(drop)
    }

    /// Applies OCI resources (JSON) to a running task.
    ///
    /// # Errors
    /// NotFound; the kernel's refusal as the runtime tells it.
    pub async fn update_task(&self, container_id: &str, resources: Vec<u8>) -> Result<()> {
        let request = api::UpdateTaskRequest {
            container_id: container_id.into(),
            resources: Some(Any { type_url: RESOURCES_TYPE_URL.to_owned(), value: resources }),
            ..Default::default()
        };
        self.unary("Tasks.Update", self.tasks().update(request)).await.map(drop)
    }

    /// How often the kernel killed something in the task's cgroup for memory (CTR-21).
    ///
    /// # Errors
    /// NotFound when task or cgroup are gone.
    pub async fn oom_kills(&self, container_id: &str) -> Result<u64> {
        Ok(match self.task_metrics(container_id, self.call_timeout).await?.figures {
            TaskFigures::V1(v1) => v1.memory_oom_control.map_or(0, |memory| memory.oom_kill),
            TaskFigures::V2(v2) => v2.memory_events.map_or(0, |events| events.oom_kill),
        })
    }

    /// What a task uses, as its shim counts it.
    ///
    /// # Errors
    /// NotFound when task or cgroup are gone; Unknown for metrics of another system.
    pub async fn task_metrics(&self, container_id: &str, limit: Duration) -> Result<TaskMetrics> {
        let request = api::MetricsRequest { filters: vec![format!("id=={container_id}")] };
        let answer = self.unary_within(limit, "Tasks.Metrics", self.tasks().metrics(request)).await?;
        let metric = answer.metrics.into_iter().find(|metric| metric.id == container_id);
        let missing = || crate::error::not_found(format!("no metrics of container {container_id}"));
        let metric = metric.ok_or_else(missing)?;
        let data = metric.data.ok_or_else(missing)?;
        let v1 = || decode(&data, "io.containerd.cgroups.v1.Metrics").map(TaskFigures::V1);
        let v2 = || decode(&data, "io.containerd.cgroups.v2.Metrics").map(Box::new).map(TaskFigures::V2);
        let figures = v1().or_else(v2).ok_or_else(|| {
            unknown(format!("metrics of container {container_id} are of type {:?}", data.type_url))
        })?;
        Ok(TaskMetrics { at: nanoseconds(metric.timestamp), figures })
    }
}

impl From<types::Process> for Process {
    fn from(from: types::Process) -> Self {
        let status = match from.status() {
            types::Status::Created => ProcessStatus::Created,
            types::Status::Running => ProcessStatus::Running,
            types::Status::Stopped => ProcessStatus::Stopped,
            types::Status::Paused | types::Status::Pausing => ProcessStatus::Paused,
            types::Status::Unknown => ProcessStatus::Unknown,
        };
        Self {
            container_id: if from.container_id.is_empty() { from.id } else { from.container_id },
            pid: from.pid,
            status,
            stdin: from.stdin,
            stdout: from.stdout,
            stderr: from.stderr,
            exit: Exit { code: from.exit_status, at: nanoseconds(from.exited_at) },
        }
    }
}
