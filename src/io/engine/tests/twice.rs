//! A stream that two workers come for at the same time: one that rests is in the timer's
//! list, and its end is told by epoll.

use super::*;

#[test]
fn who_comes_for_a_stream_that_is_served_waits_for_nobody() {
    let scene = Scene::new();
    let io = scene.io("c1");
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    stdout.write("a line\n");
    let shared = &scene.engine.shared;
    let sources: Vec<_> = lock(&shared.sources).values().cloned().collect();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut buffers = Buffers::new(64, LAST_READ_BYTES);
                for number in 0..20_000 {
                    let source = sources[number % sources.len()].clone();
                    shared.serve(source, &mut buffers, Pass::Fair { is_hung_up: false });
                }
            });
        }
    });
    drop((stdout, stderr));
    scene.drained("c1");
    assert_eq!(shown(&scene.log()), ["stdout F a line"]);
}
