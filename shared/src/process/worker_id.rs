//! The identity of this worker, kept in `DATA_DIR`.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;

use crate::build::WorkerId;
use crate::process::directory;

/// In `DATA_DIR`.
const FILE: &str = "worker-id";
/// The file's name while it is written, so that there is never a part of it.
const UNFINISHED: &str = "worker-id.new";
/// For the owner alone.
const MODE: u32 = 0o600;

/// Reads the worker's identity; makes a new one, which is durable when this returns, if there is none.
///
/// # Errors
/// The file cannot be read or written, or holds something else.
pub(crate) fn read_or_make(data_dir: &Path) -> anyhow::Result<WorkerId> {
    let path = data_dir.join(FILE);
    let context = || format!("DATA_DIR: {}", path.display());
    match fs::read_to_string(&path) {
        Ok(text) => text.parse().with_context(context),
        Err(error) if error.kind() == ErrorKind::NotFound => make(data_dir).with_context(context),
        Err(error) => Err(error).with_context(context),
    }
}

fn make(data_dir: &Path) -> std::io::Result<WorkerId> {
    let id = WorkerId::random();
    let unfinished = data_dir.join(UNFINISHED);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(MODE);
    let mut file = options.open(&unfinished)?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    fs::rename(unfinished, data_dir.join(FILE))?;
    directory::sync(data_dir)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_worker_keeps_its_identity_to_itself() {
        let directory = tempfile::tempdir().expect("directory");
        let made = read_or_make(directory.path()).expect("made");
        assert_eq!(read_or_make(directory.path()).expect("read"), made);
        let file = fs::metadata(directory.path().join(FILE)).expect("it is there");
        assert_eq!(file.permissions().mode() & 0o777, MODE);
        assert!(!directory.path().join(UNFINISHED).exists());
    }

    #[test]
    fn another_content_is_named_with_its_file() {
        let directory = tempfile::tempdir().expect("directory");
        fs::write(directory.path().join(FILE), "me").expect("written");
        let error = read_or_make(directory.path()).expect_err("no identity");
        let line = format!("{error:#}");
        assert!(line.starts_with("DATA_DIR: ") && line.contains("worker-id: a worker id"));
    }
}
