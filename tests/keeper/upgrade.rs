//! A server of another program makes the keeper go on as that program.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;

use longshore::io::ContainerIo;
use rustix::process::Signal;

use crate::fixture::{LIMIT, Process, Scene, Shim, shown, until};

fn program_of(process: &Process) -> PathBuf {
    std::fs::read_link(format!("/proc/{}/exe", process.pid.as_raw_nonzero())).expect("it runs")
}

fn descriptors_of(process: &Process) -> usize {
    let folder = format!("/proc/{}/fd", process.pid.as_raw_nonzero());
    std::fs::read_dir(folder).expect("it runs").count()
}

/// REC-19: the process stays, and so does everything that it has open or in hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_goes_on_as_the_program_of_a_new_server() {
    let scene = Scene::new();
    let old = scene.client();
    let (io, ended) = (scene.io("c1"), scene.io("c2"));
    for io in [&io, &ended] {
        old.add(io.clone()).await.expect("added");
    }
    let (mut stdout, mut stderr) = Shim::pair(&io);
    let (mut last, last_stderr) = Shim::pair(&ended);
    last.write("done");
    drop((last, last_stderr));
    assert!(old.drained("c2", LIMIT).await.expect("known"));
    stdout.write("before\nhalf a ");
    stderr.write("oo");
    scene.logged("c1", "before");
    let process = scene.running();
    let before = descriptors_of(&process);
    // A rotation has begun: the log has a new name and was not opened anew.
    let renamed = scene.log("c1").with_extension("old");
    std::fs::rename(scene.log("c1"), &renamed).expect("renamed");
    drop(old);

    let program = scene.other_program("newer");
    let new = scene.client_of(program.clone());
    for io in [&io, &ended] {
        new.add(ContainerIo { started: true, ..io.clone() }).await.expect("the same is fine");
    }
    let now = scene.running();
    assert_eq!((now.pid, program_of(&now)), (process.pid, program));
    stdout.write("line\n");
    stderr.write("ps\n");
    let end = |entries: Vec<String>, text: &str| entries.iter().any(|entry| entry == text);
    until("both lines", || {
        let entries = shown(&renamed);
        (end(entries.clone(), "stdout F half a line") && end(entries, "stderr F oops")).then_some(())
    });
    assert!(!scene.log("c1").exists(), "nobody has asked for a new log");
    new.reopen("c1").await.expect("reopened");
    stdout.write("after\n");
    assert_eq!(scene.logged("c1", "after"), ["stdout F after"]);
    assert!(new.drained("c2", LIMIT).await.expect("it is still known"));
    assert_eq!(shown(&scene.log("c2")), ["stdout P done"]);
    until("nothing is left over", || (descriptors_of(&now) <= before).then_some(()));

    // The input has seen no end, and is let go of when it is asked for.
    let mut stdin = File::open(io.stdin.as_ref().expect("wanted")).expect("there is a writer");
    let input = std::thread::spawn(move || {
        let mut text = String::new();
        stdin.read_to_string(&mut text).expect("a FIFO can be read");
        text
    });
    let mut client = File::options().write(true).open(io.stdin.as_ref().expect("wanted")).expect("opened");
    client.write_all(b"hello").expect("written");
    drop(client);
    new.close_stdin("c1").await.expect("closed");
    assert_eq!(input.join().expect("no panic"), "hello");
    drop((stdout, stderr));
    assert!(new.drained("c1", LIMIT).await.expect("known"));
    for id in ["c1", "c2"] {
        new.remove(id).await.expect("removed");
    }
    // It ends as any keeper does.
    let process = scene.running();
    process.signal(Signal::TERM);
    process.ended();
    assert!(!scene.socket().exists());
}

/// REC-19, LOG-14: no byte is lost, torn or twice however often it happens under load.
#[tokio::test(flavor = "multi_thread")]
async fn upgrades_under_load_lose_nothing() {
    const LINES: usize = 200_000;
    let scene = Scene::new();
    let programs = [scene.other_program("a"), scene.other_program("b")];
    let io = scene.io("c1");
    let mut keeper = scene.client();
    keeper.add(io.clone()).await.expect("added");
    let first = scene.running();
    let (mut stdout, stderr) = Shim::pair(&io);
    drop(stderr);
    let writer = std::thread::spawn(move || {
        for line in 0..LINES {
            // In pieces that end within lines.
            stdout.write(format!("{line}\nunfinished "));
        }
        stdout.write("end\n");
    });
    let mut upgrades = 0;
    while !writer.is_finished() && upgrades < 100 {
        drop(keeper);
        let program = &programs[upgrades % 2];
        keeper = scene.client_of(program.clone());
        keeper.add(ContainerIo { started: true, ..io.clone() }).await.expect("the same is fine");
        assert_eq!(&program_of(&scene.running()), program);
        upgrades += 1;
    }
    writer.join().expect("no panic");
    assert!(upgrades > 0, "there was no load");
    assert_eq!(scene.running().pid, first.pid);
    assert!(keeper.drained("c1", LIMIT).await.expect("known"));
    let expected = (0..=LINES).map(|line| match line {
        0 => "stdout F 0".to_owned(),
        LINES => "stdout F unfinished end".to_owned(),
        _ => format!("stdout F unfinished {line}"),
    });
    assert!(shown(&scene.log("c1")).into_iter().eq(expected), "after {upgrades} upgrades");
}

/// What cannot be run changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_start_leaves_the_logs_as_they_were() {
    let scene = Scene::new();
    let old = scene.client();
    let io = scene.io("c1");
    old.add(io.clone()).await.expect("added");
    let process = scene.running();
    let (mut stdout, _stderr) = Shim::pair(&io);
    let before = descriptors_of(&process);
    let broken = scene.folder.path().join("broken");
    std::fs::write(&broken, "no program").expect("written");
    let new = scene.client_of(broken);
    new.add(ContainerIo { started: true, ..io.clone() }).await.expect("the same is fine");
    stdout.write("on and on\n");
    assert_eq!(scene.logged("c1", "on and on"), ["stdout F on and on"]);
    let now = scene.running();
    assert_eq!((now.pid, program_of(&now)), (process.pid, program_of(&process)));
    // The new client's alone, once the keeper has noticed that those who asked have gone.
    until("nothing else is left over", || (descriptors_of(&now) <= before + 1).then_some(()));
    // Signals are heeded as before: it goes on while there is a container.
    now.signal(Signal::TERM);
    stdout.write("and on\n");
    scene.logged("c1", "and on");
    assert_eq!(scene.running().pid, process.pid);
}
