//! The command line: what can be said to `incoming`, and what each word means.
//!
//! Only said here, done elsewhere: `main.rs` has an arm for each [`Command`]. Help, completions and manual pages are made of
//! the comments of these types, so they are written for an operator.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use incoming::inspect::{SpoolCommand, WhyCommand};

use crate::auth_commands::AuthCommand;
use crate::control_commands::ControlCommand;
use crate::dead_letters::DeadCommand;
use crate::doctor_command::DoctorCommand;
use crate::explain_command::ExplainCommand;
use crate::queue_commands::QueueCommand;

/// An inbound SMTP gateway: makes mail durable before it says 250, then delivers it.
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub options: Options,
}

const AFTER_HELP: &str = "Without a command it serves. Every setting can also be given as INCOMING_<SECTION>_<KEY> in the \
                          environment; flags override the environment, and the environment the file.";

#[derive(Subcommand)]
pub enum Command {
    /// Takes mail and delivers it, until SIGTERM or SIGINT.
    Serve,
    /// Checks the configuration and prints the whole of it, every default included.
    Check,
    /// Lists dead letters, has them sent again, or removes them; beside a running gateway or without one.
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Looks at the queue of a running gateway, and holds, releases, drops or retries messages of it.
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Looks into the spool of a gateway that is stopped or running. Nothing is written there.
    #[command(subcommand)]
    Spool(SpoolCommand),
    /// Tells what happened to a message, from its session to each attempt, and what happens next; from the spool's records.
    Why(WhyCommand),
    /// Asks the configured policies about a session that does not take place, and prints what each says, in order.
    Explain(ExplainCommand),
    #[command(flatten)]
    Control(ControlCommand),
    /// Looks at this machine with the configuration in mind: what was found, what it costs, how to mend it. Exit code 1 if something is a fault.
    Doctor(DoctorCommand),
    /// Prints lines for the file of those who may log in. Needs no configuration.
    #[command(subcommand)]
    Auth(AuthCommand),
    /// Prints what has a shell complete commands and options. Needs no configuration.
    Completions {
        /// The shell they are for.
        shell: Shell,
    },
    /// Writes the manual: a page for each command. Needs no configuration; for those who make packages.
    #[command(hide = true)]
    Man {
        /// A folder that is there.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

#[derive(Args)]
pub struct Options {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Listen here, instead of where the configuration says; may be repeated.
    #[arg(long, value_name = "ADDR:PORT", global = true)]
    pub listen: Vec<String>,
    /// The folder of spool and dead letters.
    #[arg(long, value_name = "DIR", global = true, value_hint = ValueHint::DirPath)]
    pub data: Option<String>,
    /// How many shards.
    #[arg(long, value_name = "N", global = true, conflicts_with = "cores")]
    pub shards: Option<String>,
    /// One shard on each of these cores, as 0-3,8.
    #[arg(long, value_name = "LIST", global = true)]
    pub cores: Option<String>,
    /// human or json.
    #[arg(long, value_name = "FORMAT", global = true)]
    pub log_format: Option<String>,
    /// error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", global = true)]
    pub log_level: Option<String>,
}
