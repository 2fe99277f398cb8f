//! Damaged octets, kept where nothing writes over them: mail that had been acknowledged may be in them, and a person may get it
//! out again. With blocking calls.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::directory::sync_directory;

/// Writes the parts one after the other to a file of this name, durably. One that is there already is left as it is: the same
/// damage has the same name.
pub fn keep(folder: &Path, name: &str, parts: &[&[u8]]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let unfinished = folder.join(format!(".unfinished-{name}"));
    let path = folder.join(name);
    if path.try_exists()? {
        return Ok(());
    }
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&unfinished)?;
    parts.iter().try_for_each(|part| file.write_all(part))?;
    file.sync_all()?;
    fs::rename(&unfinished, &path)?;
    sync_directory(folder)
}
