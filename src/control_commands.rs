//! Commands that ask a running gateway, or tell it: over its admin interface.
//!
//! Tables for people, and with `--json` what the interface says, for programs. What strangers wrote (hello names, users, what they say in a
//! session) is escaped where a terminal shows it. Exit code 1: there is no gateway, or it does not do what it was told.

use std::fmt::{self, Display};
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::Subcommand;
use incoming::admin::client::{self, Unanswered};
use incoming::admin::{
    Drain, Health, LogLevel, Progress, QueueTarget as Target, Reloaded, Session, Sessions, Stage, Stats,
    TraceLine, Upgraded,
};
use incoming::config::Config;
use incoming::telemetry::Escaped;

use crate::{FAULT, complain};

/// How often it is looked how far a drain is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// One after the other so many of these questions may break before that is a fault.
const BROKEN_MAX: u32 = 40;
/// How often it is said though nothing has changed.
const PROGRESS_SAID_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Subcommand)]
pub enum ControlCommand {
    /// Shows the running gateway at a glance: rates, sessions, queue, spool, memory.
    Stats {
        /// Over this time rates are taken.
        #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
        interval: Duration,
        /// Again and again, until it is interrupted.
        #[arg(long)]
        watch: bool,
        /// One JSON object with the counters, at once.
        #[arg(long, conflicts_with = "watch")]
        json: bool,
    },
    /// Lists who is connected.
    Sessions {
        /// Only from these addresses or networks.
        #[arg(long, value_name = "CIDR")]
        ip: Vec<String>,
        /// So many at most.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Shows what sessions say while they say it. Passwords and content are not shown.
    Trace {
        /// Of these addresses or networks.
        #[arg(long, value_name = "CIDR", required = true)]
        ip: Vec<String>,
        /// So many sessions at a time, of each shard.
        #[arg(long, value_name = "N")]
        sessions: Option<usize>,
        /// Until so many lines were shown.
        #[arg(long, value_name = "N")]
        lines: Option<u64>,
        /// For so long; 10 minutes where nothing is said.
        #[arg(long = "for", value_name = "DURATION")]
        time: Option<String>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Shows what is logged, or changes it until the next start.
    LogLevel {
        /// error, warn, info, debug, trace or off; or levels by where events come from: info,incoming::delivery=debug.
        #[arg(value_name = "FILTER")]
        filter: Option<String>,
        /// For so long; then it is as it was before.
        #[arg(long = "for", value_name = "DURATION", requires = "filter")]
        time: Option<String>,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Has the gateway take no new sessions, finish those it has, and end; waits for it.
    Drain {
        /// Wait so long for the queue to be delivered, too.
        #[arg(long, value_name = "DURATION")]
        deliveries: Option<String>,
        /// Sessions may finish for so long; as configured (drain_timeout) where nothing is said.
        #[arg(long, value_name = "DURATION")]
        timeout: Option<String>,
        /// Do not wait until it has ended.
        #[arg(long)]
        no_wait: bool,
        /// One JSON object for each step.
        #[arg(long)]
        json: bool,
    },
    /// Has the gateway read its configuration anew; a faulty one changes nothing.
    Reload {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Has a new process, of the binary that is installed now, take over without losing a connection.
    Upgrade {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Says whether the gateway takes mail now, and if not, why; the exit code says it too.
    Health {
        /// Only whether it is alive: whether all of it answers.
        #[arg(long)]
        live: bool,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// Does what was asked, and says so.
pub fn run(command: ControlCommand, config: &Config) -> ExitCode {
    let done = match command {
        ControlCommand::Stats { json: true, .. } => json(client::get::<Stats>(config, "/v1/stats")),
        ControlCommand::Stats { interval, watch, .. } => stats(config, interval, watch),
        ControlCommand::Sessions { ip, limit, json } => sessions(config, &ip, limit, json),
        ControlCommand::Trace { ip, sessions, lines, time, json } => {
            let path = Query::new("/v1/trace")
                .with("ip", Some(ip.join(",")))
                .with("sessions", sessions)
                .with("lines", lines)
                .with("for", time);
            trace(config, &path.0, json)
        }
        ControlCommand::LogLevel { filter, time, json } => log_level(config, filter, time, json),
        ControlCommand::Drain { deliveries, timeout, no_wait, json } => {
            drain(config, Drain { deliveries, timeout }, no_wait, json)
        }
        ControlCommand::Reload { json } => reload(config, json),
        ControlCommand::Upgrade { json } => upgrade(config, json),
        ControlCommand::Health { live, json } => health(config, live, json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Trouble::Said) => ExitCode::from(FAULT),
        Err(Trouble::Words(words)) => {
            complain(&words);
            ExitCode::from(FAULT)
        }
        // Whoever read the output has had enough of it.
        Err(Trouble::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Trouble::Output(e)) => {
            complain(&format_args!("cannot write: {e}"));
            ExitCode::from(FAULT)
        }
    }
}

/// Why a command has not done what it should.
enum Trouble {
    /// In words for people.
    Words(String),
    /// The answer cannot be written.
    Output(io::Error),
    /// The answer itself says so.
    Said,
}

impl From<String> for Trouble {
    fn from(words: String) -> Self {
        Trouble::Words(words)
    }
}

impl From<Unanswered> for Trouble {
    fn from(unanswered: Unanswered) -> Self {
        Trouble::Words(unanswered.into())
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Trouble::Output(error)
    }
}

type Done = Result<(), Trouble>;

/// A path with what is asked behind it.
struct Query(String);

impl Query {
    fn new(path: &str) -> Self {
        Query(path.into())
    }

    fn with(mut self, key: &str, value: Option<impl Display>) -> Self {
        if let Some(value) = value {
            let text = value.to_string();
            let value = percent_encoding::utf8_percent_encode(&text, percent_encoding::NON_ALPHANUMERIC);
            let sign = if self.0.contains('?') { '&' } else { '?' };
            self.0.push_str(&format!("{sign}{key}={value}"));
        }
        self
    }
}

fn json<T: serde::Serialize>(answer: Result<T, String>) -> Done {
    let answer = answer?;
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &answer).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

fn stats(config: &Config, interval: Duration, watch: bool) -> Done {
    let mut before: Stats = client::get(config, "/v1/stats")?;
    loop {
        std::thread::sleep(interval);
        let now: Stats = client::get(config, "/v1/stats")?;
        let mut out = BufWriter::new(io::stdout().lock());
        write!(out, "{}", Glance { before: &before, now: &now })?;
        if watch {
            writeln!(out)?;
        }
        out.flush()?;
        if !watch {
            return Ok(());
        }
        before = now;
    }
}

/// One screen of it.
struct Glance<'a> {
    before: &'a Stats,
    now: &'a Stats,
}

impl Glance<'_> {
    /// So many more in a second; of another process since its start.
    fn rate(&self, of: impl Fn(&Stats) -> u64) -> f64 {
        let is_same = self.before.pid == self.now.pid;
        let before = if is_same { of(self.before) } else { 0 };
        let millis = self.now.unix_millis.saturating_sub(self.before.unix_millis).max(1);
        of(self.now).saturating_sub(before) as f64 * 1000.0 / millis as f64
    }
}

impl Display for Glance<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = self.now;
        let up = now.uptime_seconds.map(|seconds| format!(", up {}", age(seconds))).unwrap_or_default();
        writeln!(
            f,
            "incoming {}, process {}{up}, {} shard{}: {}, load {}",
            now.version,
            now.pid,
            now.shards,
            if now.shards == 1 { "" } else { "s" },
            stage(&now.stage),
            now.load
        )?;
        let begun = self.rate(|stats| stats.sessions.total);
        let tls = self.rate(|stats| stats.sessions.tls);
        let (open, max) = (now.sessions.open, now.sessions.max);
        writeln!(f, "sessions  {open} of {max} open, {begun:.1}/s begun, {tls:.1}/s of them with TLS")?;
        let accepted = self.rate(|stats| stats.messages.accepted);
        let refused = self.rate(|stats| stats.messages.refused);
        let not_stored = self.rate(|stats| stats.messages.not_stored);
        let size = octets(self.rate(|stats| stats.messages.bytes) as u64);
        writeln!(
            f,
            "messages  {accepted:.1}/s accepted ({size}/s), {refused:.1}/s refusals, {not_stored:.1}/s not stored; \
             {} accepted since the start",
            now.messages.accepted
        )?;
        writeln!(f, "queue     {} of {}", now.queue.depth, now.queue.max)?;
        let mut table = Table::new([
            "TARGET",
            "BREAKER",
            "BACKLOG",
            "DEFERRED",
            "DELIVERING",
            "OLDEST",
            "DELIVERED/s",
            "DEFERRED/s",
            "REJECTED/s",
        ]);
        let is_used = |target: &&Target| {
            !target.target.is_empty() || target.backlog + target.deferred + target.handed_off > 0
        };
        for target in now.queue.targets.iter().filter(is_used) {
            let rate = |of: fn(&Self, &str) -> f64| format!("{:.1}", of(self, &target.target));
            table.row([
                if target.target.is_empty() { "(not routed)".into() } else { target.target.clone() },
                if target.breaker.is_empty() { "-".into() } else { target.breaker.clone() },
                target.backlog.to_string(),
                target.deferred.to_string(),
                target.handed_off.to_string(),
                target.oldest_seconds.map_or("-".into(), age),
                rate(|glance, name| glance.target_rate(name, |target| target.0)),
                rate(|glance, name| glance.target_rate(name, |target| target.1)),
                rate(|glance, name| glance.target_rate(name, |target| target.2)),
            ]);
        }
        table.write(f, "          ")?;
        let spool = &now.spool;
        writeln!(
            f,
            "spool     {} needed of {}, {} segments in use, {} free",
            octets(spool.live_bytes),
            octets(spool.bytes),
            spool.segments,
            spool.free_segments
        )?;
        write!(f, "memory    {} resident", now.memory.resident_bytes.map_or("?".into(), octets))?;
        for budget in &now.memory.budgets {
            let (used, max) = (octets(budget.used_bytes as u64), octets(budget.max_bytes as u64));
            write!(f, "; {} {used} of {max}", budget.name)?;
        }
        writeln!(f)
    }
}

impl Glance<'_> {
    /// Delivered, deferred, rejected.
    fn target_rate(&self, name: &str, of: impl Fn((u64, u64, u64)) -> u64) -> f64 {
        self.rate(|stats| {
            let target = stats.queue.targets.iter().find(|target| target.target == name);
            target.map_or(0, |t| of((t.delivered_total, t.deferred_total, t.rejected_total)))
        })
    }
}

fn sessions(config: &Config, ip: &[String], limit: Option<usize>, json: bool) -> Done {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut left = limit.unwrap_or(usize::MAX);
    let mut from: Option<String> = None;
    let networks = (!ip.is_empty()).then(|| ip.join(","));
    let mut count = 0;
    while left > 0 {
        let path = Query::new("/v1/sessions")
            .with("ip", networks.as_ref())
            .with("limit", Some(left.min(1000)))
            .with("from", from.as_ref());
        let page: Sessions = client::get(config, &path.0)?;
        let mut table = Table::new([
            "ID", "SINCE", "PEER", "LISTENER", "TLS", "STATE", "MESSAGES", "RECEIVED", "SENT", "HELLO",
            "USER",
        ]);
        for session in page.sessions.iter().take(left) {
            match json {
                true => {
                    serde_json::to_writer(&mut out, session).map_err(io::Error::from)?;
                    writeln!(out)?;
                }
                false => table.row(columns(session)),
            }
        }
        if !json && !page.sessions.is_empty() {
            write!(out, "{}", Shown(&table))?;
        }
        let shown = page.sessions.len().min(left);
        (left, count) = (left - shown, count + shown);
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    if !json {
        writeln!(out, "{count} session{}", if count == 1 { "" } else { "s" })?;
    }
    Ok(out.flush()?)
}

fn columns(session: &Session) -> [String; 11] {
    let some = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let escaped =
        |text: &Option<String>| text.as_ref().map_or("-".into(), |text| Escaped(text.as_bytes()).to_string());
    let size = |octets_count: Option<u64>| octets_count.map_or("-".into(), octets);
    [
        session.id.clone(),
        session.since.clone(),
        session.peer.clone(),
        some(&session.listener),
        some(&session.tls),
        session.state.clone(),
        session.messages.to_string(),
        size(session.received_bytes),
        size(session.sent_bytes),
        escaped(&session.hello),
        escaped(&session.user),
    ]
}

fn trace(config: &Config, path: &str, json: bool) -> Done {
    let mut out = io::stdout().lock();
    let mut failed = None;
    client::lines(config, path, |line| {
        let written = match json {
            true => out.write_all(line).and_then(|()| out.write_all(b"\n")),
            false => match serde_json::from_slice::<TraceLine>(line) {
                Ok(line) => said(&line).map_or(Ok(()), |text| writeln!(out, "{text}")),
                Err(e) => writeln!(out, "(a line that cannot be read: {e})"),
            },
        };
        match written.and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(()), |e| Err(Trouble::Output(e)))
}

/// A line of a trace for people; nothing of what is for programs only.
fn said(line: &TraceLine) -> Option<String> {
    let text = line.text.as_deref().unwrap_or_default();
    let size = line.size.unwrap_or(0);
    let words = match line.event.as_str() {
        "client" if size > 0 && text.is_empty() => format!("C: ({size} octets, not shown)"),
        "client" if size > 0 => format!("C: {text} ({size} octets, not shown)"),
        "client" => format!("C: {text}"),
        "server" => format!("S: {text}"),
        "content" => format!("C: (content, {size} octets)"),
        "ignored" => format!("C: ({size} octets that are ignored)"),
        "begun" => "-- connected".into(),
        "joined" => "-- was connected before".into(),
        "tls" => format!("-- {text}"),
        "ended" => "-- disconnected".into(),
        "missed" => format!("-- {size} lines were missed"),
        "left_out" => format!("-- more sessions match than are shown ({size} so far)"),
        "over" => format!("-- over: {text}"),
        "ready" => "-- sessions are looked at from here on".into(),
        "pulse" => return None,
        other => format!("-- {other} {text}"),
    };
    let at = line.at.get(11..26).unwrap_or(&line.at);
    Some(match (&line.session, &line.peer) {
        (Some(session), Some(peer)) => format!("{at} {session:>7} {peer} {words}"),
        _ => format!("{at} {words}"),
    })
}

fn log_level(config: &Config, filter: Option<String>, time: Option<String>, is_json: bool) -> Done {
    let changed = filter.is_some();
    let level: LogLevel = match filter {
        None => client::get(config, "/v1/log-level")?,
        Some(filter) => client::put(config, "/v1/log-level", &LogLevel { filter, time, before: None })?,
    };
    if is_json {
        return json(Ok(level));
    }
    let until = match (&level.time, changed) {
        (Some(time), true) => format!(" for {time}"),
        (None, true) => " until the next start".into(),
        _ => String::new(),
    };
    let before = level.before.map(|before| format!(" (it was {before})")).unwrap_or_default();
    Ok(writeln!(io::stdout(), "{}{until}{before}", level.filter)?)
}

fn drain(config: &Config, order: Drain, no_wait: bool, is_json: bool) -> Done {
    let mut progress: Progress = client::post(config, "/v1/drain", &order)?;
    let pid = progress.pid;
    let mut said: Option<(Stage, Instant)> = None;
    let mut broken_count = 0;
    loop {
        let is_news =
            said.is_none_or(|(stage, at)| stage != progress.stage || at.elapsed() >= PROGRESS_SAID_INTERVAL);
        // The order is given; it is about to begin.
        let is_news = is_news && progress.stage != Stage::Ready;
        if is_news {
            said = Some((progress.stage, Instant::now()));
            match is_json {
                true => json(Ok(&progress))?,
                false => writeln!(io::stdout(), "{}", stage(&progress.stage))?,
            }
        }
        if no_wait {
            return match is_news || is_json {
                true => Ok(()),
                false => Ok(writeln!(io::stdout(), "the drain was ordered")?),
            };
        }
        std::thread::sleep(PROGRESS_INTERVAL);
        match client::ask(config, client::Method::GET, "/v1/stage", None) {
            Ok(answer) => (progress, broken_count) = (answer.parse()?, 0),
            // It listens no more: it has ended, or is about to.
            Err(Unanswered::Absent(_)) => break,
            // It stopped doing so while it was asked, or has too many connections for the moment: then it is asked again.
            Err(Unanswered::Broken(_)) if broken_count < BROKEN_MAX => broken_count += 1,
            Err(e) => return Err(e.into()),
        }
        // Another has taken its place.
        if progress.pid != pid {
            break;
        }
    }
    if !is_json {
        writeln!(
            io::stdout(),
            "process {pid} listens no more: it has ended, or ends; its exit code says how"
        )?;
    }
    Ok(())
}

fn stage(stage: &Stage) -> String {
    let s = |count: usize| if count == 1 { "" } else { "s" };
    match *stage {
        Stage::Starting => "starting".into(),
        Stage::Ready => "ready".into(),
        Stage::Draining { sessions, messages } => {
            format!(
                "draining: {sessions} session{}, {messages} message{} in the queue",
                s(sessions),
                s(messages)
            )
        }
        Stage::Stopping { messages } => format!("stopping: {messages} message{} in the queue", s(messages)),
    }
}

fn reload(config: &Config, is_json: bool) -> Done {
    let reloaded: Reloaded = client::post(config, "/v1/reload", &serde_json::json!({}))?;
    if is_json {
        return json(Ok(reloaded));
    }
    let mut out = io::stdout().lock();
    match reloaded.changed.is_empty() {
        true => writeln!(out, "nothing has changed")?,
        false => writeln!(out, "in force now: {}", reloaded.changed.join(", "))?,
    }
    if !reloaded.needs_restart.is_empty() {
        writeln!(out, "from the next start on: {}", reloaded.needs_restart.join(", "))?;
    }
    Ok(())
}

fn upgrade(config: &Config, is_json: bool) -> Done {
    if !is_json {
        writeln!(io::stdout(), "a new process is started; it is waited for until it serves")?;
    }
    let upgraded: Upgraded = client::post(config, "/v1/upgrade", &serde_json::json!({}))?;
    if is_json {
        return json(Ok(upgraded));
    }
    Ok(writeln!(io::stdout(), "{}", upgraded.message)?)
}

fn health(config: &Config, live: bool, is_json: bool) -> Done {
    let path = if live { "/livez" } else { "/readyz" };
    let answer = client::ask(config, client::Method::GET, path, None)?;
    let health: Health = match answer.status {
        client::UNAVAILABLE => serde_json::from_slice(&answer.body).map_err(|e| e.to_string())?,
        _ => answer.parse()?,
    };
    match is_json {
        true => json(Ok(&health))?,
        false if health.ok => writeln!(io::stdout(), "{}", if live { "alive" } else { "ready" })?,
        false => health.reasons.iter().try_for_each(|reason| writeln!(io::stdout(), "{reason}"))?,
    }
    if health.ok { Ok(()) } else { Err(Trouble::Said) }
}

/// Columns as wide as what is in them.
struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    fn new(heads: [&str; N]) -> Self {
        Table { rows: vec![heads.map(String::from)] }
    }

    fn row(&mut self, row: [String; N]) {
        self.rows.push(row);
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, indent: &str) -> fmt::Result {
        let width = |n: usize| self.rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        for row in &self.rows {
            f.write_str(indent)?;
            for (n, (text, width)) in row.iter().zip(widths).enumerate() {
                match n + 1 == N {
                    true => writeln!(f, "{text}")?,
                    false => write!(f, "{text:width$}  ")?,
                }
            }
        }
        Ok(())
    }
}

struct Shown<'a, const N: usize>(&'a Table<N>);

impl<const N: usize> Display for Shown<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f, "")
    }
}

