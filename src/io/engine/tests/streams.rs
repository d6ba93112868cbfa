//! What goes through: lines, pieces, times, both streams, many containers.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::error::Kind;

#[test]
fn both_streams_go_to_one_file_and_drain_at_their_ends() {
    let scene = Scene::new();
    let io = scene.io("c1");
    scene.engine.add(io.clone()).expect("added");
    // LOG-19, CTR-17: it is there before there is output.
    let metadata = std::fs::metadata(scene.log()).expect("the log is there");
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (0, 0o640));
    let (mut stdout, mut stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    stdout.write("one\ntwo\r\n");
    stderr.write("oops\n\n");
    stdout.write("three");
    drop(stderr);
    assert!(!scene.engine.get("c1").expect("known").is_drained);
    drop(stdout);
    scene.drained("c1");
    let shown = shown(&scene.log());
    let of = |stream: &str| shown.iter().filter(|line| line.starts_with(stream)).collect::<Vec<_>>();
    assert_eq!(of("stdout"), ["stdout F one", "stdout F two", "stdout P three"]);
    assert_eq!(of("stderr"), ["stderr F oops", "stderr F "]);
    assert_eq!(scene.engine.list().len(), 1, "it stays listed");
    scene.engine.remove("c1");
    assert!(scene.engine.list().is_empty());
}

#[test]
fn times_rise_and_never_repeat() {
    let scene = Scene::new();
    let io = scene.io("c1");
    scene.engine.add(io.clone()).expect("added");
    let flood = |path: &Option<PathBuf>| {
        let mut shim = Shim::open(path);
        std::thread::spawn(move || (0..20_000).for_each(|_| shim.write("x\n")))
    };
    let floods = [flood(&io.stdout), flood(&io.stderr)];
    floods.into_iter().for_each(|flood| flood.join().expect("no panic"));
    scene.drained("c1");
    let entries = entries(&scene.log());
    assert_eq!(entries.len(), 40_000);
    assert!(entries.windows(2).all(|pair| pair[0].time < pair[1].time));
}

#[test]
fn bytes_that_come_one_by_one_make_the_same_lines() {
    let scene = Scene::new();
    let io = scene.io("c1");
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    let text = format!("{}\r\n{}\n\r\nend", "a".repeat(64), "b".repeat(65));
    text.bytes().for_each(|byte| stdout.write([byte]));
    drop((stdout, stderr));
    scene.drained("c1");
    let expected = [
        format!("stdout F {}", "a".repeat(64)),
        format!("stdout P {}", "b".repeat(64)),
        "stdout F b".into(),
        "stdout F ".into(),
        "stdout P end".into(),
    ];
    assert_eq!(shown(&scene.log()), expected);
}

#[test]
fn a_line_without_limit_comes_in_large_pieces() {
    let scene = Scene::new();
    let io = ContainerIo { line_bytes_max: 0, ..scene.io("c1") };
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    let length = 2 * LINE_BYTES_CAP + 5;
    stdout.write(vec![b'x'; length]);
    stdout.write("\n");
    drop((stdout, stderr));
    scene.drained("c1");
    let lengths: Vec<_> = entries(&scene.log()).iter().map(|entry| entry.content.len()).collect();
    assert_eq!(lengths, [LINE_BYTES_CAP, LINE_BYTES_CAP, 5]);
}

#[test]
fn long_lines_of_both_streams_come_in_pieces_of_the_limit() {
    const MAX: usize = 16 << 10;
    let scene = Scene::new();
    let io = ContainerIo { line_bytes_max: MAX, ..scene.io("c1") };
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, mut stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    // Turn by turn, and never at the end of a piece.
    for _ in 0..40 {
        stdout.write("o".repeat(1000));
        stderr.write("e".repeat(1024));
    }
    stdout.write("\n");
    stderr.write("\n");
    drop((stdout, stderr));
    scene.drained("c1");
    let entries = entries(&scene.log());
    let pieces = |stream: &str| {
        let of = entries.iter().filter(|entry| entry.stream == stream);
        of.map(|entry| (&*entry.tag, entry.content.len())).collect::<Vec<_>>()
    };
    assert_eq!(pieces("stdout"), [("P", MAX), ("P", MAX), ("F", 40_000 - 2 * MAX)]);
    // A line that ends with its limit has no empty end (LOG-05).
    assert_eq!(pieces("stderr"), [("P", MAX), ("P", MAX), ("F", 40_960 - 2 * MAX)]);
    for Entry { stream, content, .. } in &entries {
        assert!(content.iter().all(|&byte| byte == if stream == "stdout" { b'o' } else { b'e' }));
    }
}

