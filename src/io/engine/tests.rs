//! The engine with real FIFOs, files and a writer that opens them as the runc shim does.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};

use super::*;
use crate::error::Kind;
use crate::io::fifo::{Fifos, Wanted};

/// Both ends of a FIFO, as the shim opens them: first for writing, then for reading.
struct Shim {
    writer: File,
    _reader: File,
}

impl Shim {
    fn open(path: &Option<PathBuf>) -> Shim {
        let path = path.as_ref().expect("wanted");
        let writer = File::options().write(true).open(path).expect("somebody reads");
        Shim { writer, _reader: File::open(path).expect("somebody writes") }
    }

    fn write(&mut self, text: impl AsRef<[u8]>) {
        self.writer.write_all(text.as_ref()).expect("the FIFO takes it");
    }
}

/// A folder with FIFOs and a log, and an engine.
struct Bench {
    folder: tempfile::TempDir,
    engine: Engine,
}

impl Bench {
    fn new() -> Bench {
        Bench { folder: tempfile::tempdir().expect("a folder"), engine: Engine::start(2).expect("started") }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("pods/c1/0.log")
    }

    fn io(&self, id: &str) -> ContainerIo {
        let wanted = Wanted { stdin: true, stdout: true, stderr: true };
        let fifos = Fifos::make(self.folder.path(), id, id, wanted).expect("made");
        ContainerIo {
            id: id.into(),
            stdin: None,
            stdout: fifos.stdout,
            stderr: fifos.stderr,
            log_path: Some(self.folder.path().join(format!("pods/{id}/0.log"))),
            line_bytes_max: 64,
            started: false,
        }
    }

    /// Waits for a state of a container.
    fn wait(&self, id: &str, is_so: impl Fn(&KeptIo) -> bool) -> KeptIo {
        loop {
            let kept = self.engine.get(id).expect("it is known");
            if is_so(&kept) {
                return kept;
            }
            let mut fds = [PollFd::from_borrowed_fd(self.engine.changed(), PollFlags::IN)];
            poll(&mut fds, None).expect("polled");
            rustix::io::read(self.engine.changed(), &mut [0; 8]).expect("it was readable");
        }
    }

    fn drained(&self, id: &str) -> KeptIo {
        self.wait(id, |kept| kept.is_drained)
    }
}

/// An entry of a log file.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    time: String,
    stream: String,
    tag: String,
    content: Vec<u8>,
}

/// All entries of a file, which has nothing else in it.
fn entries(path: &Path) -> Vec<Entry> {
    let bytes = std::fs::read(path).expect("the log is there");
    assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "{path:?} ends in an entry");
    let lines = bytes.split_inclusive(|&byte| byte == b'\n');
    lines
        .map(|line| {
            let mut fields = line[..line.len() - 1].splitn(4, |&byte| byte == b' ');
            let mut text = || String::from_utf8(fields.next().expect("a field").to_vec()).expect("text");
            let (time, stream, tag) = (text(), text(), text());
            assert!(time.parse::<jiff::Timestamp>().is_ok() && time.len() == 30, "{time}");
            assert!(
                ["stdout", "stderr"].contains(&&*stream) && ["P", "F"].contains(&&*tag),
                "{stream} {tag}"
            );
            Entry { time, stream, tag, content: fields.next().expect("a content").to_vec() }
        })
        .collect()
}

/// Entries without their times.
fn shown(path: &Path) -> Vec<String> {
    let text =
        |entry: Entry| format!("{} {} {}", entry.stream, entry.tag, String::from_utf8_lossy(&entry.content));
    entries(path).into_iter().map(text).collect()
}

