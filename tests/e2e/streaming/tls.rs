//! The streaming server with a certificate of its own making.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use longshore::proto::cri::ExecRequest;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, crypto,
};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::STDOUT;
use crate::harness::{Node, Server};

/// Takes whatever comes, as who cannot know the certificate, and keeps it.
#[derive(Debug)]
struct Anybody {
    provider: CryptoProvider,
    seen: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.seen.lock().expect("no panic") = Some(certificate.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

async fn connect(address: &str, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await.expect("it listens");
    let host: IpAddr = address.rsplit_once(':').expect("a port").0.parse().expect("an address");
    TlsConnector::from(Arc::new(config)).connect(ServerName::from(host), stream).await
}

/// STM-01.
#[tokio::test]
async fn a_command_runs_over_tls_with_a_certificate_of_the_servers_own() {
    let node = Node::with(Server::Longshore).config("[stream]\ntls_self_signed = true").start().await;
    let pod = node.pod("tls").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let request = ExecRequest {
        container_id: container.id.clone(),
        cmd: ["/bin/sh", "-c", "echo hidden"].map(String::from).to_vec(),
        stdout: true,
        ..ExecRequest::default()
    };
    let url = container.cri.runtime().exec(request).await.expect("a URL").into_inner().url;
    let address = url.strip_prefix("https://").expect("TLS").split('/').next().expect("an address");

    let anybody = Arc::new(Anybody { provider: crypto::ring::default_provider(), seen: Mutex::new(None) });
    let trusting = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(anybody.clone())
        .with_no_client_auth();
    drop(connect(address, trusting).await.expect("it speaks TLS"));
    let certificate = anybody.seen.lock().expect("no panic").take().expect("a certificate");
    // Who knows it sees that it is good for the address.
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a certificate");
    let strict = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = connect(address, strict).await.expect("it is good for the address");
    let stranger =
        ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    assert!(connect(address, stranger).await.is_err(), "nobody else has signed it");

    let mut request = url.replace("https://", "wss://").into_client_request().expect("a URL");
    request.headers_mut().insert("Sec-WebSocket-Protocol", "v5.channel.k8s.io".parse().expect("a header"));
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("it switches");
    let mut output = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message
            && bytes.first() == Some(&STDOUT)
        {
            output.extend_from_slice(&bytes[1..]);
        }
    }
    assert_eq!(String::from_utf8_lossy(&output), "hidden\n");
    node.remove_all().await;
    node.finish().await;
}
