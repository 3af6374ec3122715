//! What a mail shows of the log, and what of it is attached.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use shared::words::{LogExcerpt, LogRest};

/// How much of the log's end the mail itself shows. With these, the HTML of a log that is not
/// all colours stays under the 102 kB after which Gmail cuts a message.
const TAIL_LINES: usize = 200;
const TAIL_BYTES: u64 = 32 * 1024;

/// The largest attachment, in bytes before base64 makes 8.6 MB of it: Postfix takes messages of
/// 10,240,000 bytes by default, and SES of 10 MB (by its quotas, for `SendRawEmail`).
pub(super) const ATTACHMENT_MAX_BYTES: usize = 6 * 1024 * 1024;

/// The end of the log and, where that is not all of it, the log compressed: the whole log, or as
/// much of its end as fits into a mail.
pub(super) fn read_log(path: &Path) -> io::Result<(LogExcerpt, Option<Vec<u8>>)> {
    let excerpt = |tail, rest| LogExcerpt { tail, rest };
    let mut file = match File::open(path) {
        Ok(file) => file,
        // The build ended before its hook began.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((excerpt(String::new(), LogRest::Shown), None));
        }
        Err(error) => return Err(error),
    };
    let (tail, is_whole) = read_tail(&mut file)?;
    if is_whole {
        return Ok((excerpt(tail, LogRest::Shown), None));
    }
    let (attachment, rest) = attach(&mut file, ATTACHMENT_MAX_BYTES)?;
    Ok((excerpt(tail, rest), Some(attachment)))
}

/// The last lines of a file, and whether they are all of it.
fn read_tail(file: &mut File) -> io::Result<(String, bool)> {
    let size_bytes = file.metadata()?.len();
    let start = size_bytes.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // A carriage return alone begins a line anew; in a mail it begins another one.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let whole_lines = match text.split_once('\n') {
        Some((_, rest)) if start > 0 => rest,
        _ => &text,
    };
    let tail = last_lines(whole_lines, TAIL_LINES);
    Ok((
        tail.to_owned(),
        start == 0 && tail.len() == whole_lines.len(),
    ))
}

fn last_lines(text: &str, count: usize) -> &str {
    let end = text.strip_suffix('\n').unwrap_or(text);
    match end.rmatch_indices('\n').nth(count - 1) {
        Some((newline, _)) => &text[newline + 1..],
        None => text,
    }
}

/// The log compressed to no more than `max_bytes`: all of it, or its last half, or quarter, …
fn attach(file: &mut File, max_bytes: usize) -> io::Result<(Vec<u8>, LogRest)> {
    let size_bytes = file.metadata()?.len();
    if let Some(attachment) = compress(from(file, 0)?, max_bytes)? {
        return Ok((attachment, LogRest::Attached));
    }
    let mut end_bytes = size_bytes / 2;
    loop {
        let content = last_part(file, size_bytes - end_bytes)?;
        if let Some(attachment) = compress(content, max_bytes)? {
            return Ok((attachment, LogRest::EndAttached));
        }
        end_bytes /= 2;
    }
}

/// The content from about `start` on, where a line begins, after a line that tells of the cut.
fn last_part(file: &mut File, start: u64) -> io::Result<impl Read> {
    let mut content = from(file, start)?;
    // A line that is longer than the buffer is cut in two.
    let buffer = content.fill_buf()?;
    let partial_line = buffer.iter().position(|&byte| byte == b'\n');
    let skipped = partial_line.map_or(0, |newline| newline + 1);
    content.consume(skipped);
    let cut_bytes = start + skipped as u64;
    let note =
        format!("[compose-ci: {cut_bytes} bytes of the log before this do not fit into a mail]\n");
    Ok(io::Cursor::new(note).chain(content))
}

fn from(file: &mut File, start: u64) -> io::Result<BufReader<&mut File>> {
    file.seek(SeekFrom::Start(start))?;
    Ok(BufReader::new(file))
}

/// The compressed content, or `None` if that is more than `max_bytes`.
fn compress(mut content: impl Read, max_bytes: usize) -> io::Result<Option<Vec<u8>>> {
    let bounded = Bounded {
        bytes: Vec::new(),
        max_bytes,
    };
    let mut encoder = GzEncoder::new(bounded, Compression::default());
    let compressed = io::copy(&mut content, &mut encoder).and_then(|_| encoder.finish());
    match compressed {
        Ok(bounded) => Ok(Some(bounded.bytes)),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Ok(None),
        Err(error) => Err(error),
    }
}

/// A buffer that refuses what goes beyond its limit with [`io::ErrorKind::FileTooLarge`].
struct Bounded {
    bytes: Vec<u8>,
    max_bytes: usize,
}

impl Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + piece.len() > self.max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
