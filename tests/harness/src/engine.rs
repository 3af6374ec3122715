//! The Docker engine that the tests run on, and the proof that nothing is left there.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use bollard::models::EventMessage;
use bollard::query_parameters::{
    EventsOptions, InspectContainerOptions, ListContainersOptions, ListImagesOptions,
    ListNetworksOptions, ListVolumesOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{Stream, StreamExt};

type Filters = HashMap<String, Vec<String>>;

/// The image that the tests' builds run in, unless `COMPOSE_CI_TEST_IMAGE` names another.
const BUILD_IMAGE: &str = "compose-ci:local";

/// How long an engine that is not that of the other tests may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The image for the containers of tests: it exists on the engine and has the hook's tools.
pub fn test_image() -> String {
    std::env::var("COMPOSE_CI_TEST_IMAGE").unwrap_or_else(|_| BUILD_IMAGE.to_owned())
}

/// A connection to the engine of `DOCKER_HOST`, or of the local socket.
#[derive(Clone, Debug)]
pub struct Engine {
    docker: Docker,
}

/// What exists on the engine, each as `kind name`.
pub type Snapshot = BTreeSet<String>;

impl Engine {
    /// Connects.
    ///
    /// # Panics
    /// When no engine answers: a test that needs one never passes by skipping.
    pub async fn connect() -> Self {
        let docker = Docker::connect_with_defaults();
        Self::of(docker.expect("DOCKER_HOST can be understood")).await
    }

    /// Connects to the engine at this address, with the certificates of this directory.
    pub(crate) async fn connect_with_tls(address: &str, directory: &Path) -> Self {
        let [key, certificate, ca] =
            ["key.pem", "cert.pem", "ca.pem"].map(|name| directory.join(name));
        let timeout_s = CALL_TIMEOUT.as_secs();
        let docker = Docker::connect_with_ssl(
            address,
            &key,
            &certificate,
            &ca,
            timeout_s,
            API_DEFAULT_VERSION,
        );
        Self::of(docker.expect("the certificates can be read")).await
    }

    /// Connects to the engine at this socket.
    pub(crate) async fn connect_with_socket(path: &Path) -> Self {
        let timeout_s = CALL_TIMEOUT.as_secs();
        let path = path.to_str().expect("a path of a test is text");
        let docker = Docker::connect_with_unix(path, timeout_s, API_DEFAULT_VERSION);
        Self::of(docker.expect("the path can be understood")).await
    }

    async fn of(docker: Docker) -> Self {
        let answered = docker.negotiate_version().await;
        let docker = answered.unwrap_or_else(|error| {
            panic!("this test needs a Docker engine, and none answers: {error}")
        });
        Self { docker }
    }

    /// The client, for what a test wants beyond this.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// All containers, volumes, networks and images.
    pub async fn snapshot(&self) -> Snapshot {
        let all = Filters::new();
        let mut found = self.containers_and_more(&all).await;
        found.extend(self.images(&all).await);
        found
    }

    /// Waits until the container runs.
    ///
    /// # Panics
    /// After `deadline`.
    pub async fn wait_until_running(&self, container: &str, deadline: Duration) {
        self.wait_until(container, true, deadline).await;
    }

    /// Waits until the container has ended, or is gone.
    ///
    /// # Panics
    /// After `deadline`.
    pub async fn wait_until_ended(&self, container: &str, deadline: Duration) {
        self.wait_until(container, false, deadline).await;
    }

    async fn wait_until(&self, container: &str, running: bool, deadline: Duration) {
        let event = if running { "start" } else { "die" };
        let filters = filter("container", container)
            .into_iter()
            .chain(filter("event", event));
        let mut changes = pin!(self.events(filters.collect()));
        let changed = async {
            while self.is_running(container).await != running {
                next(&mut changes).await;
            }
        };
        let in_time = tokio::time::timeout(deadline, changed).await.is_ok();
        assert!(in_time, "{container}: no {event} in {deadline:?}");
    }

    /// Waits until nothing that carries the labels of this build or of its compose project
    /// exists any more: clean-up comes after the final status.
    ///
    /// # Panics
    /// After `deadline`, with what is left.
    pub async fn assert_nothing_left(&self, build_id: &str, project: &str, deadline: Duration) {
        let mut changes = pin!(self.events(Filters::new()));
        let emptied = async {
            while !self.left_of(build_id, project).await.is_empty() {
                next(&mut changes).await;
            }
        };
        if tokio::time::timeout(deadline, emptied).await.is_err() {
            let left = self.left_of(build_id, project).await;
            panic!("after {deadline:?} build {build_id} has left {left:#?}");
        }
    }

    async fn left_of(&self, build_id: &str, project: &str) -> Snapshot {
        let build = filter("label", &format!("compose-ci.build={build_id}"));
        let project = filter("label", &format!("com.docker.compose.project={project}"));
        let mut left = self.containers_and_more(&build).await;
        left.extend(self.containers_and_more(&project).await);
        // Images that the project built are its product, and the next build's cache.
        left.extend(self.images(&build).await);
        left
    }

    async fn containers_and_more(&self, filters: &Filters) -> Snapshot {
        let filters = Some(filters.clone());
        let containers = ListContainersOptions {
            all: true,
            filters: filters.clone(),
            ..Default::default()
        };
        let containers = self.docker.list_containers(Some(containers)).await;
        let networks = ListNetworksOptions {
            filters: filters.clone(),
        };
        let networks = self.docker.list_networks(Some(networks)).await;
        let volumes = self
            .docker
            .list_volumes(Some(ListVolumesOptions { filters }))
            .await;

        let containers = containers.expect("the engine lists containers").into_iter();
        let networks = networks.expect("the engine lists networks").into_iter();
        let volumes = volumes
            .expect("the engine lists volumes")
            .volumes
            .unwrap_or_default();
        let containers = containers
            .map(|container| container.names.unwrap_or_default().join(" "))
            .map(|names| format!("container {}", names.trim_start_matches('/')));
        let networks =
            networks.map(|network| format!("network {}", network.name.unwrap_or_default()));
        let volumes = volumes
            .into_iter()
            .map(|volume| format!("volume {}", volume.name));
        containers.chain(networks).chain(volumes).collect()
    }

    async fn images(&self, filters: &Filters) -> Snapshot {
        let options = ListImagesOptions {
            filters: Some(filters.clone()),
            ..Default::default()
        };
        let images = self.docker.list_images(Some(options)).await;
        let images = images.expect("the engine lists images").into_iter();
        images
            .map(|image| format!("image {} {}", image.id, image.repo_tags.join(" ")))
            .collect()
    }

    async fn is_running(&self, container: &str) -> bool {
        let inspected = self
            .docker
            .inspect_container(container, None::<InspectContainerOptions>);
        let state = inspected.await.ok().and_then(|container| container.state);
        state.and_then(|state| state.running).unwrap_or(false)
    }

    /// Events from now on, also those before the stream is first polled.
    fn events(&self, filters: Filters) -> impl Stream<Item = EventMessage> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.expect("the clock is past 1970").as_secs();
        let options = EventsOptions {
            since: Some(now.to_string()),
            filters: Some(filters),
            ..Default::default()
        };
        let events = self.docker.events(Some(options));
        events.map(|event| event.expect("the engine tells its events"))
    }
}

fn filter(key: &str, value: &str) -> Filters {
    Filters::from([(key.to_owned(), vec![value.to_owned()])])
}

async fn next(events: &mut (impl Stream<Item = EventMessage> + Unpin)) {
    events.next().await.expect("the engine's events do not end");
}
