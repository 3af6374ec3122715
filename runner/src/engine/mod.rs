//! The Docker engine, as far as a build needs it. No type of the client library leaves this module,
//! but for the body that creates a container ([`crate::container`]).

mod connection;
mod containers;
mod objects;
mod volumes;

use std::path::PathBuf;
use std::time::Duration;

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use secrecy::ExposeSecret;
use shared::config::{ConfigError, EngineConfig, RegistryLogin};
use tokio::time::timeout;

pub use self::connection::Mismatch;
pub use self::containers::{ContainerInfo, Phase};
pub(crate) use self::containers::{Input, Output};
pub use self::objects::{Labelled, NamelessImage};
pub use self::volumes::NamelessVolumes;

/// The deadline of a call. A busy disk makes it slow; an engine that takes
/// longer than this hangs.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// The deadline of a sign of life.
const PING_DEADLINE: Duration = Duration::from_secs(10);
/// The deadline of an upload or a pull, which last as long as their data.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(2 * 60 * 60);
/// The longest silence during a pull. An engine tells several times a second what it
/// downloads and unpacks, and nothing while a registry keeps it waiting.
const PULL_STALL: Duration = Duration::from_secs(10 * 60);

/// A connection to a Docker engine.
#[derive(Debug, Clone)]
pub struct Engine {
    docker: Docker,
}

/// Why the engine did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is nothing of that name.
    #[error("not found: {0}")]
    NotFound(String),
    /// Something of that name exists, or is in use.
    #[error("conflict: {0}")]
    Conflict(String),
    /// The engine answered that it will not, however often it is asked (4xx).
    #[error("the Docker engine refused: {0}")]
    Refused(String),
    /// The engine answered that its disk is full.
    #[error("disk full (no space left for the Docker engine, see docker system df: {0})")]
    NoSpace(String),
    /// The engine answered that it could not, this time (5xx), as when its network is not up yet.
    #[error("the Docker engine failed: {0}")]
    Failed(String),
    /// The engine and the settings do not fit.
    #[error("the Docker engine cannot be used: {0}")]
    Unfit(Mismatch),
    /// The engine did not answer, or not in time.
    #[error("the Docker engine does not answer: {0}")]
    Gone(String),
}

type Result<T, E = EngineError> = std::result::Result<T, E>;

impl Engine {
    /// Prepares the connection; nothing is sent yet.
    ///
    /// # Errors
    /// The socket does not exist, or the certificates cannot be used.
    pub fn new(config: &EngineConfig) -> Result<Self, ConfigError> {
        let docker = connection::prepare(config, CALL_DEADLINE)?;
        Ok(Self { docker })
    }

    /// Asks the engine which version of the API it speaks, and speaks no newer one from now on.
    ///
    /// # Errors
    /// [`EngineError::Gone`] or [`EngineError::Unfit`].
    pub async fn negotiate(self) -> Result<Self> {
        let docker = in_time(self.docker.negotiate_version()).await?;
        Ok(Self { docker })
    }

    /// Asks the engine for a sign of life.
    ///
    /// # Errors
    /// [`EngineError::Gone`].
    pub async fn ping(&self) -> Result<()> {
        let answer = timeout(PING_DEADLINE, self.docker.ping()).await;
        let answer = answer.map_err(|_| EngineError::Gone("it hangs".into()))?;
        Ok(answer.map(drop)?)
    }

    /// The directory in which the engine keeps its volumes, on the engine's host, if it tells.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn volumes_dir(&self) -> Result<Option<PathBuf>> {
        let info = in_time(self.docker.info()).await?;
        let root = info.docker_root_dir.map(PathBuf::from);
        Ok(root.map(|root| root.join("volumes")))
    }

    /// Fetches an image from its registry, with a login where it asks for one.
    ///
    /// # Errors
    /// The engine cannot have the image, has no room for it, or does not answer.
    pub async fn pull(&self, image: &str, login: Option<&RegistryLogin>) -> Result<()> {
        let options = CreateImageOptionsBuilder::default()
            .from_image(&tagged(image))
            .build();
        let patient = self.docker.clone().with_timeout(TRANSFER_DEADLINE);
        let mut progress = patient.create_image(Some(options), None, login.map(credentials));
        loop {
            match timeout(PULL_STALL, progress.next()).await {
                Ok(Some(step)) => drop(step?),
                Ok(None) => return Ok(()),
                Err(_elapsed) => {
                    return Err(EngineError::Gone(format!(
                        "nothing of an image came for {PULL_STALL:?}"
                    )));
                }
            }
        }
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T> {
    match timeout(CALL_DEADLINE, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(EngineError::Gone(format!(
            "no answer for {CALL_DEADLINE:?}"
        ))),
    }
}

fn gone_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(EngineError::NotFound(_)) => Ok(()),
        other => other,
    }
}

impl From<Error> for EngineError {
    fn from(error: Error) -> Self {
        if let Some(mismatch) = Mismatch::of(&error) {
            return Self::Unfit(mismatch);
        }
        match error {
            Error::DockerResponseServerError {
                status_code: 404,
                message,
            } => Self::NotFound(message),
            Error::DockerResponseServerError {
                status_code: 409,
                message,
            } => Self::Conflict(message),
            Error::DockerResponseServerError { message, .. }
            | Error::DockerStreamError { error: message }
                if tells_of_full_disk(&message) =>
            {
                Self::NoSpace(message)
            }
            Error::DockerResponseServerError {
                status_code: 500..,
                message,
            } => Self::Failed(message),
            Error::DockerResponseServerError { message, .. }
            | Error::DockerStreamError { error: message } => Self::Refused(message),
            // The causes before the last one only say what was being done.
            other => Self::Gone(anyhow::Error::new(other).root_cause().to_string()),
        }
    }
}

/// Looks for the kernel's words for a full disk.
fn tells_of_full_disk(message: &str) -> bool {
    message.contains("no space left on device") || message.contains("disk quota exceeded")
}

fn credentials(login: &RegistryLogin) -> DockerCredentials {
    DockerCredentials {
        username: Some(login.user.clone()),
        password: Some(login.password.expose_secret().to_owned()),
        serveraddress: Some(login.registry.login_key().to_owned()),
        ..Default::default()
    }
}

/// The image with a tag: without one the engine would pull every tag that there is.
fn tagged(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_the_engine_is_told_from_a_refusal() {
        let answered = |status_code| {
            EngineError::from(Error::DockerResponseServerError {
                status_code,
                message: "because".into(),
            })
        };
        assert!(matches!(answered(400), EngineError::Refused(_)));
        assert!(matches!(answered(404), EngineError::NotFound(_)));
        assert!(matches!(answered(409), EngineError::Conflict(_)));
        assert!(matches!(answered(500), EngineError::Failed(_)));
        assert!(matches!(answered(503), EngineError::Failed(_)));
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let error = EngineError::from(Error::DockerResponseServerError {
            status_code: 500,
            message: "mkdir /var/lib/docker/tmp: no space left on device".into(),
        });
        assert_eq!(
            error.to_string(),
            "disk full (no space left for the Docker engine, see docker system df: \
             mkdir /var/lib/docker/tmp: no space left on device)"
        );
    }

    #[test]
    fn an_image_without_a_tag_means_the_latest() {
        for (image, pulled) in [
            ("app", "app:latest"),
            ("app:1", "app:1"),
            ("registry:5000/team/app", "registry:5000/team/app:latest"),
            ("app@sha256:00", "app@sha256:00"),
        ] {
            assert_eq!(tagged(image), pulled);
        }
    }
}
