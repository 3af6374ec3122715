//! The way to the engine: its socket, or TCP, with certificates as docker-machine makes them.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::TokioExecutor;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use shared::config::{ConfigError, EngineConfig};
use shared::net::tls;

/// The deadline of an engine that is to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// A hook may be silent for an hour. An engine whose machine has gone away is noticed after
/// about a minute, and routers on the way do not take a silent connection for a dead one.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// Prepares the connection; nothing is sent yet.
pub(super) fn prepare(
    config: &EngineConfig,
    call_deadline: Duration,
) -> Result<Docker, ConfigError> {
    let deadline_s = call_deadline.as_secs();
    let docker = match config {
        EngineConfig::Unix { socket } if !socket.exists() => {
            let problem = "does not exist (is the engine's socket mounted?)";
            return Err(docker_host(format!("{} {problem}", socket.display())));
        }
        EngineConfig::Unix { socket } => {
            Docker::connect_with_unix(&socket.to_string_lossy(), deadline_s, API_DEFAULT_VERSION)
        }
        EngineConfig::Tcp { address, tls: None } => {
            over(tcp(), &format!("http://{address}"), deadline_s)
        }
        EngineConfig::Tcp {
            address,
            tls: Some(directory),
        } => over(https(directory)?, &format!("https://{address}"), deadline_s),
    };
    docker.map_err(|error| docker_host(error.to_string()))
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_DEADLINE));
    tcp.set_keepalive(Some(KEEPALIVE_AFTER));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    tcp
}

fn https(directory: &Path) -> Result<HttpsConnector<HttpConnector>, ConfigError> {
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(mutual_tls(directory)?)
        .https_only()
        .enable_http1()
        .wrap_connector(tcp()))
}

/// Trusts nobody but the engine's own authority: the world's authorities have no say in who may
/// be root on this host.
fn mutual_tls(directory: &Path) -> Result<ClientConfig, ConfigError> {
    let mut authority = RootCertStore::empty();
    for certificate in certificates(&directory.join("ca.pem"))? {
        let added = authority.add(certificate);
        added.map_err(|error| unusable(&directory.join("ca.pem"), error))?;
    }
    let key_path = directory.join("key.pem");
    let key =
        PrivateKeyDer::from_pem_file(&key_path).map_err(|error| unusable(&key_path, error))?;
    tls::client_config_builder()
        .with_root_certificates(authority)
        .with_client_auth_cert(certificates(&directory.join("cert.pem"))?, key)
        .map_err(|error| unusable(&key_path, error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let found =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if found.is_empty() => Err(unusable(path, "holds no certificate")),
        found => found.map_err(|error| unusable(path, error)),
    }
}

/// A client that opens a connection for every call: the engine may restart between two of them.
fn over<C>(connector: C, address: &str, deadline_s: u64) -> Result<Docker, Error>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let client = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(connector);
    let client = Arc::new(client);
    let send = move |request: BollardRequest| {
        let client = Arc::clone(&client);
        async move { Ok(client.request(request).await?) }
    };
    Docker::connect_with_custom_transport(send, Some(address), deadline_s, API_DEFAULT_VERSION)
}

/// Why the engine and the settings do not fit. No further attempt would help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The engine's certificate is of another authority.
    #[error("its certificate is of another authority")]
    Authority,
    /// The engine's certificate is for another name.
    #[error("its certificate is for another name")]
    Name,
    /// The engine's certificate has expired.
    #[error("its certificate has expired")]
    Expired,
    /// The engine does not accept our certificate.
    #[error("it refuses our certificate")]
    Client,
    /// The engine expects TLS and got none.
    #[error("it speaks TLS")]
    Encrypted,
    /// The engine expects no TLS.
    #[error("it does not speak TLS")]
    Plain,
}

impl Mismatch {
    /// Finds the cause of an error of the client library, if it is one of these. With TLS 1.3 the engine
    /// refuses a certificate after the handshake: if that comes before the request is sent, the
    /// library drops it, and only the next attempt tells.
    pub(super) fn of(error: &Error) -> Option<Self> {
        if let Error::DockerResponseServerError {
            status_code: 400,
            message,
        } = error
        {
            // The words of Go's server, and so of every engine.
            let expects_tls = message.contains("HTTP request to an HTTPS server");
            return expects_tls.then_some(Self::Encrypted);
        }
        match tls_error(error)? {
            rustls::Error::InvalidCertificate(reason) => Some(Self::of_certificate(reason)),
            rustls::Error::AlertReceived(alert) if is_about_a_certificate(*alert) => {
                Some(Self::Client)
            }
            rustls::Error::InvalidMessage(_) => Some(Self::Plain),
            _ => None,
        }
    }

    fn of_certificate(reason: &CertificateError) -> Self {
        match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::Name
            }
            _ => Self::Authority,
        }
    }

    /// Names the setting that is to be looked at first.
    pub fn blame(self, config: &EngineConfig) -> ConfigError {
        let EngineConfig::Tcp { address, tls } = config else {
            return docker_host(self.to_string());
        };
        let engine = format!("the engine at {address}");
        let directory = tls.as_deref().unwrap_or(Path::new(""));
        let (ca, certificate) = (directory.join("ca.pem"), directory.join("cert.pem"));
        match self {
            Self::Authority => unusable(&ca, format!("did not sign the certificate of {engine}")),
            Self::Client => unusable(&certificate, format!("{engine} refuses it")),
            Self::Name => docker_host(format!("the certificate of {engine} is for another name")),
            Self::Expired => docker_host(format!("the certificate of {engine} has expired")),
            Self::Encrypted => tls_verify(format!("{engine} speaks TLS: set this to 1")),
            Self::Plain => tls_verify(format!("{engine} does not speak TLS")),
        }
    }
}

/// The error of TLS that made a call fail, at any place among the causes.
fn tls_error(error: &Error) -> Option<&rustls::Error> {
    let first: Option<&(dyn StdError + 'static)> = match error {
        // This one passes itself over as well.
        Error::IOError { err } => Some(err),
        other => other.source(),
    };
    std::iter::successors(first, |cause| next_cause(*cause)).find_map(|cause| cause.downcast_ref())
}

/// An I/O error passes over the error that it wraps when it is asked for its source.
fn next_cause<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e (dyn StdError + 'static)> {
    let wrapped = error
        .downcast_ref::<std::io::Error>()
        .and_then(|io| io.get_ref());
    match wrapped {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

fn is_about_a_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

fn docker_host(problem: String) -> ConfigError {
    ConfigError {
        variable: "DOCKER_HOST",
        problem,
    }
}

fn tls_verify(problem: String) -> ConfigError {
    ConfigError {
        variable: "DOCKER_TLS_VERIFY",
        problem,
    }
}

fn unusable(path: &Path, problem: impl std::fmt::Display) -> ConfigError {
    ConfigError {
        variable: "DOCKER_CERT_PATH",
        problem: format!("{}: {problem}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_tls_says_is_found_below_errors_that_hide_it() {
        let tls = rustls::Error::InvalidCertificate(CertificateError::Expired);
        let error = Error::IOError {
            err: io::Error::other(io::Error::other(tls)),
        };
        assert_eq!(Mismatch::of(&error), Some(Mismatch::Expired));
    }

    #[test]
    fn an_engine_that_goes_away_fits_all_the_same() {
        let alert = rustls::Error::AlertReceived(AlertDescription::InternalError);
        for err in [io::ErrorKind::UnexpectedEof.into(), io::Error::other(alert)] {
            assert_eq!(Mismatch::of(&Error::IOError { err }), None);
        }
    }
}
