//! A containerd of the test's own, and the images in it.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use longshore::config::{Config, Overrides};
use longshore::containerd::{Containerd, Event};
use longshore::error::Result;
use longshore::flow::Flow;
use longshore::image::{Images, Pull};
use longshore::proto::cri;
use longshore::sys::mount::{tmpfs, unmount_below};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes, shorter than the patience of who waits.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "k8s.io";

pub(crate) struct Node {
    pub(crate) images: Images,
    pub(crate) containerd: Containerd,
    pub(crate) flow: Flow,
    pub(crate) config: Config,
    pub(crate) events: mpsc::Receiver<Event>,
    stop: CancellationToken,
    daemon: Child,
    ctr: PathBuf,
    folder: TempDir,
}

fn binary(name: &str) -> Option<PathBuf> {
    let folders = match std::env::var_os("LONGSHORE_TEST_CONTAINERD") {
        Some(folder) => vec![PathBuf::from(folder)],
        None => std::env::split_paths(&std::env::var_os("PATH")?).collect(),
    };
    folders.into_iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}

impl Node {
    /// Starts one; none, after saying why, where that cannot be.
    pub(crate) async fn start() -> Option<Node> {
        Node::with("").await
    }

    /// Starts one with lines of configuration for longshore.
    pub(crate) async fn with(settings: &str) -> Option<Node> {
        Node::in_folder(tempfile::tempdir().expect("folder"), settings).await
    }

    /// Starts one whose containerd has a disk of so many bytes.
    pub(crate) async fn with_disk(bytes: usize) -> Option<Node> {
        let folder = tempfile::tempdir().expect("folder");
        if rustix::process::geteuid().is_root() {
            let disk = folder.path().join("root");
            std::fs::create_dir(&disk).expect("folder");
            tmpfs(&disk, &format!("size={bytes}")).expect("mounted");
        }
        Node::in_folder(folder, "").await
    }

