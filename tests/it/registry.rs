//! Hooks that pull from and push to registries which ask for a login: any registry, and ECR.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;
use harness::{AtEnd, Aws, REGION, Registry, Setup, TestRepo, docker, test_image};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::fixture::{Built, Fixture, host_for_containers};

const USER: &str = "ci";
/// With all that a shell, JSON or a login could stumble over, but for what a URL forbids.
const PASSWORD: &str = r#"p: "$HOME" \ 'x' %"#;

/// The account and the registry that the emulator gives tokens for.
const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
/// The token that the emulator gives.
const ECR_TOKEN: &str = "123456789012-auth-token";

/// Pushes an image made from nothing, and pulls it again.
const PUSH_AND_PULL: &str = r#"
    image=$DOCKER_REGISTRY/app:1
    tar --create README.md | docker import - "$image" >/dev/null
    docker push --quiet "$image"
    docker rmi "$image" >/dev/null
    docker pull --quiet "$image""#;

/// A registry, and what a test leaves on the engine of its images.
struct Registered {
    registry: Registry,
    at_end: AtEnd,
}

impl Registered {
    async fn start(user: &str, password: &str) -> Self {
        Self {
            registry: Registry::start(user, password).await,
            at_end: AtEnd::new(),
        }
    }

    /// The full name of an image in the registry; it is removed from the engine at the end.
    fn image(&mut self, name: &str) -> String {
        let image = format!("{}/{name}", self.prefix());
        self.at_end.docker(&["rmi", &image]);
        image
    }

    fn prefix(&self) -> String {
        format!("{}/team", self.registry.host())
    }

    /// The service with this registry and no login.
    fn named_by(&self, setup: Setup) -> Setup {
        setup.env("DOCKER_REGISTRY", self.prefix())
    }

    /// The service with a login to this registry.
    fn used_by(&self, setup: Setup, password: &str) -> Setup {
        self.named_by(setup)
            .env("REGISTRY_USER", USER)
            .env("REGISTRY_PASS", password)
    }
}

fn assert_lacks_login(built: &Built) {
    // printf … | base64
    for secret in [PASSWORD, "Y2k6cDogIiRIT01FIiBcICd4JyAl"] {
        assert!(!built.log.contains(secret), "{}", built.log);
        assert!(!built.page.contains(secret), "{}", built.page);
    }
}

#[tokio::test]
async fn a_hook_pushes_and_pulls_without_logging_in() {
    let mut registered = Registered::start(USER, PASSWORD).await;
    let image = registered.image("app:1");
    let fixture = Fixture::plain().await;
    let setup = fixture.setup(&format!("set -eu {PUSH_AND_PULL}"));
    let built = fixture.run(registered.used_by(setup, PASSWORD)).await;
    built.assert_passed();
    assert_eq!(built.log, format!("{image}\n{image}\n"));
}

#[tokio::test]
async fn compose_and_buildx_are_logged_in_too() {
    let mut registered = Registered::start(USER, PASSWORD).await;
    let [base, by_buildx, made] =
        ["app:1", "by-buildx:1", "made:1"].map(|name| registered.image(name));
    let services = format!("services:\n  made: {{ image: '{made}', build: . }}\n");
    let (repo, sha) = TestRepo::with_files(&[
        ("README.md", "hello\n"),
        (
            "Dockerfile",
            &format!("FROM {base}\nCOPY README.md /again\n"),
        ),
        ("compose.yaml", &services),
    ]);
    let fixture = Fixture::hosting(repo, sha).await;
    let hook = format!(
        "set -eu; ( {PUSH_AND_PULL} && docker rmi {base} ) >/dev/null
        docker buildx build --quiet --pull --tag {by_buildx} --push . >/dev/null && echo pushed
        docker compose --progress quiet build --pull && docker compose --progress quiet push
        docker rmi {made} >/dev/null
        docker-compose --progress quiet pull
        docker image inspect --format '{{{{.RepoTags}}}}' {made}"
    );
    let setup = registered.used_by(fixture.setup(&hook), PASSWORD);
    let built = fixture.run(setup).await;
    built.assert_passed();
    assert_eq!(built.log, format!("pushed\n[{made}]\n"));
}

