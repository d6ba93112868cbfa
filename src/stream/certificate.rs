//! The certificate of the streaming server: that of two files, or one that is made at the
//! start and is nowhere but in memory (STM-01).

use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tracing::info;

use crate::config::file::Stream;
use crate::error::{Context, Result, internal, invalid};
use crate::sys;

/// A certificate, with those above it, and its key.
type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What serves TLS, if `section` wants it.
///
/// # Errors
/// The files cannot be read, or do not belong together; the host cannot be asked.
pub(super) fn acceptor(section: &Stream) -> Result<Option<TlsAcceptor>> {
    let certificate = &section.tls_cert_file;
    let ((chain, key), what) = if !certificate.as_os_str().is_empty() {
        (from_files(section)?, format!("stream.tls_cert_file {certificate:?}"))
    } else if section.tls_self_signed {
        (self_signed(&section.address)?, "stream.tls_self_signed".to_owned())
    } else {
        return Ok(None);
    };
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| invalid(format!("{what}: {error}")))?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// The certificate of the configured files, as DER, if there are files.
///
/// # Errors
/// They cannot be read, or do not belong together.
pub fn configured(section: &Stream) -> Result<Option<Vec<u8>>> {
    if section.tls_cert_file.as_os_str().is_empty() || acceptor(section)?.is_none() {
        return Ok(None);
    }
    Ok(from_files(section)?.0.first().map(|first| first.to_vec()))
}

fn from_files(section: &Stream) -> Result<Pair> {
    let (certificate, key) = (&section.tls_cert_file, &section.tls_key_file);
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| invalid(format!("stream.tls_cert_file {certificate:?}: {error}")))?;
    let secret = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| invalid(format!("stream.tls_key_file {key:?}: {error}")))?;
    Ok((chain, secret))
}

/// A new certificate for all names and addresses that this host has now, as containerd's
/// plugin makes it. It is signed by itself: nobody can check whom it belongs to, but what is
/// sent is hidden. It is good for as long as the process lives, whatever the clock says.
fn self_signed(address: &str) -> Result<Pair> {
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let addresses = sys::interfaces::addresses().context(|| "ask for the host's addresses")?;
    let names = names(&hostname, &addresses, address);
    let failed = |error: rcgen::Error| internal(format!("make a certificate for {names:?}: {error}"));
    let mut params = CertificateParams::new(names.clone()).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, hostname.as_str());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    info!(?names, "a certificate for the streaming server was made");
    let secret = PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok((vec![certificate.der().clone()], secret.into()))
}

/// What a certificate says, each once. A name that is none for DNS cannot be asked for.
fn names(hostname: &str, addresses: &[IpAddr], address: &str) -> Vec<String> {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte))
    };
    let mut names = Vec::new();
    let all = [hostname.to_owned(), "localhost".to_owned(), address.to_owned()];
    for name in all.into_iter().chain(addresses.iter().map(IpAddr::to_string)) {
        let is_any = name.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
        if is_name(&name) && !is_any && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_for_the_names_and_addresses_of_the_host() {
        let addresses = ["127.0.0.1", "10.1.2.3", "fe80::1"].map(|text| text.parse().expect("an address"));
        let all = names("node-1", &addresses, "10.1.2.3");
        assert_eq!(all, ["node-1", "localhost", "10.1.2.3", "127.0.0.1", "fe80::1"]);
        assert_eq!(names("näme", &[], "0.0.0.0"), ["localhost"]);
        let (chain, _) = self_signed("127.0.0.1").expect("made");
        assert_eq!(chain.len(), 1);
    }

    #[test]
    fn there_is_no_tls_unless_somebody_wants_it() {
        assert!(acceptor(&Stream::default()).expect("nothing to read").is_none());
        let section = Stream { tls_self_signed: true, ..Stream::default() };
        assert!(acceptor(&section).expect("made").is_some());
        let section = Stream { tls_cert_file: "/none/there".into(), ..section };
        let error = acceptor(&section).err().expect("no such file");
        assert!(error.message().contains("/none/there"), "{error}");
    }
}
