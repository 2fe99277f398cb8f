//! Segments as files: prepared, removed and opened for reading with blocking calls, written and synced through the shard's ring.
//!
//! Invariants:
//! - a new file is written through with zeros and synced, and its folder is synced, before it is ready: a commit needs no
//!   space and one flush;
//! - a short write is gone on with, or fails; it is never taken for the whole;
//! - blocking calls are made on the shard's blocking thread and on delivery workers, never on the shard's own.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, Weak};

use glommio::io::{DmaFile, OpenOptions};

use super::super::blocking;
use super::super::directory::sync_directory;
use super::DmaPage;
use crate::spool::Slot;
use crate::spool::format::BLOCK_SIZE;

/// Zeros are written in parts of this size.
const ZEROS_SIZE: usize = 1 << 20;

/// The segment files of one log.
pub struct Files {
    folder: Folder,
    /// Open for writing.
    open: RefCell<BTreeMap<Slot, Rc<DmaFile>>>,
}

impl Files {
    /// Those in this folder, which exists.
    pub fn new(directory: PathBuf) -> Self {
        Files { folder: Folder::new(&directory), open: RefCell::default() }
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.folder.directory
    }

    /// Where this one is.
    pub fn path(&self, slot: Slot) -> PathBuf {
        self.folder.path(slot)
    }

    /// For those who read.
    pub fn folder(&self) -> Folder {
        self.folder.clone()
    }

    /// See [`crate::spool::Io::Prepare`], whose order this keeps.
    pub async fn prepare(&self, slot: Slot, is_new: bool, size: u32, header: Vec<u8>) -> io::Result<()> {
        let path = self.path(slot);
        let directory = self.folder.directory.clone();
        let file = path.clone();
        blocking(move || prepare(&directory, &file, is_new, size, &header)).await?;
        // Read-write: glommio probes a file by reading it.
        let file =
            OpenOptions::new().read(true).write(true).dma_open(&path).await.map_err(io::Error::from)?;
        self.open.borrow_mut().insert(slot, Rc::new(file));
        Ok(())
    }

    /// Writes the whole of it, or fails. A short write is gone on with: what is missing is copied, for the page was given away.
    pub async fn write(&self, slot: Slot, offset: u32, size: u32, mut page: DmaPage) -> io::Result<()> {
        let file = self.file(slot)?;
        let mut offset = u64::from(offset);
        page.trim_to_size(size as usize);
        let mut left = Rc::new(page);
        loop {
            let written = file.write_rc_at(left.clone(), offset).await.map_err(io::Error::from)?;
            let octets = left.as_bytes();
            if written == octets.len() {
                return Ok(());
            }
            tracing::warn!(file = %slot.file_name(), offset, wanted = octets.len(), written, "short write");
            // Direct I/O goes on at block boundaries only; rewriting a part of what was just written is harmless, for
            // nothing of it is acknowledged.
            let whole = written / BLOCK_SIZE * BLOCK_SIZE;
            if whole == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let mut rest = file.alloc_dma_buffer(octets.len() - whole);
            rest.as_bytes_mut().copy_from_slice(&octets[whole..]);
            left = Rc::new(rest);
            offset += whole as u64;
        }
    }

    /// Syncs the file's data.
    pub async fn sync(&self, slot: Slot) -> io::Result<()> {
        self.file(slot)?.fdatasync().await.map_err(io::Error::from)
    }

    /// Removes the file, durably.
    pub async fn remove(&self, slot: Slot) -> io::Result<()> {
        self.open.borrow_mut().remove(&slot);
        let directory = self.folder.directory.clone();
        blocking(move || remove(&directory, slot)).await
    }

    /// Closes what is not written any more.
    pub fn close_all_but(&self, is_open: impl Fn(Slot) -> bool) {
        self.open.borrow_mut().retain(|slot, _| is_open(*slot));
    }

    fn file(&self, slot: Slot) -> io::Result<Rc<DmaFile>> {
        self.open.borrow().get(&slot).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// The folder of segment files, and those open for reading: one descriptor each, however many jobs read from it.
#[derive(Clone)]
pub struct Folder {
    directory: Arc<Path>,
    readers: Arc<Mutex<HashMap<Slot, Weak<File>>>>,
}

impl Folder {
    /// This one; none of its files is open.
    pub fn new(directory: &Path) -> Self {
        Folder { directory: directory.into(), readers: Arc::default() }
    }

    fn path(&self, slot: Slot) -> PathBuf {
        self.directory.join(slot.file_name())
    }

    /// Opens a file for reading, with a blocking call.
    pub fn open(&self, slot: Slot) -> io::Result<Arc<File>> {
        let mut files = self.readers.lock().expect("nobody panics while it is held");
        if let Some(file) = files.get(&slot).and_then(Weak::upgrade) {
            return Ok(file);
        }
        files.retain(|_, file| file.strong_count() > 0);
        let file = Arc::new(File::open(self.path(slot))?);
        files.insert(slot, Arc::downgrade(&file));
        Ok(file)
    }
}

/// Removes a segment file, durably, with blocking calls. One that is not there is as good as removed.
pub fn remove(directory: &Path, slot: Slot) -> io::Result<()> {
    match fs::remove_file(directory.join(slot.file_name())) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => sync_directory(directory),
    }
}

fn prepare(directory: &Path, path: &Path, is_new: bool, size: u32, header: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    // Direct, so that no cached page has to be thrown away when the shard writes there directly.
    options.write(true).create(is_new).truncate(is_new).custom_flags(libc::O_DIRECT);
    let file = options.open(path)?;
    let mut page = AlignedPage::zeroed(if is_new { ZEROS_SIZE.min(size as usize) } else { header.len() });
    if is_new {
        let mut offset = 0;
        while offset < u64::from(size) {
            let part = (u64::from(size) - offset).min(page.octets().len() as u64) as usize;
            file.write_all_at(&page.octets()[..part], offset)?;
            offset += part as u64;
        }
    }
    page.octets()[..header.len()].copy_from_slice(header);
    file.write_all_at(&page.octets()[..header.len()], 0)?;
    file.sync_all()?;
    if is_new { sync_directory(directory) } else { Ok(()) }
}

/// Memory at a block boundary, as direct I/O wants it.
struct AlignedPage {
    memory: Vec<u8>,
    start: usize,
    size: usize,
}

impl AlignedPage {
    fn zeroed(size: usize) -> Self {
        let memory = vec![0; size + BLOCK_SIZE];
        let start = memory.as_ptr().align_offset(BLOCK_SIZE);
        AlignedPage { memory, start, size }
    }

    fn octets(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.size]
    }
}
