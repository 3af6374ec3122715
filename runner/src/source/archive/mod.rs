//! From a forge's tarball to the tar that the engine unpacks.
//!
//! A commit's tarball is somebody else's input. It is read to its very end (gzip checks the data
//! only there), must be of the commit that was asked for, and may hold nothing but files,
//! directories and symbolic links below one top folder, in whose place the checkout's directory stands.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use flate2::bufread::GzDecoder;
use shared::build::CommitSha;
use tar::{Archive, Builder, Entry, EntryType, Header};

use crate::container::TARBALL_DIR;

/// The most that a commit may unpack to, in bytes: far above any repository that GitHub serves
/// (it asks to stay below 5 GB), far below what a small archive of zeros could unpack to.
const UNPACKED_MAX_BYTES: u64 = 16 << 30;

/// The most that the comment with the commit's id may be long, in bytes.
const PAX_COMMENT_MAX_BYTES: u64 = 4096;

/// The most that may stand between the contents of two files, in bytes: headers, and what has no room
/// in them. It is kept in memory. A path on Linux has 4,096 bytes at most.
const HEADERS_MAX_BYTES: u64 = 1 << 20;

/// The most that a file's name may be long on Linux, in bytes (`NAME_MAX`).
const NAME_MAX_BYTES: usize = 255;

/// The most that a path, or the target of a link, may be long on Linux, in bytes (`PATH_MAX`, which counts a
/// zero byte at the end).
const PATH_MAX_BYTES: usize = 4095;

/// Why a checkout cannot be passed on, fit for the commit's author.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Its download broke off.
    #[error("the download of the tarball broke off")]
    BrokenOff,
    /// It ends early, or its checksum is wrong, or it is no gzip or tar at all.
    #[error("the tarball is damaged or cut short")]
    Damaged(#[source] io::Error),
    /// It is of another commit, or does not say of which one.
    #[error("the tarball is not of the commit that was asked for")]
    OtherCommit,
    /// It would write outside its folder, or holds something that git does not.
    #[error("the tarball holds an entry that git does not make: {0}")]
    Hostile(String),
    /// It holds more than one archive.
    #[error("the tarball goes on behind its end")]
    GoesOn,
    /// No Linux file system takes this entry.
    #[error("the commit cannot be checked out: {0}")]
    Unfit(String),
    /// It unpacks to more than any repository.
    #[error("the tarball unpacks to more than {} GiB", UNPACKED_MAX_BYTES >> 30)]
    TooLarge,
    /// A file of the directory cannot be read.
    #[error("failed to read {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// The tar could not be passed on; the reader of it knows why.
    #[error("the checkout could not be written")]
    Output(#[source] io::Error),
}

/// Reads a gzipped tarball of `commit` and writes its contents as tar, with the checkout's directory in the
/// place of the top folder.
///
/// Memory: the paths of the symbolic links, so that nothing is written through one; and one entry's
/// headers.
///
/// # Errors
/// See [`ArchiveError`]. What was written until then is an incomplete tar.
pub fn repack(
    tarball: impl Read,
    commit: &CommitSha,
    output: impl Write,
) -> Result<(), ArchiveError> {
    let allowance = Allowance::default();
    let mut archive = Archive::new(Rationed {
        input: GzDecoder::new(BufReader::new(tarball)),
        allowance: &allowance,
    });
    let mut repacker = Repacker::new(output);
    let mut commit_seen = false;
    let mut entries = archive.entries().map_err(ArchiveError::Damaged)?;
    while let Some(entry) = allowance.for_headers(|| entries.next()) {
        let mut entry = entry.map_err(|error| allowance.blame(error))?;
        match entry.header().entry_type() {
            EntryType::XGlobalHeader => commit_seen |= names_commit(&mut entry, commit)?,
            _ if !commit_seen => return Err(ArchiveError::OtherCommit),
            _ => repacker.append(&mut entry)?,
        }
    }
    if !commit_seen {
        return Err(ArchiveError::OtherCommit);
    }
    // The tar ends before the gzip does, and only there stands the checksum.
    let mut gzip = archive.into_inner().input;
    check_padding(&mut gzip)?;
    let mut rest = gzip.into_inner();
    if !rest.fill_buf().map_err(ArchiveError::Damaged)?.is_empty() {
        return Err(ArchiveError::GoesOn);
    }
    repacker.finish()
}

/// Reads to the end, which is as far away as zeros go.
fn check_padding(rest: &mut impl Read) -> Result<(), ArchiveError> {
    let mut buffer = [0; 8192];
    loop {
        let read = rest.read(&mut buffer).map_err(ArchiveError::Damaged)?;
        if buffer[..read].iter().any(|&byte| byte != 0) {
            return Err(ArchiveError::GoesOn);
        }
        if read == 0 {
            return Ok(());
        }
    }
}

/// The bytes that may still be read of a tarball before it is too much at once.
#[derive(Debug, Default)]
struct Allowance {
    /// Nothing: any amount.
    left_bytes: Cell<Option<u64>>,
}

impl Allowance {
    /// Has an entry's headers read, and what was left of the entry before.
    fn for_headers<T>(&self, read: impl FnOnce() -> T) -> T {
        self.left_bytes.set(Some(HEADERS_MAX_BYTES));
        let result = read();
        if self.left_bytes.get() != Some(0) {
            self.left_bytes.set(None);
        }
        result
    }

    fn blame(&self, error: io::Error) -> ArchiveError {
        match self.left_bytes.get() {
            Some(0) => ArchiveError::Hostile(format!(
                "headers of more than {} MiB",
                HEADERS_MAX_BYTES >> 20
            )),
            _ => ArchiveError::Damaged(error),
        }
    }
}

/// A reader within an [`Allowance`].
struct Rationed<'a, R> {
    input: R,
    allowance: &'a Allowance,
}