#[test]
fn both_streams_go_to_one_file_and_drain_at_their_ends() {
    let bench = Bench::new();
    let io = bench.io("c1");
    bench.engine.add(io.clone()).expect("added");
    // LOG-19, CTR-17: it is there before there is output.
    let metadata = std::fs::metadata(bench.log()).expect("the log is there");
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (0, 0o640));
    let (mut stdout, mut stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    stdout.write("one\ntwo\r\n");
    stderr.write("oops\n\n");
    stdout.write("three");
    drop(stderr);
    assert!(!bench.engine.get("c1").expect("known").is_drained);
    drop(stdout);
    bench.drained("c1");
    let shown = shown(&bench.log());
    let of = |stream: &str| shown.iter().filter(|line| line.starts_with(stream)).collect::<Vec<_>>();
    assert_eq!(of("stdout"), ["stdout F one", "stdout F two", "stdout P three"]);
    assert_eq!(of("stderr"), ["stderr F oops", "stderr F "]);
    assert_eq!(bench.engine.list().len(), 1, "it stays listed");
    bench.engine.remove("c1");
    assert!(bench.engine.is_empty());
}

#[test]
fn times_rise_and_never_repeat() {
    let bench = Bench::new();
    let io = bench.io("c1");
    bench.engine.add(io.clone()).expect("added");
    let flood = |path: &Option<PathBuf>| {
        let mut shim = Shim::open(path);
        std::thread::spawn(move || (0..20_000).for_each(|_| shim.write("x\n")))
    };
    let floods = [flood(&io.stdout), flood(&io.stderr)];
    floods.into_iter().for_each(|flood| flood.join().expect("no panic"));
    bench.drained("c1");
    let entries = entries(&bench.log());
    assert_eq!(entries.len(), 40_000);
    assert!(entries.windows(2).all(|pair| pair[0].time < pair[1].time));
}

/// Writes `count` numbered lines of different lengths, in writes of odd sizes.
fn write_numbered(mut shim: Shim, count: usize) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let lines = (0..count).map(|number| format!("{number} {}\n", "x".repeat(number * 7 % 150)));
        let bytes = lines.collect::<String>().into_bytes();
        bytes.chunks(9973).for_each(|piece| shim.write(piece));
    })
}

/// Asserts that `entries` of one stream are the lines of [`write_numbered`].
fn assert_numbered(entries: &[&Entry], count: usize) {
    let mut lines = Vec::new();
    let mut line = Vec::new();
    for entry in entries {
        line.extend_from_slice(&entry.content);
        if entry.tag == "F" {
            lines.push(std::mem::take(&mut line));
        }
    }
    assert!(line.is_empty());
    assert_eq!(lines.len(), count);
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("{number} {}", "x".repeat(number * 7 % 150)).into_bytes());
    }
}

#[test]
fn a_change_of_the_file_under_load_loses_and_splits_nothing() {
    const LINES: usize = 60_000;
    let bench = Bench::new();
    let io = bench.io("c1");
    bench.engine.add(io.clone()).expect("added");
    let writers =
        [write_numbered(Shim::open(&io.stdout), LINES), write_numbered(Shim::open(&io.stderr), LINES)];
    let mut rotated: Vec<(PathBuf, u64)> = Vec::new();
    while !writers.iter().all(JoinHandle::is_finished) && rotated.len() < 200 {
        // As the kubelet does: rename, then reopen (LOG-16).
        let old = bench.log().with_extension(format!("{}", rotated.len()));
        std::fs::rename(bench.log(), &old).expect("renamed");
        bench.engine.reopen("c1").expect("reopened");
        assert!(bench.log().exists(), "LOG-13");
        let length = std::fs::metadata(&old).expect("it is there").len();
        rotated.push((old, length));
    }
    writers.into_iter().for_each(|writer| writer.join().expect("no panic"));
    bench.drained("c1");
    let mut all = Vec::new();
    for (old, length) in &rotated {
        assert_eq!(std::fs::metadata(old).expect("it is there").len(), *length, "LOG-13: it has grown");
        all.extend(entries(old));
    }
    all.extend(entries(&bench.log()));
    for stream in ["stdout", "stderr"] {
        assert_numbered(&all.iter().filter(|entry| entry.stream == stream).collect::<Vec<_>>(), LINES);
    }
    assert!(all.windows(2).all(|pair| pair[0].time < pair[1].time));
}

