//! Servers that are not ours to command: Debian's `smtp-sink`, and the gateway.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::wait_for;

/// A process, its log and its folder; killed when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    child: Child,
    folder: tempfile::TempDir,
}

impl Server {
    /// `smtp-sink -c`, which counts.
    pub fn smtp_sink() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // It takes no port of the kernel's choice: one that was free a moment ago is asked for, until one still is.
        wait_for("smtp-sink", || {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let mut command = Command::new(program("smtp-sink"));
            command.args(["-u", "nobody", "-c", &address.to_string(), "128"]);
            let mut child = start(&mut command, folder.path());
            let is_there = wait_for("smtp-sink", || match child.try_wait().unwrap() {
                Some(_) => Some(false),
                None => TcpStream::connect(address).is_ok().then_some(true),
            });
            is_there.then_some((address, child))
        })
        .into_server(folder)
    }

    /// The gateway, with one shard, delivering to [`Server::maildir`].
    pub fn gateway() -> Self {
        Self::gateway_with("store")
    }

    /// The gateway, with one shard, discarding what it delivers.
    pub fn gateway_that_discards() -> Self {
        Self::gateway_with("nothing")
    }

    fn gateway_with(transport: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("incoming.toml");
        let text = format!(
            "data = {:?}\nhostname = \"mx.test\"\nshards = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
             [spool]\nsegment_size = {}\n[delivery]\ntransport = {transport:?}\n\
             [transport.nothing]\ntype = \"discard\"\n[log]\nlevel = \"warn\"\n\
             [transport.store]\ntype = \"maildir\"\npath = {:?}\n",
            folder.path().join("data"),
            8 << 20,
            folder.path().join("maildir"),
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(gateway_binary());
        command.args(["serve", "--config"]).arg(&config).env_remove("INCOMING_BIN").env("NO_COLOR", "1");
        let mut child = start(&mut command, folder.path());
        let log = || fs::read_to_string(folder.path().join("log")).unwrap();
        let address = wait_for("the gateway", || {
            assert!(child.try_wait().unwrap().is_none(), "the gateway ended:\n{}", log());
            let text = log();
            let (_, rest) = text.split_once("listening on ")?;
            text.lines()
                .any(|line| line == "ready")
                .then(|| rest.split([',', ' ', '\n']).next()?.parse().ok())
                .flatten()
        });
        (address, child).into_server(folder)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Where the gateway delivers to.
    pub fn maildir(&self) -> PathBuf {
        self.folder.path().join("maildir")
    }

    /// The last of `smtp-sink`'s counts of messages; nothing before the first.
    pub fn sink_count(&self) -> Option<u64> {
        let log = fs::read_to_string(self.folder.path().join("log")).ok()?;
        log.rsplit('\r').find_map(|line| line.rsplit_once("mesg=")?.1.trim().parse().ok())
    }

    /// The files below `new` of the Maildir.
    pub fn delivered_count(&self) -> usize {
        fs::read_dir(self.maildir().join("new")).map_or(0, Iterator::count)
    }
}

trait IntoServer {
    fn into_server(self, folder: tempfile::TempDir) -> Server;
}

impl IntoServer for (SocketAddr, Child) {
    fn into_server(self, folder: tempfile::TempDir) -> Server {
        Server { address: self.0, child: self.1, folder }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(command: &mut Command, folder: &Path) -> Child {
    let log = File::create(folder.join("log")).unwrap();
    let both = log.try_clone().unwrap();
    command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(both)
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// The gateway's binary: that of `INCOMING_BIN`, otherwise the one beside ours.
fn gateway_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("INCOMING_BIN") {
        return path.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let beside = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("incoming");
    [beside, root.join("release/incoming"), root.join("debug/incoming")]
        .into_iter()
        .find(|path| path.is_file())
        .expect("the gateway is built, or INCOMING_BIN says where it is")
}

fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed; tests/run installs what the tests need"))
}
