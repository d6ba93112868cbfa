//! A node, a registry, and between them a proxy that makes mistakes.

use longshore::error::{Error, Result};

use crate::fixture::{self, Image};
use crate::node::Node;
use crate::proxy::{Fault, Proxy, When};
use crate::registry::Registry;

pub(crate) struct Bench {
    pub(crate) node: Node,
    pub(crate) registry: Registry,
    pub(crate) proxy: Proxy,
}

/// What of a pull something goes wrong with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The question what the tag points at.
    Tag,
    Manifest,
    Config,
    Layer,
}

/// All places, and those whose answer has a body.
pub(crate) const EVERYWHERE: &[Place] = &[Place::Tag, Place::Manifest, Place::Config, Place::Layer];
pub(crate) const BODIES: &[Place] = &[Place::Manifest, Place::Config, Place::Layer];

/// One pull with one mistake.
pub(crate) struct Case {
    /// The name of the fault and the place.
    pub(crate) what: String,
    pub(crate) repository: String,
    pub(crate) place: Place,
    pub(crate) image: Image,
    pub(crate) result: Result<String>,
}

impl Place {
    /// What the line of such requests holds, and no other of the same image.
    pub(crate) fn line(self, repository: &str, image: &Image) -> String {
        let digest = match self {
            Place::Tag => return format!("/v2/{repository}/manifests/1"),
            Place::Manifest => return format!("GET /v2/{repository}/manifests/"),
            Place::Config => image.config.digest(),
            Place::Layer => image.layers[0].digest(),
        };
        format!("GET /v2/{repository}/blobs/{digest}")
    }
}

impl Bench {
    /// Starts one; none, after saying why, where that cannot be.
    pub(crate) async fn start() -> Option<Bench> {
        Bench::with("").await
    }

    /// Starts one with lines of configuration for longshore.
    pub(crate) async fn with(settings: &str) -> Option<Bench> {
        let (node, registry) = (Node::with(settings).await?, Registry::start()?);
        let proxy = Proxy::start(&registry.address).await;
        Some(Bench { node, registry, proxy })
    }

    /// A new image as `repository:1`.
    pub(crate) fn push(&self, repository: &str) -> Image {
        let image = fixture::image(vec![fixture::random(40_000), fixture::file("etc/hello", "world")]);
        self.registry.push(repository, "1", &image);
        image
    }

    /// Pulls an image of its own for each fault at each place, all at the same time.
    pub(crate) async fn pull_each(
        &self,
        faults: &[(&str, Fault)],
        places: &[Place],
        when: When,
    ) -> Vec<Case> {
        let cases = faults.iter().flat_map(|fault| places.iter().map(move |place| (fault, *place)));
        let pulls = cases.map(|((name, fault), place)| async move {
            let what = format!("{name} {place:?}");
            let repository = what.replace(' ', "/").to_lowercase();
            let image = self.push(&repository);
            self.proxy.when(&place.line(&repository, &image), when, [fault.clone()]);
            let result = self.node.pull(&self.proxy.name(&format!("{repository}:1"))).await;
            Case { what, repository, place, image, result }
        });
        futures_util::future::join_all(pulls).await
    }
}

impl Case {
    /// It went well in the end.
    pub(crate) fn must_be_pulled(&self) {
        assert_eq!(self.result, Ok(self.image.id()), "{}", self.what);
    }

    /// It failed, and the error says with which registry, at what, and one of `why`.
    pub(crate) fn must_have_failed(&self, proxy: &Proxy, why: &[&str]) {
        let error = self.result.as_ref().expect_err(&self.what);
        let digest = match self.place {
            Place::Tag => format!("{}:1", self.repository),
            Place::Manifest => self.image.manifest.digest(),
            Place::Config => self.image.config.digest(),
            Place::Layer => self.image.layers[0].digest(),
        };
        for part in [&proxy.address, &self.repository, &digest] {
            assert!(error.message().contains(part), "{}: {part}: {error}", self.what);
        }
        assert!(why.iter().any(|why| error.message().contains(why)), "{}: {why:?}: {error}", self.what);
        must_be_clean(error, &[]);
    }
}

/// What an error says holds no `secret`, no query, no header, and is not long.
pub(crate) fn must_be_clean(error: &Error, secrets: &[&str]) {
    let message = error.message();
    for secret in ["?", "ns=", "Authorization", "Basic ", "secret", "\n"].iter().chain(secrets) {
        assert!(!message.contains(secret), "{secret:?} in {message}");
    }
    assert!(message.len() < 2000, "{message}");
}
