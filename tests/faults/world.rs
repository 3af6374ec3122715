//! What every row begins with, and how every build is judged.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use harness::{
    CommitState, Engine, GitHub, Hook, OneBox, PrivateEngine, Push, Queues, REGION, Setup, Status,
    Tarball, TestRepo, WEBHOOK_SECRET,
};

use shared::build::BuildId;
use uuid::Uuid;

use crate::hooks::{Hooks, Mark};

/// How long anything may take that must come. Generous: the machine may be busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// As much of an error as a line of the report has room for.
const REASON_MAX_CHARS: usize = 50;

/// The image of the hooks: it has bash, and is small.
const IMAGE: &str = "debian:trixie-slim";
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
    exit_code: u8,
}

/// A push that was accepted.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub(crate) commit: Commit,
    pub(crate) id: String,
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

    /// A commit that no git repository made, with one file, `content`; GitHub sends its tarball as
    /// it is left.
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
        let answer = service.push(&self.payload(&commit.sha)).await;
        Build {
            id: answer.build_id(),
            commit,
        }
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

/// What became of the builds of a row.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// The hook's own result was told.
    pub(crate) told: usize,
    /// An error was told.
    pub(crate) errors: Vec<String>,
    /// The same final status was posted more than once.
    repeated: usize,
    /// A log may lack its end.
    engine_loses_logs: bool,
    /// So many do.
    cut: usize,
    /// What must not be.
    pub(crate) problems: Vec<String>,
}

impl Tally {
    /// Of builds whose engine may have lost the end of what their hooks wrote.
    pub(crate) fn without_ends_of_logs() -> Self {
        Self {
            engine_loses_logs: true,
            ..Self::default()
        }
    }

    pub(crate) fn builds(&self) -> usize {
        self.told + self.errors.len() + self.problems.len()
    }

    pub(crate) fn problem(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    /// Judges a build whose row is over.
    pub(crate) fn judge(&mut self, world: &World, hooks: &Hooks, service: &OneBox, build: &Build) {
        let sha = &build.commit.sha;
        let evidence = Evidence {
            exit_code: build.commit.exit_code,
            statuses: world.github.statuses(sha),
            began: hooks.count(sha, Mark::Began),
            ended: hooks.count(sha, Mark::Ended),
            log: log(service, &build.id),
        };
        let is_cut = self.engine_loses_logs && evidence.log != Hooks::whole_log();
        match evidence.judge(self.engine_loses_logs) {
            Ok(Told::Result) if is_cut => {
                self.told += 1;
                self.cut += 1;
            }
            Ok(Told::Result) => self.told += 1,
            Ok(Told::Error(reason)) => self.errors.push(reason),
            Err(problem) => {
                let states = states(&evidence.statuses);
                self.problem(format!("{} {problem}; told: {states}", build.id));
            }
        }
        let finals = evidence.statuses.iter().filter(|status| is_final(status));
        self.repeated += usize::from(finals.count() > 1);
    }

    /// Waits until the engine holds nothing of these builds.
    ///
    /// # Panics
    /// When something is left, with its name.
    pub(crate) async fn nothing_is_left(engine: &Engine, builds: &[Build]) {
        for Build { id, .. } in builds {
            let project = id
                .parse::<BuildId>()
                .expect("a build's id")
                .compose_project();
            engine.assert_nothing_left(id, &project, DEADLINE).await;
        }
    }

    /// Takes up what another one has counted.
    pub(crate) fn add(&mut self, other: Self) {
        self.told += other.told;
        self.errors.extend(other.errors);
        self.cut += other.cut;
        self.repeated += other.repeated;
        self.problems.extend(other.problems);
    }

    /// In a few words.
    pub(crate) fn summary(&self) -> String {
        let mut summary = format!(
            "{} builds: {} told their hook's result, {} an error",
            self.builds(),
            self.told,
            self.errors.len()
        );
        let mut reasons = self.errors.clone();
        reasons.sort();
        for same in reasons.chunk_by(|one, other| one == other) {
            let reason: String = same[0].chars().take(REASON_MAX_CHARS).collect();
            summary += &format!(" [{} × {reason}]", same.len());
        }
        if self.cut > 0 {
            summary += &format!(", {} without the end of their log", self.cut);
        }
        if self.repeated > 0 {
            summary += &format!(", {} told it twice", self.repeated);
        }
        summary
    }
}

/// What was told of a build.
enum Told {
    Result,
    Error(String),
}

/// What is known of a build from outside.
struct Evidence {
    exit_code: u8,
    statuses: Vec<Status>,
    began: usize,
    ended: usize,
    log: String,
}

impl Evidence {
    /// # Errors
    /// A promise is broken: which.
    fn judge(&self, may_lack_end: bool) -> Result<Told, String> {
        if self.began > 1 {
            return Err(format!("its hook began {} times", self.began));
        }
        let is_pending = |status: &Status| !is_final(status);
        let announced = self.statuses.iter().take_while(|status| is_pending(status));
        let (_, finals) = self.statuses.split_at(announced.count());
        let Some(end) = finals.first() else {
            return Err("is lost: it has no final status".to_owned());
        };
        let is_same = |status: &Status| status.state == end.state && words(status) == words(end);
        if !finals.iter().all(is_same) {
            return Err("contradicts itself".to_owned());
        }
        let is_true = match end.state {
            CommitState::Success => self.exit_code == 0 && self.ended == 1,
            CommitState::Failure => self.exit_code != 0 && self.ended == 1,
            CommitState::Error if self.began > 0 && words(end).contains("gave up") => {
                return Err("was given up although its hook began".to_owned());
            }
            CommitState::Error if self.has_part_of_log() => return Ok(Told::Error(words(end))),
            CommitState::Error => {
                let last = self.log.lines().last();
                return Err(format!("has a log that ends in {last:?}"));
            }
            CommitState::Pending => false,
        };
        match is_true {
            false => Err("was told a false result".to_owned()),
            true if may_lack_end && self.has_part_of_log() => Ok(Told::Result),
            true if self.log != Hooks::whole_log() => Err(format!(
                "has a log of {} bytes that is not the whole one",
                self.log.len()
            )),
            true => Ok(Told::Result),
        }
    }

    /// Whether the log is the whole one without its end, and without what an engine that was killed
    /// had read and not written yet.
    fn has_part_of_log(&self) -> bool {
        let told = "\n[compose-ci: the engine lost the log from about here]\n";
        let log = self.log.strip_suffix(told).unwrap_or(&self.log);
        // What the shell says of a hook that was stopped.
        let log = log.strip_suffix("Terminated\n").unwrap_or(log);
        let whole = Hooks::whole_log();
        let pairs = log.bytes().zip(whole.bytes());
        let same = pairs
            .take_while(|(logged, written)| logged == written)
            .count();
        whole[same..].contains(&log[same..])
    }
}

fn is_final(status: &Status) -> bool {
    status.state != CommitState::Pending
}

fn words(status: &Status) -> String {
    status.description.clone().unwrap_or_default()
}

fn states(statuses: &[Status]) -> String {
    let told = statuses
        .iter()
        .map(|status| format!("{:?} {}", status.state, words(status)));
    told.collect::<Vec<_>>().join(", ")
}

/// What a build's hook has written, as it is stored.
pub(crate) fn log(service: &OneBox, build: &str) -> String {
    let path = service.data_dir().join(format!("logs/{build}.log"));
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// The commit with one file, `content`.
fn packed(sha: &str, content: &str) -> Tarball {
    Tarball::with_entries(sha, |archive| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, "hello/content", content.as_bytes())
    })
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
