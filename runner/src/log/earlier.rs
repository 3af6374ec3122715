//! A log that is recorded once more from the engine's own copy: after the connection to the engine
//! broke, or by the next worker. The engine may have less of it than was stored before: it keeps only
//! the end of a long log, and loses what it has not written yet when it is killed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;

use super::capped::{self, CappedFile, Lost};
use super::{none_is_fine, size};

/// The length of the piece of the engine's copy that is looked for in the earlier recording. A shorter
/// one may stand there twice.
const PROBE_BYTES: u64 = 4 << 10;
const GAP: &[u8] = b"\n[compose-ci: the engine lost a part of the log here]\n";
const END_LOST: &[u8] = b"\n[compose-ci: the engine lost the log from about here]\n";

/// The file that holds the earlier recording of this log, if there is one.
pub(super) fn earlier(path: &Path) -> PathBuf {
    path.with_extension("earlier")
}

/// Sets the recording of a log aside before it is recorded once more.
///
/// # Errors
/// The file system refuses.
pub(crate) fn set_aside(path: &Path, limit_bytes: u64) -> io::Result<()> {
    capped::join_interrupted(path, limit_bytes)?;
    match size(path)? > size(&earlier(path))? {
        true => fs::rename(path, earlier(path)),
        false => Ok(()),
    }
}

/// Removes the recording that was set aside.
///
/// # Errors
/// The file system refuses.
pub(super) fn discard(path: &Path) -> io::Result<()> {
    none_is_fine(fs::remove_file(earlier(path)))
}

/// Puts back the recording that was set aside, if it holds more than the one made since; else removes
/// it. A log that has reached its limit holds no less than any other. A recording that is put back says
/// that it is cut if its end was not seen.
///
/// # Errors
/// The file system refuses.
pub(crate) fn keep_longer(path: &Path, limit_bytes: u64, end_was_seen: bool) -> io::Result<()> {
    let earlier = earlier(path);
    let recorded_bytes = size(path)?;
    let earlier_bytes = size(&earlier)?;
    // The head of an earlier recording at its limit stands in this one, and its end is not the log's.
    let head_bytes = capped::head_bytes(limit_bytes) + GAP.len() as u64;
    let has_the_end = earlier_bytes >= limit_bytes && recorded_bytes > head_bytes;
    if earlier_bytes <= recorded_bytes || recorded_bytes >= limit_bytes || has_the_end {
        return discard(path);
    }
    if !end_was_seen {
        let mut log = OpenOptions::new().append(true).open(&earlier)?;
        log.write_all(END_LOST)?;
    }
    fs::rename(earlier, path)
}

/// Puts new input behind that part of an earlier recording that it lacks.
#[derive(Debug)]
pub(super) struct Splice {
    /// Nothing once the place is known, or if there is none.
    earlier: Option<PathBuf>,
    /// The part of it that counts.
    stored_bytes: u64,
    probe_bytes: usize,
    /// The first input, until the place is known.
    begins: Vec<u8>,
    /// Tells how much is missing behind the head of an earlier recording that has reached its limit.
    measure: Option<Measure>,
}

/// Looks in new input for a mark of the earlier recording whose place in the stream is known: then the
/// place of the new input is known, too.
#[derive(Debug)]
struct Measure {
    mark: Vec<u8>,
    /// Where the mark ends in the stream.
    mark_end: u64,
    /// The part of the stream that is in the head.
    head_bytes: u64,
    /// The new input so far.
    passed_bytes: u64,
    /// The end of it, which may be the beginning of the mark.
    held: Vec<u8>,
}

impl Measure {
    /// With a mark from the tail of this recording, if it says how long its stream was. A log that repeats
    /// itself has no mark.
    fn of(earlier: &Path, limit_bytes: u64) -> io::Result<Option<Self>> {
        let Some(stream_bytes) = capped::stream_bytes(earlier, limit_bytes)? else {
            return Ok(None);
        };
        // What is behind the mark may be half a secret, which was not masked as the whole one is.
        let mark_bytes = PROBE_BYTES.min(limit_bytes / 8);
        let from = |place: u64| {
            let mut file = File::open(earlier)?;
            file.seek(SeekFrom::Start(place)).map(|_| file)
        };
        let mark_begins = size(earlier)? - 2 * mark_bytes;
        let mut mark = Vec::new();
        from(mark_begins)?.take(mark_bytes).read_to_end(&mut mark)?;
        let head_bytes = capped::head_bytes(limit_bytes);
        if place(from(head_bytes)?, &mark)? != Some(mark_begins - head_bytes) {
            return Ok(None);
        }
        Ok(Some(Self {
            mark,
            mark_end: stream_bytes - mark_bytes,
            head_bytes,
            passed_bytes: 0,
            held: Vec::new(),
        }))
    }

    /// The least that is missing, as long as the mark is not found: the input comes from behind it.
    fn at_least(&self) -> Lost {
        let mark_begins = self.mark_end - self.mark.len() as u64;
        Lost {
            bytes: mark_begins.saturating_sub(self.head_bytes),
            or_more: true,
        }
    }

