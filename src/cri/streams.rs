//! The streaming forms of the list calls (area STR), and the stream of events.

use std::pin::Pin;

use futures_util::stream;
use prost::Message;
use tokio_stream::Stream;
use tonic::Status;

use super::status;
use crate::events::Subscription;
use crate::proto::cri::ContainerEventResponse;

/// The stream of a list call.
pub(super) type ListStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The size that messages are cut to (STR-03).
const MESSAGE_BYTES: usize = 1 << 20;

/// Cuts `items` into messages of about [`MESSAGE_BYTES`]; a larger item goes alone, and no
/// item means no message (STR-02). The set is a snapshot taken at the call (STR-01).
pub(super) fn in_messages<I, T>(items: Vec<I>, wrap: impl Fn(Vec<I>) -> T + Send + 'static) -> ListStream<T>
where
    I: Message + Send + 'static,
    T: Send + 'static,
{
    let mut items = items.into_iter().peekable();
    Box::pin(tokio_stream::iter(std::iter::from_fn(move || {
        let first = items.next()?;
        let mut bytes = first.encoded_len();
        let mut message = vec![first];
        while let Some(item) = items.next_if(|item| bytes + item.encoded_len() <= MESSAGE_BYTES) {
            bytes += item.encoded_len();
            message.push(item);
        }
        Some(Ok(wrap(message)))
    })))
}

/// The events of a subscription, up to the error that ends it.
pub(super) fn of_events(subscription: Subscription) -> ListStream<ContainerEventResponse> {
    Box::pin(stream::unfold(Some(subscription), |subscription| async {
        let mut subscription = subscription?;
        match subscription.next().await {
            Ok(event) => Some((Ok(event), Some(subscription))),
            Err(error) => Some((Err(status::of(&error)), None)),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cri::Int64Value;
    use crate::proto::cri::KeyValue;
    use tokio_stream::StreamExt;

    async fn sizes<I: Message + Send + 'static>(items: Vec<I>) -> Vec<usize> {
        in_messages(items, |message| message.len()).map(|size| size.expect("never an error")).collect().await
    }

    #[tokio::test]
    async fn messages_are_cut_and_never_empty() {
        assert_eq!(sizes::<Int64Value>(Vec::new()).await, Vec::<usize>::new());
        assert_eq!(sizes(vec![Int64Value { value: 1 }; 3]).await, [3]);
        let big = |bytes: usize| KeyValue { key: String::new(), value: vec![0; bytes] };
        assert_eq!(sizes(vec![big(1), big(3 << 20), big(1), big(1)]).await, [1, 1, 2]);
        assert_eq!(sizes(vec![big(600 << 10); 3]).await, [1, 1, 1]);
    }
}
