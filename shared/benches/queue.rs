//! Durable sends a second: senders who share commits, against one transaction for each send. Then
//! what a long queue costs in memory. Writes to the directory for temporary files (`TMPDIR`).
//!
//!     cargo bench -p compose-ci-shared --features local-queue,samples --bench queue

#![expect(clippy::print_stdout, reason = "the figures are the result")]

use std::fs;
use std::time::{Duration, Instant};

use compose_ci_shared::build::samples::request;
use compose_ci_shared::message::Message;
use compose_ci_shared::queue::{LocalQueue, Queue};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::task::JoinSet;

/// The ways take turns, so that a machine that slows down slows each of them.
const ROUNDS: usize = 5;

/// Long enough for several checkpoints of SQLite's log.
const ROUND: Duration = Duration::from_secs(2);

/// Alone; the connections of the service's benchmark; a crowd.
const SENDERS: [usize; 3] = [1, 32, 256];

const LONG_QUEUE: [usize; 2] = [10_000, 200_000];

#[tokio::main]
async fn main() {
    let mut alone = Vec::new();
    let mut together = SENDERS.map(|senders| (senders, Vec::new()));
    for _ in 0..ROUNDS {
        alone.push(one_transaction_each());
        for (senders, rates) in &mut together {
            rates.push(shared_commits(*senders).await);
        }
    }
    let alone = median(alone);
    println!("{alone:>8.0} sends/s  one transaction each");
    for (senders, rates) in together {
        let rate = median(rates);
        println!(
            "{rate:>8.0} sends/s  shared commits, {senders} senders ({:.1}x)",
            rate / alone
        );
    }
    for messages in LONG_QUEUE {
        let resident_kib = with_long_queue(messages).await;
        println!("{resident_kib:>8} KiB      resident with {messages} messages");
    }
}

/// The plain way: an INSERT that commits by itself.
fn one_transaction_each() -> f64 {
    let dir = TempDir::new().expect("a temporary directory");
    let database = Connection::open(dir.path().join("plain.db")).expect("a database");
    let setup = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 CREATE TABLE message (id INTEGER PRIMARY KEY, build TEXT UNIQUE, body TEXT);";
    database.execute_batch(setup).expect("setup");
    let insert = "INSERT INTO message (build, body) VALUES (?1, ?2)";
    let mut insert = database.prepare(insert).expect("a statement");
    let begun = Instant::now();
    let mut sends = 0;
    while begun.elapsed() < ROUND {
        let message = message();
        let build = message.request().id.to_string();
        insert.execute((build, message.encode())).expect("insert");
        sends += 1;
    }
    rate(sends, begun)
}

async fn shared_commits(senders: usize) -> f64 {
    let (queue, _dir) = open().await;
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..senders {
        let queue = queue.clone();
        tasks.spawn(async move {
            let mut sends = 0;
            while begun.elapsed() < ROUND {
                queue.send(&message()).await.expect("send");
                sends += 1;
            }
            sends
        });
    }
    rate(tasks.join_all().await.into_iter().sum(), begun)
}

/// The resident memory after `messages` were sent and some were received.
async fn with_long_queue(messages: usize) -> usize {
    const AT_ONCE: usize = 256;
    let (queue, _dir) = open().await;
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE {
        let queue = queue.clone();
        tasks.spawn(async move {
            for _ in 0..messages / AT_ONCE {
                queue.send(&message()).await.expect("send");
            }
        });
    }
    tasks.join_all().await;
    for _ in 0..100 {
        for delivery in queue.receive(10, Duration::ZERO).await.expect("receive") {
            delivery.lease.settle().await.expect("settle");
        }
    }
    resident_kib()
}

async fn open() -> (Queue, TempDir) {
    let dir = TempDir::new().expect("a temporary directory");
    let queue = LocalQueue::open(dir.path()).await.expect("open");
    (Queue::Local(queue), dir)
}

fn message() -> Message {
    Message::V2(request("main"))
}

fn rate(sends: u32, begun: Instant) -> f64 {
    f64::from(sends) / begun.elapsed().as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn resident_kib() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("the process's status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse().ok()).expect("VmRSS")
}
