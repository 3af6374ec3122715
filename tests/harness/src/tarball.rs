//! Tarballs that no git repository would make: hostile ones, and ones too large to hold.

use std::io::{self, Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::{AsyncRead, duplex};
use tokio_util::io::SyncIoBridge;

/// The tarball of a commit that exists on the fake GitHub only.
#[derive(Clone, Debug)]
pub enum Tarball {
    /// These bytes, whatever they are.
    Bytes(Bytes),
    /// Made while it is sent, in memory that does not grow with its size.
    Generated {
        /// How many files, in one folder.
        files: u64,
        /// The size of each of them.
        file_size_bytes: u64,
    },
}

/// How much of a generated tarball waits for its reader.
const BUFFER_BYTES: usize = 64 * 1024;

impl Tarball {
    /// A tarball that says it is `sha`, with the entries that `fill` appends.
    pub fn with_entries(
        sha: &str,
        fill: impl FnOnce(&mut tar::Builder<GzEncoder<Vec<u8>>>) -> io::Result<()>,
    ) -> Self {
        let packed = (|| {
            let mut archive = begin(Vec::new(), sha)?;
            fill(&mut archive)?;
            archive.into_inner()?.finish()
        })();
        Self::Bytes(packed.expect("writing into memory does not fail").into())
    }

    /// The gzipped tarball of `sha` below `top_folder`.
    pub(crate) fn stream(&self, sha: &str, top_folder: &str) -> Box<dyn AsyncRead + Send + Unpin> {
        match self {
            Self::Bytes(bytes) => Box::new(io::Cursor::new(bytes.clone())),
            &Self::Generated {
                files,
                file_size_bytes,
            } => {
                let (writer, reader) = duplex(BUFFER_BYTES);
                let (sha, top_folder) = (sha.to_owned(), top_folder.to_owned());
                tokio::task::spawn_blocking(move || {
                    // An error is a reader that went away, which is the reader's business.
                    generate(
                        SyncIoBridge::new(writer),
                        &sha,
                        &top_folder,
                        files,
                        file_size_bytes,
                    )
                    .ok()
                });
                Box::new(reader)
            }
        }
    }
}

fn generate(
    output: impl Write,
    sha: &str,
    top_folder: &str,
    files: u64,
    file_size_bytes: u64,
) -> io::Result<()> {
    let mut archive = begin(output, sha)?;
    for number in 0..files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(file_size_bytes);
        let content = io::repeat(b'x').take(file_size_bytes);
        archive.append_data(
            &mut header,
            format!("{top_folder}/generated/{number}"),
            content,
        )?;
    }
    archive.into_inner()?.finish()?.flush()
}

/// An archive that begins as `git archive` begins it.
///
/// Content is stored, not compressed: the harness must not be slower than what it measures.
fn begin<W: Write>(output: W, sha: &str) -> io::Result<tar::Builder<GzEncoder<W>>> {
    let mut archive = tar::Builder::new(GzEncoder::new(output, Compression::none()));
    let (header, record) = pax_global_header(sha);
    archive.append(&header, record.as_slice())?;
    Ok(archive)
}

/// The commit's id as a comment for the whole archive.
fn pax_global_header(sha: &str) -> (tar::Header, Vec<u8>) {
    // A pax record tells its own length, which counts the digits of the length as well:
    // 11 is " comment=" with the line's end, and two digits suffice for a sha.
    let record = format!("{} comment={sha}\n", 2 + 10 + sha.len());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XGlobalHeader);
    header.set_path("pax_global_header").expect("the name fits");
    header.set_mode(0o666);
    header.set_size(record.len() as u64);
    header.set_cksum();
    (header, record.into_bytes())
}
