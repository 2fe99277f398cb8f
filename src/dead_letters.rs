//! `incoming dead`: what the operator does with dead letters.
//!
//! Works on the folder, whether a gateway runs or not: letters are read and removed here, and a request to send one again is left
//! for the gateway. A letter that cannot be read is named on standard error, the others are served all the same, and the exit code
//! is 1.
//!
//! What strangers wrote (paths, reasons) is escaped where a terminal shows it.

use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use incoming::config::Config;
use incoming::delivery::DeadLetters;
use incoming::delivery::dead::{Letter, RESEND_INTERVAL, ReadError};
use incoming::mail::MessageId;
use incoming::shard;
use incoming::telemetry::Escaped;

use crate::{FAULT, complain};

#[derive(Subcommand)]
pub enum DeadCommand {
    /// Lists them: one line for each.
    List {
        /// One JSON object a line: what dead.json says, and whether it is to be sent again.
        #[arg(long)]
        json: bool,
    },
    /// Shows what is known of one.
    Show {
        /// Its message id.
        id: MessageId,
    },
    /// Has them sent again, to the recipients that were given up, as new messages.
    #[command(visible_alias = "retry")]
    Resend(Chosen),
    /// Removes them.
    #[command(visible_alias = "drop")]
    Remove {
        /// Their message ids.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<MessageId>,
    },
}

/// Some letters or all.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Chosen {
    /// Their message ids.
    #[arg(value_name = "ID")]
    ids: Vec<MessageId>,
    /// All that there are.
    #[arg(long)]
    all: bool,
}

/// Does what was asked, and says so.
pub fn run(command: DeadCommand, config: &Config) -> ExitCode {
    let mut desk = Desk {
        dead: DeadLetters::open(&config.dead_dir()),
        out: BufWriter::new(io::stdout().lock()),
        has_faults: false,
    };
    let done = match command {
        DeadCommand::List { json } => desk.list(json),
        DeadCommand::Show { id } => desk.show(id),
        DeadCommand::Resend(Chosen { ids, all }) => desk.resend(ids, all, config),
        DeadCommand::Remove { ids } => desk.remove(&ids),
    };
    match done.and_then(|()| desk.out.flush()) {
        // Whoever read the output has had enough of it.
        Err(e) if e.kind() != ErrorKind::BrokenPipe => desk.fault(&format_args!("cannot write: {e}")),
        _ => {}
    }
    if desk.has_faults { ExitCode::from(FAULT) } else { ExitCode::SUCCESS }
}

/// The letters, and where the answer goes. The errors of its methods are those of writing the answer.
struct Desk<W: Write> {
    dead: DeadLetters,
    out: W,
    has_faults: bool,
}

impl<W: Write> Desk<W> {
    fn fault(&mut self, fault: &dyn Display) {
        complain(fault);
        self.has_faults = true;
    }

    fn ids(&mut self) -> Vec<MessageId> {
        self.dead.ids().unwrap_or_else(|e| {
            let dir = self.dead.dir().display().to_string();
            self.fault(&format_args!("{dir}: {e}"));
            Vec::new()
        })
    }

    fn list(&mut self, json: bool) -> io::Result<()> {
        let ids = self.ids();
        let id_size = ids.iter().map(|id| id.to_string().len()).max().unwrap_or(0);
        if !json && !ids.is_empty() {
            let heads = ("ID", "GIVEN UP", "FROM", "TO");
            writeln!(
                self.out,
                "{:id_size$}  {:20}  {:24}  {:24}  LAST REASON",
                heads.0, heads.1, heads.2, heads.3
            )?;
        }
        for id in ids {
            let letter = match self.dead.read(id) {
                Ok(letter) => letter,
                // It went while they were listed.
                Err(ReadError::Gone(_)) => continue,
                Err(e) => {
                    self.fault(&e);
                    continue;
                }
            };
            let is_requested = self.dead.requests().has(id);
            match json {
                true => writeln!(self.out, "{}", letter.line(is_requested))?,
                false => writeln!(self.out, "{:id_size$}  {}", id, columns(&letter, is_requested))?,
            }
        }
        Ok(())
    }

    fn show(&mut self, id: MessageId) -> io::Result<()> {
        let letter = match self.dead.read(id) {
            Ok(letter) => letter,
            Err(e) => {
                self.fault(&e);
                return Ok(());
            }
        };
        let path = self.dead.path(id).join("message.eml");
        let Letter { envelope, arrival, .. } = &letter;
        let out = &mut self.out;
        writeln!(out, "message id  {id}")?;
        writeln!(out, "content     {}, {} octets", path.display(), letter.size)?;
        writeln!(out, "from        <{}>", escaped(envelope.reverse_path.as_str()))?;
        let hello = escaped(&arrival.hello);
        let (peer, protocol) = (arrival.peer, arrival.keyword(envelope.smtputf8));
        writeln!(out, "arrived     {} from {peer}, {hello}, with {protocol}", date(arrival.unix_time))?;
        for recipient in &letter.recipients {
            let to = escaped(letter.forward_path(recipient).as_str());
            let (when, attempts) = (date(recipient.unix_time), recipient.attempts);
            let s = if attempts == 1 { "" } else { "s" };
            writeln!(
                out,
                "given up    <{to}> at {when} after {attempts} attempt{s}: {}",
                escaped(&recipient.reason)
            )?;
        }
        if self.dead.requests().has(id) {
            writeln!(out, "it is to be sent again")?;
        }
        if let Err(e) = self.dead.open_content(&letter) {
            self.fault(&e);
        }
        Ok(())
    }

