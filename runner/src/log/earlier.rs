//! A log that is recorded once more from the engine's own copy: after the connection to the engine
//! broke, or by the next worker. The engine may have less of it than was stored before: it keeps only
//! the end of a long log, and loses what it has not written yet when it is killed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;

use super::capped::{self, CappedFile};
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
    let head_bytes = limit_bytes / 2 + GAP.len() as u64;
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
}

impl Splice {
    /// With the recording at this path, if there is one. Of one that has reached its limit the
    /// head counts: the engine has the rest.
    pub(super) fn onto(earlier: &Path, limit_bytes: u64) -> io::Result<Self> {
        let stored_bytes = match size(earlier)? {
            all if all >= limit_bytes => limit_bytes / 2,
            part => part,
        };
        // The last that was stored may be half a secret, which was not masked as the whole one is.
        let probe_bytes = PROBE_BYTES.min(stored_bytes / 2);
        Ok(Self {
            earlier: (probe_bytes > 0).then(|| earlier.to_owned()),
            stored_bytes,
            probe_bytes: usize::try_from(probe_bytes).expect("it is small"),
            begins: Vec::new(),
        })
    }

    pub(super) fn push(&mut self, bytes: &[u8], file: &mut CappedFile) -> io::Result<()> {
        if self.earlier.is_none() {
            return file.write(bytes);
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
            return file.write(&begins);
        };
        let stored = || File::open(&earlier).map(|file| file.take(self.stored_bytes));
        let probe = &begins[..begins.len().min(self.probe_bytes)];
        match place(stored()?, probe)? {
            Some(place) => file.take_from(stored()?.take(place))?,
            None => {
                file.take_from(stored()?)?;
                file.leave_gap(GAP)?;
            }
        }
        file.write(&begins)
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

    #[test]
    fn a_log_that_was_joined_keeps_to_its_limit() {
        let before = "a".repeat(49) + "b";
        let again = "c".repeat(60);
        let notice = "[compose-ci: at least 64 bytes of the log were left out here (LOG_LIMIT)]";
        let kept = format!("{before}\n{notice}\n{}", &again[..50]);
        assert_eq!(joined(&before, &[&again]), kept);
    }
}
