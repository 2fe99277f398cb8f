//! One gateway's configuration in a temporary folder, from which it is started as often as the test wants.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::certificates::Issued;
use super::server::{Refused, Server};
use super::tools;

/// A configuration, and the folder with everything the gateway writes. The folder goes when this is dropped.
pub struct Setup {
    home: TempDir,
    data: PathBuf,
    maildir: PathBuf,
    /// Each listener's address, and its other settings as they stand in TOML.
    listeners: Vec<(String, String)>,
    /// Section → key → value, as they stand in TOML. The empty section is the top level.
    settings: BTreeMap<String, BTreeMap<String, String>>,
    prefix: Vec<String>,
}

impl Setup {
    /// One shard on a loopback port of the kernel's choice, data and Maildir in a fresh folder of the root file system.
    pub fn new() -> Self {
        let home = tempfile::Builder::new().prefix("incoming-test-").tempdir().expect("a temporary folder");
        let mut setup = Setup {
            data: home.path().join("data"),
            maildir: home.path().join("maildir"),
            home,
            listeners: vec![("127.0.0.1:0".into(), String::new())],
            settings: BTreeMap::new(),
            prefix: Vec::new(),
        };
        setup.set("hostname", "\"mx.test\"").set("shards", "1");
        setup
    }

    /// Sets `section.key` (or a top-level `key`) to a value written as TOML.
    pub fn set(&mut self, name: &str, value: impl ToString) -> &mut Self {
        let (section, key) = name.rsplit_once('.').unwrap_or(("", name));
        self.settings.entry(section.into()).or_default().insert(key.into(), value.to_string());
        self
    }

    /// Small segments, so that a small file system holds several of them.
    pub fn small_segments(&mut self) -> &mut Self {
        self.set("spool.segment_size", 8 << 20)
    }

    /// A deferred delivery is tried again as soon as the gateway knows how.
    pub fn retry_soon(&mut self) -> &mut Self {
        self.set("delivery.backoff_base", "\"1s\"").set("delivery.backoff_max", "\"1s\"")
    }

    /// Listens on these addresses instead of `127.0.0.1:0`.
    pub fn listen(&mut self, addresses: &[&str]) -> &mut Self {
        self.listeners = addresses.iter().map(|address| (address.to_string(), String::new())).collect();
        self
    }

    /// Listens on as many loopback ports as there are settings, one a listener, as `tls = "implicit"`; several on lines of their own.
    pub fn listeners(&mut self, settings: &[&str]) -> &mut Self {
        self.listeners = settings.iter().map(|s| ("127.0.0.1:0".to_string(), s.to_string())).collect();
        self
    }

    /// Shows these certificates, the first by default. Their files are [`Setup::certificate_files`].
    pub fn certificates(&mut self, issued: &[&Issued]) -> &mut Self {
        let mut pairs = Vec::new();
        for (n, issued) in issued.iter().enumerate() {
            let (chain, key) = self.certificate_files(n);
            fs::write(&chain, &issued.chain).expect("a chain");
            fs::write(&key, &issued.key).expect("a key");
            pairs.push(format!("{{ chain = {chain:?}, key = {key:?} }}"));
        }
        self.set("tls.certificates", format!("[{}]", pairs.join(", ")))
    }

    /// The files of the certificate with this number: its chain, and its key.
    pub fn certificate_files(&self, n: usize) -> (PathBuf, PathBuf) {
        (self.home().join(format!("chain{n}.pem")), self.home().join(format!("key{n}.pem")))
    }

