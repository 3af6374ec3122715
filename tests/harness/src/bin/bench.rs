//! What `tests/bench/run` measures builds with: it sees them from outside, as GitHub and the
//! engine do. Prints JSON; all times are in milliseconds.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use bollard::models::{ContainerCreateBody, EventMessage};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, RemoveContainerOptionsBuilder,
};
use clap::{Args, Parser};
use compose_ci_harness::{Engine, Push, sign};
use futures_util::TryStreamExt;
use futures_util::future::try_join_all;
use reqwest::Client;
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

/// How often the queue is asked whether the builds are settled: nobody outside is told.
const QUEUE_POLL: Duration = Duration::from_millis(1);
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Parser)]
enum Command {
    /// Push one commit under several deliveries at once, and wait until all are settled
    Build(Builds),
    /// Create and start a container by the engine's API, as the engine itself does it
    Start {
        /// The image to start `true` in.
        #[arg(long)]
        image: String,
    },
}

#[derive(Args)]
struct Builds {
    /// Where the service listens.
    #[arg(long, value_name = "URL")]
    service: String,

    /// The service's `DATA_DIR`, in which its queue is.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,

    /// The service's `WEBHOOK_SECRET`.
    #[arg(long)]
    secret: String,

    /// The commit's repository, `owner/name`.
    #[arg(long)]
    repo: String,

    /// The commit's id.
    #[arg(long)]
    commit: String,

    /// How many deliveries, each of which is a build.
    #[arg(long, default_value_t = 1)]
    count: usize,
}

/// Several builds, from the first POST to the last one settled.
#[derive(Serialize)]
struct Finished {
    settled: f64,
    builds: Vec<Build>,
}

/// One build; all times count from its POST.
#[derive(Serialize)]
struct Build {
    id: String,
    accepted: f64,
    /// From the 202 to the start of its container; nothing if it was never started.
    accepted_to_started: Option<f64>,
    events: Vec<Event>,
}

/// Something that the engine did for a build.
#[derive(Serialize)]
struct Event {
    at: f64,
    what: String,
}

/// A push that was answered with 202.
struct Accepted {
    id: String,
    posted_at: SystemTime,
    accepted_at: SystemTime,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "tests/bench/run reads it there")]
async fn main() -> anyhow::Result<()> {
    let result = match Command::parse() {
        Command::Build(builds) => serde_json::to_string(&builds.run().await?)?,
        Command::Start { image } => serde_json::to_string(&start(&image).await?)?,
    };
    println!("{result}");
    Ok(())
}

impl Builds {
    async fn run(&self) -> anyhow::Result<Finished> {
        let queue = open_queue(&self.data_dir)?;
        let engine = Engine::connect().await;
        let client = client()?;
        let began = SystemTime::now();
        let accepted = try_join_all((0..self.count).map(|_| self.push(&client))).await?;
        wait_until_empty(&queue).await?;
        let ended = SystemTime::now();
        let events = engine_events(&engine, began, ended).await?;
        let builds = accepted.iter().map(|push| push.build(&events));
        Ok(Finished {
            settled: ms_between(began, ended),
            builds: builds.collect(),
        })
    }

    async fn push(&self, client: &Client) -> anyhow::Result<Accepted> {
        let push = Push {
            repo: &self.repo,
            reference: "refs/heads/main",
            after: &self.commit,
            message: "A commit to build",
        };
        let body = push.payload().to_string();
        let signature = sign(&self.secret, body.as_bytes());
        let request = client
            .post(&self.service)
            .header("content-type", "application/json")
            .header("x-github-event", "push")
            .header("x-github-delivery", Uuid::new_v4().to_string())
            .header("x-hub-signature-256", signature)
            .body(body);
        let posted_at = SystemTime::now();
        let answer = request.send().await.context("pushing to the service")?;
        let accepted_at = SystemTime::now();
        let status = answer.status().as_u16();
        let id = answer.text().await?.trim().to_owned();
        ensure!(status == 202, "the service answered {status}: {id}");
        Ok(Accepted {
            id,
            posted_at,
            accepted_at,
        })
    }
}

