//! Layers whose connection breaks in the middle.
//!
//! What was received is kept, and the rest is asked for; what a server answers to that
//! is believed only as far as it fits, and the digest of the whole decides.

use crate::bench::{Bench, Place};
use crate::fixture::{self, Image};
use crate::proxy::{Fault, Seen, When};

/// The size of the layer's file: a few times what is handed to containerd at once.
const BYTES: usize = 1_000_000;

/// A bench with one image as `a:1`, of one large layer.
async fn large(settings: &str) -> Option<(Bench, Image, String)> {
    let bench = Bench::with(settings).await?;
    let image = fixture::image(vec![fixture::random(BYTES)]);
    bench.registry.push("a", "1", &image);
    let line = Place::Layer.line("a", &image);
    Some((bench, image, line))
}

impl Bench {
    async fn pull_large(&self) -> longshore::error::Result<String> {
        self.node.pull(&self.proxy.name("a:1")).await
    }
}

/// Where the answer to a request was asked to begin.
fn start(seen: &Seen) -> usize {
    let Some(range) = seen.head.header("range") else { return 0 };
    let start = range.strip_prefix("bytes=").and_then(|rest| rest.strip_suffix('-'));
    start.and_then(|start| start.parse().ok()).unwrap_or_else(|| panic!("a range of one number: {range}"))
}

