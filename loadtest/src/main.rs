//! `loadtest`: argv → what is to be done → exit code.
//!
//! Exit codes: 0 when all went well; 1 when something could not be done, when nothing was accepted (of hostile clients
//! alone: when none of them was let in), or when `verify` finds a loss; 2 on a command line that makes no sense.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{ArgGroup, Args, Parser, Subcommand};
use loadtest::arguments::{LoadArguments, TargetArgument};
use loadtest::compare::Comparison;
use loadtest::drive::{self, Nobody, Outcome, RunError};
use loadtest::plan::Plan;
use loadtest::report::progress::{Form, Progress};
use loadtest::report::summary::Summary;
use loadtest::report::{Report, html};
use loadtest::verify::{self, Question};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const FAULT: u8 = 1;
const USAGE: u8 = 2;

/// Drives an SMTP server as hard, or as steadily, as it is told, and says what came of it.
///
/// Only a 250 to an end-of-data counts as accepted.
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  loadtest run --target 127.0.0.1:2525 --pipeline
      as fast as 64 connections can, for ten seconds
  loadtest run --target 127.0.0.1:2525 --rate 1000 --duration 1m --html run.html
      a thousand messages a second, latency from the time each was due
  loadtest run --target mx.example:25 --starttls --corpus mail.mbox --messages 10000 --ledger run.ledger
      real messages, and a record of each that was acknowledged
  loadtest verify --ledger run.ledger --maildir /var/mail/inbox
      each of them is there, once, as it was sent, or is named
  loadtest run --target 127.0.0.1:2525 --rate 1000 --hostile all=8 --hostile-source 127.0.0.64-127.0.0.95
      what a steady load feels of clients that mean no good";

#[derive(Subcommand)]
enum Command {
    /// Loads one server.
    Run(Box<RunArguments>),
    /// Loads several servers in turn, A B A B …, and tells what one is to another.
    Compare(Box<CompareArguments>),
    /// Holds a run's ledger against what was delivered: nothing missing, nothing altered, nothing twice.
    ///
    /// Exit code 0 only if nothing is missing or altered.
    Verify(VerifyArguments),
}

#[derive(Args)]
struct RunArguments {
    /// The server: HOST:PORT, or NAME=HOST:PORT to call it something.
    #[arg(long, short, value_name = "HOST:PORT")]
    target: TargetArgument,
    #[command(flatten)]
    load: LoadArguments,
    /// Record every acknowledged message here, for `loadtest verify`.
    #[arg(long, value_name = "FILE", help_heading = "What is told")]
    ledger: Option<PathBuf>,
    /// Write the figures as JSON.
    #[arg(long, value_name = "FILE", help_heading = "What is told")]
    json: Option<PathBuf>,
    /// Write the figures as one HTML page with charts, which needs no other file and no network.
    #[arg(long, value_name = "FILE", help_heading = "What is told")]
    html: Option<PathBuf>,
    /// Say nothing while the run goes.
    #[arg(long, short, help_heading = "What is told")]
    quiet: bool,
    /// The server's process id: CPU time and memory of it and all below it are told as well.
    #[arg(long, value_name = "PID", help_heading = "What is told")]
    server_pid: Option<u32>,
}

#[derive(Args)]
struct CompareArguments {
    /// A server: [NAME=]HOST:PORT, with `,pid=PID` behind it to learn what its process tree uses. The others are compared
    /// with the first.
    #[arg(long, short, value_name = "TARGET", required = true)]
    target: Vec<TargetArgument>,
    /// How often each has its turn.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    #[command(flatten)]
    load: LoadArguments,
    /// Write every run's figures as JSON.
    #[arg(long, value_name = "FILE", help_heading = "What is told")]
    json: Option<PathBuf>,
    /// Write one HTML page that needs nothing else.
    #[arg(long, value_name = "FILE", help_heading = "What is told")]
    html: Option<PathBuf>,
}

#[derive(Args)]
#[command(group = ArgGroup::new("delivered").args(["maildir", "export"]).required(true).multiple(true))]
struct VerifyArguments {
    /// What `loadtest run --ledger` wrote.
    #[arg(long, value_name = "FILE")]
    ledger: PathBuf,
    /// A Maildir, or a folder with several, that the server delivered to.
    #[arg(long, value_name = "DIR")]
    maildir: Vec<PathBuf>,
    /// A folder of message files; *.json beside them are skipped.
    #[arg(long, value_name = "DIR")]
    export: Vec<PathBuf>,
    /// Expect a copy for each accepted recipient instead of one for each message.
    #[arg(long)]
    per_recipient: bool,
    /// Messages with more copies than expected make the exit code 1 as well.
    #[arg(long)]
    no_duplicates: bool,
    /// Name so many messages of each kind.
    #[arg(long, value_name = "N", default_value_t = 10)]
    list: usize,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    raise_descriptor_limit();
    match command {
        Command::Run(arguments) => run(&arguments),
        Command::Compare(arguments) => compare(&arguments),
        Command::Verify(arguments) => verify(arguments),
    }
}

