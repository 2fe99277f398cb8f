//! The programs of the system that the tests use. A missing one fails the test with its name: it never passes silently.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folders where Debian keeps what `PATH` of an ordinary user lacks.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// The interpreter for which Debian's packages install their modules, whatever else is in `PATH`.
pub const PYTHON: &str = "/usr/bin/python3";

/// The path of an installed program.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    if name.contains('/') && Path::new(name).is_file() {
        return name.into();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_FOLDERS.map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed; tests/run installs what the tests need"))
}

/// A file of the folder `tests/`.
pub fn test_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// Runs a program to its end and returns what it said; a failure panics with all of it.
#[track_caller]
pub fn run<I: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = I>) -> Output {
    let mut command = Command::new(program(name));
    command.args(arguments);
    let output = command.output().unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Sends a signal, by its name without `SIG`, to a process that a test started.
pub fn signal(pid: u32, name: &str) {
    run("sh", ["-c".into(), format!("kill -{name} {pid}")]);
}

/// The variable that asks for the night's long runs.
pub const LONG_VARIABLE: &str = "INCOMING_TEST_LONG";

/// Whether the night's long runs were asked for (`tests/run --long`).
pub fn is_long() -> bool {
    env::var_os(LONG_VARIABLE).is_some()
}
