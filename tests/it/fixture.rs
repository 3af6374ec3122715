//! What most tests begin with: a repository, a GitHub that hosts it, and the service.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use harness::{
    Engine, GitHub, OneBox, Push, Setup, SmtpSink, Status, Tarball, TestRepo, docker, run_to_end,
    test_image,
};
use shared::build::BuildId;

/// The repository of the tests.
pub(crate) const REPO: &str = "octo/hello";

/// The commit of a tarball that no git repository made.
pub(crate) const MADE_UP: &str = "0123456789abcdef0123456789abcdef01234567";

/// How long a build of a test may take, clean-up included. Generous: the machine may be busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A hook waits here until [`open_gate`].
pub(crate) const GATE: &str = "touch /tmp/gate; until [ -e /tmp/open ]; do sleep 0.02; done";

/// A repository with one commit on `main`, hosted.
pub(crate) struct Fixture {
    pub(crate) github: GitHub,
    pub(crate) repo: TestRepo,
    pub(crate) engine: Engine,
    pub(crate) sha: String,
}

/// A build that came to its end, and of which nothing is left on the engine.
pub(crate) struct Built {
    pub(crate) id: String,
    pub(crate) statuses: Vec<Status>,
    /// What the hook wrote, as it is stored; nothing if it never started.
    pub(crate) log: String,
    pub(crate) page: String,
}

impl Fixture {
    /// Hosts a commit of these files: path and content.
    pub(crate) async fn of(files: &[(&str, &str)]) -> Self {
        let (repo, sha) = TestRepo::with_files(files);
        Self::hosting(repo, sha).await
    }

    /// Hosts this repository, of which `sha` is the commit to push.
    pub(crate) async fn hosting(repo: TestRepo, sha: String) -> Self {
        let github = GitHub::start().await;
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

    /// A commit, [`MADE_UP`], of which GitHub sends this tarball.
    pub(crate) async fn made_up(tarball: Tarball) -> Self {
        let mut fixture = Self::plain().await;
        fixture.github.host_tarball(REPO, MADE_UP, tarball);
        fixture.sha = MADE_UP.to_owned();
        fixture
    }

    /// Commits another file, to be pushed from now on.
    pub(crate) fn commit(&mut self, path: &str, contents: &str) {
        self.repo.write(path, contents);
        self.sha = self.repo.commit("Another commit");
    }

    /// The service for this repository, with this hook.
    pub(crate) fn setup(&self, hook: &str) -> Setup {
        Setup::new(env!("CARGO_BIN_EXE_compose-ci"), &self.github, REPO).env("HOOK", hook)
    }

    /// Pushes the commit to `main`.
    pub(crate) async fn push(&self, service: &OneBox) -> String {
        self.push_to(service, "refs/heads/main").await
    }

    /// Pushes the commit to this branch or tag, by its full name.
    pub(crate) async fn push_to(&self, service: &OneBox, reference: &str) -> String {
        let push = Push {
            repo: REPO,
            reference,
            after: &self.sha,
            message: "A commit to build",
        };
        service.push(&push.payload()).await.build_id()
    }

    /// Starts a service that builds the commit.
    pub(crate) async fn run(&self, setup: Setup) -> Built {
        let service = setup.start().await;
        self.build(&service).await
    }

    /// Pushes the commit and follows the build to its end.
    pub(crate) async fn build(&self, service: &OneBox) -> Built {
        let build = self.push(service).await;
        self.finished(service, build).await
    }

    /// Waits for the final status and until nothing of the build is left on the engine.
    pub(crate) async fn finished(&self, service: &OneBox, id: String) -> Built {
        let statuses = self.github.wait_for_end(&self.sha, DEADLINE).await;
        self.assert_nothing_left(&id).await;
        Built {
            statuses,
            log: log(service, &id),
            page: service.get(&format!("/builds/{id}")).await.body,
            id,
        }
    }

    /// Waits until nothing of the build is left on the engine.
    pub(crate) async fn assert_nothing_left(&self, build: &str) {
        let project = project(build);
        self.engine
            .assert_nothing_left(build, &project, DEADLINE)
            .await;
    }

    /// The push of this commit, to be changed or delivered in another way.
    pub(crate) fn payload(&self) -> serde_json::Value {
        let push = Push {
            repo: REPO,
            reference: "refs/heads/main",
            after: &self.sha,
            message: "A commit to build",
        };
        push.payload()
    }
}

impl Built {
    /// `State: description` of each status, in order, without the time that the build took.
    pub(crate) fn told(&self) -> Vec<String> {
        told(&self.statuses)
    }

