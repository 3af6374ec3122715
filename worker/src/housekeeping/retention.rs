//! Old logs and records: which of them go, and their removal.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use runner::log;
use shared::build::{BuildId, log_path, logs_dir};
use shared::config::StorageConfig;
use shared::ledger::{EndedBuild, Ledger};
use tokio::task::spawn_blocking;

use super::disk::Wanted;

/// How many builds are looked at together.
const BATCH: usize = 100;
/// A record is kept for so long, or for as long as its log. A delivery that comes again after that
/// is built again; GitHub sends none again that is older than three days.
const RECORDS_KEPT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A log, as far as its removal is concerned.
#[derive(Debug, Clone, Copy)]
struct StoredLog {
    build: BuildId,
    age: Duration,
    size: Size,
}

/// What something takes up on the disk.
type Size = Wanted;

/// Removes the logs that are older, or together larger, than is wanted, and as many more as it
/// takes to have this much more room, the oldest first. None of a build that runs or is still to be
/// reported.
///
/// # Errors
/// The records or the logs cannot be read or removed.
pub(super) async fn trim_logs(
    ledger: &Ledger,
    data_dir: &Path,
    storage: &StorageConfig,
    wanted: Wanted,
) -> anyhow::Result<()> {
    let directory = logs_dir(data_dir);
    let used = blocking(move || size_of_all(&directory)).await?;
    let mut excess = excess(used, storage.log_total_limit_bytes, wanted);
    loop {
        let builds = ledger.oldest_with_log(BATCH).await?;
        let all = builds.len();
        let logs = stored(data_dir, builds).await?;
        let gone = expendable(&logs, storage.log_retention, &mut excess);
        remove(ledger, data_dir, &logs[..gone]).await?;
        if gone < all || all == 0 {
            return Ok(());
        }
    }
}

/// Forgets builds whose logs are gone and that ended long ago.
///
/// # Errors
/// The records cannot be changed.
pub(super) async fn trim_records(ledger: &Ledger, storage: &StorageConfig) -> anyhow::Result<()> {
    let kept_for = storage.log_retention.unwrap_or_default().max(RECORDS_KEPT);
    let oldest = SystemTime::now() - kept_for;
    while ledger.forget_before(oldest, BATCH).await? == BATCH {}
    Ok(())
}

/// How much has to be removed, whatever its age. What would not help is left alone: if all logs
/// together are smaller than the room that is wanted, something else has filled the disk.
fn excess(used: Size, limit_bytes: Option<u64>, wanted: Wanted) -> Wanted {
    let over_limit = limit_bytes.map_or(0, |limit| used.bytes.saturating_sub(limit));
    let helpful = |wanted: u64, used: u64| if wanted <= used { wanted } else { 0 };
    Wanted {
        bytes: over_limit.max(helpful(wanted.bytes, used.bytes)),
        files: helpful(wanted.files, used.files),
    }
}

/// How many of these logs have to go, counted from the oldest, which comes first; and takes their
/// sizes off the excess.
fn expendable(
    oldest_first: &[StoredLog],
    retention: Option<Duration>,
    excess: &mut Wanted,
) -> usize {
    let goes = |log: &&StoredLog| {
        let is_old = retention.is_some_and(|kept_for| log.age > kept_for);
        let goes = is_old || *excess != Wanted::default();
        if goes {
            excess.bytes = excess.bytes.saturating_sub(log.size.bytes);
            excess.files = excess.files.saturating_sub(log.size.files);
        }
        goes
    };
    oldest_first.iter().take_while(goes).count()
}

async fn remove(ledger: &Ledger, data_dir: &Path, logs: &[StoredLog]) -> anyhow::Result<()> {
    if logs.is_empty() {
        return Ok(());
    }
    let builds: Vec<BuildId> = logs.iter().map(|log| log.build).collect();
    let bytes: u64 = logs.iter().map(|log| log.size.bytes).sum();
    let (data_dir, gone) = (data_dir.to_owned(), builds.clone());
    let removed = move || {
        gone.iter()
            .try_for_each(|id| log::remove(&log_path(&data_dir, *id)))
    };
    blocking(removed).await.context("removing logs")?;
    tracing::info!(builds = builds.len(), bytes, "removed old logs");
    Ok(ledger.logs_removed(builds).await?)
}

