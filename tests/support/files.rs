//! A folder whose files fail on request: `tests/faults/passfs.py` passes another folder through.
//!
//! For what block devices do not do: short writes, errors of single files, a file system that hangs.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::tools;
use super::wait;

/// A mounted pass-through folder. Dropped, it is unmounted.
pub struct Passed {
    home: TempDir,
    child: Child,
}

impl Passed {
    /// Mounts one.
    #[track_caller]
    pub fn new() -> Self {
        let home = tempfile::Builder::new().prefix("incoming-pass-").tempdir().expect("a temporary folder");
        let [source, mount, switches] = ["source", "mnt", "ctrl"].map(|name| home.path().join(name));
        for folder in [&source, &mount, &switches] {
            fs::create_dir(folder).expect("a folder");
        }
        let child = Command::new(tools::program(tools::PYTHON))
            .arg(tools::test_file("faults/passfs.py"))
            .args([&source, &mount, &switches])
            .stdin(Stdio::null())
            .spawn()
            .expect("passfs.py is started");
        let mut passed = Passed { home, child };
        wait::until("passfs.py is mounted", || {
            let ended = passed.child.try_wait().expect("its status");
            assert!(ended.is_none(), "passfs.py ended: is /dev/fuse there?");
            is_mounted(&mount)
        });
        passed
    }

    /// The mount point.
    pub fn mount_point(&self) -> PathBuf {
        self.home.path().join("mnt")
    }

    /// What is passed through: the same files, which answer whatever the faults are.
    pub fn source(&self) -> PathBuf {
        self.home.path().join("source")
    }

    /// Turns a fault of `passfs.py` on, as `short`.
    pub fn fault(&self, name: &str) {
        fs::write(self.switch(name), "").expect("a switch");
    }

    /// Turns a fault off.
    pub fn heal(&self, name: &str) {
        let _ = fs::remove_file(self.switch(name));
    }

    fn switch(&self, name: &str) -> PathBuf {
        self.home.path().join("ctrl").join(name)
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        let _ = Command::new(tools::program("umount")).arg("-l").arg(self.mount_point()).status();
        // Its end answers whoever waits in it. By itself it would serve for as long as another process's namespace has it mounted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_mounted(folder: &std::path::Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| folder.as_os_str() == at))
}
