//! How soon a gateway takes mail again with a long queue, and what the queue costs in memory.
//!
//! The queue is written by the spool core itself into files, as a shard would have written it, and ends either with a clean
//! stop or as a kill leaves it. Then the binary is started on it, with nothing of the files in the page cache and again with
//! all of it, and the time from the start of the process to its `ready` is taken.
//!
//! ```text
//! cargo bench --bench restart                        a million messages of 4 KiB
//! cargo bench --bench restart -- --messages 100000 --waiting
//! ```

#[path = "load/mod.rs"]
mod load;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use incoming::mail::{Arrival, Body, Envelope, ForwardPath, MessageId, Protocol, ReversePath};
use incoming::spool::format::{Made, RecipientOutcome};
use incoming::spool::recovery::Recovered;
use incoming::spool::{Completion, Incoming, Io, Lane, Receiving, Slot, Spool, SpoolConfig};
use load::{target, usage};
use support::setup::{Setup, binary};

const CONFIG: SpoolConfig =
    SpoolConfig { segment_size: 64 << 20, sync: true, page_size: 256 << 10, pages_max: 20 };
const MIB: f64 = 1024.0 * 1024.0;

#[derive(Parser)]
#[command(name = "restart")]
struct Arguments {
    /// Messages in the queue.
    #[arg(long, default_value_t = 1_000_000)]
    messages: usize,
    /// Octets of content of each.
    #[arg(long, default_value_t = 4096)]
    size: usize,
    /// They wait for their first attempt; otherwise each was deferred once, to the next day.
    #[arg(long)]
    waiting: bool,
    /// The queue ended with a kill instead of a clean stop: its last segment has no index.
    #[arg(long)]
    killed: bool,
    /// Where the data folder is made.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// Starts with the files in the page cache, and without.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let data = tempfile::tempdir_in(&arguments.folder).expect("a temporary folder");
    let began = Instant::now();
    let size = fill(data.path(), &arguments);
    println!("`{}`: {}", target::command_line("restart"), target::machine());
    println!("{:.0} MiB of segments, written in {:.0} s\n", size as f64 / MIB, began.elapsed().as_secs_f64());
    println!("| page cache | ready s | read MiB | MiB/s of the spool | memory MiB | octets per message |");
    println!("|---|---|---|---|---|---|");
    for round in 0..2 * arguments.rounds {
        let is_cold = round < arguments.rounds;
        if is_cold {
            forget_pages();
        }
        let row = start(data.path(), &arguments);
        println!(
            "| {} | {:.2} | {:.0} | {:.0} | {:.0} | {:.0} |",
            if is_cold { "empty" } else { "full" },
            row.ready.as_secs_f64(),
            row.read_size as f64 / MIB,
            size as f64 / MIB / row.ready.as_secs_f64(),
            row.memory as f64 / MIB,
            row.memory as f64 / arguments.messages as f64,
        );
    }
    ExitCode::SUCCESS
}

struct Row {
    ready: Duration,
    read_size: u64,
    memory: u64,
}

/// Starts the binary on the queue, and stops it by a kill, so that the queue stays as it is.
fn start(data: &Path, arguments: &Arguments) -> Row {
    let mut setup = Setup::new();
    setup.data_at(data);
    setup.set("spool.depth_max", 2 * arguments.messages);
    if arguments.waiting {
        setup.hold_deliveries();
    }
    let began = Instant::now();
    let mut server = setup.start();
    let ready = began.elapsed();
    let io = fs::read_to_string(format!("/proc/{}/io", server.pid())).expect("its I/O");
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok());
    let memory = usage::size(server.pid(), "VmHWM").expect("its memory");
    server.kill();
    Row { ready, read_size: read.expect("octets read"), memory }
}

fn forget_pages() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("the right to empty the page cache: run it as root");
}

/// Writes the queue; returns the octets of its files.
fn fill(data: &Path, arguments: &Arguments) -> u64 {
    assert!(binary().exists(), "the binary is built before");
    let folder = data.join("spool/000");
    fs::create_dir_all(&folder).expect("a folder");
    let mut queue = Queue::new(folder);
    let content = vec![b'x'; arguments.size];
    for _ in 0..arguments.messages {
        queue.append(&content);
    }
    queue.settle();
    if !arguments.waiting {
        queue.defer_all();
    }
    if !arguments.killed {
        queue.finish();
    }
    queue.files.values().map(|file| file.metadata().expect("a file").len()).sum()
}

