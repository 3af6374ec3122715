//! The network between the service and what it depends on fails, and heals.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use fastrand::Rng;
use futures_util::{StreamExt, stream};
use harness::{
    Aws, FaultProxy, GitHub, NetworkFault, OneBox, Queues, Settings, SinkOptions, SmtpSink,
    Upstream,
};
use tokio::time::sleep;
use uuid::Uuid;

use crate::hooks::Mark;
use crate::judge::{Bar, Tally};
use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, Build, DEADLINE, World, by_mail, by_sqs, has_mail_of, log, mails_of};

/// So many cells are worked on at a time: most of them wait.
const AT_ONCE: usize = 10;
/// How long a fault lasts.
const FAULT_MS: std::ops::Range<u64> = 2000..6000;
/// From the push to the final status and the mail. What fell into a black hole is missed after a
/// minute, and a commit that could not be built waits for its next turn.
const END_DEADLINE: Duration = Duration::from_secs(180);

/// What the service depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Api,
    TarballHost,
    Smtp,
    Sqs,
    Engine,
}

/// When the fault begins, and ends, as the hook sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// With the push.
    Before,
    /// While the hook runs; it goes on when the fault is over.
    During,
    /// Before the hook's end.
    After,
}

/// One fault in one place at one time.
#[derive(Clone, Copy, Debug)]
struct Cell {
    part: Part,
    fault: NetworkFault,
    phase: Phase,
}

/// The servers that all cells share.
struct Servers {
    aws: Aws,
    sink: SmtpSink,
}

/// What a cell's service reaches the world by.
struct Ways {
    api: FaultProxy,
    tarball_host: FaultProxy,
    smtp: FaultProxy,
    sqs: FaultProxy,
    engine: FaultProxy,
}

pub(crate) async fn fails(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let mut cells = all_cells();
    let all = cells.len();
    dice.shuffle(&mut cells);
    cells.truncate(budget.times(all));
    let planned = cells.len();
    let servers = Servers {
        aws: Aws::start().await,
        sink: SmtpSink::start(SinkOptions::default()).await,
    };
    let (bench, servers) = (&*bench, &servers);
    let work = cells.into_iter().enumerate().map(|(number, cell)| {
        let dice = dice.fork();
        async move {
            if budget.is_spent() {
                return None;
            }
            Some(cell.come_to_its_end(bench, servers, number, dice).await)
        }
    });
    let tallies: Vec<_> = stream::iter(work).buffer_unordered(AT_ONCE).collect().await;
    let mut tally = Tally::default();
    for cell in tallies.into_iter().flatten() {
        tally.add(cell);
    }
    let did = format!("cells of {all}");
    Seen::of(tally.builds(), planned, did, tally)
}

fn all_cells() -> Vec<Cell> {
    use Part::{Api, Engine, Smtp, Sqs, TarballHost};
    let mut cells = Vec::new();
    for part in [Api, TarballHost, Smtp, Sqs, Engine] {
        for fault in part.faults() {
            for phase in [Phase::Before, Phase::During, Phase::After] {
                cells.push(Cell { part, fault, phase });
            }
        }
    }
    cells
}

impl Part {
    fn faults(self) -> [NetworkFault; 6] {
        [
            NetworkFault::Latency(Duration::from_millis(700)),
            NetworkFault::Reset,
            // No packet is ever lost on the way to a process of the same machine, which may hang.
            match self {
                Self::Engine => NetworkFault::Stall,
                _ => NetworkFault::BlackHole,
            },
            NetworkFault::Slow(2000),
            NetworkFault::Cut(100),
            NetworkFault::Refuse,
        ]
    }
}

