use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

const COMMIT: &str = "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c";

/// A tarball as GitHub makes it: the commit's id first, one top folder, then what `fill` adds.
fn tarball(comment: &str, fill: impl FnOnce(&mut Builder<GzEncoder<Vec<u8>>>)) -> Vec<u8> {
    let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let record = format!("{} comment={comment}\n", comment.len() + 12);
    let mut pax = Header::new_ustar();
    pax.set_entry_type(EntryType::XGlobalHeader);
    pax.set_size(record.len() as u64);
    builder
        .append_data(&mut pax, "pax_global_header", record.as_bytes())
        .expect("in memory");
    fill(&mut builder);
    builder.into_inner().expect("tar").finish().expect("gzip")
}

fn file(builder: &mut Builder<GzEncoder<Vec<u8>>>, path: &str, mode: u32, data: &[u8]) {
    raw(builder, EntryType::Regular, path, "", mode, data);
}

/// An entry with exactly this path: the tar crate itself refuses to write a hostile one.
fn raw(
    builder: &mut Builder<GzEncoder<Vec<u8>>>,
    kind: EntryType,
    path: &str,
    target: &str,
    mode: u32,
    data: &[u8],
) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(mode);
    let gnu = header.as_gnu_mut().expect("gnu");
    gnu.name[..path.len()].copy_from_slice(path.as_bytes());
    gnu.linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    builder.append(&header, data).expect("in memory");
}

fn repacked(tarball: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    let mut output = Vec::new();
    repack(tarball, &COMMIT.parse().expect("sha"), &mut output)?;
    Ok(output)
}

fn listing(tar: &[u8]) -> Vec<String> {
    let mut archive = Archive::new(tar);
    let entries = archive.entries().expect("tar");
    entries
        .map(|entry| {
            let entry = entry.expect("entry");
            let header = entry.header();
            let target = entry.link_name().expect("link");
            format!(
                "{:?} {:o} {} {}",
                header.entry_type(),
                header.mode().expect("mode"),
                entry.path().expect("path").display(),
                target
                    .map(|path| path.display().to_string())
                    .unwrap_or_default(),
            )
        })
        .collect()
}

#[test]
fn the_checkout_takes_the_place_of_the_top_folder() {
    let long = format!("top/{}/file", "d".repeat(140));
    let input = tarball(COMMIT, |tar| {
        raw(tar, EntryType::Directory, "top/", "", 0o755, b"");
        raw(tar, EntryType::Directory, "top/bin/", "", 0o755, b"");
        file(tar, "top/bin/test", 0o4755, b"#!/bin/sh\n");
        raw(
            tar,
            EntryType::Symlink,
            "top/current",
            "bin/test",
            0o777,
            b"",
        );
        tar.append_data(&mut header_of_file(3), &long, &b"abc"[..])
            .expect("long name");
    });
    let output = repacked(&input).expect("valid");
    assert_eq!(
        listing(&output),
        [
            "Directory 755 tarball/bin ".to_owned(),
            "Regular 755 tarball/bin/test ".to_owned(),
            "Symlink 777 tarball/current bin/test".to_owned(),
            format!("Regular 644 tarball/{} ", &long["top/".len()..]),
        ]
    );
}

fn header_of_file(size_bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_size(size_bytes);
    header.set_mode(0o644);
    header
}

#[test]
fn an_empty_commit_is_an_empty_checkout() {
    let output = repacked(&tarball(COMMIT, |_| {})).expect("valid");
    assert!(listing(&output).is_empty());
}

#[test]
fn a_tarball_of_another_commit_is_refused() {
    let other = "f".repeat(40);
    for input in [
        tarball(&other, |tar| file(tar, "top/a", 0o644, b"x")),
        tarball(&COMMIT[..39], |_| {}),
    ] {
        let error = repacked(&input).expect_err("other commit");
        assert!(matches!(error, ArchiveError::OtherCommit), "{error}");
    }
}

