//! Changes of the log file, as the kubelet's rotation makes them.

use std::thread::JoinHandle;

use super::*;
use crate::error::Kind;

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
    let scene = Scene::new();
    let io = scene.io("c1");
    scene.engine.add(io.clone()).expect("added");
    let writers =
        [write_numbered(Shim::open(&io.stdout), LINES), write_numbered(Shim::open(&io.stderr), LINES)];
    let mut rotated: Vec<(PathBuf, u64)> = Vec::new();
    while !writers.iter().all(JoinHandle::is_finished) && rotated.len() < 200 {
        // As the kubelet does: rename, then reopen (LOG-16).
        let old = scene.log().with_extension(format!("{}", rotated.len()));
        std::fs::rename(scene.log(), &old).expect("renamed");
        scene.engine.reopen("c1").expect("reopened");
        assert!(scene.log().exists(), "LOG-13");
        let length = std::fs::metadata(&old).expect("it is there").len();
        rotated.push((old, length));
    }
    writers.into_iter().for_each(|writer| writer.join().expect("no panic"));
    scene.drained("c1");
    let mut all = Vec::new();
    for (old, length) in &rotated {
        assert_eq!(std::fs::metadata(old).expect("it is there").len(), *length, "LOG-13: it has grown");
        all.extend(entries(old));
    }
    all.extend(entries(&scene.log()));
    for stream in ["stdout", "stderr"] {
        assert_numbered(&all.iter().filter(|entry| entry.stream == stream).collect::<Vec<_>>(), LINES);
    }
    assert!(all.windows(2).all(|pair| pair[0].time < pair[1].time));
}

#[test]
fn reopen_makes_what_is_missing_and_goes_on_in_what_is_there() {
    let scene = Scene::new();
    let io = scene.io("c1");
    assert_eq!(scene.engine.reopen("c1").expect_err("unknown").kind(), Kind::NotFound);
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    stdout.write("before\n");
    // Not renamed: the same file (LOG-16). Twice in a row.
    scene.engine.reopen("c1").expect("reopened");
    scene.engine.reopen("c1").expect("reopened");
    std::fs::remove_dir_all(scene.log().parent().expect("a folder")).expect("removed");
    scene.engine.reopen("c1").expect("reopened");
    assert!(scene.log().exists());
    stdout.write("after\n");
    drop((stdout, stderr));
    scene.drained("c1");
    assert_eq!(shown(&scene.log()).last().expect("an entry"), "stdout F after");
    // Also when it has drained, without keeping it open.
    std::fs::remove_file(scene.log()).expect("removed");
    scene.engine.reopen("c1").expect("reopened");
    assert!(scene.log().exists());
}

#[test]
fn a_reopen_that_fails_keeps_the_old_file() {
    let scene = Scene::new();
    let io = scene.io("c1");
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    let old = scene.log().with_extension("old");
    std::fs::rename(scene.log(), &old).expect("renamed");
    std::fs::create_dir(scene.log()).expect("something in the way");
    let error = scene.engine.reopen("c1").expect_err("it is a folder");
    assert!(error.message().contains("0.log"), "{error}");
    stdout.write("still here\n");
    drop((stdout, stderr));
    scene.drained("c1");
    assert_eq!(shown(&old), ["stdout F still here"]);
}

#[test]
fn a_change_of_the_file_waits_for_a_burst_and_no_longer() {
    let scene = Scene::with_workers(1);
    let io = scene.io("c1");
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    let container = scene.engine.shared.container("c1").expect("known");
    // A burst that the disk keeps waiting.
    let burst = container.output.sink();
    std::thread::scope(|threads| {
        let reopened = threads.spawn(|| scene.engine.reopen("c1"));
        stdout.write("meanwhile\n");
        assert!(!reopened.is_finished(), "LOG-13: the old file may still grow");
        drop(burst);
        reopened.join().expect("no panic").expect("reopened");
    });
    drop((stdout, stderr));
    scene.drained("c1");
    assert_eq!(shown(&scene.log()), ["stdout F meanwhile"]);
}
