//! The webhook is killed (SIGKILL) under load, and started again on the same data.

use std::collections::HashSet;
use std::convert::Infallible;
use std::time::Duration;

use fastrand::Rng;
use harness::{Aws, FaultProxy, NetworkFault, OneBox, Setup, Upstream, WEBHOOK_SECRET, sign};
use reqwest::Client;
use serde_json::{Value, json};
use shared::build::{BuildId, DEFAULT_STATUS_CONTEXT};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};
use uuid::Uuid;

use crate::plan::Budget;
use crate::recorded;
use crate::row::Seen;
use crate::world::{Bench, World, by_sqs};

/// From one push to the next: 200 a second.
const PUSH_INTERVAL: Duration = Duration::from_millis(5);
/// The emulator of SQS is no SQS: 50 a second.
const PUSH_TO_SQS_INTERVAL: Duration = Duration::from_millis(20);
const PUSH_DEADLINE: Duration = Duration::from_secs(10);
/// At least for so long there are pushes: a process has to be killed meanwhile.
const PUSHING_MIN: Duration = Duration::from_millis(7500);
/// How long a process lives.
const LIFE_MS: std::ops::Range<u64> = 2000..5000;
/// How long the way to SQS is whole, and how long it is not.
const WHOLE_MS: std::ops::Range<u64> = 200..1500;
const BROKEN_MS: std::ops::Range<u64> = 100..800;
/// How long a message that was looked at is hidden: until all have been.
const HIDDEN_S: u64 = 3600;
/// Nothing listens on the port of "discard": what is accepted waits.
const NO_ENGINE: &str = "tcp://127.0.0.1:9";

/// With the queue in its own directory.
pub(crate) async fn killed(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let world = World::new().await;
    let mut service = setup(&world, bench).start().await;
    let storm = Storm::new(budget, 10_000, PUSH_INTERVAL, 90);
    let pushed = storm.over(&mut service, &world, &mut dice).await;
    let queued = recorded::queued(&service);
    let distinct: HashSet<_> = queued.iter().cloned().collect();
    let twice = queued.len() - distinct.len();
    let mut seen = pushed.compare(&storm, &distinct, twice);
    if twice > 0 {
        seen.problems
            .push("the queue holds a push twice".to_owned());
    }
    seen
}

/// With the queue at SQS, on a way there that breaks again and again. A queue of SQS may hold a push
/// twice, whose first answer was lost: whoever builds it sees to that.
pub(crate) async fn killed_before_sqs(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let world = World::new().await;
    let aws = Aws::start().await;
    let queues = aws.create_queues("killed", "").await;
    let way = FaultProxy::to(Upstream::Tcp(aws.address())).await;
    let setup = by_sqs(setup(&world, bench), &queues, &way.url());
    let mut service = setup.start().await;
    let storm = Storm::new(budget, 2000, PUSH_TO_SQS_INTERVAL, 50);
    let breaking = break_again_and_again(&way, dice.fork());
    let pushed = tokio::select! {
        pushed = storm.over(&mut service, &world, &mut dice) => pushed,
        never = breaking => match never {},
    };
    let queued = queued_at_sqs(&aws, &queues.url).await;
    let distinct: HashSet<_> = queued.iter().cloned().collect();
    pushed.compare(&storm, &distinct, queued.len() - distinct.len())
}

fn setup(world: &World, bench: &Bench) -> Setup {
    let setup = world.setup(bench).env("DOCKER_HOST", NO_ENGINE);
    setup.env("LOG_LEVEL", "info")
}

async fn break_again_and_again(way: &FaultProxy, mut dice: Rng) -> Infallible {
    let faults = [
        NetworkFault::Reset,
        NetworkFault::Refuse,
        NetworkFault::Cut(100),
        NetworkFault::BlackHole,
        NetworkFault::Stall,
    ];
    loop {
        sleep(Duration::from_millis(dice.u64(WHOLE_MS))).await;
        way.fail(faults[dice.usize(..faults.len())]);
        sleep(Duration::from_millis(dice.u64(BROKEN_MS))).await;
        way.heal();
    }
}

/// Many pushes, and kills meanwhile.
struct Storm {
    budget: Budget,
    planned: usize,
    interval: Duration,
    /// How many pushes must be accepted in spite of it.
    accepted_min_percent: usize,
}

/// What became of the pushes.
#[derive(Default)]
struct Pushed {
    kills: usize,
    /// What each was answered with.
    answers: Vec<Answer>,
}

/// What came of one push.
enum Answer {
    /// 202: its build.
    Accepted(String),
    /// 503: the queue could not be reached.
    Refused,
    /// Nobody was there, or was killed before it had answered.
    Lost,
    /// Something that nothing gives cause for.
    Wrong(u16),
}

impl Storm {
    fn new(budget: &Budget, long: usize, interval: Duration, accepted_min_percent: usize) -> Self {
        let least = PUSHING_MIN.as_millis() / interval.as_millis();
        let least = usize::try_from(least).expect("a small number");
        Self {
            budget: budget.clone(),
            planned: budget.times(long).max(least),
            interval,
            accepted_min_percent,
        }
    }