    /// Takes new input. Returns how much is missing before the first of it, once that is known.
    fn pass(&mut self, bytes: &[u8]) -> Option<Lost> {
        self.held.extend_from_slice(bytes);
        self.passed_bytes += bytes.len() as u64;
        if let Some(place) = memchr::memmem::find(&self.held, &self.mark) {
            let behind = (self.held.len() - place - self.mark.len()) as u64;
            let input_begins = self.mark_end.saturating_sub(self.passed_bytes - behind);
            let bytes = input_begins.saturating_sub(self.head_bytes);
            let or_more = false;
            return Some(Lost { bytes, or_more });
        }
        let old = self.held.len().saturating_sub(self.mark.len() - 1);
        self.held.drain(..old);
        None
    }
}

impl Splice {
    /// With the recording at this path, if there is one. Of one that has reached its limit the
    /// head counts: the engine has the rest.
    pub(super) fn onto(earlier: &Path, limit_bytes: u64) -> io::Result<Self> {
        let (stored_bytes, measure) = match size(earlier)? {
            all if all >= limit_bytes => {
                let measure = Measure::of(earlier, limit_bytes)?;
                (capped::head_bytes(limit_bytes), measure)
            }
            part => (part, None),
        };
        // The last that was stored may be half a secret, which was not masked as the whole one is.
        let probe_bytes = PROBE_BYTES.min(stored_bytes / 2);
        Ok(Self {
            earlier: (probe_bytes > 0).then(|| earlier.to_owned()),
            stored_bytes,
            probe_bytes: usize::try_from(probe_bytes).expect("it is small"),
            begins: Vec::new(),
            measure,
        })
    }

    pub(super) fn push(&mut self, bytes: &[u8], file: &mut CappedFile) -> io::Result<()> {
        if self.earlier.is_none() {
            return self.write(bytes, file);
        }
        self.begins.extend_from_slice(bytes);
        match self.begins.len() < self.probe_bytes {
            true => Ok(()),
            false => self.write_joined(file),
        }
    }

    /// Nothing more comes.
    pub(super) fn finish(&mut self, file: &mut CappedFile) -> io::Result<()> {
        // The end of so little may be new, or come after a part that the engine has lost.
        self.probe_bytes = self.probe_bytes.min(self.begins.len() / 2);
        match self.begins.is_empty() {
            true => Ok(()),
            false => self.write_joined(file),
        }
    }

    fn write_joined(&mut self, file: &mut CappedFile) -> io::Result<()> {
        let begins = std::mem::take(&mut self.begins);
        let Some(earlier) = self.earlier.take() else {
            return self.write(&begins, file);
        };
        let stored = || File::open(&earlier).map(|file| file.take(self.stored_bytes));
        let probe = &begins[..begins.len().min(self.probe_bytes)];
        match (place(stored()?, probe)?, &self.measure) {
            (Some(place), _) => {
                self.measure = None;
                file.take_from(stored()?.take(place))?;
            }
            (None, Some(measure)) => {
                file.take_from(stored()?)?;
                file.lose(measure.at_least());
            }
            (None, None) => {
                file.take_from(stored()?)?;
                file.leave_gap(GAP)?;
            }
        }
        self.write(&begins, file)
    }

    fn write(&mut self, bytes: &[u8], file: &mut CappedFile) -> io::Result<()> {
        let measured = self
            .measure
            .as_mut()
            .and_then(|measure| measure.pass(bytes));
        if let Some(lost) = measured {
            file.lose(lost);
            self.measure = None;
        }
        file.write(bytes)
    }
}

