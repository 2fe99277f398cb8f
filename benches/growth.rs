//! What a message costs as things grow: connections, octets, recipients, the queue behind it, shards.
//!
//! Starts the release binary for each row, drives it from another core with `loadtest`'s executor, and prints a Markdown
//! table for each thing that grows. Pipelined, delivery to `discard`, on the file system of choice.
//!
//! ```text
//! cargo bench --bench growth                          all of it
//! cargo bench --bench growth -- connections depth     some of it
//! ```

#[path = "load/mod.rs"]
mod load;
#[path = "../tests/support/mod.rs"]
mod support;

use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use load::target::{self, FileSystem, Keeping, Options, Target};
use loadtest::content::{Sizes, Source};
use loadtest::drive::{self, Nobody, Outcome, RunError};
use loadtest::measure::Phase;
use loadtest::plan::{Goal, Plan};

/// Source addresses of the load.
const SOURCES: u8 = 64;

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Growth {
    /// Connections, all of them busy.
    Connections,
    /// Octets of content.
    Sizes,
    /// Recipients of a message.
    Recipients,
    /// Messages that wait for their next attempt.
    Depth,
    /// Shards, each on a core of its own, at the same rate.
    Shards,
}

#[derive(Parser)]
#[command(name = "growth")]
struct Arguments {
    /// What grows; without a word all of it.
    #[arg(value_enum)]
    what: Vec<Growth>,
    /// Counted time of a row.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Time before it.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Where the spool is.
    #[arg(long, value_enum, default_value = "root")]
    file_system: FileSystem,
    /// The core of the server.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of the load.
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// The deepest queue.
    #[arg(long, default_value_t = 1_000_000)]
    depth_max: u64,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    if arguments.what.is_empty() {
        arguments.what = Growth::value_variants().to_vec();
    }
    println!("`{}`: {}", target::command_line("growth"), target::machine());
    for &what in &arguments.what {
        if let Err(e) = measure(&arguments, what) {
            eprintln!("{what:?}: {e}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn measure(arguments: &Arguments, what: Growth) -> Result<(), RunError> {
    let name = match what {
        Growth::Connections => "connections",
        Growth::Sizes => "octets of content",
        Growth::Recipients => "recipients",
        Growth::Depth => "messages waiting",
        Growth::Shards => "shards",
    };
    println!(
        "\n| {name} | msg/s | MB/s | server CPU-s/1000 | load CPU-s/1000 | end-of-data → 250 p50 ms | p99 ms | failed |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let start = |settings: &[(&str, String)], cores: &str| {
        Target::start(&Options {
            file_system: arguments.file_system,
            keeping: Keeping::Sync,
            cores: cores.to_owned(),
            settings: settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        })
    };
    let core = arguments.server_core.to_string();
    let row = |label: &dyn std::fmt::Display, mut target: Target, change: &dyn Fn(&mut Plan)| {
        let mut plan = plan(arguments, &target);
        change(&mut plan);
        let outcome = drive::run(&plan, &Arc::default(), &mut Nobody)?;
        target.stop();
        println!("| {label} | {} |", cells(&outcome));
        Ok::<(), RunError>(())
    };
    match what {
        Growth::Connections => {
            for connections in [1, 8, 64, 512, 4096, 19_000] {
                row(&connections, start(&[], &core), &|plan| plan.connections = connections)?;
            }
        }
        Growth::Sizes => {
            for size in [0, 256, 4 << 10, 64 << 10, 1 << 20, 10 << 20, 50 << 20] {
                row(&size, start(&[], &core), &|plan| {
                    plan.content = Source::Sizes(Sizes::Fixed(size));
                    // A few large ones fill a core, and the spool need not hold 64 of them.
                    plan.connections = if size >= 1 << 20 { 8 } else { 64 };
                })?;
            }
        }
        Growth::Recipients => {
            for recipients in [1, 10, 100] {
                row(&recipients, start(&[], &core), &|plan| {
                    plan.envelope.recipient = "inbox{n}@mx.test".to_owned();
                    plan.envelope.recipient_count = recipients;
                })?;
            }
        }
        Growth::Depth => {
            for depth in [0, arguments.depth_max / 10, arguments.depth_max] {
                // Every attempt is deferred to another day.
                let settings = [
                    ("spool.depth_max", (2 * arguments.depth_max + 1_000_000).to_string()),
                    ("delivery.transport", "\"nowhere\"".to_owned()),
                    ("transport.nowhere.type", "\"maildir\"".to_owned()),
                    ("transport.nowhere.path", "\"/dev/null/nowhere\"".to_owned()),
                    ("delivery.backoff_base", "\"1d\"".to_owned()),
                    ("delivery.backoff_max", "\"1d\"".to_owned()),
                ];
                let target = start(&settings, &core);
                if depth > 0 {
                    let fill = Plan {
                        goal: Goal::Messages(depth),
                        warm_up: Duration::ZERO,
                        ..plan(arguments, &target)
                    };
                    drive::run(&fill, &Arc::default(), &mut Nobody)?;
                }
                row(&depth, target, &|_| ())?;
            }
        }
        Growth::Shards => {
            for shards in [1, 2] {
                let cores =
                    if shards == 1 { core.clone() } else { format!("{core},{}", arguments.load_core) };
                let target = start(&[("shards", shards.to_string())], &cores);
                // Below what one shard can do beside the load, so that each of them has idle time.
                row(&shards, target, &|plan| plan.rate = Some(5000.0))?;
            }
        }
    }
    Ok(())
}

fn plan(arguments: &Arguments, target: &Target) -> Plan {
    Plan {
        is_pipelined: true,
        warm_up: Duration::from_secs_f64(arguments.warm_up),
        goal: Goal::Duration(Duration::from_secs_f64(arguments.seconds)),
        sources: (1..=SOURCES).map(|n| IpAddr::from([127, 1, 0, n])).collect(),
        server_pid: target.pid,
        ..Plan::against(target.address, arguments.load_core)
    }
}

fn cells(outcome: &Outcome) -> String {
    let figures = &outcome.figures;
    let seconds = outcome.elapsed.as_secs_f64();
    let per_thousand = |cpu: f64| format!("{:.4}", cpu * 1000.0 / figures.accepted as f64);
    let milliseconds = |quantile: f64| {
        format!("{:.3}", figures.phase(Phase::EndOfData).value_at_quantile(quantile) as f64 / 1e6)
    };
    [
        format!("{:.0}", figures.accepted as f64 / seconds),
        format!("{:.1}", figures.content_octets as f64 / seconds / 1e6),
        outcome.server.map_or("–".to_owned(), |server| per_thousand(server.cpu_seconds)),
        per_thousand(outcome.load_cpu_seconds),
        milliseconds(0.5),
        milliseconds(0.99),
        figures.failed.to_string(),
    ]
    .join(" | ")
}
