//! The Docker engine, as far as a build needs it. No type of the client library leaves this file,
//! but for the body that creates a container ([`crate::container`]).

mod connection;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, ContainerStateStatusEnum, VolumeCreateRequest};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, ContainerArchiveInfoOptionsBuilder,
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, ListContainersOptionsBuilder,
    ListImagesOptionsBuilder, ListNetworksOptionsBuilder, ListVolumesOptionsBuilder,
    LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptions,
    RemoveImageOptionsBuilder, RemoveVolumeOptionsBuilder, StopContainerOptionsBuilder,
    UploadToContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use secrecy::ExposeSecret;
use shared::config::{ConfigError, EngineConfig, RegistryLogin};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::disk;

pub use self::connection::Mismatch;

/// How long the engine may take to answer a call. A busy disk makes it slow; an engine that takes
/// longer than this hangs.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// How long the engine may take to say that it is there.
const PING_DEADLINE: Duration = Duration::from_secs(10);
/// How long the engine may take to answer an upload or a pull, which last as long as their data.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(2 * 60 * 60);
/// How long a pull may go on without a sign of it. An engine tells several times a second what it
/// downloads and unpacks, and nothing while a registry keeps it waiting.
const PULL_STALL: Duration = Duration::from_secs(10 * 60);
/// Longer than any build may last.
const EXIT_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

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

/// What the engine knows of a container.
#[derive(Debug, Clone)]
pub struct ContainerInfo {
    /// The engine's name of it, which no other container ever has.
    pub id: String,
    /// Its labels.
    pub labels: HashMap<String, String>,
    /// The image it was made from, by id.
    pub image_id: Option<String>,
    /// What is mounted: path in the container → path on the engine's host.
    pub mounts: HashMap<PathBuf, PathBuf>,
    /// Where it is in its life.
    pub phase: Phase,
    /// When it was last started.
    pub started_at: Option<SystemTime>,
    /// When it last ended, by the same clock.
    pub finished_at: Option<SystemTime>,
    /// The exit code of its last end.
    pub exit_code: i64,
    /// Whether the kernel killed a process of it for want of memory.
    pub oom_killed: bool,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made, never started.
    Created,
    /// Started, not ended.
    Running,
    /// Ended.
    Exited,
}

/// Something on the engine that carries labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// What it is removed by.
    pub name: String,
    /// Its labels.
    pub labels: HashMap<String, String>,
}