fn octets(count: u64) -> String {
    ByteSize::b(count).to_string()
}

/// A time in its two largest units.
fn age(seconds: u64) -> String {
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_encoded() {
        let query = Query::new("/v1/trace")
            .with("ip", Some("::1/128,a&b"))
            .with("lines", None::<u64>)
            .with("for", Some("1h 5m"));
        assert_eq!(query.0, "/v1/trace?ip=%3A%3A1%2F128%2Ca%26b&for=1h%205m");
    }

    #[test]
    fn lines_of_a_trace_are_shown_as_a_dialogue() {
        let line = |event: &str, text: Option<&str>, size| {
            let (session, peer) = (Some("0.12".into()), Some("192.0.2.1:25".into()));
            let at = "2026-11-21T22:00:01.123456Z".into();
            said(&TraceLine { at, session, peer, event: event.into(), text: text.map(String::from), size })
        };
        let table = [
            (line("client", Some("AUTH PLAIN"), Some(17)), "C: AUTH PLAIN (17 octets, not shown)"),
            (line("client", Some(""), Some(17)), "C: (17 octets, not shown)"),
            (line("client", Some("QUIT"), None), "C: QUIT"),
            (line("server", Some("221 Bye"), None), "S: 221 Bye"),
            (line("content", None, Some(99)), "C: (content, 99 octets)"),
            (line("ended", None, None), "-- disconnected"),
        ];
        for (said, words) in table {
            assert_eq!(said.unwrap(), format!("22:00:01.123456    0.12 192.0.2.1:25 {words}"));
        }
        assert_eq!(line("pulse", None, None), None);
    }

    #[test]
    fn ages_are_short() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (3661, "1h 1m"), (90_061, "1day 1h")] {
            assert_eq!(age(seconds), text);
        }
    }
}