    /// Starts one in a folder in which files of its configuration may lie already.
    pub(crate) async fn in_folder(folder: TempDir, settings: &str) -> Option<Node> {
        let (Some(containerd), Some(ctr)) = (binary("containerd"), binary("ctr")) else {
            eprintln!("skipped: no containerd");
            return None;
        };
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return None;
        }
        let daemon = start_daemon(&containerd, folder.path()).await;
        let config = configuration(folder.path(), settings);
        let client =
            Containerd::new(&socket(folder.path()), NAMESPACE, Duration::from_secs(30)).expect("client");
        let (sender, mut events) = mpsc::channel(1000);
        let stop = CancellationToken::new();
        tokio::spawn(client.clone().watch(sender, stop.clone()));
        let connected = tokio::time::timeout(LIMIT, events.recv()).await.expect("containerd answers");
        assert!(matches!(connected, Some(Event::Connected)));
        let images = Images::new(client.clone(), &config);
        Some(Node {
            images,
            containerd: client,
            flow: Flow::default(),
            config,
            events,
            stop,
            daemon,
            ctr,
            folder,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A folder for the configuration of the registry `domain`.
    pub(crate) fn registry_folder(&self, domain: &str) -> PathBuf {
        let name = if domain.contains(':') { domain.replace(':', "_") + "_" } else { domain.to_owned() };
        let folder = self.path().join("certs.d").join(name);
        std::fs::create_dir_all(&folder).expect("folder");
        folder
    }

    /// The hosts.toml of the registry `domain`.
    pub(crate) fn configure_registry(&self, domain: &str, hosts: &str) {
        std::fs::write(self.registry_folder(domain).join("hosts.toml"), hosts).expect("file");
    }

    pub(crate) async fn pull(&self, reference: &str) -> Result<String> {
        self.pull_as(reference, None, "overlayfs").await
    }

    pub(crate) async fn pull_for(&self, reference: &str, snapshotter: &str) -> Result<String> {
        self.pull_as(reference, None, snapshotter).await
    }

    /// Pulls with the kubelet's credentials.
    pub(crate) async fn pull_with(&self, reference: &str, auth: cri::AuthConfig) -> Result<String> {
        self.pull_as(reference, Some(auth), "overlayfs").await
    }

    pub(crate) async fn pull_as(
        &self,
        reference: &str,
        auth: Option<cri::AuthConfig>,
        snapshotter: &str,
    ) -> Result<String> {
        let image = cri::ImageSpec { image: reference.into(), ..Default::default() };
        let pull = Pull { image, auth, snapshotter: snapshotter.into() };
        tokio::time::timeout(LIMIT, self.images.pull(&self.flow, pull)).await.expect("a pull ends")
    }

    /// Runs ctr in a namespace and gives what it prints.
    pub(crate) fn ctr_in(&self, namespace: &str, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.ctr)
            .args(["--namespace", namespace, "--address"])
            .arg(socket(self.path()))
            .args(arguments)
            .output()
            .expect("ctr starts");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(String::from_utf8(output.stdout).expect("UTF-8"))
    }

    /// Runs ctr, which must succeed.
    pub(crate) fn ctr(&self, arguments: &[&str]) -> String {
        self.ctr_in(NAMESPACE, arguments).unwrap_or_else(|error| panic!("ctr {arguments:?}: {error}"))
    }

    /// The lines of a quiet list of ctr.
    pub(crate) fn ctr_list(&self, arguments: &[&str]) -> Vec<String> {
        let mut lines: Vec<String> = self.ctr(arguments).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// Another client of the same containerd.
    pub(crate) fn client_of(&self, namespace: &str) -> Containerd {
        Containerd::new(&socket(self.path()), namespace, Duration::from_secs(30)).expect("client")
    }

    /// The keys of all snapshots.
    pub(crate) async fn snapshots(&self) -> Vec<String> {
        let list = self.containerd.list_snapshots("overlayfs").await.expect("snapshots");
        list.into_iter().map(|snapshot| snapshot.name).collect()
    }

    /// Makes containerd collect everything that nothing holds, and waits for it.
    pub(crate) async fn collect_garbage(&self) {
        self.containerd.create_lease("collect", Default::default()).await.expect("lease");
        self.containerd.delete_lease("collect", true).await.expect("collected");
    }

    /// What an ended pull must not leave: leases, ingests, half-made snapshots. They
    /// are taken away in the background when the caller went away, so this waits.
    pub(crate) async fn must_have_no_leftovers(&self) {
        let end = tokio::time::Instant::now() + LIMIT;
        loop {
            let leases = self.containerd.list_leases().await.expect("leases");
            let leases: Vec<String> = leases.into_iter().map(|lease| lease.id).collect();
            let ingests = self.ctr(&["content", "active"]);
            let ingests: Vec<&str> = ingests.lines().skip(1).collect();
            let mut temporary = self.snapshots().await;
            temporary.retain(|key| !key.starts_with("sha256:"));
            if leases.is_empty() && ingests.is_empty() && temporary.is_empty() {
                return;
            }
            assert!(
                tokio::time::Instant::now() < end,
                "left behind: leases {leases:?}, ingests {ingests:?}, snapshots {temporary:?}"
            );
            tokio::task::yield_now().await;
        }
    }

    /// After pulls that failed: no image, no content, no snapshot, no leftover.
    pub(crate) async fn must_have_no_image(&self) {
        assert!(self.images.list().is_empty());
        assert!(self.containerd.list_images().await.expect("images").is_empty());
        self.must_have_no_leftovers().await;
        self.collect_garbage().await;
        assert_eq!(self.stored("ingest"), BTreeSet::new());
        assert_eq!(self.stored("blobs/sha256"), BTreeSet::new());
        assert!(self.snapshots().await.is_empty());
    }

    /// The digests of all content, whatever its namespace.
    pub(crate) fn content(&self) -> BTreeSet<String> {
        self.stored("blobs/sha256").into_iter().map(|hex| format!("sha256:{hex}")).collect()
    }

    /// What is in a folder of the content store.
    fn stored(&self, folder: &str) -> BTreeSet<String> {
        let folder = self.path().join("root/io.containerd.content.v1.content").join(folder);
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
        let pid = rustix::process::Pid::from_child(&self.daemon);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.daemon.wait();
        // A daemon that was stopped while it unpacked leaves its mounts.
        let _ = unmount_below(self.folder.path());
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("c.sock")
}

async fn start_daemon(binary: &Path, folder: &Path) -> Child {
    let root = folder.display();
    let config = format!(
        r#"version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.grpc.v1.sandbox-controllers", "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.erofs",
]
[grpc]
address = "{root}/c.sock"
[ttrpc]
address = "{root}/c.sock.ttrpc"
[plugins."io.containerd.image-verifier.v1.bindir"]
bin_dir = "{root}/verifiers"
"#
    );
    std::fs::write(folder.join("containerd.toml"), config).expect("file");
    let log = std::fs::File::create(folder.join("containerd.log")).expect("file");
    let ready = folder.join("ready.sock");
    let notified = UnixDatagram::bind(&ready).expect("socket");
    notified.set_read_timeout(Some(LIMIT)).expect("limit");
    let daemon = Command::new(binary)
        .arg("--config")
        .arg(folder.join("containerd.toml"))
        .env("NOTIFY_SOCKET", &ready)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("descriptor"))
        .stderr(log)
        .spawn()
        .expect("containerd starts");
    let message = tokio::task::spawn_blocking(move || {
        let mut message = [0; 256];
        loop {
            match notified.recv(&mut message) {
                // A child of another test ended.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                received => {
                    break received.map(|length| String::from_utf8_lossy(&message[..length]).into_owned());
                }
            }
        }
    });
    let message = message.await.expect("no panic").unwrap_or_else(|error| {
        let log = std::fs::read_to_string(folder.join("containerd.log")).unwrap_or_default();
        panic!("containerd is not ready ({error}): {log}")
    });
    assert!(message.contains("READY=1"), "{message}");
    daemon
}

fn configuration(folder: &Path, settings: &str) -> Config {
    let root = folder.display();
    let text = format!(
        r#"
root = "{root}/longshore"
state = "{root}/longshore-state"
[containerd]
address = "{root}/c.sock"
[image]
verifier_dir = "{root}/verifiers"
registry_config_dirs = ["{root}/nothing.d", "{root}/certs.d"]
containerd_config = "{root}/imported.toml"
{settings}
"#
    );
    let file = folder.join("longshore.toml");
    std::fs::write(&file, text).expect("file");
    Config::load(Some(&file), &Overrides::default()).expect("valid")
}
