//! Accepting and delivering together: so many messages, from the first MAIL to the last delivery; beside Postfix doing the same.
//!
//! Server on one core; load and next hop on another. Spools, queues and Maildirs are on one journaled ext4 (needs root).
//!
//! ```text
//! cargo bench --bench delivery                             every transport, and Postfix
//! cargo bench --bench delivery -- --hung 100000            what a hung target with a long queue costs another
//! ```

#[path = "load/mod.rs"]
mod load;
#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;

use load::target::{self, FileSystem, Keeping, Options, Target};
use loadtest::content::{Sizes, Source};
use loadtest::drive::{self, Nobody};
use loadtest::plan::{Envelope, Goal, Plan};
use support::disk::Mount;
use support::mail_servers::Postfix;
use support::moody_store::MoodyStore;

const IMAGE_SIZE_MB: u32 = 8 << 10;
/// How long the last delivery is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Parser)]
#[command(name = "delivery")]
struct Arguments {
    /// Messages of our runs.
    #[arg(long, default_value_t = 60_000)]
    messages: u64,
    /// Messages of Postfix's runs.
    #[arg(long, default_value_t = 5_000)]
    postfix_messages: u64,
    /// Octets of content.
    #[arg(long, default_value_t = 4096)]
    size: usize,
    /// Rounds.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Measures what this many messages for a hung target cost another, and nothing else.
    #[arg(long)]
    hung: Option<u64>,
    /// The core of the server.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of the load and the next hop.
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Where messages come out.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Discard,
    Maildir,
    Lmtp,
    Smtp,
}

const WAYS: [(Way, &str); 4] =
    [(Way::Discard, "discard"), (Way::Maildir, "Maildir"), (Way::Lmtp, "LMTP"), (Way::Smtp, "SMTP")];

fn main() {
    let arguments = Arguments::parse();
    on_core(arguments.load_core);
    let mount = Mount::ext4_in_a_file(IMAGE_SIZE_MB);
    tempfile::env::override_temp_dir(Box::leak(mount.path().into_boxed_path()))
        .expect("nothing was put elsewhere yet");
    println!("`{}`: {}", target::command_line("delivery"), target::machine());
    println!();
    match arguments.hung {
        Some(hung) => isolation(&arguments, hung),
        None => steady(&arguments),
    }
}

fn on_core(core: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
}

fn steady(arguments: &Arguments) {
    println!(
        "| server | to | messages | accepted/s | delivered/s | left when the last was accepted | server CPU-s/1000 |"
    );
    println!("|---|---|---|---|---|---|---|");
    for _ in 0..arguments.rounds {
        for (way, name) in WAYS {
            let run = ours(arguments, way, None);
            println!("| incoming | {name} | {}", run.row(arguments.messages));
        }
        for (way, name) in WAYS.into_iter().filter(|(way, _)| *way != Way::Discard) {
            let run = postfixes(arguments, way);
            println!("| Postfix | {name} | {}", run.row(arguments.postfix_messages));
        }
    }
}

fn isolation(arguments: &Arguments, hung: u64) {
    println!("| to | waiting for a hung target | accepted/s | delivered/s |");
    println!("|---|---|---|---|");
    for _ in 0..arguments.rounds {
        for waiting in [0, hung] {
            let run = ours(arguments, Way::Lmtp, Some(waiting));
            let (accepted, delivered) = run.rates(arguments.messages);
            println!("| LMTP | {waiting} | {accepted:.0} | {delivered:.0} |");
        }
    }
}

/// What a run took.
struct Run {
    /// Until the last 250.
    accepting: Duration,
    /// Until the last delivery.
    all: Duration,
    /// Messages not yet delivered at the last 250.
    left: u64,
    /// Of the server and its children.
    cpu_seconds: Option<f64>,
}

impl Run {
    fn rates(&self, messages: u64) -> (f64, f64) {
        (messages as f64 / self.accepting.as_secs_f64(), messages as f64 / self.all.as_secs_f64())
    }

    fn row(&self, messages: u64) -> String {
        let (accepted, delivered) = self.rates(messages);
        let cpu =
            self.cpu_seconds.map_or("–".into(), |cpu| format!("{:.3}", cpu * 1000.0 / messages as f64));
        format!("{messages} | {accepted:.0} | {delivered:.0} | {} | {cpu} |", self.left)
    }
}

