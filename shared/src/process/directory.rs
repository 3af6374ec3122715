//! Directories that are there after a power cut.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// For the owner alone: in `DATA_DIR` stand the logs of builds.
const MODE: u32 = 0o700;

/// Makes a directory for its owner alone, unless it is there. Its parents are made as usual.
///
/// # Errors
/// It cannot be made, or not durably.
pub fn make_private(directory: &Path) -> io::Result<()> {
    let directory = std::path::absolute(directory)?;
    let missing: Vec<_> = directory
        .ancestors()
        .take_while(|ancestor| !ancestor.exists())
        .collect();
    directory.parent().map_or(Ok(()), fs::create_dir_all)?;
    // `recursive` also means that it may exist.
    DirBuilder::new()
        .recursive(true)
        .mode(MODE)
        .create(&directory)?;
    missing
        .iter()
        .filter_map(|made| made.parent())
        .try_for_each(sync)
}

/// Makes the names in a directory durable.
///
/// # Errors
/// The disk does not take them.
pub fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
