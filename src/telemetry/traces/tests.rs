use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt;

use super::*;

pub(crate) const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Gathers the spans of this thread.
fn gather(room: usize) -> (mpsc::Receiver<otlp::Span>, DefaultGuard) {
    let _ = SAMPLING.set(1.0);
    let (exporter, spans) = mpsc::channel(room);
    let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(Gather { exporter }));
    (spans, guard)
}

/// Lets the calls of this thread have traces, as long as what this gives lives.
pub(crate) fn with_traces() -> impl Sized {
    gather(1)
}

pub(crate) fn headers(context: &str) -> HeaderMap {
    HeaderMap::from_iter([(HEADER.parse().expect("a name"), context.parse().expect("a value"))])
}

/// What a call from `span` would say of its trace.
fn passed_on(span: &Span) -> Option<String> {
    let mut headers = HeaderMap::new();
    pass_on(span, &mut headers);
    headers.get(HEADER).map(|value| value.to_str().expect("text").to_owned())
}

#[test]
fn what_is_done_for_a_call_stands_below_it_in_the_callers_trace() {
    let (mut spans, _guard) = gather(16);
    let call = incoming("RunPodSandbox", &headers(CALLER));
    let (inner, said) = call.in_scope(|| {
        let stage = tracing::debug_span!("stage", name = "netns");
        let inner = stage.in_scope(|| tracing::debug_span!("containerd", call = "/a.b/C", bytes = 7));
        let said = passed_on(&inner);
        ended(&inner, Code::NotFound);
        (inner, said.expect("a trace"))
    });
    ended(&call, Code::Ok);
    drop(call);
    drop(inner);
    let [containerd, stage, call] = [(); 3].map(|()| spans.try_recv().expect("a span"));
    assert!(spans.try_recv().is_err());
    let text = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for span in [&containerd, &stage, &call] {
        assert_eq!(text(&span.trace_id), "0af7651916cd43dd8448eb211c80319c");
        assert!(span.start_time_unix_nano > 0 && span.end_time_unix_nano >= span.start_time_unix_nano);
    }
    assert_eq!(text(&call.parent_span_id), "b7ad6b7169203331");
    assert_eq!((&stage.parent_span_id, &containerd.parent_span_id), (&call.span_id, &stage.span_id));
    assert_eq!((call.name.as_str(), call.kind, call.status), ("RunPodSandbox", Kind::Server as i32, None));
    assert_eq!((stage.name.as_str(), stage.kind), ("stage netns", Kind::Internal as i32));
    assert_eq!((containerd.name.as_str(), containerd.kind), ("containerd /a.b/C", Kind::Client as i32));
    assert_eq!(containerd.status.map(|status| (status.message, status.code)), Some(("NotFound".into(), 2)));
    assert_eq!(containerd.attributes[1], otlp::KeyValue::new("bytes", otlp::Value::Number(7)));
    assert_eq!(said, format!("00-{}-{}-01", text(&call.trace_id), text(&containerd.span_id)));
}

#[test]
fn what_the_caller_does_not_keep_is_passed_on_and_not_told() {
    let (mut spans, _guard) = gather(16);
    let call = incoming("Version", &headers(&CALLER.replace("-01", "-00")));
    let said = passed_on(&call).expect("a trace");
    assert!(said.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && said.ends_with("-00"), "{said}");
    drop(call);
    assert!(spans.try_recv().is_err());
    // A trace of its own, and spans of no call.
    drop(incoming("Version", &headers("nonsense")));
    let own = spans.try_recv().expect("a span");
    assert!(own.parent_span_id.is_empty() && own.trace_id != [0; 16]);
    let background = tracing::info_span!("containerd");
    assert_eq!(passed_on(&background), None);
    drop(background);
    assert!(spans.try_recv().is_err());
}

#[test]
fn shares_are_kept() {
    let kept = |ratio| (0..1000).filter(|_| new_trace(ratio).is_sampled).count();
    assert_eq!((kept(0.0), kept(1.0)), (0, 1000));
    // Twenty standard deviations on either side.
    assert!((200..800).contains(&kept(0.5)));
}

#[test]
fn what_there_is_no_room_for_is_lost_and_nobody_waits() {
    let (mut spans, _guard) = gather(2);
    for _ in 0..10 {
        drop(incoming("Version", &headers(CALLER)));
    }
    assert!(spans.try_recv().is_ok() && spans.try_recv().is_ok() && spans.try_recv().is_err());
}

#[test]
fn long_texts_are_cut() {
    let (mut spans, _guard) = gather(2);
    let call = incoming("Version", &headers(CALLER));
    call.in_scope(|| {
        let text = "ä".repeat(1000);
        let inner = tracing::info_span!("cni", plugin = text);
        failed(&inner, &format!("x{text}"));
    });
    let cni = spans.try_recv().expect("a span");
    assert_eq!(cni.status.map(|status| status.message.len()), Some(511));
    assert_eq!(cni.attributes, [otlp::KeyValue::new("plugin", otlp::Value::Text("ä".repeat(256)))]);
}

/// Neither a collector that is not there nor one that says nothing holds up the end.
#[tokio::test]
async fn the_exporter_ends_whatever_the_collector_does() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let endpoints = [&silent, &gone].map(|one| format!("http://{}", one.local_addr().expect("an address")));
    drop(gone);
    for endpoint in endpoints {
        let (sender, receiver) = mpsc::channel(16);
        sender.try_send(otlp::Span::default()).expect("there is room");
        let stop = CancellationToken::new();
        stop.cancel();
        let exporter = Exporter::new(receiver, &endpoint).expect("an address");
        let ended = tokio::time::timeout(Duration::from_secs(30), exporter.run(stop)).await;
        assert!(ended.is_ok(), "{endpoint}");
        assert!(sender.is_closed());
    }
}
