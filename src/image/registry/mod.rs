//! Registries: what a tag points at, and the content behind a digest.
//!
//! The OCI distribution protocol, as much of it as pulling needs. A registry's servers
//! ([`hosts`]) are asked one after the other until one gives what is wanted, and again
//! where that may help ([`tries`], IMG-26); a failure of all names each with its reason.
//! Whatever has a digest is checked against it: here for what is held in memory, by
//! containerd for layers. Who asks ([`credentials`]) is told to a server that wants to
//! know it ([`auth`]), and to nobody else.
//!
//! ```text
//! resolve, small, open ─▶ tries ─▶ server ─▶ auth ─▶ client ─▶ trust, proxy
//!                                   hosts     token   body
//! ```

mod auth;
mod body;
mod cause;
mod challenge;
mod client;
mod credentials;
mod hosts;
mod proxy;
mod server;
mod token;
mod tries;
mod trust;
mod words;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Uri;
use tokio::sync::OnceCell;

use auth::{Authorizer, Tokens};
pub(super) use cause::Cause;
use client::{Client, Clients};
pub(super) use credentials::{Credentials, Secret};
use hosts::Endpoint;
pub(super) use hosts::read_all as read_hosts_files;
use server::Place;
pub(super) use server::{Kind, Server};
pub(super) use tries::{REFUSED, Tries, UNAVAILABLE, with_context};

use super::document::refuse_schema_1;
use super::progress::Progress;
use super::reference::{Object, Reference};
use crate::config::{Config, ImportedRegistries, Proxies};
use crate::containerd::Descriptor;
use crate::error::{Result, invalid};
use crate::flow::{self, Disk, lock, on_disk};

/// How long a server may be silent in the middle of a body: then another connection is
/// made for the rest. Before its first byte it may fetch the content itself, which takes
/// as long as it takes.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a server may take to answer where pulls have no limit.
const ANSWER_MAX: Duration = Duration::from_secs(3600);
/// The most servers that are remembered not to speak TLS.
const PLAIN_MAX: usize = 1024;

/// All registries.
pub(super) struct Registry {
    folders: Vec<PathBuf>,
    imported: Arc<ImportedRegistries>,
    proxies: Proxies,
    limits: Limits,
    clients: OnceCell<Arc<Clients>>,
    tokens: Tokens,
    /// Origins that were found not to speak TLS.
    plain: Arc<Mutex<HashSet<String>>>,
}

/// How long a server may be silent.
#[derive(Clone, Copy)]
struct Limits {
    answer: Duration,
    body: Duration,
}

impl Limits {
    fn new(progress_limit: Option<Duration>) -> Limits {
        let answer = progress_limit.unwrap_or(ANSWER_MAX);
        Limits { answer, body: SILENCE_MAX.min(answer / 2) }
    }
}

/// One repository for one pull, and the servers that may have it.
pub(super) struct Repository {
    domain: String,
    path: String,
    endpoints: Vec<(Endpoint, Client)>,
    /// For content that the image says is elsewhere.
    others: Client,
    auth: Authorizer,
    limits: Limits,
    plain: Arc<Mutex<HashSet<String>>>,
    progress: Arc<Progress>,
}

impl Registry {
    pub(super) fn new(config: &Config) -> Registry {
        Registry {
            folders: config.registry_dirs(),
            imported: Arc::new(config.imported.clone()),
            proxies: config.proxies.clone(),
            limits: Limits::new(config.pull_progress_limit()),
            clients: OnceCell::new(),
            tokens: Tokens::default(),
            plain: Arc::default(),
        }
    }

    /// The repository of `reference` for who has `credentials`, with the servers
    /// configured at this moment.
    ///
    /// # Errors
    /// Those of a configuration that cannot be followed.
    pub(super) async fn repository(
        &self,
        reference: &Reference,
        credentials: Credentials,
        progress: Arc<Progress>,
    ) -> Result<Repository> {
        let clients = self.clients().await?;
        let (folders, imported) = (self.folders.clone(), self.imported.clone());
        let domain = reference.domain().to_owned();
        let (endpoints, others) = on_disk(Disk::Images, move || {
            let endpoints = hosts::endpoints(&folders, &imported, &domain)?;
            let endpoints = endpoints.into_iter().map(|endpoint| {
                let client = clients.with(&endpoint.trust)?;
                Ok((endpoint, client))
            });
            Ok((endpoints.collect::<Result<_>>()?, clients.with(&Arc::default())?))
        })
        .await?;
        let scope = format!("repository:{}:pull", reference.path());
        Ok(Repository {
            domain: reference.domain().to_owned(),
            path: reference.path().to_owned(),
            endpoints,
            others,
            auth: Authorizer { credentials, scope, tokens: self.tokens.clone() },
            limits: self.limits,
            plain: self.plain.clone(),
            progress,
        })
    }

