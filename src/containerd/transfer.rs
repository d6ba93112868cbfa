//! The transfer service: containerd pulls an image by itself (VER-04 to VER-06).
//!
//! ```text
//! transfer_image ──Transfer──▶ containerd ──▶ registries
//!   ├─ stream "credentials":  host? ◀──▶ name and secret, or nothing
//!   └─ stream "progress":     event, name, bytes … and its end: containerd is through
//! ```
//!
//! The call has no deadline: how long a pull may take is for its caller to say. Dropping
//! the future resets the call, and containerd aborts the transfer. It does so in its own
//! time: the end of the progress stream, which containerd closes when it leaves the
//! call, says when. The reader of that stream is a task of its own, so that whoever
//! cleans up can wait for it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::transfer_client::TransferClient;
use containerd_client::to_any;
use containerd_client::types::{self, transfer as messages};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::Containerd;
use super::any::decode;
use super::error::from_status;
use super::streaming::Stream;
use super::wire::leased;
use crate::error::{Error, Kind, Result};
use crate::proto::MASKED;
use crate::telemetry::METERS;

/// How long the last progress of a transfer that has ended is waited for.
const LAST_PROGRESS_LIMIT: Duration = Duration::from_secs(10);

/// Gives the credentials for a host as it stands in its URL, with its port if it has
/// one; none for a host that gets none (IMG-18).
pub type Credentials = Arc<dyn Fn(&str) -> Option<Login> + Send + Sync>;

/// Credentials for one host (IMG-17).
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A user and a password.
    Password {
        /// The user.
        username: String,
        /// The password.
        secret: String,
    },
    /// An identity token, with which an access token is fetched.
    Identity(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Login::Password { .. } => f.debug_tuple("Password").field(&MASKED).finish(),
            Login::Identity(_) => f.debug_tuple("Identity").field(&MASKED).finish(),
        }
    }
}

/// A platform whose image is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransferPlatform {
    /// As in Go: `linux`.
    pub os: String,
    /// As in Go: `amd64`.
    pub architecture: String,
    /// `v7`, or nothing.
    pub variant: String,
}

/// What containerd is to pull.
///
/// How many layers it fetches at a time is a setting of its plugin and no part of the call.
#[derive(Default)]
pub struct TransferRequest<'a> {
    /// `registry/path:tag` or `registry/path@digest`, complete.
    pub reference: &'a str,
    /// The name of the image record that is written when all is there.
    pub record: &'a str,
    /// The labels of that record. A record of that name is replaced.
    pub labels: HashMap<String, String>,
    /// The folder with a folder for each registry, as containerd sees it.
    pub hosts_dir: Option<&'a str>,
    /// Whether registries without a configuration are spoken to without TLS.
    pub plain_http: bool,
    /// Sent with each request to a registry.
    pub headers: HashMap<String, String>,
    /// Asked whenever a host wants to know who we are; none to be nobody.
    pub credentials: Option<Credentials>,
    /// The platforms, best first; the manifest of the best one is fetched.
    pub platforms: Vec<TransferPlatform>,
    /// The snapshotter that it is unpacked for; none to fetch alone.
    pub snapshotter: Option<&'a str>,
    /// What holds all that is made.
    pub lease: &'a str,
}

/// How far containerd is with something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransferProgress {
    /// `waiting`, `downloading`, `already exists`, `complete`, `extracting`, `extracted`,
    /// `saved`, or a sentence about the whole.
    pub event: String,
    /// The ingest, such as `layer-sha256:…`, or the image; empty for the whole.
    pub name: String,
    /// The names of what refers to it.
    pub parents: Vec<String>,
    /// Bytes that are there.
    pub current: u64,
    /// Bytes that there will be.
    pub total: u64,
}

impl Containerd {
    /// Has containerd pull an image. `progress` is told how far it is and must be
    /// received or dropped: a full channel holds the pull up. The reader of the progress
    /// runs on `readers`; when it has ended, containerd is through with the transfer,
    /// also where this future was dropped before.
    ///
    /// # Errors
    /// Those of containerd and of the registries, as containerd words them; one of which
    /// [`TransferRequest::is_unpack_refused`] is true if it does not unpack for this
    /// snapshotter; Unimplemented where there is no such service (1.6).
    pub async fn transfer_image(
        &self,
        request: TransferRequest<'_>,
        progress: mpsc::Sender<TransferProgress>,
        readers: &TaskTracker,
    ) -> Result<()> {
        const CALL: &str = "Transfer.Transfer";
        let questions = match &request.credentials {
            Some(credentials) => {
                let stream = self.open_stream("credentials", request.lease).await?;
                Some((stream, credentials.clone()))
            }
            None => None,
        };
        let told = self.open_stream("progress", request.lease).await?;
        let message = request.message(questions.as_ref().map(|(stream, _)| stream.id()), told.id());
        let reader = readers.spawn(read(told, progress));
        let mut client = TransferClient::new(self.wire.clone());
        let meter = METERS.containerd_call(CALL);
        let ended = tokio::select! {
            ended = client.transfer(leased(message, Some(request.lease))) => ended,
            never = answer(questions) => match never {},
        };
        meter.end(ended.as_ref().err().map_or(tonic::Code::Ok, tonic::Status::code));
        ended.map_err(|status| from_status(CALL, &status))?;
        if tokio::time::timeout(LAST_PROGRESS_LIMIT, reader).await.is_err() {
            debug!("the progress of a transfer that has ended goes on");
        }
        Ok(())
    }
}

