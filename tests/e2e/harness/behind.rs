//! What somebody does behind the server's back, by containerd's own API: what `ctr` would do.

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container as Record, CreateContainerRequest, CreateRequest, DeleteContainerRequest, DeleteImageRequest,
    DeleteRequest, GetContainerRequest, GetRequest, KillRequest, ListImagesRequest, ListRequest, WaitRequest,
};
use tonic::{Code, Request};

use super::Containerd;

/// containerd, for who is not the server.
pub(crate) struct Behind<'a>(&'a Containerd);

impl Containerd {
    /// To do something that the server is not asked for.
    pub(crate) fn behind(&self) -> Behind<'_> {
        Behind(self)
    }
}

impl Behind<'_> {
    fn containers(&self) -> ContainersClient<tonic::transport::Channel> {
        ContainersClient::new(self.0.channel())
    }

    /// The record of `id`, if there is one.
    pub(crate) async fn record(&self, id: &str) -> Option<Record> {
        let get = within(GetContainerRequest { id: id.to_owned() });
        match self.containers().get(get).await {
            Err(status) if status.code() == Code::NotFound => None,
            answer => answer.expect("a record").into_inner().container,
        }
    }

    /// Deletes the record of `id`, whatever uses it, and gives it.
    pub(crate) async fn take_record(&self, id: &str) -> Record {
        let record = self.record(id).await.expect("a record");
        let delete = within(DeleteContainerRequest { id: id.to_owned() });
        self.containers().delete(delete).await.expect("deleted");
        record
    }

    /// Makes a record.
    pub(crate) async fn put_record(&self, record: Record) {
        let create = CreateContainerRequest { container: Some(record) };
        self.containers().create(within(create)).await.expect("stored");
    }

    /// Kills a task and waits for its end. To delete it is left to the server: of two deletions at
    /// once containerd may end no shim.
    pub(crate) async fn end_task(&self, id: &str) {
        let mut tasks = TasksClient::new(self.0.channel());
        let kill = KillRequest { container_id: id.to_owned(), signal: 9, all: true, ..Default::default() };
        tasks.kill(within(kill)).await.expect("killed");
        let wait = WaitRequest { container_id: id.to_owned(), ..Default::default() };
        // The server may be faster; then there is nothing to be waited for.
        let _ = tasks.wait(within(wait)).await;
    }

    /// Whether there is a task of `id`.
    pub(crate) async fn has_task(&self, id: &str) -> bool {
        let get = GetRequest { container_id: id.to_owned(), ..Default::default() };
        match TasksClient::new(self.0.channel()).get(within(get)).await {
            Err(status) if status.code() == Code::NotFound => false,
            answer => answer.map(|_| true).expect("an answer"),
        }
    }

    /// Makes a lease with a label.
    pub(crate) async fn make_lease(&self, id: &str, label: &str) {
        let labels = [(label.to_owned(), "x".to_owned())].into();
        let create = CreateRequest { id: id.to_owned(), labels };
        LeasesClient::new(self.0.channel()).create(within(create)).await.expect("a lease");
    }

    /// Deletes a lease.
    pub(crate) async fn delete_lease(&self, id: &str) {
        let delete = DeleteRequest { id: id.to_owned(), sync: true };
        LeasesClient::new(self.0.channel()).delete(within(delete)).await.expect("deleted");
    }

    /// The ids of all leases.
    pub(crate) async fn leases(&self) -> Vec<String> {
        let list = LeasesClient::new(self.0.channel()).list(within(ListRequest::default())).await;
        list.expect("a list").into_inner().leases.into_iter().map(|lease| lease.id).collect()
    }

    /// Makes a snapshot of nothing under a lease.
    pub(crate) async fn make_snapshot(&self, lease: &str, key: &str) {
        let prepare = PrepareSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: key.to_owned(),
            ..PrepareSnapshotRequest::default()
        };
        let mut request = within(prepare);
        request.metadata_mut().insert("containerd-lease", lease.parse().expect("an id"));
        SnapshotsClient::new(self.0.channel()).prepare(request).await.expect("a snapshot");
    }

    /// Whether there is a snapshot.
    pub(crate) async fn has_snapshot(&self, key: &str) -> bool {
        let stat = StatSnapshotRequest { snapshotter: "overlayfs".into(), key: key.to_owned() };
        SnapshotsClient::new(self.0.channel()).stat(within(stat)).await.is_ok()
    }

    /// Removes a snapshot.
    pub(crate) async fn remove_snapshot(&self, key: &str) {
        let remove = RemoveSnapshotRequest { snapshotter: "overlayfs".into(), key: key.to_owned() };
        SnapshotsClient::new(self.0.channel()).remove(within(remove)).await.expect("removed");
    }

    /// The names of all images.
    pub(crate) async fn images(&self) -> Vec<String> {
        let list = ImagesClient::new(self.0.channel()).list(within(ListImagesRequest::default())).await;
        list.expect("a list").into_inner().images.into_iter().map(|image| image.name).collect()
    }

    /// Deletes an image's record.
    pub(crate) async fn delete_image(&self, name: &str) {
        let delete = DeleteImageRequest { name: name.to_owned(), sync: true, ..Default::default() };
        ImagesClient::new(self.0.channel()).delete(within(delete)).await.expect("deleted");
    }
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().expect("a namespace"));
    request
}