    /// The folder of `image.registry_config_dirs` in which the configuration of the
    /// registry of `reference` lies, for containerd, which takes one (VER-05). None if
    /// there is no configuration.
    ///
    /// # Errors
    /// Those of a configuration that cannot be followed: containerd would go on without
    /// a file that it cannot read.
    pub(super) async fn hosts_dir(&self, reference: &Reference) -> Result<Option<String>> {
        let (folders, imported) = (self.folders.clone(), self.imported.clone());
        let domain = reference.domain().to_owned();
        on_disk(Disk::Images, move || {
            hosts::endpoints(&folders, &imported, &domain)?;
            let Some(folder) = hosts::folder_of(&folders, &domain) else { return Ok(None) };
            let dir = folder.parent().and_then(std::path::Path::to_str);
            let dir = dir.ok_or_else(|| invalid(format!("{folder:?} is not UTF-8")))?;
            Ok(Some(dir.to_owned()))
        })
        .await
    }

    /// What is sent along with each request, as containerd's configuration has it. containerd takes
    /// one value of each name.
    pub(super) fn configured_headers(&self) -> HashMap<String, String> {
        let headers = self.imported.headers.iter();
        headers.filter_map(|(name, values)| Some((name.clone(), values.first()?.clone()))).collect()
    }

    /// Who asks a host where a pull does not say it, as containerd's configuration has it. What is
    /// no credentials there stops the pulls that do not go by Transfer, and is passed over here.
    pub(super) fn configured_secrets(&self) -> impl Fn(&str) -> Option<Secret> + Send + Sync + use<> {
        let imported = self.imported.clone();
        move |host| hosts::known_secret(&imported, host).ok().flatten()
    }

    async fn clients(&self) -> Result<Arc<Clients>> {
        let made = self.clients.get_or_try_init(|| {
            let proxies = self.proxies.clone();
            flow::blocking(move || Ok(Arc::new(Clients::new(&proxies))))
        });
        made.await.cloned()
    }
}

impl Repository {
    /// What `reference`, which is of this repository, points at now.
    ///
    /// # Errors
    /// NotFound if every server says so; Unimplemented for Docker's schema 1; see
    /// [`Tries::finish`].
    pub(super) async fn resolve(&self, reference: &Reference) -> Result<Descriptor> {
        // A server that only has content is not asked what a tag means (IMG-24).
        let is_tag = matches!(reference.object(), Object::Tag(_));
        let servers =
            self.endpoints.iter().filter(|(endpoint, _)| endpoint.resolves || (!is_tag && endpoint.pulls));
        let servers = servers.map(|(endpoint, client)| self.server(endpoint, client));
        let mut tries = Tries::new(format!("resolve {reference}"), servers);
        while let Some(server) = tries.next().await {
            match server.resolve(reference.object()).await {
                Ok(descriptor) => {
                    refuse_schema_1(&descriptor.media_type)?;
                    return Ok(descriptor);
                }
                Err(cause) => tries.failed(cause),
            }
        }
        Err(tries.finish())
    }

    /// A document or config, whose size is known to be small, checked against its digest.
    /// What kind it is says the caller: a server's word for its type may be missing.
    ///
    /// # Errors
    /// See [`Tries::finish`].
    pub(super) async fn small(
        &self,
        kind: Kind,
        descriptor: &Descriptor,
        bytes_max: usize,
    ) -> Result<Vec<u8>> {
        let what = match kind {
            Kind::Manifest => "manifest",
            Kind::Blob => "config",
        };
        let mut tries = self.tries(&format!("{what} {}", descriptor.digest), &[]);
        while let Some(server) = tries.next().await {
            match server.small(kind, descriptor, bytes_max).await {
                Ok(data) => return Ok(data),
                Err(cause) => tries.failed(cause),
            }
        }
        Err(tries.finish())
    }

    /// Those who may have the content `what`: the places that the image names for it,
    /// then the servers in the order in which they are configured.
    pub(super) fn tries<'a>(&'a self, what: &str, elsewhere: &'a [Uri]) -> Tries<'a> {
        let elsewhere = elsewhere.iter().map(|uri| Server { repository: self, place: Place::Elsewhere(uri) });
        let own = self.endpoints.iter().filter(|(endpoint, _)| endpoint.pulls);
        let own = own.map(|(endpoint, client)| self.server(endpoint, client));
        let what = format!("fetch {what} of {}/{}", self.domain, self.path);
        Tries::new(what, elsewhere.chain(own))
    }

    fn server<'a>(&'a self, endpoint: &'a Endpoint, client: &'a Client) -> Server<'a> {
        Server { repository: self, place: Place::Endpoint(endpoint, client) }
    }

    /// Progress of the pull that this is for.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }
}

impl Repository {
    /// Scheme and host of a server, as far as it is known how it speaks.
    fn origin(&self, endpoint: &Endpoint) -> String {
        if endpoint.falls_back && lock(&self.plain).contains(&endpoint.origin) {
            return endpoint.origin.replacen("https://", "http://", 1);
        }
        endpoint.origin.clone()
    }

    fn remember_plain(&self, endpoint: &Endpoint) {
        let mut plain = lock(&self.plain);
        if plain.len() >= PLAIN_MAX {
            plain.clear();
        }
        plain.insert(endpoint.origin.clone());
    }
}
