//! The whole-program figure: accepted messages a second on one core, and what each costs.
//!
//! Starts the release binary pinned to one core, with one shard that discards what it delivers, and drives it from
//! another core over loopback. Only a 250 to an end-of-data counts. Prints a Markdown table and the command that gave it.
//!
//! ```text
//! cargo bench --bench throughput                                            the whole matrix
//! cargo bench --bench throughput -- --sizes 4096 --modes pipelined          one column of it
//! cargo bench --bench throughput -- --rate 1000 --sizes 4096 --modes pipelined   latency at a fixed rate
//! cargo bench --bench throughput -- --target 127.0.0.1:2525                 another server
//! ```
//!
//! With `memory`, the same binary with its queue in memory, the rate of each other cell is told as a part of that one's: what
//! durability costs, within one run.
//!
//! An asterisk marks a cell whose load was busy for more than nine tenths of its core: the load may have been the limit.

#[path = "load/mod.rs"]
mod load;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use load::target::{self, FileSystem, Keeping, Options, Target};
use load::usage;
use loadtest::content::{Sizes, Source};
use loadtest::drive::{self, Nobody, Outcome};
use loadtest::measure::Phase;
use loadtest::plan::{Goal, Plan};

/// Source addresses of the load.
const SOURCES: u8 = 64;

/// How a connection sends its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
enum Mode {
    /// MAIL, RCPT and DATA in one write.
    Pipelined,
    /// Each command waits for the reply to the one before.
    Waiting,
    /// Pipelined, a connection for each message.
    Reconnecting,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mode::Pipelined => "pipelined",
            Mode::Waiting => "waiting",
            Mode::Reconnecting => "connection each",
        })
    }
}

