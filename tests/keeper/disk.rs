//! Logs that cannot be written: a disk that is full, a folder that is gone. The container
//! goes on, what is lost is counted and told once, and what comes when it can be written
//! again is (LOG-10).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use longshore::io::Keeper;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::fixture::{LIMIT, PAUSE, Scene, Shim, exe, shown, until};

/// More than any pipe holds.
const LINES: usize = 50_000;

/// A small file system of its own.
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// None, after saying so, without the right to mount.
    pub(crate) fn of(path: &Path, bytes: usize) -> Option<Disk> {
        std::fs::create_dir_all(path).expect("a folder");
        let options = std::ffi::CString::new(format!("size={bytes}")).expect("text");
        match mount("tmpfs", path, "tmpfs", MountFlags::empty(), options.as_c_str()) {
            Ok(()) => Some(Disk(path.to_owned())),
            Err(error) => {
                eprintln!("skipped: a file system cannot be mounted: {error}");
                None
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A keeper whose log is a file.
struct Told {
    child: Child,
    log: PathBuf,
}

impl Told {
    fn start(scene: &Scene) -> Told {
        let log = scene.folder.path().join("keeper.log");
        let file = File::create(&log).expect("a file");
        let mut command = Command::new(exe());
        command.args(["keeper", "--socket"]).arg(scene.socket());
        let child = command.stdout(Stdio::null()).stderr(file).spawn().expect("it starts");
        Told { child, log }
    }

    /// What it has told of losses.
    fn losses(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).expect("text");
        text.lines().filter(|line| line.contains("could not be written")).map(String::from).collect()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn lost(keeper: &Keeper) -> (u64, Option<String>) {
    let kept = keeper.list().await.expect("listed").pop().expect("one");
    (kept.lost_entries, kept.last_error)
}

fn flood(shim: &mut Shim) {
    (0..LINES).for_each(|line| shim.write(format!("{line:040}\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_lines_and_not_the_container() {
    let scene = Scene::new();
    let Some(disk) = Disk::of(scene.log("c1").parent().expect("a folder"), 1 << 20) else { return };
    std::fs::write(disk.0.join("other"), vec![7; 512 << 10]).expect("written");
    let told = Told::start(&scene);
    let first = until("a keeper listens", || scene.connect().ok());
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    drop(first);
    let (mut stdout, stderr) = Shim::pair(&io);
    flood(&mut stdout);
    until("it is told", || (!told.losses().is_empty()).then_some(()));
    // What is still in the pipe would fill the room again.
    let seen = async || shown(&scene.log("c1")).len() + lost(&keeper).await.0 as usize;
    let all_seen = async {
        while seen().await < LINES {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(LIMIT, all_seen).await.expect("every line is written or lost");
    // Somebody makes room.
    std::fs::remove_file(disk.0.join("other")).expect("removed");
    stdout.write("there is room\n");
    scene.logged("c1", "stdout F there is room");
    drop((stdout, stderr));
    assert!(keeper.drained("c1", LIMIT).await.expect("known"));

    let (entries, error) = lost(&keeper).await;
    assert_eq!(error.as_deref(), Some("No space left on device"));
    let written = shown(&scene.log("c1"));
    assert_eq!(written.len() + entries as usize, LINES + 1, "every line is written or counted");
    let numbers = written[..written.len() - 1].iter().map(|entry| {
        let number = entry.strip_prefix("stdout F ").expect("a whole entry");
        number.parse::<usize>().expect("a number")
    });
    assert!(numbers.clone().zip(numbers.skip(1)).all(|(before, after)| before < after));
    let text = std::fs::read(scene.log("c1")).expect("the log");
    assert!(text.ends_with(b"\n") && !text.windows(2).any(|pair| pair == b"\n\n"), "nothing torn is left");
    assert_eq!(told.losses().len(), 1, "{:?}", told.losses());
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_gone_costs_lines_until_the_log_is_opened_again() {
    let scene = Scene::new();
    let told = Told::start(&scene);
    let first = until("a keeper listens", || scene.connect().ok());
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    drop(first);
    let (mut stdout, stderr) = Shim::pair(&io);
    stdout.write("before\n");
    scene.logged("c1", "stdout F before");
    std::fs::remove_dir_all(scene.log("c1").parent().expect("a folder")).expect("removed");
    // The file is looked for once in a while.
    until("the loss is told", || {
        stdout.write("nobody sees this\n");
        (!told.losses().is_empty()).then_some(())
    });
    flood(&mut stdout);
    assert!(!scene.log("c1").exists());
    // As the kubelet asks for it when it misses the file (LOG-16).
    keeper.reopen("c1").await.expect("reopened");
    stdout.write("after\n");
    scene.logged("c1", "stdout F after");
    drop((stdout, stderr));
    assert!(keeper.drained("c1", LIMIT).await.expect("known"));
    let (entries, error) = lost(&keeper).await;
    assert!(entries > 0);
    assert_eq!(error.as_deref(), Some("the log file was removed"));
    assert_eq!(told.losses().len(), 1, "{:?}", told.losses());
}