#[test]
fn reopen_makes_what_is_missing_and_goes_on_in_what_is_there() {
    let bench = Bench::new();
    let io = bench.io("c1");
    assert_eq!(bench.engine.reopen("c1").expect_err("unknown").kind(), Kind::NotFound);
    bench.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    stdout.write("before\n");
    // Not renamed: the same file (LOG-16). Twice in a row.
    bench.engine.reopen("c1").expect("reopened");
    bench.engine.reopen("c1").expect("reopened");
    std::fs::remove_dir_all(bench.log().parent().expect("a folder")).expect("removed");
    bench.engine.reopen("c1").expect("reopened");
    assert!(bench.log().exists());
    stdout.write("after\n");
    drop((stdout, stderr));
    bench.drained("c1");
    assert_eq!(shown(&bench.log()).last().expect("an entry"), "stdout F after");
    // Also when it has drained, without keeping it open.
    std::fs::remove_file(bench.log()).expect("removed");
    bench.engine.reopen("c1").expect("reopened");
    assert!(bench.log().exists());
}

#[test]
fn a_reopen_that_fails_keeps_the_old_file() {
    let bench = Bench::new();
    let io = bench.io("c1");
    bench.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    let old = bench.log().with_extension("old");
    std::fs::rename(bench.log(), &old).expect("renamed");
    std::fs::create_dir(bench.log()).expect("something in the way");
    let error = bench.engine.reopen("c1").expect_err("it is a folder");
    assert!(error.message().contains("0.log"), "{error}");
    stdout.write("still here\n");
    drop((stdout, stderr));
    bench.drained("c1");
    assert_eq!(shown(&old), ["stdout F still here"]);
}

#[test]
fn a_log_that_cannot_be_opened_is_named_and_leaves_nothing() {
    let bench = Bench::new();
    let mut io = bench.io("c1");
    io.log_path = Some("/proc/none/0.log".into());
    let error = bench.engine.add(io.clone()).expect_err("no such place");
    assert!(error.message().contains("/proc/none/0.log"), "{error}");
    io.log_path = Some(bench.log());
    io.stderr = Some("/proc/none/fifo".into());
    let error = bench.engine.add(io).expect_err("no such place");
    assert!(error.message().contains("/proc/none/fifo"), "{error}");
    assert!(bench.engine.is_empty());
}

#[test]
fn a_full_disk_loses_output_but_never_blocks_the_container() {
    let bench = Bench::new();
    let io = bench.io("c1");
    let log = bench.log();
    std::fs::create_dir_all(log.parent().expect("a folder")).expect("made");
    std::os::unix::fs::symlink("/dev/full", &log).expect("linked");
    bench.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    // More than any pipe holds: it must be drained.
    for _ in 0..40_000 {
        stdout.write("this line is lost, since the disk is full\n");
    }
    let kept = bench.wait("c1", |kept| kept.lost_entries > 0);
    assert_eq!(kept.last_error.as_deref(), Some("No space left on device"));
    // It works again: entries come whole.
    std::fs::remove_file(&log).expect("removed");
    bench.engine.reopen("c1").expect("reopened");
    stdout.write("back\n");
    drop((stdout, stderr));
    let kept = bench.drained("c1");
    let shown = shown(&log);
    assert_eq!(shown.last().expect("an entry"), "stdout F back");
    assert_eq!(kept.lost_entries as usize + shown.len(), 40_001, "each is written or counted");
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
    let bench = Bench::new();
    let io = bench.io("c1");
    let log = bench.log();
    let Some(_tmpfs) = Tmpfs::mount(log.parent().expect("a folder").to_owned(), 1 << 20) else { return };
    let filler = log.with_file_name("filler");
    std::fs::write(&filler, vec![0; 896 << 10]).expect("it fits");
    bench.engine.add(io.clone()).expect("added");
    let mut stdout = Shim::open(&io.stdout);
    let stderr = Shim::open(&io.stderr);
    for number in 0..5000 {
        stdout.write(format!("{number} is one of the lines that fill the disk\n"));
    }
    let kept = bench.wait("c1", |kept| kept.lost_entries > 0);
    assert_eq!(kept.last_error.as_deref(), Some("No space left on device"));
    std::fs::remove_file(&filler).expect("removed");
    stdout.write("back\n");
    drop((stdout, stderr));
    let kept = bench.drained("c1");
    // This also asserts that all entries are whole.
    let shown = shown(&log);
    assert_eq!(shown[0], "stdout F 0 is one of the lines that fill the disk");
    assert_eq!(shown.last().expect("an entry"), "stdout F back");
    assert_eq!(kept.lost_entries as usize + shown.len(), 5001);
}

