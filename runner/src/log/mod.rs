//! A build's log: masked, capped in its file, written as it comes.
//!
//! A thread of its own writes, so that a slow disk never holds up the other builds, and no reader of
//! the file can hold up the hook. Standard output can: its reader is a person, or the next command.

mod capped;
mod earlier;
mod proof;
mod recorder;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use shared::mask::Masker;
pub use shared::mask::Secrets;
use tokio_util::task::TaskTracker;

use crate::stop::Stop;

pub use self::proof::ProofFilter;
pub(crate) use self::recorder::{LogError, Recorder};
use self::recorder::{Target, Writer};

/// The destination of a log: a file, standard output, or both. Secrets are masked in every case.
#[derive(Debug, Clone)]
pub struct Sink {
    file: Option<PathBuf>,
    stdout: bool,
}

impl Sink {
    /// A file, whose size is limited. Its directory exists.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self {
            file: Some(path.into()),
            stdout: false,
        }
    }

    /// Standard output, without a limit.
    pub fn stdout() -> Self {
        Self {
            file: None,
            stdout: true,
        }
    }

    /// Adds standard output.
    pub fn and_stdout(self) -> Self {
        Self {
            stdout: true,
            ..self
        }
    }
}

/// Removes the file of a log, if there is one, and the files beside it.
///
/// # Errors
/// The file system refuses.
pub fn remove(path: &Path) -> io::Result<()> {
    for path in [&capped::tail(path), &earlier::earlier(path), path] {
        none_is_fine(fs::remove_file(path))?;
    }
    Ok(())
}

/// The log of one build, through all its recordings.
#[derive(Debug)]
pub(crate) struct Log<'a> {
    sink: &'a Sink,
    limit_bytes: u64,
    secrets: &'a Secrets,
    stop: &'a Stop,
    /// The bytes that have reached standard output.
    printed_bytes: Arc<AtomicU64>,
    /// The exit code that the proof of the hook's end names.
    end_code: Arc<OnceLock<i64>>,
    writers: TaskTracker,
}

impl<'a> Log<'a> {
    /// A log that keeps to a limit in its file. On a full disk it requests a stop.
    pub(crate) fn new(
        sink: &'a Sink,
        limit_bytes: u64,
        secrets: &'a Secrets,
        stop: &'a Stop,
    ) -> Self {
        Self {
            sink,
            limit_bytes,
            secrets,
            stop,
            printed_bytes: Arc::default(),
            end_code: Arc::default(),
            writers: TaskTracker::new(),
        }
    }

    /// Begins a recording, in place of the last one. If an earlier one was set aside, the two are put
    /// together. The proof of the hook's end is taken out.
    ///
    /// # Errors
    /// The file cannot be made, or the earlier recording cannot be read.
    pub(crate) fn record(&self, end_proof: Option<&str>) -> Result<Recorder, LogError> {
        let mut targets = Vec::new();
        if let Some(path) = self.file() {
            targets.push(Target::file(path, self.limit_bytes)?);
        }
        if self.sink.stdout {
            targets.push(Target::stdout(&self.printed_bytes));
        }
        let proof = end_proof.map(|begin| ProofFilter::new(begin, Arc::clone(&self.end_code)));
        let writer = Writer::new(targets, proof, self.secrets.clone(), self.stop.clone());
        Ok(Recorder::start(writer, &self.writers))
    }

    /// The exit code of the hook, once a recording has come to its end.
    pub(crate) fn end_code(&self) -> Option<i64> {
        self.end_code.get().copied()
    }

    /// Waits until every recording has reached its end, also one that was dropped.
    pub(crate) async fn settle(&self) {
        self.writers.close();
        self.writers.wait().await;
    }

    /// Sets the recording aside before the next one.
    pub(crate) fn set_aside(&self) {
        if let Some(path) = self.file()
            && let Err(error) = earlier::set_aside(path, self.limit_bytes)
        {
            tracing::warn!(?path, %error, "failed to set the log aside; the next recording may lack a part");
        }
    }

