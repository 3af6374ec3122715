//! `CERT_PATH`: one PEM file with the key and its certificate, the chain after it.

use std::path::Path;
use std::sync::Arc;

use rustls::server::ServerConfig;
use rustls::{Error, InconsistentKeys};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use shared::config::ConfigError;
use shared::net::tls::provider;

/// Reads the file and makes what accepts TLS connections with it.
pub(super) fn acceptor(path: &Path) -> Result<TlsAcceptor, ConfigError> {
    server_config(path)
        .map(|config| TlsAcceptor::from(Arc::new(config)))
        .map_err(|problem| ConfigError {
            variable: "CERT_PATH",
            problem: format!("{}: {problem}", path.display()),
        })
}

fn server_config(path: &Path) -> Result<ServerConfig, String> {
    let pem = std::fs::read(path).map_err(|cause| cause.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|cause| match cause {
        rustls_pki_types::pem::Error::NoItemsFound => "holds no unencrypted private key".to_owned(),
        other => other.to_string(),
    })?;
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|cause| cause.to_string())?;
    if chain.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|cause| match cause {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                "the key is not the certificate's; the server's own certificate must come first"
                    .to_owned()
            }
            other => other.to_string(),
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};

    use super::*;

    fn problem_of(pem: &str) -> String {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(&file, pem).expect("written");
        let error = acceptor(file.path()).err().expect("unusable");
        let place = format!("CERT_PATH: {}: ", file.path().display());
        error
            .to_string()
            .strip_prefix(&place)
            .expect("names the file")
            .to_owned()
    }

    #[test]
    fn a_file_that_cannot_be_used_is_told_in_one_line() {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
        let (certificate, key) = (cert.pem(), signing_key.serialize_pem());
        let other_key = KeyPair::generate().expect("key").serialize_pem();
        let mismatch =
            "the key is not the certificate's; the server's own certificate must come first";
        for (pem, problem) in [
            ("", "holds no unencrypted private key"),
            (&certificate, "holds no unencrypted private key"),
            (&key, "holds no certificate"),
            (&format!("{other_key}{certificate}"), mismatch),
        ] {
            assert_eq!(problem_of(pem), problem);
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = acceptor(Path::new("/nowhere/server.pem"))
            .err()
            .expect("missing");
        let line = "CERT_PATH: /nowhere/server.pem: No such file or directory (os error 2)";
        assert_eq!(error.to_string(), line);
    }

    #[test]
    fn key_and_certificate_may_stand_in_any_order() {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
        let (certificate, key) = (cert.pem(), signing_key.serialize_pem());
        for pem in [format!("{key}{certificate}"), format!("{certificate}{key}")] {
            let file = tempfile::NamedTempFile::new().expect("file");
            std::fs::write(&file, pem).expect("written");
            assert!(acceptor(file.path()).is_ok());
        }
    }
}