#[derive(Parser)]
#[command(name = "throughput")]
struct Arguments {
    /// Octets of content.
    #[arg(long, value_delimiter = ',', default_values_t = [4096, 65536])]
    sizes: Vec<usize>,
    /// How connections send. `reconnecting` is run for the first size only.
    #[arg(long, value_delimiter = ',', value_enum, default_values = ["pipelined", "waiting", "reconnecting"])]
    modes: Vec<Mode>,
    /// What is kept before 250.
    #[arg(long, value_delimiter = ',', value_enum, default_values = ["memory", "sync", "none"])]
    durability: Vec<Keeping>,
    /// Where the spool is.
    #[arg(long, value_delimiter = ',', value_enum, default_values = ["root", "ext4"])]
    file_systems: Vec<FileSystem>,
    /// Counted time of a cell.
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// Time before it.
    #[arg(long, default_value_t = 2.0)]
    warm_up: f64,
    /// Connections of the load.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Messages a second, whatever the replies do; without it, as many as replies permit.
    #[arg(long)]
    rate: Option<f64>,
    /// The core of the server.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of the load.
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// A further setting of the server, as `spool.segment_size=67108864`.
    #[arg(long = "set", value_parser = target::setting)]
    settings: Vec<(String, String)>,
    /// Drives the server that listens here instead of starting one.
    #[arg(long)]
    target: Option<SocketAddr>,
    /// Its process id, for CPU time and memory.
    #[arg(long, requires = "target")]
    target_pid: Option<u32>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One cell of the table.
struct Cell {
    outcome: Outcome,
    peak: Option<u64>,
}

impl Cell {
    /// Accepted messages a second.
    fn rate(&self) -> f64 {
        self.outcome.figures.accepted as f64 / self.outcome.elapsed.as_secs_f64()
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    println!("`{}`: {}", target::command_line("throughput"), target::machine());
    println!();
    println!(
        "| file system | durability | content | mode | msg/s | of memory | CPU-s/1000 | p50 ms | p99 ms | peak RSS MiB | load CPU-s/1000 | failed | never begun |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut refusals = Vec::new();
    let mut rates_in_memory = HashMap::new();
    for (options, size, mode) in cells(&arguments) {
        match measure(&arguments, options.as_ref(), size, mode) {
            Ok(cell) => {
                if options.as_ref().is_some_and(|options| options.keeping == Keeping::Memory) {
                    rates_in_memory.insert((size, mode), cell.rate());
                }
                let of_memory = rates_in_memory.get(&(size, mode)).map(|in_memory| cell.rate() / in_memory);
                println!("{}", row(&arguments, options.as_ref(), (size, mode), of_memory, &cell));
                refusals.extend(cell.outcome.figures.refusals.into_values());
                refusals.extend(cell.outcome.figures.failures.into_values().map(|failed| failed.first));
            }
            Err(e) => {
                eprintln!("{size} octets, {mode}: {e}");
                return ExitCode::FAILURE;
            }
        }
    }
    refusals.iter().for_each(|refusal| eprintln!("refused: {refusal}"));
    ExitCode::SUCCESS
}

/// Every cell of the matrix; no options where the server is running already.
fn cells(arguments: &Arguments) -> Vec<(Option<Options>, usize, Mode)> {
    let mut servers = Vec::new();
    if arguments.target.is_some() {
        servers.push(None);
    } else {
        for (i, &file_system) in arguments.file_systems.iter().enumerate() {
            // Memory is the same on every file system.
            let mut keepings = arguments.durability.clone();
            keepings.retain(|keeping| i == 0 || *keeping != Keeping::Memory);
            // First, because the others are compared with it.
            keepings.sort_by_key(|keeping| *keeping != Keeping::Memory);
            servers.extend(keepings.into_iter().map(|keeping| {
                let settings = arguments.settings.clone();
                Some(Options { file_system, keeping, cores: arguments.server_core.to_string(), settings })
            }));
        }
    }
    let mut cells = Vec::new();
    for server in servers {
        for (i, &size) in arguments.sizes.iter().enumerate() {
            let modes = arguments.modes.iter().filter(|mode| i == 0 || **mode != Mode::Reconnecting);
            cells.extend(modes.map(|&mode| (server.clone(), size, mode)));
        }
    }
    cells
}

fn measure(
    arguments: &Arguments,
    options: Option<&Options>,
    size: usize,
    mode: Mode,
) -> Result<Cell, drive::RunError> {
    let mut target = match (options, arguments.target) {
        (Some(options), _) => Target::start(options),
        (None, Some(address)) => Target::running(address, arguments.target_pid),
        (None, None) => unreachable!("a cell has a server"),
    };
    let plan = Plan {
        connections: arguments.connections,
        content: Source::Sizes(Sizes::Fixed(size)),
        is_pipelined: mode != Mode::Waiting,
        messages_per_connection: (mode == Mode::Reconnecting).then_some(1),
        rate: arguments.rate,
        warm_up: Duration::from_secs_f64(arguments.warm_up),
        goal: Goal::Duration(Duration::from_secs_f64(arguments.seconds)),
        // Connections take turns to leave from these, so that no two of a minute share one's ports.
        sources: (1..=SOURCES).map(|n| IpAddr::from([127, 1, 0, n])).collect(),
        server_pid: target.pid,
        ..Plan::against(target.address, arguments.load_core)
    };
    let outcome = drive::run(&plan, &Arc::default(), &mut Nobody)?;
    let peak = target.pid.and_then(|pid| usage::size(pid, "VmHWM").ok());
    target.stop();
    Ok(Cell { outcome, peak })
}

fn row(
    arguments: &Arguments,
    options: Option<&Options>,
    (size, mode): (usize, Mode),
    of_memory: Option<f64>,
    cell: &Cell,
) -> String {
    let Cell { outcome, peak } = cell;
    let figures = &outcome.figures;
    let (file_system, durability) = match options {
        Some(Options { keeping: Keeping::Memory, .. }) => ("–".into(), Keeping::Memory.to_string()),
        Some(options) => (options.file_system.to_string(), options.keeping.to_string()),
        None => ("–".into(), "–".into()),
    };
    let per_thousand = |seconds: f64| seconds * 1000.0 / figures.accepted as f64;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".into());
    let milliseconds =
        |quantile: f64| figures.phase(Phase::EndOfData).value_at_quantile(quantile) as f64 / 1e6;
    // At a fixed rate the load spins; its time says nothing.
    let is_load_busy =
        arguments.rate.is_none() && outcome.load_cpu_seconds > 0.9 * outcome.elapsed.as_secs_f64();
    format!(
        "| {file_system} | {durability} | {size} | {mode} | {:.0}{} | {} | {} | {:.3} | {:.3} | {} | {:.4} | {} | {} |",
        cell.rate(),
        if is_load_busy { "*" } else { "" },
        or_dash(of_memory.map(|part| format!("{part:.2}"))),
        or_dash(outcome.server.map(|server| format!("{:.4}", per_thousand(server.cpu_seconds)))),
        milliseconds(0.5),
        milliseconds(0.99),
        or_dash(peak.map(|bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 20)))),
        per_thousand(outcome.load_cpu_seconds),
        figures.failed,
        figures.never_begun,
    )
}