async fn stored(data_dir: &Path, builds: Vec<EndedBuild>) -> anyhow::Result<Vec<StoredLog>> {
    let data_dir = data_dir.to_owned();
    let now = SystemTime::now();
    let look = move |build: EndedBuild| {
        Ok(StoredLog {
            build: build.id,
            age: now.duration_since(build.at).unwrap_or_default(),
            size: size_of(&log_path(&data_dir, build.id))?,
        })
    };
    blocking(move || builds.into_iter().map(look).collect()).await
}

fn size_of_all(directory: &Path) -> io::Result<Size> {
    let mut all = Size::default();
    for file in fs::read_dir(directory)? {
        let size = size_of(&file?.path())?;
        all.bytes += size.bytes;
        all.files += size.files;
    }
    Ok(all)
}

/// What a file takes up, which may be removed at any time.
fn size_of(path: &Path) -> io::Result<Size> {
    match fs::metadata(path) {
        Ok(found) => Ok(Size {
            bytes: found.len(),
            files: 1,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Size::default()),
        Err(error) => Err(error),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let done = spawn_blocking(work).await.context("work on the logs")?;
    done.context("the logs under DATA_DIR")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const NOTHING: Wanted = Wanted { bytes: 0, files: 0 };

    fn bytes(bytes: u64) -> Wanted {
        Wanted { bytes, files: 0 }
    }

    fn files(files: u64) -> Wanted {
        Wanted { bytes: 0, files }
    }

    #[test]
    fn the_oldest_logs_go_by_age_by_size_and_by_number() {
        let logs = [(9, 100), (5, 10), (3, 100), (1, 100)].map(|(days, bytes)| StoredLog {
            build: BuildId::random(),
            age: days * DAY,
            size: Size { bytes, files: 1 },
        });
        for (retention, mut excess, gone) in [
            (None, NOTHING, 0),
            (Some(9 * DAY), NOTHING, 0),
            (Some(4 * DAY), NOTHING, 2),
            (Some(DAY / 2), NOTHING, 4),
            (None, bytes(1), 1),
            (None, bytes(100), 1),
            (None, bytes(101), 2),
            (None, bytes(111), 3),
            (None, files(3), 3),
            // What goes for its age counts.
            (Some(4 * DAY), bytes(110), 2),
            (Some(4 * DAY), bytes(111), 3),
            (None, bytes(9999), 4),
        ] {
            let told = format!("{retention:?} {excess:?}");
            assert_eq!(expendable(&logs, retention, &mut excess), gone, "{told}");
        }
    }

    #[test]
    fn an_excess_goes_on_to_the_next_batch() {
        let log = StoredLog {
            build: BuildId::random(),
            age: DAY,
            size: Size {
                bytes: 60,
                files: 1,
            },
        };
        let mut excess = bytes(100);
        assert_eq!(expendable(&[log], None, &mut excess), 1);
        assert_eq!(excess, bytes(40));
        assert_eq!(expendable(&[log, log], None, &mut excess), 1);
        assert_eq!(excess, NOTHING);
    }

    #[test]
    fn logs_are_removed_down_to_their_limit_or_until_there_is_room() {
        let used = Size {
            bytes: 100,
            files: 10,
        };
        for (limit, wanted, expected) in [
            (None, NOTHING, NOTHING),
            (Some(100), NOTHING, NOTHING),
            (Some(70), NOTHING, bytes(30)),
            (Some(70), bytes(20), bytes(30)),
            (Some(70), bytes(40), bytes(40)),
            (None, bytes(100), bytes(100)),
            (None, files(4), files(4)),
            // All of them would not be enough.
            (None, bytes(101), NOTHING),
            (None, files(11), NOTHING),
            (Some(70), bytes(101), bytes(30)),
        ] {
            assert_eq!(
                excess(used, limit, wanted),
                expected,
                "{limit:?} {wanted:?}"
            );
        }
    }
}
