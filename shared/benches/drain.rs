//! How long workers take to settle 1,000 messages that lead to nothing: one worker and four, on the
//! local queue and on both kinds of SQS queue, at the emulator that `tests/harness/aws/install`
//! installs. The emulator's time is Python's, not Amazon's: what counts is how four compare to one.
//!
//!     cargo bench -p compose-ci-shared --all-features --bench drain

#![expect(clippy::print_stdout, reason = "the figures are the result")]

use std::time::{Duration, Instant};

use aws_config::SdkConfig;
use compose_ci_shared::build::{self, BuildId, BuildRequest};
use compose_ci_shared::config::SqsConfig;
use compose_ci_shared::message::Message;
use compose_ci_shared::net::aws::samples;
use compose_ci_shared::queue::{LocalQueue, Queue, SqsQueue};
use harness::{Aws, REGION};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const MESSAGES: usize = 1_000;
/// Builds at a time of one worker: as many as one receive of SQS can fill.
const SLOTS: usize = 10;
const WORKERS: [usize; 2] = [1, 4];
/// The ways take turns, so that a machine that slows down slows each of them.
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() {
    let aws = Aws::start().await;
    let sdk = samples::sdk_config(REGION, &aws.endpoint_url()).await;
    for place in ["local", "SQS standard", "SQS FIFO"] {
        let mut seconds = WORKERS.map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for (workers, times) in WORKERS.iter().zip(&mut seconds) {
                let (queue, _directory) = match place {
                    "local" => local().await,
                    "SQS FIFO" => (sqs(&aws, &sdk, ".fifo").await, None),
                    _ => (sqs(&aws, &sdk, "").await, None),
                };
                times.push(drain(&queue, *workers).await.as_secs_f64());
            }
        }
        let [one, four] = seconds.map(median);
        println!(
            "{place:<14} 1 worker {one:>7.2} s   4 workers {four:>7.2} s   {:.2} x",
            four / one
        );
    }
}

async fn local() -> (Queue, Option<TempDir>) {
    let directory = TempDir::new().expect("a temporary directory");
    let queue = LocalQueue::open(directory.path()).await.expect("a queue");
    (Queue::Local(queue), Some(directory))
}

async fn sqs(aws: &Aws, sdk: &SdkConfig, suffix: &str) -> Queue {
    let family = BuildId::random().to_string().replace('-', "");
    let queues = aws.create_queues(&family, suffix).await;
    let config = SqsConfig {
        url: queues.url.parse().expect("a URL"),
        dead_letters_url: Some(queues.dead_letters_url.parse().expect("a URL")),
        ca_bundle: None,
    };
    Queue::Sqs(SqsQueue::with_sdk_config(&config, sdk).expect("a region"))
}

/// The time from the first receive to the last message settled.
async fn drain(queue: &Queue, workers: usize) -> Duration {
    fill(queue).await;
    let (settled, mut all) = mpsc::channel(MESSAGES);
    let begun = Instant::now();
    let mut working = JoinSet::new();
    for _ in 0..workers {
        working.spawn(work(queue.clone(), settled.clone()));
    }
    for _ in 0..MESSAGES {
        all.recv().await.expect("the workers go on");
    }
    begun.elapsed()
}

async fn fill(queue: &Queue) {
    let mut sending = JoinSet::new();
    for _ in 0..MESSAGES {
        let queue = queue.clone();
        sending.spawn(async move { queue.send(&message()).await.expect("sent") });
        if sending.len() >= SLOTS {
            sending.join_next().await;
        }
    }
    sending.join_all().await;
}

async fn work(queue: Queue, settled: mpsc::Sender<()>) {
    loop {
        let received = queue.receive(SLOTS, Duration::from_secs(20)).await;
        let mut settling = JoinSet::new();
        for delivery in received.expect("received") {
            settling.spawn(delivery.lease.settle());
        }
        while let Some(result) = settling.join_next().await {
            result.expect("no panic").expect("settled");
            settled.send(()).await.expect("somebody counts");
        }
    }
}

/// Each for a branch of its own: a FIFO queue hands out one branch's builds one by one.
fn message() -> Message {
    let id = BuildId::random();
    Message::V2(BuildRequest {
        id,
        ..build::samples::request(&id.to_string())
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
