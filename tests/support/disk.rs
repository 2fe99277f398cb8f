//! A journaled file system on a disk with a volatile write cache, that fails, fills up and loses its power on request.
//!
//! Made of nbdkit, nbdfuse and a loop device by `tests/faults/disk-up`; the disk itself is `tests/faults/vdisk.py`. Each
//! lives in a temporary folder of its own and is taken down when it is dropped, also by a panic.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::tools;

/// The programs that `disk-up` and `disk-down` need.
const PROGRAMS: [&str; 8] =
    ["nbdkit", "nbdfuse", "fusermount3", "losetup", "mount", "umount", "mkfs.ext4", "mkfs.xfs"];

/// The file systems with a journal that the tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4 with its journal in ordered mode.
    Ext4,
    /// xfs.
    Xfs,
}

/// What a power cut does to writes that no flush has covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All of them are lost.
    Drop,
    /// Each 512-octet sector of them is kept with even odds: writes are reordered and torn.
    Torn,
}

/// A mounted disk.
pub struct Disk {
    home: TempDir,
    file_system: FileSystem,
    size_mb: u32,
    seed: u64,
    is_up: bool,
}

impl Disk {
    /// Makes and mounts one. xfs needs at least 300 MB. `seed` decides which sectors a torn cut keeps.
    #[track_caller]
    pub fn new(file_system: FileSystem, size_mb: u32, seed: u64) -> Self {
        PROGRAMS.iter().for_each(|name| drop(tools::program(name)));
        let home = tempfile::Builder::new().prefix("incoming-disk-").tempdir().expect("a temporary folder");
        let mut disk = Disk { home, file_system, size_mb, seed, is_up: false };
        disk.up();
        disk
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> PathBuf {
        self.home.path().join("mnt")
    }

    /// Turns a fault of `vdisk.py` on, as `flush_eio`.
    pub fn fault(&self, name: &str) {
        fs::write(self.switch(name), "").expect("a switch");
    }

    /// Turns a fault off.
    pub fn heal(&self, name: &str) {
        let _ = fs::remove_file(self.switch(name));
    }

    /// Takes the power away, under whoever is using the disk: from now on every request fails.
    pub fn power_off(&self, cut: Cut) {
        if cut == Cut::Torn {
            self.fault("torn");
        }
        self.fault("poweroff");
    }

    /// Gives the power back after [`power_off`](Self::power_off): the file system is mounted again as its journal
    /// recovered it. The gateway on it must have been killed.
    #[track_caller]
    pub fn reboot(&mut self) {
        let is_down = self.script("disk-down", &["cut"]);
        self.is_up = false;
        assert!(is_down, "disk-down failed");
        self.up();
    }

    /// Fills the file system until `left` bytes are free; returns the filler, which can be removed.
    #[track_caller]
    pub fn fill(&self, left: u64) -> PathBuf {
        let mount_point = self.mount_point();
        let output = tools::run("df", ["--output=avail".as_ref(), "-B1".as_ref(), mount_point.as_os_str()]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let free: u64 = text.lines().nth(1).and_then(|n| n.trim().parse().ok()).expect("a number from df");
        let filler = mount_point.join("filler");
        let size = free.saturating_sub(left).to_string();
        tools::run("fallocate", ["-l".as_ref(), size.as_ref(), filler.as_os_str()]);
        filler
    }

    fn up(&mut self) {
        let kind = if self.file_system == FileSystem::Xfs { "xfs" } else { "ext4" };
        // Set before the attempt: what a failed one has left behind must be taken down as well.
        self.is_up = true;
        let up = self.script("disk-up", &[kind, &self.size_mb.to_string(), &self.seed.to_string()]);
        assert!(up, "disk-up {kind} failed");
    }

    fn switch(&self, name: &str) -> PathBuf {
        self.home.path().join("ctrl").join(name)
    }

    fn script(&self, name: &str, arguments: &[&str]) -> bool {
        let mut command = Command::new(tools::program("bash"));
        command.arg(tools::test_file("faults").join(name)).arg(self.home.path()).args(arguments);
        command.stdout(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_up && !self.script("disk-down", &["cut"]) {
            eprintln!("disk-down failed: {} may still be mounted", self.home.path().display());
        }
    }
}

/// A file system of memory, as `tmpfs`, mounted until it is dropped.
pub struct Mount {
    home: TempDir,
}

impl Mount {
    /// Mounts `mount ARGUMENTS… FOLDER`.
    #[track_caller]
    pub fn new(arguments: &[&str]) -> Self {
        let home = tempfile::Builder::new().prefix("incoming-mount-").tempdir().expect("a temporary folder");
        let folder = home.path().as_os_str();
        tools::run("mount", arguments.iter().map(|a| a.as_ref()).chain([folder]));
        Mount { home }
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        self.home.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new(tools::program("umount")).arg("-l").arg(self.home.path()).status();
    }
}