impl<R: Read> Read for Rationed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.allowance.left_bytes.get() else {
            return self.input.read(buffer);
        };
        if left == 0 {
            return Err(io::Error::other("too much at once"));
        }
        let wanted = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.input.read(&mut buffer[..wanted])?;
        self.allowance.left_bytes.set(Some(left - read as u64));
        Ok(read)
    }
}

/// Looks in a pax global header for the comment that `git archive` writes: the commit's id.
fn names_commit(header: &mut impl Read, commit: &CommitSha) -> Result<bool, ArchiveError> {
    let mut records = Vec::new();
    header
        .take(PAX_COMMENT_MAX_BYTES)
        .read_to_end(&mut records)
        .map_err(ArchiveError::Damaged)?;
    let comment = tar::PaxExtensions::new(&records)
        .filter_map(Result::ok)
        .find(|record| record.key_bytes() == b"comment");
    match comment {
        Some(comment) if comment.value_bytes() == commit.as_str().as_bytes() => Ok(true),
        _ => Err(ArchiveError::OtherCommit),
    }
}

struct Repacker<W: Write> {
    output: Builder<W>,
    /// The folder that everything lies in.
    top: Option<OsString>,
    links: HashSet<PathBuf>,
    unpacked_bytes: u64,
}

impl<W: Write> Repacker<W> {
    fn new(output: W) -> Self {
        Self {
            output: Builder::new(output),
            top: None,
            links: HashSet::new(),
            unpacked_bytes: 0,
        }
    }

    fn append(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), ArchiveError> {
        let name = entry.path().map_err(ArchiveError::Damaged)?.into_owned();
        let (top, path) = split(&name)?;
        if self.top.get_or_insert_with(|| top.to_owned()) != top {
            return Err(hostile(&name, "lies beside the top folder"));
        }
        let kind = entry.header().entry_type();
        if path.as_os_str().is_empty() {
            return match kind {
                EntryType::Directory => Ok(()),
                _ => Err(hostile(&name, "is no folder")),
            };
        }
        let path = in_checkout(path)?;
        if path
            .ancestors()
            .skip(1)
            .any(|parent| self.links.contains(parent))
        {
            return Err(hostile(&name, "lies behind a symbolic link"));
        }
        self.unpacked_bytes = self.unpacked_bytes.saturating_add(entry.size());
        if self.unpacked_bytes > UNPACKED_MAX_BYTES {
            return Err(ArchiveError::TooLarge);
        }
        let mut header = header_like(entry);
        match kind {
            EntryType::Symlink => self.append_link(&name, path, entry, &mut header),
            EntryType::Regular => {
                header.set_size(entry.size());
                let mut data = SourceTracking::new(entry);
                let written = self.output.append_data(&mut header, &path, &mut data);
                written.map_err(|error| data.blame(error, ArchiveError::Damaged))
            }
            EntryType::Directory => {
                let written = self.output.append_data(&mut header, &path, io::empty());
                written.map_err(ArchiveError::Output)
            }
            _ => Err(hostile(
                &name,
                "is neither file, directory nor symbolic link",
            )),
        }
    }

