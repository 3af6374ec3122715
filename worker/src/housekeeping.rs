//! Keeps the disks from filling up: removes what nobody needs, and watches the room that is left.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use shared::config::StorageConfig;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::disk::{DiskFull, Place, Reserve, Room, Wanted};
use crate::engine::Engine;
use crate::record::Records;
use crate::{cleanup, images, retention};

/// How often it is looked for what nobody needs any more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// How soon after the first of the sweeps that could not remove what is left of builds; it doubles.
const SWEEP_RETRY: Duration = Duration::from_secs(5);
/// How often the room is measured while a build runs.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Keeps house for a worker. Clones share everything.
#[derive(Debug, Clone)]
pub struct Housekeeper {
    pub(crate) engine: Engine,
    pub(crate) records: Records,
    pub(crate) data_dir: PathBuf,
    /// The image that builds run in.
    pub(crate) image: String,
    /// What is kept, and how much is left free.
    pub(crate) storage: StorageConfig,
    /// Whether what builds made is removed at all.
    pub(crate) garbage_collect: bool,
    /// One sweep at a time.
    pub(crate) broom: Arc<Mutex<()>>,
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
            let thoroughness = match self.check_room(&self.data_dir).await {
                Ok(()) => Thoroughness::Usual,
                Err(_full) => Thoroughness::MakeRoom,
            };
            if self.sweep(thoroughness).await {
                retry = SWEEP_RETRY;
                sleep(SWEEP_INTERVAL).await;
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

    /// Whether there is room for a build, in `DATA_DIR` and where its checkout is. Of an engine that
    /// is elsewhere, or whose disk cannot be seen from this process's container, it is the engine
    /// who tells when it is full.
    ///
    /// # Errors
    /// There is too little.
    pub(crate) async fn check_room(&self, checkout: &Path) -> Result<(), DiskFull> {
        for (path, place) in [
            (self.data_dir.as_path(), Place::DataDir),
            (checkout, Place::Engine),
        ] {
            if let Some(room) = Room::at(path).await {
                room.check(self.storage.free_min_bytes, place)?;
            }
        }
        Ok(())
    }

    /// Returns once there is too little room for a build that runs, and none can be made.
    pub(crate) async fn room_ends(&self, checkout: &Path) -> DiskFull {
        loop {
            sleep(WATCH_INTERVAL).await;
            if self.check_room(checkout).await.is_ok() {
                continue;
            }
            self.make_room().await;
            if let Err(full) = self.check_room(checkout).await {
                return full;
            }
        }
    }

    /// What fails is tried again by the next sweep, and holds up nothing else of this one. Answers whether
    /// nothing is left of builds that are over.
    async fn sweep(&self, thoroughness: Thoroughness) -> bool {
        let _one_at_a_time = self.broom.lock().await;
        let (engine, records) = (&self.engine, &self.records);
        let kept_for = self
            .storage
            .image_retention
            .map(|usual| match thoroughness {
                Thoroughness::Usual => usual,
                Thoroughness::MakeRoom => Duration::ZERO,
            });
        let nothing_left = tell("leftovers", cleanup::sweep(engine, records).await);
        if let Some(kept_for) = kept_for {
            let removed = images::remove_unused(engine, records, &self.image, kept_for);
            tell("unused images", removed.await);
        }
        if self.garbage_collect {
            let removed = images::remove_built(engine, records);
            tell("images that builds built", removed.await);
        }
        let wanted = match thoroughness {
            Thoroughness::Usual => Wanted::default(),
            Thoroughness::MakeRoom => self.wanted().await,
        };
        let trimmed = retention::trim_logs(records, &self.data_dir, &self.storage, wanted);
        tell("old logs", trimmed.await);
        let trimmed = retention::trim_records(records, &self.storage);
        tell("old records", trimmed.await);
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
            tracing::warn!(%error, "cannot set room aside for the records");
        }
    }
}

/// Tells of a failure; false if there was one.
fn tell(what: &str, swept: anyhow::Result<()>) -> bool {
    if let Err(error) = &swept {
        tracing::warn!(error = format!("{error:#}"), "cannot remove all {what}");
    }
    swept.is_ok()
}