#[test]
fn a_tarball_that_does_not_name_its_commit_is_refused() {
    let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    file(&mut builder, "top/a", 0o644, b"x");
    let input = builder.into_inner().expect("tar").finish().expect("gzip");
    let error = repacked(&input).expect_err("no commit");
    assert!(matches!(error, ArchiveError::OtherCommit), "{error}");
}

#[test]
fn a_tarball_that_is_cut_anywhere_is_damaged() {
    let data: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let input = tarball(COMMIT, |tar| file(tar, "top/a", 0o644, &data));
    for keep in [0, 5, input.len() / 2, input.len() - 9, input.len() - 1] {
        let error = repacked(&input[..keep]).expect_err("cut short");
        assert!(matches!(error, ArchiveError::Damaged(_)), "{keep}: {error}");
    }
}

#[test]
fn a_wrong_checksum_at_the_very_end_is_damage() {
    let mut input = tarball(COMMIT, |tar| file(tar, "top/a", 0o644, b"x"));
    let crc = input.len() - 8;
    input[crc] ^= 1;
    let error = repacked(&input).expect_err("wrong checksum");
    assert!(matches!(error, ArchiveError::Damaged(_)), "{error}");
}

#[test]
fn what_git_does_not_make_is_refused() {
    let cases: &[(&str, EntryType, &str, &str)] = &[
        (
            "climbs out",
            EntryType::Regular,
            "top/../../etc/cron.d/x",
            "",
        ),
        ("absolute", EntryType::Regular, "/etc/passwd", ""),
        ("hard link", EntryType::Link, "top/passwd", "/etc/passwd"),
        ("device", EntryType::Block, "top/sda", ""),
        ("fifo", EntryType::Fifo, "top/pipe", ""),
    ];
    for (name, kind, path, target) in cases {
        let input = tarball(COMMIT, |tar| raw(tar, *kind, path, target, 0o644, b""));
        let error = repacked(&input).expect_err(name);
        assert!(matches!(error, ArchiveError::Hostile(_)), "{name}: {error}");
    }
}

