//! A build's log on disk: masked, capped, written as it comes.
//!
//! A thread of its own writes, so that a slow disk never holds up the other builds, and nothing
//! else that reads the log can ever hold up the hook.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
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

/// Chunks that may wait for the disk before the hook has to.
const QUEUED_CHUNKS: usize = 64;
const BUFFER_BYTES: usize = 128 << 10;

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
    for path in [path.with_extension("tail"), earlier(&path), path] {
        none_is_fine(fs::remove_file(path))?;
    }
    Ok(())
}

/// Sets aside what is stored of a log before it is recorded once more from the engine's own copy:
/// an engine that was killed may have lost what it had already told.
///
/// # Errors
/// The file system refuses.
pub(crate) fn set_aside(path: &Path) -> io::Result<()> {
    match size(path)? > size(&earlier(path))? {
        true => fs::rename(path, earlier(path)),
        false => Ok(()),
    }
}

/// Puts back what was set aside, with a line about it, if it holds more than what was recorded
/// since; else removes it.
///
/// # Errors
/// The file system refuses.
pub(crate) fn keep_longer(path: &Path) -> io::Result<()> {
    let earlier = earlier(path);
    if size(&earlier)? <= size(path)? {
        return none_is_fine(fs::remove_file(earlier));
    }
    let mut log = OpenOptions::new().append(true).open(&earlier)?;
    log.write_all(b"\n[compose-ci: the engine lost the log from about here]\n")?;
    fs::rename(earlier, path)
}

fn earlier(path: &Path) -> PathBuf {
    path.with_extension("earlier")
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
    /// Begins a log, in place of what may stand at this path.
    ///
    /// # Errors
    /// The file cannot be made.
    pub(crate) fn create(path: &Path, limit_bytes: u64, secrets: Secrets) -> io::Result<Self> {
        let file = CappedFile::create(path, limit_bytes)?;
        let (chunks, received) = mpsc::channel(QUEUED_CHUNKS);
        let disk_full = CancellationToken::new();
        let log = Log {
            file,
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
    result: io::Result<()>,
    disk_full: CancellationToken,
}

impl Log {
    fn write(&mut self, bytes: &[u8]) {
        if self.result.is_ok() {
            let written = self.file.write(bytes);
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

    fn finish(self) -> io::Result<()> {
        match self.result {
            Ok(()) => self.file.finish(),
            Err(error) => {
                self.file.abandon();
                Err(error)
            }
        }
    }
}

/// A file that keeps the beginning and the end of what is written, and tells what it left out.
/// The end stands in a second file, which is written round and round and joined at the end.
#[derive(Debug)]
struct CappedFile {
    head: BufWriter<File>,
    head_room_bytes: u64,
    tail: Option<Ring>,
    tail_path: PathBuf,
    tail_size_bytes: u64,
}

impl CappedFile {
    fn create(path: &Path, limit_bytes: u64) -> io::Result<Self> {
        let tail_size_bytes = limit_bytes / 2;
        Ok(Self {
            head: BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?),
            head_room_bytes: limit_bytes - tail_size_bytes,
            tail: None,
            tail_path: path.with_extension("tail"),
            tail_size_bytes,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = usize::try_from(self.head_room_bytes).unwrap_or(usize::MAX);
        let (head, tail) = bytes.split_at(bytes.len().min(room));
        self.head_room_bytes -= head.len() as u64;
        self.head.write_all(head)?;
        if tail.is_empty() {
            return Ok(());
        }
        let ring = match &mut self.tail {
            Some(ring) => ring,
            None => self
                .tail
                .insert(Ring::create(&self.tail_path, self.tail_size_bytes)?),
        };
        ring.write(tail)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.head.flush()
    }

    /// Joins head and tail.
    fn finish(mut self) -> io::Result<()> {
        if let Some(tail) = self.tail {
            tail.append_to(&mut self.head)?;
            fs::remove_file(&self.tail_path)?;
        }
        self.head.flush()
    }

    /// Leaves the head as it is: the tail without what stood between them would mislead.
    fn abandon(self) {
        if self.tail.is_some() {
            // What stays is removed together with the log.
            let _ = fs::remove_file(&self.tail_path);
        }
    }
}

/// A file of fixed size that holds the last bytes written to it.
#[derive(Debug)]
struct Ring {
    file: BufWriter<File>,
    size_bytes: u64,
    written_bytes: u64,
}

impl Ring {
    fn create(path: &Path, size_bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        Ok(Self {
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            size_bytes: size_bytes.max(1),
            written_bytes: 0,
        })
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.size_bytes - self.written_bytes % self.size_bytes;
            let fits = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            self.file.write_all(&bytes[..fits])?;
            self.written_bytes += fits as u64;
            if self.written_bytes.is_multiple_of(self.size_bytes) {
                self.file.seek(SeekFrom::Start(0))?;
            }
            bytes = &bytes[fits..];
        }
        Ok(())
    }

    fn append_to(self, output: &mut impl Write) -> io::Result<()> {
        let cut_bytes = self.written_bytes.saturating_sub(self.size_bytes);
        let mut file = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        if cut_bytes == 0 {
            file.seek(SeekFrom::Start(0))?;
            return io::copy(&mut file, output).map(drop);
        }
        write!(
            output,
            "\n[compose-ci: {cut_bytes} bytes of the log were left out here (LOG_LIMIT)]\n"
        )?;
        let oldest = self.written_bytes % self.size_bytes;
        file.seek(SeekFrom::Start(oldest))?;
        io::copy(&mut file, output)?;
        file.seek(SeekFrom::Start(0))?;
        io::copy(&mut file.take(oldest), output).map(drop)
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
    fn of_two_recordings_of_a_log_the_longer_is_kept() {
        let lost = "\n[compose-ci: the engine lost the log from about here]\n";
        for (before, again, kept) in [
            ("one two", "one two three", "one two three".to_owned()),
            ("one two", "one two", "one two".to_owned()),
            ("one two", "one", format!("one two{lost}")),
            ("", "one", "one".to_owned()),
        ] {
            let directory = tempfile::tempdir().expect("directory");
            let path = directory.path().join("build.log");
            fs::write(&path, before).expect("written");
            set_aside(&path).expect("set aside");
            fs::write(&path, again).expect("written");
            // A connection may break more than once.
            set_aside(&path).expect("set aside");
            fs::write(&path, again).expect("written");
            keep_longer(&path).expect("kept");
            assert_eq!(fs::read_to_string(&path).expect("read"), kept);
            let files = fs::read_dir(directory.path()).expect("listed").count();
            assert_eq!(files, 1);
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
