//! Moments in the life of a build that can be seen from outside.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use harness::{Engine, Host, OneBox, Request, SmtpSink, Status};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::hooks::{Hooks, Mark};
use crate::world::{Build, DEADLINE, World, has_mail_of};

/// How often a database or a file is looked into: nobody outside is told when it changes.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Where something can be seen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Point {
    /// Now.
    Accepted,
    /// In the database of the queue, or of the builds: this statement finds a row for the build.
    Row(&'static str, &'static str),
    /// GitHub is asked for this, answered or not.
    Asked(Asked),
    /// GitHub has stored so many statuses of the commit.
    Stored(usize),
    /// The engine has done this with something that bears the build's name.
    Engine(&'static str),
    /// The hook has said this.
    Hook(Mark),
    /// The log holds something.
    Logged,
    /// The mail has arrived.
    Mailed,
}

/// What GitHub can be asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked {
    Tarball,
    Codeload,
    /// To store so many statuses of the commit.
    Statuses(usize),
}

/// In the order in which a build passes them, more or less: some are passed beside each other.
pub(crate) const POINTS: [(&str, Point); 24] = {
    use Point::{Accepted, Engine, Hook, Logged, Mailed, Row, Stored};
    const BUILDS: &str = "builds.db";
    const QUEUE: &str = "queue.db";
    [
        ("accepted", Accepted),
        (
            "leased",
            Row(
                QUEUE,
                "SELECT 1 FROM message WHERE build = ?1 AND receives > 0",
            ),
        ),
        (
            "recorded",
            Row(BUILDS, "SELECT 1 FROM builds WHERE id = ?1"),
        ),
        ("pending sent", Point::Asked(Asked::Statuses(1))),
        ("pending stored", Stored(1)),
        ("volume made", Engine("volume create")),
        ("container made", Engine("container create")),
        ("tarball asked for", Point::Asked(Asked::Tarball)),
        ("tarball sent", Point::Asked(Asked::Codeload)),
        ("unpacked", Engine("container extract-to-dir")),
        ("attached", Engine("container attach")),
        (
            "start recorded",
            Row(
                BUILDS,
                "SELECT 1 FROM builds WHERE id = ?1 AND started_ms > 0",
            ),
        ),
        ("started", Engine("container start")),
        ("hook began", Hook(Mark::Began)),
        ("log written", Logged),
        ("hook halfway", Hook(Mark::Halfway)),
        ("hook ended", Hook(Mark::Ended)),
        ("container died", Engine("container die")),
        (
            "end stored",
            Row(
                BUILDS,
                "SELECT 1 FROM builds WHERE id = ?1 AND ended_ms > 0",
            ),
        ),
        ("final sent", Point::Asked(Asked::Statuses(2))),
        ("final stored", Stored(2)),
        ("mail arrived", Mailed),
        (
            "acknowledged",
            Row(
                QUEUE,
                "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM message WHERE build = ?1)",
            ),
        ),
        ("container removed", Engine("container destroy")),
    ]
};

/// From where a build is looked at.
pub(crate) struct View<'a> {
    pub(crate) world: &'a World,
    pub(crate) hooks: &'a Hooks,
    pub(crate) events: &'a EngineEvents,
    pub(crate) sink: &'a SmtpSink,
    pub(crate) service: &'a OneBox,
    pub(crate) build: &'a Build,
}

