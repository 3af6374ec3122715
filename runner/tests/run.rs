//! The runner on a real Docker engine: each way of a build to its end.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the engine of the tests is named by the environment, and one test runs this program again"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bollard::query_parameters::LogsOptionsBuilder;
use bytes::Bytes;
use compose_ci_runner::cleanup::{self, InUse, Known};
use compose_ci_runner::engine::Phase;
use compose_ci_runner::{Engine, Obstacle, Secrets, Sink, Source, Spec, Stop, run};
use futures_util::{FutureExt, StreamExt, stream};
use harness::{AtEnd, SmallDisk, Tarball, docker, run_to_end};
use shared::build::{BuildError, BuildId, BuildRequest, CommitSha, ForgeKind, Outcome, StopReason};
use shared::config::{EngineConfig, HookConfig};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

const IMAGE: &str = "debian:trixie-slim";
const COMMIT: &str = "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c";
const DEADLINE: Duration = Duration::from_secs(60);
/// A hook that waits to be stopped. It says more than is held back for the longest secret.
const WAITS: &str = "echo the hook has begun; exec sleep 600";

/// One build, whose objects go away with it.
struct Build {
    engine: Engine,
    observer: harness::Engine,
    spec: Spec,
    stop: Stop,
    directory: TempDir,
    _at_end: AtEnd,
}

impl Build {
    async fn of(hook: &str) -> Self {
        let id = BuildId::random();
        let mut at_end = AtEnd::new();
        at_end.docker(&["volume", "rm", "--force", &format!("compose-ci-{id}")]);
        at_end.docker(&["rm", "--force", "--volumes", &id.to_string()]);
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("checkout")).expect("made");
        let engine = Engine::new(&EngineConfig::Unix { socket: socket() }).expect("a socket");
        Self {
            engine: engine.negotiate().await.expect("an engine"),
            observer: harness::Engine::connect().await,
            spec: spec(id, hook),
            stop: Stop::default(),
            directory,
            _at_end: at_end,
        }
    }

    fn name(&self) -> String {
        self.spec.request.id.to_string()
    }

    fn checkout(&self) -> PathBuf {
        self.directory.path().join("checkout")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("build.log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_path()).expect("a log")
    }

    async fn run(&self) -> Result<Outcome, Obstacle> {
        self.run_from(Source::Directory(&self.checkout())).await
    }

    async fn run_from(&self, source: Source<'_>) -> Result<Outcome, Obstacle> {
        let sink = Sink::file(self.log_path());
        self.run_with(source, &sink, async || Ok(())).await
    }

    async fn run_into(&self, sink: &Sink) -> Result<Outcome, Obstacle> {
        let checkout = self.checkout();
        let source = Source::Directory(&checkout);
        self.run_with(source, sink, async || Ok(())).await
    }

    /// Runs it with nothing that an adopted build needs.
    async fn adopt(&self) -> Result<Outcome, Obstacle> {
        self.adopt_into(&Sink::file(self.log_path())).await
    }

    async fn adopt_into(&self, sink: &Sink) -> Result<Outcome, Obstacle> {
        let source = Source::Tarball {
            open: async { panic!("an adopted build has its checkout") }.boxed(),
            commit: &commit(),
        };
        let before_start = async || panic!("an adopted build has started");
        self.run_with(source, sink, before_start).await
    }

    async fn run_with(
        &self,
        source: Source<'_>,
        sink: &Sink,
        before_start: impl AsyncFnOnce() -> Result<(), Obstacle>,
    ) -> Result<Outcome, Obstacle> {
        let (engine, spec, stop) = (&self.engine, &self.spec, &self.stop);
        let ended = in_time(run(engine, spec, source, sink, stop, before_start)).await;
        ended.map(|ended| ended.outcome)
    }

    /// Waits until the hook has written something.
    async fn has_begun(&self) {
        let name = self.name();
        self.observer.wait_until_running(&name, DEADLINE).await;
        let options = LogsOptionsBuilder::default()
            .follow(true)
            .stdout(true)
            .build();
        let mut output = self.observer.docker().logs(&name, Some(options));
        let first = tokio::time::timeout(DEADLINE, output.next()).await;
        first.expect("in time").expect("output").expect("readable");
    }

    /// Requests the end once the hook has begun.
    async fn stop_once_begun(&self, reason: StopReason) {
        self.has_begun().await;
        assert!(self.stop.request(reason));
    }

    /// Runs it until it is left to the next worker.
    async fn leave_running(&self) {
        let stopping = self.stop_once_begun(StopReason::Shutdown);
        let (left, ()) = tokio::join!(self.run(), stopping);
        assert_eq!(left, Err(Obstacle::Stopped(StopReason::Shutdown)));
    }

    async fn is_running(&self) -> bool {
        let found = self.engine.inspect(&self.name()).await;
        found.is_ok_and(|container| container.phase == Phase::Running)
    }
}