    /// Fails the test unless the build was announced and has passed.
    pub(crate) fn assert_passed(&self) {
        let told = self.told();
        assert_eq!(
            told,
            ["Pending: building", "Success: passed in …"],
            "{}",
            self.log
        );
    }
}

/// What the program says, on standard error, that is started like this and must end with exit code
/// 2 by itself.
pub(crate) async fn refused(setup: &Setup, subcommand: &str) -> String {
    let output = run_to_end(setup.command(&[subcommand]), DEADLINE).await;
    let told = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{told}");
    told
}

/// The service with mail to this sink, in the clear.
pub(crate) fn by_smtp(setup: Setup, sink: &SmtpSink) -> Setup {
    setup
        .env("SMTP_HOST", sink.address().ip().to_string())
        .env("SMTP_PORT", sink.address().port().to_string())
        .env("SMTP_TLS", "none")
        .env("SMTP_FROM", "ci@example.org")
        .env("SMTP_TO", "team@example.org")
}

/// What a build has written so far, as it is stored.
pub(crate) fn log(service: &OneBox, build: &str) -> String {
    let path = service.data_dir().join(format!("logs/{build}.log"));
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// Waits until the hook has come to the [`GATE`].
pub(crate) async fn at_gate(engine: &Engine, build: &str) {
    engine.wait_until_running(build, DEADLINE).await;
    let wait = "until [ -e /tmp/gate ]; do sleep 0.02; done";
    docker(&["exec", build, "timeout", "60", "sh", "-c", wait]).await;
}

/// Lets the hook go on that waits at the [`GATE`].
pub(crate) async fn open_gate(build: &str) {
    // Detached: the container may end before the command is told to have ended.
    docker(&["exec", "--detach", build, "touch", "/tmp/open"]).await;
}

/// Where containers find what listens on this machine.
pub(crate) async fn host_for_containers() -> IpAddr {
    let image = test_image();
    let host = ["run", "--rm", "--add-host", "host:host-gateway"];
    let hosts = ["--entrypoint", "getent", &image, "hosts", "host"];
    let found = docker(&[&host[..], &hosts].concat()).await;
    let address = found.split_whitespace().next().expect("an address");
    address.parse().expect("an address")
}

/// The compose project of a build.
pub(crate) fn project(build: &str) -> String {
    build
        .parse::<BuildId>()
        .expect("a build's id")
        .compose_project()
}

/// `State: description` of each status, in order, without the times that builds took.
pub(crate) fn told(statuses: &[Status]) -> Vec<String> {
    statuses
        .iter()
        .map(|status| {
            let description = status.description.as_deref().unwrap_or_default();
            let description = without_times(description);
            format!("{:?}: {description}", status.state)
        })
        .collect()
}

/// The text with `…` for the time that a build took, which is the machine's business.
pub(crate) fn without_times(text: &str) -> String {
    // This time is the configured one.
    if text.contains("timed out") {
        return text.to_owned();
    }
    let is_time = |word: &str| {
        let number = word.trim_end_matches(['s', 'm']).trim_start_matches('<');
        number.len() < word.len() && number.parse::<u32>().is_ok()
    };
    let mut words: Vec<&str> = text
        .split(' ')
        .map(|word| match word.strip_suffix(')') {
            Some(inner) if is_time(inner) => "…)",
            None if is_time(word) => "…",
            _ => word,
        })
        .collect();
    // Of `1m 12s` one is left.
    words.dedup_by(|next, word| *word == "…" && *next == "…");
    words.join(" ")
}
