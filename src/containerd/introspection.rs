//! What the connected containerd is and can do.

use std::time::Duration;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::version_client::VersionClient;

use prost::Message;
use prost_types::Any;

use super::any;
use super::compat::{Capabilities, Plugin};
use super::{Containerd, MESSAGE_BYTES_MAX};
use crate::error::{Kind, Result, unimplemented};

/// containerd's name of the plugin that runs shims.
const RUNTIME_PLUGIN: (&str, &str) = ("io.containerd.runtime.v2", "task");

/// `containerd.types.RuntimeRequest`, which the client's crate lacks.
#[derive(Clone, PartialEq, Message)]
struct RuntimeRequest {
    #[prost(string, tag = "1")]
    runtime_path: String,
    #[prost(message, optional, tag = "2")]
    options: Option<Any>,
}

/// `containerd.types.RuntimeInfo`, as far as read.
#[derive(Clone, PartialEq, Message)]
struct RuntimeInfo {
    #[prost(message, optional, tag = "4")]
    features: Option<Any>,
}

impl Containerd {
    /// containerd's version, as it says it. The cheapest call there is: also the ping.
    ///
    /// # Errors
    /// Unavailable or DeadlineExceeded when it does not answer within `limit`.
    pub async fn version(&self, limit: Duration) -> Result<String> {
        let mut client = VersionClient::new(self.wire.clone());
        Ok(self.unary_within(limit, "Version.Version", client.version(())).await?.version)
    }

    /// Asks everything that decides how containerd is spoken to (VER-01).
    ///
    /// # Errors
    /// Unavailable when it does not answer.
    pub async fn introspect(&self) -> Result<Capabilities> {
        let limit = Duration::from_secs(10);
        let version = self.version(limit).await?;
        let mut client =
            IntrospectionClient::new(self.wire.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let plugins = self
            .unary_within(limit, "Introspection.Plugins", client.plugins(api::PluginsRequest::default()))
            .await?
            .plugins
            .into_iter()
            .map(|plugin| Plugin {
                kind: plugin.r#type,
                id: plugin.id,
                root: plugin.exports.get("root").cloned(),
                capabilities: plugin.capabilities,
                is_loaded: plugin.init_err.is_none(),
                failure: plugin.init_err.map(|status| status.message).unwrap_or_default(),
            })
            .collect();
        let tells_plugins = self.tells_plugins(limit).await?;
        Ok(Capabilities::new(version, plugins, tells_plugins))
    }

    /// Whether introspection tells about single plugins (VER-03), whatever it says.
    async fn tells_plugins(&self, limit: Duration) -> Result<bool> {
        let request = api::PluginInfoRequest {
            r#type: "io.containerd.transfer.v1".into(),
            id: "local".into(),
            options: None,
        };
        let mut client = IntrospectionClient::new(self.wire.clone());
        match self.unary_within(limit, "Introspection.PluginInfo", client.plugin_info(request)).await {
            Err(error) if error.kind() == Kind::Unimplemented => Ok(false),
            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded) => Err(error),
            _ => Ok(true),
        }
    }

    /// The features of an OCI runtime, as the JSON of the runtime spec: what the shim
    /// `runtime`, a name or a path, says of the runtime that it runs with `options`.
    ///
    /// # Errors
    /// Unimplemented where containerd does not ask shims (before 2.0), or the shim does not
    /// tell.
    pub async fn runtime_features(
        &self,
        runtime: &str,
        options: Option<Any>,
        limit: Duration,
    ) -> Result<Vec<u8>> {
        let question = RuntimeRequest { runtime_path: runtime.to_owned(), options };
        let request = api::PluginInfoRequest {
            r#type: RUNTIME_PLUGIN.0.into(),
            id: RUNTIME_PLUGIN.1.into(),
            options: Some(Any {
                type_url: "containerd.types.RuntimeRequest".into(),
                value: question.encode_to_vec(),
            }),
        };
        let mut client = IntrospectionClient::new(self.wire.clone());
        let answer =
            self.unary_within(limit, "Introspection.PluginInfo", client.plugin_info(request)).await?;
        let info =
            answer.extra.and_then(|extra| any::decode::<RuntimeInfo>(&extra, "containerd.types.RuntimeInfo"));
        let features = info.and_then(|info| info.features).map(|features| features.value);
        features.ok_or_else(|| unimplemented(format!("runtime {runtime} does not tell its features")))
    }

    /// containerd's deprecation warnings, id and text; none where it does not tell (SVC-16).
    ///
    /// # Errors
    /// Unavailable when it does not answer.
    pub async fn deprecations(&self, limit: Duration) -> Result<Vec<(String, String)>> {
        let mut client = IntrospectionClient::new(self.wire.clone());
        match self.unary_within(limit, "Introspection.Server", client.server(())).await {
            Ok(answer) => {
                Ok(answer.deprecations.into_iter().map(|warning| (warning.id, warning.message)).collect())
            }
            Err(error) if error.kind() == Kind::Unimplemented => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}
