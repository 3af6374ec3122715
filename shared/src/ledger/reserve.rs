//! A little room on the disk of `DATA_DIR` that is set aside for the records.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

/// A file in `DATA_DIR` that holds nothing but room. It is given up for the records when there is
/// none, so that they can tell how the builds have ended.
#[derive(Debug, Clone)]
pub struct Reserve(PathBuf);

impl Reserve {
    /// Enough for SQLite to record the ends of hundreds of builds.
    pub const BYTES: u64 = 4 << 20;

    /// The reserve in this directory, set aside or not.
    pub fn of(data_dir: &Path) -> Self {
        Self(data_dir.join("reserve"))
    }

    /// Sets the room aside, unless it is already.
    ///
    /// # Errors
    /// There is too little room, or the file cannot be written.
    pub fn fill(&self) -> io::Result<()> {
        if self.0.exists() {
            return Ok(());
        }
        let file = File::create(&self.0)?;
        let filled = fallocate(&file, FallocateFlags::empty(), 0, Self::BYTES);
        if filled.is_err() {
            self.release();
        }
        Ok(filled?)
    }

    /// Gives the room up; false if it was not set aside.
    pub fn release(&self) -> bool {
        fs::remove_file(&self.0).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_is_set_aside_once_and_given_up_once() {
        let directory = tempfile::tempdir().expect("directory");
        let reserve = Reserve::of(directory.path());
        assert!(!reserve.release());
        reserve.fill().expect("filled");
        reserve.fill().expect("filled already");
        let file = directory.path().join("reserve");
        let length = fs::metadata(file).expect("it is there").len();
        assert_eq!(length, Reserve::BYTES);
        assert!(reserve.release());
        assert!(!reserve.release());
    }
}