#[test]
fn an_entry_beside_the_top_folder_is_refused() {
    let input = tarball(COMMIT, |tar| {
        file(tar, "top/a", 0o644, b"x");
        file(tar, "other/a", 0o644, b"x");
    });
    let error = repacked(&input).expect_err("beside");
    insta::assert_snapshot!(error, @r#"the tarball holds an entry that git does not make: "other/a" lies beside the top folder"#);
    let input = tarball(COMMIT, |tar| file(tar, "top", 0o644, b"x"));
    let error = repacked(&input).expect_err("a file");
    insta::assert_snapshot!(error, @r#"the tarball holds an entry that git does not make: "top" is no folder"#);
}

#[test]
fn bytes_behind_the_end_are_refused() {
    let whole = tarball(COMMIT, |tar| file(tar, "top/a", 0o644, b"x"));
    let second = [&whole[..], &whole].concat();
    let more = [&whole[..], b"\0"].concat();
    let hidden = tarball(COMMIT, |tar| {
        // Two blocks of zeros end a tar.
        tar.get_mut().write_all(&[0; 1024]).expect("in memory");
        file(tar, "top/hidden", 0o644, b"x");
    });
    for input in [second, more, hidden] {
        let error = repacked(&input).expect_err("goes on");
        assert!(matches!(error, ArchiveError::GoesOn), "{error}");
    }
}

#[test]
fn links_lead_where_git_says() {
    let targets = [
        "../../../../outside",
        "./x//y/",
        "/etc/passwd",
        "a/b/../../..",
    ];
    let long = format!("..//{}/", "d".repeat(150));
    let input = tarball(COMMIT, |tar| {
        for (number, target) in targets.iter().enumerate() {
            raw(
                tar,
                EntryType::Symlink,
                &format!("top/{number}"),
                target,
                0o777,
                b"",
            );
        }
        let mut link = Header::new_gnu();
        link.set_entry_type(EntryType::Symlink);
        link.set_size(0);
        tar.append_link(&mut link, "top/long", &long)
            .expect("in memory");
    });
    let output = repacked(&input).expect("valid");
    let mut archive = Archive::new(&output[..]);
    let found: Vec<_> = archive
        .entries()
        .expect("tar")
        .map(|entry| {
            entry
                .expect("entry")
                .link_name_bytes()
                .expect("a target")
                .into_owned()
        })
        .collect();
    let expected = targets.iter().copied().chain([&*long]);
    assert_eq!(
        found,
        expected
            .map(|target| target.as_bytes().to_vec())
            .collect::<Vec<_>>()
    );
}

#[test]
fn names_that_linux_does_not_take_are_refused() {
    let (fits, long) = ("n".repeat(255), "n".repeat(256));
    let deep = format!("{}x", "deep/".repeat(820));
    let of = |name: &str| {
        tarball(COMMIT, |tar| {
            let name = format!("top/{name}");
            let mut header = header_of_file(0);
            tar.append_data(&mut header, &name, io::empty())
                .expect("in memory");
        })
    };
    repacked(&of(&fits)).expect("fits");
    let told = |name: &str| repacked(&of(name)).expect_err("too long").to_string();
    insta::assert_snapshot!(told(&long), @r#"the commit cannot be checked out: "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn" has a name of 256 bytes"#);
    insta::assert_snapshot!(told(&deep), @r#"the commit cannot be checked out: "deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/" is a path of 4110 bytes"#);
}

#[test]
fn directories_and_links_have_no_contents() {
    let input = tarball(COMMIT, |tar| {
        raw(tar, EntryType::Symlink, "top/l", "a", 0o777, &[b'x'; 512]);
        raw(tar, EntryType::Directory, "top/a", "", 0o755, &[b'x'; 512]);
        file(tar, "top/a/b", 0o644, b"b");
    });
    let output = repacked(&input).expect("valid");
    assert_eq!(
        listing(&output),
        [
            "Symlink 777 tarball/l a",
            "Directory 755 tarball/a ",
            "Regular 644 tarball/a/b "
        ]
    );
    assert!(!output.contains(&b'x'));
}

#[test]
fn a_name_with_a_zero_byte_is_refused() {
    let long = "d".repeat(110);
    let input = tarball(COMMIT, |tar| {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        let name = format!("top/{long}\0x");
        header.set_size(name.len() as u64 + 1);
        header.set_cksum();
        tar.append(&header, format!("{name}\0").as_bytes())
            .expect("in memory");
        file(tar, "top/short", 0o644, b"");
    });
    let error = repacked(&input).expect_err("a zero byte");
    assert!(matches!(error, ArchiveError::Hostile(_)), "{error}");
}

#[test]
fn headers_that_would_fill_the_memory_are_refused() {
    let entry = |header_bytes: usize| {
        tarball(COMMIT, |tar| {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::GNULongLink);
            header.set_size(header_bytes as u64);
            header.set_cksum();
            let target = vec![b'x'; header_bytes];
            tar.append(&header, &target[..]).expect("in memory");
            raw(tar, EntryType::Symlink, "top/a", "", 0o777, b"");
        })
    };
    repacked(&entry(4095)).expect("a path");
    let error = repacked(&entry(2 << 20)).expect_err("too much");
    insta::assert_snapshot!(error, @"the tarball holds an entry that git does not make: headers of more than 1 MiB");
}

#[test]
fn nothing_is_written_through_a_symbolic_link() {
    let input = tarball(COMMIT, |tar| {
        raw(tar, EntryType::Symlink, "top/etc", "/etc", 0o777, b"");
        file(tar, "top/etc/passwd", 0o644, b"root::0:0::/:/bin/sh");
    });
    let error = repacked(&input).expect_err("through a link");
    insta::assert_snapshot!(error, @r#"the tarball holds an entry that git does not make: "top/etc/passwd" lies behind a symbolic link"#);
}

#[test]
fn an_output_that_fails_is_not_blamed_on_the_tarball() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let input = tarball(COMMIT, |tar| file(tar, "top/a", 0o644, b"x"));
    let error = repack(&input[..], &COMMIT.parse().expect("sha"), Full).expect_err("full");
    assert!(matches!(error, ArchiveError::Output(_)), "{error}");
}