impl View<'_> {
    /// Waits until the build is there.
    ///
    /// # Panics
    /// When it does not come there in time.
    pub(crate) async fn sees(&self, point: Point) {
        let sha = &self.build.commit.sha;
        let github = &self.world.github;
        match point {
            Point::Accepted => {}
            Point::Row(database, statement) => {
                let path = self.service.data_dir().join(database);
                finds_row(&path, statement, &self.build.id).await;
            }
            Point::Asked(asked) => {
                let is_it = |request: &Request| asked.is(request, sha);
                github
                    .wait_for_requests(asked.times(), is_it, DEADLINE)
                    .await;
            }
            Point::Stored(count) => {
                let enough = |statuses: &[Status]| statuses.len() >= count;
                github.wait_for_status(sha, enough, DEADLINE).await;
            }
            Point::Engine(what) => self.events.wait_for(what, &self.build.id).await,
            Point::Hook(mark) => self.hooks.wait_for(sha, mark, DEADLINE).await,
            Point::Logged => self.sees_log().await,
            Point::Mailed => {
                let arrived = has_mail_of(self.sink, self.build, DEADLINE).await;
                assert!(arrived, "no mail of {sha} in {DEADLINE:?}");
            }
        }
    }

    async fn sees_log(&self) {
        let path = self.service.data_dir().join("logs");
        let path = path.join(format!("{}.log", self.build.id));
        let is_there = || fs::metadata(&path).is_ok_and(|file| file.len() > 0);
        looks_until(is_there, "a log").await;
    }
}

impl Point {
    /// Whether the hook must not end before it.
    pub(crate) fn is_while_hook_runs(self) -> bool {
        matches!(self, Self::Logged | Self::Hook(Mark::Halfway))
    }
}

impl Asked {
    fn is(self, request: &Request, sha: &str) -> bool {
        let host = match self {
            Self::Codeload => Host::Codeload,
            Self::Tarball | Self::Statuses(_) => Host::Api,
        };
        let part = match self {
            Self::Codeload => "/legacy.tar.gz/",
            Self::Tarball => "/tarball/",
            Self::Statuses(_) => "/statuses/",
        };
        request.host == host && request.path.contains(part) && request.path.ends_with(sha)
    }

    fn times(self) -> usize {
        match self {
            Self::Statuses(times) => times,
            Self::Tarball | Self::Codeload => 1,
        }
    }
}

async fn finds_row(database: &Path, statement: &str, build: &str) {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let database = Connection::open_with_flags(database, flags).expect("the service has made it");
    let mut statement = database.prepare(statement).expect("its tables are known");
    let mut found = || statement.exists([build]).expect("it can be read");
    looks_until(&mut found, "a row").await;
}

async fn looks_until(mut is_there: impl FnMut() -> bool, what: &str) {
    let mut look = interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let looked = async {
        while !is_there() {
            look.tick().await;
        }
    };
    let in_time = timeout(DEADLINE, looked).await.is_ok();
    assert!(in_time, "{what} is not there after {DEADLINE:?}");
}

/// What the engine says that it has done, from now on.
#[derive(Debug)]
pub(crate) struct EngineEvents {
    seen: watch::Receiver<Vec<String>>,
    _listener: JoinSet<()>,
}

impl EngineEvents {
    pub(crate) fn of(engine: &Engine) -> Self {
        let (sender, seen) = watch::channel(Vec::new());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.expect("the clock is past 1970").as_secs();
        let options = EventsOptionsBuilder::default()
            .since(&now.to_string())
            .build();
        let events = engine.docker().events(Some(options));
        let mut listener = JoinSet::new();
        listener.spawn(events.for_each(move |event| {
            if let Ok(event) = event {
                sender.send_modify(|seen| seen.push(told(&event)));
            }
            std::future::ready(())
        }));
        Self {
            seen,
            _listener: listener,
        }
    }

    async fn wait_for(&self, what: &str, build: &str) {
        let mut seen = self.seen.clone();
        let is_it = |event: &String| event.starts_with(what) && event.contains(build);
        let waited = seen.wait_for(|seen| seen.iter().any(is_it));
        let in_time = timeout(DEADLINE, waited)
            .await
            .is_ok_and(|seen| seen.is_ok());
        assert!(in_time, "{build}: no {what} in {DEADLINE:?}");
    }
}

/// `container start NAME`, `volume create NAME`.
fn told(event: &EventMessage) -> String {
    let kind = event.typ.map(|kind| kind.to_string()).unwrap_or_default();
    let action = event.action.as_deref().unwrap_or_default();
    let actor = event.actor.as_ref();
    let name = actor.and_then(|actor| actor.attributes.as_ref()?.get("name"));
    let id = actor.and_then(|actor| actor.id.as_ref());
    let name = name.or(id).map(String::as_str).unwrap_or_default();
    format!("{kind} {action} {name}")
}
