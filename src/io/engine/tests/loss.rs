//! Files that cannot be opened or written, disks that are full or hang.

use super::*;

#[test]
fn a_log_that_cannot_be_opened_is_named_and_leaves_nothing() {
    let scene = Scene::new();
    let mut io = scene.io("c1");
    io.log_path = Some("/proc/none/0.log".into());
    let error = scene.engine.add(io.clone()).expect_err("no such place");
    assert!(error.message().contains("/proc/none/0.log"), "{error}");
    io.log_path = Some(scene.log());
    io.stderr = Some("/proc/none/fifo".into());
    let error = scene.engine.add(io).expect_err("no such place");
    assert!(error.message().contains("/proc/none/fifo"), "{error}");
    assert!(scene.engine.list().is_empty());
}

#[test]
fn a_full_disk_loses_output_but_never_blocks_the_container() {
    let scene = Scene::new();
    let io = scene.io("c1");
    let log = scene.log();
    let Some(_tmpfs) = Tmpfs::mount(log.parent().expect("a folder").to_owned(), 4 << 20) else { return };
    let filler = log.with_file_name("filler");
    std::fs::write(&filler, vec![0; 4 << 20]).expect("it fits");
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    // More than any pipe holds: it must be drained.
    for _ in 0..40_000 {
        stdout.write("this line is lost, since the disk is full\n");
    }
    let kept = scene.wait("c1", |kept| kept.lost_entries > 0);
    assert_eq!(kept.last_error.as_deref(), Some("No space left on device"));
    // It works again: entries come whole.
    std::fs::remove_file(&filler).expect("removed");
    stdout.write("back\n");
    drop((stdout, stderr));
    let kept = scene.drained("c1");
    let shown = shown(&log);
    assert_eq!(shown.last().expect("an entry"), "stdout F back");
    assert_eq!(kept.lost_entries as usize + shown.len(), 40_001, "each is written or counted");
}

/// A container may have its log's folder mounted, and swap what is in it.
#[test]
fn a_log_that_has_become_a_link_or_a_device_is_not_opened() {
    let scene = Scene::new();
    let io = ContainerIo { log_root: Some(scene.folder.path().join("pods")), ..scene.io("c1") };
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    let (log, outside) = (scene.log(), scene.folder.path().join("outside"));
    std::fs::rename(&log, log.with_extension("old")).expect("rotated");
    for target in [outside.as_path(), Path::new("/dev/null")] {
        std::os::unix::fs::symlink(target, &log).expect("linked");
        let error = scene.engine.reopen("c1").expect_err("it is a link");
        assert!(error.message().contains("0.log"), "{error}");
        std::fs::remove_file(&log).expect("removed");
    }
    let folder = log.parent().expect("a folder");
    std::fs::rename(folder, folder.with_file_name("moved")).expect("moved");
    std::fs::create_dir(&outside).expect("made");
    std::os::unix::fs::symlink(&outside, folder).expect("linked");
    scene.engine.reopen("c1").expect_err("its folder is a link");
    assert_eq!(std::fs::read_dir(&outside).expect("a folder").count(), 0);
    // What was open stays in use.
    stdout.write("still here\n");
    drop((stdout, stderr));
    scene.drained("c1");
    assert_eq!(shown(&folder.with_file_name("moved").join("0.old")), ["stdout F still here"]);
}

/// A small file system, gone with the value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf, bytes: usize) -> Option<Tmpfs> {
        std::fs::create_dir_all(&at).expect("made");
        let options = std::ffi::CString::new(format!("size={bytes}")).expect("no NUL");
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", &at, "tmpfs", flags, &*options) {
            Ok(()) => Some(Tmpfs(at)),
            Err(error) => {
                eprintln!("skipped: a mount is needed: {error}");
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn an_entry_torn_by_a_full_disk_is_cut_off_and_writing_goes_on_at_a_line() {
    let scene = Scene::new();
    let io = scene.io("c1");
    let log = scene.log();
    let Some(_tmpfs) = Tmpfs::mount(log.parent().expect("a folder").to_owned(), 1 << 20) else { return };
    let filler = log.with_file_name("filler");
    std::fs::write(&filler, vec![0; 896 << 10]).expect("it fits");
    scene.engine.add(io.clone()).expect("added");
    let mut stdout = Shim::open(&io.stdout);
    let stderr = Shim::open(&io.stderr);
    for number in 0..5000 {
        stdout.write(format!("{number} is one of the lines that fill the disk\n"));
    }
    let kept = scene.wait("c1", |kept| kept.lost_entries > 0);
    assert_eq!(kept.last_error.as_deref(), Some("No space left on device"));
    std::fs::remove_file(&filler).expect("removed");
    stdout.write("back\n");
    drop((stdout, stderr));
    let kept = scene.drained("c1");
    // This also asserts that all entries are whole.
    let shown = shown(&log);
    assert_eq!(shown[0], "stdout F 0 is one of the lines that fill the disk");
    assert_eq!(shown.last().expect("an entry"), "stdout F back");
    assert_eq!(kept.lost_entries as usize + shown.len(), 5001);
}

#[test]
fn a_log_file_that_hangs_holds_up_no_other_container() {
    let scene = Scene::with_workers(1);
    let (hung, other) = (scene.io("c1"), scene.io("c2"));
    scene.engine.add(hung.clone()).expect("added");
    scene.engine.add(other.clone()).expect("added");
    let mut hung = (Shim::open(&hung.stdout), Shim::open(&hung.stderr));
    let mut shims = (Shim::open(&other.stdout), Shim::open(&other.stderr));
    // Inside is a worker that is stuck in a write; the one that is left has all the rest.
    let stuck = scene.engine.shared.container("c1").expect("known").sources[0].clone();
    assert!(stuck.enter());
    hung.0.write("one\n");
    hung.1.write("two\n");
    drop(hung);
    shims.0.write("free\n");
    drop(shims);
    scene.drained("c2");
    assert_eq!(shown(other.log_path.as_deref().expect("it has one")), ["stdout F free"]);
    assert!(!scene.engine.get("c1").expect("known").is_drained);
    scene.engine.shared.hand_out(stuck.exit());
    scene.drained("c1");
    assert_eq!(shown(&scene.log()).len(), 2);
}

#[test]
fn a_folder_that_vanished_stops_nothing() {
    let scene = Scene::new();
    let io = scene.io("c1");
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    std::fs::remove_dir_all(scene.folder.path().join("pods")).expect("removed");
    // More than any pipe holds.
    (0..100_000).for_each(|_| stdout.write("into a file without a name\n"));
    scene.engine.reopen("c1").expect("reopened");
    stdout.write("and back\n");
    drop((stdout, stderr));
    let kept = scene.drained("c1");
    let shown = shown(&scene.log());
    assert_eq!(shown.last().expect("an entry"), "stdout F and back");
    assert_eq!(shown.len() as u64 + kept.lost_entries, 100_001, "what nobody could find is told");
    assert_eq!(kept.last_error.as_deref(), Some("the log file was removed"));
}
