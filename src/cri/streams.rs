//! The streaming forms of the list calls (area STR), and the stream of events.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream;
use prost::Message;
use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tonic::Status;

use super::status;
use crate::error::{Result as Outcome, exhausted};
use crate::events::Subscription;
use crate::proto::cri::ContainerEventResponse;

/// The stream of a list call.
pub(super) type ListStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The size that messages are cut to (STR-03).
const MESSAGE_BYTES: usize = 1 << 20;

/// What all streams together may hold for clients that have not read it yet.
const HELD_KIB: u32 = 64 << 10;

/// The streams of list calls, within [`HELD_KIB`]. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Lists(Arc<Semaphore>);

impl Default for Lists {
    fn default() -> Lists {
        Lists(Arc::new(Semaphore::new(HELD_KIB as usize)))
    }
}

impl Lists {
    /// Cuts `items` into messages of about [`MESSAGE_BYTES`]; a larger item goes alone, and no
    /// item means no message (STR-02). The set is a snapshot taken at the call (STR-01), and
    /// held until the stream is read or given up. One stream is always served.
    ///
    /// # Errors
    /// ResourceExhausted when other streams, which nobody reads, hold too much.
    pub(super) fn in_messages<I, T>(
        &self,
        items: Vec<I>,
        wrap: impl Fn(Vec<I>) -> T + Send + 'static,
    ) -> Outcome<ListStream<T>>
    where
        I: Message + Send + 'static,
        T: Send + 'static,
    {
        let bytes: usize = items.iter().map(Message::encoded_len).sum();
        let kib = u32::try_from(bytes >> 10).unwrap_or(HELD_KIB).clamp(1, HELD_KIB);
        let held = self.0.clone().try_acquire_many_owned(kib).map_err(|_| {
            exhausted(format!("streams that are not read hold more than {} MiB", HELD_KIB >> 10))
        })?;
        let mut items = items.into_iter().peekable();
        Ok(Box::pin(tokio_stream::iter(std::iter::from_fn(move || {
            let _held = &held;
            let first = items.next()?;
            let mut bytes = first.encoded_len();
            let mut message = vec![first];
            while let Some(item) = items.next_if(|item| bytes + item.encoded_len() <= MESSAGE_BYTES) {
                bytes += item.encoded_len();
                message.push(item);
            }
            Some(Ok(wrap(message)))
        }))))
    }
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
        let stream = Lists::default().in_messages(items, |message| message.len()).expect("there is room");
        stream.map(|size| size.expect("never an error")).collect().await
    }

    #[tokio::test]
    async fn streams_that_nobody_reads_are_bounded() {
        let lists = Lists::default();
        let large = || vec![KeyValue { key: String::new(), value: vec![0; 48 << 20] }];
        let open = |items| lists.in_messages(items, |message| message.len());
        let held = open(large()).expect("the first");
        let small = open(vec![KeyValue::default()]).expect("small ones, too");
        let error = open(large()).err().expect("no more room");
        assert_eq!(error.kind(), crate::error::Kind::ResourceExhausted);
        drop((held, small));
        drop(open(large()).expect("room again"));
        // However large it is.
        let larger = (0..3).flat_map(|_| large()).collect();
        drop(open(larger).expect("one alone"));
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
