//! Tarballs: whatever is in one, the engine gets nothing that leads out of the checkout.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use fuzz::fuzz;
use fuzz::mutation::{Text, changed, mutated};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use shared::build::CommitSha;
use tar::{Archive, Builder, EntryType, Header};

const COMMIT: &str = "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c";
const BLOCK: usize = 512;
/// The room for a name in a header.
const NAME_BYTES: usize = 100;
/// The place of a header's checksum, which is taken as blanks when it is computed.
const CHECKSUM: std::ops::Range<usize> = 148..156;

const WORDS: &[&str] = &[
    "/",
    "..",
    "../",
    "/../",
    "./",
    "//",
    "\0",
    "top/",
    "top/dir/",
    "top/link",
    "other/",
    "etc/passwd",
    "0",
    "1",
    "2",
    "3",
    "5",
    "7",
    "g",
    "x",
    "L",
    "K",
    "S",
    "00000001000",
    "77777777777",
    "0000644",
    "\x7f",
    "ustar  ",
    "ustar\0",
    "30 path=top/../../etc/passwd1\n",
    "18 path=/etc/x123\n",
    "18 linkpath=/etc/\n",
    "12 size=512\n",
    "13 size=9999\n",
    "19 size=9999999999\n",
    "20 path=top/link/xx\n",
    "\n",
    "=",
    "é",
];

fn sha() -> CommitSha {
    COMMIT.parse().expect("a commit id")
}

/// A tar as `git archive` makes it, and ones with all that a tar can hold.
fn samples() -> Vec<Vec<u8>> {
    let plain = tar(|tar| {
        add(tar, EntryType::Directory, b"top/", b"", b"");
        add(tar, EntryType::Directory, b"top/dir/", b"", b"");
        add(tar, EntryType::Regular, b"top/dir/file", b"", b"contents");
        add(tar, EntryType::Symlink, b"top/link", b"dir/file", b"");
    });
    let through_link = tar(|tar| {
        add(tar, EntryType::Symlink, b"top/link", b"dir", b"");
        add(tar, EntryType::Regular, b"top/link.", b"", b"x");
        add(tar, EntryType::Regular, b"top/linkX/file", b"", b"x");
    });
    let long_names = tar(|tar| {
        add(
            tar,
            EntryType::GNULongName,
            b"././@LongLink",
            b"",
            format!("top/{}\0", "d/".repeat(80)).as_bytes(),
        );
        add(tar, EntryType::Regular, b"top/d", b"", b"x");
        add(
            tar,
            EntryType::GNULongLink,
            b"././@LongLink",
            b"",
            &[&[b'l'; 150][..], b"\0"].concat(),
        );
        add(tar, EntryType::Symlink, b"top/long", b"l", b"");
    });
    let pax = tar(|tar| {
        add(
            tar,
            EntryType::XHeader,
            b"pax",
            b"",
            b"20 path=top/pax/file\n12 size=100\n",
        );
        add(tar, EntryType::Regular, b"top/short", b"", &[b'x'; 100]);
        add(
            tar,
            EntryType::XHeader,
            b"pax",
            b"",
            b"25 linkpath=../../outside\n",
        );
        add(tar, EntryType::Symlink, b"top/a", b"b", b"");
        add(tar, EntryType::Regular, b"top/z", b"", &[b'z'; 600]);
    });
    let sparse = tar(|tar| add(tar, EntryType::GNUSparse, b"top/sparse", b"", b"x"));
    vec![plain.clone(), plain, through_link, long_names, pax, sparse]
}

fn tar(fill: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let record = format!("52 comment={COMMIT}\n");
    add(
        &mut builder,
        EntryType::XGlobalHeader,
        b"pax_global_header",
        b"",
        record.as_bytes(),
    );
    fill(&mut builder);
    builder.into_inner().expect("in memory")
}

fn add(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8], target: &[u8], data: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o4755);
    let fields = header.as_gnu_mut().expect("gnu");
    fields.name[..name.len()].copy_from_slice(name);
    fields.linkname[..target.len()].copy_from_slice(target);
    header.set_cksum();
    tar.append(&header, data).expect("in memory");
}

/// An entry that git may make, or not.
#[derive(Debug, Clone)]
struct Made {
    kind: EntryType,
    path: String,
    target: String,
    size_bytes: usize,
}

