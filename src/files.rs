//! Files that must not be half written or readable by others.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// Replaces `path` atomically; the content is on stable storage when this returns. Only the owner may read it.
///
/// # Errors
/// As of the operating system; the old content is intact then.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder)?.sync_all()
}

/// Writes a file that must not exist yet: a key is never overwritten. Only the owner may read it.
///
/// # Errors
/// As of the operating system; [`io::ErrorKind::AlreadyExists`] when there is such a file.
pub fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path)?;
    File::open(folder)?.sync_all()
}

/// Replaces `path` atomically by what `write` writes; it is on stable storage when this returns. Only the owner may read it. A call
/// that was killed leaves `.NAME.unfinished` beside it, which the next one writes anew: two at a time are the caller's to prevent.
///
/// # Errors
/// As of `write` and the operating system; the old content is intact then.
pub fn replace_by<E: From<io::Error>>(path: &Path, write: impl FnOnce(&mut File) -> Result<(), E>) -> Result<(), E> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it names no file"))?;
    let unfinished = folder.join(format!(".{}.unfinished", name.to_string_lossy()));
    let mut file = open_private(&unfinished)?;
    let result = file.set_len(0).map_err(E::from).and_then(|()| write(&mut file));
    let result = result.and_then(|()| {
        file.sync_all()?;
        std::fs::rename(&unfinished, path)?;
        Ok(File::open(folder)?.sync_all()?)
    });
    if result.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    result
}

/// Opens a file for reading and writing, made if missing, that only its owner may use.
///
/// # Errors
/// As of the operating system.
pub fn open_private(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Makes a folder, and those above it, that only its owner may use; leaves one that is there as it is.
///
/// # Errors
/// As of the operating system.
pub fn create_private_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        std::fs::create_dir_all(above)?;
    }
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result,
    }
}

/// Takes from others than its owner every permission on a file or folder.
///
/// # Errors
/// As of the operating system.
#[cfg_attr(not(unix), expect(unused_variables, reason = "other systems have no such permissions"))]
pub fn make_private(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path)?.permissions().mode();
        if mode & 0o077 != 0 {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o700))?;
        }
    }
    Ok(())
}

/// The first bytes of a file, at most `limit`.
///
/// # Errors
/// As of the operating system.
pub fn read_start(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_private_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("key");
        create(&path, b"one").unwrap();
        assert_eq!(create(&path, b"two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        replace(&path, b"three").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
