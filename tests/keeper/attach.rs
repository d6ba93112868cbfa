//! Who is attached to a container's output.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use longshore::error::{Kind, Result};
use longshore::io::session::{self, Drain};
use longshore::io::{ContainerIo, InputEnd, Keeper};
use rustix::process::Signal;
use tokio::task::JoinHandle;

use crate::fixture::{LIMIT, Scene, Shim, shown, until};

/// A client that is attached.
pub(crate) struct Client {
    stdout: Drain,
    stderr: Drain,
    ended: JoinHandle<Result<()>>,
}

impl Client {
    pub(crate) async fn attach(keeper: &Keeper, id: &str) -> Client {
        let ((stdout, to_stdout), (stderr, to_stderr)) = (session::outgoing(), session::outgoing());
        let attached = keeper.attach(id, true, true).await.expect("attached");
        let ended = tokio::spawn(attached.forward(Some(stdout), Some(stderr)));
        Client { stdout: to_stdout, stderr: to_stderr, ended }
    }

    /// Reads standard output until it is as long as `text`, and compares.
    async fn sees(&mut self, text: &str) {
        let mut seen = Vec::new();
        while seen.len() < text.len() {
            seen.extend_from_slice(&self.stdout.next().await.expect("more comes"));
        }
        assert_eq!(String::from_utf8_lossy(&seen), text);
    }

    pub(crate) async fn end(mut self) -> (String, String, Result<()>) {
        let (stdout, stderr) = tokio::join!(rest(&mut self.stdout), rest(&mut self.stderr));
        (stdout, stderr, self.ended.await.expect("no panic"))
    }
}

async fn rest(drain: &mut Drain) -> String {
    let mut all = Vec::new();
    while let Some(piece) = drain.next().await {
        all.extend_from_slice(&piece);
    }
    String::from_utf8(all).expect("text")
}

/// EXE-14, LOG-17.
#[tokio::test(flavor = "multi_thread")]
async fn all_who_are_attached_see_what_comes_from_then_on_until_the_end() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    let (mut stdout, mut stderr) = Shim::pair(&io);
    stdout.write("before\nhalf ");
    stderr.write("before\n");
    scene.logged("c1", "before");
    until("the half line is read as well", || (shown(&scene.log("c1")).len() == 2).then_some(()));

    let mut first = Client::attach(&keeper, "c1").await;
    stdout.write("a line\n");
    first.sees("a line\n").await;
    let mut second = Client::attach(&keeper, "c1").await;
    stdout.write("raw \0\u{1b}[0m, no line");
    first.sees("raw \0\u{1b}[0m, no line").await;
    second.sees("raw \0\u{1b}[0m, no line").await;
    stderr.write("oops\n");
    drop(stderr);
    stdout.write("\nlast");
    drop(stdout);
    for client in [first, second] {
        assert_eq!(client.end().await, ("\nlast".into(), "oops\n".into(), Ok(())));
    }
    // A container that has ended shows nothing.
    assert_eq!(Client::attach(&keeper, "c1").await.end().await, (String::new(), String::new(), Ok(())));
    assert!(shown(&scene.log("c1")).contains(&"stdout F half a line".to_owned()));
}

