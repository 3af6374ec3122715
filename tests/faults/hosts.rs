//! Several hosts, each with an engine of its own, share a queue and a store. Their workers are killed,
//! leases are lost, messages come twice, and one host never returns.

use std::collections::HashSet;
use std::time::Duration;

use fastrand::Rng;
use harness::{Aws, CommitState, OneBox, PrivateEngine, Queues};
use shared::build::{BuildError, Outcome};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::hooks::{Hooks, Mark};
use crate::judge::{Tally, state_of};
use crate::plan::Budget;
use crate::recorded;
use crate::row::Seen;
use crate::world::{Bench, Build, DEADLINE, IMAGE, World, by_store};

/// How many hosts there are, in turn.
const HOSTS: [usize; 2] = [2, 4];
/// So many builds are under way at a time.
const UNDER_WAY: usize = 8;
/// The time from one fault to the next.
const PAUSE_MS: std::ops::Range<u64> = 200..1500;
/// One push of so many is delivered to two hosts.
const PUSHES_PER_COPY: u8 = 6;
/// How long a hook waits halfway, at the most.
const HALFWAY_MS: u64 = 1200;
/// Longer than a lease or a claim lasts.
const LEASE_OVER: Duration = Duration::from_secs(5 * 60 + 2);
/// How long a living worker may take over a build whose lease and claim have ended, before both pass again.
const TAKING_OVER: Duration = Duration::from_secs(3);
/// How long the builds of the host that never returns may take.
const LAST_DEADLINE: Duration = Duration::from_secs(180);

/// A Docker host with its worker.
struct Host {
    service: OneBox,
    hooks: Hooks,
    engine: PrivateEngine,
    is_lost: bool,
}

/// What the hosts share.
struct Shared {
    world: World,
    aws: Aws,
    queues: Queues,
    family: String,
}

pub(crate) async fn several(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let planned = budget.times(200);
    let mut tally = Tally::default();
    let mut faults = 0;
    for count in HOSTS {
        let share = planned.div_ceil(HOSTS.len());
        let mut run = Run::start(bench, count).await;
        run.build(share, budget, &mut dice).await;
        run.end().await;
        faults += run.faults;
        tally.add(run.judge().await);
    }
    let did = format!("builds on 2 and 4 hosts, {faults} faults");
    Seen::of(tally.builds(), planned, did, tally)
}

struct Run {
    shared: Shared,
    hosts: Vec<Host>,
    builds: Vec<Build>,
    faults: usize,
}

impl Run {
    async fn start(bench: &Bench, count: usize) -> Self {
        let aws = Aws::start().await;
        let family = format!("hosts{count}");
        let shared = Shared {
            world: World::new().await,
            queues: aws.create_queues(&family, "").await,
            aws,
            family,
        };
        shared.aws.create_bucket(&shared.family).await;
        // This stops the queue's clock: leases end only when the row says so.
        shared.let_pass(Duration::ZERO).await;
        let mut hosts = Vec::new();
        for _ in 0..count {
            hosts.push(Host::start(bench, &shared).await);
        }
        Self {
            shared,
            hosts,
            builds: Vec::new(),
            faults: 0,
        }
    }

    /// Pushes until so many builds were asked for, with a fault now and then. Halfway one host is lost.
    async fn build(&mut self, planned: usize, budget: &Budget, dice: &mut Rng) {
        while self.builds.len() < planned && !budget.is_spent() {
            while self.under_way() < UNDER_WAY && self.builds.len() < planned {
                self.push(dice).await;
            }
            sleep(Duration::from_millis(dice.u64(PAUSE_MS))).await;
            if self.builds.len() * 2 >= planned && !self.hosts[0].is_lost {
                self.hosts[0].is_lost = true;
                self.hosts[0].service.leave_unfinished();
                self.hosts[0].service.kill();
            } else {
                self.break_something(dice).await;
            }
            self.faults += 1;
        }
    }

    fn under_way(&self) -> usize {
        let world = &self.shared.world;
        let under_way = self.builds.iter().filter(|build| !world.has_ended(build));
        under_way.count()
    }

    async fn push(&mut self, dice: &mut Rng) {
        let world = &self.shared.world;
        let commit = world.commit(if dice.u8(..3) == 0 { 3 } else { 0 });
        for host in &self.hosts {
            host.hooks.hold(&commit.sha);
        }
        let delivery = Uuid::new_v4().to_string();
        let living: Vec<_> = self.hosts.iter().filter(|host| !host.is_lost).collect();
        let copies = if dice.u8(..PUSHES_PER_COPY) == 0 {
            2
        } else {
            1
        };
        let mut id = String::new();
        for _ in 0..copies {
            let host = living[dice.usize(..living.len())];
            id = world
                .deliver(&host.service, &delivery, &commit)
                .await
                .build_id();
        }
        self.builds.push(Build { commit, id });
    }

    async fn break_something(&mut self, dice: &mut Rng) {
        sleep(Duration::from_millis(dice.u64(..HALFWAY_MS))).await;
        self.release_hooks();
        match dice.u8(..4) {
            0 => self.shared.end_leases().await,
            _ => {
                let mut living: Vec<_> =
                    self.hosts.iter_mut().filter(|host| !host.is_lost).collect();
                let host = dice.usize(..living.len());
                living[host].service.kill();
                living[host].service.start_again().await;
            }
        }
    }

    /// Lets the hooks go on that wait halfway.
    fn release_hooks(&self) {
        for build in &self.builds {
            for host in &self.hosts {
                host.hooks.release(&build.commit.sha);
            }
        }
    }

