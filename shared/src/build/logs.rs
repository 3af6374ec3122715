//! The place of the builds' logs below `DATA_DIR`: the runner writes there, all others read.

use std::path::{Path, PathBuf};

use super::BuildId;

/// Returns the folder of all logs.
pub fn logs_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("logs")
}

/// Returns the file of one build's log. It exists once the hook has begun.
pub fn log_path(data_dir: &Path, build: BuildId) -> PathBuf {
    logs_dir(data_dir).join(format!("{build}.log"))
}