#[test]
fn a_terminal_has_one_stream_and_its_returns_are_dropped() {
    let scene = Scene::new();
    let io = ContainerIo { stderr: None, ..scene.io("c1") };
    scene.engine.add(io.clone()).expect("added");
    let mut terminal = Shim::open(&io.stdout);
    for piece in ["# ls\r", "\n\x1b[1mbin\x1b[0m\r\n", "50%\r100%\r\n", "# \0"] {
        terminal.write(piece);
    }
    drop(terminal);
    scene.drained("c1");
    let expected = ["F # ls", "F \x1b[1mbin\x1b[0m", "F 50%\r100%", "P # \0"];
    assert_eq!(shown(&scene.log()), expected.map(|entry| format!("stdout {entry}")));
}

#[test]
fn without_a_log_output_goes_nowhere_but_goes() {
    let scene = Scene::new();
    let io = ContainerIo { log_path: None, ..scene.io("c1") };
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    stdout.write(vec![b'x'; 3 << 20]);
    drop((stdout, stderr));
    let kept = scene.drained("c1");
    assert_eq!(kept.lost_entries, 0);
    scene.engine.reopen("c1").expect("nothing to do");
    // Neither log nor output: there is nothing to wait for.
    let none = ContainerIo { id: "c2".into(), ..ContainerIo::default() };
    scene.engine.add(none).expect("added");
    scene.drained("c2");
}

#[test]
fn standard_input_stays_open_until_it_is_closed() {
    let scene = Scene::new();
    let wanted = Wanted { stdin: true, ..Wanted::default() };
    let fifos = Fifos::make(scene.folder.path(), "c1", "c1", wanted).expect("made");
    let io = ContainerIo { id: "c1".into(), stdin: fifos.stdin.clone(), ..ContainerIo::default() };
    scene.engine.add(io).expect("added");
    let path = fifos.stdin.expect("wanted");
    let mut reader = File::open(&path).expect("there is a writer");
    for text in ["first", "second"] {
        // A client that comes and goes.
        File::options().write(true).open(&path).expect("opened").write_all(text.as_bytes()).expect("written");
        let mut bytes = [0; 16];
        let count = reader.read(&mut bytes).expect("no end yet");
        assert_eq!(&bytes[..count], text.as_bytes());
    }
    scene.engine.close_stdin("c1").expect("known");
    assert_eq!(reader.read(&mut [0; 16]).expect("the end"), 0);
    assert_eq!(scene.engine.close_stdin("c2").expect_err("unknown").kind(), Kind::NotFound);
}

#[test]
fn two_hundred_containers_share_the_workers() {
    const LINES: usize = 50;
    let scene = Scene::new();
    let all: Vec<ContainerIo> = (0..200).map(|number| scene.io(&format!("c{number}"))).collect();
    let mut shims = Vec::new();
    for io in &all {
        scene.engine.add(io.clone()).expect("added");
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
        scene.drained(&io.id);
        let entries = entries(io.log_path.as_deref().expect("it has one"));
        for stream in ["stdout", "stderr"] {
            let of = entries.iter().filter(|entry| entry.stream == stream);
            let lines = of.map(|entry| String::from_utf8_lossy(&entry.content).into_owned());
            let expected = (0..LINES).map(|line| format!("{number} {line}"));
            assert!(lines.eq(expected), "{}", io.id);
        }
    }
}
