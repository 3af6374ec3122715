//! Where the Docker engine is, as the docker CLI is told.

use std::path::PathBuf;

use url::Url;

use super::{Env, Result, invalid};

/// The ports of an engine that are meant where none is named.
const PLAIN_PORT: u16 = 2375;
const TLS_PORT: u16 = 2376;

/// The Docker engine, as the docker CLI finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineConfig {
    /// A unix socket on this machine.
    Unix {
        /// The socket's path.
        socket: PathBuf,
    },
    /// TCP, with mutual TLS where certificates are given.
    Tcp {
        /// `host:port`.
        address: String,
        /// The directory of `ca.pem`, `cert.pem` and `key.pem`.
        tls: Option<PathBuf>,
    },
}

impl EngineConfig {
    pub(super) fn load(env: &Env) -> Result<Self> {
        let host = env
            .text("DOCKER_HOST")
            .unwrap_or("unix:///var/run/docker.sock");
        if let Some(socket) = host.strip_prefix("unix://") {
            return Ok(Self::Unix {
                socket: socket.into(),
            });
        }
        let verify = env.text("DOCKER_TLS_VERIFY").is_some();
        let port = if verify { TLS_PORT } else { PLAIN_PORT };
        Ok(Self::Tcp {
            address: tcp_address(host, port).map_err(|problem| invalid("DOCKER_HOST", problem))?,
            tls: verify.then(|| cert_path(env)),
        })
    }
}

/// `host:port` of a `tcp://` address.
fn tcp_address(text: &str, default_port: u16) -> Result<String, &'static str> {
    if !text.starts_with("tcp://") {
        return Err("must begin with unix:// or tcp://");
    }
    let url = Url::parse(text).ok();
    let url = url.filter(|url| matches!(url.path(), "" | "/") && url.username().is_empty());
    match url.as_ref().and_then(|url| Some((url, url.host_str()?))) {
        Some((url, host)) => Ok(format!("{host}:{}", url.port().unwrap_or(default_port))),
        None => Err("must be tcp://host:port"),
    }
}

fn cert_path(env: &Env) -> PathBuf {
    match env.text("DOCKER_CERT_PATH") {
        Some(path) => path.into(),
        None => PathBuf::from(env.text("HOME").unwrap_or("/root")).join(".docker"),
    }
}
