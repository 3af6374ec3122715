//! What a build leaves on the engine: objects that others use stay for good, all others go, nameless
//! volumes too.

use harness::{AtEnd, OneBox, docker, test_image};
use uuid::Uuid;

use crate::fixture::{DEADLINE, Fixture, log, project, told};

/// The service's log names every object that it leaves to others.
const LEFT: &str = "left a network or volume of a build to the containers that use it";

fn unique(what: &str) -> String {
    format!("{what}-{}", Uuid::new_v4().simple())
}

/// A service that waits, with a nameless volume, and whatever follows.
async fn project_of(rest: &str) -> Fixture {
    let image = test_image();
    let compose = format!(
        "services:
  db:
    image: {image}
    entrypoint: [sleep, '300']
    init: true
    healthcheck: {{ disable: true }}
    volumes: ['/scratch'{rest}\n"
    );
    Fixture::of(&[("compose.yaml", &compose)]).await
}

/// Builds the commit, and stops the service: it cleans up before it ends.
async fn build(fixture: &Fixture, service: &mut OneBox) -> String {
    let build = fixture.push(service).await;
    let statuses = fixture.github.wait_for_end(&fixture.sha, DEADLINE).await;
    service.stop(DEADLINE).await;
    let log = log(service, &build);
    assert_eq!(told(&statuses)[1], "Success: passed in …", "{log}");
    build
}

async fn exists(kind: &str, name: &str) -> bool {
    let filter = format!("name={name}");
    let found = docker(&[kind, "ls", "--quiet", "--filter", &filter]).await;
    !found.trim().is_empty()
}

#[tokio::test]
async fn a_volume_that_a_deployment_uses_stays_for_good() {
    let (volume, prod) = (unique("pgdata"), unique("prod"));
    let mut at_end = AtEnd::new();
    at_end.docker(&["volume", "rm", &volume]);
    at_end.docker(&["network", "rm", &format!("{prod}_default")]);
    let deployed = format!("{prod}-db-1");
    at_end.docker(&["rm", "--force", "--volumes", &deployed]);
    let fixture = project_of(&format!(
        ", 'pgdata:/data']\nvolumes: {{ pgdata: {{ name: {volume} }} }}"
    ))
    .await;
    let hook = format!(
        "set -e; exec 2>/dev/null; docker compose up -d db; docker compose down
        docker compose -p {prod} up -d db
        docker compose -p {prod} exec -T db sh -c 'echo customers > /data/file'"
    );
    let mut service = fixture.setup(&hook).start().await;
    let build = build(&fixture, &mut service).await;
    assert!(!exists("volume", &format!("compose-ci-{build}")).await);
    let lines = service.log().matches(LEFT).count();
    assert_eq!(lines, 1, "{}", service.log());

    // Nobody uses it any more. The next start has something else to remove.
    docker(&["rm", "--force", "--volumes", &deployed]).await;
    let project = project(&build);
    let label = format!("com.docker.compose.project={project}");
    let own = format!("{project}_other");
    docker(&["volume", "create", "--label", &label, &own]).await;
    service.start_again().await;
    let removed = "removed what was left of a build";
    service.wait_for_log(removed, DEADLINE).await;
    assert!(!exists("volume", &own).await);
    let mount = format!("{volume}:/data");
    let read = ["run", "--rm", "--volume", &mount, "--entrypoint", "cat"];
    let image = test_image();
    let kept = docker(&[&read[..], &[&image, "/data/file"]].concat()).await;
    assert_eq!(kept, "customers\n");
}

#[tokio::test]
async fn a_named_network_that_others_use_stays() {
    let (network, other) = (unique("shared"), unique("other"));
    let mut at_end = AtEnd::new();
    at_end.docker(&["network", "rm", &network]);
    at_end.docker(&["rm", "--force", &other]);
    let fixture = project_of(&format!(
        "]\nnetworks: {{ default: {{ name: {network} }} }}"
    ))
    .await;
    let image = test_image();
    let hook = format!(
        "exec >/dev/null 2>&1; docker compose up -d db
        docker run -d --init --name {other} --network {network} --entrypoint sleep {image} 300"
    );
    let mut service = fixture.setup(&hook).start().await;
    let build = build(&fixture, &mut service).await;
    assert!(!exists("volume", &format!("compose-ci-{build}")).await);
    assert!(exists("network", &network).await);
    assert_eq!(service.log().matches(LEFT).count(), 1);
}

#[tokio::test]
async fn a_container_beside_the_project_pins_only_its_network() {
    let other = unique("beside");
    let mut at_end = AtEnd::new();
    at_end.docker(&["rm", "--force", &other]);
    let fixture = project_of("]").await;
    let image = test_image();
    let hook = format!(
        "exec >/dev/null 2>&1; docker compose up -d db
        docker run -d --init --name {other} --network ${{COMPOSE_PROJECT_NAME}}_default \\
            --entrypoint sleep {image} 300"
    );
    let mut service = fixture.setup(&hook).start().await;
    let build = build(&fixture, &mut service).await;
    assert!(!exists("volume", &format!("compose-ci-{build}")).await);
    let of_project = format!("label=com.docker.compose.project={}", project(&build));
    let containers = ["ps", "--all", "--quiet", "--filter", &of_project];
    assert_eq!(docker(&containers).await, "");
    assert!(exists("network", &project(&build)).await);

    docker(&["rm", "--force", &other]).await;
    service.start_again().await;
    fixture.assert_nothing_left(&build).await;
}

/// The hook prints the names of its nameless volumes, which must be gone after the build.
async fn leaves_no_nameless_volume(hook: &str) {
    let fixture = project_of("]").await;
    let hook = format!(
        "set -e; exec 2>/dev/null
        mounts() {{ docker inspect -f '{{{{range .Mounts}}}}{{{{.Name}}}} {{{{end}}}}' $(docker compose ps -aq db); }}
        {hook}"
    );
    let mut service = fixture.setup(&hook).start().await;
    let build = build(&fixture, &mut service).await;
    let told = log(&service, &build);
    let volumes: Vec<_> = told.split_whitespace().collect();
    assert!(volumes.iter().all(|volume| volume.len() == 64), "{told}");
    assert!(!volumes.is_empty());
    for volume in volumes {
        assert!(!exists("volume", volume).await, "{told}");
    }
}

#[tokio::test]
async fn a_nameless_volume_goes_after_down() {
    let hook = "docker compose up -d; mounts; docker compose down -t 0";
    leaves_no_nameless_volume(hook).await;
}

#[tokio::test]
async fn a_nameless_volume_goes_after_rm() {
    let hook =
        "docker compose up -d; mounts; docker compose kill; docker compose rm -sf >/dev/null";
    leaves_no_nameless_volume(hook).await;
}

#[tokio::test]
async fn a_nameless_volume_goes_after_forced_recreation() {
    let hook =
        "docker compose up -d; mounts; docker compose up -d -t 0 -V --force-recreate; mounts";
    leaves_no_nameless_volume(hook).await;
}

#[tokio::test]
async fn a_nameless_volume_of_a_container_never_started_goes() {
    let hook = "docker compose create; mounts; docker compose rm -f >/dev/null";
    leaves_no_nameless_volume(hook).await;
}

#[tokio::test]
async fn a_nameless_volume_is_known_after_a_restart() {
    let fixture = project_of("]").await;
    let hook = "exec 2>/dev/null; docker compose up -d
        docker inspect -f '{{range .Mounts}}{{.Name}}{{end}}' $(docker compose ps -q db)
        docker compose down -t 0; touch /tmp/gate; until [ -e /tmp/open ]; do sleep 0.02; done";
    let mut service = fixture.setup(hook).start().await;
    let id = fixture.push(&service).await;
    crate::fixture::at_gate(&fixture.engine, &id).await;
    service.kill();
    service.start_again().await;
    crate::fixture::open_gate(&id).await;
    let built = fixture.finished(&service, id).await;
    assert_eq!(built.log.trim().len(), 64, "{}", built.log);
    service.stop(DEADLINE).await;
    assert!(!exists("volume", built.log.trim()).await);
}

#[tokio::test]
async fn a_volume_that_was_there_before_stays() {
    let volume = format!("{0}{0}", Uuid::new_v4().simple());
    let mut at_end = AtEnd::new();
    at_end.docker(&["volume", "rm", &volume]);
    docker(&["volume", "create", &volume]).await;
    let fixture = project_of(&format!(
        ", 'data:/data']\nvolumes: {{ data: {{ external: true, name: '{volume}' }} }}"
    ))
    .await;
    let hook = "exec 2>/dev/null; docker compose up -d && docker compose down -t 0";
    let mut service = fixture.setup(hook).start().await;
    build(&fixture, &mut service).await;
    assert!(exists("volume", &volume).await);
}