    /// Goes over the service, and leaves it killed.
    async fn over(&self, service: &mut OneBox, world: &World, dice: &mut Rng) -> Pushed {
        service.leave_unfinished();
        let (url, current_url) = watch::channel(service.url("/"));
        let pushing = push_all(
            world.payload(""),
            self.planned,
            self.interval,
            self.budget.clone(),
            current_url,
        );
        let mut pushing = tokio::spawn(pushing);
        let mut kills = 0;
        let answers = loop {
            tokio::select! {
                answers = &mut pushing => break answers.expect("it does not panic"),
                () = sleep(Duration::from_millis(dice.u64(LIFE_MS))) => {
                    service.kill();
                    service.start_again().await;
                    url.send_replace(service.url("/"));
                    kills += 1;
                }
            }
        };
        service.kill();
        Pushed { kills, answers }
    }
}

impl Pushed {
    /// With the builds that are in the queue, some of them twice.
    fn compare(&self, storm: &Storm, queued: &HashSet<String>, twice: usize) -> Seen {
        let accepted: Vec<_> = self.answers.iter().filter_map(Answer::build).collect();
        let missing = accepted.iter().filter(|build| !queued.contains(**build));
        let missing = missing.count();
        let count = |is_it: fn(&Answer) -> bool| self.answers.iter().filter(|a| is_it(a)).count();
        let refused = count(|answer| matches!(answer, Answer::Refused));
        let lost = count(|answer| matches!(answer, Answer::Lost));
        let saw = format!(
            "{} answered 202, {refused} answered 503, {lost} not answered; of the accepted {missing} \
             missing in the queue; in it {twice} twice, {} not accepted",
            accepted.len(),
            queued.len().saturating_sub(accepted.len() - missing)
        );
        let mut problems = Vec::new();
        if missing > 0 {
            problems.push("what was accepted is not in the queue".to_owned());
        }
        if accepted.len() * 100 < self.answers.len() * storm.accepted_min_percent {
            problems.push("too few pushes were accepted".to_owned());
        }
        if self.kills == 0 {
            problems.push("nothing was killed".to_owned());
        }
        problems.extend(self.answers.iter().filter_map(Answer::problem));
        Seen {
            done: self.answers.len(),
            planned: storm.planned,
            what: format!("pushes under {} kills", self.kills),
            saw,
            problems,
        }
    }
}

impl Answer {
    fn build(&self) -> Option<&str> {
        match self {
            Self::Accepted(build) => Some(build),
            Self::Refused | Self::Lost | Self::Wrong(_) => None,
        }
    }

    fn problem(&self) -> Option<String> {
        match self {
            Self::Wrong(code) => Some(format!("a push was answered with {code}")),
            Self::Accepted(_) | Self::Refused | Self::Lost => None,
        }
    }
}

async fn push_all(
    mut payload: Value,
    count: usize,
    every: Duration,
    budget: Budget,
    url: watch::Receiver<String>,
) -> Vec<Answer> {
    let client = Client::builder().timeout(PUSH_DEADLINE).build();
    let client = client.expect("its settings are valid");
    let mut answers = JoinSet::new();
    let mut due = interval(every);
    for number in 1..=count {
        if budget.is_spent() {
            break;
        }
        due.tick().await;
        payload["after"] = format!("{number:040x}").into();
        let url = url.borrow().clone();
        answers.spawn(push(client.clone(), url, payload.to_string()));
    }
    answers.join_all().await
}

async fn push(client: Client, url: String, body: String) -> Answer {
    let delivery = Uuid::new_v4().to_string();
    let request = client
        .post(url)
        .header("content-type", "application/json")
        .header("x-github-event", "push")
        .header("x-github-delivery", &delivery)
        .header("x-hub-signature-256", sign(WEBHOOK_SECRET, body.as_bytes()));
    match request.body(body).send().await {
        Ok(answer) => match answer.status().as_u16() {
            // The body tells it as well, and may be lost; the promise was made before.
            202 => Answer::Accepted(
                BuildId::from_delivery(&delivery, DEFAULT_STATUS_CONTEXT).to_string(),
            ),
            503 => Answer::Refused,
            code => Answer::Wrong(code),
        },
        Err(_nobody_there) => Answer::Lost,
    }
}

/// The builds whose messages are in the queue.
async fn queued_at_sqs(aws: &Aws, queue_url: &str) -> Vec<String> {
    let asked = json!({
        "QueueUrl": queue_url,
        "MaxNumberOfMessages": 10,
        "VisibilityTimeout": HIDDEN_S,
    });
    let mut builds = Vec::new();
    loop {
        let received = aws.sqs("ReceiveMessage", asked.clone()).await;
        let Some(messages) = received["Messages"].as_array() else {
            return builds;
        };
        builds.extend(messages.iter().map(|message| {
            let body = message["Body"].as_str().unwrap_or_default();
            let body: Value = serde_json::from_str(body).expect("a message is JSON");
            body["id"].as_str().expect("it names its build").to_owned()
        }));
    }
}
