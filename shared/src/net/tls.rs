//! One TLS configuration for every HTTPS client: rustls with ring.
//!
//! The Docker engine has an authority of its own. For everybody else the roots are embedded, or come
//! from the one bundle that `SSL_CERT_FILE` names. A directory of hashed certificates costs
//! milliseconds at the first connection, the platform's verifier more.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::config::ConfigError;

/// The client configuration, with the roots of `bundle` or the embedded ones.
///
/// # Errors
/// The bundle cannot be read or holds no usable certificate.
pub fn client_config(bundle: Option<&Path>) -> Result<ClientConfig, ConfigError> {
    let roots = match bundle {
        Some(path) => read_bundle(path)?,
        None => RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        },
    };
    Ok(client_config_builder()
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// What every client configuration begins with, before it is said whom to trust.
pub fn client_config_builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
}

/// The cryptography that every connection of this program uses.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The certificates of a bundle that rustls understands: one that it does not must not cost the
/// other hundred.
///
/// # Errors
/// The bundle cannot be read or holds no usable certificate.
pub fn bundle_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let error = |problem: String| ConfigError {
        variable: "SSL_CERT_FILE",
        problem: format!("{}: {problem}", path.display()),
    };
    let mut certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|cause| error(cause.to_string()))?;
    certificates.retain(|certificate| RootCertStore::empty().add(certificate.clone()).is_ok());
    if certificates.is_empty() {
        return Err(error("holds no certificate".into()));
    }
    Ok(certificates)
}

fn read_bundle(path: &Path) -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(bundle_certificates(path)?);
    Ok(roots)
}