fn spec(id: BuildId, hook: &str) -> Spec {
    let request = BuildRequest {
        forge: ForgeKind::Github,
        id,
        repo: "octo/hello".parse().expect("a repository"),
        revision: COMMIT.parse().expect("a revision"),
        git_ref: None,
    };
    let hook = HookConfig {
        command: hook.into(),
        env: BTreeMap::new(),
        image: None,
        registry: None,
        timeout: DEADLINE,
        memory_bytes: None,
        nano_cpus: None,
        pids: 4096,
        log_limit_bytes: 1 << 20,
        garbage_collect: true,
        rerun_interrupted: false,
    };
    Spec {
        request,
        commit: commit(),
        build_url: None,
        hook,
        image: IMAGE.into(),
        socket: socket(),
        secrets: Secrets::new(&["hunter2".into()]),
        may_have_begun: false,
    }
}

fn commit() -> CommitSha {
    COMMIT.parse().expect("a commit")
}

/// The engine's socket, as the harness finds it.
fn socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let socket = host.strip_prefix("unix://");
    socket.unwrap_or("/var/run/docker.sock").into()
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(DEADLINE, work).await;
    done.expect("it ends in time")
}

fn error(error: BuildError) -> Result<Outcome, Obstacle> {
    Ok(Outcome::Error(error))
}

/// Every reason that a caller gives, and the end of a build that meets it.
fn reasons() -> Vec<(StopReason, Result<Outcome, Obstacle>)> {
    let (by, lack) = (commit(), "disk full (no room)".to_owned());
    let left = |reason: StopReason| (reason.clone(), Err(Obstacle::Stopped(reason)));
    vec![
        (
            StopReason::Superseded { by: by.clone() },
            Ok(Outcome::Superseded { by }),
        ),
        (
            StopReason::Cancelled { by: "jane".into() },
            Ok(Outcome::Cancelled { by: "jane".into() }),
        ),
        (
            StopReason::DiskFull { lack: lack.clone() },
            error(BuildError::DiskFull(lack)),
        ),
        left(StopReason::LeaseLost),
        left(StopReason::Shutdown),
    ]
}

#[tokio::test]
async fn directory_is_built_logged_and_removed() {
    let build = Build::of("cat greeting; readlink link; ls -l script; echo $commit hunter2").await;
    fs::write(build.checkout().join("greeting"), "hello\n").expect("written");
    fs::write(build.checkout().join("script"), "").expect("written");
    symlink("greeting", build.checkout().join("link")).expect("linked");

    let (checkout, sink) = (build.checkout(), Sink::file(build.log_path()).and_stdout());
    let (engine, spec, stop) = (build.engine.clone(), build.spec.clone(), build.stop.clone());
    let started = std::sync::Arc::new(Notify::new());
    let start = started.clone();
    // As a worker does, which runs several builds.
    let running = tokio::spawn(async move {
        let source = Source::Directory(&checkout);
        let before_start = async || {
            start.notify_one();
            Ok(())
        };
        run(&engine, &spec, source, &sink, &stop, before_start).await
    });
    let ended = in_time(running).await.expect("no panic");
    let ended = ended.expect("an end");
    assert_eq!(ended.outcome, Outcome::Passed);
    assert!(ended.ran_for.is_some_and(|time| time < DEADLINE));
    in_time(started.notified()).await;
    let log = build.log();
    assert!(
        log.starts_with("hello\ngreeting\n-rw-r--r-- 1 root root 0 "),
        "{log}"
    );
    assert!(log.ends_with(&format!("{COMMIT} ***\n")), "{log}");

    let id = build.spec.request.id;
    let (known, mut in_use) = (Known::default(), InUse::default());
    let removed = cleanup::remove(&build.engine, id, &known, &mut in_use);
    removed.await.expect("removed");
    let removed = cleanup::remove_checkout(&build.engine, id);
    removed.await.expect("removed");
    let (name, project) = (build.name(), id.compose_project());
    let nothing_left = build
        .observer
        .assert_nothing_left(&name, &project, DEADLINE);
    nothing_left.await;
}

