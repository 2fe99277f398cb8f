//! The programs of the system that the tests use. A missing one fails the test with its name: it never passes silently.

use std::env;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

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

/// A command that is ended if it takes longer than so many seconds: clients that other people wrote may wait for ever.
#[track_caller]
pub fn bounded(name: &str, seconds: u32) -> Command {
    let mut command = Command::new(program("timeout"));
    command.args(["--kill-after=5", &seconds.to_string()]).arg(program(name)).stdin(Stdio::null());
    command
}

/// Runs a command to its end with `input` on its standard input; everything it said.
#[track_caller]
pub fn converse(command: &mut Command, input: &[u8]) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    // What does not want its input to the end has closed it.
    let _ = child.stdin.take().expect("it was asked for").write_all(input);
    let output = child.wait_with_output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    said(&output)
}

/// Everything a program said, on both ways.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Panics with all it said unless it succeeded.
#[track_caller]
pub fn assert_succeeded(output: &Output) -> String {
    let said = said(output);
    assert!(output.status.success(), "{}\n{said}", output.status);
    said
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