fn made() -> impl Strategy<Value = Made> {
    use EntryType::{Block, Continuous, Directory, Link, Regular, Symlink};
    let kind = select(&[
        Regular, Regular, Regular, Directory, Directory, Symlink, Symlink, Link, Block, Continuous,
    ]);
    let part = || select(&["a", "a", "a", "b", "b", "c", ".", "..", "", "\u{e9}"][..]);
    let path = vec(part(), 0..5).prop_map(|parts| parts.join("/"));
    let long = (1..5000usize).prop_map(|length| "d/".repeat(length / 2));
    let wide = (1..300usize).prop_map(|length| "n".repeat(length));
    let rest = prop_oneof![12 => path, 1 => long, 1 => wide];
    let top =
        prop_oneof![20 => Just("top/"), 1 => Just("other/"), 1 => Just("/"), 1 => Just("./top/")];
    let target = vec(part(), 0..4).prop_map(|parts| parts.join("/"));
    let size = prop_oneof![4 => Just(0), 1 => 1..1500usize];
    (kind, top, rest, target, size).prop_map(|(kind, top, rest, target, size_bytes)| Made {
        kind,
        path: format!("{top}{rest}"),
        target,
        size_bytes,
    })
}

fn made_tar(entries: Vec<Made>) -> Vec<u8> {
    tar(|tar| {
        for made in entries {
            let name = made.path.as_bytes();
            if name.len() > NAME_BYTES {
                let long = [name, b"\0"].concat();
                add(tar, EntryType::GNULongName, b"././@LongLink", b"", &long);
            }
            let name = &name[..name.len().min(NAME_BYTES)];
            let data = vec![b'x'; made.size_bytes];
            add(tar, made.kind, name, made.target.as_bytes(), &data);
        }
    })
}

/// A tar whose blocks have the right checksums where they look like headers: else few get far.
fn tars() -> impl Strategy<Value = Text> {
    let made = || vec(made(), 0..8).prop_map(made_tar);
    let damaged = (changed(made(), WORDS), any::<bool>());
    let samples = (mutated(samples(), WORDS), any::<bool>());
    let changed = prop_oneof![damaged, samples].prop_map(|(Text(mut tar), mends)| {
        if mends {
            tar.resize(tar.len().next_multiple_of(BLOCK), 0);
            tar.chunks_exact_mut(BLOCK).for_each(mend);
        }
        Text(tar)
    });
    prop_oneof![made().prop_map(Text), changed]
}

fn mend(block: &mut [u8]) {
    let looks_like_header = block[257..262] == *b"ustar" || block[100..103] == *b"000";
    if looks_like_header {
        block[CHECKSUM].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

#[test]
fn tarballs_stay_below_their_folder() {
    let sha = sha();
    fuzz("tarballs", tars(), |Text(tar)| {
        let mut output = Vec::new();
        match runner::repack(&gzip(&tar)[..], &sha, &mut output) {
            Ok(()) => assert_is_checkout(&output),
            Err(why) => {
                let why = why.to_string();
                assert!(!why.contains(char::is_control), "{why:?}");
            }
        }
    });
}

#[test]
fn damaged_gzip_is_an_error() {
    let sha = sha();
    let whole: Vec<_> = samples().iter().map(|tar| gzip(tar)).collect();
    fuzz("gzip", mutated(whole, WORDS), |Text(tarball)| {
        let mut output = Vec::new();
        if runner::repack(&tarball[..], &sha, &mut output).is_ok() {
            assert_is_checkout(&output);
        }
    });
}

/// Every entry is one that git makes, and lies in the checkout as an engine unpacks it.
fn assert_is_checkout(tar: &[u8]) {
    assert_eq!(tar.len() % BLOCK, 0);
    let mut links: HashSet<PathBuf> = HashSet::new();
    let mut archive = Archive::new(tar);
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").into_owned();
        let bytes = entry.path_bytes();
        assert!(
            path.starts_with("tarball") && path != Path::new("tarball"),
            "{path:?}"
        );
        assert!(
            path.components()
                .all(|part| matches!(part, Component::Normal(_))),
            "{path:?}"
        );
        assert!(!bytes.contains(&0) && bytes.len() < 4096, "{path:?}");
        assert!(
            !path
                .ancestors()
                .skip(1)
                .any(|parent| links.contains(parent)),
            "{path:?} behind a link"
        );
        let header = entry.header();
        assert!(header.mode().expect("a mode") <= 0o777, "{path:?}");
        match header.entry_type() {
            EntryType::Regular => {
                let size = entry.size();
                let mut contents = Vec::new();
                entry.read_to_end(&mut contents).expect("contents");
                assert_eq!(contents.len() as u64, size, "{path:?}");
            }
            EntryType::Directory => assert_eq!(entry.size(), 0, "{path:?}"),
            EntryType::Symlink => {
                assert_eq!(entry.size(), 0, "{path:?}");
                assert_eq!(header.entry_size().expect("a size"), 0, "{path:?}");
                links.insert(path);
            }
            other => panic!("{path:?} is {other:?}"),
        }
    }
}
