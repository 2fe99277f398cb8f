//! The program under test: the release binary, pinned to a core, with its data on a file system of choice.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use clap::ValueEnum;

use crate::support::disk::Mount;
use crate::support::server::Server;
use crate::support::setup::Setup;

/// The journaled ext4 in a file: room for the segments of the largest cell.
const IMAGE_SIZE_MB: u32 = 6 << 10;

/// Where the spool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileSystem {
    /// A temporary folder: whatever file system that is on.
    Root,
    /// An ext4 with a journal, made in a file and mounted through a loop device for the run (needs root).
    Ext4,
}

/// What is kept of a message before its 250.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Keeping {
    /// A completed sync: `spool.durability = "sync"`.
    Sync,
    /// A completed write: `spool.durability = "none"`.
    None,
    /// A copy in the process: `spool.queue = "memory"`.
    Memory,
}

/// How the binary is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the spool is.
    pub file_system: FileSystem,
    /// What is kept before 250.
    pub keeping: Keeping,
    /// The cores of the whole process, as `taskset -c` takes them.
    pub cores: String,
    /// Further settings: `section.key`, value as TOML.
    pub settings: Vec<(String, String)>,
}

/// A program under test: ours, or one that was running already.
pub struct Target {
    /// Where it listens first.
    pub address: SocketAddr,
    /// Everywhere it listens, in the order of its listeners.
    pub addresses: Vec<SocketAddr>,
    /// Its process, where it is known.
    pub pid: Option<u32>,
    // Dropped in this order: the process ends before its file system goes.
    server: Option<Server>,
    _setup: Option<Setup>,
    _mount: Option<Mount>,
}

impl Target {
    /// One that is running.
    pub fn running(address: SocketAddr, pid: Option<u32>) -> Self {
        Target { address, addresses: vec![address], pid, server: None, _setup: None, _mount: None }
    }

    /// Starts the binary with one shard that discards what it delivers.
    pub fn start(options: &Options) -> Self {
        Self::start_with(options, |_| ())
    }

    /// As [`Target::start`], its configuration changed before.
    pub fn start_with(options: &Options, change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = Setup::new();
        let mount = match options.file_system {
            FileSystem::Root => None,
            FileSystem::Ext4 => Some(Mount::ext4_in_a_file(IMAGE_SIZE_MB)),
        };
        if let Some(mount) = &mount {
            setup.data_at(mount.path().join("data"));
        }
        match options.keeping {
            Keeping::Sync => setup.set("spool.durability", "\"sync\""),
            Keeping::None => setup.set("spool.durability", "\"none\""),
            Keeping::Memory => setup.set("spool.queue", "\"memory\""),
        };
        setup.set("delivery.transport", "\"nothing\"").set("log.level", "\"warn\"");
        for (name, value) in &options.settings {
            setup.set(name, value);
        }
        change(&mut setup);
        setup.under(&["taskset", "-c", &options.cores]);
        let server = setup.start();
        Target {
            address: server.address(),
            addresses: server.addresses().to_vec(),
            pid: Some(server.pid()),
            server: Some(server),
            _setup: Some(setup),
            _mount: mount,
        }
    }

    /// Ends the binary; panics if it does not end well.
    pub fn stop(&mut self) {
        if let Some(server) = &mut self.server {
            let status = server.stop();
            assert!(status.success(), "the gateway ended with {status}\n{}", server.log());
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileSystem::Root => "root",
            FileSystem::Ext4 => "ext4",
        })
    }
}

impl fmt::Display for Keeping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Keeping::Sync => "sync",
            Keeping::None => "none",
            Keeping::Memory => "memory",
        })
    }
}

/// Parses `section.key=VALUE`.
pub fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected section.key=VALUE, VALUE as in TOML")?;
    Ok((name.into(), value.into()))
}

/// The command that gave a table, as it was typed after `cargo bench --bench NAME --`.
pub fn command_line(bench: &str) -> String {
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let mut line = format!("cargo bench --bench {bench}");
    for (i, argument) in arguments.enumerate() {
        line += if i == 0 { " -- " } else { " " };
        line += &argument;
    }
    line
}

/// The machine, in a line for the table's caption.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    // Not available_parallelism: the bench may have pinned itself.
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    format!("{cores} × {}, Linux {}", model.map_or("?", |(_, name)| name), kernel.trim())
}