/// A log on files, written without waiting for the disk.
struct Queue {
    spool: Spool<Vec<u8>>,
    folder: PathBuf,
    files: BTreeMap<Slot, File>,
    now: Instant,
    envelope: Envelope,
    arrival: Arrival,
}

impl Queue {
    fn new(folder: PathBuf) -> Self {
        let now = Instant::now();
        let mut life = 0_u64;
        let entropy = move || {
            life += 1;
            life.wrapping_mul(0x9E37_79B9_7F4A_7C15)
        };
        let recovered = Recovered { log: 1, ..Recovered::default() };
        let make_page = Box::new(|| vec![0; CONFIG.page_size]);
        let spool = Spool::new(CONFIG, recovered, make_page, Box::new(entropy), (now, 0));
        let envelope = Envelope {
            reverse_path: ReversePath::parse("sender@example.org", false).expect("a path"),
            forward_paths: vec![ForwardPath::parse("recipient@example.com", false).expect("a path")],
            body: Body::SevenBit,
            smtputf8: false,
            require_tls: false,
            dsn: None,
            via: None,
        };
        let unix_time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let arrival = Arrival {
            peer: "192.0.2.1:25".parse().expect("an address"),
            hello: "client.example.org".into(),
            protocol: Protocol::Esmtp,
            tls: None,
            authenticated: None,
            client_name: None,
            tags: Vec::new(),
            unix_time: unix_time.expect("a time").as_secs(),
            provenance: Default::default(),
        };
        Queue { spool, folder, files: BTreeMap::new(), now, envelope, arrival }
    }

    fn append(&mut self, content: &[u8]) {
        loop {
            let message = Incoming { envelope: &self.envelope, arrival: &self.arrival, tail: content };
            let trace = |id: MessageId| format!("Received: by mx.example.com id {id}\r\n").into_bytes();
            if self.spool.append_message(&mut Receiving::default(), message, trace).is_ok() {
                return;
            }
            self.settle();
        }
    }

    /// Every message was attempted once and is to be tried again a day later.
    fn defer_all(&mut self) {
        let unix_now = self.arrival.unix_time;
        while let Some(sequence) = self.spool.next_of_backlog(Lane::UNROUTED, self.now) {
            self.spool.hand_off(sequence, Lane::UNROUTED);
            let outcome = RecipientOutcome {
                index: 0,
                is_done: false,
                is_given_up: false,
                attempts: 1,
                next_attempt: unix_now + 86_400,
                reason: "451 4.3.0 the mail store is away".into(),
            };
            self.spool.handle_outcome(
                sequence,
                Lane::UNROUTED,
                Made::default(),
                &[outcome],
                (self.now, unix_now),
            );
            self.settle();
        }
        self.now += Duration::from_secs(1);
        self.settle();
    }

    fn finish(&mut self) {
        loop {
            self.spool.finish(self.now);
            self.settle();
            if self.spool.is_idle() {
                return;
            }
        }
    }

    fn settle(&mut self) {
        while let Some(io) = self.spool.poll_io(self.now) {
            let done = self.perform(io);
            self.spool.handle_io(done, self.now);
            while self.spool.poll_stored().is_some() {}
        }
    }

    fn perform(&mut self, io: Io<Vec<u8>>) -> Completion {
        let result = Ok(());
        match io {
            Io::Prepare { slot, size, header, .. } => {
                let path = self.folder.join(slot.file_name());
                let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
                let file = file.expect("a file");
                file.set_len(size.into()).and_then(|()| file.write_all_at(&header, 0)).expect("room");
                self.files.insert(slot, file);
                Completion::Prepared { slot, result }
            }
            Io::Write { slot, offset, size, page } => {
                self.files[&slot].write_all_at(&page[..size as usize], offset.into()).expect("room");
                Completion::Written { slot, offset, result }
            }
            Io::Sync { slot } => Completion::Synced { slot, result },
            Io::Remove { slot } => Completion::Removed { slot, result },
            Io::Read { places } => Completion::Read { records: places.iter().map(|_| None).collect() },
        }
    }
}
