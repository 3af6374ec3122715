//! Keeps the disks from filling up: removes what no build needs any more, and watches the room that
//! is left.

mod disk;
mod leftovers;
mod images;
mod retention;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use runner::container::COMPOSE_PROJECT_LABEL;
use runner::{Engine, Obstacle, Stop, cleanup};
use shared::build::{Build, BuildError, BuildId, Outcome, StopReason};
use shared::config::StorageConfig;
use shared::ledger::{Ledger, Reserve};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep};

use self::disk::{DiskFull, Place, Room, Wanted};

/// How often it is looked for what nobody needs any more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// How soon after the first of the sweeps that could not remove what is left of builds; it doubles.
const SWEEP_RETRY: Duration = Duration::from_secs(5);
/// How soon after objects of a build could not be removed.
const SWEEP_SOON: Duration = Duration::from_secs(30);
/// How often the room is measured while a build runs.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// How often the removal of what a build made is tried before it is left to the next sweep.
const REMOVE_ATTEMPTS: u32 = 3;
const REMOVE_RETRY: Duration = Duration::from_secs(1);

/// Keeps house for a worker. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Housekeeper {
    pub(crate) engine: Engine,
    pub(crate) ledger: Ledger,
    pub(crate) data_dir: PathBuf,
    /// Where the engine keeps its volumes, on its own host, if it tells.
    pub(crate) volumes: Option<PathBuf>,
    /// The image that builds run in.
    pub(crate) image: String,
    /// What is kept, and how much is left free.
    pub(crate) storage: StorageConfig,
    /// Whether what builds made is removed at all.
    pub(crate) garbage_collect: bool,
    /// Whether nothing but a message's lease keeps other workers from its build, because the queue is
    /// shared and no store is: another worker on this engine may then have to see the build's end.
    pub(crate) lease_is_lock: bool,
    /// Objects of a build could not be removed when it ended.
    pub(crate) something_left: Arc<Notify>,
    /// One sweep at a time, and when the last thorough one began.
    pub(crate) broom: Arc<Mutex<Option<Instant>>>,
}

/// How much a sweep removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thoroughness {
    /// What has outlived its time.
    Usual,
    /// A disk is full: also what has not, and can be done without.
    MakeRoom,
}

impl Housekeeper {
    /// Sweeps now and from time to time, more thoroughly where `DATA_DIR` is short of room: nothing
    /// else may get so far as to ask for it.
    pub(crate) async fn sweep_regularly(&self) {
        let mut retry = SWEEP_RETRY;
        loop {
            let thoroughness = match self.check(&[Place::DataDir]).await {
                Ok(()) => Thoroughness::Usual,
                Err(_full) => Thoroughness::MakeRoom,
            };
            if self.sweep(thoroughness).await {
                retry = SWEEP_RETRY;
                tokio::select! {
                    () = sleep(SWEEP_INTERVAL) => {}
                    () = self.something_left.notified() => sleep(SWEEP_SOON).await,
                }
            } else {
                sleep(retry).await;
                retry = SWEEP_INTERVAL.min(retry * 2);
            }
        }
    }

    /// Removes all that can be done without, because a disk is full.
    pub(crate) async fn make_room(&self) {
        self.sweep(Thoroughness::MakeRoom).await;
    }

    /// Fails if there is too little room for a build, in `DATA_DIR` or for the engine's volumes. An
    /// engine that is elsewhere, or whose disk cannot be seen from this process's container, tells
    /// itself when it is full.
    ///
    /// # Errors
    /// [`Obstacle::DiskFull`].
    pub(crate) async fn check_room(&self) -> Result<(), Obstacle> {
        let checked = self.check(&Place::ALL).await;
        checked.map_err(|full| Obstacle::DiskFull(full.to_string()))
    }

    /// Asks a build to stop once there is too little room, and none can be made.
    pub(crate) async fn watch_room(&self, stop: &Stop) {
        loop {
            sleep(WATCH_INTERVAL).await;
            if self.check(&Place::ALL).await.is_ok() {
                continue;
            }
            self.make_room().await;
            if let Err(full) = self.check(&Place::ALL).await {
                let lack = full.to_string();
                stop.request(StopReason::DiskFull { lack });
                return;
            }
        }
    }

    /// The outcome; a full disk may have kept the wrapper from leaving the mark of the hook's end.
    pub(crate) async fn explain(&self, outcome: Outcome) -> Outcome {
        if !matches!(outcome, Outcome::Error(BuildError::NoEndMark { .. })) {
            return outcome;
        }
        match self.check(&Place::ALL).await {
            Err(full) => BuildError::DiskFull(full.to_string()).into(),
            Ok(()) => outcome,
        }
    }

