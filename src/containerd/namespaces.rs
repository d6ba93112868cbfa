//! Namespaces: who else uses this containerd.

use containerd_client::services::v1 as api;
use containerd_client::services::v1::namespaces_client::NamespacesClient;

use super::Containerd;
use crate::error::Result;

impl Containerd {
    /// The names of all namespaces, others' too.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn list_namespaces(&self) -> Result<Vec<String>> {
        let mut client = NamespacesClient::new(self.wire.clone());
        let request = api::ListNamespacesRequest::default();
        let answer = self.unary("Namespaces.List", client.list(request)).await?;
        Ok(answer.namespaces.into_iter().map(|namespace| namespace.name).collect())
    }

    /// A client of the same containerd in another namespace.
    ///
    /// # Errors
    /// InvalidArgument for a namespace that cannot stand in a header.
    pub fn in_namespace(&self, namespace: &str) -> Result<Containerd> {
        Containerd::new(&self.address, namespace, self.call_timeout)
    }
}
