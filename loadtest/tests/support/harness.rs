//! The program under test.

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use serde_json::Value;

use super::wait_for;

/// A run of the program that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// What `--json` wrote, or printed.
    pub report: Value,
}

/// A run of the program; killed when it is dropped.
pub struct Running {
    child: Child,
    outputs: Option<[JoinHandle<String>; 2]>,
    json: tempfile::TempPath,
}

/// `loadtest run` against `target`, to its end. Where `words` do not say otherwise: four connections, no warm-up.
#[track_caller]
pub fn load(target: SocketAddr, words: &[&str]) -> Ran {
    start(target, words).finish()
}

/// The same without waiting for its end.
pub fn start(target: SocketAddr, words: &[&str]) -> Running {
    let json = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(["run", "--target", &target.to_string()]).arg("--json").arg(&json);
    for (name, value) in [("--connections", "4"), ("--warm-up", "0s"), ("--timeout", "60s")] {
        if !words.contains(&name) {
            command.args([name, value]);
        }
    }
    Running::new(command.args(words), json)
}

/// The program with exactly these words.
#[track_caller]
pub fn program(words: &[&str]) -> Ran {
    let json = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    Running::new(Command::new(env!("CARGO_BIN_EXE_loadtest")).args(words), json).finish()
}

/// `loadtest verify --json`.
#[track_caller]
pub fn verify(ledger: &Path, folder: &Path, words: &[&str]) -> Ran {
    let (ledger, folder) = (ledger.to_str().unwrap(), folder.to_str().unwrap());
    let all = [&["verify", "--json", "--ledger", ledger, "--maildir", folder], words].concat();
    let mut ran = program(&all);
    ran.report = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    ran
}

impl Running {
    fn new(command: &mut Command, json: tempfile::TempPath) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let outputs = [
            std::thread::spawn(move || {
                let mut text = String::new();
                stdout.read_to_string(&mut text).map(|_| text).unwrap_or_default()
            }),
            std::thread::spawn(move || {
                let mut text = String::new();
                stderr.read_to_string(&mut text).map(|_| text).unwrap_or_default()
            }),
        ];
        Running { child, outputs: Some(outputs), json }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> Ran {
        let status = wait_for("the end of a run", || self.child.try_wait().expect("its status"));
        let [stdout, stderr] = self.outputs.take().unwrap().map(|output| output.join().unwrap());
        let text = std::fs::read_to_string(&self.json).unwrap_or_default();
        let report = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ran { code: status.code(), stdout, stderr, report }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ran {
    /// A number of the report, by its path.
    #[track_caller]
    pub fn number(&self, path: &str) -> u64 {
        let value = self.report.pointer(path).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no number at {path} in {self:?}"))
    }

    /// A latency of a phase, microseconds.
    #[track_caller]
    pub fn latency(&self, phase: &str, which: &str) -> f64 {
        let phases = self.report["phases"].as_array().into_iter().flatten();
        let found = phases.filter(|figures| figures["phase"] == phase).find_map(|f| f[which].as_f64());
        found.unwrap_or_else(|| panic!("no {which} of {phase} in {self:?}"))
    }

    /// How often something failed, and the first time in words.
    pub fn failure(&self, kind: &str) -> Option<(u64, String)> {
        let failures = self.report["failures"].as_array()?;
        let found = failures.iter().find(|failure| failure["failure"] == kind)?;
        Some((found["count"].as_u64()?, found["first"].as_str()?.to_owned()))
    }

    /// The ids of a list of `verify`, ascending as they are told.
    pub fn ids(&self, list: &str) -> Vec<String> {
        let named = self.report[list].as_array().into_iter().flatten();
        named.filter_map(|named| named["id"].as_str().map(str::to_owned)).collect()
    }
}
