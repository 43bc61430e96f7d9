//! Directories and small files that are still there after a power cut.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Makes a directory and those that it lies in, as far as they are not there, so that they stay.
pub(crate) fn make(dir: &Path) -> io::Result<()> {
    make_with(dir, 0o777, &mut |parent| File::open(parent)?.sync_all())
}

/// The same for a directory that nobody else looks into, if it is made. One that is there stays as it is.
pub(crate) fn make_private(dir: &Path) -> io::Result<()> {
    make_with(dir, 0o700, &mut |parent| File::open(parent)?.sync_all())
}

/// Puts a file in the place of another: a power cut leaves the old one or the new one, and after the return the new one.
/// `mode` is what the process's mask leaves of it.
///
/// # Errors
/// The directory is not there or cannot be written.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace_with(path, content, mode, |_| Ok(()))
}

/// The same for a file that has something done to it before it takes the place.
///
/// # Errors
/// As [`replace`]; or that could not be done.
pub fn replace_with(
    path: &Path,
    content: &[u8],
    mode: u32,
    before: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::other("has no directory"))?;
    let draft = path.with_extension("new");
    let _ = fs::remove_file(&draft);
    let mut file = File::options().write(true).create_new(true).mode(mode).open(&draft)?;
    file.write_all(content)?;
    before(&file)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(dir)?.sync_all()
}

/// `lasts` is called with each directory in which one was made. The mode is that of the last one.
fn make_with(dir: &Path, mode: u32, lasts: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return fs::create_dir(dir),
    };
    make_with(parent, 0o777, lasts)?;
    match fs::DirBuilder::new().mode(mode).create(dir) {
        // Somebody else was faster.
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        made => made?,
    }
    lasts(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_directory_is_made_to_last_where_it_lies() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path();
        let mut lasting = Vec::new();
        let mut make = |dir: &str| {
            make_with(&root.join(dir), 0o777, &mut |parent| {
                lasting.push(parent.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
                Ok(())
            })
        };
        make("a/b").unwrap();
        make("a/b").unwrap();
        make("a/b/c").unwrap();
        assert_eq!(lasting, ["", "a", "a/b"]);
        fs::write(root.join("file"), "").unwrap();
        assert!(super::make(&root.join("file/x")).is_err());
        super::make(&root.join("x/y")).unwrap();
        assert!(root.join("x/y").is_dir());
    }

    #[test]
    fn a_private_directory_is_private_if_it_is_made_here() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (made, given) = (dir.path().join("a/b/data"), dir.path().join("given"));
        make_private(&made).unwrap();
        assert_eq!(mode(&made), 0o700);
        fs::create_dir(&given).unwrap();
        fs::set_permissions(&given, fs::Permissions::from_mode(0o750)).unwrap();
        make_private(&given).unwrap();
        assert_eq!(mode(&given), 0o750);
    }
}
