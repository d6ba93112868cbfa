//! The server itself: who answers on its socket, and who holds its root.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

use super::finding::Finding;
use super::{LIMIT, Mode, containerd};
use crate::config::Config;
use crate::error::Result;
use crate::flow;
use crate::proto::cri::runtime_service_client::RuntimeServiceClient;
use crate::proto::cri::{StatusRequest, VersionRequest};
use crate::state::Paths;
use crate::sys::processes;
use crate::sys::socket::Address;

const SUBJECT: &str = "server";

/// What a CRI server says of itself.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// longshore's version; `None` where it is another server.
    pub longshore: Option<String>,
    /// The version of its containerd, as longshore tells it.
    pub containerd: Option<String>,
    /// Name and version as the kubelet sees them.
    pub runtime: String,
}

/// Asks the CRI server at `socket`. It may take as long as it takes.
///
/// # Errors
/// Nobody answers, or not the CRI.
pub async fn ask(socket: &Path) -> anyhow::Result<Answer> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let channel =
        Endpoint::from_static("http://localhost").connect_with_connector(connector).await.map_err(cause)?;
    let mut client = RuntimeServiceClient::new(channel);
    let version = client.version(VersionRequest { version: "v1".into() }).await?.into_inner();
    let info = client.status(StatusRequest { verbose: true }).await?.into_inner().info;
    let text = |key: &str| info.get(key).and_then(|value| serde_json::from_str::<String>(value).ok());
    Ok(Answer {
        longshore: text("longshore"),
        containerd: text("containerd"),
        runtime: format!("{} {}", version.runtime_name, version.runtime_version),
    })
}

/// The innermost cause: tonic's own text is only "transport error".
fn cause(error: tonic::transport::Error) -> anyhow::Error {
    let mut innermost = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        innermost = cause.to_string();
        source = cause.source();
    }
    anyhow::anyhow!(innermost)
}

pub(super) struct Facts {
    socket: Socket,
    /// The process that holds the root, and its program.
    root_holder: Option<(u32, String)>,
}

enum Socket {
    Absent,
    /// Somebody's who is gone.
    Stale,
    /// A file that is no socket.
    OtherFile,
    /// Somebody listens: process, and what it says.
    Listens(Option<u32>, Result<Answer, String>),
}

impl Facts {
    /// Whether a longshore of this root or socket runs.
    pub(super) fn is_longshore(&self) -> bool {
        let answers = matches!(&self.socket, Socket::Listens(_, Ok(answer)) if answer.longshore.is_some());
        answers || self.root_holder.is_some()
    }
}

pub(super) async fn gather(config: &Config) -> Result<Facts> {
    let listen = config.file.server.listen.clone();
    let lock = Paths::new(&config.file.root, &config.file.state).lock_file();
    let path = listen.clone();
    let (found, root_holder) = flow::blocking(move || {
        let holder = processes::lock_holder(&lock).map(|pid| (pid, program_of(pid)));
        Ok((look(&path), holder))
    })
    .await?;
    let socket = match found {
        Socket::Listens(pid, _) => {
            let answer = tokio::time::timeout(LIMIT, ask(&listen)).await;
            let answer = answer.unwrap_or_else(|_| anyhow::bail!("no answer within {} s", LIMIT.as_secs()));
            Socket::Listens(pid, answer.map_err(|error| format!("{error:#}")))
        }
        other => other,
    };
    Ok(Facts { socket, root_holder })
}

fn look(path: &Path) -> Socket {
    match std::fs::symlink_metadata(path) {
        Err(_) => Socket::Absent,
        Ok(found) if !found.file_type().is_socket() => Socket::OtherFile,
        Ok(_) => {
            let address = Address::of(path);
            let reached =
                address.is_ok_and(|address| std::os::unix::net::UnixStream::connect(address.path()).is_ok());
            match reached {
                true => Socket::Listens(containerd::listener(path), Err(String::new())),
                false => Socket::Stale,
            }
        }
    }
}

fn program_of(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().to_owned()
}

