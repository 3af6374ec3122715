//! A file that keeps other processes out of a directory.

use std::fs::{File, TryLockError};
use std::path::Path;

/// Keeps other processes out for as long as it lives.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Locks this file, which is made if it is missing. It stays when the lock is gone.
    ///
    /// # Errors
    /// [`TryLockError::WouldBlock`] if another process has it locked, or the file cannot be made.
    pub fn take(path: &Path) -> Result<Self, TryLockError> {
        let file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)
            .map_err(TryLockError::Error)?;
        file.try_lock()?;
        Ok(Self(file))
    }
}

impl Drop for FileLock {
    /// To close the file is not enough: a process that is being started may share it until its
    /// `exec`.
    fn drop(&mut self) {
        // If it fails, the end of this process releases the lock.
        let _ = self.0.unlock();
    }
}
