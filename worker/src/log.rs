//! A build's log on disk: masked, capped, written as it comes.
//!
//! A thread of its own writes, so that a slow disk never holds up the other builds, and nothing
//! else that reads the log can ever hold up the hook.

mod capped;
mod earlier;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::StreamExt;
use shared::build::BuildId;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::disk;
use crate::engine::{EngineError, Output};
use crate::mask::{Masker, Secrets};
use capped::CappedFile;
use earlier::{Splice, earlier};
pub(crate) use earlier::{keep_longer, set_aside};

/// Chunks that may wait for the disk before the hook has to.
const QUEUED_CHUNKS: usize = 64;

/// Where the logs of all builds are kept.
pub fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("logs")
}

/// Where the log of one build is.
pub fn path(data_dir: &Path, build: BuildId) -> PathBuf {
    directory(data_dir).join(format!("{build}.log"))
}

/// Removes the log of one build, if there is one.
///
/// # Errors
/// The file system refuses.
pub(crate) fn remove(data_dir: &Path, build: BuildId) -> io::Result<()> {
    let path = path(data_dir, build);
    for path in [capped::tail(&path), earlier(&path), path] {
        none_is_fine(fs::remove_file(path))?;
    }
    Ok(())
}

/// Whether these are the last bytes of a log.
///
/// # Errors
/// It cannot be read.
pub(crate) fn ends_with(path: &Path, end: &[u8]) -> io::Result<bool> {
    let mut log = File::open(path)?;
    let Some(begins) = log.metadata()?.len().checked_sub(end.len() as u64) else {
        return Ok(false);
    };
    log.seek(SeekFrom::Start(begins))?;
    let mut last = vec![0; end.len()];
    log.read_exact(&mut last)?;
    Ok(last == end)
}

/// In bytes; nothing is 0.
fn size(path: &Path) -> io::Result<u64> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        found => found.map(|file| file.len()),
    }
}

fn none_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Writes one build's log.
#[derive(Debug)]
pub(crate) struct Recorder {
    chunks: mpsc::Sender<Bytes>,
    writer: JoinHandle<io::Result<()>>,
    disk_full: CancellationToken,
}

impl Recorder {
    /// Begins a log, in place of what may stand at this path. Where an earlier recording was set
    /// aside, what comes is put together with it.
    ///
    /// # Errors
    /// The file cannot be made, or the earlier recording cannot be read.
    pub(crate) fn create(path: &Path, limit_bytes: u64, secrets: Secrets) -> io::Result<Self> {
        let splice = Splice::onto(&earlier(path), limit_bytes)?;
        let file = CappedFile::create(path, limit_bytes)?;
        let (chunks, received) = mpsc::channel(QUEUED_CHUNKS);
        let disk_full = CancellationToken::new();
        let log = Log {
            file,
            splice,
            result: Ok(()),
            disk_full: disk_full.clone(),
        };
        let writer = tokio::task::spawn_blocking(move || write_all(received, log, secrets));
        Ok(Self {
            chunks,
            writer,
            disk_full,
        })
    }

    /// Cancelled when there was no room for some of the log.
    pub(crate) fn disk_full(&self) -> CancellationToken {
        self.disk_full.clone()
    }

    /// Takes all that a container writes, until it ends or the connection does. Cancelling it
    /// loses nothing: there is room for a chunk before it is taken from the stream.
    pub(crate) async fn take(&mut self, output: &mut impl Output) -> Result<(), EngineError> {
        // The writer takes chunks for as long as this end lives, even when the disk is full.
        while let Ok(room) = self.chunks.reserve().await {
            match output.next().await {
                Some(chunk) => room.send(chunk?),
                None => break,
            }
        }
        Ok(())
    }

    /// Ends the log.
    ///
    /// # Errors
    /// Some of the log could not be written.
    pub(crate) async fn finish(self) -> io::Result<()> {
        drop(self.chunks);
        self.writer.await.map_err(io::Error::other)?
    }
}