/// The number of bytes before the first place of `bytes`.
fn place(stored: impl Read, bytes: &[u8]) -> io::Result<Option<u64>> {
    if bytes.is_empty() {
        return Ok(Some(0));
    }
    let searcher = AhoCorasick::new([bytes]).map_err(io::Error::other)?;
    let found = searcher.stream_find_iter(stored).next().transpose()?;
    Ok(found.map(|found| found.start() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT_BYTES: u64 = 100;

    /// The log that is kept in the end, from what was stored before and the chunks that the engine has.
    fn joined(before: &str, again: &[&str]) -> String {
        joined_if(false, LIMIT_BYTES, before, again)
    }

    fn joined_if(end_was_seen: bool, limit_bytes: u64, before: &str, again: &[&str]) -> String {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("build.log");
        fs::write(&path, before).expect("written");
        // A connection may break more than once.
        for _ in 0..2 {
            set_aside(&path, limit_bytes).expect("set aside");
            let mut splice = Splice::onto(&earlier(&path), limit_bytes).expect("readable");
            let mut file = CappedFile::create(&path, limit_bytes).expect("created");
            for chunk in again {
                splice.push(chunk.as_bytes(), &mut file).expect("written");
            }
            splice.finish(&mut file).expect("written");
            file.finish().expect("written");
        }
        keep_longer(&path, limit_bytes, end_was_seen).expect("kept");
        let files = fs::read_dir(directory.path()).expect("listed").count();
        assert_eq!(files, 1);
        fs::read_to_string(&path).expect("read")
    }

    #[test]
    fn what_the_engine_lacks_of_a_log_is_kept() {
        let end_lost = "one two\n[compose-ci: the engine lost the log from about here]\n";
        let gap = "one two\n[compose-ci: the engine lost a part of the log here]\nfour five";
        for (before, again, kept) in [
            ("one two", vec!["one two three"], "one two three"),
            (
                "one two",
                vec!["o", "ne", " two", " three"],
                "one two three",
            ),
            ("one two", vec!["one two"], "one two"),
            ("one two", vec!["two three"], "one two three"),
            ("one two", vec!["tw", "o three"], "one two three"),
            ("one two", vec!["four five"], gap),
            ("one two", vec!["one"], end_lost),
            ("one two", vec!["one", "!"], end_lost),
            ("one two", vec!["o"], end_lost),
            ("one two", vec![], end_lost),
            ("one t", vec!["one *** three"], "one *** three"),
            ("", vec!["one"], "one"),
        ] {
            assert_eq!(joined(before, &again), kept, "{before} + {again:?}");
        }
    }

    #[test]
    fn a_log_whose_end_was_seen_is_not_said_to_be_cut() {
        assert_eq!(joined_if(true, LIMIT_BYTES, "one two", &["one"]), "one two");
        assert_eq!(joined_if(true, LIMIT_BYTES, "one", &["one two"]), "one two");
    }

    #[test]
    fn what_an_interrupted_recording_left_in_two_files_is_joined() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("build.log");
        let mut file = CappedFile::create(&path, LIMIT_BYTES).expect("created");
        let written = "0123456789".repeat(8);
        file.write(written.as_bytes()).expect("written");
        file.flush().expect("flushed");
        // Nothing of a process that is killed is dropped.
        std::mem::forget(file);
        for _ in 0..2 {
            set_aside(&path, LIMIT_BYTES).expect("set aside");
        }
        let stored = fs::read_to_string(earlier(&path)).expect("read");
        assert_eq!(stored, written);
        let files = fs::read_dir(directory.path()).expect("listed").count();
        assert_eq!(files, 1);
    }

    #[test]
    fn the_end_of_a_log_is_kept_though_less_of_it_is_left() {
        let before = "a".repeat(500) + &"b".repeat(600);
        let gap = "\n[compose-ci: the engine lost a part of the log here]\n";
        let kept = format!("{}{gap}the reason", "a".repeat(500));
        assert_eq!(joined_if(false, 1000, &before, &["the reason"]), kept);
    }

    /// The stream of these lines, and the place of each byte.
    fn lines(count: usize) -> String {
        (0..count).map(|n| format!("line {n}\n")).collect()
    }

    /// The log that is kept of a stream that was recorded up to a byte, by a process that ended then or was
    /// killed, and that the engine has again from another byte on.
    fn resumed(stream: &str, recorded: usize, from: usize, killed: bool) -> String {
        const LIMIT_BYTES: u64 = 1000;
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("build.log");
        let mut file = CappedFile::create(&path, LIMIT_BYTES).expect("created");
        file.write(&stream.as_bytes()[..recorded]).expect("written");
        match killed {
            true => {
                file.flush().expect("flushed");
                std::mem::forget(file);
            }
            false => file.finish().expect("joined"),
        }
        set_aside(&path, LIMIT_BYTES).expect("set aside");
        let mut splice = Splice::onto(&earlier(&path), LIMIT_BYTES).expect("readable");
        let mut file = CappedFile::create(&path, LIMIT_BYTES).expect("created");
        for chunk in stream.as_bytes()[from..].chunks(77) {
            splice.push(chunk, &mut file).expect("written");
        }
        splice.finish(&mut file).expect("written");
        file.finish().expect("written");
        fs::read_to_string(&path).expect("read")
    }

    #[test]
    fn what_is_missing_of_a_log_is_told_exactly_after_a_restart() {
        let stream = lines(1000);
        let whole = |missing: usize| {
            let (head, tail) = (&stream[..500], &stream[stream.len() - 500..]);
            let notice = format!("{missing} bytes of the log were left out here (LOG_LIMIT)");
            format!("{head}\n[compose-ci: {notice}]\n{tail}")
        };
        for killed in [false, true] {
            for recorded in [1500, 4000, stream.len()] {
                for from in [200, recorded - 600, recorded - 900] {
                    let log = resumed(&stream, recorded, from, killed);
                    assert_eq!(
                        log,
                        whole(stream.len() - 1000),
                        "{recorded} {from} {killed}"
                    );
                }
            }
            // The engine has nothing that was recorded before.
            let log = resumed(&stream, 4000, 5000, killed);
            assert!(log.contains("at least "), "{log}");
        }
    }

    #[test]
    fn a_log_that_was_joined_keeps_to_its_limit() {
        let before = "a".repeat(49) + "b";
        let again = "c".repeat(60);
        let notice = "[compose-ci: at least 64 bytes of the log were left out here (LOG_LIMIT)]";
        let kept = format!("{before}\n{notice}\n{}", &again[..50]);
        assert_eq!(joined(&before, &[&again]), kept);
    }
}