    fn append_link(
        &mut self,
        name: &Path,
        path: PathBuf,
        entry: &Entry<'_, impl Read>,
        header: &mut Header,
    ) -> Result<(), ArchiveError> {
        let target = entry.link_name_bytes().filter(|target| !target.is_empty());
        let target = target.ok_or_else(|| hostile(name, "is a link to nothing"))?;
        append_link(&mut self.output, header, &path, OsStr::from_bytes(&target))?;
        self.links.insert(path);
        Ok(())
    }

    fn finish(self) -> Result<(), ArchiveError> {
        let mut output = self.output.into_inner().map_err(ArchiveError::Output)?;
        output.flush().map_err(ArchiveError::Output)
    }
}

/// Writes a symbolic link, its target byte by byte as git has it: it may lead anywhere.
pub(super) fn append_link(
    output: &mut Builder<impl Write>,
    header: &mut Header,
    path: &Path,
    target: &OsStr,
) -> Result<(), ArchiveError> {
    if target.len() > PATH_MAX_BYTES {
        let path: PathBuf = path.components().skip(1).collect();
        return Err(unfit(&path, format!("links to {} bytes", target.len())));
    }
    // The tar crate tidies up a target that has room in the header, and no other.
    let written = match header.set_link_name_literal(target.as_bytes()) {
        Ok(()) => output.append_data(header, path, io::empty()),
        Err(_too_long) => output.append_link(header, path, target),
    };
    written.map_err(ArchiveError::Output)
}

/// The path that the engine unpacks a file to, below its root.
pub(super) fn in_checkout(path: &Path) -> Result<PathBuf, ArchiveError> {
    let longest = path.components().map(|part| part.as_os_str().len()).max();
    if let Some(bytes) = longest
        && bytes > NAME_MAX_BYTES
    {
        return Err(unfit(path, format!("has a name of {bytes} bytes")));
    }
    let absolute = Path::new(TARBALL_DIR).join(path);
    let bytes = absolute.as_os_str().len();
    if bytes > PATH_MAX_BYTES {
        return Err(unfit(path, format!("is a path of {bytes} bytes")));
    }
    Ok(absolute.components().skip(1).collect())
}

/// The top folder, and the path below it.
fn split(name: &Path) -> Result<(&OsStr, &Path), ArchiveError> {
    let plain = name
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    // To an engine a name ends at a zero byte.
    if !plain || name.as_os_str().as_bytes().contains(&0) {
        return Err(hostile(name, "is not a path below its folder"));
    }
    let mut parts = name.components();
    let top = parts.next().map(Component::as_os_str);
    let top = top.ok_or_else(|| hostile(name, "is no path"))?;
    Ok((top, parts.as_path()))
}

/// Of its size nothing: only a file has one. An engine takes what stands behind a directory or a link for
/// the next entry, whatever size it claims, and other readers do not.
fn header_like(entry: &Entry<'_, impl Read>) -> Header {
    let original = entry.header();
    header(
        original.entry_type(),
        original.mode().unwrap_or(0o644),
        original.mtime().unwrap_or(0),
    )
}

/// Kind, mode and time of an entry without contents; owner and everything else as root made it.
pub(super) fn header(kind: EntryType, mode: u32, mtime: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    // Set-user-id bits and the like are no part of a commit.
    header.set_mode(mode & 0o777);
    header.set_mtime(mtime);
    header
}

fn hostile(name: &Path, problem: &str) -> ArchiveError {
    ArchiveError::Hostile(format!("{:?} {problem}", shown(name)))
}

fn unfit(path: &Path, problem: String) -> ArchiveError {
    ArchiveError::Unfit(format!("{:?} {problem}", shown(path)))
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().chars().take(60).collect()
}

/// Tells a source that cannot be read from an output that cannot be written, which one
/// `io::Error` from a copy does not.
pub(super) struct SourceTracking<R> {
    source: R,
    failed: bool,
}

impl<R: Read> SourceTracking<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            failed: false,
        }
    }

    /// The source's error, made by `of_source`, or the output's.
    pub(super) fn blame(
        &self,
        error: io::Error,
        of_source: impl FnOnce(io::Error) -> ArchiveError,
    ) -> ArchiveError {
        match self.failed {
            true => of_source(error),
            false => ArchiveError::Output(error),
        }
    }
}

impl<R: Read> Read for SourceTracking<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.source.read(buffer);
        self.failed |= result.is_err();
        result
    }
}

#[cfg(test)]
mod tests;
