//! Certificates for the tests of TLS.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// A certificate authority of its own and a certificate for `localhost` and `127.0.0.1`,
/// as PEM files in a temporary directory.
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// Makes new ones.
    #[expect(clippy::new_without_default, reason = "it does I/O")]
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let certificates = Self { dir };
        certificates.generate().expect("the parameters are valid");
        certificates
    }

    /// The authority's certificate, for a client to trust.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("certificate.pem")
    }

    /// The server's key.
    pub fn key(&self) -> PathBuf {
        self.dir.path().join("key.pem")
    }

    /// The server's key and certificate in one file, as `CERT_PATH` takes it.
    pub fn key_and_certificate(&self) -> PathBuf {
        self.dir.path().join("server.pem")
    }

    fn generate(&self) -> Result<(), rcgen::Error> {
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name
            .push(DnType::CommonName, "the tests' authority");
        let ca_certificate = ca.self_signed(&ca_key)?;

        let key = KeyPair::generate()?;
        let server = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        let certificate = server.signed_by(&key, &Issuer::new(ca, ca_key))?.pem();
        let key = key.serialize_pem();

        let write =
            |path: PathBuf, pem: &str| fs::write(path, pem).expect("the file can be written");
        write(self.ca(), &ca_certificate.pem());
        write(self.certificate(), &certificate);
        write(self.key(), &key);
        write(self.key_and_certificate(), &(key + &certificate));
        Ok(())
    }
}