#[tokio::test]
async fn log_reaches_standard_output_once() {
    let mut program = Command::new(std::env::current_exe().expect("this program"));
    program.args(["--exact", "--nocapture", "--test-threads=1"]);
    program.args([
        "directory_is_built_logged_and_removed",
        "standard_output_alone_is_a_sink",
    ]);
    let output = run_to_end(program, DEADLINE).await;
    let printed = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{printed}");
    for text in ["hello\ngreeting\n", " ***\n", "printed\n"] {
        assert_eq!(printed.matches(text).count(), 1, "{printed}");
    }
}

#[tokio::test]
async fn standard_output_alone_is_a_sink() {
    let build = Build::of("echo printed").await;
    assert_eq!(build.run_into(&Sink::stdout()).await, Ok(Outcome::Passed));
}

/// A tarball of the commit, which has one file.
fn tarball() -> Bytes {
    let fill = |tar: &mut tar::Builder<_>| {
        let mut header = tar::Header::new_gnu();
        header.set_size(6);
        header.set_mode(0o644);
        tar.append_data(&mut header, "top/greeting", &b"hello\n"[..])
    };
    match Tarball::with_entries(COMMIT, fill) {
        Tarball::Bytes(whole) => whole,
        _ => unreachable!("it was filled"),
    }
}

#[tokio::test]
async fn tarball_of_the_commit_is_built() {
    let build = Build::of("cat greeting; exit 3").await;
    let (commit, whole) = (commit(), tarball());
    let from = |chunks: Vec<std::io::Result<Bytes>>| Source::Tarball {
        open: future::ready(Ok(stream::iter(chunks).boxed())).boxed(),
        commit: &commit,
    };

    let broken = vec![
        Ok(whole.slice(..20)),
        Err(std::io::ErrorKind::BrokenPipe.into()),
    ];
    assert_eq!(
        build.run_from(from(broken)).await,
        Err(Obstacle::SourceBroke)
    );
    let cut = BuildError::Tarball("the tarball is damaged or cut short".into());
    let short = vec![Ok(whole.slice(..20))];
    assert_eq!(build.run_from(from(short)).await, Err(Obstacle::Final(cut)));
    // The container of an attempt that did not start it is replaced.
    let built = build.run_from(from(vec![Ok(whole)])).await;
    assert_eq!(built, Ok(Outcome::Failed { exit_code: 3 }));
    assert_eq!(build.log(), "hello\n");
}

#[tokio::test]
async fn stop_before_the_start_starts_nothing() {
    for (reason, end) in reasons() {
        let build = Build::of("echo ran").await;
        build.stop.request(reason.clone());
        assert_eq!(build.adopt().await, end);
        assert!(build.engine.inspect(&build.name()).await.is_err());

        let build = Build::of("echo ran").await;
        let (commit, opened) = (commit(), Notify::new());
        let open = async {
            opened.notify_one();
            future::pending().await
        };
        let source = Source::Tarball {
            open: open.boxed(),
            commit: &commit,
        };
        let stopping = async {
            opened.notified().await;
            build.stop.request(reason.clone());
        };
        let (ended, ()) = tokio::join!(build.run_from(source), stopping);
        assert_eq!(ended, end);
        assert!(!build.log_path().exists(), "{reason:?}");
    }
}

#[tokio::test]
async fn stopped_hook_ends_by_the_reason() {
    for (reason, end) in reasons() {
        let build = Build::of(WAITS).await;
        let stopping = build.stop_once_begun(reason.clone());
        let (ended, ()) = tokio::join!(build.run(), stopping);
        assert_eq!(ended, end);
        assert!(
            build.log().starts_with("the hook has begun\n"),
            "{reason:?}"
        );
        let is_left = reason == StopReason::Shutdown;
        assert_eq!(build.is_running().await, is_left, "{reason:?}");
    }
}

#[tokio::test]
async fn hook_is_stopped_after_its_time() {
    let mut build = Build::of(WAITS).await;
    build.spec.hook.timeout = Duration::from_secs(1);
    assert_eq!(build.run().await, Ok(Outcome::TimedOut { timeout_s: 1 }));
    assert!(!build.is_running().await);
}

#[tokio::test]
async fn obstacle_before_the_start_starts_nothing() {
    let build = Build::of("echo ran").await;
    let (checkout, sink) = (build.checkout(), Sink::file(build.log_path()));
    let obstacle = Obstacle::Transient("no ledger".into());
    let refuse = async || Err(obstacle.clone());
    let refused = build.run_with(Source::Directory(&checkout), &sink, refuse);
    assert_eq!(refused.await, Err(obstacle.clone()));
    assert!(!build.log_path().exists());
}

