//! The checkout: from its source into the build's volume, a stream all the way, never a file on this
//! machine.

mod archive;
mod directory;

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use shared::build::{BuildError, CommitSha};
use tar::{EntryType, Header};
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};
use tokio_util::sync::CancellationToken;

pub use self::archive::{ArchiveError, repack};
use crate::container::OUR_DIR;
use crate::engine::{Engine, EngineError};
use crate::obstacle::Obstacle;

/// The size of the pieces in which the tar is handed to the engine.
const CHUNK_BYTES: usize = 128 << 10;
/// The engine unpacks the checkout here, where no link of it leads out.
const ROOT: &str = "/";
/// Pieces that may wait for the engine.
const QUEUED_CHUNKS: usize = 4;

/// A gzipped tarball, as it comes in.
type Tarball = BoxStream<'static, io::Result<Bytes>>;

/// The source of a checkout. A build that is adopted never opens it.
pub enum Source<'a> {
    /// A forge's tarball of a commit.
    Tarball {
        /// Begins the download.
        open: BoxFuture<'a, Result<Tarball, Obstacle>>,
        /// The commit that the tarball must be of.
        commit: &'a CommitSha,
    },
    /// A directory of this machine.
    Directory(&'a Path),
}

/// Fills the volume that `container` mounts.
///
/// # Errors
/// The source cannot be had, is not acceptable, or the engine cannot take it.
pub(crate) async fn checkout(
    engine: &Engine,
    source: Source<'_>,
    container: &str,
) -> Result<(), Obstacle> {
    match source {
        Source::Tarball { open, commit } => {
            let tarball = open.await?;
            unpack(engine, tarball, commit.clone(), container).await
        }
        Source::Directory(path) => {
            let path = path.to_owned();
            let pack = move |output| directory::pack(&path, output);
            stream_to(engine, container, pack).await
        }
    }
}

async fn unpack(
    engine: &Engine,
    tarball: Tarball,
    commit: CommitSha,
    container: &str,
) -> Result<(), Obstacle> {
    let broken_off = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&broken_off);
    // A checkout that is given up must not leave a thread behind that waits for the download.
    let given_up = CancellationToken::new();
    let tarball = tarball
        .inspect_err(move |_| note.store(true, Ordering::Relaxed))
        .take_until(given_up.clone().cancelled_owned());
    let _guard = given_up.drop_guard();
    let reader = SyncIoBridge::new(StreamReader::new(Box::pin(tarball)));
    let pack = move |output| match repack(reader, &commit, output) {
        Err(ArchiveError::Damaged(_)) if broken_off.load(Ordering::Relaxed) => {
            Err(ArchiveError::BrokenOff)
        }
        repacked => repacked,
    };
    stream_to(engine, container, pack).await
}

/// Streams a tar to the engine while a thread of its own makes it.
async fn stream_to(
    engine: &Engine,
    container: &str,
    pack: impl FnOnce(ChannelWriter) -> Result<(), ArchiveError> + Send + 'static,
) -> Result<(), Obstacle> {
    let (chunks, mut tar) = mpsc::channel(QUEUED_CHUNKS);
    let packing = tokio::task::spawn_blocking(move || pack_into(chunks, pack));
    let tar = stream::poll_fn(move |context| tar.poll_recv(context));
    let (packed, uploaded) = tokio::join!(packing, engine.upload(container, ROOT, tar));
    match packed.expect("packing does not panic") {
        // The engine went away while it was written to: its own error says more.
        Err(ArchiveError::Output(_)) | Ok(()) => uploaded.map_err(not_unpacked),
        Err(ArchiveError::BrokenOff) => Err(Obstacle::SourceBroke),
        Err(error) => Err(Obstacle::Final(BuildError::Tarball(error.to_string()))),
    }
}

/// An engine that fails over an entry fails over it again. It names the entry.
fn not_unpacked(error: EngineError) -> Obstacle {
    match &error {
        EngineError::Failed(why) if why.to_lowercase().contains("processing tar file") => {
            Obstacle::Final(BuildError::Engine(error.to_string()))
        }
        _ => error.into(),
    }
}

/// Packs into a channel. A source that is refused ends the upload with an error, so that the engine
/// never takes a part of it for the whole.
fn pack_into(
    chunks: mpsc::Sender<io::Result<Bytes>>,
    pack: impl FnOnce(ChannelWriter) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut output = ChannelWriter {
        chunks: chunks.clone(),
        buffer: Vec::with_capacity(CHUNK_BYTES),
    };
    let ours = output.write_all(our_dir().as_bytes());
    let packed = ours
        .map_err(ArchiveError::Output)
        .and_then(|()| pack(output));
    if packed.is_err() {
        let refused = io::Error::new(io::ErrorKind::InvalidData, "the archive was refused");
        // Nobody listens if the engine was the first to give up.
        let _ = chunks.blocking_send(Err(refused));
    }
    packed
}

/// The entry of [`OUR_DIR`], which every user may write to.
fn our_dir() -> Header {
    let mut directory = archive::header(EntryType::Directory, 0o777, 0);
    let path = directory.set_path(OUR_DIR.trim_start_matches('/'));
    path.expect("it is short and relative");
    directory.set_cksum();
    directory
}

/// Sends its input in pieces of [`CHUNK_BYTES`].
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
