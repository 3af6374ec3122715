//! A Docker engine on another machine, as docker-machine makes them: TCP, and TLS on both sides.

use std::fs;
use std::path::Path;

use futures_util::future::join_all;
use harness::{MachineCertificates, Process, RemoteEngine, Setup, test_image};
use tempfile::TempDir;

use crate::compose;
use crate::fixture::{DEADLINE, Fixture};

/// The service that builds on the engine at this address, with these certificates.
fn at(setup: Setup, address: &str, certificates: &Path) -> Setup {
    setup
        .env("DOCKER_HOST", address)
        .env("DOCKER_TLS_VERIFY", "1")
        .env("DOCKER_CERT_PATH", certificates.display().to_string())
}

/// The one line of a service that must end with exit code 2. It listens by then, and it may have
/// waited once: see `Mismatch::of`.
async fn refusal(setup: &Setup) -> String {
    let mut service = Process::start(setup.command(&["serve"]));
    let status = service.wait_for_end(DEADLINE).await;
    let told = service.output();
    assert_eq!(status.code(), Some(2), "{told}");
    let before = [
        " INFO listening on ",
        " WARN waiting for the Docker engine ",
    ];
    let is_before = |line: &&str| before.iter().any(|event| line.contains(event));
    let lines: Vec<_> = told.lines().filter(|line| !is_before(line)).collect();
    assert_eq!(lines.len(), 1, "{told}");
    lines[0].to_owned()
}

/// The client's files of one machine, some of them replaced by those of another one.
fn mixed(machine: &Path, other: &Path, replaced: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        let from = if replaced.contains(&name) {
            other
        } else {
            machine
        };
        fs::copy(from.join(name), dir.path().join(name)).expect("copied");
    }
    dir
}

#[tokio::test]
async fn a_project_with_a_bind_mount_is_built_there() {
    let remote = RemoteEngine::start().await;
    remote.load(&test_image()).await;
    let (repo, sha) = compose::with_tests("cat greeting; echo result > result");
    let fixture = Fixture {
        engine: remote.connect().await,
        ..Fixture::hosting(repo, sha).await
    };
    let hook = "set -e
        docker info --format '{{.ID}}'
        docker compose run --rm tests 2>/dev/null; cat result";
    let setup = at(
        fixture.setup(hook),
        &remote.docker_host(),
        remote.cert_path(),
    );
    let built = fixture.run(setup).await;
    built.assert_passed();
    let there = fixture.engine.docker().info().await.expect("it answers");
    let id = there.id.expect("every engine has an id");
    assert_eq!(built.log, format!("{id}\nhello\nresult\n"));
}

#[tokio::test]
async fn certificates_that_do_not_fit_are_told_in_a_line() {
    let remote = RemoteEngine::start().await;
    let fixture = Fixture::plain().await;
    let other = MachineCertificates::new();
    let certificates = |replaced| mixed(remote.cert_path(), other.dir(), replaced);
    let (ours, theirs) = (
        certificates(&["ca.pem"]),
        certificates(&["cert.pem", "key.pem"]),
    );
    let half = certificates(&["key.pem"]);
    let address = remote.docker_host();
    let named = address.replace("127.0.0.1", "localhost");
    let told = join_all(
        [
            (&address, ours.path()),
            (&address, theirs.path()),
            (&address, half.path()),
            (&named, remote.cert_path()),
        ]
        .map(async |(address, certificates)| {
            let told = refusal(&at(fixture.setup("true"), address, certificates)).await;
            told.replace(&certificates.display().to_string(), "<dir>")
                .replace(address.trim_start_matches("tcp://"), "<address>")
        }),
    )
    .await;
    insta::assert_snapshot!(told.join("\n"), @r"
    compose-ci: DOCKER_CERT_PATH: <dir>/ca.pem: did not sign the certificate of the engine at <address>
    compose-ci: DOCKER_CERT_PATH: <dir>/cert.pem: the engine at <address> refuses it
    compose-ci: DOCKER_CERT_PATH: <dir>/key.pem: keys may not be consistent: KeyMismatch
    compose-ci: DOCKER_HOST: the certificate of the engine at <address> is for another name
    ");
}

#[tokio::test]
async fn tls_on_one_side_alone_is_told_in_a_line() {
    let remote = RemoteEngine::start().await;
    let fixture = Fixture::plain().await;
    let secure = remote.docker_host();
    // Any server that speaks HTTP will do.
    let plain = fixture.github.url().replace("http://", "tcp://");
    let without =
        at(fixture.setup("true"), &secure, remote.cert_path()).without("DOCKER_TLS_VERIFY");
    let with = at(fixture.setup("true"), &plain, remote.cert_path());
    let mut told = Vec::new();
    for (setup, address) in [(without, secure), (with, plain)] {
        let line = refusal(&setup).await;
        told.push(line.replace(address.trim_start_matches("tcp://"), "<address>"));
    }
    insta::assert_snapshot!(told.join("\n"), @r"
    compose-ci: DOCKER_TLS_VERIFY: the engine at <address> speaks TLS: set this to 1
    compose-ci: DOCKER_TLS_VERIFY: the engine at <address> does not speak TLS
    ");
}

#[tokio::test]
async fn certificates_that_are_not_there_are_named() {
    let fixture = Fixture::plain().await;
    let machine = MachineCertificates::new();
    let mut told = Vec::new();
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        let dir = mixed(machine.dir(), machine.dir(), &[]);
        fs::remove_file(dir.path().join(name)).expect("removed");
        let line = refusal(&at(fixture.setup("true"), "tcp://127.0.0.1", dir.path())).await;
        told.push(line.replace(&dir.path().display().to_string(), "<dir>"));
    }
    let home = at(fixture.setup("true"), "tcp://127.0.0.1", machine.dir());
    let home = home.without("DOCKER_CERT_PATH").env("HOME", "/nowhere");
    told.push(refusal(&home).await);
    insta::assert_snapshot!(told.join("\n"), @r"
    compose-ci: DOCKER_CERT_PATH: <dir>/ca.pem: I/O error: No such file or directory (os error 2)
    compose-ci: DOCKER_CERT_PATH: <dir>/cert.pem: I/O error: No such file or directory (os error 2)
    compose-ci: DOCKER_CERT_PATH: <dir>/key.pem: I/O error: No such file or directory (os error 2)
    compose-ci: DOCKER_CERT_PATH: /nowhere/.docker/ca.pem: I/O error: No such file or directory (os error 2)
    ");
}
