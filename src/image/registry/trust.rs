//! Whom a registry's server must convince, and how we identify ourselves to it.
//!
//! The authorities of the system count everywhere, those of a host's configuration for
//! that host besides. A certificate that is itself configured as an authority is taken
//! as a server's, too, as containerd does: many registries run on one self-signed
//! certificate.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tracing::{debug, warn};

use crate::error::{Result, internal, invalid};

/// What is configured for one server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Trust {
    /// Any certificate is good.
    pub(super) skip_verify: bool,
    /// Authorities besides the system's.
    pub(super) authorities: Vec<Pem>,
    /// Certificates of ours.
    pub(super) client: Vec<ClientPair>,
    /// How long the server may take to accept a connection.
    pub(super) connect_limit: Option<Duration>,
}

/// A file of certificates or keys in PEM.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Pem {
    pub(super) path: PathBuf,
    pub(super) data: Vec<u8>,
}

/// A certificate and its key, which can be in one file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClientPair {
    pub(super) certificate: Pem,
    pub(super) key: Pem,
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The content can be a key.
        self.path.fmt(f)
    }
}

impl Pem {
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>> {
        let list = CertificateDer::pem_slice_iter(&self.data).collect::<Result<Vec<_>, _>>();
        match list {
            Ok(list) if !list.is_empty() => Ok(list),
            Ok(_) => Err(invalid(format!("{} holds no certificate", self.path.display()))),
            Err(error) => Err(invalid(format!("{}: {error}", self.path.display()))),
        }
    }
}

/// The authorities of the system, read once.
pub(super) struct System {
    provider: Arc<CryptoProvider>,
    certificates: Vec<CertificateDer<'static>>,
}

impl System {
    /// Reads them. Blocks.
    pub(super) fn load() -> System {
        let loaded = rustls_native_certs::load_native_certs();
        for error in &loaded.errors {
            warn!(%error, "certificate authorities of the system could not be read");
        }
        debug!(count = loaded.certs.len(), "certificate authorities of the system");
        System { provider: Arc::new(ring::default_provider()), certificates: loaded.certs }
    }

    /// The TLS settings for servers with `trust`.
    ///
    /// # Errors
    /// InvalidArgument for a file of it that is not what it should be, with its path.
    pub(super) fn tls(&self, trust: &Trust) -> Result<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| internal(format!("set up TLS: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(trust)?);
        // Of several pairs TLS offers one; containerd's own choice among them is the first that fits.
        let Some(pair) = trust.client.first() else { return Ok(builder.with_no_client_auth()) };
        let key = PrivateKeyDer::from_pem_slice(&pair.key.data)
            // The reader's own words could quote the key.
            .map_err(|_| invalid(format!("{} holds no private key", pair.key.path.display())))?;
        builder.with_client_auth_cert(pair.certificate.certificates()?, key).map_err(|error| {
            invalid(format!("{} with {}: {error}", pair.certificate.path.display(), pair.key.path.display()))
        })
    }

    fn verifier(&self, trust: &Trust) -> Result<Arc<dyn ServerCertVerifier>> {
        Ok(Arc::new(Judge { provider: self.provider.clone(), rule: self.rule(trust)? }))
    }

    fn rule(&self, trust: &Trust) -> Result<Rule> {
        if trust.skip_verify {
            return Ok(Rule::Anyone);
        }
        let mut own = Vec::new();
        for file in &trust.authorities {
            own.extend(file.certificates()?);
        }
        own.extend(self.certificates.iter().cloned());
        let mut roots = RootCertStore::empty();
        let (_, ignored) = roots.add_parsable_certificates(own.iter().cloned());
        if ignored > 0 {
            debug!(ignored, "certificate authorities that are none");
        }
        if roots.is_empty() {
            return Ok(Rule::Nobody);
        }
        let inner = WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|error| internal(format!("set up TLS: {error}")))?;
        Ok(Rule::Usual { inner, own })
    }
}

/// Judges a server's certificate.
#[derive(Debug)]
struct Judge {
    provider: Arc<CryptoProvider>,
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    /// Any certificate is good: `skip_verify`.
    Anyone,
    /// None is: a node without any authority, on which http still works.
    Nobody,
    /// The usual chain to an authority, or a certificate that is one of `own` itself.
    Usual { inner: Arc<WebPkiServerVerifier>, own: Vec<CertificateDer<'static>> },
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (inner, own) = match &self.rule {
            Rule::Anyone => return Ok(ServerCertVerified::assertion()),
            Rule::Nobody => return Err(CertificateError::UnknownIssuer.into()),
            Rule::Usual { inner, own } => (inner, own),
        };
        match inner.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            // Its dates were looked at before this, its name was not.
            Err(Error::InvalidCertificate(CertificateError::Other(why)))
                if why.to_string().contains("CaUsedAsEndEntity") && own.contains(end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
