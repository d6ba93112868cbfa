use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt;

use super::*;

/// Records the spans of this thread; all tests share the recorder.
fn recording() -> tracing::subscriber::DefaultGuard {
    tracing::subscriber::set_default(tracing_subscriber::registry().with(layer(16 << 20)))
}

/// The last call of that method which has ended.
fn story(method: &str) -> Story {
    let (lines, _) = recorder().expect("it records").after(0, usize::MAX);
    let stories = lines.iter().map(|line| serde_json::from_slice::<Story>(line).expect("a story"));
    stories.filter(|story| story.method == method).last().expect("it has ended")
}

fn call(method: &'static str) -> Span {
    tracing::trace_span!(parent: None, "call", method)
}

#[test]
fn spans_become_a_tree() {
    let _guard = recording();
    let root = call("TreeOfSpans");
    let containerd = root.in_scope(|| {
        let cri = tracing::info_span!("cri", call = "TreeOfSpans", object = "default/a");
        cri.in_scope(|| {
            about(|about| about.pod = "default/a".into());
            let stage = tracing::debug_span!("stage", name = "record");
            stage.in_scope(|| {
                let path = "/containerd.services.tasks.v1.Tasks/Create";
                tracing::debug_span!("containerd", call = path)
            })
        })
    });
    failed(&containerd, "no room");
    note(&containerd, "answer", || "text".into());
    drop(containerd);
    let id = answered(&root, "Unknown", Some("it failed")).expect("an id");
    drop(root);
    let story = story("TreeOfSpans");
    assert_eq!(
        (story.failure.as_str(), story.code.as_str(), story.error.as_str()),
        (&*id, "Unknown", "it failed")
    );
    assert_eq!((story.about.object.as_str(), story.about.pod.as_str()), ("default/a", "default/a"));
    let steps: Vec<_> =
        story.steps.iter().map(|it| (it.parent, it.kind.as_str(), it.name.as_str())).collect();
    assert_eq!(steps, [(0, "stage", "record"), (1, "containerd", "Tasks.Create")]);
    assert_eq!(story.steps[1].error, "no room");
    assert_eq!(story.steps[1].notes, [("answer".to_owned(), "text".to_owned())]);
    assert!(story.steps.iter().all(|step| step.us.is_some()));
}

#[test]
fn a_story_is_told_when_the_last_step_has_ended() {
    let _guard = recording();
    let root = call("Detached");
    let stage = root.in_scope(|| tracing::debug_span!("stage", name = "long"));
    let given_up = root.in_scope(|| tracing::debug_span!("containerd", call = "/a.B/C"));
    // The client goes away.
    drop(root);
    let running = recorder().expect("it records").running();
    let running = running.iter().find(|story| story.method == "Detached").expect("it goes on");
    assert_eq!(running.present().map(|step| step.name.as_str()), Some("B.C"));
    drop(given_up);
    drop(stage);
    let story = story("Detached");
    assert_eq!((story.code.as_str(), story.steps[1].error.as_str()), ("Canceled", "given up"));
}

#[test]
fn what_the_server_does_by_itself_has_a_name_in_brackets() {
    let _guard = recording();
    background("exit-of-test", "c1").in_scope(|| drop(file("write status", Path::new("/a"))));
    let story = story("[exit-of-test]");
    assert_eq!((story.about.object.as_str(), story.code.as_str()), ("c1", "OK"));
    let step = &story.steps[0];
    assert_eq!(
        (step.kind.as_str(), step.name.as_str(), step.args.as_str()),
        ("file", "write status", "path=/a")
    );
}

#[tokio::test(start_paused = true)]
async fn only_what_is_waited_for_is_a_step() {
    let _guard = recording();
    let root = call("Waits");
    async {
        wait("nothing", async {}).await;
        wait("a while", tokio::time::sleep(Duration::from_secs(1))).await;
    }
    .instrument(root.clone())
    .await;
    drop(root);
    let story = story("Waits");
    let steps: Vec<_> = story.steps.iter().map(|it| (it.kind.as_str(), it.name.as_str())).collect();
    assert_eq!(steps, [("wait", "a while")]);
}

#[test]
fn spans_of_no_call_are_passed_over() {
    let _guard = recording();
    let lonely = tracing::debug_span!(parent: None, "stage", name = "lonely");
    failed(&lonely, "no");
    assert_eq!(lonely.in_scope(id), None);
    let root = call("WithId");
    assert_eq!(root.in_scope(id).map(|id| id.len()), Some(6));
}