    /// Keeps the longer one of the recording and of the one that was set aside. One that has come to the
    /// hook's end is kept in any case.
    pub(crate) fn keep_longer(&self, end_was_seen: bool) {
        let keep = |path: &Path| match self.end_code() {
            Some(_) => earlier::discard(path),
            None => earlier::keep_longer(path, self.limit_bytes, end_was_seen),
        };
        if let Some(path) = self.file()
            && let Err(error) = keep(path)
        {
            tracing::warn!(?path, %error, "failed to keep the longer log; it may lack its end");
        }
    }

    /// Puts together the files that an earlier process has left of a log that has no other source.
    pub(crate) fn close(&self) {
        self.set_aside();
        self.keep_longer(false);
    }

    /// Removes all recordings.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn remove(&self) -> io::Result<()> {
        self.file().map_or(Ok(()), remove)
    }

    /// Compares the end of the recording with these bytes, masked. False if there is no file.
    pub(crate) fn ends_with(&self, end: &[u8]) -> bool {
        self.file()
            .is_some_and(|path| ends_with(path, end).unwrap_or(false))
    }

    /// Masks bytes as the log does.
    pub(crate) fn masker(&self) -> Masker {
        Masker::new(self.secrets.clone())
    }

    fn file(&self) -> Option<&Path> {
        self.sink.file.as_deref()
    }
}

/// Compares the last bytes of a file.
fn ends_with(path: &Path, end: &[u8]) -> io::Result<bool> {
    let mut log = File::open(path)?;
    let Some(begins) = log.metadata()?.len().checked_sub(end.len() as u64) else {
        return Ok(false);
    };
    log.seek(SeekFrom::Start(begins))?;
    let mut last = vec![0; end.len()];
    log.read_exact(&mut last)?;
    Ok(last == end)
}

/// The size of a file in bytes; 0 if there is none.
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::{StreamExt, stream};

    use super::*;

    /// The log that is kept of these chunks.
    async fn recorded(limit_bytes: u64, secrets: &[&str], chunks: &[&str]) -> String {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("build.log");
        let sink = Sink::file(&path);
        let values: Vec<_> = secrets.iter().map(|text| (*text).into()).collect();
        let (secrets, stop) = (Secrets::new(&values), Stop::default());
        let log = Log::new(&sink, limit_bytes, &secrets, &stop);
        let mut recorder = log.record(None).expect("created");
        let chunks: Vec<_> = chunks
            .iter()
            .map(|text| Ok(Bytes::copy_from_slice(text.as_bytes())))
            .collect();
        let mut output = stream::iter(chunks).boxed();
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

    #[tokio::test]
    async fn dropped_recording_is_whole_once_settled() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("build.log");
        let (sink, secrets, stop) = (Sink::file(&path), Secrets::new(&[]), Stop::default());
        let log = Log::new(&sink, 20, &secrets, &stop);
        let mut recorder = log.record(None).expect("created");
        let chunk = Bytes::from_static(b"0123456789abcdef");
        let mut output = stream::iter([Ok(chunk)]).boxed();
        recorder.take(&mut output).await.expect("taken");
        drop(recorder);
        log.settle().await;
        assert_eq!(fs::read_to_string(&path).expect("read"), "0123456789abcdef");
    }

    #[tokio::test]
    async fn full_disk_requests_a_stop() {
        let (sink, secrets, stop) = (Sink::file("/dev/full"), Secrets::new(&[]), Stop::default());
        let log = Log::new(&sink, 1000, &secrets, &stop);
        let mut recorder = log.record(None).expect("it can be opened");
        let mut output = stream::iter([Ok(Bytes::from_static(b"text"))]).boxed();
        recorder.take(&mut output).await.expect("taken");
        let error = recorder.finish().await.expect_err("it is full");
        insta::assert_snapshot!(error, @"disk full (no space left under DATA_DIR; free some)");
        let lack = error.to_string();
        let expected = shared::build::StopReason::DiskFull { lack };
        assert_eq!(stop.reason(), Some(&expected));
    }
}
