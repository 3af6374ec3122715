//! One recording of a log: from the output of a container to where the log goes.

use std::fs;
use std::io::{self, Stdout, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt;
use shared::build::{BuildError, StopReason};
use shared::mask::{Masker, Secrets};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::capped::CappedFile;
use super::earlier::{Splice, earlier};
use super::proof::ProofFilter;
use crate::engine::{EngineError, Output};
use crate::stop::Stop;

/// Chunks that may wait for the disk before the hook has to.
const QUEUED_CHUNKS: usize = 64;

/// Why a part of a log is missing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// Its disk is full; fit for the commit's author.
    #[error("{0}")]
    DiskFull(&'static str),
    /// It cannot be written.
    #[error(transparent)]
    Io(io::Error),
}

impl From<LogError> for BuildError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::DiskFull(lack) => Self::DiskFull(lack.to_owned()),
            LogError::Io(_) => Self::LogLost,
        }
    }
}

/// Records the output of a container.
#[derive(Debug)]
pub(crate) struct Recorder {
    chunks: mpsc::Sender<Bytes>,
    writer: JoinHandle<Result<(), LogError>>,
}

impl Recorder {
    /// Begins a recording.
    pub(super) fn start(writer: Writer, writers: &TaskTracker) -> Self {
        let (chunks, received) = mpsc::channel(QUEUED_CHUNKS);
        let writer = writers.spawn_blocking(move || writer.write_all(received));
        Self { chunks, writer }
    }

    /// Takes all output of a container, until it ends or the connection does. Cancelling it loses
    /// nothing: there is room for a chunk before it is taken from the stream.
    pub(crate) async fn take(&mut self, output: &mut Output) -> Result<(), EngineError> {
        // The writer takes chunks for as long as this end lives, even when the disk is full.
        while let Ok(room) = self.chunks.reserve().await {
            match output.next().await {
                Some(chunk) => room.send(chunk?),
                None => break,
            }
        }
        Ok(())
    }

    /// Ends the recording.
    ///
    /// # Errors
    /// A part could not be written.
    pub(crate) async fn finish(self) -> Result<(), LogError> {
        drop(self.chunks);
        let written = self.writer.await.map_err(io::Error::other);
        written.unwrap_or_else(|panic| Err(LogError::Io(panic)))
    }
}

/// Writes a recording to its targets. A failure costs the log, and does not hold up the hook: the
/// rest is received and let go, and the first error is returned at the end. A full disk is reported
/// at once.
pub(super) struct Writer {
    /// Those that have not failed.
    targets: Vec<Target>,
    proof: Option<ProofFilter>,
    masker: Masker,
    stop: Stop,
    result: Result<(), LogError>,
}

impl Writer {
    pub(super) fn new(
        targets: Vec<Target>,
        proof: Option<ProofFilter>,
        secrets: Secrets,
        stop: Stop,
    ) -> Self {
        Self {
            targets,
            proof,
            masker: Masker::new(secrets),
            stop,
            result: Ok(()),
        }
    }

    fn write_all(mut self, mut chunks: mpsc::Receiver<Bytes>) -> Result<(), LogError> {
        let mut masked = Vec::new();
        while let Some(chunk) = chunks.blocking_recv() {
            let chunk = match &mut self.proof {
                Some(proof) => proof.push(chunk),
                None => chunk,
            };
            self.masker
                .push(&chunk, |bytes| masked.extend_from_slice(bytes));
            self.each_target(|target| target.write(&masked));
            masked.clear();
            if chunks.is_empty() {
                self.each_target(Target::flush);
            }
        }
        if let Some(proof) = self.proof.take() {
            let held = proof.finish();
            self.masker
                .push(&held, |bytes| masked.extend_from_slice(bytes));
        }
        self.masker.finish(|bytes| masked.extend_from_slice(bytes));
        self.each_target(|target| target.write(&masked));
        self.each_target(Target::finish);
        self.result
    }