    /// A file in the temporary folder.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.home().join(name);
        fs::write(&path, content).expect("a file");
        path
    }

    /// Keeps its data (spool and dead letters) there.
    pub fn data_at(&mut self, folder: impl Into<PathBuf>) -> &mut Self {
        self.data = folder.into();
        self
    }

    /// Delivers into this Maildir.
    pub fn maildir_at(&mut self, folder: impl Into<PathBuf>) -> &mut Self {
        self.maildir = folder.into();
        self
    }

    /// Starts the gateway under another program that executes it, as `["prlimit", "--nofile=40"]`.
    pub fn under(&mut self, prefix: &[&str]) -> &mut Self {
        self.prefix = prefix.iter().map(ToString::to_string).collect();
        self
    }

    /// The temporary folder.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The Maildir.
    pub fn maildir(&self) -> &Path {
        &self.maildir
    }

    /// The message ids of the dead letters.
    pub fn dead_letters(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.data.join("dead")) else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        // What begins with a dot is the gateway's own.
        names.filter(|name| !name.starts_with('.')).collect()
    }

    /// Makes every delivery fail for now: a file stands where the Maildir was. Messages stay in the spool.
    pub fn hold_deliveries(&self) {
        if self.maildir.is_dir() {
            fs::rename(&self.maildir, self.aside()).expect("the Maildir is put aside");
        }
        fs::write(&self.maildir, "deliveries are held").expect("a file in the Maildir's place");
    }

    /// Lets deliveries succeed again.
    pub fn release_deliveries(&self) {
        if self.maildir.is_file() {
            fs::remove_file(&self.maildir).expect("the Maildir's place is free");
        }
        if self.aside().is_dir() {
            fs::rename(self.aside(), &self.maildir).expect("the Maildir is put back");
        }
    }

    fn aside(&self) -> PathBuf {
        self.maildir.with_extension("aside")
    }

    /// The configuration as TOML.
    pub fn toml(&self) -> String {
        let pairs = |section: &str| -> String {
            let settings = self.settings.get(section).into_iter().flatten();
            settings.map(|(key, value)| format!("{key} = {value}\n")).collect()
        };
        let mut text = format!("data = {:?}\n{}", self.data, pairs(""));
        for (address, settings) in &self.listeners {
            text += &format!("\n[[listener]]\naddress = {address:?}\n{settings}\n");
        }
        for section in self.settings.keys().filter(|s| !s.is_empty() && !s.starts_with("delivery")) {
            text += &format!("\n[{section}]\n{}", pairs(section));
        }
        text += &format!("\n[delivery]\n{}", pairs("delivery"));
        if !self.settings.get("delivery").is_some_and(|s| s.contains_key("transport")) {
            text += "transport = \"store\"\n";
        }
        text += &format!(
            "\n[transport.store]\ntype = \"maildir\"\npath = {:?}\n\n[transport.nothing]\ntype = \"discard\"\n",
            self.maildir
        );
        text
    }

    /// Writes the configuration and returns the file's path.
    pub fn write(&self) -> PathBuf {
        let file = self.home.path().join("incoming.toml");
        fs::write(&file, self.toml()).expect("the configuration is written");
        file
    }

    /// `incoming serve --config FILE`, under the prefix if there is one.
    pub fn command(&self) -> Command {
        let config = self.write();
        let mut words = self.prefix.iter();
        let mut command = match words.next() {
            Some(first) => {
                let mut command = Command::new(tools::program(first));
                command.args(words).arg(binary());
                without_our_variables(command)
            }
            None => incoming(),
        };
        command.arg("serve").arg("--config").arg(config);
        command
    }

    /// Starts the gateway and waits until it is ready; panics with its log if it refuses to start.
    #[track_caller]
    pub fn start(&self) -> Server {
        self.try_start().unwrap_or_else(|refused| panic!("the gateway did not start: {refused}"))
    }

    /// Starts the gateway and waits until it is ready or has ended.
    pub fn try_start(&self) -> Result<Server, Refused> {
        Server::start(self.command(), &self.log_file())
    }

    /// Starts the gateway and waits for nothing.
    pub fn launch(&self) -> Server {
        Server::launch(self.command(), &self.log_file())
    }

    fn log_file(&self) -> PathBuf {
        self.home.path().join("log")
    }
}

/// A command of the gateway's binary without arguments.
pub fn incoming() -> Command {
    without_our_variables(Command::new(binary()))
}

/// The gateway refuses variables in its name that it does not know.
fn without_our_variables(mut command: Command) -> Command {
    command.env_remove("INCOMING_BIN").env_remove(tools::LONG_VARIABLE);
    command
}

/// The gateway's binary: that of the environment's `INCOMING_BIN`, otherwise the one cargo built for the tests.
pub fn binary() -> PathBuf {
    match env::var_os("INCOMING_BIN") {
        Some(path) => path.into(),
        None => env!("CARGO_BIN_EXE_incoming").into(),
    }
}
