//! Ends of streams, of containers and of engines.

use super::*;

#[test]
fn removing_an_open_container_writes_what_is_there() {
    let scene = Scene::new();
    let io = scene.io("c1");
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, mut stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    stdout.write("whole\nunfin");
    stdout.write("ished");
    scene.engine.remove("c1");
    assert_eq!(shown(&scene.log()), ["stdout F whole", "stdout P unfinished"]);
    // The shim holds its own reading end, so that this is no SIGPIPE.
    stderr.write("unheard\n");
    scene.engine.remove("c1");
    assert_eq!(shown(&scene.log()).len(), 2);
    assert!(scene.engine.get("c1").is_none());
}

#[test]
fn adding_again_changes_nothing_unless_it_is_something_else() {
    let scene = Scene::new();
    let io = scene.io("c1");
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    stdout.write("half ");
    scene.engine.add(io.clone()).expect("the same is fine");
    scene.engine.add(ContainerIo { started: true, ..io.clone() }).expect("the same is fine");
    stdout.write("a line\n");
    drop((stdout, stderr));
    scene.drained("c1");
    assert_eq!(shown(&scene.log()), ["stdout F half a line"], "it was not interrupted");
    scene.engine.add(io.clone()).expect("the same is fine");
    assert!(scene.engine.get("c1").expect("known").is_drained, "and stays drained");
    // Others under the same id: read from them.
    let other = scene.io("c1");
    assert_ne!(other, io);
    scene.engine.add(other.clone()).expect("replaced");
    let (mut stdout, stderr) = (Shim::open(&other.stdout), Shim::open(&other.stderr));
    stdout.write("more\n");
    drop((stdout, stderr));
    scene.drained("c1");
    assert_eq!(shown(&scene.log()), ["stdout F half a line", "stdout F more"]);
    // The same path, but a FIFO that was made anew.
    let path = other.stdout.clone().expect("wanted");
    std::fs::rename(&path, path.with_extension("old")).expect("moved away");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).expect("made");
    scene.engine.add(other).expect("replaced");
    assert!(!scene.engine.get("c1").expect("known").is_drained);
}

#[test]
fn output_that_waits_since_before_a_restart_is_taken_up() {
    let scene = Scene::new();
    let io = scene.io("c1");
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    let Scene { folder, engine } = scene;
    // The end of a keeper; the shim goes on into the pipe.
    drop(engine);
    stdout.write("while nobody read\n");
    let scene = Scene { folder, engine: Engine::start(1).expect("started") };
    scene.engine.add(ContainerIo { started: true, ..io.clone() }).expect("added");
    stdout.write("and after\n");
    drop((stdout, stderr));
    scene.drained("c1");
    assert_eq!(shown(&scene.log()), ["stdout F while nobody read", "stdout F and after"]);
}

#[test]
fn a_started_container_whose_writers_have_gone_is_at_its_end() {
    let scene = Scene::new();
    let io = scene.io("c1");
    // What a client holds: the pipe lives on.
    let (reader, _) = fifo::open_reader(io.stdout.as_deref().expect("wanted"), false).expect("opened");
    let mut stdout = Shim::open(&io.stdout);
    stdout.write("last words");
    drop(stdout);
    assert!(fifo::is_hung_up(&reader));
    scene.engine.add(ContainerIo { started: true, ..io }).expect("added");
    scene.drained("c1");
    assert_eq!(shown(&scene.log()), ["stdout P last words"]);
}

#[test]
fn a_child_that_holds_a_stream_keeps_the_container_from_draining() {
    let scene = Scene::new();
    let io = scene.io("c1");
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    let mut child = stdout.writer.try_clone().expect("inherited");
    stdout.write("parent\n");
    drop((stdout, stderr));
    child.write_all(b"child\n").expect("written");
    assert!(!scene.engine.get("c1").expect("known").is_drained);
    assert_eq!(scene.engine.open_len(), 1);
    // Whoever has waited long enough removes it (CTR-46): nothing written so far is lost.
    scene.engine.remove("c1");
    assert_eq!(shown(&scene.log()), ["stdout F parent", "stdout F child"]);
    assert_eq!(scene.engine.open_len(), 0);
    let error = child.write_all(b"unheard\n").expect_err("nobody reads");
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn an_ended_container_needs_nobody_unless_its_input_is_held() {
    let scene = Scene::new();
    let mut io = scene.io("c1");
    io.stdin = io.stdout.as_ref().map(|path| path.with_file_name("c1-stdin"));
    scene.engine.add(io.clone()).expect("added");
    assert_eq!(scene.engine.open_len(), 1);
    drop((Shim::open(&io.stdout), Shim::open(&io.stderr)));
    scene.drained("c1");
    assert_eq!(scene.engine.open_len(), 1, "it may have closed its outputs and read on");
    scene.engine.close_stdin("c1").expect("closed");
    assert_eq!(scene.engine.open_len(), 0);
    assert_eq!(scene.engine.list().len(), 1, "it stays listed");
}