/// An image that has no name, as when a newer one has taken it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamelessImage {
    pub(crate) id: String,
    pub(crate) labels: HashMap<String, String>,
    /// When it was built, to the second.
    pub(crate) created_at: SystemTime,
}

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

    /// Asks the engine whether it is there.
    ///
    /// # Errors
    /// [`EngineError::Gone`].
    pub(crate) async fn ping(&self) -> Result<()> {
        let answer = timeout(PING_DEADLINE, self.docker.ping()).await;
        let answer = answer.map_err(|_| EngineError::Gone("it hangs".into()))?;
        Ok(answer.map(drop)?)
    }

    /// Makes a volume, or finds the one of this name, and tells its path on the engine's host.
    pub(crate) async fn create_volume(
        &self,
        name: &str,
        labels: HashMap<String, String>,
    ) -> Result<PathBuf> {
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..Default::default()
        };
        let volume = in_time(self.docker.create_volume(request)).await?;
        Ok(volume.mountpoint.into())
    }

    /// Makes a container, and tells its id. The name is taken: [`EngineError::Conflict`]; the image
    /// is missing: [`EngineError::NotFound`].
    pub(crate) async fn create_container(
        &self,
        name: &str,
        body: ContainerCreateBody,
    ) -> Result<String> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let created = in_time(self.docker.create_container(Some(options), body)).await?;
        Ok(created.id)
    }

    /// Fetches an image from its registry, with a login where it asks for one.
    pub(crate) async fn pull(&self, image: &str, login: Option<&RegistryLogin>) -> Result<()> {
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

    /// Unpacks a tar into a directory of a container, wherever the engine is.
    pub(crate) async fn upload(
        &self,
        container: &str,
        directory: &str,
        tar: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<()> {
        let options = UploadToContainerOptionsBuilder::default()
            .path(directory)
            .build();
        let patient = self.docker.clone().with_timeout(TRANSFER_DEADLINE);
        let (moves, moved) = watch::channel(());
        let tar = tar.inspect(move |_| {
            moves.send_replace(());
        });
        let body = bollard::body_try_stream(tar);
        tokio::select! {
            answer = patient.upload_to_container(container, Some(options), body) => Ok(answer?),
            () = stall(moved) => Err(EngineError::Gone(format!(
                "it took nothing of an upload for {CALL_DEADLINE:?}"
            ))),
        }
    }

    /// Whether there is something at this path in a container, running or not. This costs the
    /// engine a tenth of packing it to be read.
    pub(crate) async fn exists(&self, container: &str, path: &str) -> Result<bool> {
        let options = ContainerArchiveInfoOptionsBuilder::default()
            .path(path)
            .build();
        let found = self
            .docker
            .get_container_archive_info(container, Some(options));
        match in_time(found).await {
            Ok(_) => Ok(true),
            Err(EngineError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Follows what a container writes from now on; attached before the start, that is all of it.
    pub(crate) async fn attach(&self, container: &str) -> Result<impl Output> {
        let options = AttachContainerOptionsBuilder::default()
            .stream(true)
            .stdout(true)
            .stderr(true)
            .build();
        let attached = in_time(self.docker.attach_container(container, Some(options))).await?;
        Ok(frames(attached.output))
    }

    /// What a container wrote since it was made, and what it will write until it ends. The engine
    /// may let go before the end of it: see [`Engine::whole_log`].
    pub(crate) fn followed_log(&self, container: &str) -> impl Output {
        self.logs(container, true, "all")
    }

    /// What a container wrote that has ended. Engine 20.10 often loses the last of it to whoever
    /// follows the log while the container ends, and tells no error.
    pub(crate) fn whole_log(&self, container: &str) -> impl Output {
        self.logs(container, false, "all")
    }

    /// The last 64 lines that a container wrote that has ended; of a longer line 16 KiB count as one.
    pub(crate) fn end_of_log(&self, container: &str) -> impl Output {
        self.logs(container, false, "64")
    }

    fn logs(&self, container: &str, follow: bool, tail: &str) -> impl Output {
        let options = LogsOptionsBuilder::default()
            .follow(follow)
            .tail(tail)
            .stdout(true)
            .stderr(true)
            .build();
        frames(self.docker.logs(container, Some(options)))
    }

    /// Starts a container; starting a running one is no error.
    pub(crate) async fn start(&self, container: &str) -> Result<()> {
        in_time(self.docker.start_container(container, None)).await
    }

    /// Asks a container to end (TERM) and ends it (KILL) after `grace`.
    pub(crate) async fn stop(&self, container: &str, grace: Duration) -> Result<()> {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        in_time(self.docker.stop_container(container, Some(options))).await
    }

    /// Waits until a container does not run.
    pub(crate) async fn wait(&self, container: &str) -> Result<()> {
        let options = WaitContainerOptionsBuilder::default()
            .condition("not-running")
            .build();
        let patient = self.docker.clone().with_timeout(EXIT_DEADLINE);
        let mut answers = patient.wait_container(container, Some(options));
        match answers.next().await {
            // The client makes an error of every exit code that is not 0.
            Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) => Ok(()),
            Some(Err(error)) => Err(error.into()),
            None => Err(EngineError::Gone("the connection was closed".into())),
        }
    }

    /// What the engine knows of a container.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], or the engine does not answer.
    pub async fn inspect(&self, container: &str) -> Result<ContainerInfo> {
        let found = in_time(self.docker.inspect_container(container, None)).await?;
        let state = found.state.unwrap_or_default();
        let mounts = found.mounts.unwrap_or_default().into_iter();
        let started_at = time(state.started_at);
        Ok(ContainerInfo {
            id: found.id.unwrap_or_default(),
            labels: found
                .config
                .and_then(|config| config.labels)
                .unwrap_or_default(),
            image_id: found.image,
            mounts: mounts
                .filter_map(|mount| Some((mount.destination?.into(), mount.source?.into())))
                .collect(),
            phase: match state.status {
                Some(ContainerStateStatusEnum::CREATED) => Phase::Created,
                Some(ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::DEAD)
                    if started_at.is_none() =>
                {
                    Phase::Created
                }
                Some(ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD) => {
                    Phase::Exited
                }
                // One that is being removed is gone at the next look.
                _ => Phase::Running,
            },
            started_at,
            finished_at: time(state.finished_at),
            exit_code: state.exit_code.unwrap_or_default(),
            oom_killed: state.oom_killed.unwrap_or_default(),
        })
    }

    /// The containers with all of these labels (`name` or `name=value`), ended ones included.
    pub(crate) async fn containers(&self, labels: &[&str]) -> Result<Vec<Labelled>> {
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&by_labels(labels))
            .build();
        let found = in_time(self.docker.list_containers(Some(options))).await?;
        Ok(found
            .into_iter()
            .filter_map(|one| labelled(one.id?, one.labels))
            .collect())
    }

    /// The volumes with a label.
    pub(crate) async fn volumes(&self, label: &str) -> Result<Vec<Labelled>> {
        let options = ListVolumesOptionsBuilder::default()
            .filters(&by_label(label))
            .build();
        let found = in_time(self.docker.list_volumes(Some(options))).await?;
        let volumes = found.volumes.unwrap_or_default().into_iter();
        Ok(volumes
            .filter_map(|one| labelled(one.name, Some(one.labels)))
            .collect())
    }

    /// The networks with a label.
    pub(crate) async fn networks(&self, label: &str) -> Result<Vec<Labelled>> {
        let options = ListNetworksOptionsBuilder::default()
            .filters(&by_label(label))
            .build();
        let found = in_time(self.docker.list_networks(Some(options))).await?;
        Ok(found
            .into_iter()
            .filter_map(|one| labelled(one.id?, one.labels))
            .collect())
    }

    /// The tags of the images with a label.
    pub(crate) async fn image_tags(&self, label: &str) -> Result<Vec<String>> {
        let options = ListImagesOptionsBuilder::default()
            .filters(&by_label(label))
            .build();
        let found = in_time(self.docker.list_images(Some(options))).await?;
        Ok(found
            .into_iter()
            .flat_map(|image| image.repo_tags)
            .collect())
    }

    /// The images with a label that have no name.
    pub(crate) async fn nameless_images(&self, label: &str) -> Result<Vec<NamelessImage>> {
        let mut filters = by_label(label);
        filters.insert("dangling", vec!["true".to_owned()]);
        let options = ListImagesOptionsBuilder::default()
            .filters(&filters)
            .build();
        let found = in_time(self.docker.list_images(Some(options))).await?;
        let nameless = found.into_iter().map(|image| NamelessImage {
            id: image.id,
            labels: image.labels,
            created_at: SystemTime::UNIX_EPOCH
                + Duration::from_secs(image.created.try_into().unwrap_or(0)),
        });
        Ok(nameless.collect())
    }

    /// The id of the image that this name means; nothing if there is none.
    pub(crate) async fn image_id(&self, name: &str) -> Result<Option<String>> {
        match in_time(self.docker.inspect_image(name)).await {
            Ok(image) => Ok(image.id),
            Err(EngineError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a container, running or not, with its anonymous volumes. Gone already is fine.
    pub(crate) async fn remove_container(&self, container: &str) -> Result<()> {
        self.remove(container, true).await
    }

    /// Removes a container that does not run; one that does is an [`EngineError::Conflict`]. Gone
    /// already is fine.
    pub(crate) async fn remove_idle_container(&self, container: &str) -> Result<()> {
        self.remove(container, false).await
    }

    async fn remove(&self, container: &str, even_running: bool) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::default()
            .force(even_running)
            .v(true)
            .build();
        gone_is_fine(in_time(self.docker.remove_container(container, Some(options))).await)
    }

    /// Removes a volume. Gone already is fine.
    pub(crate) async fn remove_volume(&self, volume: &str) -> Result<()> {
        let options = RemoveVolumeOptionsBuilder::default().force(true).build();
        gone_is_fine(in_time(self.docker.remove_volume(volume, Some(options))).await)
    }

    /// Removes a network. Gone already is fine.
    pub(crate) async fn remove_network(&self, network: &str) -> Result<()> {
        gone_is_fine(in_time(self.docker.remove_network(network)).await)
    }

    /// Removes a tag, and the image with its last tag. Gone already is fine; in use it is a
    /// [`EngineError::Conflict`].
    pub(crate) async fn remove_image(&self, tag: &str) -> Result<()> {
        let options = RemoveImageOptionsBuilder::default().build();
        self.remove_image_with(tag, options).await
    }

    /// Removes a tag, as [`Engine::remove_image`] does, unless a container uses it.
    pub(crate) async fn remove_unused_image(&self, tag: &str) -> Result<()> {
        match self.remove_image(tag).await {
            Err(EngineError::Conflict(_)) => Ok(()),
            removed => removed,
        }
    }

    /// Removes an image by its id, and not the images without a name that it was built on: those
    /// may be a person's build cache.
    pub(crate) async fn remove_only_image(&self, id: &str) -> Result<()> {
        let options = RemoveImageOptionsBuilder::default().noprune(true).build();
        self.remove_image_with(id, options).await
    }

    async fn remove_image_with(&self, name: &str, options: RemoveImageOptions) -> Result<()> {
        let removed = in_time(self.docker.remove_image(name, Some(options), None)).await;
        gone_is_fine(removed.map(drop))
    }
}

/// What a container writes, standard output and standard error in order.
pub(crate) trait Output: Stream<Item = Result<Bytes>> + Send + Unpin + 'static {}

impl<S: Stream<Item = Result<Bytes>> + Send + Unpin + 'static> Output for S {}

fn frames(output: impl Stream<Item = Result<LogOutput, Error>> + Send + 'static) -> impl Output {
    Box::pin(output.map(|frame| Ok(frame?.into_bytes())))
}

async fn in_time<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T> {
    match timeout(CALL_DEADLINE, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(EngineError::Gone(format!(
            "no answer for {CALL_DEADLINE:?}"
        ))),
    }
}

/// Returns once nothing has moved for the time that a call may take, or that long after the end of
/// what moves.
async fn stall(mut moved: watch::Receiver<()>) {
    while let Ok(Ok(())) = timeout(CALL_DEADLINE, moved.changed()).await {}
    if moved.has_changed().is_err() {
        sleep(CALL_DEADLINE).await;
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
                if disk::tells_of_full_disk(&message) =>
            {
                Self::NoSpace(message)
            }
            Error::DockerResponseServerError {
                status_code: 500..,
                message,
            } => Self::Failed(message),
            Error::DockerResponseServerError { message, .. }
            | Error::DockerStreamError { error: message } => Self::Refused(message),
            other => Self::Gone(format!("{:#}", anyhow::Error::new(other))),
        }
    }
}

fn by_label(label: &str) -> HashMap<&'static str, Vec<String>> {
    by_labels(&[label])
}

fn by_labels(labels: &[&str]) -> HashMap<&'static str, Vec<String>> {
    HashMap::from([("label", labels.iter().map(ToString::to_string).collect())])
}

/// A time as the engine tells it; that of what never was is in the year 1.
fn time(told: Option<String>) -> Option<SystemTime> {
    humantime::parse_rfc3339(&told?).ok()
}

fn labelled(name: String, labels: Option<HashMap<String, String>>) -> Option<Labelled> {
    Some(Labelled {
        name,
        labels: labels.unwrap_or_default(),
    })
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
