//! The webhook is killed (SIGKILL) under load, and started again on the same data.

use std::collections::HashSet;
use std::time::Duration;

use fastrand::Rng;
use harness::{OneBox, WEBHOOK_SECRET, sign};
use reqwest::Client;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};
use uuid::Uuid;

use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, World};

/// From one push to the next: 200 a second.
const PUSH_INTERVAL: Duration = Duration::from_millis(5);
const PUSH_DEADLINE: Duration = Duration::from_secs(10);
/// Fewer would be over before the first kill.
const PUSHES_MIN: usize = 1500;
/// How long a process lives.
const LIFE_MS: std::ops::Range<u64> = 2000..5000;
/// Nothing listens on the port of "discard": what is accepted waits.
const NO_ENGINE: &str = "tcp://127.0.0.1:9";

pub(crate) async fn killed(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let planned = budget.times(10_000).max(PUSHES_MIN);
    let world = World::new().await;
    let setup = world.setup(bench).env("DOCKER_HOST", NO_ENGINE);
    let mut service = setup.env("LOG_LEVEL", "info").start().await;
    service.leave_unfinished();
    let (url, current_url) = watch::channel(service.url("/"));
    let mut kills = 0;
    let mut pushing = tokio::spawn(push_all(
        world.payload(""),
        planned,
        budget.clone(),
        current_url,
    ));
    let pushed = loop {
        tokio::select! {
            pushed = &mut pushing => break pushed.expect("it does not panic"),
            () = sleep(Duration::from_millis(dice.u64(LIFE_MS))) => {
                service.kill();
                service.start_again().await;
                url.send_replace(service.url("/"));
                kills += 1;
            }
        }
    };
    service.kill();
    let did = format!("{kills} kills under {} of {planned} pushes", pushed.sent);
    let mut seen = pushed.compare(did, &queued(&service));
    if kills == 0 {
        seen.problems.push("nothing was killed".to_owned());
    }
    seen
}

/// What became of the pushes.
#[derive(Default)]
struct Pushed {
    sent: usize,
    /// The builds of those that were answered with 202.
    accepted: Vec<String>,
}

impl Pushed {
    fn compare(&self, did: String, queued: &[String]) -> Seen {
        let distinct: HashSet<_> = queued.iter().collect();
        let missing = self
            .accepted
            .iter()
            .filter(|build| !distinct.contains(build));
        let (missing, twice) = (missing.count(), queued.len() - distinct.len());
        let saw = format!(
            "{} accepted, {missing} of them missing in the queue, {twice} there twice; \
             {} in it whose answer was lost",
            self.accepted.len(),
            distinct.len().saturating_sub(self.accepted.len())
        );
        let mut problems = Vec::new();
        if missing + twice > 0 {
            problems.push("the queue does not hold what was accepted, once".to_owned());
        }
        if self.accepted.len() * 2 < self.sent {
            problems.push("too few pushes were accepted to tell".to_owned());
        }
        Seen { did, saw, problems }
    }
}

async fn push_all(
    mut payload: serde_json::Value,
    count: usize,
    budget: Budget,
    url: watch::Receiver<String>,
) -> Pushed {
    let client = Client::builder().timeout(PUSH_DEADLINE).build();
    let client = client.expect("its settings are valid");
    let mut pushed = Pushed::default();
    let mut answers = JoinSet::new();
    let mut due = interval(PUSH_INTERVAL);
    for number in 1..=count {
        if budget.is_spent() {
            break;
        }
        due.tick().await;
        payload["after"] = format!("{number:040x}").into();
        let url = url.borrow().clone();
        answers.spawn(push(client.clone(), url, payload.to_string()));
        pushed.sent += 1;
    }
    let answers = answers.join_all().await;
    pushed.accepted = answers.into_iter().flatten().collect();
    pushed
}

/// The build's id, if the push is accepted.
async fn push(client: Client, url: String, body: String) -> Option<String> {
    let request = client
        .post(url)
        .header("content-type", "application/json")
        .header("x-github-event", "push")
        .header("x-github-delivery", Uuid::new_v4().to_string())
        .header("x-hub-signature-256", sign(WEBHOOK_SECRET, body.as_bytes()));
    let answer = request.body(body).send().await.ok()?;
    // A 202 whose body is lost is a promise all the same, but nobody can look for its build.
    let accepted = answer.status() == 202;
    let id = answer.text().await.ok()?;
    accepted.then(|| id.trim().to_owned())
}

/// The builds whose messages are in the queue.
fn queued(service: &OneBox) -> Vec<String> {
    let path = service.data_dir().join("queue.db");
    let queue = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE);
    let queue = queue.expect("the service has made it");
    let mut messages = queue
        .prepare("SELECT build FROM message")
        .expect("its table");
    let builds = messages.query_map([], |row| row.get(0)).expect("read");
    builds
        .collect::<Result<_, _>>()
        .expect("all of them are text")
}
