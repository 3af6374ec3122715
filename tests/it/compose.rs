//! Hooks that run compose: bind mounts, and what a project leaves behind.

use std::fs;

use harness::{AtEnd, TestRepo, docker, test_image};
use uuid::Uuid;

use crate::fixture::{DEADLINE, Fixture, log, project, told};

/// A service that waits, and tests in a bind mount of the checkout.
fn compose_file() -> String {
    let image = test_image();
    format!(
        "services:
  db:
    image: {image}
    entrypoint: [sleep, '300']
    init: true
    healthcheck: {{ disable: true }}
    volumes: ['data:/data']
  tests:
    image: {image}
    entrypoint: ['/app/tests']
    init: true
    healthcheck: {{ disable: true }}
    environment: [build_id, OTHERS]
    working_dir: /app
    volumes: ['.:/app', 'data:/data', '${{MEETING:-/tmp}}:/meeting']
    depends_on: [db]
volumes:
  data:
"
    )
}

/// A repository whose one commit has [`compose_file`] and these tests.
pub(crate) fn with_tests(tests: &str) -> (TestRepo, String) {
    let repo = TestRepo::new();
    repo.write("compose.yaml", compose_file())
        .write("greeting", "hello\n")
        .write_executable("tests", format!("#!/bin/sh\nset -e\n{tests}\n"));
    let sha = repo.commit("A project");
    (repo, sha)
}

async fn project_with_tests(tests: &str) -> Fixture {
    let (repo, sha) = with_tests(tests);
    Fixture::hosting(repo, sha).await
}

/// Counts what the build's project has on the engine, by label.
const COUNT: &str = "of=label=com.docker.compose.project=$COMPOSE_PROJECT_NAME
    echo $(docker ps -q --filter $of | wc -l) containers, \
        $(docker network ls -q --filter $of | wc -l) networks, \
        $(docker volume ls -q --filter $of | wc -l) volumes";

#[tokio::test]
async fn a_bind_mount_of_the_checkout_is_read_and_written() {
    let fixture = project_with_tests("cat greeting; echo result > result").await;
    let hook = "set -e; exec 2>/dev/null
        docker compose run --rm tests; cat result; rm result
        docker-compose run --rm tests; cat result";
    let built = fixture.run(fixture.setup(hook)).await;
    built.assert_passed();
    assert_eq!(built.log, "hello\nresult\nhello\nresult\n");
}

#[tokio::test]
async fn tests_that_fail_fail_the_build() {
    let fixture = project_with_tests("exit 7").await;
    let built = fixture.run(fixture.setup("docker-compose run tests")).await;
    assert_eq!(built.told()[1], "Failure: failed with exit code 7 after …");
}

/// What a hook leaves behind is removed, which [`Fixture::finished`] checks.
async fn leaves_services(ending: &str) -> Vec<String> {
    let fixture = project_with_tests("").await;
    let hook = format!("docker compose up --detach db 2>/dev/null; {COUNT}; {ending}");
    let setup = fixture.setup(&hook).env("BUILD_TIMEOUT", "8s");
    let built = fixture.run(setup).await;
    // The shell may add how the hook died.
    let made = "1 containers, 1 networks, 1 volumes\n";
    assert!(built.log.starts_with(made), "{}", built.log);
    built.told().split_off(1)
}

#[tokio::test]
async fn services_of_a_hook_that_passed_are_removed() {
    assert_eq!(leaves_services("true").await, ["Success: passed in …"]);
}

#[tokio::test]
async fn services_of_a_hook_that_died_are_removed() {
    assert_eq!(
        leaves_services("kill -KILL $$").await,
        ["Failure: failed with exit code 137 after …"]
    );
}

#[tokio::test]
async fn services_of_a_hook_that_ran_out_of_time_are_removed() {
    assert_eq!(
        leaves_services("sleep 60").await,
        ["Failure: timed out after 8s"]
    );
}

#[tokio::test]
async fn two_builds_of_one_project_at_once_do_not_meet() {
    // Each waits for the other where both can write, and finds itself alone in its own volume.
    let fixture = project_with_tests(
        "touch /meeting/$build_id /data/$build_id
        until [ $(ls /meeting | wc -l) = 2 ]; do sleep 0.05; done
        ls /data",
    )
    .await;
    let meeting = tempfile::tempdir().expect("a directory");
    let service = fixture
        .setup("docker compose run --rm tests 2>/dev/null")
        .env("MEETING", meeting.path().display().to_string())
        .env("CONCURRENCY", "2")
        .env("BUILD_TIMEOUT", "50s")
        .start()
        .await;
    let second_sha = fixture.repo.commit("Another commit of the same project");
    let second = Fixture {
        sha: second_sha,
        github: fixture.github.clone(),
        repo: TestRepo::new(),
        engine: fixture.engine.clone(),
    };
    let (one, other) = (fixture.push(&service).await, second.push(&service).await);
    let one = fixture.finished(&service, one).await;
    let other = second.finished(&service, other).await;
    for built in [&one, &other] {
        built.assert_passed();
        assert_eq!(built.log, format!("{}\n", built.id));
    }
    let met = fs::read_dir(meeting.path()).expect("listed").count();
    assert_eq!(met, 2);
}