/// `hung`: so many messages wait for another target, which takes connections and says nothing.
fn ours(arguments: &Arguments, way: Way, hung: Option<u64>) -> Run {
    let store = MoodyStore::counting();
    let silent = MoodyStore::start(true);
    let options = Options {
        file_system: FileSystem::Root,
        keeping: Keeping::Sync,
        cores: arguments.server_core.to_string(),
        settings: Vec::new(),
    };
    let mut maildir = None;
    let mut target = Target::start_with(&options, |setup| {
        let word = match way {
            Way::Discard => "nothing",
            Way::Maildir => "store",
            Way::Lmtp | Way::Smtp => "next",
        };
        setup.set("delivery.transport", format!("{word:?}"));
        let address = format!("\"{}\"", store.address());
        match way {
            Way::Lmtp => setup.set("transport.next.type", "\"lmtp\"").set("transport.next.address", address),
            Way::Smtp => setup
                .set("transport.next.type", "\"smtp\"")
                .set("transport.next.hosts", format!("[{address}]"))
                .set("transport.next.tls", "\"off\""),
            Way::Discard | Way::Maildir => setup,
        };
        setup
            .set("transport.hung.type", "\"lmtp\"")
            .set("transport.hung.address", format!("\"{}\"", silent.address()))
            .set("route", "[{ recipients = [\"hung.test\"], to = [\"hung\"] }]");
        maildir = Some(setup.maildir().to_owned());
    });
    if let Some(waiting) = hung.filter(|waiting| *waiting > 0) {
        drive(arguments, &target.address, "x@hung.test", waiting, target.pid);
    }
    let maildir = maildir.expect("the setup has one").join("new");
    let count = || match way {
        Way::Discard => arguments.messages,
        Way::Maildir => files(&maildir),
        Way::Lmtp | Way::Smtp => store.count() as u64,
    };
    let run = through(arguments, &target.address, arguments.messages, target.pid, count);
    // With a target that hangs an end takes its time, and is none of what is measured.
    match hung {
        Some(_) => drop(target),
        None => target.stop(),
    }
    run
}

fn postfixes(arguments: &Arguments, way: Way) -> Run {
    let store = MoodyStore::counting();
    let (host, port) = (store.address().ip(), store.address().port());
    let settings = match way {
        Way::Lmtp => format!("virtual_transport = lmtp:inet:[{host}]:{port}\n"),
        // The domain is not its own then, but one it relays for.
        Way::Smtp => format!(
            "virtual_mailbox_domains =\nrelay_domains = mx.test\nrelay_recipient_maps =\n\
             transport_maps = inline:{{mx.test=smtp:[{host}]:{port}}}\n"
        ),
        Way::Discard | Way::Maildir => String::new(),
    };
    // Children have the core of who starts them.
    on_core(arguments.server_core);
    let postfix = Postfix::start(&settings, None);
    on_core(arguments.load_core);
    let inbox = postfix.inbox().join("new");
    let count = || if way == Way::Maildir { files(&inbox) } else { store.count() as u64 };
    through(arguments, &postfix.address(), arguments.postfix_messages, Some(postfix.pid()), count)
}

fn files(folder: &Path) -> u64 {
    fs::read_dir(folder).map_or(0, |entries| entries.count() as u64)
}

/// Sends so many messages, and waits until `count` says that all are there.
fn through(
    arguments: &Arguments,
    address: &std::net::SocketAddr,
    messages: u64,
    pid: Option<u32>,
    count: impl Fn() -> u64,
) -> Run {
    let started = Instant::now();
    let before = pid.and_then(cpu_seconds);
    drive(arguments, address, "inbox@mx.test", messages, pid);
    let accepting = started.elapsed();
    let left = messages.saturating_sub(count());
    while count() < messages {
        assert!(started.elapsed() < PATIENCE, "{} of {messages} were delivered", count());
        // Looking costs the core that the next hop is on.
        std::thread::sleep(Duration::from_millis(10));
    }
    let all = started.elapsed();
    let after = pid.and_then(cpu_seconds);
    Run { accepting, all, left, cpu_seconds: after.zip(before).map(|(after, before)| after - before) }
}

/// Of the process and those it started: processes that ended are counted by their parents.
fn cpu_seconds(pid: u32) -> Option<f64> {
    loadtest::usage::Usage::of_tree(pid).ok().map(|usage| usage.cpu_seconds)
}

fn drive(
    arguments: &Arguments,
    address: &std::net::SocketAddr,
    recipient: &str,
    messages: u64,
    pid: Option<u32>,
) {
    let base = Plan::against(*address, arguments.load_core);
    let plan = Plan {
        connections: 64,
        content: Source::Sizes(Sizes::Fixed(arguments.size)),
        is_pipelined: true,
        warm_up: Duration::ZERO,
        goal: Goal::Messages(messages),
        envelope: Envelope { recipient: recipient.into(), ..base.envelope.clone() },
        server_pid: pid,
        ..base
    };
    let outcome = drive::run(&plan, &Arc::default(), &mut Nobody).expect("the load runs");
    let figures = &outcome.figures;
    assert!(
        figures.accepted >= messages && figures.failed == 0,
        "{} accepted, {} failed: {:?}",
        figures.accepted,
        figures.failed,
        figures.refusals
    );
}
