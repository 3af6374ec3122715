//! Certificates for the tests of TLS.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
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
        let authority = Authority::new()?;
        let (certificate, key) = authority.sign(&["localhost", "127.0.0.1"], &[])?;
        write(self.ca(), &authority.pem);
        write(self.certificate(), &certificate);
        write(self.key(), &key);
        write(self.key_and_certificate(), &(key + &certificate));
        Ok(())
    }
}

/// What docker-machine makes for an engine at `127.0.0.1`: `ca.pem`, `cert.pem` and `key.pem` for
/// its clients, and `server.pem` and `server-key.pem` for itself.
#[derive(Debug)]
pub struct MachineCertificates {
    dir: TempDir,
}

impl MachineCertificates {
    /// Makes new ones, of a new authority.
    #[expect(clippy::new_without_default, reason = "it does I/O")]
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let certificates = Self { dir };
        certificates.generate().expect("the parameters are valid");
        certificates
    }

    /// Where they lie.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn generate(&self) -> Result<(), rcgen::Error> {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let authority = Authority::new()?;
        let (server, server_key) = authority.sign(&["127.0.0.1"], &[ServerAuth, ClientAuth])?;
        let (client, client_key) = authority.sign(&[], &[ClientAuth])?;
        for (name, pem) in [
            ("ca.pem", &authority.pem),
            ("server.pem", &server),
            ("server-key.pem", &server_key),
            ("cert.pem", &client),
            ("key.pem", &client_key),
        ] {
            write(self.dir().join(name), pem);
        }
        Ok(())
    }
}

/// Who signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "the tests' authority");
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// A certificate for these names and purposes, and its key.
    fn sign(
        &self,
        names: &[&str],
        purposes: &[ExtendedKeyUsagePurpose],
    ) -> Result<(String, String), rcgen::Error> {
        let key = KeyPair::generate()?;
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = purposes.to_vec();
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok((certificate, key.serialize_pem()))
    }
}

fn write(path: PathBuf, pem: &str) {
    fs::write(path, pem).expect("the file can be written");
}
