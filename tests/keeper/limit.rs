//! A limit of how fast a container may log: it is held up, and loses nothing.

use std::io::{ErrorKind, Write};
use std::time::Instant;

use longshore::io::ContainerIo;
use rustix::fs::{OFlags, fcntl_setfl};

use crate::attach::Client;
use crate::fixture::{LIMIT, Scene, Shim, shown};

/// Of the containers here: what a pipe holds would take longer than [`LIMIT`].
const RATE: u64 = 1 << 10;
/// What a pipe holds.
const PIPE_BYTES: usize = 64 << 10;

fn limited(scene: &Scene, id: &str) -> ContainerIo {
    ContainerIo { bytes_per_second_max: RATE, ..scene.io(id) }
}

/// Writes lines until the FIFO takes no more, and gives what came in: whole lines, with
/// their number, of 64 bytes each.
fn flood(shim: &mut Shim, from: usize) -> usize {
    fcntl_setfl(&shim.writer, OFlags::NONBLOCK).expect("a FIFO");
    let mut line = from;
    loop {
        match shim.writer.write(format!("{line:063}\n").as_bytes()) {
            Ok(count) => assert_eq!(count, 64, "a short write of a pipe is whole"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return line,
            Err(error) => panic!("{error}"),
        }
        line += 1;
    }
}

fn lines(stream: &str, count: usize) -> Vec<String> {
    (0..count).map(|line| format!("{stream} F {line:063}")).collect()
}

/// Of one stream only: the other one is heard.
#[tokio::test(flavor = "multi_thread")]
async fn who_logs_too_fast_is_held_up_and_loses_nothing() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = limited(&scene, "c1");
    keeper.add(io.clone()).await.expect("added");
    let began = Instant::now();
    let (mut stdout, mut stderr) = Shim::pair(&io);
    let count = flood(&mut stdout, 0);
    stderr.write("heard\n");
    scene.logged("c1", "stderr F heard");
    let bytes = 64 * flood(&mut stdout, count);
    // One second's worth at once, and what the time allows that has passed.
    let allowed = PIPE_BYTES + RATE as usize * (3 + began.elapsed().as_secs() as usize);
    assert!((PIPE_BYTES..allowed).contains(&bytes), "{bytes} of {allowed}");
    // What it leaves behind is read at once, and all of it.
    drop((stdout, stderr));
    assert!(keeper.drained("c1", LIMIT).await.expect("known"));
    let of_stdout: Vec<String> =
        shown(&scene.log("c1")).into_iter().filter(|entry| entry.starts_with("stdout")).collect();
    assert_eq!(of_stdout, lines("stdout", bytes / 64));
    let kept = keeper.list().await.expect("listed").pop().expect("one");
    assert_eq!((kept.lost_entries, kept.last_error), (0, None));
}

/// The server was started with another limit, and adds what runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_taken_back_lets_go_at_once() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = limited(&scene, "c1");
    keeper.add(io.clone()).await.expect("added");
    let (mut stdout, _stderr) = Shim::pair(&io);
    let count = flood(&mut stdout, 0);
    keeper.add(ContainerIo { bytes_per_second_max: 0, ..io }).await.expect("the same");
    let seen = scene.logged("c1", &format!("{:063}", count - 1));
    assert_eq!(seen, lines("stdout", count), "and the log is the same");
}

/// Who is attached sees what is read, no more slowly than that.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_attached_sees_all_of_it() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = limited(&scene, "c1");
    keeper.add(io.clone()).await.expect("added");
    let (mut stdout, stderr) = Shim::pair(&io);
    let client = Client::attach(&keeper, "c1").await;
    let count = flood(&mut stdout, 0);
    drop((stdout, stderr));
    let (seen, _, ended) = client.end().await;
    let wanted: String = (0..count).map(|line| format!("{line:063}\n")).collect();
    assert!(seen == wanted, "{} of {} bytes", seen.len(), wanted.len());
    assert_eq!(ended, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_removed_is_read_to_its_end() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = limited(&scene, "c1");
    keeper.add(io.clone()).await.expect("added");
    let (mut stdout, _stderr) = Shim::pair(&io);
    let count = flood(&mut stdout, 0);
    keeper.remove("c1").await.expect("removed");
    assert_eq!(shown(&scene.log("c1")), lines("stdout", count));
}