#[tokio::test]
async fn neither_the_password_nor_its_stored_form_is_shown() {
    let registered = Registered::start(USER, PASSWORD).await;
    let fixture = Fixture::plain().await;
    let hook = "env | grep REGISTRY_PASS; cat ~/.docker/config.json; \
        docker inspect --format '{{.Config.Env}}' $build_id";
    let setup = registered.used_by(fixture.setup(hook), PASSWORD);
    let built = fixture.run(setup).await;
    built.assert_passed();
    assert_lacks_login(&built);
    assert!(built.log.contains("REGISTRY_PASS=***\n"), "{}", built.log);
    assert!(built.log.contains(r#""auth":"***""#), "{}", built.log);
}

#[tokio::test]
async fn a_password_from_a_file_logs_in_and_is_not_among_the_hooks_variables() {
    let mut registered = Registered::start(USER, PASSWORD).await;
    let image = registered.image("app:1");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&file, format!("{PASSWORD}\n")).expect("written");
    let fixture = Fixture::plain().await;
    let hook = format!("set -eu {PUSH_AND_PULL}; echo \"${{REGISTRY_PASS:-none}}\"");
    let setup = registered
        .used_by(fixture.setup(&hook), PASSWORD)
        .without("REGISTRY_PASS")
        .env("REGISTRY_PASS_FILE", file.path().display().to_string());
    let built = fixture.run(setup).await;
    built.assert_passed();
    assert_eq!(built.log, format!("{image}\n{image}\nnone\n"));
}

#[tokio::test]
async fn a_wrong_password_is_an_error_of_the_hook() {
    let mut registered = Registered::start(USER, PASSWORD).await;
    registered.image("app:1");
    let fixture = Fixture::plain().await;
    let setup = fixture.setup(&format!("set -eu {PUSH_AND_PULL}"));
    let setup = registered.used_by(setup, "another password");
    let built = fixture.run(setup).await;
    assert_eq!(built.told()[1], "Failure: failed with exit code 1 after …");
    let told = "unauthorized: authentication required\n";
    assert!(built.log.ends_with(told), "{}", built.log);
    assert!(!built.log.contains("another password"), "{}", built.log);
}

#[tokio::test]
async fn a_hook_can_still_log_in_by_itself() {
    let mut registered = Registered::start(USER, PASSWORD).await;
    let image = registered.image("app:1");
    let fixture = Fixture::plain().await;
    let hook = format!(
        "set -eu
        printf %s \"$PASSWORD\" | docker login --username {USER} --password-stdin $DOCKER_REGISTRY
        {PUSH_AND_PULL}
        docker-credential-compose-ci list
        docker logout $DOCKER_REGISTRY >/dev/null
        docker-credential-compose-ci list"
    );
    let setup = registered.named_by(fixture.setup(&hook));
    let built = fixture.run(setup.env("PASSWORD", PASSWORD)).await;
    built.assert_passed();
    let host = registered.registry.host();
    let listed = format!("{image}\n{image}\n{{\"{host}\":\"{USER}\"}}\n{{}}\n");
    assert!(built.log.ends_with(&listed), "{}", built.log);
}

/// An image whose user is not root, but may use the engine.
async fn image_of_a_user(at_end: &mut AtEnd, user: &str) -> String {
    let socket = std::fs::metadata("/var/run/docker.sock").expect("the engine's socket");
    let (base, group) = (test_image(), socket.gid());
    let context = TestRepo::new();
    context.write(
        "Dockerfile",
        format!("FROM {base}\nRUN useradd --create-home somebody\nUSER {user}:{group}\n"),
    );
    let image = format!("compose-ci-test-{}", Uuid::new_v4().simple());
    at_end.docker(&["rmi", &image]);
    let path = context.path().display().to_string();
    docker(&["build", "--quiet", "--force-rm", "--tag", &image, &path]).await;
    image
}

#[tokio::test]
async fn a_user_other_than_root_is_logged_in() {
    let mut registered = Registered::start(USER, PASSWORD).await;
    let image = registered.image("app:1");
    // The second has no home.
    for user in ["somebody", "4321"] {
        let fixture = Fixture::plain().await;
        let build_image = image_of_a_user(&mut registered.at_end, user).await;
        let setup = fixture.setup(&format!("set -eu {PUSH_AND_PULL}"));
        let setup = registered.used_by(setup, PASSWORD);
        let built = fixture.run(setup.env("BUILD_IMAGE", build_image)).await;
        built.assert_passed();
        assert_eq!(built.log, format!("{image}\n{image}\n"), "{user}");
        // The next one is another image, and this one would lose its name.
        docker(&["rmi", &image]).await;
    }
}

#[tokio::test]
async fn the_build_image_itself_can_come_from_the_registry() {
    let mut registered = Registered::start(USER, PASSWORD).await;
    let build_image = registered.image("build:1");
    docker(&["tag", "debian:trixie-slim", &build_image]).await;
    let config = tempfile::tempdir().expect("a directory");
    let config = config.path().display().to_string();
    let cli = ["--config", &config];
    let (host, login) = (registered.registry.host(), ["--username", USER]);
    docker(
        &[
            &cli,
            &["login"][..],
            &login,
            &["--password", PASSWORD, &host],
        ]
        .concat(),
    )
    .await;
    docker(&[&cli[..], &["push", "--quiet", &build_image]].concat()).await;

    docker(&["rmi", &build_image]).await;
    for (password, told) in [
        ("another password", "Error: error: the build image"),
        (PASSWORD, "Success: passed in …"),
    ] {
        let fixture = Fixture::plain().await;
        let setup = fixture.setup("true").env("BUILD_IMAGE", &build_image);
        let built = fixture.run(registered.used_by(setup, password)).await;
        assert!(built.told()[1].starts_with(told), "{:?}", built.told());
    }
}

/// AWS, where containers can reach it.
struct Reachable {
    _aws: Aws,
    address: SocketAddr,
    _passing_on: AbortOnDropHandle<()>,
}

impl Reachable {
    async fn start() -> Self {
        let aws = Aws::start().await;
        let emulator = aws.endpoint_url().replace("http://", "");
        let listener = listener_for_containers().await;
        Self {
            address: listener.local_addr().expect("an address"),
            _passing_on: AbortOnDropHandle::new(tokio::spawn(pass_on(listener, emulator))),
            _aws: aws,
        }
    }

    fn used_by(&self, setup: Setup) -> Setup {
        setup
            .env("AWS_ENDPOINT_URL", format!("http://{}", self.address))
            .env("AWS_REGION", REGION)
            .env("AWS_ACCESS_KEY_ID", "an-id")
            .env("AWS_SECRET_ACCESS_KEY", "a-secret")
    }
}

async fn listener_for_containers() -> TcpListener {
    let host = SocketAddr::new(host_for_containers().await, 0);
    TcpListener::bind(host).await.expect("a free port")
}

async fn pass_on(listener: TcpListener, to: String) {
    while let Ok((mut client, _)) = listener.accept().await {
        let to = to.clone();
        tokio::spawn(async move {
            if let Ok(mut server) = TcpStream::connect(to).await {
                copy_bidirectional(&mut client, &mut server).await.ok();
            }
        });
    }
}

/// An engine that pulls nothing, and notes with which logins it is asked to.
struct AskedEngine {
    address: SocketAddr,
    logins: Arc<Mutex<Vec<Value>>>,
    _server: AbortOnDropHandle<()>,
}

impl AskedEngine {
    async fn start() -> Self {
        let listener = listener_for_containers().await;
        let logins = Arc::<Mutex<Vec<Value>>>::default();
        Self {
            address: listener.local_addr().expect("an address"),
            logins: Arc::clone(&logins),
            _server: AbortOnDropHandle::new(tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let login = asked(client).await.expect("a whole request");
                    logins.lock().expect("unlocked").extend(login);
                }
            })),
        }
    }

    fn logins(&self) -> Vec<Value> {
        self.logins.lock().expect("unlocked").clone()
    }
}