    /// Waits for the end of all builds: first of those that a living host has, then of the lost one's.
    async fn end(&mut self) {
        self.release_hooks();
        let lost = self.lost_builds();
        let world = &self.shared.world;
        for build in self.builds.iter().filter(|build| !lost.contains(&build.id)) {
            let ended = world.github.wait_for_end(&build.commit.sha, DEADLINE);
            // A message that was received and never worked on comes back with its lease.
            if timeout(DEADLINE / 4, ended).await.is_err() {
                self.shared.end_leases().await;
                // One whose worker was killed between the claim and its own record of it waits for the
                // end of the claim, below.
                let ended = world.github.wait_for_end(&build.commit.sha, DEADLINE);
                let _ = timeout(DEADLINE / 4, ended).await;
            }
        }
        let all = async {
            while let Some(build) = self.builds.iter().find(|build| !world.has_ended(build)) {
                self.shared.let_pass(LEASE_OVER).await;
                let ended = world.github.wait_for_end(&build.commit.sha, DEADLINE);
                let _ = timeout(TAKING_OVER, ended).await;
            }
        };
        timeout(LAST_DEADLINE, all).await.expect("every build ends");
    }

    /// The builds that the lost host had when it was lost.
    fn lost_builds(&self) -> HashSet<String> {
        let lost = self.hosts.iter().filter(|host| host.is_lost);
        lost.flat_map(|host| recorded::unfinished(&host.service))
            .collect()
    }

    async fn judge(mut self) -> Tally {
        let lost = self.lost_builds();
        for host in self.hosts.iter_mut().filter(|host| !host.is_lost) {
            let engine = host.engine.connect().await;
            Tally::nothing_is_left(&engine, &self.builds).await;
            host.service.stop(DEADLINE).await;
        }
        let mut tally = Tally::default();
        for build in &self.builds {
            match self.judge_build(build, lost.contains(&build.id)) {
                Ok(None) => tally.passed_own_result(),
                Ok(Some(error)) => tally.ended_in(&error),
                Err(problem) => tally.problem(format!("{} {problem}", build.id)),
            }
        }
        tally
    }

    /// The error that a build ended in, if it did not come to its own end.
    fn judge_build(&self, build: &Build, was_lost: bool) -> Result<Option<BuildError>, String> {
        let sha = &build.commit.sha;
        let count = |mark| -> usize {
            let hosts = self.hosts.iter();
            hosts.map(|host| host.hooks.count(sha, mark)).sum()
        };
        let (began, ended) = (count(Mark::Began), count(Mark::Ended));
        if began > 1 {
            return Err(format!("its hook began {began} times"));
        }
        let statuses = self.shared.world.github.statuses(sha);
        let finals = statuses
            .iter()
            .filter(|status| status.state != CommitState::Pending);
        let mut finals: Vec<_> = finals.map(|one| (one.state, &one.description)).collect();
        finals.dedup();
        if finals.len() != 1 {
            return Err(format!("was reported to have ended like this: {finals:?}"));
        }
        let outcomes = self
            .hosts
            .iter()
            .filter(|host| !host.is_lost)
            .filter_map(|host| recorded::outcome(&host.service, &build.id));
        let outcomes: Vec<Outcome> = outcomes.collect();
        let state = finals[0].0;
        let Some(outcome) = outcomes.first() else {
            let own = match build.commit.exit_code {
                0 => CommitState::Success,
                _ => CommitState::Failure,
            };
            return match ended == 1 && state == own {
                // The lost host itself had reported it.
                true => Ok(None),
                false => Err(format!("ended as {state:?}, which no host has recorded")),
            };
        };
        if state_of(outcome) != state {
            return Err(format!(
                "ended in {outcome:?}, and was reported as {state:?}"
            ));
        }
        match outcome {
            _ if outcomes.iter().any(|other| other != outcome) => {
                Err(format!("has several ends: {outcomes:?}"))
            }
            Outcome::Passed if build.commit.exit_code == 0 && ended == 1 => Ok(None),
            Outcome::Failed { exit_code }
                if *exit_code == i64::from(build.commit.exit_code) && ended == 1 =>
            {
                Ok(None)
            }
            Outcome::Error(error @ BuildError::WorkerLost) if was_lost => Ok(Some(error.clone())),
            // Its message was received three times, by workers that were killed, before it began.
            Outcome::Error(error @ BuildError::GaveUp { .. }) if began == 0 => {
                Ok(Some(error.clone()))
            }
            outcome => Err(format!(
                "ended false: {outcome:?}, began {began}, ended {ended}"
            )),
        }
    }
}

impl Host {
    async fn start(bench: &Bench, shared: &Shared) -> Self {
        let engine = PrivateEngine::start().await;
        engine.load(IMAGE).await;
        let hooks = Hooks::on(&engine);
        let Shared {
            world,
            aws,
            queues,
            family,
        } = shared;
        let setup = world
            .setup(bench)
            .env("DOCKER_HOST", engine.docker_host())
            .env("HOOK", hooks.script());
        let service = by_store(setup, queues, &aws.endpoint_url(), family);
        Self {
            service: service.start().await,
            hooks,
            engine,
            is_lost: false,
        }
    }
}

impl Shared {
    /// Every lease of a message ends, and no claim does.
    async fn end_leases(&self) {
        self.aws.advance_clock(&self.family, LEASE_OVER).await;
    }

    /// Moves the clocks of the queue and of the store.
    async fn let_pass(&self, time: Duration) {
        self.aws.advance_clock(&self.family, time).await;
        self.aws.age_objects(&self.family, time).await;
    }
}
