//! The file that a log is written to: any number of bytes goes in, a limited number is kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{none_is_fine, size};

const BUFFER_BYTES: usize = 128 << 10;

/// The file that holds the end of a log until it is joined with the head.
pub(super) fn tail(path: &Path) -> PathBuf {
    path.with_extension("tail")
}

/// Joins the head and the tail of a log whose writer was killed, unless it was writing over the
/// beginning of the tail: then only the head is of use.
pub(super) fn join_interrupted(path: &Path, limit_bytes: u64) -> io::Result<()> {
    let tail_path = tail(path);
    let tail_bytes = size(&tail_path)?;
    let tail_size_bytes = limit_bytes / 2;
    let head_is_alone = size(path)? == limit_bytes - tail_size_bytes;
    if head_is_alone && tail_bytes > 0 && tail_bytes < tail_size_bytes {
        let mut log = OpenOptions::new().append(true).open(path)?;
        io::copy(&mut File::open(&tail_path)?, &mut log)?;
    }
    none_is_fine(fs::remove_file(tail_path))
}

/// A file that keeps the beginning and the end of its input, and says how much it left out.
/// The end stands in a second file, which is written round and round and joined at the end.
#[derive(Debug)]
pub(super) struct CappedFile {
    head: BufWriter<File>,
    head_room_bytes: u64,
    tail: Option<Ring>,
    tail_path: PathBuf,
    tail_size_bytes: u64,
    /// True if a part of unknown size is missing.
    has_gap: bool,
}

impl CappedFile {
    pub(super) fn create(path: &Path, limit_bytes: u64) -> io::Result<Self> {
        let tail_size_bytes = limit_bytes / 2;
        Ok(Self {
            head: BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?),
            head_room_bytes: limit_bytes - tail_size_bytes,
            tail: None,
            tail_path: tail(path),
            tail_size_bytes,
            has_gap: false,
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
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

    /// Writes all of another file.
    pub(super) fn take_from(&mut self, mut other: impl Read) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match other.read(&mut buffer)? {
                0 => return Ok(()),
                length => self.write(&buffer[..length])?,
            }
        }
    }

    /// Says that a part is missing here.
    pub(super) fn leave_gap(&mut self, notice: &[u8]) -> io::Result<()> {
        self.has_gap = true;
        self.write(notice)
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.head.flush()?;
        match &mut self.tail {
            Some(tail) => tail.file.flush(),
            None => Ok(()),
        }
    }

    /// Joins head and tail. All of it has reached the disk when this returns: once the build's end is
    /// recorded, the engine's copy is removed.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if let Some(tail) = self.tail.take() {
            tail.append_to(&mut self.head, self.has_gap)?;
            fs::remove_file(&self.tail_path)?;
        }
        self.head.flush()?;
        self.head.get_ref().sync_data()
    }

    /// Leaves the head as it is: the tail without the part between them would mislead.
    pub(super) fn abandon(&self) {
        // A tail that cannot be removed now is removed together with the log.
        let _ = fs::remove_file(&self.tail_path);
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

    fn append_to(self, output: &mut impl Write, has_gap: bool) -> io::Result<()> {
        let cut_bytes = self.written_bytes.saturating_sub(self.size_bytes);
        let mut file = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        if cut_bytes == 0 {
            file.seek(SeekFrom::Start(0))?;
            return io::copy(&mut file, output).map(drop);
        }
        let at_least = if has_gap { "at least " } else { "" };
        write!(
            output,
            "\n[compose-ci: {at_least}{cut_bytes} bytes of the log were left out here (LOG_LIMIT)]\n"
        )?;
        let oldest = self.written_bytes % self.size_bytes;
        file.seek(SeekFrom::Start(oldest))?;
        io::copy(&mut file, output)?;
        file.seek(SeekFrom::Start(0))?;
        io::copy(&mut file.take(oldest), output).map(drop)
    }
}
