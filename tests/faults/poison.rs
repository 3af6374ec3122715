//! Messages that nobody can read, among those of good commits.

use std::time::Duration;

use fastrand::Rng;
use harness::{Aws, OneBox, Queues, Setup};
use rusqlite::Connection;
use serde_json::json;
use tokio::time::{interval, timeout};

use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, Build, DEADLINE, Tally, World, by_sqs};

/// How often it is looked how many messages there are.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How much the service's memory may grow while the second half of the builds is built.
const GROWTH_MAX_KIB: u64 = 8 << 10;
/// How long all of them may take.
const ALL_DEADLINE: Duration = Duration::from_secs(240);

/// Where a message can be planted, and looked for.
enum Place<'a> {
    Sqs(&'a Aws, Queues),
    Local,
}

/// At SQS.
pub(crate) async fn at_sqs(bench: &mut Bench, budget: &Budget, dice: Rng) -> Seen {
    let aws = Aws::start().await;
    let queues = aws.create_queues("poison", "").await;
    let place = Place::Sqs(&aws, queues);
    poison(bench, budget, dice, place).await
}

/// In the local queue.
pub(crate) async fn locally(bench: &mut Bench, budget: &Budget, dice: Rng) -> Seen {
    poison(bench, budget, dice, Place::Local).await
}

async fn poison(bench: &Bench, budget: &Budget, mut dice: Rng, place: Place<'_>) -> Seen {
    let (bad, good) = (budget.times(1000), budget.times(100));
    let world = World::new().await;
    let setup = place.used_by(world.setup(bench)).env("CONCURRENCY", "4");
    let mut service = setup.env("LOG_LEVEL", "info").start().await;
    let bodies: Vec<_> = (0..bad).map(|number| body(number, &mut dice)).collect();
    place.plant(&mut service, &bodies).await;
    let mut builds = Vec::new();
    for _ in 0..good {
        builds.push(world.push(&service, world.commit(0)).await);
    }
    let mut tally = Tally::default();
    let (half, all) = builds.split_at(good / 2);
    end(&world, half).await;
    let rss_before_kib = service.rss_kib();
    end(&world, all).await;
    if timeout(ALL_DEADLINE, place.holds_only_dead(&service, bad))
        .await
        .is_err()
    {
        let count = place.count(&service).await;
        tally.problem(format!(
            "{count:?} messages and dead letters after {ALL_DEADLINE:?}"
        ));
    }
    let grown_kib = service.rss_kib().saturating_sub(rss_before_kib);
    if grown_kib > GROWTH_MAX_KIB {
        tally.problem(format!("the service has grown by {grown_kib} KiB"));
    }
    let engine = bench.engine.connect().await;
    Tally::nothing_is_left(&engine, &builds).await;
    service.stop(DEADLINE).await;
    for build in &builds {
        tally.judge(&world, &bench.hooks, &service, build);
    }
    let did = format!("{bad} poison messages among {good} good, RSS +{grown_kib} KiB");
    Seen::of(did, tally)
}

async fn end(world: &World, builds: &[Build]) {
    for build in builds {
        world
            .github
            .wait_for_end(&build.commit.sha, ALL_DEADLINE)
            .await;
    }
}

/// What no version of the program has ever sent.
fn body(number: usize, dice: &mut Rng) -> String {
    match dice.u8(..5) {
        0 => format!("poison {number}"),
        1 => json!({ "version": "99", "number": number }).to_string(),
        2 => json!({ "version": "1", "id": number, "repo": "../..", "revision": {} }).to_string(),
        3 => format!("{{\"version\": \"1\", \"id\": {number}"),
        _ => "x".repeat(10_000 + number),
    }
}

impl Place<'_> {
    fn used_by(&self, setup: Setup) -> Setup {
        match self {
            Self::Local => setup,
            Self::Sqs(aws, queues) => by_sqs(setup, queues, &aws.endpoint_url()),
        }
    }

    async fn plant(&self, service: &mut OneBox, bodies: &[String]) {
        match self {
            Self::Local => {
                service.kill();
                insert(service, bodies);
                service.start_again().await;
            }
            Self::Sqs(aws, queues) => {
                for ten in bodies.chunks(10) {
                    let entry = |(id, body)| json!({ "Id": format!("{id}"), "MessageBody": body });
                    let entries: Vec<_> = ten.iter().enumerate().map(entry).collect();
                    let batch = json!({ "QueueUrl": queues.url, "Entries": entries });
                    aws.sqs("SendMessageBatch", batch).await;
                }
            }
        }
    }

    /// Waits until the queue is empty, and so many are dead letters.
    async fn holds_only_dead(&self, service: &OneBox, dead: usize) {
        let mut look = interval(LOOK_INTERVAL);
        while self.count(service).await != [0, dead as u64] {
            look.tick().await;
        }
    }

    /// How many messages and dead letters there are.
    async fn count(&self, service: &OneBox) -> [u64; 2] {
        match self {
            Self::Local => {
                let queue = queue(service);
                [0, 1].map(|dead| {
                    let count = "SELECT COUNT(*) FROM message WHERE dead = ?1";
                    let count = queue.query_row(count, [dead], |row| row.get::<_, i64>(0));
                    count.expect("the table is known").unsigned_abs()
                })
            }
            Self::Sqs(aws, queues) => [
                aws.messages(&queues.url).await,
                aws.messages(&queues.dead_letters_url).await,
            ],
        }
    }
}

/// As a handler of another version might have stored them.
fn insert(service: &OneBox, bodies: &[String]) {
    let mut queue = queue(service);
    let together = queue.transaction().expect("nobody else writes");
    for (number, body) in bodies.iter().enumerate() {
        let build = format!("poison-{number}");
        let insert = "INSERT INTO message (build, body) VALUES (?1, ?2)";
        together
            .execute(insert, [&build, body])
            .expect("the table is known");
    }
    together.commit().expect("nobody else writes");
}

fn queue(service: &OneBox) -> Connection {
    let queue = Connection::open(service.data_dir().join("queue.db"));
    queue.expect("the service has made it")
}
