//! A journaled file system on a disk with a volatile write cache, that fails, fills up and loses its power on request.
//!
//! Made of nbdkit, nbdfuse and a loop device by `tests/faults/disk-up`; the disk itself is `tests/faults/vdisk.py`. Each
//! lives in a temporary folder of its own and is taken down when it is dropped, also by a panic.

use std::fs::{self, File};
use std::path::PathBuf;
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

    /// Whether a fault is on: one that strikes once has not struck yet.
    pub fn is_on(&self, name: &str) -> bool {
        self.switch(name).exists()
    }

    /// What is in a switch's file: `trace` is one that `vdisk.py` writes into.
    pub fn read_switch(&self, name: &str) -> String {
        fs::read_to_string(self.switch(name)).unwrap_or_default()
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

/// A file system mounted until it is dropped.
pub struct Mount {
    home: TempDir,
}

impl Mount {
    /// Mounts with these arguments, as `-t tmpfs tmpfs`; the mount point is added.
    #[track_caller]
    pub fn new(arguments: &[&str]) -> Self {
        let mount = Mount::unmounted();
        let point = mount.path();
        tools::run("mount", arguments.iter().map(|a| a.as_ref()).chain([point.as_os_str()]));
        mount
    }

    /// Makes and mounts an ext4 with a journal in a file of the root file system.
    #[track_caller]
    pub fn ext4_in_a_file(size_mb: u32) -> Self {
        let mount = Mount::unmounted();
        let image = mount.home.path().join("image");
        File::create(&image).and_then(|f| f.set_len(u64::from(size_mb) << 20)).expect("an image");
        tools::run("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), image.as_os_str()]);
        let point = mount.path();
        tools::run("mount", ["-o".as_ref(), "loop".as_ref(), image.as_os_str(), point.as_os_str()]);
        mount
    }

    /// The mount point.
    pub fn path(&self) -> PathBuf {
        self.home.path().join("mnt")
    }

    fn unmounted() -> Self {
        let home = tempfile::Builder::new().prefix("incoming-mount-").tempdir().expect("a temporary folder");
        let mount = Mount { home };
        fs::create_dir(mount.path()).expect("a mount point");
        mount
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let point = self.path();
        // Clean first: what is still dirty need not be written when the file goes anyway, but the loop device must go.
        let is_unmounted = Command::new(tools::program("umount")).arg(&point).status();
        if !is_unmounted.is_ok_and(|status| status.success()) {
            let _ = Command::new(tools::program("umount")).arg("-l").arg(&point).status();
        }
    }
}