#[tokio::test]
async fn a_layer_that_breaks_off_goes_on_where_it_was() {
    let Some((bench, image, line)) = large("").await else { return };
    bench.proxy.when(&line, When::Nth(0), [Fault::Cut(400_000)]);
    bench.proxy.when(&line, When::Nth(0), [Fault::Cut(200_000)]);
    assert_eq!(bench.pull_large().await, Ok(image.id()));
    let seen = bench.proxy.seen(&line);
    assert_eq!(seen.len(), 3);
    let starts: Vec<usize> = seen.iter().map(start).collect();
    assert!(starts[0] == 0 && seen[0].sent == 400_000, "{starts:?}");
    // Nothing that was received is fetched again.
    assert_eq!(starts[1], 400_000);
    assert_eq!(starts[2], 600_000);
    assert_eq!(seen[2].sent, image.layers[0].data.len() - 600_000);
    // Anything but the same bytes would not do.
    assert!(
        seen[1..].iter().all(|seen| seen.head.header("accept-encoding").is_none_or(|it| it == "identity"))
    );
    bench.node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn a_layer_that_stands_still_goes_on_where_it_was() {
    let Some((bench, image, line)) = large("pull_progress_timeout_s = 4").await else { return };
    bench.proxy.when(&line, When::First(1), [Fault::Stall(400_000)]);
    assert_eq!(bench.pull_large().await, Ok(image.id()));
    assert_eq!(bench.proxy.seen(&line).iter().map(start).collect::<Vec<_>>(), [0, 400_000]);
    bench.node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn a_layer_that_breaks_off_again_and_again_comes_to_its_end() {
    let Some((bench, image, line)) = large("").await else { return };
    // More pieces than anything is tried in vain.
    bench.proxy.when(&line, When::Always, [Fault::Cut(80_000)]);
    assert_eq!(bench.pull_large().await, Ok(image.id()));
    let starts: Vec<usize> = bench.proxy.seen(&line).iter().map(start).collect();
    assert!(starts.len() >= 12 && starts.windows(2).all(|pair| pair[0] < pair[1]), "{starts:?}");
    bench.node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn a_strange_answer_to_the_question_for_the_rest_does_no_harm() {
    let Some(bench) = Bench::start().await else { return };
    let header = |value: &str| Fault::Header("Content-Range", value.to_owned());
    let refused = crate::http::answer("416 Range Not Satisfiable", &[("Content-Range", "bytes */5")], b"");
    let faults = [
        ("whole", Fault::WithoutRange),
        ("beginning", header("bytes 0-59999/100000")),
        ("later", header("bytes 50000-99999/100000")),
        ("backwards", header("bytes 9-5/4")),
        ("unit", header("pages 1-2/3")),
        ("empty", header("")),
        ("huge", header("bytes 99999999999999999999-99999999999999999999/99999999999999999999")),
        ("refused", Fault::Say(refused)),
        ("gone", Fault::Say(crate::http::answer("404 Not Found", &[], b""))),
        ("endless", Fault::Endless),
        ("flip", Fault::Flip(5)),
    ];
    let pulls = faults.iter().map(async |(name, fault)| {
        let image = fixture::image(vec![fixture::random(100_000)]);
        bench.registry.push(name, "1", &image);
        let line = Place::Layer.line(name, &image);
        bench.proxy.when(&line, When::Nth(0), [Fault::Cut(40_000)]);
        bench.proxy.when(&line, When::Nth(0), [fault.clone()]);
        let result = bench.node.pull(&bench.proxy.name(&format!("{name}:1"))).await;
        let seen = bench.proxy.seen(&line);
        assert!(seen.len() >= 2 && start(&seen[1]) == 40_000, "{name}: {result:?}");
        match *name {
            // It does not have it any more, and says so.
            "gone" => assert!(result.is_err(), "{result:?}"),
            _ => assert_eq!(result, Ok(image.id()), "{name}"),
        }
    });
    futures_util::future::join_all(pulls).await;
    bench.node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn a_whole_that_is_wrong_is_fetched_anew() {
    let Some((bench, image, line)) = large("").await else { return };
    // The first part is not what it should be, which shows at the end.
    bench.proxy.when(&line, When::Nth(0), [Fault::Flip(1000), Fault::Cut(400_000)]);
    assert_eq!(bench.pull_large().await, Ok(image.id()));
    assert_eq!(bench.proxy.seen(&line).iter().map(start).collect::<Vec<_>>(), [0, 400_000, 0]);
    bench.node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn a_mirror_that_goes_away_in_the_middle_leaves_it_to_the_next() {
    let Some((bench, image, line)) = large("").await else { return };
    let upstream = crate::proxy::Proxy::start(&bench.registry.address).await;
    let hosts =
        format!("server = \"http://{}\"\n[host.\"http://{}\"]", upstream.address, bench.proxy.address);
    bench.node.configure_registry("registry.example", &hosts);
    bench.proxy.when(&line, When::First(1), [Fault::Cut(400_000)]);
    bench.proxy.when(&line, When::Always, [Fault::Close]);
    assert_eq!(bench.node.pull("registry.example/a:1").await, Ok(image.id()));
    assert_eq!(upstream.count("/manifests/"), 0);
    assert_eq!(upstream.count("/blobs/"), 1);
    // A mirror whose part is wrong does not spoil what the next one sends.
    bench.node.images.remove(&image.id()).await.expect("removed");
    let other = crate::proxy::Proxy::start(&bench.registry.address).await;
    other.when(&line, When::Always, [Fault::Flip(1000)]);
    let hosts = format!("server = \"http://{}\"\n[host.\"http://{}\"]", upstream.address, other.address);
    bench.node.configure_registry("registry.example", &hosts);
    assert_eq!(bench.node.pull("registry.example/a:1").await, Ok(image.id()));
    assert!(upstream.count("/blobs/") >= 2);
    bench.node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn a_pull_that_is_given_up_in_its_second_part_leaves_nothing() {
    let Some((bench, _, line)) = large("").await else { return };
    bench.proxy.when(&line, When::Nth(0), [Fault::Cut(400_000)]);
    bench.proxy.when(&line, When::Always, [Fault::Stall(100_000)]);
    tokio::select! {
        result = bench.pull_large() => panic!("it stands still: {result:?}"),
        () = bench.proxy.reached() => {}
    }
    bench.node.must_have_no_image().await;
}

#[tokio::test]
async fn a_pull_that_is_given_up_leaves_a_layer_in_common_to_another() {
    let Some(bench) = Bench::start().await else { return };
    for turn in 0..5 {
        let repository = format!("turn{turn}");
        let common = fixture::random(200_000);
        let images = [1, 2].map(|_| fixture::image(vec![fixture::random(100), common.clone()]));
        for (tag, image) in images.iter().enumerate() {
            bench.registry.push(&repository, &tag.to_string(), image);
        }
        let (common, own) = (common.0.digest(), images[1].layers[0].digest());
        bench.proxy.when(&common, When::First(1), [Fault::Stall(100_000)]);
        let name = |tag: &str| bench.proxy.name(&format!("{repository}:{tag}"));
        let (first, second) = (name("0"), name("1"));
        let mut second = Box::pin(bench.node.pull(&second));
        {
            let mut first = Box::pin(bench.node.pull(&first));
            tokio::select! {
                result = &mut first => panic!("it stands still: {result:?}"),
                () = bench.proxy.reached() => {}
            }
            // The other one is at work, and waits for this layer.
            let is_waiting = async {
                while bench.proxy.count(&own) == 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                result = &mut first => panic!("it stands still: {result:?}"),
                result = &mut second => panic!("a layer is missing: {result:?}"),
                () = is_waiting => {}
            }
        }
        assert_eq!(second.await, Ok(images[1].id()));
        assert_eq!(bench.proxy.count(&common), 2);
        bench.node.must_have_no_leftovers().await;
    }
}
