//! What Prometheus reads: `GET /metrics`, and nothing else.
//!
//! Nothing of it is a secret, but none of it is of use to strangers, so whoever binds to more
//! than this host has to write that address.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::StatusCode;

use super::meters::{self, METERS};
use super::snapshot::Snapshot;
use crate::httpd::{Answer, Handler, answer};

/// Looks how things stand.
pub type Look = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Snapshot> + Send>> + Send + Sync>;

/// Answers with metrics, each time with what `look` gives.
#[must_use]
pub fn handler(look: Look) -> Handler {
    Arc::new(move |asked| {
        let look = look.clone();
        Box::pin(async move { metrics(asked.uri().path(), &look).await })
    })
}

async fn metrics(path: &str, look: &Look) -> Answer {
    match path {
        "/metrics" => answer(StatusCode::OK, meters::CONTENT_TYPE, METERS.text(&look().await)),
        _ => answer(StatusCode::NOT_FOUND, "text/plain", "metrics are at /metrics\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::CONTENT_TYPE;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn metrics_are_served_and_nothing_else() {
        let look: Look =
            Arc::new(|| Box::pin(async { Snapshot { pods: vec![("ready", 3)], ..Default::default() } }));
        let answer = metrics("/metrics", &look).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let kind = answer.headers()[CONTENT_TYPE].to_str().expect("text");
        assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        let body = std::str::from_utf8(&body).expect("text");
        assert!(body.contains("longshore_pods{state=\"ready\"} 3\n") && body.ends_with("# EOF\n"), "{body}");
        assert_eq!(metrics("/", &look).await.status(), StatusCode::NOT_FOUND);
    }
}
