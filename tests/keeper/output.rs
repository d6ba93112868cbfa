//! What reaches the log, and when.

use std::io::Write;
use std::time::Duration;

use longshore::error::Kind;
use longshore::io::ContainerIo;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use crate::disk::Disk;
use crate::fixture::{LIMIT, Scene, Shim, exe, shown, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_drained_when_its_last_stream_has_ended() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    assert!(scene.log("c1").exists(), "LOG-19");
    let (mut stdout, mut stderr) = Shim::pair(&io);
    stdout.write("whole\nunfinished");
    drop(stdout);
    assert!(!keeper.drained("c1", Duration::from_millis(1)).await.expect("known"));
    stderr.write("oops\n");
    // Somebody waits already when the end comes.
    let waiting = tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.drained("c1", LIMIT).await }
    });
    drop(stderr);
    assert_eq!(waiting.await.expect("no panic"), Ok(true));
    let shown = shown(&scene.log("c1"));
    let of = |stream: &str| shown.iter().filter(|entry| entry.starts_with(stream)).collect::<Vec<_>>();
    assert_eq!(of("stdout"), ["stdout F whole", "stdout P unfinished"]);
    assert_eq!(of("stderr"), ["stderr F oops"]);
    keeper.remove("c1").await.expect("removed");
    assert_eq!(keeper.drained("c1", LIMIT).await.expect_err("gone").kind(), Kind::NotFound);
    assert!(keeper.list().await.expect("listed").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_holds_a_stream_holds_up_the_exit_for_a_limited_time() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    let (mut stdout, stderr) = Shim::pair(&io);
    let mut child = stdout.writer.try_clone().expect("inherited");
    stdout.write("parent\n");
    drop((stdout, stderr));
    child.write_all(b"child").expect("written");
    assert!(!keeper.drained("c1", Duration::from_millis(50)).await.expect("known"));
    keeper.remove("c1").await.expect("removed");
    assert_eq!(shown(&scene.log("c1")), ["stdout F parent", "stdout P child"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_under_load_loses_nothing_and_keeps_the_order() {
    const LINES: usize = 100_000;
    let scene = Scene::new();
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    let (mut stdout, stderr) = Shim::pair(&io);
    drop(stderr);
    let writer = std::thread::spawn(move || (0..LINES).for_each(|line| stdout.write(format!("{line}\n"))));
    let mut logs = Vec::new();
    while !writer.is_finished() && logs.len() < 500 {
        // As the kubelet does (LOG-16).
        let old = scene.log("c1").with_extension(logs.len().to_string());
        std::fs::rename(scene.log("c1"), &old).expect("renamed");
        keeper.reopen("c1").await.expect("reopened");
        let length = std::fs::metadata(&old).expect("it is there").len();
        assert!(scene.log("c1").exists(), "LOG-13");
        logs.push((old, length));
    }
    writer.join().expect("no panic");
    assert!(keeper.drained("c1", LIMIT).await.expect("known"));
    for (old, length) in &logs {
        assert_eq!(std::fs::metadata(old).expect("it is there").len(), *length, "LOG-13: it has grown");
    }
    logs.push((scene.log("c1"), 0));
    let entries = logs.iter().flat_map(|(path, _)| shown(path));
    assert!(entries.eq((0..LINES).map(|line| format!("stdout F {line}"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_opened_is_an_error_with_its_path() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = ContainerIo { log_path: Some("/proc/none/0.log".into()), ..scene.io("c1") };
    let error = keeper.add(io).await.expect_err("no such place");
    assert!(error.message().contains("/proc/none/0.log"), "CTR-17: {error}");
    assert!(keeper.list().await.expect("listed").is_empty());
    assert_eq!(keeper.reopen("c1").await.expect_err("unknown").kind(), Kind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_containers_need_descriptors_and_little_memory() {
    const CONTAINERS: usize = 1000;
    // The writers are this process, and the client has two ends of each container.
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < 8 * CONTAINERS as u64) {
        eprintln!("skipped: a limit of {} descriptors is needed", 8 * CONTAINERS);
        return;
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("it may be raised");
    let scene = Scene::new();
    // Whoever starts it has few.
    let script = format!("ulimit -S -n 64; exec {:?} keeper --socket {:?}", exe(), scene.socket());
    let mut child = std::process::Command::new("sh")
        .args(["-c", &script])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("there is a shell");
    // Without a client it would not wait for long.
    let first = until("a keeper listens", || scene.connect().ok());
    let process = scene.running();
    let keeper = scene.client();
    let before = process.resident_kib();
    let mut shims = Vec::new();
    for number in 0..CONTAINERS {
        let io = ContainerIo { stdin: None, stderr: None, ..scene.io(&format!("c{number}")) };
        keeper.add(io.clone()).await.expect("added");
        shims.push(Shim::open(&io.stdout));
    }
    for (number, shim) in shims.iter_mut().enumerate() {
        shim.write(format!("line of {number}\nbegin"));
    }
    for number in 0..CONTAINERS {
        scene.logged(&format!("c{number}"), &format!("F line of {number}"));
    }
    let grown_kib = process.resident_kib().saturating_sub(before);
    assert!(grown_kib < 16 << 10, "{grown_kib} KiB for {CONTAINERS} containers");
    drop(shims);
    for number in 0..CONTAINERS {
        assert!(keeper.drained(&format!("c{number}"), LIMIT).await.expect("known"));
        scene.logged(&format!("c{number}"), "P begin");
    }
    drop((keeper, first));
    process.signal(Signal::TERM);
    process.ended();
    child.wait().expect("it was started");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_counted_and_told() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = scene.io("c1");
    let folder = scene.log("c1").parent().expect("a folder").to_owned();
    let Some(_disk) = Disk::of(&folder, 4096) else { return };
    std::fs::write(folder.join("filler"), [0; 4096]).expect("it fits");
    keeper.add(io.clone()).await.expect("added");
    let (mut stdout, stderr) = Shim::pair(&io);
    // More than any pipe holds: the container does not block (LOG-10).
    (0..100_000).for_each(|_| stdout.write("no room for this line\n"));
    drop((stdout, stderr));
    assert!(keeper.drained("c1", LIMIT).await.expect("known"));
    let kept = keeper.list().await.expect("listed").pop().expect("one");
    assert_eq!(
        (kept.lost_entries, &*kept.last_error.expect("a reason")),
        (100_000, "No space left on device")
    );
    // What all containers lost stays known when this one is forgotten.
    keeper.remove("c1").await.expect("removed");
    let totals = keeper.totals().await.expect("told");
    assert_eq!((totals.lost_entries, totals.written_bytes), (100_000, 0));
    assert!(totals.lost_bytes > 100_000 * 22 && totals.write_errors > 0, "{totals:?}");
}
