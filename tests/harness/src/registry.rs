//! A registry for images that asks for a login: Debian's `docker-registry`, on loopback, where
//! engines speak to registries without TLS.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::process::{Process, listening_address};

const START_DEADLINE: Duration = Duration::from_secs(20);

/// A running registry. Dropping it ends it, and removes what was pushed to it.
#[derive(Debug)]
pub struct Registry {
    _process: Process,
    address: SocketAddr,
    _dir: TempDir,
}

impl Registry {
    /// Starts a registry on a free port that lets in this user alone.
    ///
    /// # Panics
    /// When Debian's `docker-registry` or `apache2-utils` is not installed.
    pub async fn start(user: &str, password: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let users = dir.path().join("users");
        fs::write(&users, htpasswd(user, password)).expect("it is our directory");
        let configuration = dir.path().join("config.yml");
        fs::write(&configuration, configure(dir.path(), &users)).expect("it is our directory");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(configuration);
        let process = Process::start(command);
        let address = process
            .wait_for_output(listening_address, START_DEADLINE)
            .await;
        Self {
            _process: process,
            address,
            _dir: dir,
        }
    }

    /// How the names of its images begin.
    pub fn host(&self) -> String {
        self.address.to_string()
    }
}

/// JSON is YAML.
fn configure(dir: &Path, users: &Path) -> String {
    let configuration = json!({
        "version": "0.1",
        "storage": { "filesystem": { "rootdirectory": dir.join("images") } },
        "http": { "addr": "127.0.0.1:0" },
        "auth": { "htpasswd": { "realm": "tests", "path": users } },
    });
    configuration.to_string()
}

/// The one line of a file that lets this user in.
fn htpasswd(user: &str, password: &str) -> Vec<u8> {
    let bcrypt = ["-n", "-b", "-B", "-C", "4"];
    let output = Command::new("htpasswd")
        .args(bcrypt)
        .args([user, password])
        .output();
    output.expect("apache2-utils is installed").stdout
}