    /// Removes what an ended build made. What cannot be removed now is left to the next sweep.
    pub(crate) async fn remove(&self, build: BuildId) {
        if !self.garbage_collect {
            return;
        }
        for attempt in 1..=REMOVE_ATTEMPTS {
            match leftovers::remove(&self.engine, &self.ledger, build).await {
                Ok(()) => return,
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(%build, %error, attempt, "failed to remove what a build made");
                }
            }
            sleep(REMOVE_RETRY * attempt).await;
        }
        self.something_left.notify_one();
    }

    /// Removes what was prepared for a build that has not begun.
    pub(crate) async fn remove_prepared(&self, build: BuildId) {
        if let Err(error) = cleanup::remove_prepared(&self.engine, build).await {
            tracing::warn!(%build, %error, "failed to remove what was prepared for a build; trying again later");
        }
    }

    /// Records the nameless volumes of a build's compose project while its hook runs: a container that the
    /// hook removes leaves them behind.
    pub(crate) async fn watch_volumes(&self, build: &Build) -> Infallible {
        let id = build.request.id;
        let label = format!("{COMPOSE_PROJECT_LABEL}={}", id.compose_project());
        let mut volumes = self.engine.nameless_volumes(label, build.claimed_at);
        loop {
            let recorded = match volumes.next().await {
                Ok(volume) => self.ledger.volume_used(id, &volume).await,
                Err(error) => {
                    tracing::debug!(build = %id, %error, "failed to follow the engine's events; trying again");
                    sleep(WATCH_INTERVAL).await;
                    continue;
                }
            };
            if let Err(error) = recorded {
                tracing::warn!(build = %id, %error, "failed to record a volume of a build; it may be left behind");
            }
        }
    }

    async fn check(&self, places: &[Place]) -> Result<(), DiskFull> {
        for &place in places {
            let path = match place {
                Place::DataDir => Some(&self.data_dir),
                Place::Engine => self.volumes.as_ref(),
            };
            if let Some(path) = path
                && let Some(room) = Room::at(path).await
            {
                room.check(self.storage.free_min_bytes, place)?;
            }
        }
        Ok(())
    }

    /// What fails is tried again by the next sweep, and holds up nothing else of this one. True if it is
    /// known that nothing is left of builds that are over. Of those who ask for room while a sweep goes on, one sweeps
    /// for all.
    async fn sweep(&self, thoroughness: Thoroughness) -> bool {
        let asked = Instant::now();
        let mut last_thorough = self.broom.lock().await;
        if thoroughness == Thoroughness::MakeRoom {
            if last_thorough.is_some_and(|begun| begun >= asked) {
                return false;
            }
            *last_thorough = Some(Instant::now());
        }
        let (engine, ledger) = (&self.engine, &self.ledger);
        let kept_for = self
            .storage
            .image_retention
            .map(|usual| match thoroughness {
                Thoroughness::Usual => usual,
                Thoroughness::MakeRoom => Duration::ZERO,
            });
        let nothing_left = log(
            "leftovers",
            leftovers::sweep(engine, ledger, self.lease_is_lock).await,
        );
        if let Some(kept_for) = kept_for {
            let removed = images::remove_unused(engine, ledger, &self.image, kept_for);
            log("unused images", removed.await);
        }
        if self.garbage_collect {
            let removed = images::remove_built(engine, ledger);
            log("images that builds built", removed.await);
        }
        let wanted = match thoroughness {
            Thoroughness::Usual => Wanted::default(),
            Thoroughness::MakeRoom => self.wanted().await,
        };
        let trimmed = retention::trim_logs(ledger, &self.data_dir, &self.storage, wanted);
        log("old logs", trimmed.await);
        let trimmed = retention::trim_records(ledger, &self.storage);
        log("old records", trimmed.await);
        self.fill_reserve().await;
        nothing_left
    }

    /// What is missing under `DATA_DIR`. Logs go last: they cannot be had again.
    async fn wanted(&self) -> Wanted {
        let room = Room::at(&self.data_dir).await;
        room.map_or_else(Wanted::default, |room| {
            room.wanted(self.storage.free_min_bytes)
        })
    }

    async fn fill_reserve(&self) {
        let room = Room::at(&self.data_dir).await;
        if !room.is_some_and(|room| room.holds_reserve(self.storage.free_min_bytes)) {
            return;
        }
        if let Err(error) = Reserve::of(&self.data_dir).fill() {
            tracing::warn!(%error, "failed to set room aside for the records");
        }
    }
}

/// Logs a failure; false if there was one.
fn log(what: &str, swept: anyhow::Result<()>) -> bool {
    if let Err(error) = &swept {
        tracing::warn!(error = format!("{error:#}"), "failed to remove all {what}");
    }
    swept.is_ok()
}
