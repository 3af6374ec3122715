//! The image as the seed's `docker run` starts it: nothing but docker.sock mounted, the service's
//! own image for the builds, HTTPS and a hook by extending it.

use std::fs;
use std::net::SocketAddr;

use harness::{AtEnd, Certificates, Engine, GitHub, Settings, TestRepo, docker, test_image};
use reqwest::{Certificate, Client};
use serde_json::json;
use uuid::Uuid;

use crate::compose::with_tests;
use crate::fixture::{
    DEADLINE, Fixture, GATE, REPO, at_gate, host_for_containers, open_gate, project, told,
};

/// A container of the service. It is removed at the end.
struct Container {
    name: String,
    /// Where the engine publishes its port 80.
    address: SocketAddr,
    _at_end: AtEnd,
}

impl Container {
    /// `docker run` with these options, and waits until the image's own check calls it healthy.
    async fn run(fixture: &Fixture, image: &str, options: &[&str]) -> Self {
        let name = format!("compose-ci-test-{}", Uuid::new_v4().simple());
        let mut at_end = AtEnd::new();
        at_end.docker(&["rm", "--force", "--volumes", &name]);
        let token = format!("GITHUB_TOKEN={}", fixture.github.token());
        let api = format!("GITHUB_API_URL={}", fixture.github.url());
        let repo = format!("GITHUB_REPO={REPO}");
        let seeds = [
            ["--env", &token],
            ["--env", &repo],
            ["--env", &api],
            ["--volume", "/var/run/docker.sock:/var/run/docker.sock"],
            ["--publish", "127.0.0.1::80"],
        ];
        let run = ["run", "--detach", "--name", &name];
        docker(&[&run, seeds.as_flattened(), options, &[image]].concat()).await;
        let wait = "until compose-ci healthcheck; do sleep 0.1; done";
        docker(&["exec", &name, "timeout", "20", "sh", "-c", wait]).await;
        let address = docker(&["port", &name, "80/tcp"]).await;
        Self {
            address: address.trim().parse().expect("an address"),
            name,
            _at_end: at_end,
        }
    }

    /// As the seed's `curl -X POST "…/?token=$GITHUB_TOKEN" -d '{"after": "<commit>"}'`; answers
    /// the build's id.
    async fn trigger(&self, fixture: &Fixture, client: &Client, scheme: &str) -> String {
        let token = fixture.github.token();
        let url = format!("{scheme}://{}/?token={token}", self.address);
        let body = json!({ "after": fixture.sha }).to_string();
        let answer = client.post(url).body(body).send().await;
        let id = answer.expect("an answer").text().await.expect("a body");
        id.trim().to_owned()
    }

    /// Waits until a build has passed and nothing is left of it; answers its log.
    async fn passed(&self, fixture: &Fixture, build: &str) -> String {
        let statuses = fixture.github.wait_for_end(&fixture.sha, DEADLINE).await;
        let log = format!("/var/lib/compose-ci/logs/{build}.log");
        let log = docker(&["exec", &self.name, "cat", &log]).await;
        let passed = ["Pending: building", "Success: passed in …"];
        assert_eq!(told(&statuses), passed, "{log}");
        let engine = &fixture.engine;
        engine
            .assert_nothing_left(build, &project(build), DEADLINE)
            .await;
        log
    }
}

/// A repository on a GitHub that containers can reach.
async fn fixture(repo: TestRepo, sha: String) -> Fixture {
    let anywhere = SocketAddr::new(host_for_containers().await, 0);
    let settings = Settings {
        api: anywhere,
        codeload: anywhere,
        ..Settings::default()
    };
    let github = GitHub::with(settings).await.expect("it listens");
    github.host(REPO, repo.path());
    Fixture {
        github,
        repo,
        engine: Engine::connect().await,
        sha,
    }
}

