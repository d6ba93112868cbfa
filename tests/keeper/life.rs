//! Whom the keeper outlives, who replaces it, and when it ends.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use longshore::error::Kind;
use longshore::io::{ContainerIo, Keeper, KeeperOptions};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, getsid, kill_process_group};

use crate::fixture::{LIMIT, Scene, Shim, exe, shown, until};

#[test]
fn the_keeper_outlives_the_server_and_all_that_was_started_with_it() {
    let scene = Scene::new();
    // In place of a server: it starts the keeper in its own session and process group.
    let script = format!("{:?} keeper --socket {:?} & exec sleep 1000000", exe(), scene.socket());
    let mut command = Command::new("sh");
    command.args(["-c", &script]).process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = command.spawn().expect("there is a shell");
    // Without a client it would not wait for long.
    let first = until("a keeper listens", || scene.connect().ok());
    let process = scene.running();
    assert_eq!(getsid(Some(process.pid)), Ok(process.pid), "a session of its own");
    let io = scene.io("c1");
    let runtime = tokio::runtime::Runtime::new().expect("made");
    let keeper = scene.client();
    runtime.block_on(keeper.add(io.clone())).expect("added");
    drop(first);
    let (mut stdout, stderr) = Shim::pair(&io);
    stdout.write("with a server\nand a line that is ");
    scene.logged("c1", "with a server");

    drop((keeper, runtime));
    let group = Pid::from_child(&server);
    kill_process_group(group, Signal::KILL).expect("it runs");
    server.wait().expect("it was started");
    stdout.write("not cut\nwithout one\n");
    let expected = ["stdout F with a server", "stdout F and a line that is not cut", "stdout F without one"];
    assert_eq!(scene.logged("c1", "without one"), expected);

    // The next server finds it, and adds what runs.
    let runtime = tokio::runtime::Runtime::new().expect("made");
    let keeper = scene.client();
    runtime.block_on(async {
        assert_eq!(keeper.list().await.expect("listed").len(), 1);
        stdout.write("half ");
        keeper.add(ContainerIo { started: true, ..io.clone() }).await.expect("the same is fine");
        stdout.write("a line\n");
        drop((stdout, stderr));
        assert!(keeper.drained("c1", LIMIT).await.expect("known"));
    });
    assert_eq!(shown(&scene.log("c1")).last().expect("an entry"), "stdout F half a line");
    assert_eq!(scene.running().pid, process.pid);
    drop((keeper, runtime));
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_of_a_service_manager_do_not_stop_the_logs() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    let (mut stdout, stderr) = Shim::pair(&io);
    let process = scene.running();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        process.signal(signal);
        // It has looked at signals when it answers.
        assert_eq!(keeper.list().await.expect("listed").len(), 1);
    }
    stdout.write("on and on\n");
    scene.logged("c1", "on and on");
    assert_eq!(scene.running().pid, process.pid);
    // Without an open stream they are heeded, whoever is connected.
    drop((stdout, stderr));
    keeper.close_stdin("c1").await.expect("closed");
    assert!(keeper.drained("c1", LIMIT).await.expect("known"));
    process.signal(Signal::TERM);
    process.ended();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_or_journal_that_has_gone_does_not_stop_the_logs() {
    let scene = Scene::new();
    let mut command = Command::new(exe());
    command.arg("keeper").arg("--socket").arg(scene.socket()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().expect("started");
    let first = until("a keeper listens", || scene.connect().ok());
    let process = scene.running();
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    let (mut stdout, _stderr) = Shim::pair(&io);
    drop((child.stderr.take(), first));
    // It says something about the signal, which nobody reads.
    process.signal(Signal::TERM);
    assert_eq!(keeper.list().await.expect("listed").len(), 1);
    stdout.write("still here\n");
    scene.logged("c1", "still here");
    assert_eq!(scene.running().pid, process.pid);
    drop(keeper);
    process.signal(Signal::KILL);
    child.wait().expect("it was started");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_keeper_is_replaced_and_containers_do_not_notice() {
    let scene = Scene::new();
    let keeper = scene.client();
    let (io, ending) = (scene.io("c1"), scene.io("c2"));
    keeper.add(io.clone()).await.expect("added");
    keeper.add(ending.clone()).await.expect("added");
    let (mut stdout, stderr) = Shim::pair(&io);
    let (mut last, last_stderr) = Shim::pair(&ending);
    // As the container's shim does: it waits for input until its end.
    let mut stdin = File::open(io.stdin.as_ref().expect("wanted")).expect("there is a writer");
    let input = std::thread::spawn(move || {
        let mut bytes = [0; 16];
        let count = stdin.read(&mut bytes).expect("a FIFO can be read");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    });
    let mut expected = Vec::new();
    for round in 0..3 {
        let process = scene.running();
        stdout.write(format!("before {round}\n"));
        scene.logged("c1", &format!("before {round}"));
        process.signal(Signal::KILL);
        process.ended();
        // Nobody asks for anything: the client notices by itself.
        stdout.write(format!("after {round}\n"));
        scene.logged("c1", &format!("after {round}"));
        assert_ne!(scene.running().pid, process.pid);
        expected.extend([format!("stdout F before {round}"), format!("stdout F after {round}")]);
    }
    // One that ends just when there is no keeper.
    let process = scene.running();
    process.signal(Signal::KILL);
    process.ended();
    last.write("last words");
    drop((last, last_stderr));
    assert!(keeper.drained("c2", LIMIT).await.expect("known"));
    assert_eq!(shown(&scene.log("c2")), ["stdout P last words"]);
    assert_eq!(shown(&scene.log("c1")), expected);

    assert!(!input.is_finished(), "the input has seen no end");
    let mut client = File::options().write(true).open(io.stdin.as_ref().expect("wanted")).expect("opened");
    std::io::Write::write_all(&mut client, b"hello").expect("written");
    assert_eq!(input.join().expect("no panic"), "hello");
    drop((stdout, stderr));
    assert!(keeper.drained("c1", LIMIT).await.expect("known"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_cut_off_by_the_keepers_death_is_done_by_the_next() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    let shims = Shim::pair(&io);
    let waiting = tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.drained("c1", LIMIT).await }
    });
    let process = scene.running();
    process.signal(Signal::KILL);
    process.ended();
    drop(shims);
    assert_eq!(waiting.await.expect("no panic"), Ok(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keeper_ends_when_nobody_needs_it() {
    let scene = Scene::new();
    // Never anything to do.
    let keeper = scene.client();
    let none = ContainerIo { id: "c0".to_owned(), ..ContainerIo::default() };
    keeper.add(none).await.expect("added");
    keeper.remove("c0").await.expect("removed");
    let process = scene.running();
    drop(keeper);
    process.ended();
    assert!(!scene.socket().exists(), "it tidies up");

    // A container that has ended and that no server has fetched.
    let keeper = scene.client();
    let io = ContainerIo { stdin: None, ..scene.io("c1") };
    keeper.add(io.clone()).await.expect("added");
    let process = scene.running();
    let (mut stdout, stderr) = Shim::pair(&io);
    drop(keeper);
    stdout.write("the end");
    drop((stdout, stderr));
    process.ended();
    assert_eq!(shown(&scene.log("c1")), ["stdout P the end"]);

    // The next server is told of the end all the same, by the next keeper.
    let keeper = scene.client();
    keeper.add(ContainerIo { started: true, ..io }).await.expect("added");
    assert!(keeper.drained("c1", LIMIT).await.expect("known"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_was_left_behind_is_no_obstacle() {
    let scene = Scene::new();
    drop(std::os::unix::net::UnixListener::bind(scene.socket()).expect("bound"));
    std::fs::write(scene.folder.path().join("keeper.lock"), "").expect("written");
    assert!(scene.socket().exists() && scene.connect().is_err());
    let keeper = scene.client();
    keeper.add(scene.io("c1")).await.expect("added");
    assert_eq!(keeper.list().await.expect("listed").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_folder_has_a_keeper_of_its_own() {
    let scenes = [Scene::new(), Scene::new()];
    let keepers = [scenes[0].client(), scenes[1].client()];
    let ios = [scenes[0].io("c1"), scenes[1].io("c1")];
    for (keeper, io) in keepers.iter().zip(&ios) {
        keeper.add(io.clone()).await.expect("added");
    }
    assert_ne!(scenes[0].running().pid, scenes[1].running().pid);
    for (number, io) in ios.iter().enumerate() {
        let (mut stdout, stderr) = Shim::pair(io);
        stdout.write(format!("of {number}\n"));
        drop((stdout, stderr));
    }
    for (number, keeper) in keepers.iter().enumerate() {
        assert!(keeper.drained("c1", LIMIT).await.expect("known"));
        assert_eq!(shown(&scenes[number].log("c1")), [format!("stdout F of {number}")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_that_start_at_once_share_a_keeper() {
    let scene = Scene::new();
    let keepers: Vec<Keeper> = (0..4).map(|_| scene.client()).collect();
    let mut adding = tokio::task::JoinSet::new();
    for (number, keeper) in keepers.iter().enumerate() {
        let (keeper, io) = (keeper.clone(), scene.io(&format!("c{number}")));
        adding.spawn(async move { keeper.add(io).await });
    }
    while let Some(added) = adding.join_next().await {
        added.expect("no panic").expect("added");
    }
    assert_eq!(keepers[0].list().await.expect("listed").len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_program_there_is_an_error_and_no_wait() {
    let scene = Scene::new();
    let gone = Keeper::new("/none/longshore".into(), scene.folder.path(), KeeperOptions::default());
    let error = gone.add(scene.io("c1")).await.expect_err("there is none");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.message().contains("/none/longshore"), "{error}");
    // What was never added needs no keeper.
    assert_eq!(gone.reopen("c1").await.expect_err("unknown").kind(), Kind::NotFound);
    assert!(gone.list().await.expect("nothing").is_empty());
}

#[test]
fn whoever_reads_its_standard_output_does_not_wait_for_the_keepers_end() {
    let scene = Scene::new();
    let mut command = Command::new(exe());
    command.arg("keeper").arg("--socket").arg(scene.socket()).stderr(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).spawn().expect("started");
    let mut stdout = child.stdout.take().expect("piped");
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).expect("it says so");
    assert_eq!(&ready, b"ready\n");
    // As long as this is connected it does not end.
    let client = scene.connect().expect("it listens");
    let limit = Timespec::try_from(LIMIT).expect("it fits");
    let ready_fds = poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&limit)).expect("polled");
    assert_eq!(ready_fds, 1, "it holds its standard output");
    assert_eq!(stdout.read(&mut ready).expect("the end"), 0);
    let process = scene.running();
    drop(client);
    process.signal(Signal::TERM);
    process.ended();
    child.wait().expect("it was started");
}
