//! The file that a log is written to: any number of bytes goes in, a limited number is kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{none_is_fine, size};

const BUFFER_BYTES: usize = 128 << 10;
/// The first bytes of the file of a tail; how much was written to the tail follows, as 8 bytes.
const MAGIC: &[u8; 8] = b"cictail1";
/// The place of the tail in its file.
const TAIL_PLACE: u64 = 16;
/// The words around the number of bytes that are missing between head and tail.
const NOTICE: (&str, &str) = (
    "\n[compose-ci: ",
    " bytes of the log were left out here (LOG_LIMIT)]\n",
);
const AT_LEAST: &str = "at least ";
/// The longest notice.
const NOTICE_BYTES: usize = NOTICE.0.len() + AT_LEAST.len() + 20 + NOTICE.1.len();

/// The file that holds the end of a log until it is joined with the head.
pub(super) fn tail(path: &Path) -> PathBuf {
    path.with_extension("tail")
}

/// The size of the head of a log that has reached its limit.
pub(super) fn head_bytes(limit_bytes: u64) -> u64 {
    limit_bytes - limit_bytes / 2
}

/// Joins the head and the tail of a log whose writer was killed.
pub(super) fn join_interrupted(path: &Path, limit_bytes: u64) -> io::Result<()> {
    let tail_path = tail(path);
    let head_is_alone = size(path)? == head_bytes(limit_bytes);
    if head_is_alone && let Some(ring) = Ring::open(&tail_path, limit_bytes / 2)? {
        let mut log = OpenOptions::new().append(true).open(path)?;
        ring.append_to(&mut log, Lost::default())?;
    }
    none_is_fine(fs::remove_file(tail_path))
}

/// The length of the stream that a log was made of, if the log says exactly how much of it is missing.
pub(super) fn stream_bytes(path: &Path, limit_bytes: u64) -> io::Result<Option<u64>> {
    let (size, head) = (size(path)?, head_bytes(limit_bytes));
    if size <= head {
        return Ok(None);
    }
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(head))?;
    let mut begins = Vec::new();
    file.take(NOTICE_BYTES as u64).read_to_end(&mut begins)?;
    let begins = String::from_utf8_lossy(&begins);
    let missing = begins.strip_prefix(NOTICE.0).and_then(|text| {
        let (number, _) = text.split_once(NOTICE.1)?;
        let notice = (NOTICE.0.len() + number.len() + NOTICE.1.len()) as u64;
        Some((number.parse::<u64>().ok()?, notice))
    });
    Ok(missing.map(|(missing, notice)| (size + missing).saturating_sub(notice)))
}

/// The bytes that are missing before the tail was begun.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) bytes: u64,
    /// True if more may be missing.
    pub(super) or_more: bool,
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
    lost: Lost,
}

impl CappedFile {
    pub(super) fn create(path: &Path, limit_bytes: u64) -> io::Result<Self> {
        Ok(Self {
            head: BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?),
            head_room_bytes: head_bytes(limit_bytes),
            tail: None,
            tail_path: tail(path),
            tail_size_bytes: limit_bytes / 2,
            lost: Lost::default(),
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

    /// Says that a part of unknown size is missing here.
    pub(super) fn leave_gap(&mut self, notice: &[u8]) -> io::Result<()> {
        self.lost.or_more = true;
        self.write(notice)
    }

    /// Says how much is missing between the head, which is full, and the first bytes behind it.
    pub(super) fn lose(&mut self, lost: Lost) {
        self.lost = lost;
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.head.flush()?;
        match &mut self.tail {
            Some(tail) => tail.flush(),
            None => Ok(()),
        }
    }

    /// Joins head and tail. All of it has reached the disk when this returns: once the build's end is
    /// recorded, the engine's copy is removed.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if let Some(tail) = self.tail.take() {
            tail.append_to(&mut self.head, self.lost)?;
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

/// A file of fixed size that holds the last bytes written to it, and how many that were.
#[derive(Debug)]
struct Ring {
    file: BufWriter<File>,
    size_bytes: u64,
    written_bytes: u64,
    /// The number that stands in the file.
    noted_bytes: u64,
}

impl Ring {
    fn create(path: &Path, size_bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, file);
        file.write_all(MAGIC)?;
        file.write_all(&0u64.to_le_bytes())?;
        Ok(Self {
            file,
            size_bytes: size_bytes.max(1),
            written_bytes: 0,
            noted_bytes: 0,
        })
    }

    /// Opens the one that a writer has left which was killed; nothing if there is none, or it is empty.
    fn open(path: &Path, size_bytes: u64) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let (mut magic, mut written) = ([0; 8], [0; 8]);
        let begins = file.read_exact_at(&mut magic, 0);
        if begins.is_err() || magic != *MAGIC {
            return Ok(None);
        }
        file.read_exact_at(&mut written, MAGIC.len() as u64)?;
        let written_bytes = u64::from_le_bytes(written);
        Ok((written_bytes > 0).then(|| Self {
            file: BufWriter::new(file),
            size_bytes: size_bytes.max(1),
            written_bytes,
            noted_bytes: written_bytes,
        }))
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.size_bytes - self.written_bytes % self.size_bytes;
            let fits = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            self.file.write_all(&bytes[..fits])?;
            self.written_bytes += fits as u64;
            if self.written_bytes.is_multiple_of(self.size_bytes) {
                self.file.seek(SeekFrom::Start(TAIL_PLACE))?;
            }
            bytes = &bytes[fits..];
            // Of what is in the file and not noted, nobody would know where it ends.
            if self.written_bytes - self.noted_bytes >= BUFFER_BYTES as u64 {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let written = self.written_bytes.to_le_bytes();
        self.noted_bytes = self.written_bytes;
        self.file
            .get_ref()
            .write_all_at(&written, MAGIC.len() as u64)
    }

    fn append_to(self, output: &mut impl Write, lost: Lost) -> io::Result<()> {
        let cut_bytes = self.written_bytes.saturating_sub(self.size_bytes) + lost.bytes;
        let mut file = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        if cut_bytes > 0 {
            let at_least = if lost.or_more { AT_LEAST } else { "" };
            write!(output, "{}{at_least}{cut_bytes}{}", NOTICE.0, NOTICE.1)?;
        }
        let mut copy = |from: u64, bytes: u64| {
            file.seek(SeekFrom::Start(TAIL_PLACE + from))?;
            io::copy(&mut (&mut file).take(bytes), output).map(drop)
        };
        if self.written_bytes <= self.size_bytes {
            return copy(0, self.written_bytes);
        }
        let oldest = self.written_bytes % self.size_bytes;
        copy(oldest, self.size_bytes - oldest)?;
        copy(0, oldest)
    }
}
