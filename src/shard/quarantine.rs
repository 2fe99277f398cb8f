//! Damaged octets, kept where nothing writes over them: mail that had been acknowledged may be in them, and a person may get it
//! out again. With blocking calls.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::directory::sync_directory;

/// Writes the parts one after the other to a file of this name, durably. One that is there already is left as it is: the same
/// damage has the same name. A part that is an error ends it: no file of that name is made then.
pub fn keep<B: AsRef<[u8]>>(
    folder: &Path,
    name: &str,
    parts: impl IntoIterator<Item = io::Result<B>>,
) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let unfinished = folder.join(format!(".unfinished-{name}"));
    let path = folder.join(name);
    if path.try_exists()? {
        return Ok(());
    }
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&unfinished)?;
    parts.into_iter().try_for_each(|part| file.write_all(part?.as_ref()))?;
    file.sync_all()?;
    fs::rename(&unfinished, &path)?;
    sync_directory(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_kept_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let parts = |last: io::Result<&'static [u8]>| [Ok(&b"one"[..]), last];
        let short = io::Error::from_raw_os_error(libc::EMFILE);
        assert!(keep(folder.path(), "a", parts(Err(short))).is_err());
        assert!(!folder.path().join("a").exists());
        keep(folder.path(), "a", parts(Ok(b"two"))).unwrap();
        keep(folder.path(), "a", parts(Ok(b"six"))).unwrap();
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"onetwo");
    }
}
