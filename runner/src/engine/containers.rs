//! One container of the engine: made, filled, started, listened to, stopped.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, ContainerStateStatusEnum};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, ContainerArchiveInfoOptionsBuilder,
    CreateContainerOptionsBuilder, LogsOptionsBuilder, StopContainerOptionsBuilder,
    UploadToContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::AsyncWrite;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{CALL_DEADLINE, Engine, EngineError, Result, TRANSFER_DEADLINE, in_time};

/// Longer than any build may last.
const EXIT_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// The output of a container, standard output and standard error in order.
pub(crate) type Output = BoxStream<'static, Result<Bytes>>;

/// The standard input of a container. It is closed when this is dropped together with the output.
pub(crate) type Input = Pin<Box<dyn AsyncWrite + Send>>;

/// A container, as the engine knows it.
#[derive(Debug, Clone)]
pub struct ContainerInfo {
    /// The engine's name of it, which no other container ever has.
    pub id: String,
    /// Its labels.
    pub labels: HashMap<String, String>,
    /// The program that it runs, with arguments.
    pub entrypoint: Vec<String>,
    /// The image it was made from, by id.
    pub image_id: Option<String>,
    /// Its mounts: path in the container → path on the engine's host.
    pub mounts: HashMap<PathBuf, PathBuf>,
    /// The phase of its life.
    pub phase: Phase,
    /// When it was last started.
    pub started_at: Option<SystemTime>,
    /// When it last ended, by the same clock.
    pub finished_at: Option<SystemTime>,
    /// The exit code of its last end.
    pub exit_code: i64,
    /// True if the kernel killed a process of it for want of memory.
    pub oom_killed: bool,
    /// True if its first process waits for a word on its standard input, and ends without one.
    pub waits_for_go: bool,
}

/// The phase of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made, never started.
    Created,
    /// Started, not ended.
    Running,
    /// Ended.
    Exited,
}

impl Engine {
    /// Makes a container and returns its id. The name is taken: [`EngineError::Conflict`]; the image
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

    /// Looks for a path in a container, running or not. This costs the engine a tenth of packing it
    /// to be read.
    pub(crate) async fn exists(&self, container: &str, path: &str) -> Result<bool> {
        Ok(self.written_at(container, path).await?.is_some())
    }

    /// The time at which a file in a container was last written, by the clock of the engine's host;
    /// nothing if there is none.
    pub(crate) async fn written_at(
        &self,
        container: &str,
        path: &str,
    ) -> Result<Option<SystemTime>> {
        let options = ContainerArchiveInfoOptionsBuilder::default()
            .path(path)
            .build();
        let found = self
            .docker
            .get_container_archive_info(container, Some(options));
        match in_time(found).await {
            Ok(file) => Ok(Some(time(file.modification_time).unwrap_or(UNIX_EPOCH))),
            Err(EngineError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Follows the output of a container from now on; attached before the start, that is all of it.
    pub(crate) async fn attach(&self, container: &str) -> Result<(Input, Output)> {
        let options = AttachContainerOptionsBuilder::default()
            .stream(true)
            .stdin(true)
            .stdout(true)
            .stderr(true)
            .build();
        let attached = in_time(self.docker.attach_container(container, Some(options))).await?;
        Ok((attached.input, frames(attached.output)))
    }

    /// The output of a container since it was made, and until it ends. The engine may let go before
    /// the end of it: see [`Engine::whole_log`].
    pub(crate) fn followed_log(&self, container: &str) -> Output {
        self.logs(container, true, "all")
    }

    /// The output of a container that has ended. Engine 20.10 often loses the last of it to those
    /// who follow the log while the container ends, and tells no error.
    pub(crate) fn whole_log(&self, container: &str) -> Output {
        self.logs(container, false, "all")
    }

    /// The last 64 lines of a container that has ended; of a longer line 16 KiB count as one.
    pub(crate) fn end_of_log(&self, container: &str) -> Output {
        self.logs(container, false, "64")
    }

    fn logs(&self, container: &str, follow: bool, tail: &str) -> Output {
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

    /// Ends a container at once (KILL). One that does not run is no error.
    pub(crate) async fn kill(&self, container: &str) -> Result<()> {
        self.stop(container, Duration::ZERO).await
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

    /// Asks the engine for all that it knows of a container.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], or the engine does not answer.
    pub async fn inspect(&self, container: &str) -> Result<ContainerInfo> {
        let found = in_time(self.docker.inspect_container(container, None)).await?;
        let state = found.state.unwrap_or_default();
        let config = found.config.unwrap_or_default();
        let mounts = found.mounts.unwrap_or_default().into_iter();
        let started_at = time(state.started_at);
        Ok(ContainerInfo {
            id: found.id.unwrap_or_default(),
            labels: config.labels.unwrap_or_default(),
            entrypoint: config.entrypoint.unwrap_or_default(),
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
            waits_for_go: config.stdin_once.unwrap_or_default(),
        })
    }
}

fn frames(output: impl Stream<Item = Result<LogOutput, Error>> + Send + 'static) -> Output {
    output.map(|frame| Ok(frame?.into_bytes())).boxed()
}

/// Returns once nothing has moved for the time that a call may take, or that long after the end of
/// what moves.
async fn stall(mut moved: watch::Receiver<()>) {
    while let Ok(Ok(())) = timeout(CALL_DEADLINE, moved.changed()).await {}
    if moved.has_changed().is_err() {
        sleep(CALL_DEADLINE).await;
    }
}

/// A time as the engine tells it; that of what never was is in the year 1.
fn time(told: Option<String>) -> Option<SystemTime> {
    let time = OffsetDateTime::parse(&told?, &Rfc3339).ok()?;
    (time > OffsetDateTime::UNIX_EPOCH).then(|| time.into())
}
