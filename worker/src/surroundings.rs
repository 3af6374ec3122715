//! What a worker must know about the place it runs in: which image its own container was made
//! from, and where the engine's socket is on the engine's host.

use std::path::{Path, PathBuf};

use runner::engine::ContainerInfo;
use runner::{Engine, EngineError, container};
use shared::config::{ConfigError, EngineConfig, WorkerConfig};

/// The kernel's list of this process's mounts.
/// <https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html>
const MOUNTINFO: &str = "/proc/self/mountinfo";
/// What Docker mounts here, of every container, from the directory that is named after it.
const OF_DOCKER: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// Where builds run.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// The image of the build containers.
    pub(crate) image: String,
    /// The engine's socket on the engine's host.
    pub(crate) socket: PathBuf,
    /// The engine's volumes on the engine's host, if it tells.
    pub(crate) volumes: Option<PathBuf>,
}

impl Surroundings {
    /// Looks at the container that this process runs in, if it runs in one of this engine.
    ///
    /// # Errors
    /// [`EngineError::Unfit`] or no answer of the engine; or `BUILD_IMAGE` is not set and there is no
    /// such container.
    pub(crate) async fn find(
        engine: &Engine,
        config: &WorkerConfig,
    ) -> Result<Self, SurroundingsError> {
        let own = own_container(engine).await?;
        let own_image = own.as_ref().and_then(|own| own.image_id.clone());
        let image = config.hook.image.clone().or(own_image);
        Ok(Self {
            image: image.ok_or_else(no_image)?,
            socket: socket_on_host(&config.engine, own.as_ref()),
            volumes: engine.volumes_dir().await?,
        })
    }
}

/// Why it is not known where builds run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SurroundingsError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

fn no_image() -> ConfigError {
    let problem = "missing (this service runs in no container whose image could be used)";
    ConfigError {
        variable: "BUILD_IMAGE",
        problem: problem.into(),
    }
}

async fn own_container(engine: &Engine) -> Result<Option<ContainerInfo>, EngineError> {
    let mounts = tokio::fs::read_to_string(MOUNTINFO)
        .await
        .unwrap_or_default();
    let Some(id) = container_id(&mounts) else {
        return Ok(None);
    };
    match engine.inspect(&id).await {
        Ok(own) => Ok(Some(own)),
        // It is a container of another engine.
        Err(EngineError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The id of the container whose mounts these are. On the engine's own host other directories of
/// that kind can be seen: while a file is copied out of a container, and of one that shares its IPC
/// namespace.
fn container_id(mountinfo: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        let (_, after) = root.split_once("/containers/")?;
        let (id, _file) = after.split_once('/')?;
        let is_id = id.len() == 64 && id.bytes().all(|c| c.is_ascii_hexdigit());
        (is_id && OF_DOCKER.contains(&mount_point)).then(|| id.to_owned())
    })
}

/// A socket that is mounted into this container stands elsewhere on the host, as it does with a
/// rootless engine. An engine that is reached over TCP has its socket at the usual place.
fn socket_on_host(engine: &EngineConfig, own: Option<&ContainerInfo>) -> PathBuf {
    let EngineConfig::Unix { socket } = engine else {
        return container::default_socket();
    };
    let mounted = own.and_then(|own| own.mounts.get(&resolved(socket)).or(own.mounts.get(socket)));
    mounted.unwrap_or(socket).clone()
}

/// `/var/run` is a link to `/run` in most images, and the engine reports either.
fn resolved(socket: &Path) -> PathBuf {
    socket.canonicalize().unwrap_or_else(|_| socket.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use runner::engine::Phase;

    #[test]
    fn the_own_container_is_found_among_the_mounts_and_others_are_not_taken_for_it() {
        let id = "4f".repeat(32);
        let of_container = format!("/var/lib/docker/containers/{id}");
        let merged = format!("/var/lib/docker/overlay2/{id}/merged");
        for (root, mount_point, found) in [
            (
                format!("{of_container}/hostname"),
                "/etc/hostname".to_owned(),
                true,
            ),
            // On the host, during `docker cp` from a container, and with `--ipc shareable`.
            (
                format!("{of_container}/hostname"),
                format!("{merged}/etc/hostname"),
                false,
            ),
            ("/".to_owned(), format!("{of_container}/mounts/shm"), false),
            ("/".to_owned(), "/".to_owned(), false),
            (
                "/containers/short/hostname".to_owned(),
                "/etc/hostname".to_owned(),
                false,
            ),
        ] {
            let mounts = format!(
                "22 1 254:0 / / rw - ext4 /dev/vda rw\n640 620 254:0 {root} {mount_point} rw - ext4 /dev/vda rw\n"
            );
            assert_eq!(
                container_id(&mounts).as_ref(),
                found.then_some(&id),
                "{mounts}"
            );
        }
    }

    #[test]
    fn the_socket_is_the_one_on_the_engines_host() {
        let own = ContainerInfo {
            entrypoint: Vec::new(),
            id: String::new(),
            finished_at: None,
            labels: HashMap::new(),
            image_id: None,
            mounts: HashMap::from([("/x/docker.sock".into(), "/run/user/1000/docker.sock".into())]),
            phase: Phase::Running,
            started_at: None,
            exit_code: 0,
            oom_killed: false,
            waits_for_go: false,
        };
        let unix = |socket: &str| EngineConfig::Unix {
            socket: socket.into(),
        };
        let tcp = EngineConfig::Tcp {
            address: "ci:2376".into(),
            tls: None,
        };
        for (engine, own, expected) in [
            (
                unix("/x/docker.sock"),
                Some(&own),
                "/run/user/1000/docker.sock",
            ),
            (unix("/y/docker.sock"), Some(&own), "/y/docker.sock"),
            (unix("/x/docker.sock"), None, "/x/docker.sock"),
            (tcp, Some(&own), "/var/run/docker.sock"),
        ] {
            assert_eq!(socket_on_host(&engine, own), Path::new(expected));
        }
    }
}