impl Accepted {
    fn build(&self, events: &[EventMessage]) -> Build {
        let mine = events.iter().filter(|event| concerns(event, &self.id));
        let timed: Vec<_> = mine
            .filter_map(|event| Some((time(event)?, event)))
            .collect();
        let started = timed.iter().find(|(_, event)| is_start(event));
        let told = timed.iter().map(|(at, event)| Event {
            at: ms_between(self.posted_at, *at),
            what: what(event),
        });
        Build {
            id: self.id.clone(),
            accepted: ms_between(self.posted_at, self.accepted_at),
            accepted_to_started: started.map(|(at, _)| ms_between(self.accepted_at, *at)),
            events: told.collect(),
        }
    }
}

/// How long the engine takes from the request to create a container to the container's start.
async fn start(image: &str) -> anyhow::Result<f64> {
    let engine = Engine::connect().await;
    let docker = engine.docker();
    let name = format!("compose-ci-bench-{}", Uuid::new_v4());
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        entrypoint: Some(vec!["true".to_owned()]),
        ..Default::default()
    };
    let began = SystemTime::now();
    docker.create_container(Some(options), body).await?;
    docker.start_container(&name, None).await?;
    let events = engine_events(&engine, began, SystemTime::now()).await?;
    let remove = RemoveContainerOptionsBuilder::default().force(true).build();
    docker.remove_container(&name, Some(remove)).await?;
    let started = events
        .iter()
        .find(|event| concerns(event, &name) && is_start(event));
    let started_at = started.and_then(time).context("the container's start")?;
    Ok(ms_between(began, started_at))
}

fn client() -> anyhow::Result<Client> {
    // The client wants one though it speaks plain HTTP. An error says that there is one.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    Ok(Client::builder().timeout(REQUEST_DEADLINE).build()?)
}

fn open_queue(data_dir: &Path) -> anyhow::Result<Connection> {
    let path = data_dir.join("queue.db");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    Connection::open_with_flags(&path, flags).with_context(|| format!("opening {}", path.display()))
}

async fn wait_until_empty(queue: &Connection) -> anyhow::Result<()> {
    let mut poll = interval(QUEUE_POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut messages = queue.prepare("SELECT 1 FROM message LIMIT 1")?;
    while messages.exists([])? {
        poll.tick().await;
    }
    Ok(())
}

async fn engine_events(
    engine: &Engine,
    since: SystemTime,
    until: SystemTime,
) -> anyhow::Result<Vec<EventMessage>> {
    let options = EventsOptionsBuilder::default()
        .since(&seconds(since))
        .until(&seconds(until))
        .build();
    let events = engine.docker().events(Some(options));
    events.try_collect().await.context("the engine's events")
}

/// Whether an event is about the container or the volume of this name.
fn concerns(event: &EventMessage, name: &str) -> bool {
    let Some(actor) = &event.actor else {
        return false;
    };
    let attributes = actor.attributes.iter().flatten();
    let names = attributes.filter_map(|(key, value)| (key == "name").then_some(value));
    names.chain(&actor.id).any(|found| found.ends_with(name))
}

fn is_start(event: &EventMessage) -> bool {
    event.action.as_deref() == Some("start")
}

fn what(event: &EventMessage) -> String {
    let kind = event.typ.map(|kind| kind.to_string()).unwrap_or_default();
    format!("{kind} {}", event.action.as_deref().unwrap_or_default())
}

fn time(event: &EventMessage) -> Option<SystemTime> {
    let nanos = u64::try_from(event.time_nano?).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos))
}

/// Seconds since 1970 with nine digits behind the point, as the engine reads them.
fn seconds(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.expect("the clock is past 1970");
    format!("{}.{:09}", since.as_secs(), since.subsec_nanos())
}

/// Negative when `later` is the earlier one: the engine notes its events a moment late or early.
fn ms_between(earlier: SystemTime, later: SystemTime) -> f64 {
    match later.duration_since(earlier) {
        Ok(time) => time.as_secs_f64() * 1e3,
        Err(error) => -error.duration().as_secs_f64() * 1e3,
    }
}
