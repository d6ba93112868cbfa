//! Servers that make mistakes, at every place of a pull.
//!
//! What heals by itself is tried again and the pull succeeds; what does not ends in an
//! error that says with whom, at what and why, and leaves nothing.

use crate::bench::{BODIES, Bench, Case, EVERYWHERE, Place, must_be_clean};
use crate::fixture;
use crate::http::answer;
use crate::proxy::{Fault, When};

fn status(status: &str, headers: &[(&str, &str)]) -> Fault {
    let body = br#"{"errors":[{"code":"CODE","message":"in its own words"}]}"#;
    Fault::Say(answer(status, headers, body))
}

fn busy(retry_after: &str) -> Fault {
    status("429 Too Many Requests", &[("Retry-After", retry_after)])
}

/// A moment, as HTTP writes it.
fn http_date(seconds_from_now: i64) -> String {
    let moment = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds_from_now);
    moment.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[tokio::test]
async fn a_connection_that_breaks_once_is_made_again() {
    let Some(bench) = Bench::start().await else { return };
    let anywhere = [
        ("no answer", Fault::Close),
        ("half a head", Fault::Say(b"HTTP/1.1 200 OK\r\nContent-Len".to_vec())),
    ];
    let in_a_body =
        [("no body", Fault::Cut(0)), ("half a body", Fault::Cut(60)), ("reset", Fault::Reset(60))];
    let (first, second) = tokio::join!(
        bench.pull_each(&anywhere, EVERYWHERE, When::First(1)),
        bench.pull_each(&in_a_body, BODIES, When::First(1))
    );
    for case in first.iter().chain(&second) {
        case.must_be_pulled();
        assert!(bench.proxy.count(&case.place.line(&case.repository, &case.image)) >= 2, "{}", case.what);
    }
    bench.node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn a_server_that_is_busy_or_broken_for_a_moment_is_asked_again() {
    let Some(bench) = Bench::start().await else { return };
    let faults = [
        ("busy", status("429 Too Many Requests", &[])),
        ("busy now", busy("0")),
        ("busy for a second", busy("1")),
        ("busy until then", busy(&http_date(1))),
        ("busy until yesterday", busy(&http_date(-86400))),
        ("busy somehow", busy("soon")),
        ("internal", status("500 Internal Server Error", &[])),
        ("gateway", status("502 Bad Gateway", &[])),
        ("unavailable", status("503 Service Unavailable", &[("Retry-After", "0")])),
    ];
    for case in bench.pull_each(&faults, EVERYWHERE, When::First(1)).await {
        case.must_be_pulled();
    }
    bench.node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn a_server_that_stands_still_is_asked_again_until_the_pull_has_no_time_left() {
    let Some(bench) = Bench::with("pull_progress_timeout_s = 2").await else { return };
    let once = bench.pull_each(&[("half", Fault::Stall(60))], BODIES, When::First(1)).await;
    once.iter().for_each(Case::must_be_pulled);
    let (silent, stalled) = ([("silence", Fault::Silence)], [("stalls", Fault::Stall(60))]);
    let (silent, stalled) = tokio::join!(
        bench.pull_each(&silent, EVERYWHERE, When::Always),
        bench.pull_each(&stalled, BODIES, When::Always)
    );
    for case in silent.iter().chain(&stalled) {
        let error = case.result.as_ref().expect_err(&case.what);
        assert!(error.message().contains(&bench.proxy.name(&case.repository)), "{}: {error}", case.what);
        let is_told = ["no registry sent a byte for 2 s", "sent nothing for"].iter();
        assert!(is_told.clone().any(|words| error.message().contains(words)), "{}: {error}", case.what);
        must_be_clean(error, &[]);
    }
    bench.node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn a_server_that_stays_broken_is_named_with_the_reason() {
    let Some(bench) = Bench::start().await else { return };
    let anywhere = [
        ("no answer", Fault::Close, "closed before"),
        ("busy", busy("0"), "answered 429 Too Many Requests"),
        ("internal", status("500 Internal Server Error", &[]), "answered 500 Internal Server Error"),
        ("unavailable", status("503 Service Unavailable", &[]), "answered 503 Service Unavailable"),
        ("forbidden", status("403 Forbidden", &[]), "answered 403 Forbidden"),
        ("teapot", status("418 I'm a teapot", &[]), "answered 418"),
        ("garbage", Fault::Say(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n".to_vec()), "invalid HTTP"),
        ("nowhere", status("302 Found", &[]), "without a place"),
        ("loop", status("302 Found", &[("Location", "?secret=1")]), "redirects more than"),
    ];
    let in_a_body = [
        ("no body", Fault::Cut(0), "broke off"),
        ("half a body", Fault::Cut(60), "broke off"),
        ("reset", Fault::Reset(60), "broke off"),
        ("short", Fault::Shorten(60), "instead of"),
        ("another byte", Fault::Flip(30), "sha256:"),
        ("endless", Fault::Endless, "more bytes than"),
    ];
    let run = async |faults: &[(&str, Fault, &str)], places| {
        let plain: Vec<(&str, Fault)> =
            faults.iter().map(|(name, fault, _)| (*name, fault.clone())).collect();
        let cases = bench.pull_each(&plain, places, When::Always).await;
        for (case, (_, _, why)) in
            cases.iter().zip(faults.iter().flat_map(|fault| places.iter().map(move |_| fault)))
        {
            case.must_have_failed(&bench.proxy, &[why]);
        }
    };
    tokio::join!(run(&anywhere, EVERYWHERE), run(&in_a_body, BODIES));
    bench.node.must_have_no_image().await;
}

#[tokio::test]
async fn content_that_is_wrong_once_is_never_taken() {
    let Some(bench) = Bench::start().await else { return };
    let faults = [("flip", Fault::Flip(30)), ("short", Fault::Shorten(60)), ("endless", Fault::Endless)];
    for case in bench.pull_each(&faults, BODIES, When::First(1)).await {
        // Whether it is asked again is its own choice; the next pull gets it in any case.
        if case.result.is_err() {
            let why = ["sha256:"];
            case.must_have_failed(&bench.proxy, &why);
        }
        let name = bench.proxy.name(&format!("{}:1", case.repository));
        assert_eq!(bench.node.pull(&name).await, Ok(case.image.id()), "{}", case.what);
    }
    bench.node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn what_a_server_says_beside_the_content_may_be_wrong() {
    let Some(bench) = Bench::with("pull_progress_timeout_s = 1").await else { return };
    let storage = bench.registry.address.replace("127.0.0.1", "localhost");
    let html = ("html", Fault::Header("Content-Type", "text/html".into()));
    let none = ("no digest", Fault::Header("Docker-Content-Digest", "nonsense".into()));
    let other = ("other digest", Fault::Header("Docker-Content-Digest", fixture::digest(b"something else")));
    // More than a second for the whole, much less for each piece.
    let slow = ("slow", Fault::Slow(1400));
    let (anywhere, in_a_body) = ([html, none], [other.clone(), slow]);
    let (anywhere, in_a_body) = tokio::join!(
        bench.pull_each(&anywhere, EVERYWHERE, When::Always),
        bench.pull_each(&in_a_body, BODIES, When::Always)
    );
    for case in anywhere.iter().chain(&in_a_body) {
        case.must_be_pulled();
    }
    // Elsewhere, with a signature in the URL.
    for place in EVERYWHERE {
        let repository = format!("elsewhere/{place:?}").to_lowercase();
        let image = bench.push(&repository);
        let line = place.line(&repository, &image);
        let path = match place {
            Place::Tag => format!("/v2/{repository}/manifests/1"),
            Place::Manifest => format!("/v2/{repository}/manifests/{}", image.manifest.digest()),
            _ => line.replacen("GET ", "", 1),
        };
        let location = format!("http://{storage}{path}?signature=secret");
        let redirect = status("307 Temporary Redirect", &[("Location", &location)]);
        bench.proxy.when(&line, When::Always, [redirect]);
        let pulled = bench.node.pull(&bench.proxy.name(&format!("{repository}:1"))).await;
        assert_eq!(pulled, Ok(image.id()), "{place:?}");
    }
    // A tag that points at what is not there.
    let lost = bench.pull_each(&[other], &[Place::Tag], When::Always).await;
    let error = lost[0].result.as_ref().expect_err("not there");
    assert!(error.message().contains(&fixture::digest(b"something else")), "{error}");
    assert!(error.message().contains(&bench.proxy.address), "{error}");
    must_be_clean(error, &[]);
    bench.node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn nobody_waits_for_an_hour_because_a_server_says_so() {
    let Some(bench) = Bench::start().await else { return };
    let faults =
        [("hour", busy("3600")), ("date", busy(&http_date(3600))), ("age", busy("99999999999999999999"))];
    for case in bench.pull_each(&faults, EVERYWHERE, When::Always).await {
        case.must_have_failed(&bench.proxy, &["answered 429 Too Many Requests"]);
    }
    bench.node.must_have_no_image().await;
}

#[tokio::test]
async fn pulls_that_nobody_waits_for_leave_nothing_wherever_they_are() {
    let Some(bench) = Bench::start().await else { return };
    for turn in 0..3 {
        for place in EVERYWHERE {
            let repository = format!("{place:?}{turn}").to_lowercase();
            let image = bench.push(&repository);
            let fault = if *place == Place::Tag { Fault::Silence } else { Fault::Stall(turn * 100) };
            bench.proxy.when(&place.line(&repository, &image), When::Always, [fault]);
            let name = bench.proxy.name(&format!("{repository}:1"));
            tokio::select! {
                result = bench.node.pull(&name) => panic!("it stands still: {result:?}"),
                () = bench.proxy.reached() => {}
            }
        }
    }
    bench.node.must_have_no_image().await;
}