#[tokio::test]
async fn what_the_ci_did_not_make_is_not_touched() {
    let mut at_end = AtEnd::new();
    let name = format!("not-of-the-ci-{}", Uuid::new_v4().simple());
    let label = format!("com.docker.compose.project={name}");
    at_end.docker(&["volume", "rm", &name]);
    at_end.docker(&["network", "rm", &name]);
    at_end.docker(&["rm", "--force", &name]);
    docker(&["volume", "create", "--label", &label, &name]).await;
    docker(&["network", "create", "--label", &label, &name]).await;
    let image = test_image();
    docker(
        &[
            "run", "--detach", "--init", "--name", &name, "--label", &label,
        ]
        .iter()
        .chain(&["--entrypoint", "sleep", &image, "300"])
        .copied()
        .collect::<Vec<_>>(),
    )
    .await;

    let fixture = project_with_tests("").await;
    let built = fixture
        .run(fixture.setup("docker compose up --detach db"))
        .await;
    built.assert_passed();

    let filter = format!("name={name}");
    let running = ["ps", "--quiet", "--filter", &filter];
    let network = ["network", "ls", "--quiet", "--filter", &filter];
    let volume = ["volume", "ls", "--quiet", "--filter", &filter];
    for list in [&running[..], &network, &volume] {
        assert_eq!(docker(list).await.lines().count(), 1, "{list:?}");
    }
}

/// Compose labels the images that it builds, and a container has the labels of its image.
#[tokio::test]
async fn a_container_that_a_hook_deploys_from_an_image_that_it_built_stays() {
    let name = format!("deployed-{}", Uuid::new_v4().simple());
    let mut at_end = AtEnd::new();
    at_end.docker(&["rmi", &name]);
    at_end.docker(&["rm", "--force", &name]);
    let image = test_image();
    let compose = format!("services:\n  app: {{ image: '{name}', build: . }}\n");
    let fixture = Fixture::of(&[
        ("compose.yaml", &compose),
        (
            "Dockerfile",
            &format!("FROM {image}\nENTRYPOINT [\"sleep\"]\n"),
        ),
    ])
    .await;
    let hook = format!(
        "set -e; exec >/dev/null 2>&1
        docker compose build; docker compose run --detach app 300
        docker run --detach --init --name {name} {name} 300"
    );
    let mut service = fixture.setup(&hook).start().await;
    let build = fixture.push(&service).await;
    let told = told(&fixture.github.wait_for_end(&fixture.sha, DEADLINE).await);
    assert_eq!(told, ["Pending: building", "Success: passed in …"]);
    // It cleans up before it ends.
    service.stop(DEADLINE).await;
    let checkout = format!("name=compose-ci-{build}");
    let checkout = ["volume", "ls", "--quiet", "--filter", &checkout];
    assert_eq!(docker(&checkout).await, "");

    let of_project = format!("label=com.docker.compose.project={}", project(&build));
    let left = ["ps", "--all", "--format", "{{.Names}}", "--filter"];
    let left = docker(&[&left[..], &[&of_project]].concat()).await;
    assert_eq!(left.trim_end(), name);
}

#[tokio::test]
async fn what_cannot_be_removed_yet_is_removed_soon_afterwards() {
    let fixture = project_with_tests("").await;
    let name = format!("beside-{}", Uuid::new_v4().simple());
    let image = test_image();
    let hook = format!(
        "exec >/dev/null 2>&1; docker compose up --detach db
        docker run --detach --init --name {name} --network ${{COMPOSE_PROJECT_NAME}}_default \\
            --entrypoint sleep {image} 300"
    );
    let mut at_end = AtEnd::new();
    at_end.docker(&["rm", "--force", &name]);
    let mut service = fixture.setup(&hook).start().await;
    let build = fixture.push(&service).await;
    fixture.github.wait_for_end(&fixture.sha, DEADLINE).await;
    service.stop(DEADLINE).await;
    service.start_again().await;
    let told = "failed to remove what is left of a build";
    service.wait_for_log(told, DEADLINE).await;
    docker(&["rm", "--force", &name]).await;
    fixture.assert_nothing_left(&build).await;
}

/// What a terminal shows of an output that ends with the proof of its end.
fn shown(output: &str) -> &str {
    let (shown, proof) = output.split_once("\x1b]compose-ci;").expect("a proof");
    assert!(proof.ends_with(";0\x07"), "{proof:?}");
    shown
}

#[tokio::test]
async fn garbage_collect_0_keeps_everything_for_a_person_to_look_at() {
    let fixture = project_with_tests("").await;
    let hook = "docker compose up --detach db 2>/dev/null; echo the log; echo made > result";
    let service = fixture
        .setup(hook)
        .env("GARBAGE_COLLECT", "0")
        .start()
        .await;
    let build = fixture.push(&service).await;
    let mut at_end = AtEnd::new();
    let project = project(&build);
    at_end.docker(&["volume", "rm", &format!("compose-ci-{build}")]);
    at_end.docker(&["volume", "rm", &format!("{project}_data")]);
    at_end.docker(&["network", "rm", &format!("{project}_default")]);
    at_end.docker(&["rm", "--force", &build, &format!("{project}-db-1")]);
    fixture.github.wait_for_end(&fixture.sha, DEADLINE).await;

    assert_eq!(log(&service, &build), "the log\n");
    assert_eq!(shown(&docker(&["logs", &build]).await), "the log\n");
    let started_again = docker(&["start", "--attach", &build]).await;
    assert_eq!(shown(&started_again), "the log\n");
    let here = tempfile::tempdir().expect("a directory");
    let here = here.path().display().to_string();
    docker(&["cp", &format!("{build}:/tarball"), &here]).await;
    let result = fs::read_to_string(format!("{here}/tarball/result"));
    assert_eq!(result.expect("copied"), "made\n");
    let db = docker(&["ps", "--quiet", "--filter", &format!("name={project}-db")]).await;
    assert_eq!(db.lines().count(), 1, "the services still run");
}
