use super::*;
use crate::error::{Kind, unknown};
use std::sync::atomic::{AtomicUsize, Ordering};

#[tokio::test]
async fn detached_work_outlives_its_caller() {
    let flow = Flow::default();
    let (send, receive) = tokio::sync::oneshot::channel();
    let caller = {
        let flow = flow.clone();
        tokio::spawn(async move {
            flow.detach(async move {
                tokio::task::yield_now().await;
                let _ = send.send(());
                Ok(())
            })
            .await
        })
    };
    tokio::task::yield_now().await;
    caller.abort();
    let session = tokio::spawn({
        let flow = flow.clone();
        async move {
            let stopping = flow.clone();
            flow.detach(async move {
                stopping.stopping().await;
                Ok(())
            })
            .await
        }
    });
    tokio::task::yield_now().await;
    flow.drain(Duration::from_secs(5)).await;
    session.await.expect("no panic").expect("it ends with the server");
    receive.await.expect("the work ran to its end");
    let error = flow.detach(async { Ok(()) }).await.expect_err("no work after the drain");
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_panic_is_an_internal_error() {
    let error = Flow::default()
        .detach(async { if true { panic!("boom") } else { Ok(()) } })
        .await
        .expect_err("it panicked");
    assert_eq!(error.kind(), Kind::Internal);
}

#[tokio::test]
async fn undo_runs_in_reverse_and_goes_on_after_an_error() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut undo = Undo::default();
    for (what, fails) in [("first", false), ("second", true), ("third", false)] {
        let order = order.clone();
        undo.push(what, move || async move {
            lock(&order).push(what);
            if fails { Err(unknown("stuck")) } else { Ok(()) }
        });
    }
    let error = undo.run().await.expect_err("one step fails");
    assert_eq!(error.message(), "undo second: stuck");
    assert_eq!(*lock(&order), ["third", "second", "first"]);
}

#[tokio::test]
async fn a_retry_joins_and_another_request_is_told_the_stage() {
    let (flow, joins, runs) = (Flow::default(), Joins::<u32>::default(), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new(tokio::sync::Notify::new());
    let call = |request: &'static [u8]| {
        let (gate, runs) = (gate.clone(), runs.clone());
        joins.run(
            &flow,
            "a",
            request.into(),
            move |stage| async move {
                stage.set("CNI ADD");
                runs.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                Ok(7)
            },
            |_| {},
        )
    };
    let (first, second, other) = tokio::join!(call(b"r"), call(b"r"), async {
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let other = call(b"different").await;
        gate.notify_one();
        other
    });
    assert_eq!((first, second), (Ok(7), Ok(7)));
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    let error = other.expect_err("the name is taken");
    assert_eq!(error.kind(), Kind::AlreadyExists);
    assert!(error.message().contains("CNI ADD"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_result_waits_for_a_retry_and_is_abandoned_without_one() {
    let (flow, joins) = (Flow::default(), Joins::<u32>::default());
    let abandoned = Arc::new(AtomicUsize::new(0));
    let call = |value: u32| {
        let abandoned = abandoned.clone();
        joins.run(
            &flow,
            "a",
            (*b"r").into(),
            move |_| async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(value)
            },
            move |value| abandoned.store(value as usize, Ordering::SeqCst),
        )
    };
    // The client gives up before the end, the retry gets the first's result.
    assert!(tokio::time::timeout(Duration::from_millis(10), call(1)).await.is_err());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(call(2).await, Ok(1));
    // Claimed: the next call is a new one. Nobody waits for it: abandoned.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(tokio::time::timeout(Duration::from_millis(10), call(3)).await.is_err());
    tokio::time::sleep(CLAIM_LIMIT + Duration::from_secs(3)).await;
    assert_eq!(abandoned.load(Ordering::SeqCst), 3);
    assert_eq!(call(4).await, Ok(4));
}
