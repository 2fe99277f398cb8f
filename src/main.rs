//! `incoming`: argv → [`Config`] → gateway → exit code.
//!
//! Exit codes: 0 when it did what it was told, 1 on a fault (configuration, start, running), 2 on a command line that makes no sense,
//! 3 when it ended as it was told, but not everything could be finished in the time there was.

mod auth_commands;
mod control_commands;
mod dead_letters;
mod doctor_command;
mod explain_command;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use auth_commands::AuthCommand;
use clap::{Args, Parser, Subcommand};
use control_commands::ControlCommand;
use dead_letters::DeadCommand;
use doctor_command::DoctorCommand;
use explain_command::ExplainCommand;
use incoming::config::{Config, Flags, Sources, System};
use incoming::inspect::SpoolCommand;
use incoming::{gateway, inspect, telemetry};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const FAULT: u8 = 1;
const USAGE: u8 = 2;
const FORCED: u8 = 3;

/// An inbound SMTP gateway: makes mail durable before it says 250, then delivers it.
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

const AFTER_HELP: &str = "Without a command it serves. Every setting can also be given as INCOMING_<SECTION>_<KEY> in the \
                          environment; flags override the environment, and the environment the file.";

#[derive(Subcommand)]
enum Command {
    /// Takes mail and delivers it, until SIGTERM or SIGINT.
    Serve,
    /// Checks the configuration and prints the whole of it, every default included.
    Check,
    /// Lists dead letters, has them sent again, or removes them; beside a running gateway or without one.
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Looks into the spool of a gateway that is stopped or running. Nothing is written there.
    #[command(subcommand)]
    Spool(SpoolCommand),
    /// Asks the configured policies about a session that does not take place, and prints what each says, in order.
    Explain(ExplainCommand),
    #[command(flatten)]
    Control(ControlCommand),
    /// Looks at this machine with the configuration in mind: what was found, what it costs, how to mend it. Exit code 1 if something is a fault.
    Doctor(DoctorCommand),
    /// Prints lines for the file of those who may log in. Needs no configuration.
    #[command(subcommand)]
    Auth(AuthCommand),
}

#[derive(Args)]
struct Options {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Listen here, instead of where the configuration says; may be repeated.
    #[arg(long, value_name = "ADDR:PORT", global = true)]
    listen: Vec<String>,
    /// The folder of spool and dead letters.
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<String>,
    /// How many shards.
    #[arg(long, value_name = "N", global = true, conflicts_with = "cores")]
    shards: Option<String>,
    /// One shard on each of these cores, as 0-3,8.
    #[arg(long, value_name = "LIST", global = true)]
    cores: Option<String>,
    /// human or json.
    #[arg(long, value_name = "FORMAT", global = true)]
    log_format: Option<String>,
    /// error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", global = true)]
    log_level: Option<String>,
}

fn main() -> ExitCode {
    let Cli { command, options } = Cli::parse();
    raise_descriptor_limit();
    match command.unwrap_or(Command::Serve) {
        Command::Serve => serve(options),
        Command::Check => configured(options, check),
        Command::Dead(command) => configured(options, |config| dead_letters::run(command, &config)),
        Command::Spool(command) => configured(options, |config| inspect::run(command, &config)),
        Command::Explain(command) => configured(options, |config| explain_command::run(command, &config)),
        Command::Control(command) => configured(options, |config| control_commands::run(command, &config)),
        Command::Doctor(command) => configured(options, |config| doctor_command::run(&command, &config)),
        Command::Auth(command) => auth_commands::run(command),
    }
}

/// Runs what needs a configuration.
fn configured(options: Options, run: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match load(options) {
        Ok(config) => run(config),
        Err(e) => {
            complain(&e);
            ExitCode::from(if e.is_usage() { USAGE } else { FAULT })
        }
    }
}

fn load(options: Options) -> Result<Config, incoming::config::ConfigError> {
    Config::load(&sources(options), &System::here())
}

fn sources(options: Options) -> Sources {
    let Options { config, listen, data, shards, cores, log_format, log_level } = options;
    let flags = Flags { listen, data, shards, cores, log_format, log_level };
    Sources { file: config, environment: std::env::vars_os().collect(), flags }
}

fn serve(options: Options) -> ExitCode {
    let (sources, system) = (sources(options), System::here());
    let config = match Config::load(&sources, &system) {
        Ok(config) => config,
        Err(e) => {
            complain(&e);
            return ExitCode::from(if e.is_usage() { USAGE } else { FAULT });
        }
    };
    let log = match telemetry::log::start(config.log.format, config.log.level) {
        Ok(log) => log,
        Err(e) => {
            complain(&format_args!("cannot start the log: {e}"));
            return ExitCode::from(FAULT);
        }
    };
    let reread = Box::new(move || Config::load(&sources, &system));
    let ended = gateway::run(config, reread, gateway::Extensions::default());
    if let Err(e) = &ended {
        tracing::error!("{e}");
    }
    drop(log);
    match ended {
        Ok(ended) if ended.is_forced => ExitCode::from(FORCED),
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAULT),
    }
}

/// The configuration is good, and so is what it refers to.
fn check(config: Config) -> ExitCode {
    match gateway::check_files(&config) {
        Ok(()) => print(&config.to_toml()),
        Err(e) => {
            complain(&e);
            ExitCode::from(FAULT)
        }
    }
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

/// Sessions are descriptors, and the soft limit is for programs that use `select`. Where it cannot be raised, `sessions_max` is
/// derived from what there is.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