/// Answers one request, and says which login stood in it.
async fn asked(mut client: TcpStream) -> io::Result<Option<Value>> {
    let mut login = None;
    let mut lines = BufReader::new(&mut client).lines();
    while let Some(line) = lines.next_line().await?.filter(|line| !line.is_empty()) {
        if let Some(value) = line.strip_prefix("X-Registry-Auth: ") {
            let json = BASE64_URL_SAFE.decode(value).map_err(io::Error::other)?;
            login = Some(serde_json::from_slice(&json)?);
        }
    }
    let head = "HTTP/1.1 200 OK\r\napi-version: 1.41\r\n";
    let answer = format!("{head}content-length: 0\r\nconnection: close\r\n\r\n");
    client.write_all(answer.as_bytes()).await?;
    Ok(login)
}

#[tokio::test]
async fn an_image_at_ecr_is_pulled_with_a_token_and_without_a_login() {
    let aws = Reachable::start().await;
    let engine = AskedEngine::start().await;
    let fixture = Fixture::plain().await;
    let address = engine.address;
    let hook = format!(
        "set -eu; docker --host tcp://{address} pull --quiet {ECR}/app
        docker --host tcp://{address} pull --quiet registry.example.org/app"
    );
    let built = fixture.run(aws.used_by(fixture.setup(&hook))).await;
    built.assert_passed();
    let [at_ecr, elsewhere] = &engine.logins()[..] else {
        panic!("{:?}", engine.logins());
    };
    assert_eq!(at_ecr["username"], "AWS");
    assert_eq!(at_ecr["password"], ECR_TOKEN);
    assert_eq!(elsewhere, &serde_json::json!({}));
}