/// A client that trusts this authority and nobody else.
fn client(certificates: Option<&Certificates>) -> Client {
    // It fails if there is one already, which serves as well.
    let _ = shared::net::tls::provider()
        .as_ref()
        .clone()
        .install_default();
    let authority = certificates.map(|files| {
        let pem = fs::read(files.ca()).expect("the authority's file");
        Certificate::from_pem(&pem).expect("a certificate")
    });
    Client::builder()
        .timeout(DEADLINE)
        .tls_certs_only(authority)
        .build()
        .expect("valid settings")
}

#[tokio::test]
async fn the_seeds_docker_run_builds_in_its_own_image() {
    let (repo, sha) = with_tests("cat greeting");
    let fixture = fixture(repo, sha).await;
    let hook = "HOOK=docker inspect --format '{{.Image}}' $build_id; \
        docker-compose run --rm tests 2>/dev/null";
    let container = Container::run(&fixture, &test_image(), &["--env", hook]).await;
    let build = container.trigger(&fixture, &client(None), "http").await;
    let log = container.passed(&fixture, &build).await;

    let own_image = ["inspect", "--format", "{{.Image}}", &container.name];
    let own_image = docker(&own_image).await;
    assert_eq!(log, format!("{own_image}hello\n"));

    docker(&["stop", &container.name]).await;
    let exit_code = [
        "inspect",
        "--format",
        "{{.State.ExitCode}}",
        &container.name,
    ];
    assert_eq!(docker(&exit_code).await, "0\n");
}

#[tokio::test]
async fn the_seeds_dockerfile_adds_a_certificate_and_a_hook() {
    let certificates = Certificates::new();
    let context = TestRepo::new();
    let pem = fs::read(certificates.key_and_certificate()).expect("the file");
    context
        .write("server.pem", pem)
        .write_executable("hook", "#!/bin/bash\nset -euo pipefail\ncat README.md\n")
        .write(
            "Dockerfile",
            format!(
                "FROM {}\nCOPY server.pem /certs/server.pem\nCOPY hook /hook\n",
                test_image()
            ),
        );
    let image = format!("compose-ci-test-{}", Uuid::new_v4().simple());
    let mut at_end = AtEnd::new();
    at_end.docker(&["rmi", &image]);
    let path = context.path().display().to_string();
    docker(&["build", "--quiet", "--force-rm", "--tag", &image, &path]).await;

    let (repo, sha) = TestRepo::with_files(&[("README.md", "hello\n")]);
    let fixture = fixture(repo, sha).await;
    let options = [
        "--env",
        "HOOK=/hook",
        "--env",
        "CERT_PATH=/certs/server.pem",
    ];
    let container = Container::run(&fixture, &image, &options).await;
    let client = client(Some(&certificates));
    let build = container.trigger(&fixture, &client, "https").await;
    assert_eq!(container.passed(&fixture, &build).await, "hello\n");
}

#[tokio::test]
async fn stops_restarts_and_an_upgrade_keep_the_running_build() {
    let (repo, sha) = TestRepo::with_files(&[("README.md", "hello\n")]);
    let fixture = fixture(repo, sha).await;
    let volume = format!("compose-ci-test-{}", Uuid::new_v4().simple());
    let mut at_end = AtEnd::new();
    at_end.docker(&["volume", "rm", "--force", &volume]);
    let hook = format!("HOOK=echo ran; {GATE}");
    let data = format!("{volume}:/var/lib/compose-ci");
    let options = [
        "--env",
        &hook,
        "--env",
        "DRAIN_TIMEOUT=1s",
        "--volume",
        &data,
    ];

    let old = Container::run(&fixture, &test_image(), &options).await;
    let build = old.trigger(&fixture, &client(None), "http").await;
    at_gate(&fixture.engine, &build).await;
    docker(&["stop", &old.name]).await;
    docker(&["start", &old.name]).await;
    docker(&["restart", &old.name]).await;
    docker(&["rm", "--force", &old.name]).await;
    let new = Container::run(&fixture, &test_image(), &options).await;
    open_gate(&build).await;
    assert_eq!(new.passed(&fixture, &build).await, "ran\n");
}