#[test]
fn removing_an_open_container_writes_what_is_there() {
    let bench = Bench::new();
    let io = bench.io("c1");
    bench.engine.add(io.clone()).expect("added");
    let (mut stdout, mut stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    stdout.write("whole\nunfin");
    stdout.write("ished");
    bench.engine.remove("c1");
    assert_eq!(shown(&bench.log()), ["stdout F whole", "stdout P unfinished"]);
    // The shim holds its own reading end, so that this is no SIGPIPE.
    stderr.write("unheard\n");
    bench.engine.remove("c1");
    assert_eq!(shown(&bench.log()).len(), 2);
    assert!(bench.engine.get("c1").is_none());
}

#[test]
fn adding_again_changes_nothing_unless_it_is_something_else() {
    let bench = Bench::new();
    let io = bench.io("c1");
    bench.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    stdout.write("half ");
    bench.engine.add(io.clone()).expect("the same is fine");
    bench.engine.add(ContainerIo { started: true, ..io.clone() }).expect("the same is fine");
    stdout.write("a line\n");
    drop((stdout, stderr));
    bench.drained("c1");
    assert_eq!(shown(&bench.log()), ["stdout F half a line"], "it was not interrupted");
    bench.engine.add(io.clone()).expect("the same is fine");
    assert!(bench.engine.get("c1").expect("known").is_drained, "and stays drained");
    // Others under the same id: read from them.
    let other = bench.io("c1");
    assert_ne!(other, io);
    bench.engine.add(other.clone()).expect("replaced");
    let (mut stdout, stderr) = (Shim::open(&other.stdout), Shim::open(&other.stderr));
    stdout.write("more\n");
    drop((stdout, stderr));
    bench.drained("c1");
    assert_eq!(shown(&bench.log()), ["stdout F half a line", "stdout F more"]);
    // The same path, but a FIFO that was made anew.
    let path = other.stdout.clone().expect("wanted");
    std::fs::rename(&path, path.with_extension("old")).expect("moved away");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).expect("made");
    bench.engine.add(other).expect("replaced");
    assert!(!bench.engine.get("c1").expect("known").is_drained);
}

#[test]
fn output_that_waits_since_before_a_restart_is_taken_up() {
    let bench = Bench::new();
    let io = bench.io("c1");
    bench.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    let Bench { folder, engine } = bench;
    // The end of a keeper; the shim goes on into the pipe.
    drop(engine);
    stdout.write("while nobody read\n");
    let bench = Bench { folder, engine: Engine::start(1).expect("started") };
    bench.engine.add(ContainerIo { started: true, ..io.clone() }).expect("added");
    stdout.write("and after\n");
    drop((stdout, stderr));
    bench.drained("c1");
    assert_eq!(shown(&bench.log()), ["stdout F while nobody read", "stdout F and after"]);
}

#[test]
fn a_started_container_whose_writers_have_gone_is_at_its_end() {
    let bench = Bench::new();
    let io = bench.io("c1");
    // What a client holds: the pipe lives on.
    let (reader, _) = fifo::open_reader(io.stdout.as_deref().expect("wanted"), false).expect("opened");
    let mut stdout = Shim::open(&io.stdout);
    stdout.write("last words");
    drop(stdout);
    assert!(fifo::is_hung_up(&reader));
    bench.engine.add(ContainerIo { started: true, ..io }).expect("added");
    bench.drained("c1");
    assert_eq!(shown(&bench.log()), ["stdout P last words"]);
}

