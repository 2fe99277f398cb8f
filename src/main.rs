//! `incoming`: argv → [`Config`] → gateway → exit code.
//!
//! Exit codes: 0 when it did what it was told, 1 on a fault (configuration, start, running), 2 on a command line that makes no sense,
//! 3 when it ended as it was told, but not everything could be finished in the time there was.

mod auth_commands;
mod cli;
mod control_commands;
mod dead_letters;
mod doctor_command;
mod explain_command;
mod manual;
mod queue_commands;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command, Options};
use incoming::config::{Config, Flags, Sources};
use incoming::{Gateway, inspect, telemetry};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const FAULT: u8 = 1;
const USAGE: u8 = 2;
const FORCED: u8 = 3;

fn main() -> ExitCode {
    let Cli { command, options } = Cli::parse();
    raise_limits();
    match command.unwrap_or(Command::Serve) {
        Command::Serve => serve(options),
        Command::Check => check(options),
        Command::Dead(command) => configured(options, |config| dead_letters::run(command, &config)),
        Command::Queue(command) => configured(options, |config| queue_commands::run(command, &config)),
        Command::Spool(command) => configured(options, |config| inspect::run(command, &config)),
        Command::Why(command) => configured(options, |config| inspect::why_message(&command, &config)),
        Command::Explain(command) => configured(options, |config| explain_command::run(command, &config)),
        Command::Control(command) => configured(options, |config| control_commands::run(command, &config)),
        Command::Doctor(command) => configured(options, |config| doctor_command::run(&command, &config)),
        Command::Auth(command) => auth_commands::run(command),
        Command::Completions { shell } => manual::print_completions(shell),
        Command::Man { folder } => manual::write_pages(&folder),
    }
}

/// Runs what needs a configuration.
fn configured(options: Options, run: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    built(options, |gateway| run(gateway.config().clone()))
}

/// Runs what needs a gateway.
fn built(options: Options, run: impl FnOnce(Gateway) -> ExitCode) -> ExitCode {
    match Gateway::builder().sources(sources(options)).build() {
        Ok(gateway) => run(gateway),
        Err(e) => {
            complain(&e);
            ExitCode::from(if e.is_usage() { USAGE } else { FAULT })
        }
    }
}

fn sources(options: Options) -> Sources {
    let Options { config, listen, data, shards, cores, log_format, log_level } = options;
    let flags = Flags { listen, data, shards, cores, log_format, log_level };
    Sources { file: config, environment: std::env::vars_os().collect(), flags }
}

fn serve(options: Options) -> ExitCode {
    built(options, |gateway| {
        let log = match telemetry::log::start(gateway.config().log.format, gateway.config().log.level) {
            Ok(log) => log,
            Err(e) => {
                complain(&format_args!("cannot start the log: {e}"));
                return ExitCode::from(FAULT);
            }
        };
        let ended = gateway.run();
        if let Err(e) = &ended {
            tracing::error!("{e}");
        }
        drop(log);
        match ended {
            Ok(ended) if ended.is_forced => ExitCode::from(FORCED),
            Ok(_) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(FAULT),
        }
    })
}

/// The configuration is good, and so is what it refers to.
fn check(options: Options) -> ExitCode {
    built(options, |gateway| match gateway.check() {
        Ok(()) => print(&gateway.config().to_toml()),
        Err(e) => {
            complain(&e);
            ExitCode::from(FAULT)
        }
    })
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAULT),
    }
}

fn complain(fault: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "incoming: {fault}");
}

/// Sessions are descriptors, and the soft limit is for programs that use `select`; rings lock memory. Where they cannot be raised,
/// `sessions_max` is derived from what there is, and the start says what is missing.
fn raise_limits() {
    for resource in [Resource::Nofile, Resource::Memlock] {
        let limit = getrlimit(resource);
        let _ = setrlimit(resource, Rlimit { current: limit.maximum, ..limit });
    }
}
