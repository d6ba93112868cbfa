//! Traces: what was done for a call reaches a collector.

use std::collections::HashMap;

use prost::Message;
use tokio::net::TcpListener;
use tonic::Request;

use self::otlp::{Export, Span};
use crate::harness::collector::Collector;
use crate::harness::{Node, Server, wait_for};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
/// SpanKind.
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
/// StatusCode.
const ERROR: i32 = 2;

/// What the tests look at of OTLP's messages, by the numbers of opentelemetry-proto 1.x.
mod otlp {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Export {
        #[prost(message, repeated, tag = "1")]
        pub(super) resource_spans: Vec<ResourceSpans>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ResourceSpans {
        #[prost(message, optional, tag = "1")]
        pub(super) resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        pub(super) scope_spans: Vec<ScopeSpans>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Resource {
        #[prost(message, repeated, tag = "1")]
        pub(super) attributes: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct KeyValue {
        #[prost(string, tag = "1")]
        pub(super) key: String,
        #[prost(message, optional, tag = "2")]
        pub(super) value: Option<Text>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Text {
        #[prost(string, tag = "1")]
        pub(super) text: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ScopeSpans {
        #[prost(message, repeated, tag = "2")]
        pub(super) spans: Vec<Span>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Span {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) span_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "4")]
        pub(super) parent_span_id: Vec<u8>,
        #[prost(string, tag = "5")]
        pub(super) name: String,
        #[prost(int32, tag = "6")]
        pub(super) kind: i32,
        #[prost(fixed64, tag = "7")]
        pub(super) start_time_unix_nano: u64,
        #[prost(fixed64, tag = "8")]
        pub(super) end_time_unix_nano: u64,
        #[prost(message, optional, tag = "15")]
        pub(super) status: Option<SpanStatus>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct SpanStatus {
        #[prost(string, tag = "2")]
        pub(super) message: String,
        #[prost(int32, tag = "3")]
        pub(super) code: i32,
    }
}

/// What a collector has got.
struct Told<'a>(&'a Collector);

impl Told<'_> {
    fn exports(&self) -> Vec<Export> {
        let messages = self.0.messages();
        messages.into_iter().map(|message| Export::decode(message).expect("OTLP")).collect()
    }

    /// All spans so far, by name; of those of one name, the last.
    fn spans(&self) -> HashMap<String, Span> {
        let exports = self.exports();
        let scopes = exports.iter().flat_map(|export| &export.resource_spans).flat_map(|it| &it.scope_spans);
        scopes.flat_map(|scope| &scope.spans).map(|span| (span.name.clone(), span.clone())).collect()
    }

    /// What the spans are said to be of.
    fn service(&self) -> Option<String> {
        let exports = self.exports();
        let resource = exports.first()?.resource_spans.first()?.resource.clone()?;
        let name = resource.attributes.into_iter().find(|one| one.key == "service.name")?;
        Some(name.value?.text)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_pods_start_is_told_in_the_kubelets_trace() {
    let (collector, config) = Collector::start(0.0).await;
    let told = Told(&collector);
    let node = Node::with(Server::Longshore).config(&config).start().await;
    let mut request = Request::new(node.pod("a").request());
    let context = format!("00-{TRACE}-{CALLER}-01").parse().expect("a value");
    request.metadata_mut().insert("traceparent", context);
    node.runtime().run_pod_sandbox(request).await.expect("a pod");

    let spans = wait_for("the span of the call", async || {
        let spans = told.spans();
        spans.contains_key("RunPodSandbox").then_some(spans)
    })
    .await;
    assert_eq!(told.service().as_deref(), Some("longshore"));
    let call = &spans["RunPodSandbox"];
    assert_eq!((hexadecimal(&call.parent_span_id).as_str(), call.kind), (CALLER, SERVER));
    let ids: HashMap<&[u8], &Span> = spans.values().map(|span| (span.span_id.as_slice(), span)).collect();
    // Nothing else was asked for by somebody who keeps traces.
    for span in spans.values() {
        assert_eq!(hexadecimal(&span.trace_id), TRACE, "{}", span.name);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{}", span.name);
    }
    let path = |name: &str| {
        let mut path = vec![name.to_owned()];
        let mut span = spans.get(name).unwrap_or_else(|| panic!("{name} is not among {:?}", spans.keys()));
        while let Some(above) = ids.get(span.parent_span_id.as_slice()) {
            path.push(above.name.clone());
            span = above;
        }
        path
    };
    let create = "containerd /containerd.services.tasks.v1.Tasks/Create";
    assert_eq!(path(create), [create, "stage pause_create", "cri RunPodSandbox", "RunPodSandbox"]);
    let add = "cni ADD";
    assert_eq!(path(add), [add, "stage cni", "cri RunPodSandbox", "RunPodSandbox"]);
    assert_eq!(spans[create].kind, CLIENT);
    for stage in ["image", "spec", "record", "netns", "files", "snapshot", "pause_start"] {
        assert_eq!(path(&format!("stage {stage}")).last().map(String::as_str), Some("RunPodSandbox"));
    }

    // A call that fails, of a trace that begins with it, is kept by nobody here.
    node.pod_status("nothing", false).await.expect_err("there is none");
    let mut request = Request::new(longshore::proto::cri::PodSandboxStatusRequest {
        pod_sandbox_id: "nothing".into(),
        verbose: false,
    });
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{CALLER}-01").parse().expect("a value"));
    node.runtime().pod_sandbox_status(request).await.expect_err("there is none");
    let spans = wait_for("the span of the failed call", async || {
        let spans = told.spans();
        spans.contains_key("PodSandboxStatus").then_some(spans)
    })
    .await;
    let status = spans["PodSandboxStatus"].status.clone().expect("a status");
    assert_eq!((status.message.as_str(), status.code), ("NotFound", ERROR));
    assert_eq!(hexadecimal(&spans["PodSandboxStatus"].trace_id), TRACE);
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
async fn a_collector_that_says_nothing_holds_up_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let address = silent.local_addr().expect("an address");
    let config = format!("[traces]\nendpoint = \"http://{address}\"\n");
    let node = Node::with(Server::Longshore).config(&config).start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
    node.finish().await;
}