impl TransferRequest<'_> {
    /// Whether `error` says that containerd's transfer plugin is not configured to unpack
    /// for the snapshotter (VER-05). Nothing was fetched then.
    #[must_use]
    pub fn is_unpack_refused(error: &Error) -> bool {
        error.kind() == Kind::InvalidArgument && error.message().contains("no unpack platforms defined")
    }

    fn message(&self, credentials_id: Option<&str>, progress_id: &str) -> api::TransferRequest {
        let resolver = messages::RegistryResolver {
            auth_stream: credentials_id.unwrap_or_default().to_owned(),
            headers: self.headers.clone(),
            host_dir: self.hosts_dir.unwrap_or_default().to_owned(),
            default_scheme: if self.plain_http { "http".to_owned() } else { String::new() },
            ..Default::default()
        };
        let source = messages::OciRegistry { reference: self.reference.to_owned(), resolver: Some(resolver) };
        let platforms: Vec<types::Platform> = self.platforms.iter().map(TransferPlatform::message).collect();
        let unpacks = self.snapshotter.map(|snapshotter| messages::UnpackConfiguration {
            platform: platforms.first().cloned(),
            snapshotter: snapshotter.to_owned(),
        });
        let destination = messages::ImageStore {
            name: self.record.to_owned(),
            labels: self.labels.clone(),
            platforms,
            // Else an index gives the images of all platforms that the node can run.
            manifest_limit: 1,
            unpacks: unpacks.into_iter().collect(),
            ..Default::default()
        };
        api::TransferRequest {
            source: Some(to_any(&source)),
            destination: Some(to_any(&destination)),
            options: Some(api::TransferOptions { progress_stream: progress_id.to_owned() }),
        }
    }
}

impl TransferPlatform {
    fn message(&self) -> types::Platform {
        types::Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
            ..Default::default()
        }
    }
}

/// Passes on what the progress stream says, to its end.
async fn read(mut stream: Stream, progress: mpsc::Sender<TransferProgress>) {
    while let Ok(Some(any)) = stream.receive().await {
        let Some(told) = decode::<messages::Progress>(&any, "containerd.types.transfer.Progress") else {
            continue;
        };
        let bytes = |count: i64| u64::try_from(count).unwrap_or(0);
        let told = TransferProgress {
            event: told.event,
            name: told.name,
            parents: told.parents,
            current: bytes(told.progress),
            total: bytes(told.total),
        };
        // Where nobody listens any more, the end is still waited for.
        let _ = progress.send(told).await;
    }
}

/// Answers containerd's questions for credentials; never comes back. Every question gets
/// an answer: containerd waits for it.
async fn answer(questions: Option<(Stream, Credentials)>) -> Infallible {
    if let Some((mut stream, credentials)) = questions {
        // A stream that breaks fails the call, whose error says more.
        while let Ok(Some(any)) = stream.receive().await {
            let asked = decode::<messages::AuthRequest>(&any, "containerd.types.transfer.AuthRequest");
            let host = asked.map(|asked| asked.host).unwrap_or_default();
            let login = credentials(&host);
            debug!(host, is_known = login.is_some(), "containerd asks for credentials");
            if stream.send(to_any(&response(login))).await.is_err() {
                break;
            }
        }
    }
    std::future::pending().await
}

fn response(login: Option<Login>) -> messages::AuthResponse {
    let (kind, username, secret) = match login {
        Some(Login::Password { username, secret }) => (messages::AuthType::Credentials, username, secret),
        Some(Login::Identity(token)) => (messages::AuthType::Refresh, String::new(), token),
        None => (messages::AuthType::None, String::new(), String::new()),
    };
    messages::AuthResponse { auth_type: kind as i32, secret, username, expire_at: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_does_not_show_itself() {
        let password = Login::Password { username: "ann".into(), secret: "hunter2".into() };
        let text = format!("{password:?} {:?}", Login::Identity("hunter2".into()));
        assert_eq!(text, "Password(\"<masked>\") Identity(\"<masked>\")");
    }

    #[test]
    fn each_form_of_a_login_is_answered_in_its_own_way() {
        let password = Login::Password { username: "ann".into(), secret: "x".into() };
        for (login, want) in [
            (Some(password), (messages::AuthType::Credentials, "ann", "x")),
            (Some(Login::Identity("y".into())), (messages::AuthType::Refresh, "", "y")),
            (None, (messages::AuthType::None, "", "")),
        ] {
            let answer = response(login);
            assert_eq!((answer.auth_type(), answer.username.as_str(), answer.secret.as_str()), want);
        }
    }

    #[test]
    fn a_request_asks_for_one_manifest_and_names_its_streams() {
        let request = TransferRequest {
            reference: "r.io/a:1",
            record: "n",
            platforms: vec![TransferPlatform { os: "linux".into(), ..Default::default() }],
            snapshotter: Some("overlayfs"),
            plain_http: true,
            ..Default::default()
        };
        let message = request.message(None, "p");
        let store: messages::ImageStore =
            decode(&message.destination.expect("set"), "containerd.types.transfer.ImageStore").expect("one");
        assert_eq!((store.name.as_str(), store.manifest_limit, store.unpacks.len()), ("n", 1, 1));
        assert_eq!(store.unpacks[0].platform.as_ref(), store.platforms.first());
        let source: messages::OciRegistry =
            decode(&message.source.expect("set"), "containerd.types.transfer.OCIRegistry").expect("one");
        let resolver = source.resolver.expect("set");
        assert_eq!((resolver.auth_stream.as_str(), resolver.default_scheme.as_str()), ("", "http"));
        assert_eq!(message.options.expect("set").progress_stream, "p");
    }
}