    /// Gives up a target at its first error: on a full disk, others are about to make room for more
    /// than the log.
    fn each_target(&mut self, act: impl Fn(&mut Target) -> io::Result<()>) {
        self.targets.retain_mut(|target| {
            let Err(error) = act(target) else { return true };
            let error = target.blame(error);
            if let LogError::DiskFull(lack) = error {
                let lack = lack.to_owned();
                self.stop.request(StopReason::DiskFull { lack });
            }
            if self.result.is_ok() {
                self.result = Err(error);
            }
            target.abandon();
            false
        });
    }
}

/// One place that a recording goes to.
pub(super) enum Target {
    File(Box<(CappedFile, Splice)>),
    Stdout(Printer<Stdout>),
}

impl Target {
    /// A file in place of the one at this path, put together with the recording that was set aside.
    pub(super) fn file(path: &Path, limit_bytes: u64) -> Result<Self, LogError> {
        let open = || {
            // Somebody may have removed the folder.
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            let splice = Splice::onto(&earlier(path), limit_bytes)?;
            let file = CappedFile::create(path, limit_bytes)?;
            Ok(Self::File(Box::new((file, splice))))
        };
        open().map_err(of_file)
    }

    /// Standard output, which these first bytes of the log have reached before.
    pub(super) fn stdout(printed_bytes: &Arc<AtomicU64>) -> Self {
        Self::Stdout(Printer::new(io::stdout(), printed_bytes))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(both) => both.1.push(bytes, &mut both.0),
            Self::Stdout(printer) => printer.print(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(both) => both.0.flush(),
            Self::Stdout(printer) => printer.output.flush(),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::File(both) => {
                let (file, splice) = &mut **both;
                splice.finish(file).and_then(|()| file.finish())
            }
            Self::Stdout(printer) => printer.output.flush(),
        }
    }

    fn abandon(&self) {
        match self {
            Self::File(both) => both.0.abandon(),
            Self::Stdout(_) => {}
        }
    }

    fn blame(&self, error: io::Error) -> LogError {
        match self {
            Self::File(_) => of_file(error),
            Self::Stdout(_) if is_full(&error) => {
                LogError::DiskFull("disk full (no space left for standard output; free some)")
            }
            Self::Stdout(_) => LogError::Io(error),
        }
    }
}

fn of_file(error: io::Error) -> LogError {
    match is_full(&error) {
        true => LogError::DiskFull("disk full (no space left under DATA_DIR; free some)"),
        false => LogError::Io(error),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// An output that each byte of a log reaches once, however often the log is recorded from its
/// beginning.
pub(super) struct Printer<W> {
    output: W,
    printed_bytes: Arc<AtomicU64>,
    /// The next bytes that were printed by an earlier recording.
    skipped_bytes: u64,
}

impl<W: Write> Printer<W> {
    fn new(output: W, printed_bytes: &Arc<AtomicU64>) -> Self {
        Self {
            output,
            printed_bytes: Arc::clone(printed_bytes),
            skipped_bytes: printed_bytes.load(Ordering::Relaxed),
        }
    }

    fn print(&mut self, bytes: &[u8]) -> io::Result<()> {
        let skipped = usize::try_from(self.skipped_bytes).unwrap_or(usize::MAX);
        let (old, new) = bytes.split_at(bytes.len().min(skipped));
        self.skipped_bytes -= old.len() as u64;
        self.output.write_all(new)?;
        self.printed_bytes
            .fetch_add(new.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_recording_prints_only_new_bytes() {
        let printed_bytes = Arc::default();
        for (recording, printed) in [
            (&["one ", "two"][..], "one two"),
            (&["one", " two three"], " three"),
            (&["one"], ""),
            (&["one two three four"], " four"),
        ] {
            let mut printer = Printer::new(Vec::new(), &printed_bytes);
            for chunk in recording {
                printer.print(chunk.as_bytes()).expect("in memory");
            }
            assert_eq!(printer.output, printed.as_bytes(), "{recording:?}");
        }
    }
}