#[test]
fn without_a_log_output_goes_nowhere_but_goes() {
    let bench = Bench::new();
    let io = ContainerIo { log_path: None, ..bench.io("c1") };
    bench.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    stdout.write(vec![b'x'; 3 << 20]);
    drop((stdout, stderr));
    let kept = bench.drained("c1");
    assert_eq!(kept.lost_entries, 0);
    bench.engine.reopen("c1").expect("nothing to do");
    // Neither log nor output: there is nothing to wait for.
    let none = ContainerIo { id: "c2".into(), ..ContainerIo::default() };
    bench.engine.add(none).expect("added");
    bench.drained("c2");
}

#[test]
fn a_line_without_limit_comes_in_large_pieces() {
    let bench = Bench::new();
    let io = ContainerIo { line_bytes_max: 0, ..bench.io("c1") };
    bench.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    let length = 2 * LINE_BYTES_CAP + 5;
    stdout.write(vec![b'x'; length]);
    stdout.write("\n");
    drop((stdout, stderr));
    bench.drained("c1");
    let lengths: Vec<_> = entries(&bench.log()).iter().map(|entry| entry.content.len()).collect();
    assert_eq!(lengths, [LINE_BYTES_CAP, LINE_BYTES_CAP, 5]);
}

#[test]
fn bytes_that_come_one_by_one_make_the_same_lines() {
    let bench = Bench::new();
    let io = bench.io("c1");
    bench.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    let text = format!("{}\r\n{}\n\r\nend", "a".repeat(64), "b".repeat(65));
    text.bytes().for_each(|byte| stdout.write([byte]));
    drop((stdout, stderr));
    bench.drained("c1");
    let expected = [
        format!("stdout F {}", "a".repeat(64)),
        format!("stdout P {}", "b".repeat(64)),
        "stdout F b".into(),
        "stdout F ".into(),
        "stdout P end".into(),
    ];
    assert_eq!(shown(&bench.log()), expected);
}

#[test]
fn standard_input_stays_open_until_it_is_closed() {
    let bench = Bench::new();
    let wanted = Wanted { stdin: true, ..Wanted::default() };
    let fifos = Fifos::make(bench.folder.path(), "c1", "c1", wanted).expect("made");
    let io = ContainerIo { id: "c1".into(), stdin: fifos.stdin.clone(), ..ContainerIo::default() };
    bench.engine.add(io).expect("added");
    let path = fifos.stdin.expect("wanted");
    let mut reader = File::open(&path).expect("there is a writer");
    for text in ["first", "second"] {
        // A client that comes and goes.
        File::options().write(true).open(&path).expect("opened").write_all(text.as_bytes()).expect("written");
        let mut bytes = [0; 16];
        let count = reader.read(&mut bytes).expect("no end yet");
        assert_eq!(&bytes[..count], text.as_bytes());
    }
    bench.engine.close_stdin("c1").expect("known");
    assert_eq!(reader.read(&mut [0; 16]).expect("the end"), 0);
    assert_eq!(bench.engine.close_stdin("c2").expect_err("unknown").kind(), Kind::NotFound);
}

#[test]
fn two_hundred_containers_share_the_workers() {
    const LINES: usize = 50;
    let bench = Bench::new();
    let all: Vec<ContainerIo> = (0..200).map(|number| bench.io(&format!("c{number}"))).collect();
    let mut shims = Vec::new();
    for io in &all {
        bench.engine.add(io.clone()).expect("added");
        shims.push((Shim::open(&io.stdout), Shim::open(&io.stderr)));
    }
    for line in 0..LINES {
        for (number, (stdout, stderr)) in shims.iter_mut().enumerate() {
            stdout.write(format!("{number} {line}\n"));
            stderr.write(format!("{number} {line}\n"));
        }
    }
    drop(shims);
    for (number, io) in all.iter().enumerate() {
        bench.drained(&io.id);
        let entries = entries(io.log_path.as_deref().expect("it has one"));
        for stream in ["stdout", "stderr"] {
            let of = entries.iter().filter(|entry| entry.stream == stream);
            let lines = of.map(|entry| String::from_utf8_lossy(&entry.content).into_owned());
            let expected = (0..LINES).map(|line| format!("{number} {line}"));
            assert!(lines.eq(expected), "{}", io.id);
        }
    }
}