/// Writes until nothing more comes. What breaks costs the log, and does not hold up the hook: the
/// rest is received and let go, and the error is told at the end.
fn write_all(mut chunks: mpsc::Receiver<Bytes>, mut log: Log, secrets: Secrets) -> io::Result<()> {
    let mut masker = Masker::new(secrets);
    while let Some(chunk) = chunks.blocking_recv() {
        masker.push(&chunk, |bytes| log.write(bytes));
        if chunks.is_empty() {
            log.flush();
        }
    }
    masker.finish(|bytes| log.write(bytes));
    log.finish()
}

/// A file that is written until the first error: on a full disk, what others are about to make room
/// for is not the log's.
struct Log {
    file: CappedFile,
    splice: Splice,
    result: io::Result<()>,
    disk_full: CancellationToken,
}

impl Log {
    fn write(&mut self, bytes: &[u8]) {
        if self.result.is_ok() {
            let written = self.splice.push(bytes, &mut self.file);
            self.note(written);
        }
    }

    fn flush(&mut self) {
        if self.result.is_ok() {
            let flushed = self.file.flush();
            self.note(flushed);
        }
    }

    fn note(&mut self, result: io::Result<()>) {
        if result.as_ref().is_err_and(disk::is_full) {
            self.disk_full.cancel();
        }
        self.result = result;
    }

    fn finish(mut self) -> io::Result<()> {
        if self.result.is_ok() {
            let spliced = self.splice.finish(&mut self.file);
            self.note(spliced);
        }
        if self.result.is_ok() {
            let joined = self.file.finish();
            self.note(joined);
        }
        if self.result.is_err() {
            self.file.abandon();
        }
        self.result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn recorded(limit_bytes: u64, secrets: &[&str], chunks: &[&str]) -> String {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("build.log");
        let values: Vec<_> = secrets.iter().map(|text| (*text).into()).collect();
        let mut recorder =
            Recorder::create(&path, limit_bytes, Secrets::new(&values)).expect("created");
        let chunks: Vec<_> = chunks
            .iter()
            .map(|text| Ok(Bytes::copy_from_slice(text.as_bytes())))
            .collect();
        let mut output = futures_util::stream::iter(chunks);
        recorder.take(&mut output).await.expect("taken");
        recorder.finish().await.expect("written");
        let files = fs::read_dir(directory.path()).expect("listed").count();
        assert_eq!(files, 1, "the tail's file is gone");
        fs::read_to_string(&path).expect("read")
    }

    #[test]
    fn the_end_of_a_log_is_compared_byte_by_byte() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), "one\ntwo\n").expect("written");
        for (end, is_end) in [
            ("", true),
            ("two\n", true),
            ("one\ntwo\n", true),
            ("one\n", false),
            ("three\none\ntwo\n", false),
        ] {
            let told = ends_with(file.path(), end.as_bytes()).expect("read");
            assert_eq!(told, is_end, "{end:?}");
        }
    }

    #[tokio::test]
    async fn below_its_limit_a_log_is_kept_byte_by_byte() {
        assert_eq!(
            recorded(20, &[], &["0123456789", "0123456789"]).await,
            "01234567890123456789"
        );
    }

    #[tokio::test]
    async fn above_its_limit_head_and_tail_are_kept_and_the_cut_is_told() {
        let chunks = ["0123456789", "abcdefghij", "0123456789", "ABCDEFGHIJKL"];
        assert_eq!(
            recorded(20, &[], &chunks).await,
            "0123456789\n[compose-ci: 22 bytes of the log were left out here (LOG_LIMIT)]\nCDEFGHIJKL"
        );
    }

    #[tokio::test]
    async fn a_cut_can_fall_anywhere_in_the_ring() {
        for length in 21..60usize {
            let text: String = (0..length)
                .map(|n| char::from(b'a' + (n % 26) as u8))
                .collect();
            let log = recorded(20, &[], &[&text]).await;
            let cut = length - 20;
            let notice =
                format!("\n[compose-ci: {cut} bytes of the log were left out here (LOG_LIMIT)]\n");
            assert_eq!(
                log,
                format!("{}{notice}{}", &text[..10], &text[length - 10..])
            );
        }
    }

    #[tokio::test]
    async fn a_secret_never_reaches_the_disk() {
        let log = recorded(1000, &["hunter2"], &["password: hun", "ter2\n"]).await;
        assert_eq!(log, "password: ***\n");
    }
}
