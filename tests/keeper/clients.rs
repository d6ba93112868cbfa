//! Clients that are broken, too many, or strangers.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use longshore::io::Keeper;
use rustix::process::Uid;

use crate::fixture::{LIMIT, Scene, Shim};

/// A keeper with a container that has output.
async fn busy(scene: &Scene) -> (Keeper, Shim) {
    let keeper = scene.client();
    let io = scene.io("c1");
    keeper.add(io.clone()).await.expect("added");
    (keeper, Shim::open(&io.stdout))
}

/// Whether the keeper hangs up on a client that says `text`.
fn is_cut_off(mut stream: UnixStream, text: &[u8]) -> bool {
    // It may hang up before everything is sent.
    let _ = stream.write_all(text);
    matches!(stream.read(&mut [0; 64]), Ok(0)) || stream.write_all(b"\n").is_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_speak_the_protocol_is_cut_off_and_disturbs_nobody() {
    let scene = Scene::new();
    let (keeper, mut stdout) = busy(&scene).await;
    let long = [&b"{\"seq\":1,\"do\":\""[..], &vec![b'x'; 1 << 20], b"\"}\n"].concat();
    let texts =
        [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0\r\n", b"\0\0\0\n", b"[]\n", b"{\"seq\":-1}\n", &long];
    for text in texts {
        assert!(is_cut_off(scene.connect().expect("it listens"), text), "{:?}", &text[..text.len().min(20)]);
    }
    stdout.write("undisturbed\n");
    scene.logged("c1", "undisturbed");
    assert_eq!(keeper.list().await.expect("listed").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_server_asks_for_is_refused_and_no_more() {
    let scene = Scene::new();
    let (_keeper, _stdout) = busy(&scene).await;
    let mut stream = scene.connect().expect("it listens");
    for (request, answer) in [
        (r#"{"seq":1,"do":"rewind","id":"c1"}"#, r#"{"seq":1,"error":{"kind":"unimplemented","#),
        (r#"{"seq":2,"do":"reopen"}"#, r#"{"seq":2,"error":{"kind":"invalid_argument","#),
        (r#"{"seq":3,"do":"reopen","id":"c1","how":"gently"}"#, r#"{"seq":3,"ok":{}}"#),
    ] {
        writeln!(stream, "{request}").expect("written");
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("answered");
            line.extend(byte);
        }
        assert!(line.starts_with(answer.as_bytes()), "{}", String::from_utf8_lossy(&line));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_clients_wait_for_their_turn() {
    let scene = Scene::new();
    let (keeper, mut stdout) = busy(&scene).await;
    // More than are accepted at a time.
    let mut idle: Vec<UnixStream> = (0..40).map(|_| scene.connect().expect("there is a queue")).collect();
    stdout.write("undisturbed\n");
    scene.logged("c1", "undisturbed");
    assert_eq!(keeper.list().await.expect("listed").len(), 1, "who was there first is served");
    let mut last = idle.pop().expect("one");
    writeln!(last, r#"{{"seq":1,"do":"list"}}"#).expect("written");
    drop(idle);
    let mut answer = [0; 16];
    last.read_exact(&mut answer).expect("its turn has come");
    assert_eq!(&answer, b"{\"seq\":1,\"ok\":{\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_users_are_turned_away() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: CAP_SETUID is needed to be another user");
        return;
    }
    let scene = Scene::new();
    let (keeper, _stdout) = busy(&scene).await;
    let socket = scene.socket();
    let mode = |path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&socket) & 0o077, 0, "it is for its user only");
    // Somebody has opened the way to it.
    std::fs::set_permissions(scene.folder.path(), PermissionsExt::from_mode(0o755)).expect("set");
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).expect("set");
    let stranger = std::thread::spawn(move || {
        // Of this thread, which ends, and not of the process.
        rustix::thread::set_thread_uid(Uid::from_raw(NOBODY)).expect("root may");
        UnixStream::connect(socket).expect("the mode allows it")
    });
    let stranger = stranger.join().expect("no panic");
    stranger.set_read_timeout(Some(LIMIT)).expect("set");
    assert!(is_cut_off(stranger, b"{\"seq\":1,\"do\":\"remove\",\"id\":\"c1\"}\n"));
    assert_eq!(keeper.list().await.expect("listed").len(), 1);
}