#[tokio::test]
async fn the_seeds_get_login_logs_in_with_ecrs_token() {
    let aws = Reachable::start().await;
    let mut registered = Registered::start("AWS", ECR_TOKEN).await;
    let image = registered.image("app:1");
    let host = registered.registry.host();
    let fixture = Fixture::plain().await;
    // The registry is not where ECR's name leads to; all the rest is as a hook has it.
    let hook = format!(
        "set -eux; eval $(aws ecr get-login | sed 's|https://{ECR}|{host}|') {PUSH_AND_PULL}"
    );
    let setup = registered.named_by(fixture.setup(&hook));
    let built = fixture.run(aws.used_by(setup)).await;
    built.assert_passed();
    assert!(built.log.contains("Login Succeeded\n"), "{}", built.log);
    assert!(built.log.ends_with(&format!("{image}\n")), "{}", built.log);
    assert!(!built.log.contains(ECR_TOKEN), "{}", built.log);
}

#[tokio::test]
async fn a_registry_that_needs_no_token_waits_for_none() {
    let fixture = Fixture::plain().await;
    // AWS's helper, which would look for credentials of the machine, leaves its log there.
    let hook = "for server in https://index.docker.io/v1/ registry.example.org public.ecr.aws; do
            echo $server | docker-credential-compose-ci get
        done; test ! -e ~/.ecr";
    let built = fixture.run(fixture.setup(hook)).await;
    built.assert_passed();
    let not_found = "credentials not found in native keychain\n";
    assert_eq!(built.log, not_found.repeat(3));
}