#[tokio::test]
async fn hook_that_did_not_begin_is_told_from_one_that_did() {
    let build = Build::of("echo ran").await;
    let (checkout, sink, name) = (build.checkout(), Sink::file(build.log_path()), build.name());
    // Just before the hook is told to begin.
    let remove = async || {
        docker(&["rm", "--force", &name]).await;
        Err(Obstacle::Unrecorded("this worker is too late".into()))
    };
    let late = build.run_with(Source::Directory(&checkout), &sink, remove);
    assert!(matches!(late.await, Err(Obstacle::Unrecorded(_))));
    let kill = async || {
        docker(&["kill", &name]).await;
        Ok(())
    };
    let killed = build.run_with(Source::Directory(&checkout), &sink, kill);
    let why = "the build container ended before the hook began (exit code 137)";
    assert_eq!(killed.await, Err(Obstacle::NotStarted(why.into())));
    assert_eq!(build.run().await, Ok(Outcome::Passed));
    assert_eq!(build.log(), "ran\n");
}

#[tokio::test]
async fn container_that_is_removed_before_the_checkout_is_the_callers_to_make_anew() {
    let build = Build::of("echo ran").await;
    let (commit, name) = (commit(), build.name());
    let open = async {
        docker(&["rm", "--force", &name]).await;
        Ok(stream::iter([Ok(tarball())]).boxed())
    };
    let source = Source::Tarball {
        open: open.boxed(),
        commit: &commit,
    };
    let removed = build.run_from(source).await;
    assert!(matches!(removed, Err(Obstacle::Removed(_))), "{removed:?}");
    assert_eq!(build.run().await, Ok(Outcome::Passed));
}

#[tokio::test]
async fn container_of_a_worker_that_went_away_begins_nothing() {
    let mut build = Build::of("echo ran").await;
    let (commit, stop) = (commit(), build.stop.clone());
    let open = async {
        stop.request(StopReason::Shutdown);
        future::pending().await
    };
    let source = Source::Tarball {
        open: open.boxed(),
        commit: &commit,
    };
    let left = build.run_from(source).await;
    assert_eq!(left, Err(Obstacle::Stopped(StopReason::Shutdown)));
    let name = build.name();
    build.observer.wait_until_ended(&name, DEADLINE).await;
    build.stop = Stop::default();
    assert_eq!(build.run().await, Ok(Outcome::Passed));
    assert_eq!(build.log(), "ran\n");
}

#[tokio::test]
async fn adopted_build_has_the_whole_log() {
    let mut build = Build::of("echo one; until [ -e go ]; do sleep 0.1; done; echo two").await;
    build.leave_running().await;
    assert_eq!(build.log(), "one\n");

    build.stop = Stop::default();
    build.spec.may_have_begun = true;
    docker(&["exec", &build.name(), "touch", "/tarball/go"]).await;
    assert_eq!(build.adopt().await, Ok(Outcome::Passed));
    assert_eq!(build.log(), "one\ntwo\n");
    // An engine's answer that comes too late for one worker is there for the next.
    assert_eq!(build.adopt().await, Ok(Outcome::Passed));
    assert_eq!(build.log(), "one\ntwo\n");
}

#[tokio::test]
async fn adopted_build_can_be_stopped() {
    let mut build = Build::of(WAITS).await;
    build.leave_running().await;
    for (reason, end) in reasons().into_iter().rev() {
        build.stop = Stop::default();
        build.stop.request(reason);
        assert_eq!(build.adopt().await, end);
    }
    assert!(!build.is_running().await);
}

#[tokio::test]
async fn hooks_own_end_counts_before_a_stop() {
    let mut build = Build::of("echo begun; until [ -e go ]; do sleep 0.1; done").await;
    build.leave_running().await;
    docker(&["exec", &build.name(), "touch", "/tarball/go"]).await;
    build
        .observer
        .wait_until_ended(&build.name(), DEADLINE)
        .await;
    build.stop = Stop::default();
    build.stop.request(StopReason::Superseded { by: commit() });
    assert_eq!(build.adopt().await, Ok(Outcome::Passed));
}

