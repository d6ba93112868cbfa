//! Workers that are told to stop, and to go on before they have.

use super::*;

fn at_work(scene: &Scene) -> usize {
    lock(&scene.engine.shared.crew).at_work
}

/// However the two fall together: who was about to leave is there again.
#[test]
fn no_worker_is_lost_when_a_halt_is_taken_back() {
    let scene = Scene::with_workers(2);
    let io = scene.io("c1");
    scene.engine.add(io.clone()).expect("added");
    let (mut stdout, mut stderr) = (Shim::open(&io.stdout), Shim::open(&io.stderr));
    let lines = 3000;
    for number in 0..lines {
        stdout.write(format!("{number}\n"));
        stderr.write("x\n");
        let _ = scene.engine.halt(Duration::ZERO);
        scene.engine.go_on();
        assert_eq!(at_work(&scene), 2, "after {number} times");
    }
    drop((stdout, stderr));
    scene.drained("c1");
    let numbers = entries(&scene.log());
    let numbers = numbers.into_iter().filter(|entry| entry.stream == "stdout");
    let numbers: Vec<String> = numbers.map(|entry| String::from_utf8(entry.content).expect("text")).collect();
    assert_eq!(numbers, (0..lines).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[test]
fn nothing_moves_while_all_have_stopped() {
    let scene = Scene::new();
    let io = scene.io("c1");
    scene.engine.add(io.clone()).expect("added");
    let mut stdout = Shim::open(&io.stdout);
    scene.engine.halt(LIMIT).expect("nobody is held up");
    assert_eq!(at_work(&scene), 0);
    stdout.write("later\n");
    assert_eq!(shown(&scene.log()), [] as [&str; 0]);
    scene.engine.go_on();
    drop(stdout);
    drop(Shim::open(&io.stderr));
    scene.drained("c1");
    assert_eq!(shown(&scene.log()), ["stdout F later"]);
}
