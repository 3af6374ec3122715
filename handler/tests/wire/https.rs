//! `CERT_PATH`, and what keeps a server from listening.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use compose_ci_handler::limits::Limits;
use compose_ci_handler::server::Server;
use shared::config::ListenConfig;

use crate::client::{Client, head};
use crate::service::{Service, Settings, delivery, push};

/// A service with a fresh certificate for localhost, and that certificate.
async fn https_service(limits: Limits) -> (Service, CertificateDer<'static>) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut pem = tempfile::NamedTempFile::new().unwrap();
    write!(pem, "{}{}", signing_key.serialize_pem(), cert.pem()).unwrap();
    let mut settings = Settings {
        limits,
        ..Settings::default()
    };
    settings.listen.cert_path = Some(pem.path().to_owned());
    (Service::with(settings).await, cert.der().clone())
}

#[tokio::test]
async fn with_a_certificate_it_speaks_https() {
    let (service, certificate) = https_service(Limits::default()).await;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut config = ClientConfig::builder_with_provider(shared::net::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(service.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let mut client = Client::over(stream);
    client
        .send(delivery("push", &push("refs/heads/main", "")))
        .await;
    assert_eq!(client.answer().await.status, 202);
}

#[tokio::test]
async fn plain_http_on_the_https_port_is_closed() {
    let (service, _) = https_service(Limits::default()).await;
    let mut client = service.connect().await;
    client.send(head("GET", "/healthz", &[])).await;
    client.closed().await;
}

#[tokio::test]
async fn a_tls_handshake_that_does_not_come_is_cut() {
    let (service, _) = https_service(Limits {
        handshake: Duration::from_millis(200),
        ..Limits::default()
    })
    .await;
    service.connect().await.closed().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_in_one_line() {
    let service = Service::start().await;
    let taken = ListenConfig {
        address: service.address,
        cert_path: None,
    };
    let error = Server::bind(&taken).await.err().expect("taken");
    let line = format!(
        "PORT: cannot listen on {}: Address already in use (os error 98)",
        service.address
    );
    assert_eq!(error.to_string(), line);
}
