//! Directories that are still there after a power cut.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Makes a directory and those that it lies in, as far as they are not there, so that they stay.
pub(crate) fn make(dir: &Path) -> io::Result<()> {
    make_with(dir, &mut |parent| File::open(parent)?.sync_all())
}

/// `lasts` is called with each directory in which one was made.
fn make_with(dir: &Path, lasts: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return fs::create_dir(dir),
    };
    make_with(parent, lasts)?;
    match fs::create_dir(dir) {
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
            make_with(&root.join(dir), &mut |parent| {
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
}