/// LOG-18, EXE-16.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_keep_up_is_cut_off_and_holds_up_nobody() {
    const LINES: usize = 200_000;
    let scene = Scene::new();
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    let (mut stdout, stderr) = Shim::pair(&io);
    let mut reads = Client::attach(&keeper, "c1").await;
    let stuck = Client::attach(&keeper, "c1").await;
    let gone = Client::attach(&keeper, "c1").await;
    gone.ended.abort();
    let (mut stdout, all) = tokio::task::block_in_place(|| {
        let handle = tokio::runtime::Handle::current();
        let mut all = String::new();
        // Far more than queues hold, in parts which the queue of who reads holds in any case.
        for lines in (0..LINES).collect::<Vec<_>>().chunks(LINES / 8) {
            let part: String = lines.iter().map(|line| format!("line {line:0100}\n")).collect();
            let writer = std::thread::spawn(move || {
                lines_to(&mut stdout, &part);
                (stdout, part)
            });
            let (back, part) = writer.join().expect("no panic");
            stdout = back;
            handle.block_on(reads.sees(&part));
            all.push_str(&part);
        }
        (stdout, all)
    });
    stdout.write("the end");
    drop((stdout, stderr));
    let (rest, _, ended) = reads.end().await;
    assert_eq!((&*rest, ended), ("the end", Ok(())));
    // What it has seen has no gap.
    let (seen, _, ended) = stuck.end().await;
    assert_eq!(ended.as_ref().expect_err("it did not read").kind(), Kind::ResourceExhausted, "{ended:?}");
    assert!(all.starts_with(&seen) && !seen.is_empty(), "{} bytes", seen.len());
    assert!(keeper.drained("c1", LIMIT).await.expect("known"));
    let logged = shown(&scene.log("c1"));
    let lines = logged.iter().take(LINES).enumerate();
    assert!(lines.clone().all(|(number, line)| *line == format!("stdout F line {number:0100}")));
    assert_eq!((lines.count(), logged.last().map(String::as_str)), (LINES, Some("stdout P the end")));
}

fn lines_to(stdout: &mut Shim, text: &str) {
    text.as_bytes().chunks(10_000).for_each(|piece| stdout.write(piece));
}

/// CTR-07.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_a_log_or_with_a_terminal_is_attached_to_as_well() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = ContainerIo { log_path: None, stderr: None, ..scene.io("c1") };
    keeper.add(io.clone()).await.expect("added");
    let mut stdout = Shim::open(&io.stdout);
    let mut client = Client::attach(&keeper, "c1").await;
    // There is no standard error (CTR-10).
    assert_eq!(rest(&mut client.stderr).await, "");
    stdout.write("unlogged");
    client.sees("unlogged").await;
    // Removing it is an end as well.
    keeper.remove("c1").await.expect("removed");
    assert_eq!(client.end().await, (String::new(), String::new(), Ok(())));
    let refused = keeper.attach("c1", true, true).await.map(drop);
    assert_eq!(refused.expect_err("it is gone").kind(), Kind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_dies_is_told_and_its_successor_can_be_attached_to() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    let (mut stdout, _stderr) = Shim::pair(&io);
    let mut client = Client::attach(&keeper, "c1").await;
    stdout.write("seen");
    client.sees("seen").await;
    let process = scene.running();
    process.signal(Signal::KILL);
    process.ended();
    let (_, _, ended) = client.end().await;
    assert_eq!(ended.expect_err("it is gone").kind(), Kind::Unavailable);
    let mut again = Client::attach(&keeper, "c1").await;
    stdout.write("again");
    again.sees("again").await;
}

/// One thread: nothing has looked at the connection to the dead one.
#[tokio::test]
async fn who_attaches_before_the_keepers_death_is_seen_has_its_successor() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    let (mut stdout, _stderr) = Shim::pair(&io);
    let process = scene.running();
    process.signal(Signal::KILL);
    process.ended();
    let mut client = Client::attach(&keeper, "c1").await;
    stdout.write("after");
    client.sees("after").await;
}