impl Cell {
    async fn come_to_its_end(
        self,
        bench: &Bench,
        servers: &Servers,
        number: usize,
        mut dice: Rng,
    ) -> Tally {
        let lasts = Duration::from_millis(dice.u64(FAULT_MS));
        let (world, ways) = self.world(bench, servers).await;
        let queues = servers
            .aws
            .create_queues(&format!("cell{number}"), "")
            .await;
        let mut service = ways.service(bench, &world, &queues).await;
        let build = self.build(bench, &world, &service, &ways, lasts).await;
        let told = world.github.wait_for_end(&build.commit.sha, END_DEADLINE);
        told.await;
        let has_mail = has_mail_of(&servers.sink, &build, END_DEADLINE).await;
        let engine = bench.engine.connect().await;
        Tally::nothing_is_left(&engine, std::slice::from_ref(&build)).await;
        service.stop(DEADLINE).await;
        let mut tally = Tally::default();
        let log = log(&service, &build.id);
        tally.judge(&world, &bench.hooks, &service, (&build, &log), self.bar());
        let mails = mails_of(&servers.sink, &build);
        if !has_mail || mails > self.mails_max() {
            tally.problem(format!("{} has {mails} mails", build.id));
        }
        for problem in &mut tally.problems {
            *problem = format!("{self:?}: {problem}");
        }
        tally
    }

    /// Every fault is over soon enough to be made good. A message that cannot be acknowledged comes back.
    fn bar(self) -> Bar {
        Bar::RESULT.or_told_again(self.part == Part::Sqs)
    }

    /// Nobody can tell whether a mail was taken whose last answer was lost.
    fn mails_max(self) -> usize {
        1 + usize::from(self.part == Part::Smtp)
    }

    /// Pushes a commit and lets the fault come and go.
    async fn build(
        self,
        bench: &Bench,
        world: &World,
        service: &OneBox,
        ways: &Ways,
        lasts: Duration,
    ) -> Build {
        let way = ways.to(self.part);
        let commit = world.commit(0);
        let sha = commit.sha.clone();
        bench.hooks.hold(&sha);
        if self.phase == Phase::Before {
            way.fail(self.fault);
        }
        let delivery = Uuid::new_v4().to_string();
        let answer = world.deliver(service, &delivery, &commit).await;
        if self.phase != Phase::Before {
            bench.hooks.wait_for(&sha, Mark::Halfway, DEADLINE).await;
            way.fail(self.fault);
        }
        if self.phase == Phase::After {
            bench.hooks.release(&sha);
        }
        sleep(lasts).await;
        way.heal();
        bench.hooks.release(&sha);
        let id = match answer.code {
            202 => answer.build_id(),
            // The queue may hold it all the same. GitHub delivers it again when it is asked to.
            503 if self.part == Part::Sqs => {
                let again = world.deliver(service, &delivery, &commit).await;
                again.build_id()
            }
            code => panic!("{self:?}: the push was answered with {code}"),
        };
        Build { commit, id }
    }

    async fn world(self, bench: &Bench, servers: &Servers) -> (World, Ways) {
        let codeload = free_address();
        let tarball_host = FaultProxy::to(Upstream::Tcp(codeload)).await;
        let github = GitHub::with(Settings {
            codeload,
            codeload_url: Some(tarball_host.url()),
            ..Settings::default()
        });
        let github = github.await.expect("the address is free");
        let ways = Ways {
            api: FaultProxy::to(Upstream::Tcp(github.address())).await,
            tarball_host,
            smtp: FaultProxy::to(Upstream::Tcp(servers.sink.address())).await,
            sqs: FaultProxy::to(Upstream::Tcp(servers.aws.address())).await,
            engine: FaultProxy::to(Upstream::Unix(bench.engine.socket())).await,
        };
        (World::on(github), ways)
    }
}

impl Ways {
    fn to(&self, part: Part) -> &FaultProxy {
        match part {
            Part::Api => &self.api,
            Part::TarballHost => &self.tarball_host,
            Part::Smtp => &self.smtp,
            Part::Sqs => &self.sqs,
            Part::Engine => &self.engine,
        }
    }

    async fn service(&self, bench: &Bench, world: &World, queues: &Queues) -> OneBox {
        let setup = world
            .setup(bench)
            .env("GITHUB_API_URL", self.api.url())
            .env("DOCKER_HOST", self.engine.url());
        let setup = by_mail(setup, self.smtp.address());
        by_sqs(setup, queues, &self.sqs.url()).start().await
    }
}

/// The tarball host's address must be known to the way to it before the host is there.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    address.expect("a port is free")
}
