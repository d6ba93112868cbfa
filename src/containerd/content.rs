//! The content store: blobs by digest.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::WriteAction;
use containerd_client::services::v1::content_client::ContentClient;
use prost_types::FieldMask;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Streaming;

use super::wire::{Wire, leased};
use super::{Containerd, MESSAGE_BYTES_MAX};
use crate::error::{Error, Kind, Result, internal, unknown};
use crate::points;

/// How many writes of one ingest are under way at the same time: the next one is on its
/// way while containerd hashes and stores the last.
const WRITES_AHEAD: usize = 2;
/// How long containerd may take to end a writer.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);
/// The least limit of a commit, in which containerd flushes a whole layer to the disk.
const COMMIT_LIMIT: Duration = Duration::from_secs(600);

/// A blob.
#[derive(Clone, Debug, Default)]
pub struct ContentInfo {
    /// `sha256:…`
    pub digest: String,
    /// Bytes.
    pub size: i64,
    /// Labels: references to other content for the garbage collector, among others.
    pub labels: HashMap<String, String>,
}

impl Containerd {
    fn content(&self) -> ContentClient<Wire> {
        ContentClient::new(self.wire.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// What is known of a blob.
    ///
    /// # Errors
    /// NotFound.
    pub async fn content_info(&self, digest: &str) -> Result<ContentInfo> {
        let request = api::InfoRequest { digest: digest.into() };
        let answer = self.unary("Content.Info", self.content().info(request)).await?;
        answer.info.map(ContentInfo::from).ok_or_else(|| internal("containerd gave no content info"))
    }

    /// Sets labels of a blob; others stay.
    ///
    /// # Errors
    /// NotFound.
    pub async fn label_content(&self, digest: &str, labels: HashMap<String, String>) -> Result<()> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = api::Info { digest: digest.into(), labels, ..Default::default() };
        let request = api::UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        self.unary("Content.Update", self.content().update(request)).await.map(drop)
    }

    /// A whole blob of at most `bytes_max` bytes: manifests and configs.
    ///
    /// # Errors
    /// NotFound; ResourceExhausted when it is larger.
    pub async fn read_content(&self, digest: &str, bytes_max: usize) -> Result<Vec<u8>> {
        let request = api::ReadContentRequest { digest: digest.into(), ..Default::default() };
        self.read_content_of(request, bytes_max).await
    }

    async fn read_content_of(&self, request: api::ReadContentRequest, bytes_max: usize) -> Result<Vec<u8>> {
        let digest = request.digest.clone();
        let mut stream = self.unary("Content.Read", self.content().read(request)).await?;
        let mut data = Vec::new();
        loop {
            let next = tokio::time::timeout(self.call_timeout, stream.message())
                .await
                .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("the blob stopped half-way")));
            let Some(chunk) = next.map_err(|status| super::error::from_status("Content.Read", &status))?
            else {
                return Ok(data);
            };
            if data.len() + chunk.data.len() > bytes_max {
                return Err(Error::new(
                    Kind::ResourceExhausted,
                    format!("content {digest} has more than {bytes_max} bytes"),
                ));
            }
            data.extend_from_slice(&chunk.data);
        }
    }

    /// At most `bytes_max` bytes of a blob from `offset` on. Read whole at once: a stream
    /// that waits for a slow reader would hold up every other call on the connection.
    ///
    /// # Errors
    /// NotFound.
    pub async fn read_content_part(&self, digest: &str, offset: i64, bytes_max: i64) -> Result<Vec<u8>> {
        let request = api::ReadContentRequest { digest: digest.into(), offset, size: bytes_max };
        self.read_content_of(request, usize::MAX).await
    }

    /// Deletes a blob; one that is gone is fine.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn delete_content(&self, digest: &str) -> Result<()> {
        let request = api::DeleteContentRequest { digest: digest.into() };
        match self.unary("Content.Delete", self.content().delete(request)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Drops what an ingest has so far; one that is gone is fine.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn abort_ingest(&self, reference: &str) -> Result<()> {
        let request = api::AbortRequest { r#ref: reference.into() };
        match self.unary("Content.Abort", self.content().abort(request)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Opens the ingest `reference` for a blob of `size` bytes with `digest`. The token
    /// `open` is held until containerd has let go of the ingest, whatever becomes of the
    /// writer.
    ///
    /// # Errors
    /// AlreadyExists if the blob is there (the lease then holds it); one of which
    /// [`ContentWriter::is_taken`] is true if another writer has the ingest.
    pub async fn write_content(
        &self,
        reference: &str,
        size: i64,
        digest: &str,
        lease: Option<&str>,
        open: TaskTrackerToken,
    ) -> Result<ContentWriter> {
        let (requests, receiver) = mpsc::channel(4);
        let stat = api::WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: reference.into(),
            total: size,
            expected: digest.into(),
            ..Default::default()
        };
        requests.send(stat).await.map_err(|_| internal("the ingest's channel closed"))?;
        let answers = self
            .unary("Content.Write", self.content().write(leased(ReceiverStream::new(receiver), lease)))
            .await?;
        let mut writer = ContentWriter {
            containerd: self.clone(),
            stream: Some(Stream { requests, answers, open }),
            offset: 0,
            unanswered: 0,
            size,
            digest: digest.into(),
        };
        writer.offset = writer.answer().await?.offset;
        Ok(writer)
    }
}

/// An open ingest. Dropping it keeps what was written for a later attempt, and closes it
/// in the background.
pub struct ContentWriter {
    containerd: Containerd,
    /// There until it is closed.
    stream: Option<Stream>,
    /// Behind the last byte that was sent.
    offset: i64,
    /// Writes whose answers have not come yet.
    unanswered: usize,
    size: i64,
    digest: String,
}

struct Stream {
    requests: mpsc::Sender<api::WriteContentRequest>,
    answers: Streaming<api::WriteContentResponse>,
    open: TaskTrackerToken,
}

impl Stream {
    /// Ends the call, and waits until containerd has let go of the ingest: at its end a
    /// writer of containerd's writes to the ingest's folder once more. Who takes the
    /// ingest away meanwhile leaves a folder that nothing collects.
    async fn close(self) {
        let Stream { requests, mut answers, open } = self;
        drop(requests);
        let end = async { while let Ok(Some(_)) = answers.message().await {} };
        // A containerd that does not answer has other worries.
        let _ = tokio::time::timeout(CLOSE_LIMIT, end).await;
        drop(open);
    }
}

impl Drop for ContentWriter {
    fn drop(&mut self) {
        if let (Some(stream), Ok(runtime)) = (self.stream.take(), Handle::try_current()) {
            runtime.spawn(stream.close());
        }
    }
}

impl ContentWriter {
    /// Keeps what was written and waits until containerd has let go of it.
    pub async fn close(mut self) {
        if let Some(stream) = self.stream.take() {
            stream.close().await;
        }
    }

    fn stream(&mut self) -> &mut Stream {
        self.stream.as_mut().expect("only closing takes it away, and that consumes the writer")
    }

    /// Whether `error` says that another writer has the ingest at this moment.
    #[must_use]
    pub fn is_taken(error: &Error) -> bool {
        // All versions say "ref … locked for …" with the code that also means
        // that containerd is not there.
        error.kind() == Kind::Unavailable && error.message().contains(" locked ")
    }

    /// Bytes that the ingest holds: where a resumed download goes on.
    #[must_use]
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// Appends `data` (at most a few MiB at a time). That it was stored is known after
    /// one of the next writes, or [`ContentWriter::settle`].
    ///
    /// # Errors
    /// Those of this write or an earlier one: Unknown when containerd wrote less,
    /// Unavailable when it went away.
    pub async fn write(&mut self, data: Vec<u8>) -> Result<()> {
        let length = i64::try_from(data.len()).unwrap_or(i64::MAX);
        points::before("Content.Write: data")?;
        self.send(WriteAction::Write, data, HashMap::new()).await?;
        (self.offset, self.unanswered) = (self.offset + length, self.unanswered + 1);
        self.wait_for_all_but(WRITES_AHEAD - 1).await
    }

    /// Waits until all that was written is stored.
    ///
    /// # Errors
    /// As [`ContentWriter::write`].
    pub async fn settle(&mut self) -> Result<()> {
        self.wait_for_all_but(0).await
    }

    async fn wait_for_all_but(&mut self, count: usize) -> Result<()> {
        while self.unanswered > count {
            let offset = self.answer().await?.offset;
            self.unanswered -= 1;
            if self.unanswered == 0 && offset != self.offset {
                return Err(unknown(format!(
                    "containerd's Content.Write: at offset {offset}, expected {}",
                    self.offset
                )));
            }
        }
        Ok(())
    }

    /// Starts again at byte 0.
    ///
    /// # Errors
    /// As [`ContentWriter::write`].
    pub async fn truncate(&mut self) -> Result<()> {
        self.settle().await?;
        self.offset = 0;
        self.send(WriteAction::Write, Vec::new(), HashMap::new()).await?;
        self.offset = self.answer().await?.offset;
        Ok(())
    }

    /// Ends the ingest, and the writer with it: containerd checks size and digest.
    ///
    /// # Errors
    /// FailedPrecondition for a wrong size or digest. That the blob exists is fine.
    pub async fn commit(&mut self, labels: HashMap<String, String>) -> Result<()> {
        self.settle().await?;
        points::before("Content.Write: commit")?;
        self.send(WriteAction::Commit, Vec::new(), labels).await?;
        match self.answer_within(self.containerd.call_timeout.max(COMMIT_LIMIT)).await {
            Err(error) if error.kind() != Kind::AlreadyExists => Err(error),
            _ => points::after("Content.Write: commit"),
        }
    }

    async fn send(
        &mut self,
        action: WriteAction,
        data: Vec<u8>,
        labels: HashMap<String, String>,
    ) -> Result<()> {
        let request = api::WriteContentRequest {
            action: action as i32,
            total: self.size,
            expected: self.digest.clone(),
            offset: self.offset,
            data,
            labels,
            ..Default::default()
        };
        // A closed channel means that the call has ended: its answer says why.
        let _ = self.stream().requests.send(request).await;
        Ok(())
    }

    async fn answer(&mut self) -> Result<api::WriteContentResponse> {
        self.answer_within(self.containerd.call_timeout).await
    }

    async fn answer_within(&mut self, limit: Duration) -> Result<api::WriteContentResponse> {
        let next = tokio::time::timeout(limit, self.stream().answers.message())
            .await
            .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer to a write")));
        next.map_err(|status| super::error::from_status("Content.Write", &status))?
            .ok_or_else(|| unknown("containerd's Content.Write: ended early"))
    }
}

impl From<api::Info> for ContentInfo {
    fn from(from: api::Info) -> Self {
        Self { digest: from.digest, size: from.size, labels: from.labels }
    }
}