/// EXE-15.
#[tokio::test(flavor = "multi_thread")]
async fn several_write_to_the_input_until_one_closes_it_for_all() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    assert!(keeper.stdin("c1").expect("looked").is_none(), "nobody reads it");
    let path = io.stdin.clone().expect("wanted");
    let (sender, came) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut file = std::fs::File::open(path).expect("opened");
        let mut piece = [0; 64];
        loop {
            match file.read(&mut piece).expect("read") {
                0 => return,
                count => sender.send(String::from_utf8_lossy(&piece[..count]).into_owned()).expect("counted"),
            }
        }
    });
    let input = || until("somebody reads", || keeper.stdin("c1").expect("looked"));
    let (feed, from) = session::incoming();
    let first = tokio::spawn(input().feed(from));
    feed.send("first".into()).await.expect("taken");
    drop(feed);
    assert_eq!(first.await.expect("no panic"), InputEnd::Client);
    assert_eq!(came.recv_timeout(LIMIT).expect("it came"), "first");
    // Its end is not the input's.
    let (_feed, from) = session::incoming();
    let waits = tokio::spawn(input().feed(from));
    let (feed, from) = session::incoming();
    let second = tokio::spawn(input().feed(from));
    feed.send("second".into()).await.expect("taken");
    assert_eq!(came.recv_timeout(LIMIT).expect("it came"), "second");
    keeper.close_stdin("c1").await.expect("closed");
    assert_eq!(second.await.expect("no panic"), InputEnd::Container);
    assert_eq!(waits.await.expect("no panic"), InputEnd::Container);
    reading.join().expect("it has seen the end");
    assert!(keeper.stdin("c1").expect("looked").is_none());
    // The next server is told by the keeper.
    let next = scene.client();
    next.add(ContainerIo { started: true, ..io }).await.expect("the same is fine");
    assert!(next.stdin("c1").expect("looked").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn attaching_needs_a_connection_of_its_own_and_room() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    let attach = |seq: u32| format!(r#"{{"seq":{seq},"do":"attach","id":"c1","stdout":true,"stderr":true}}"#);
    let mut busy = scene.connect().expect("it listens");
    let waits = r#"{"seq":1,"do":"wait_drained","id":"c1","limit_ms":60000}"#;
    writeln!(busy, "{waits}\n{}\n", attach(2)).expect("written");
    assert!(answer(&mut busy).starts_with(r#"{"seq":2,"error":{"kind":"invalid_argument""#));
    let mut attached = Vec::new();
    let refusal = loop {
        let mut stream = scene.connect().expect("it listens");
        writeln!(stream, "{}", attach(7)).expect("written");
        let answer = answer(&mut stream);
        if answer != "{\"seq\":7,\"ok\":{}}\n" {
            break answer;
        }
        attached.push(stream);
        assert!(attached.len() <= 64);
    };
    assert!(refusal.starts_with(r#"{"seq":7,"error":{"kind":"resource_exhausted""#), "{refusal}");
    // They take no client's place, and their going makes room.
    assert_eq!(keeper.list().await.expect("listed").len(), 1);
    attached.truncate(1);
    let again = || {
        let mut stream = scene.connect().expect("it listens");
        writeln!(stream, "{}", attach(8)).expect("written");
        answer(&mut stream).starts_with("{\"seq\":8,\"ok\"").then_some(stream)
    };
    let _again = until("there is room", again);
    let mut stdout = Shim::open(&io.stdout);
    stdout.write("frame");
    let mut frame = [0; 10];
    attached[0].read_exact(&mut frame).expect("it comes");
    assert_eq!(&frame, b"\x01\0\0\0\x05frame");
}

fn answer(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("answered");
        line.extend(byte);
    }
    String::from_utf8(line).expect("text")
}

/// Under output an end is noticed by the write that fails, and must be forgotten as well.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_go_while_output_comes_leave_no_trace() {
    let scene = Scene::new();
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    let (mut stdout, stderr) = Shim::pair(&io);
    let is_over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let is_over = is_over.clone();
        move || {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                stdout.write("on and on\n");
            }
        }
    });
    // More than may be attached at a time.
    for number in 0..300 {
        let client = until("there is room", || {
            let mut stream = scene.connect().expect("it listens");
            let attach = format!(r#"{{"seq":{number},"do":"attach","id":"c1","stdout":true,"stderr":true}}"#);
            writeln!(stream, "{attach}").expect("written");
            answer(&mut stream).contains("\"ok\"").then_some(stream)
        });
        drop(client);
    }
    is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().expect("no panic");
    drop(stderr);
    assert!(keeper.drained("c1", LIMIT).await.expect("known"));
    keeper.remove("c1").await.expect("removed");
    let process = scene.running();
    drop(keeper);
    // It is not held up by anybody who was attached.
    process.ended();
}
