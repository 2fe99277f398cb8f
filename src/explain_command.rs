//! `incoming explain`: what the configured policies say about a session that does not take place.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use bytesize::ByteSize;
use clap::Args;
use incoming::config::Config;
use incoming::gateway::{Rehearsal, Rehearsed, rehearse};
use incoming::mail::{ForwardPath, Phase, ReversePath, TlsVersion};
use incoming::telemetry::Escaped;
use serde_json::json;

use crate::{FAULT, complain, print};

#[derive(Args)]
pub struct ExplainCommand {
    /// The client's address.
    #[arg(long, value_name = "ADDR")]
    ip: IpAddr,
    /// What it says with EHLO.
    #[arg(long, value_name = "NAME", default_value = "client.example")]
    helo: String,
    /// MAIL FROM, without brackets; empty: the null reverse-path.
    #[arg(long, value_name = "ADDRESS", default_value = "", value_parser = reverse_path)]
    from: ReversePath,
    /// RCPT TO, without brackets; may be repeated.
    #[arg(long, value_name = "ADDRESS", value_parser = forward_path)]
    rcpt: Vec<ForwardPath>,
    /// The message's size, as 10MB.
    #[arg(long, value_name = "SIZE")]
    size: Option<ByteSize>,
    /// Within TLS (1.3).
    #[arg(long)]
    tls: bool,
    /// Logged in as this user.
    #[arg(long, value_name = "USER")]
    auth: Option<String>,
    /// The listener it has connected to, as it is configured; otherwise the first.
    #[arg(long, value_name = "ADDR:PORT")]
    listener: Option<SocketAddr>,
    /// Ask at the later phases too, even if the session would have ended before.
    #[arg(long)]
    all: bool,
    /// A line of JSON for each verdict.
    #[arg(long)]
    json: bool,
}

fn reverse_path(text: &str) -> Result<ReversePath, &'static str> {
    ReversePath::parse(text, true).map_err(|_| "not an address")
}

fn forward_path(text: &str) -> Result<ForwardPath, &'static str> {
    ForwardPath::parse(text, true).map_err(|_| "not an address")
}

/// Asks, and prints what was said.
pub fn run(command: ExplainCommand, config: &Config) -> ExitCode {
    let rehearsal = Rehearsal {
        ip: command.ip,
        listener: command.listener,
        hello: command.helo,
        reverse_path: command.from,
        recipients: command.rcpt,
        size: command.size.map(|size| size.as_u64()),
        tls: command.tls.then_some(TlsVersion::Tls13),
        user: command.auth,
        goes_on: command.all,
    };
    match rehearse(config, &rehearsal) {
        Ok(said) => print(&said.iter().map(if command.json { as_json } else { as_text }).collect::<String>()),
        Err(e) => {
            complain(&e);
            ExitCode::from(FAULT)
        }
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Connect => "connect",
        Phase::Hello => "hello",
        Phase::Mail => "mail",
        Phase::Recipient => "recipient",
        Phase::Data => "data",
        Phase::Message => "message",
    }
}

fn as_text(said: &Rehearsed) -> String {
    let phase = phase_name(said.phase);
    let shown = |text: &str| Escaped(text.as_bytes()).to_string();
    let recipient = said.recipient.as_deref().map(|path| format!(" <{}>", shown(path))).unwrap_or_default();
    let mut line = match &said.policy {
        Some(policy) => format!("  {policy:<24} {}", said.verdict),
        None => format!("{phase}{recipient}: {}", said.verdict),
    };
    if !said.what.is_empty() {
        let _ = write!(line, " {}", shown(&said.what));
    }
    if let Some(reply) = &said.reply {
        let _ = write!(line, "  {reply}");
    }
    if !said.key.is_empty() {
        let _ = write!(line, "  [{}]", shown(&said.key));
    }
    if said.is_dry {
        line.push_str("  (dry run)");
    }
    line.push('\n');
    line
}

fn as_json(said: &Rehearsed) -> String {
    let line = json!({
        "phase": phase_name(said.phase),
        "recipient": said.recipient,
        "policy": said.policy,
        "verdict": said.verdict,
        "what": said.what,
        "key": said.key,
        "reply": said.reply,
        "dry_run": said.is_dry,
    });
    format!("{line}\n")
}
