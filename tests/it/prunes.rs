//! Somebody prunes the engine all the while: a build is started once, and has the end that its hook had.

use std::time::Duration;

use harness::{OneBox, PrivateEngine, docker};
use tokio::time::sleep;

use crate::fixture::{DEADLINE, Fixture, told};

const BUILDS: usize = 12;
/// The pause between two prunes of the host: `cron` makes longer ones.
const PAUSE: Duration = Duration::from_millis(50);

/// The image of the builds: the engine of a test has not much room.
const IMAGE: &str = "debian:trixie-slim";

/// What `docker container prune --force; docker volume prune --force` asks for, in an image without them.
const PRUNE: &str = r#"
for what in containers volumes; do
  perl -MIO::Socket::UNIX -we '
    my $engine = IO::Socket::UNIX->new("/var/run/docker.sock") or die "no engine";
    print $engine "POST /$ARGV[0]/prune HTTP/1.0\r\n\r\n";
    <$engine> =~ / (200|409) / or die "neither pruned nor being pruned";
  ' "$what"
done
"#;

/// Pushes that many commits at once, and returns what their statuses told.
async fn built(fixture: &mut Fixture, service: &OneBox) -> Vec<Vec<String>> {
    let mut commits = Vec::new();
    for n in 0..BUILDS {
        fixture.commit("n", &n.to_string());
        fixture.push_to(service, &format!("refs/heads/b{n}")).await;
        commits.push(fixture.sha.clone());
    }
    let mut ends = Vec::new();
    for commit in commits {
        let statuses = fixture.github.wait_for_end(&commit, DEADLINE * 2).await;
        ends.push(told(&statuses));
    }
    ends
}

async fn service(fixture: &Fixture, engine: &PrivateEngine, hook: &str) -> OneBox {
    engine.load(IMAGE).await;
    let setup = fixture.setup(hook).env("BUILD_IMAGE", IMAGE);
    let setup = setup.env("DOCKER_HOST", engine.docker_host());
    setup.env("CONCURRENCY", "3").start().await
}

#[tokio::test]
async fn hooks_that_prune_the_engine_spare_other_builds() {
    let engine = PrivateEngine::start().await;
    let mut fixture = Fixture::plain().await;
    let hook = format!("set -e; {PRUNE} ls README.md; sleep 0.3; {PRUNE}");
    let service = service(&fixture, &engine, &hook).await;
    for end in built(&mut fixture, &service).await {
        assert_eq!(end, ["Pending: building", "Success: passed in …"]);
    }
}

#[tokio::test]
async fn host_that_prunes_its_engine_spares_builds() {
    let engine = PrivateEngine::start().await;
    let mut fixture = Fixture::plain().await;
    let hook = "ls README.md && sleep 0.3; exit 3";
    let service = service(&fixture, &engine, hook).await;
    let host = engine.docker_host();
    let pruning = async {
        loop {
            docker(&["--host", &host, "container", "prune", "--force"]).await;
            docker(&["--host", &host, "volume", "prune", "--force"]).await;
            sleep(PAUSE).await;
        }
    };
    let ends = tokio::select! {
        ends = built(&mut fixture, &service) => ends,
        () = pruning => unreachable!("it goes on"),
    };
    for end in ends {
        let failed = "Failure: failed with exit code 3 after …";
        assert_eq!(end, ["Pending: building", failed]);
    }
}
