//! From GitHub into the build's volume: a stream all the way, never a file on this machine.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, stream};
use shared::build::{CommitSha, RepoName};
use shared::forge::{Forge, Patience};
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::archive::{self, ArchiveError};
use crate::container::TARBALL_DIR;
use crate::engine::Engine;
use crate::outcome::Obstacle;

/// The size of the pieces in which the tar is handed to the engine.
const CHUNK_BYTES: usize = 128 << 10;
/// Pieces that may wait for the engine.
const QUEUED_CHUNKS: usize = 4;

/// Downloads the commit and unpacks it in the volume that `container` mounts.
///
/// # Errors
/// The commit cannot be had, its archive is not acceptable, or the engine cannot take it.
pub(crate) async fn checkout(
    engine: &Engine,
    github: &Forge,
    repo: &RepoName,
    commit: &CommitSha,
    container: &str,
) -> Result<(), Obstacle> {
    const BROKEN_OFF: &str = "the download of the tarball broke off";
    let mut patience = Patience::default();
    loop {
        let tarball = github.tarball(repo, commit, &mut patience).await?;
        match unpack(engine, tarball, commit, container).await? {
            Unpacked::Whole => return Ok(()),
            Unpacked::BrokenOff if patience.wait(BROKEN_OFF, None).await => {}
            Unpacked::BrokenOff => return Err(Obstacle::Transient(BROKEN_OFF.into())),
        }
    }
}

/// How much of a tarball is in the volume.
enum Unpacked {
    Whole,
    /// A part, for no more than that was downloaded.
    BrokenOff,
}

async fn unpack(
    engine: &Engine,
    tarball: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    commit: &CommitSha,
    container: &str,
) -> Result<Unpacked, Obstacle> {
    let broken_off = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&broken_off);
    let tarball = Box::pin(tarball.inspect_err(move |_| note.store(true, Ordering::Relaxed)));
    let (chunks, mut tar) = mpsc::channel(QUEUED_CHUNKS);
    let reader = SyncIoBridge::new(StreamReader::new(tarball));
    let commit = commit.clone();
    let repacking = tokio::task::spawn_blocking(move || repack(reader, &commit, chunks));
    let tar = stream::poll_fn(move |context| tar.poll_recv(context));
    let (repacked, uploaded) = tokio::join!(repacking, engine.upload(container, TARBALL_DIR, tar));
    match repacked.expect("repacking does not panic") {
        // The engine went away while it was written to: its own error says more.
        Err(ArchiveError::Output(_)) | Ok(()) => Ok(uploaded.map(|()| Unpacked::Whole)?),
        Err(ArchiveError::Damaged(_)) if broken_off.load(Ordering::Relaxed) => {
            Ok(Unpacked::BrokenOff)
        }
        Err(error) => Err(Obstacle::Permanent(error.to_string())),
    }
}

/// Repacks into a channel. An archive that is refused ends the upload with an error, so that the
/// engine never takes a part of it for the whole.
fn repack(
    reader: impl io::Read,
    commit: &CommitSha,
    chunks: mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), ArchiveError> {
    let writer = ChannelWriter {
        chunks: chunks.clone(),
        buffer: Vec::with_capacity(CHUNK_BYTES),
    };
    let result = archive::repack(reader, commit, writer);
    if result.is_err() {
        let refused = io::Error::new(io::ErrorKind::InvalidData, "the archive was refused");
        // Nobody listens if the engine was the first to give up.
        let _ = chunks.blocking_send(Err(refused));
    }
    result
}

/// Sends what is written in pieces of [`CHUNK_BYTES`].
struct ChannelWriter {
    chunks: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES - self.buffer.len();
        let taken = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        self.chunks
            .blocking_send(Ok(full.into()))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