    fn resend(&mut self, ids: Vec<MessageId>, all: bool, config: &Config) -> io::Result<()> {
        let mut ids = if all { self.ids() } else { ids };
        let mut recipients = 0;
        ids.retain(|id| {
            let readable = self.dead.read(*id).and_then(|letter| {
                self.dead.open_content(&letter)?;
                Ok(letter.recipients.len())
            });
            match readable {
                Ok(count) => recipients += count,
                Err(ReadError::Gone(_)) if all => return false,
                Err(e) => {
                    self.fault(&e);
                    return false;
                }
            }
            true
        });
        if ids.is_empty() {
            return if self.has_faults { Ok(()) } else { writeln!(self.out, "there are no dead letters") };
        }
        if let Err(e) = self.dead.requests().add(&ids) {
            let dir = self.dead.dir().display().to_string();
            self.fault(&format_args!("{dir}: cannot leave the request: {e}"));
            return Ok(());
        }
        let interval = humantime::format_duration(RESEND_INTERVAL);
        let when = match shard::is_locked(&config.data) {
            Ok(true) => format!("by the running gateway, which begins within {interval}"),
            Ok(false) => "at the next start of the gateway".into(),
            Err(_) => format!("by the gateway: within {interval} if it runs, else at its next start"),
        };
        for id in &ids {
            writeln!(self.out, "{id}")?;
        }
        let (count, s) = (ids.len(), |count| if count == 1 { "" } else { "s" });
        let to = s(recipients);
        writeln!(self.out, "{count} dead letter{}, {recipients} recipient{to}: sent again {when}", s(count))
    }

    fn remove(&mut self, ids: &[MessageId]) -> io::Result<()> {
        for id in ids {
            match self.dead.remove(*id) {
                Ok(true) => writeln!(self.out, "{id} removed")?,
                Ok(false) => self.fault(&ReadError::Gone(self.dead.path(*id))),
                Err(e) => self.fault(&ReadError::Failed(self.dead.path(*id), e)),
            }
        }
        Ok(())
    }
}

/// When, from whom, to whom, and why not: of the recipient given up last.
fn columns(letter: &Letter, is_requested: bool) -> String {
    let last = letter.recipients.iter().max_by_key(|r| r.unix_time).expect("a letter has a recipient");
    let from = format!("<{}>", escaped(letter.envelope.reverse_path.as_str()));
    let mut to = format!("<{}>", escaped(letter.forward_path(last).as_str()));
    if letter.recipients.len() > 1 {
        to += &format!(" +{}", letter.recipients.len() - 1);
    }
    let mark = if is_requested { "(to be sent again) " } else { "" };
    format!("{:20}  {from:24}  {to:24}  {mark}{}", date(last.unix_time), escaped(&last.reason))
}

fn escaped(text: &str) -> Escaped<'_> {
    Escaped(text.as_bytes())
}

/// A time as RFC 3339 writes it, in UTC; of one beyond its years the seconds.
fn date(unix_time: u64) -> String {
    const YEAR_10000: u64 = 253_402_300_800;
    if unix_time >= YEAR_10000 {
        return format!("@{unix_time}");
    }
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(unix_time)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_any_number_are_shown() {
        let table = [
            (0, "1970-01-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
            (253_402_300_800, "@253402300800"),
            (u64::MAX, "@18446744073709551615"),
        ];
        for (unix_time, text) in table {
            assert_eq!(date(unix_time), text);
        }
    }

    #[test]
    fn what_strangers_wrote_moves_no_cursor() {
        let record = r#"{"message_id":"000000111","size":1,
            "envelope":{"reverse_path":"","forward_paths":["a@e.org","b@e.org"],"body":"7BIT","smtputf8":false},
            "arrival":{"peer":"192.0.2.1:25","hello":"e.net","protocol":"SMTP","unix_time":0},
            "recipients":[
                {"index":1,"forward_path":"b@e.org","attempts":1,"reason":"no\u001b[2J\nat all","unix_time":8},
                {"index":0,"forward_path":"a@e.org","attempts":1,"reason":"earlier","unix_time":7}]}"#;
        let letter = Letter::parse("000000111".parse().unwrap(), record.as_bytes()).unwrap();
        let line = columns(&letter, true);
        assert!(line.starts_with("1970-01-01T00:00:08Z  <>  "), "{line}");
        assert!(
            line.contains("<b@e.org> +1 ") && line.ends_with(r"(to be sent again) no\x1b[2J\x0aat all"),
            "{line}"
        );
    }
}
