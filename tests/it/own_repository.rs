//! compose-ci builds compose-ci: this repository's last commit, by its own compose file.

use std::path::Path;
use std::time::Duration;

use harness::{CommitState, Engine, GitHub, Push, Setup, TestRepo};

use crate::fixture::project;

const REPO: &str = "octo/compose-ci";

/// Downloading and compiling a crate and its dependencies on a busy machine.
const DEADLINE: Duration = Duration::from_secs(10 * 60);

#[tokio::test]
async fn the_one_box_builds_its_own_repository() {
    let github = GitHub::start().await;
    let own = TestRepo::clone_of(Path::new(env!("CARGO_MANIFEST_DIR")));
    let sha = own.head();
    github.host(REPO, own.path());
    let service = Setup::new(env!("CARGO_BIN_EXE_compose-ci"), &github, REPO)
        .env("HOOK", "docker compose run --rm tests")
        .start()
        .await;
    let push = Push {
        repo: REPO,
        reference: "refs/heads/main",
        after: &sha,
        message: "Whatever stands at the head",
    };
    let build = service.push(&push.payload()).await.build_id();
    let statuses = github.wait_for_end(&sha, DEADLINE).await;
    let page = service.get(&format!("/builds/{build}")).await.body;
    let last = statuses.last().map(|status| status.state);
    assert_eq!(last, Some(CommitState::Success), "{page}");
    assert!(page.contains("test result: ok"), "{page}");
    Engine::connect()
        .await
        .assert_nothing_left(&build, &project(&build), DEADLINE)
        .await;
}
