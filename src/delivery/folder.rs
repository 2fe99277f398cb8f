//! Folders that survive a power cut.
//!
//! A folder is an entry in its parent: without a sync of the parent it may be gone after a power cut, with everything in it,
//! however well its files were synced. (Measured: a rename whose directory was never synced is undone by a power cut.)

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Makes `path` and its parents, where missing, and their entries durable. Readable by the owner only.
///
/// Folders that are there already are synced too: an earlier process may have ended between making and syncing them. Where one of
/// those may not be opened (a parent of somebody else's), it is left to whoever made it.
pub fn create(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let mut ancestors: Vec<_> =
        path.ancestors().filter(|a| a.parent().is_some()).map(PathBuf::from).collect();
    ancestors.reverse();
    for folder in ancestors {
        let is_new = match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => true,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => false,
            // A parent that may not be written, or is on a read-only file system, may still be there.
            Err(_) if folder.is_dir() => false,
            Err(e) => return Err(e),
        };
        match sync(folder.parent().expect("the root was left out")) {
            Err(e) if e.kind() == ErrorKind::PermissionDenied && !is_new => {}
            synced => synced?,
        }
    }
    match fs::metadata(&path)?.is_dir() {
        true => Ok(()),
        false => Err(ErrorKind::NotADirectory.into()),
    }
}

/// Makes the entries of the folder durable.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_parents_are_made_and_present_ones_kept() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/c");
        for _ in 0..2 {
            create(&path).unwrap();
            fs::write(path.join("kept"), "").unwrap();
        }
        assert!(path.join("kept").exists());
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        for path in ["file", "file/below"] {
            assert!(create(&root.path().join(path)).is_err(), "{path}");
        }
    }
}
