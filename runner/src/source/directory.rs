//! From a directory of this machine to the tar that the engine unpacks.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::archive::{ArchiveError, SourceTracking, append_link, header, in_checkout};

/// Writes the contents of a directory as tar. Symbolic links are kept, not followed.
///
/// Memory: the paths of the directories that are still to be read.
///
/// # Errors
/// A file cannot be read, or the tar cannot be written. The output until then is an incomplete tar.
pub(super) fn pack(directory: &Path, output: impl Write) -> Result<(), ArchiveError> {
    let mut tar = Builder::new(output);
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = directory.join(&folder);
        let entries = fs::read_dir(&path).map_err(|cause| unreadable(&path, cause))?;
        for entry in entries {
            let entry = entry.map_err(|cause| unreadable(&path, cause))?;
            let name = folder.join(entry.file_name());
            let found = entry.metadata();
            let found = found.map_err(|cause| unreadable(&entry.path(), cause))?;
            append(&mut tar, &entry.path(), &in_checkout(&name)?, &found)?;
            if found.is_dir() {
                folders.push(name);
            }
        }
    }
    let mut output = tar.into_inner().map_err(ArchiveError::Output)?;
    output.flush().map_err(ArchiveError::Output)
}

fn append(
    tar: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    found: &Metadata,
) -> Result<(), ArchiveError> {
    if found.is_file() {
        return append_file(tar, path, name);
    }
    let written = if found.is_dir() {
        tar.append_data(
            &mut header_of(EntryType::Directory, found),
            name,
            io::empty(),
        )
    } else if found.is_symlink() {
        let target = fs::read_link(path).map_err(|cause| unreadable(path, cause))?;
        let header = &mut header_of(EntryType::Symlink, found);
        return append_link(tar, header, name, target.as_os_str());
    } else {
        // Sockets, pipes and devices are of this machine, and of no checkout.
        Ok(())
    };
    written.map_err(ArchiveError::Output)
}

fn append_file(
    tar: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
) -> Result<(), ArchiveError> {
    let file = File::open(path).map_err(|cause| unreadable(path, cause))?;
    let found = file.metadata().map_err(|cause| unreadable(path, cause))?;
    let mut header = header_of(EntryType::Regular, &found);
    header.set_size(found.len());
    // A file may shrink or grow meanwhile: its length is the one in the header.
    let whole = file.chain(io::repeat(0)).take(found.len());
    let mut data = SourceTracking::new(whole);
    let written = tar.append_data(&mut header, name, &mut data);
    written.map_err(|error| data.blame(error, |cause| unreadable(path, cause)))
}

fn header_of(kind: EntryType, found: &Metadata) -> Header {
    header(kind, found.mode(), found.mtime().try_into().unwrap_or(0))
}

fn unreadable(path: &Path, cause: io::Error) -> ArchiveError {
    ArchiveError::Unreadable {
        path: path.to_owned(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use tar::Archive;

    use super::*;

    fn packed(directory: &Path) -> Result<Vec<u8>, ArchiveError> {
        let mut tar = Vec::new();
        pack(directory, &mut tar)?;
        Ok(tar)
    }

    #[test]
    fn directory_is_packed_with_links_and_modes() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let long = "d".repeat(140);
        fs::create_dir_all(at("bin").join(&long)).expect("made");
        fs::write(at("bin/test"), "#!/bin/sh\n").expect("written");
        fs::set_permissions(at("bin/test"), PermissionsExt::from_mode(0o4755)).expect("set");
        fs::write(at("bin").join(&long).join("file"), "abc").expect("written");
        symlink("/etc", at("etc")).expect("linked");
        symlink("bin", at("current")).expect("linked");
        let _socket = UnixListener::bind(at("socket")).expect("bound");

        let tar = packed(directory.path()).expect("packed");
        let mut archive = Archive::new(&*tar);
        let mut found: Vec<_> = archive
            .entries()
            .expect("a tar")
            .map(|entry| {
                let entry = entry.expect("an entry");
                let target = entry.link_name().expect("a name").unwrap_or_default();
                format!(
                    "{:?} {:o} {} {}",
                    entry.header().entry_type(),
                    entry.header().mode().expect("a mode"),
                    entry.path().expect("a path").display(),
                    target.display()
                )
            })
            .collect();
        found.sort();
        assert_eq!(
            found,
            [
                "Directory 755 tarball/bin ".to_owned(),
                format!("Directory 755 tarball/bin/{long} "),
                format!("Regular 644 tarball/bin/{long}/file "),
                "Regular 755 tarball/bin/test ".to_owned(),
                "Symlink 777 tarball/current bin".to_owned(),
                "Symlink 777 tarball/etc /etc".to_owned(),
            ]
        );
    }

    #[test]
    fn missing_directory_is_named() {
        let error = packed(Path::new("/nowhere")).expect_err("it is missing");
        insta::assert_snapshot!(error, @"failed to read /nowhere/: No such file or directory (os error 2)");
    }
}
