//! What a hook makes that runs `docker compose up`. There is no docker in the image of the hooks, so
//! the suite makes it in their place, with the labels that compose sets.

use std::collections::HashMap;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, HostConfig, NetworkCreateRequest, VolumeCreateRequest};
use bollard::query_parameters::{CreateContainerOptionsBuilder, StartContainerOptions};
use harness::Engine;

use crate::world::{Build, IMAGE};

const PROJECT_LABEL: &str = "com.docker.compose.project";
/// Compose has it on containers alone.
const CONTAINER_LABEL: &str = "com.docker.compose.oneoff";

/// Makes a network, a volume and a container that runs until it is removed.
///
/// # Errors
/// Somebody has removed one of them meanwhile, in spite of the hook that runs.
pub(crate) async fn up(engine: &Engine, build: &Build) -> Result<(), String> {
    let made = make(engine.docker(), &build.project()).await;
    made.map_err(|error| format!("{}: compose up: {error}", build.id))
}

async fn make(docker: &Docker, project: &str) -> Result<(), Error> {
    let labels = HashMap::from([(PROJECT_LABEL.to_owned(), project.to_owned())]);
    let network = format!("{project}_default");
    let volume = format!("{project}_data");
    docker
        .create_network(NetworkCreateRequest {
            name: network.clone(),
            labels: Some(labels.clone()),
            ..Default::default()
        })
        .await?;
    docker
        .create_volume(VolumeCreateRequest {
            name: Some(volume.clone()),
            labels: Some(labels.clone()),
            ..Default::default()
        })
        .await?;
    let web = format!("{project}-web-1");
    let mut labels = labels;
    labels.insert(CONTAINER_LABEL.to_owned(), "False".to_owned());
    let options = CreateContainerOptionsBuilder::default().name(&web).build();
    let body = ContainerCreateBody {
        image: Some(IMAGE.to_owned()),
        cmd: Some(["sleep", "infinity"].map(str::to_owned).into()),
        labels: Some(labels),
        host_config: Some(HostConfig {
            network_mode: Some(network),
            binds: Some(vec![format!("{volume}:/data")]),
            ..Default::default()
        }),
        ..Default::default()
    };
    docker.create_container(Some(options), body).await?;
    docker
        .start_container(&web, None::<StartContainerOptions>)
        .await
}