#[tokio::test]
async fn begun_build_without_container_is_gone() {
    let mut build = Build::of("echo again").await;
    build.spec.may_have_begun = true;
    // As a worker leaves them that is killed while it records once more.
    fs::write(build.log_path(), "one").expect("written");
    fs::write(build.log_path().with_extension("earlier"), "one two").expect("written");
    let gone = Err(Obstacle::Final(BuildError::ContainerGone));
    assert_eq!(build.adopt().await, gone);
    let log = "one two\n[compose-ci: the engine lost the log from about here]\n";
    assert_eq!(build.log(), log);

    build.spec.hook.rerun_interrupted = true;
    assert_eq!(build.run().await, Ok(Outcome::Passed));
    assert_eq!(build.log(), "again\n");
}

#[tokio::test]
async fn begin_mark_tells_of_a_killed_engine() {
    let mut build = Build::of("echo again").await;
    let name = build.name();
    let label = format!("compose-ci.build={name}");
    docker(&["create", "--name", &name, "--label", &label, IMAGE]).await;
    let ours = build.checkout().join("ours");
    fs::create_dir(&ours).expect("made");
    fs::write(ours.join("hook.begun"), "").expect("written");
    let ours = ours.to_str().expect("text");
    docker(&["cp", ours, &format!("{name}:/.compose-ci")]).await;
    let killed = Err(Obstacle::Final(BuildError::EngineKilled));
    assert_eq!(build.adopt().await, killed);

    build.spec.hook.rerun_interrupted = true;
    assert_eq!(build.run().await, Ok(Outcome::Passed));
}

#[tokio::test]
async fn removed_container_ends_the_build() {
    let build = Build::of(WAITS).await;
    let removing = async {
        build.has_begun().await;
        docker(&["rm", "--force", &build.name()]).await;
    };
    let (ended, ()) = tokio::join!(build.run(), removing);
    assert_eq!(ended, error(BuildError::ContainerRemoved));
}

#[tokio::test]
async fn container_that_another_worker_removed_is_transient() {
    let mut build = Build::of(WAITS).await;
    build.leave_running().await;
    build.stop = Stop::default();
    // A pipe tells when the log is recorded again.
    let pipe = build.directory.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("it is installed").success());
    let open = File::options().read(true).write(true).open(&pipe);
    let pipe_end = open.expect("it is there");
    let (sink, name) = (Sink::file(&pipe), build.name());
    let mut reader = pipe_end.try_clone().expect("shared");
    let removing = async {
        let recorded = spawn_blocking(move || reader.read_exact(&mut [0]));
        recorded.await.expect("no panic").expect("a log");
        docker(&["rm", "--force", &name]).await;
    };
    let (ended, ()) = tokio::join!(build.adopt_into(&sink), removing);
    assert!(matches!(ended, Err(Obstacle::Transient(_))), "{ended:?}");
}

#[tokio::test]
async fn missing_image_is_left_to_the_caller() {
    let mut build = Build::of("echo ran").await;
    build.spec.image = "compose-ci.invalid/absent:1".into();
    assert_eq!(build.adopt().await, Err(Obstacle::NoImage));
}

#[tokio::test]
async fn somebody_elses_container_keeps_its_name() {
    let build = Build::of("echo ran").await;
    let name = build.name();
    docker(&["create", "--name", &name, IMAGE]).await;
    let taken = BuildError::NameTaken { name: name.clone() };
    assert_eq!(build.adopt().await, Err(Obstacle::Final(taken)));
    assert!(build.engine.inspect(&name).await.is_ok());
}

#[tokio::test]
async fn full_disk_of_the_log_stops_the_hook() {
    let build = Build::of("echo begun; yes").await;
    let disk = SmallDisk::mount();
    disk.fill();
    let sink = Sink::file(disk.path().join("build.log"));
    let lack = "disk full (no space left under DATA_DIR; free some)".to_owned();
    let full = error(BuildError::DiskFull(lack));
    assert_eq!(build.run_into(&sink).await, full);
    assert!(!build.is_running().await);
}

#[tokio::test]
async fn log_without_a_directory_stops_the_hook() {
    let build = Build::of(WAITS).await;
    // Nobody can make a directory there.
    let sink = Sink::file("/proc/nowhere/build.log");
    assert_eq!(build.run_into(&sink).await, error(BuildError::LogLost));
    assert!(!build.is_running().await);
}

#[tokio::test]
async fn engine_names_the_directory_of_its_volumes() {
    let build = Build::of("echo ran").await;
    let found = build.engine.volumes_dir().await.expect("an answer");
    let volumes = found.expect("the engine tells");
    assert!(
        volumes.is_absolute() && volumes.ends_with("volumes"),
        "{volumes:?}"
    );
}
