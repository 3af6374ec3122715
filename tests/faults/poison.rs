//! Messages that nobody can read, among those of good commits.

use std::time::Duration;

use fastrand::Rng;
use harness::{Aws, OneBox, Queues, Setup};
use rusqlite::Connection;
use serde_json::json;
use tokio::time::{interval, timeout};
use uuid::Uuid;

use crate::judge::{Bar, Tally};
use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, Build, DEADLINE, World, by_sqs, log};

/// How often it is looked how many messages there are.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// So many are built before the first poison: the first ones need more memory than the next.
const WARM_UP: usize = 10;
/// How much the service's memory may grow from then on.
const GROWTH_MAX_KIB: u64 = 6 << 10;
/// A message is received so often before it becomes a dead letter, and once more to tell of that.
const RECEIVES_MAX: u32 = 3;
const RECEIVES_OF_DEAD_MAX: u32 = RECEIVES_MAX + 1;
/// A dead letter that nobody can read is left alone for so long.
const DEAD_LETTER_HIDDEN: Duration = Duration::from_secs(12 * 60 * 60);
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
    let mut builds = push(&world, &service, WARM_UP).await;
    end(&world, &builds).await;
    let rss_before_kib = service.rss_kib();
    let bodies: Vec<_> = (0..bad).map(|number| body(number, &mut dice)).collect();
    for bodies in bodies.chunks(bad.div_ceil(good)) {
        place.plant(&service, bodies).await;
        builds.extend(push(&world, &service, 1).await);
    }
    end(&world, &builds).await;
    let all_dead = timeout(ALL_DEADLINE, place.holds_only_dead(&service, bad)).await;
    let grown_kib = service.rss_kib().saturating_sub(rss_before_kib);
    let engine = bench.engine.connect().await;
    Tally::nothing_is_left(&engine, &builds).await;
    let mut tally = Tally::default();
    if all_dead.is_err() {
        let count = place.count(&service).await;
        tally.problem(format!("{count:?} messages and dead letters are left"));
    }
    if grown_kib > GROWTH_MAX_KIB {
        tally.problem(format!("the service has grown by {grown_kib} KiB"));
    }
    service.stop(DEADLINE).await;
    let receives = place.receives_of_dead(&service).await;
    tally.problems.extend(too_often(&receives, &service));
    for build in &builds {
        let log = log(&service, &build.id);
        tally.judge(&world, &bench.hooks, &service, (build, &log), Bar::RESULT);
    }
    let did = format!("poison messages among {good} good");
    let mut seen = Seen::of(receives.len(), bad, did, tally);
    seen.saw = format!("{}, RSS +{grown_kib} KiB", seen.saw);
    seen
}

/// What is wrong with how often the dead letters were received, each by itself and all together.
fn too_often(receives: &[u32], service: &OneBox) -> Option<String> {
    let most = receives.iter().max().copied().unwrap_or_default();
    let together = received_from_queue(service);
    let is_fine =
        most <= RECEIVES_OF_DEAD_MAX && together == receives.len() * RECEIVES_MAX as usize;
    (!is_fine).then(|| format!("poison was received {together} times, one of it {most} times"))
}

/// How often the service says that it received a message which it cannot read.
fn received_from_queue(service: &OneBox) -> usize {
    let is_it = |line: &&str| line.contains("failed to read a message") && line.contains("Queue");
    service.log().lines().filter(is_it).count()
}

async fn push(world: &World, service: &OneBox, count: usize) -> Vec<Build> {
    let mut builds = Vec::new();
    for _ in 0..count {
        builds.push(world.push(service, world.commit(0)).await);
    }
    builds
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

    async fn plant(&self, service: &OneBox, bodies: &[String]) {
        match self {
            Self::Local => insert(service, bodies),
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

    /// How often each dead letter was received, by a service that has ended.
    async fn receives_of_dead(&self, service: &OneBox) -> Vec<u32> {
        match self {
            Self::Local => {
                let queue = queue(service);
                let receives = queue.prepare("SELECT receives FROM message WHERE dead = 1");
                let mut receives = receives.expect("the table is known");
                let receives = receives.query_map([], |row| row.get(0));
                let receives = receives.and_then(Iterator::collect);
                receives.expect("all of them are numbers")
            }
            Self::Sqs(aws, queues) => {
                aws.advance_clock("poison", 2 * DEAD_LETTER_HIDDEN).await;
                receives(aws, &queues.dead_letters_url).await
            }
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

/// How often each message was received, before this.
async fn receives(aws: &Aws, queue_url: &str) -> Vec<u32> {
    let asked = json!({
        "QueueUrl": queue_url,
        "MaxNumberOfMessages": 10,
        "VisibilityTimeout": DEAD_LETTER_HIDDEN.as_secs(),
        "AttributeNames": ["ApproximateReceiveCount"],
    });
    let mut receives = Vec::new();
    loop {
        let received = aws.sqs("ReceiveMessage", asked.clone()).await;
        let Some(messages) = received["Messages"].as_array() else {
            return receives;
        };
        receives.extend(messages.iter().map(|message| {
            let count = message["Attributes"]["ApproximateReceiveCount"].as_str();
            let count = count.and_then(|count| count.parse::<u32>().ok());
            count.expect("a number") - 1
        }));
    }
}

/// As a handler of another version might have stored them.
fn insert(service: &OneBox, bodies: &[String]) {
    let mut queue = queue(service);
    let together = queue.transaction().expect("the service lets others write");
    for body in bodies {
        let build = Uuid::new_v4().to_string();
        let insert = "INSERT INTO message (build, body) VALUES (?1, ?2)";
        together
            .execute(insert, [&build, body])
            .expect("the table is known");
    }
    together.commit().expect("the disk has room");
}

fn queue(service: &OneBox) -> Connection {
    let queue = Connection::open(service.data_dir().join("queue.db"));
    queue.expect("the service has made it")
}
