//! Room on the disks: how much is left, and whether that is enough.

use std::fmt;
use std::path::Path;

use bytesize::ByteSize;
use rustix::fs::statvfs;
use rustix::io::Errno;
use shared::ledger::Reserve;

/// One inode in so many has to be free. A file system has a fixed number of them, which small files
/// use up while there are bytes left.
const INODES_PER_FREE_ONE: u64 = 200;

/// There is too little room; fit for the commit's author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("disk full ({lack}; free some{remedy})")]
pub(super) struct DiskFull {
    lack: String,
    remedy: &'static str,
}

/// Which disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// That of queue, records and logs.
    DataDir,
    /// That of the engine's volumes, and most often of its images and containers.
    Engine,
}

impl Place {
    pub(super) const ALL: [Self; 2] = [Self::DataDir, Self::Engine];
}

/// What is left on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    free_bytes: u64,
    free_inodes: u64,
    /// 0 where the file system makes them as it needs them.
    inodes: u64,
}

/// What has to be removed for there to be enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    pub(super) bytes: u64,
    pub(super) files: u64,
}

impl DiskFull {
    fn bytes(free: u64, min: u64, place: Place) -> Self {
        let [free, min] = [free, min].map(|bytes| ByteSize(bytes).display().iec());
        Self {
            lack: format!("{free} left {place}, less than {min}"),
            remedy: " or lower DISK_FREE_MIN",
        }
    }

    fn inodes(room: Room, place: Place) -> Self {
        let Room {
            free_inodes,
            inodes,
            ..
        } = room;
        Self {
            lack: format!("{free_inodes} of {inodes} inodes left {place}"),
            remedy: "",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DataDir => "under DATA_DIR",
            Self::Engine => "for the Docker engine",
        })
    }
}

impl Room {
    /// What is left where this path is; nothing if it is not on this machine, or not in this container.
    pub(super) async fn at(path: &Path) -> Option<Self> {
        let path = path.to_owned();
        let found = tokio::task::spawn_blocking(move || visible(&path, |path| statvfs(path))).await;
        let found = found.expect("statvfs does not panic").ok()?;
        Some(Self {
            free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
            free_inodes: found.f_favail,
            inodes: found.f_files,
        })
    }

    /// Fails if less than `min_bytes` are left, or too few inodes. A minimum of 0 is never too much.
    pub(super) fn check(self, min_bytes: u64, place: Place) -> Result<(), DiskFull> {
        let Wanted { bytes, files } = self.wanted(min_bytes);
        if bytes > 0 {
            return Err(DiskFull::bytes(self.free_bytes, min_bytes, place));
        }
        match files {
            0 => Ok(()),
            _ => Err(DiskFull::inodes(self, place)),
        }
    }

    /// How much has to go for the [`Room::check`] to succeed.
    pub(super) fn wanted(self, min_bytes: u64) -> Wanted {
        match min_bytes {
            0 => Wanted::default(),
            _ => Wanted {
                bytes: min_bytes.saturating_sub(self.free_bytes),
                files: (self.inodes / INODES_PER_FREE_ONE).saturating_sub(self.free_inodes),
            },
        }
    }

    /// Whether a reserve fits in, and a build beside it.
    pub(super) fn holds_reserve(self, min_bytes: u64) -> bool {
        self.free_bytes > min_bytes.saturating_add(2 * Reserve::BYTES)
    }
}

/// The volumes lie in a directory of the engine's.
const BELOW_ENGINE: usize = 1;

/// Asks for the file system of a path. Users other than root may not look into the engine's directory,
/// but may ask for what is mounted there: then that counts, and nothing above it.
fn visible<T>(path: &Path, ask: impl Fn(&Path) -> Result<T, Errno>) -> Result<T, Errno> {
    let mut found = path.ancestors().take(1 + BELOW_ENGINE).map(ask);
    let found = found.find(|found| !matches!(found, Err(Errno::ACCESS)));
    found.unwrap_or(Err(Errno::ACCESS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: u64 = 1 << 30;

    fn room(free_bytes: u64, free_inodes: u64, inodes: u64) -> Room {
        Room {
            free_bytes,
            free_inodes,
            inodes,
        }
    }

    fn lack(room: Room, min_bytes: u64) -> Option<String> {
        let full = room.check(min_bytes, Place::DataDir).err()?;
        Some(full.to_string())
    }

    #[test]
    fn too_few_bytes_or_inodes_are_told_with_what_to_do() {
        for (room, min_bytes, told) in [
            (room(MIN, 1000, 1000), MIN, None),
            (
                room(MIN / 4, 1000, 1000),
                MIN,
                Some(
                    "disk full (256.0 MiB left under DATA_DIR, less than 1.0 GiB; \
                     free some or lower DISK_FREE_MIN)",
                ),
            ),
            (
                room(MIN, 4, 1000),
                MIN,
                Some("disk full (4 of 1000 inodes left under DATA_DIR; free some)"),
            ),
            (room(MIN, 5, 1000), MIN, None),
            // btrfs counts no inodes.
            (room(MIN, 0, 0), MIN, None),
            (room(0, 0, 1000), 0, None),
        ] {
            assert_eq!(lack(room, min_bytes).as_deref(), told, "{room:?}");
        }
    }

    #[test]
    fn what_is_wanted_is_what_is_missing() {
        let wanted = |room: Room| room.wanted(MIN);
        let (bytes, files) = (MIN / 4, 2);
        assert_eq!(wanted(room(MIN - bytes, 3, 1000)), Wanted { bytes, files });
        assert_eq!(wanted(room(2 * MIN, 900, 1000)), Wanted::default());
    }

    #[tokio::test]
    async fn the_room_of_a_path_is_seen_where_it_exists() {
        assert!(Room::at(Path::new("/")).await.is_some());
        assert!(Room::at(Path::new("/nowhere")).await.is_none());
    }

    #[test]
    fn the_engines_directory_counts_where_volumes_are_hidden() {
        let volumes = Path::new("/var/lib/docker/volumes");
        let docker = Path::new("/var/lib/docker");
        let not_root = |path: &Path| match path == volumes {
            true => Err(Errno::ACCESS),
            false => Ok(path.to_owned()),
        };
        assert_eq!(visible(volumes, not_root), Ok(docker.to_owned()));
        let elsewhere = |path: &Path| match path == volumes {
            true => Err(Errno::NOENT),
            false => Ok(()),
        };
        assert_eq!(visible(volumes, elsewhere), Err(Errno::NOENT));
        let above = |path: &Path| match path.starts_with(docker) {
            true => Err(Errno::ACCESS),
            false => Ok(()),
        };
        assert_eq!(visible(volumes, above), Err(Errno::ACCESS));
    }
}
