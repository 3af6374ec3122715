//! What most tests begin with: a repository, a GitHub that hosts it, and the service.

use std::time::Duration;

use harness::{Engine, GitHub, OneBox, Push, Setup, Status, TestRepo};
use shared::build::BuildId;

/// The repository of the tests.
pub(crate) const REPO: &str = "octo/hello";

/// How long a build of a test may take, clean-up included. Generous: the machine may be busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A repository with one commit on `main`, hosted.
pub(crate) struct Fixture {
    pub(crate) github: GitHub,
    pub(crate) repo: TestRepo,
    pub(crate) engine: Engine,
    pub(crate) sha: String,
}

impl Fixture {
    /// Hosts a commit of these files: path and content.
    pub(crate) async fn of(files: &[(&str, &str)]) -> Self {
        let github = GitHub::start().await;
        let (repo, sha) = TestRepo::with_files(files);
        github.host(REPO, repo.path());
        Self {
            github,
            repo,
            engine: Engine::connect().await,
            sha,
        }
    }

    /// A commit that holds one file and nothing to build.
    pub(crate) async fn plain() -> Self {
        Self::of(&[("README.md", "hello\n")]).await
    }

    /// The service for this repository, with this hook.
    pub(crate) fn setup(&self, hook: &str) -> Setup {
        Setup::new(env!("CARGO_BIN_EXE_compose-ci"), &self.github, REPO).env("HOOK", hook)
    }

    /// Pushes the commit to `main`.
    pub(crate) async fn push(&self, service: &OneBox) -> String {
        let push = Push {
            repo: REPO,
            reference: "refs/heads/main",
            after: &self.sha,
            message: "A commit to build",
        };
        service.push(&push.payload()).await.build_id()
    }

    /// Waits for the final status and until nothing of the build is left on the engine.
    pub(crate) async fn end_of(&self, build: &str) -> Vec<Status> {
        let statuses = self.github.wait_for_end(&self.sha, DEADLINE).await;
        self.engine
            .assert_nothing_left(build, &project(build), DEADLINE)
            .await;
        statuses
    }
}

/// The compose project of a build.
pub(crate) fn project(build: &str) -> String {
    build
        .parse::<BuildId>()
        .expect("a build's id")
        .compose_project()
}

/// `state: description` of each status, in order.
pub(crate) fn told(statuses: &[Status]) -> Vec<String> {
    statuses
        .iter()
        .map(|status| {
            let description = status.description.as_deref().unwrap_or_default();
            format!("{:?}: {description}", status.state)
        })
        .collect()
}
