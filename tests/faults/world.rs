//! What every row begins with: an engine, a GitHub with a repository, and pushes to it.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use harness::{
    Answer, CommitState, GitHub, Hook, OneBox, PrivateEngine, Push, Queues, REGION, Setup,
    SmtpSink, Tarball, TestRepo, WEBHOOK_SECRET,
};

use shared::build::BuildId;
use tokio::time::timeout;
use uuid::Uuid;

use crate::hooks::Hooks;

/// How long anything may take that must come. Generous: the machine may be busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The image of the hooks: it has bash, and is small.
pub(crate) const IMAGE: &str = "debian:trixie-slim";
const REPO: &str = "octo/hello";

/// What all rows share: an engine that nobody else uses, and the way to the hooks on it.
pub(crate) struct Bench {
    pub(crate) engine: PrivateEngine,
    pub(crate) hooks: Hooks,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let engine = PrivateEngine::start().await;
        engine.load(IMAGE).await;
        let hooks = Hooks::on(&engine);
        Self { engine, hooks }
    }
}

/// A GitHub with one repository.
pub(crate) struct World {
    pub(crate) github: GitHub,
    repo: TestRepo,
}

/// A commit, and what its hook is to end with.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub(crate) sha: String,
    pub(crate) exit_code: u8,
}

/// A push that was accepted.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub(crate) commit: Commit,
    pub(crate) id: String,
}

impl Build {
    /// The name of its compose project.
    pub(crate) fn project(&self) -> String {
        let id = self.id.parse::<BuildId>();
        id.expect("a build's id").compose_project()
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::on(GitHub::start().await)
    }

    /// With its repository on this GitHub.
    pub(crate) fn on(github: GitHub) -> Self {
        let repo = TestRepo::new();
        github.host(REPO, repo.path());
        Self { github, repo }
    }

    /// A service that builds on the bench's engine.
    pub(crate) fn setup(&self, bench: &Bench) -> Setup {
        Setup::new(env!("CARGO_BIN_EXE_compose-ci"), &self.github, REPO)
            .env("DOCKER_HOST", bench.engine.docker_host())
            .env("BUILD_IMAGE", IMAGE)
            .env("HOOK", bench.hooks.script())
            .env("LOG_LEVEL", "debug")
    }

    /// A commit whose hook ends with this code.
    pub(crate) fn commit(&self, exit_code: u8) -> Commit {
        self.repo.write("exit", exit_code.to_string());
        Commit {
            // In two repositories, two commits of one second would be the same.
            sha: self.repo.commit(&format!("Commit {}", Uuid::new_v4())),
            exit_code,
        }
    }

    /// A commit that no git repository made, with this in the file `content`, whose hook is to pass;
    /// GitHub sends its tarball as it is left.
    pub(crate) fn made_up(
        &self,
        number: usize,
        content: &str,
        leave: impl FnOnce(&mut Vec<u8>),
    ) -> Commit {
        let sha = format!("{number:040x}");
        let Tarball::Bytes(packed) = packed(&sha, content) else {
            panic!("a tarball of few entries is made of bytes")
        };
        let mut packed = packed.to_vec();
        leave(&mut packed);
        let tarball = Tarball::Bytes(packed.into());
        self.github.host_tarball(REPO, &sha, tarball);
        Commit { sha, exit_code: 0 }
    }

    /// What a push of this commit says.
    pub(crate) fn payload(&self, sha: &str) -> serde_json::Value {
        let push = Push {
            repo: REPO,
            reference: "refs/heads/main",
            after: sha,
            message: "A commit to build",
        };
        push.payload()
    }

    /// Pushes a commit, which must be accepted.
    pub(crate) async fn push(&self, service: &OneBox, commit: Commit) -> Build {
        let delivery = Uuid::new_v4().to_string();
        let answer = self.deliver(service, &delivery, &commit).await;
        Build {
            id: answer.build_id(),
            commit,
        }
    }

    /// Delivers the push of a commit, whatever it is answered with.
    pub(crate) async fn deliver(
        &self,
        service: &OneBox,
        delivery: &str,
        commit: &Commit,
    ) -> Answer {
        let payload = self.payload(&commit.sha);
        service.deliver("push", delivery, &payload).await
    }

    /// Tells GitHub of a webhook.
    pub(crate) fn webhook(&self, url: &str) -> Hook {
        self.github.create_hook(REPO, url, Some(WEBHOOK_SECRET))
    }

    /// What is wrong with a build that should have passed, for a row that needs no more evidence.
    pub(crate) fn is_not_passed(&self, commit: &Commit) -> Option<String> {
        let states = self.github.states(&commit.sha);
        let finals: Vec<_> = states
            .into_iter()
            .filter(|state| *state != CommitState::Pending)
            .collect();
        (finals != [CommitState::Success]).then(|| format!("{} was told {finals:?}", commit.sha))
    }

    /// Whether a final status was posted.
    pub(crate) fn has_ended(&self, build: &Build) -> bool {
        let states = self.github.states(&build.commit.sha);
        states.iter().any(|state| *state != CommitState::Pending)
    }
}

/// What a build's hook has written, as it is stored.
pub(crate) fn log(service: &OneBox, build: &str) -> String {
    let path = service.data_dir().join(format!("logs/{build}.log"));
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// The commit with its two files.
fn packed(sha: &str, content: &str) -> Tarball {
    Tarball::with_entries(sha, |archive| {
        [("content", content), ("exit", "0")]
            .into_iter()
            .try_for_each(|(name, text)| {
                let mut header = tar::Header::new_ustar();
                header.set_mode(0o644);
                header.set_size(text.len() as u64);
                let path = format!("hello/{name}");
                archive.append_data(&mut header, path, text.as_bytes())
            })
    })
}

/// How many mails have arrived that tell of this build, which their last line names.
pub(crate) fn mails_of(sink: &SmtpSink, build: &Build) -> usize {
    let mails = sink.mails();
    let of_build = mails.iter().filter(|mail| mail.text.contains(&build.id));
    of_build.count()
}

/// Waits until a mail tells of this build; whether one does.
pub(crate) async fn has_mail_of(sink: &SmtpSink, build: &Build, deadline: Duration) -> bool {
    let arrived = async {
        let mut count = sink.mails().len();
        while mails_of(sink, build) == 0 {
            count += 1;
            sink.wait_for_mails(count, 2 * deadline).await;
        }
    };
    timeout(deadline, arrived).await.is_ok()
}

/// The service with mail to a server at this address, in the clear.
pub(crate) fn by_mail(setup: Setup, server: SocketAddr) -> Setup {
    setup
        .env("SMTP_HOST", server.ip().to_string())
        .env("SMTP_PORT", server.port().to_string())
        .env("SMTP_TLS", "none")
        .env("SMTP_FROM", "ci@example.org")
        .env("SMTP_TO", "team@example.org")
}

/// The service with its queue at this SQS.
pub(crate) fn by_sqs(setup: Setup, queues: &Queues, endpoint_url: &str) -> Setup {
    setup
        .env("QUEUE_URL", &queues.url)
        .env("AWS_ENDPOINT_URL", endpoint_url)
        .env("AWS_REGION", REGION)
        .env("AWS_ACCESS_KEY_ID", "an-id")
        .env("AWS_SECRET_ACCESS_KEY", "a-secret")
}

/// The service with its queue at this SQS, and its claims in this bucket.
pub(crate) fn by_store(setup: Setup, queues: &Queues, endpoint_url: &str, bucket: &str) -> Setup {
    by_sqs(setup, queues, endpoint_url).env("STORE_URL", format!("s3://{bucket}"))
}