pub(super) fn compare(facts: &Facts, config: &Config, mode: Mode) -> Vec<Finding> {
    let listen = config.file.server.listen.display();
    let mut findings = Vec::new();
    let mut answering = None;
    findings.push(match &facts.socket {
        Socket::OtherFile => Finding::problem(
            SUBJECT,
            format!("{listen} is a file, no socket: the server does not start"),
            "remove the file, or choose another path with server.listen",
        ),
        Socket::Absent | Socket::Stale if mode == Mode::Doctor => Finding::problem(
            SUBJECT,
            format!("no server answers at {listen}"),
            "`systemctl status longshore`; before a first start: `longshore check`",
        ),
        Socket::Absent => Finding::ok(SUBJECT, format!("{listen} is free")),
        Socket::Stale => Finding::ok(
            SUBJECT,
            format!("{listen} is left of a server that was killed; the next replaces it"),
        ),
        Socket::Listens(pid, Err(why)) => Finding::problem(
            SUBJECT,
            format!("{} listens at {listen} and does not answer: {why}", process(*pid)),
            "is it stuck, or no CRI server? Its log tells",
        ),
        Socket::Listens(pid, Ok(Answer { longshore: None, runtime, .. })) => Finding::problem(
            SUBJECT,
            format!("another CRI server ({runtime}, {}) answers at {listen}", process(*pid)),
            "stop it, or choose another path with server.listen",
        ),
        Socket::Listens(pid, Ok(Answer { longshore: Some(version), .. })) => {
            answering = *pid;
            let what = format!("longshore {version} ({}) answers at {listen}", process(*pid));
            match version == env!("CARGO_PKG_VERSION") {
                true => Finding::ok(SUBJECT, what),
                false => Finding::note(
                    SUBJECT,
                    format!("{what}; this program is {}", env!("CARGO_PKG_VERSION")),
                    "restart the service to run the installed version; pods go on",
                ),
            }
        }
    });
    if let Some((pid, program)) = &facts.root_holder
        && answering != Some(*pid)
    {
        let root = config.file.root.display();
        findings.push(Finding::problem(
            SUBJECT,
            format!("{program} (process {pid}) holds the root {root}, and it is not who answers at {listen}"),
            "two servers must not have one root: give one of them another (--root, --state)",
        ));
    }
    findings
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::config::Overrides;

    fn verdicts(socket: Socket, holder: Option<u32>, mode: Mode) -> Vec<Verdict> {
        let config = Config::from_text("", Path::new("x"), &Overrides::default()).expect("defaults");
        let root_holder = holder.map(|pid| (pid, "longshore".to_owned()));
        let found = compare(&Facts { socket, root_holder }, &config, mode);
        found.iter().map(|finding| finding.verdict).collect()
    }

    fn longshore(version: &str) -> Socket {
        let answer = Answer { longshore: Some(version.into()), ..Answer::default() };
        Socket::Listens(Some(7), Ok(answer))
    }

    #[test]
    fn a_server_must_answer_on_a_node_that_runs_and_need_not_before() {
        assert_eq!(verdicts(Socket::Absent, None, Mode::Check), [Verdict::Ok]);
        assert_eq!(verdicts(Socket::Stale, None, Mode::Check), [Verdict::Ok]);
        assert_eq!(verdicts(Socket::Absent, None, Mode::Doctor), [Verdict::Problem]);
        let current = env!("CARGO_PKG_VERSION");
        assert_eq!(verdicts(longshore(current), Some(7), Mode::Doctor), [Verdict::Ok]);
        assert_eq!(verdicts(longshore("0.0.1"), Some(7), Mode::Doctor), [Verdict::Note]);
        assert_eq!(verdicts(Socket::OtherFile, None, Mode::Check), [Verdict::Problem]);
    }

    #[test]
    fn two_servers_of_one_root_or_socket_are_a_problem() {
        let current = env!("CARGO_PKG_VERSION");
        assert_eq!(verdicts(longshore(current), Some(8), Mode::Doctor), [Verdict::Ok, Verdict::Problem]);
        assert_eq!(verdicts(Socket::Absent, Some(8), Mode::Check), [Verdict::Ok, Verdict::Problem]);
        let other = Socket::Listens(Some(7), Ok(Answer::default()));
        assert_eq!(verdicts(other, None, Mode::Check), [Verdict::Problem]);
    }
}
