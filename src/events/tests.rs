use std::cell::Cell;

use futures_util::FutureExt;

use super::*;
use crate::error::{Error, Kind};

const ALL: [Step; 4] = [Step::Created, Step::Started, Step::Stopped, Step::Deleted];

/// What comes without waiting. A test is one poll of its task, in which the runtime lets a task
/// take fewer events than some of these have.
fn at_once(subscription: &mut Subscription) -> Option<Result<ContainerEventResponse>> {
    tokio::task::unconstrained(subscription.next()).now_or_never()
}

/// What a subscription has at once, as id and type.
fn read(subscription: &mut Subscription) -> Vec<(String, i32)> {
    let mut events = Vec::new();
    while let Some(Ok(event)) = at_once(subscription) {
        events.push((event.container_id, event.container_event_type));
    }
    events
}

fn end(subscription: &mut Subscription) -> Option<Error> {
    loop {
        match at_once(subscription)? {
            Ok(_) => {}
            Err(error) => return Some(error),
        }
    }
}

fn expected(id: &str, steps: &[Step]) -> Vec<(String, i32)> {
    steps.iter().map(|step| (id.to_owned(), step.event_type() as i32)).collect()
}

fn tell(events: &Events, id: &str, told: &Told, steps: &[Step]) {
    events.tell(id, told, steps, Picture::default);
}

/// EVT-01, EVT-05.
#[tokio::test]
async fn every_step_is_told_once_and_in_order_to_everybody() {
    let events = Events::default();
    let (mut one, mut two) = (events.subscribe().expect("one"), events.subscribe().expect("two"));
    let told = Told::default();
    tell(&events, "a", &told, &[Step::Created]);
    tell(&events, "a", &told, &[Step::Created]);
    // The end was faster than the report of the start.
    tell(&events, "a", &told, &ALL[..3]);
    tell(&events, "a", &told, &ALL[..2]);
    tell(&events, "a", &told, &[Step::Deleted]);
    tell(&events, "a", &told, &ALL[..3]);
    assert_eq!(read(&mut one), expected("a", &ALL));
    assert_eq!(read(&mut two), expected("a", &ALL));
}

#[tokio::test]
async fn what_an_earlier_server_told_is_not_told_again() {
    let events = Events::default();
    let mut subscription = events.subscribe().expect("subscribed");
    let told = Told::default();
    told.known(Step::Started);
    tell(&events, "a", &told, &ALL[..2]);
    tell(&events, "a", &told, &ALL[..3]);
    assert_eq!(read(&mut subscription), expected("a", &[Step::Stopped]));
}

#[tokio::test]
async fn a_picture_is_taken_only_for_something_to_tell() {
    let events = Events::default();
    let (told, taken) = (Told::default(), Cell::new(0));
    let picture = || {
        taken.set(taken.get() + 1);
        Picture::default()
    };
    events.tell("a", &told, &ALL[..2], picture);
    events.tell("a", &told, &ALL[..2], picture);
    assert_eq!(taken.get(), 1);
}

/// EVT-06.
#[tokio::test(start_paused = true)]
async fn events_are_kept_for_the_first_who_comes_and_not_for_ever() {
    let events = Events::default();
    tell(&events, "old", &Told::default(), &[Step::Created]);
    tokio::time::advance(KEEP / 2).await;
    tell(&events, "new", &Told::default(), &[Step::Created]);
    tokio::time::advance(KEEP / 2 + Duration::from_secs(1)).await;
    let (mut first, mut second) = (events.subscribe().expect("first"), events.subscribe().expect("second"));
    tell(&events, "now", &Told::default(), &[Step::Created]);
    let now = expected("now", &[Step::Created]);
    assert_eq!(read(&mut first), [expected("new", &[Step::Created]), now.clone()].concat());
    assert_eq!(read(&mut second), now);
    drop((first, second));
    tell(&events, "later", &Told::default(), &[Step::Created]);
    assert_eq!(read(&mut events.subscribe().expect("third")), expected("later", &[Step::Created]));
}

#[tokio::test]
async fn kept_events_have_bounds() {
    let events = Events::default();
    for _ in 0..KEPT_EVENTS_MAX + 5 {
        tell(&events, "a", &Told::default(), &[Step::Created]);
    }
    assert_eq!(read(&mut events.subscribe().expect("subscribed")).len(), KEPT_EVENTS_MAX);
    let large = || Picture {
        pod: Some(PodSandboxStatus { id: "x".repeat(KEPT_BYTES_MAX / 3), ..Default::default() }),
        ..Picture::default()
    };
    for _ in 0..5 {
        events.tell("a", &Told::default(), &[Step::Created], large);
    }
    assert_eq!(read(&mut events.subscribe().expect("subscribed")).len(), 2);
}

/// EVT-07.
#[tokio::test]
async fn who_is_too_slow_is_told_what_he_lost_and_holds_up_nobody() {
    let events = Events::default();
    let (mut slow, mut fast) = (events.subscribe().expect("slow"), events.subscribe().expect("fast"));
    let mut seen = 0;
    for _ in 0..RING_EVENTS + 3 {
        tell(&events, "a", &Told::default(), &[Step::Created]);
        seen += read(&mut fast).len();
    }
    assert_eq!(seen, RING_EVENTS + 3);
    let error = at_once(&mut slow).expect("at once").expect_err("lost some");
    assert_eq!(error.kind(), Kind::ResourceExhausted);
    assert!(error.message().contains("3 events were lost after 0 were sent"), "{error}");
    assert!(read(&mut events.subscribe().expect("again")).is_empty());
}

#[tokio::test]
async fn subscriptions_have_a_bound_and_end_with_the_server() {
    let events = Events::default();
    let mut all: Vec<Subscription> =
        (0..SUBSCRIPTIONS_MAX).map(|_| events.subscribe().expect("one more")).collect();
    assert_eq!(events.subscribe().err().map(|error| error.kind()), Some(Kind::ResourceExhausted));
    let mut last = all.pop().expect("one");
    drop(all);
    tell(&events, "a", &Told::default(), &[Step::Created]);
    events.close();
    tell(&events, "a", &Told::default(), &[Step::Created]);
    assert_eq!(read(&mut last), expected("a", &[Step::Created]));
    assert_eq!(end(&mut last).map(|error| error.kind()), Some(Kind::Unavailable));
    assert_eq!(events.subscribe().err().map(|error| error.kind()), Some(Kind::Unavailable));
}

/// EVT-05: also when the clock is set back.
#[tokio::test]
async fn times_never_fall() {
    let events = Events::default();
    let mut subscription = events.subscribe().expect("subscribed");
    lock(&events.0).last = i64::MAX - 1;
    tell(&events, "a", &Told::default(), &ALL[..2]);
    for _ in 0..2 {
        let event = subscription.next().await.expect("an event");
        assert_eq!(event.created_at, i64::MAX - 1);
    }
}