fn run(arguments: &RunArguments) -> ExitCode {
    let mut plan = match arguments.load.plan(&arguments.target) {
        Ok(plan) => plan,
        Err(fault) => return complain(USAGE, &fault),
    };
    plan.ledger.clone_from(&arguments.ledger);
    plan.server_pid = arguments.server_pid.or(plan.server_pid);
    let interrupted = match interruption() {
        Ok(interrupted) => interrupted,
        Err(e) => return complain(FAULT, &format_args!("cannot catch signals: {e}")),
    };
    let outcome = match watched(&plan, &interrupted, arguments.quiet) {
        Ok(outcome) => outcome,
        Err(fault) => return complain(FAULT, &fault),
    };
    let report = Report::new(&plan, &outcome);
    let _ = write!(io::stdout(), "{}", Summary(&report));
    if let Some(path) = &arguments.json
        && let Err(e) = write_json(path, &report)
    {
        return complain(FAULT, &format_args!("{}: {e}", path.display()));
    }
    if let Some(path) = &arguments.html
        && let Err(e) = std::fs::write(path, html::page(&report))
    {
        return complain(FAULT, &format_args!("{}: {e}", path.display()));
    }
    let is_done = match plan.connections {
        0 => report.hostile.as_ref().is_some_and(|hostile| hostile.connections() > 0),
        _ => report.accepted > 0,
    };
    if is_done { ExitCode::SUCCESS } else { ExitCode::from(FAULT) }
}

fn compare(arguments: &CompareArguments) -> ExitCode {
    let plans: Result<Vec<Plan>, String> =
        arguments.target.iter().map(|target| arguments.load.plan(target)).collect();
    let plans = match plans {
        Ok(plans) => plans,
        Err(fault) => return complain(USAGE, &fault),
    };
    let interrupted = match interruption() {
        Ok(interrupted) => interrupted,
        Err(e) => return complain(FAULT, &format_args!("cannot catch signals: {e}")),
    };
    let mut comparison = Comparison::new(plans.iter().map(|plan| plan.target.name.clone()));
    for round in 1..=arguments.rounds {
        for (index, plan) in plans.iter().enumerate() {
            if interrupted.load(Ordering::Relaxed) {
                break;
            }
            let run = drive::run(plan, &interrupted, &mut Nobody);
            if interrupted.load(Ordering::Relaxed) {
                // Half a run compares with nothing.
                break;
            }
            let run = run.map(|outcome| Report::new(plan, &outcome)).map_err(|fault| fault.to_string());
            let told = match &run {
                Ok(report) => format!("{:.0} messages/s", report.rate),
                Err(fault) => fault.clone(),
            };
            let _ =
                writeln!(io::stderr(), "round {round} of {}, {}: {told}", arguments.rounds, plan.target.name);
            comparison.add(index, run);
        }
    }
    let _ = write!(io::stdout(), "{comparison}");
    if let Some(path) = &arguments.json
        && let Err(e) = write_json(path, &comparison)
    {
        return complain(FAULT, &format_args!("{}: {e}", path.display()));
    }
    if let Some(path) = &arguments.html
        && let Err(e) = std::fs::write(path, html::comparison_page(&comparison))
    {
        return complain(FAULT, &format_args!("{}: {e}", path.display()));
    }
    match comparison.targets().iter().all(|target| target.figures.is_some() && target.faults.is_empty()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(FAULT),
    }
}

/// Runs `plan` with someone to look on, unless nobody is to.
fn watched(plan: &Plan, interrupted: &Arc<AtomicBool>, is_quiet: bool) -> Result<Outcome, RunError> {
    if is_quiet {
        return drive::run(plan, interrupted, &mut Nobody);
    }
    let form = match io::stderr().is_terminal() {
        true => Form::Redrawn,
        false => Form::Lines,
    };
    // Ends with it, so that what is said next stands on a line of its own.
    drive::run(plan, interrupted, &mut Progress::new(plan, io::stderr(), form))
}

fn verify(arguments: VerifyArguments) -> ExitCode {
    let VerifyArguments { ledger, maildir, export, per_recipient, no_duplicates, list, json } = arguments;
    let folders = maildir.into_iter().chain(export).collect();
    let question = Question { ledger, folders, is_per_recipient: per_recipient, list_max: list };
    let findings = match verify::verify(&question) {
        Ok(findings) => findings,
        Err(fault) => return complain(FAULT, &fault),
    };
    let told = match json {
        true => serde_json::to_string_pretty(&findings)
            .map_err(io::Error::from)
            .and_then(|text| writeln!(io::stdout(), "{text}")),
        false => write!(io::stdout(), "{findings}"),
    };
    match told {
        Err(e) => complain(FAULT, &format_args!("cannot print the result: {e}")),
        Ok(()) if findings.are_good(no_duplicates) => ExitCode::SUCCESS,
        Ok(()) => ExitCode::from(FAULT),
    }
}

fn write_json(path: &PathBuf, report: &impl serde::Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(report)?;
    text.push(b'\n');
    std::fs::write(path, text)
}

/// Set by SIGINT or SIGTERM; a second one ends the process.
fn interruption() -> io::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(FAULT), interrupted.clone())?;
        signal_hook::flag::register(signal, interrupted.clone())?;
    }
    Ok(interrupted)
}

fn complain(code: u8, fault: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "loadtest: {fault}");
    ExitCode::from(code)
}

/// Connections are descriptors, and the soft limit is for programs that use `select`.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
