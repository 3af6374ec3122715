//! Each single page of both databases is overwritten while the service is away.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use harness::{CommitState, EngineProxy, OneBox, Process, Setup, listening_address};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, Build, DEADLINE, World};

const PAGE_BYTES: usize = 4096;
/// So many builds stand in the records.
const ENDED: usize = 6;
/// So many pushes wait in the queue.
const WAITING: usize = 12;

/// What a page is overwritten with.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Noise,
    Zeros,
    /// What a write to a wrong place leaves.
    NextPage,
}

/// The data of a service that was stopped.
struct Stopped {
    data_dir: TempDir,
    sound: Vec<(PathBuf, Vec<u8>)>,
    ended: Vec<Build>,
    waiting: Vec<Build>,
}

/// The next start ends with exit code 2 and says what to do, or all that it says is true.
pub(crate) async fn overwritten(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let world = World::new().await;
    let stopped = Stopped::new(&world, bench).await;
    let mut cases = stopped.cases();
    dice.shuffle(&mut cases);
    cases.truncate(budget.times(cases.len()));
    let planned = cases.len();
    let (mut done, mut refused, mut problems) = (0, 0, Vec::new());
    for (database, page, damage) in cases {
        if budget.is_spent() {
            break;
        }
        stopped.put_back();
        overwrite(&database, page, damage, &mut dice);
        match stopped.trial(&world, bench, &database).await {
            Ok(true) => refused += 1,
            Ok(false) => {}
            Err(problem) => {
                let name = database.display();
                problems.push(format!("{name}, page {page}, {damage:?}: {problem}"));
            }
        }
        done += 1;
    }
    Seen {
        done,
        planned,
        what: "overwritten pages".to_owned(),
        saw: format!("{refused} refused at the start"),
        problems,
    }
}

impl Stopped {
    async fn new(world: &World, bench: &Bench) -> Self {
        let data_dir = tempfile::tempdir().expect("a temporary directory");
        let mut service = setup(world, bench, data_dir.path()).start().await;
        let ended = push(world, &service, ENDED).await;
        for build in &ended {
            world.github.wait_for_end(&build.commit.sha, DEADLINE).await;
        }
        service.stop(DEADLINE).await;
        let away = EngineProxy::start(false);
        let setup = setup(world, bench, data_dir.path()).env("DOCKER_HOST", away.docker_host());
        let mut service = setup.start().await;
        let waiting = push(world, &service, WAITING).await;
        service.stop(DEADLINE).await;
        service.leave_unfinished();
        let sound = fs::read_dir(data_dir.path()).expect("it is there");
        let sound = sound
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.is_file())
            .map(|path| (path.clone(), fs::read(path).expect("read")));
        Self {
            sound: sound.collect(),
            data_dir,
            ended,
            waiting,
        }
    }

    fn cases(&self) -> Vec<(PathBuf, usize, Damage)> {
        let is_database = |path: &Path| path.extension().is_some_and(|ending| ending == "db");
        let databases = self.sound.iter().filter(|(path, _)| is_database(path));
        databases
            .flat_map(|(path, bytes)| {
                (1..=bytes.len() / PAGE_BYTES).flat_map(move |page| {
                    [Damage::Noise, Damage::Zeros, Damage::NextPage]
                        .map(|damage| (path.clone(), page, damage))
                })
            })
            .collect()
    }

    fn put_back(&self) {
        for entry in fs::read_dir(self.data_dir.path()).expect("it is there") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                fs::remove_file(path).expect("removed");
            }
        }
        for (path, bytes) in &self.sound {
            fs::write(path, bytes).expect("written");
        }
    }

    /// Starts the service on the damaged data; whether it refuses to run.
    async fn trial(&self, world: &World, bench: &Bench, database: &Path) -> Result<bool, String> {
        let away = EngineProxy::start(false);
        let setup = setup(world, bench, self.data_dir.path());
        let waits = setup.env("DOCKER_HOST", away.docker_host());
        let mut process = Process::start(waits.command(&["serve"]));
        let is_up = |log: &str| {
            let is_refused = log.lines().any(|line| line.starts_with("compose-ci: "));
            let is_up = listening_address(log).is_some();
            (is_refused || is_up).then_some(is_up)
        };
        if process.wait_for_output(is_up, DEADLINE).await {
            let is_loss_told = process.output().contains("may be lost");
            process.kill();
            return self.all_is_true(world, bench, is_loss_told).await;
        }
        let code = process.wait_for_end(DEADLINE).await.code();
        let told = process.output();
        let line = told.lines().last().unwrap_or_default();
        let begin = format!("compose-ci: DATA_DIR: {} is damaged (", database.display());
        let is_plain = line.starts_with(&begin) && line.contains("put a sound copy");
        match (code, is_plain) {
            (Some(2), true) => Ok(true),
            _ => Err(format!("exit code {code:?}: {line}")),
        }
    }

    /// Looks whether a service that runs on damaged data loses nothing and says nothing false.
    async fn all_is_true(
        &self,
        world: &World,
        bench: &Bench,
        is_loss_told: bool,
    ) -> Result<bool, String> {
        let counted: Vec<_> = self
            .waiting
            .iter()
            .map(|build| finals(world, build))
            .collect();
        let mut service = setup(world, bench, self.data_dir.path()).start().await;
        service.leave_unfinished();
        let commit = world.commit(0);
        let answer = world
            .deliver(&service, &Uuid::new_v4().to_string(), &commit)
            .await;
        match answer.code {
            202 => {
                let build = Build {
                    id: answer.build_id(),
                    commit,
                };
                has_passed(world, &build, 0).await?;
            }
            503 if service.get("/healthz").await.code == 503 => return Ok(false),
            code => return Err(format!("a push was answered with {code}")),
        }
        if !is_loss_told {
            for (build, count) in self.waiting.iter().zip(counted) {
                has_passed(world, build, count).await?;
            }
        }
        for build in &self.ended {
            let page = service.get(&format!("/builds/{}", build.id)).await;
            if page.code != 200 || !page.body.contains("passed") {
                return Err(format!("the page of {} is {}", build.id, page.code));
            }
        }
        service.stop(DEADLINE).await;
        Ok(false)
    }
}

fn setup(world: &World, bench: &Bench, data_dir: &Path) -> Setup {
    let setup = world.setup(bench).env("HOOK", "true");
    setup.env("DATA_DIR", data_dir.display().to_string())
}

async fn push(world: &World, service: &OneBox, count: usize) -> Vec<Build> {
    let mut builds = Vec::new();
    for _ in 0..count {
        builds.push(world.push(service, world.commit(0)).await);
    }
    builds
}

fn finals(world: &World, build: &Build) -> usize {
    let states = world.github.states(&build.commit.sha);
    let finals = states
        .iter()
        .filter(|state| **state != CommitState::Pending);
    finals.count()
}

/// Waits until a build has one more final status than before.
async fn has_passed(world: &World, build: &Build, before: usize) -> Result<(), String> {
    let told = async {
        while finals(world, build) == before {
            sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let in_time = timeout(DEADLINE, told).await.is_ok();
    let states = world.github.states(&build.commit.sha);
    match states.last() {
        Some(CommitState::Success) if in_time => Ok(()),
        last => Err(format!("{} was told {last:?}", build.id)),
    }
}

fn overwrite(database: &Path, page: usize, damage: Damage, dice: &mut Rng) {
    let place = (page - 1) * PAGE_BYTES;
    let mut bytes = vec![0; PAGE_BYTES];
    match damage {
        Damage::Noise => dice.fill(&mut bytes),
        Damage::Zeros => {}
        Damage::NextPage => {
            let all = fs::read(database).expect("read");
            let next = (place + PAGE_BYTES) % all.len();
            bytes.copy_from_slice(&all[next..next + PAGE_BYTES]);
        }
    }
    let file = File::options().write(true).open(database).expect("opened");
    file.write_all_at(&bytes, place as u64).expect("written");
}
