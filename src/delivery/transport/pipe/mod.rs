//! Delivers to a command: its arguments from the envelope, the content on its standard input, and what it says as an outcome.
//!
//! One process for each recipient, one after the other, or one for many where the command has `{recipients}`. How many run at a time is the
//! target's concurrency.
//!
//! What becomes of a recipient:
//!
//! | the command | outcome |
//! |---|---|
//! | ends with 0, whether it has read its input or not | delivered |
//! | ends otherwise, and its output begins with a status code, as `5.1.1 no such user` | rejected or deferred, by the class of that |
//! | ends with 65, 67 or 68 of `sysexits.h` | rejected: that is a decision about the message or the recipient |
//! | ends with 64, 69, 72, 78, or 126 and 127 of a shell | deferred: the command, or what it needs, is not as it should be, whatever the message |
//! | ends with anything else, or by a signal | deferred |
//! | takes too long, and is killed with all that it has started | deferred |
//! | cannot be started | deferred |
//!
//! Invariants:
//! - no shell reads what others have written, and no address becomes an option (`template.rs`);
//! - a command starts when the whole content is there, undamaged (`input.rs`);
//! - whatever happens, no process of a run is left when its outcome is known, but those that a command left in the background when it ended by itself,
//!   and those that cannot be killed (`process.rs`).

mod input;
mod process;
mod template;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use input::Input;
use process::{Bell, Ended, Identity, Run};
use template::{Address, LooksLikeOption};

use crate::delivery::{Attempt, BlockingDelivery, Outcome};
use crate::mail::{Capabilities, Class, Domain, Status};

pub use input::LineEnds;
pub use process::User;
pub use template::CommandTemplate;

/// Where a command that is given by its name only, within a command, is looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Recipients of one process at most: their addresses are some 128 KiB of arguments, a sixteenth of what the kernel takes.
const RECIPIENTS_MAX: usize = 500;
/// How much of what a command says is kept in a reason, in octets.
const SAID_SIZE_MAX: usize = 512;

/// What a pipe is made of.
pub struct PipeSettings {
    /// The program and its arguments.
    pub command: CommandTemplate,
    /// As whom it runs; otherwise as the gateway does.
    pub user: Option<User>,
    /// Where it runs.
    pub folder: PathBuf,
    /// Variables of its environment, beside those that are always there.
    pub environment: BTreeMap<String, String>,
    /// How long it may take.
    pub timeout: Duration,
    /// A line `Return-Path:` is in front (RFC 5321 §4.4).
    pub return_path: bool,
    /// A line `Delivered-To:` is in front. Not where one process is for many recipients.
    pub delivered_to: bool,
    /// How lines end.
    pub line_ends: LineEnds,
    /// Where input that is too large for memory is kept while commands read it.
    pub scratch: PathBuf,
    /// The gateway's name.
    pub host: Domain,
}

/// Delivers to a command.
pub struct Pipe {
    settings: PipeSettings,
    identity: Option<Identity>,
    stop: Bell,
}

impl Pipe {
    /// From here on no process inherits a descriptor that the gateway was started with. Fails where the system gives no descriptor.
    pub fn new(settings: PipeSettings) -> io::Result<Self> {
        process::keep_descriptors();
        let identity = settings.user.map(Identity::of);
        Ok(Pipe { settings, identity, stop: Bell::new()? })
    }

    /// Runs the command for `recipients`: the same outcome for them all, and whether it is worth while to run it for others now.
    fn run(&self, attempt: &Attempt, recipients: &[Address], input: &Input) -> (Outcome, bool) {
        let settings = &self.settings;
        let arguments = match settings.command.expand(&attempt.envelope, attempt.id, recipients) {
            Ok(arguments) => arguments,
            // RFC 3463 §3.2, X.1.7 and X.1.3: bad syntax of the sender's or the recipient's address.
            Err(LooksLikeOption::Sender) => {
                return (Outcome::rejected("5.1.7 a sender's address that begins with - is not taken"), true);
            }
            Err(LooksLikeOption::Recipient) => {
                return (Outcome::rejected("5.1.3 an address that begins with - is not taken"), true);
            }
        };
        let program = settings.command.program();
        let run = || {
            let run = Run {
                program,
                arguments: &arguments,
                environment: self.environment(attempt, recipients),
                folder: &settings.folder,
                identity: self.identity,
                input: input.open()?,
            };
            run.run(settings.timeout, self.stop.as_fd())
        };
        match run() {
            Err(e) => (Outcome::unreachable(format!("cannot run {program}: {e}")), false),
            Ok((Ended::Itself(status), output)) => {
                let outcome = judge(status, &first_line(&output));
                // A shell, or what changes the user, has found nothing that runs.
                let did_run = !matches!(status.code(), Some(126 | 127));
                let is_worth = did_run || !outcome.is_of_target();
                (outcome, is_worth)
            }
            Ok((Ended::TimedOut, output)) => {
                let after = humantime::format_duration(settings.timeout);
                let reason = format!("{program} was killed after {after}{}", saying(&first_line(&output)));
                (Outcome::unreachable(reason), false)
            }
            Ok((Ended::Never, _)) => {
                let reason = format!("{program} goes on: it was killed, and did not end");
                (Outcome::unreachable(reason), false)
            }
            Ok((Ended::Stopped, _)) => {
                (Outcome::deferred(format!("{program} was killed: the gateway is ending")), false)
            }
        }
    }

    /// What the command finds in its environment, and nothing else.
    fn environment(&self, attempt: &Attempt, recipients: &[Address]) -> Vec<(&str, OsString)> {
        let given = self.settings.environment.iter().map(|(name, value)| (name.as_str(), value.into()));
        let mut environment = vec![
            ("PATH", PATH.into()),
            ("SENDER", attempt.envelope.reverse_path.as_str().into()),
            ("MESSAGE_ID", attempt.id.to_string().into()),
            ("CLIENT_ADDRESS", attempt.arrival.peer.ip().to_canonical().to_string().into()),
        ];
        if let ([recipient], false) = (recipients, self.settings.command.is_for_many()) {
            environment.push(("RECIPIENT", recipient.text().into()));
        }
        environment.extend(given);
        environment
    }

    fn input(&self, attempt: &Attempt, recipient: Option<&Address>) -> Result<Input, Outcome> {
        let settings = &self.settings;
        let mut head = String::new();
        if settings.return_path {
            head.push_str(&format!("Return-Path: <{}>\r\n", attempt.envelope.reverse_path));
        }
        if let Some(recipient) = recipient {
            head.push_str(&format!("Delivered-To: {}\r\n", recipient.text()));
        }
        Input::write(attempt, &head, settings.line_ends, &settings.scratch)
            .map_err(|e| Outcome::deferred(e.to_string()))
    }
}

impl BlockingDelivery for Pipe {
    /// What a command does with a message is not known: not that it passes on what the sender asks to be told, nor that it keeps to
    /// TLS. It can read any octets, if they are not changed for it.
    fn capabilities(&self) -> Capabilities {
        Capabilities { binary: self.settings.line_ends == LineEnds::Crlf, dsn: false, require_tls: false }
    }

    fn deliver(&self, attempt: &Attempt) -> Vec<Outcome> {
        let addresses: Vec<_> = attempt.paths().map(|path| Address::of(path, &self.settings.host)).collect();
        let mut outcomes: Vec<Option<Outcome>> = vec![None; addresses.len()];
        let mut places: Vec<usize> = (0..addresses.len()).collect();
        let mut size = 1;
        if self.settings.command.is_for_many() {
            size = RECIPIENTS_MAX;
            // One that cannot be an argument keeps none of the others from theirs.
            places.retain(|at| {
                let alone = std::slice::from_ref(&addresses[*at]);
                let refused = self.settings.command.expand(&attempt.envelope, attempt.id, alone);
                let is_good = refused != Err(LooksLikeOption::Recipient);
                if !is_good {
                    let reason = "5.1.3 an address that begins with - is not taken";
                    outcomes[*at] = Some(Outcome::rejected(reason));
                }
                is_good
            });
        }
        let mut common = None;
        let mut end = None;
        for places in places.chunks(size) {
            if self.stop.has_rung() {
                end = Some(Outcome::deferred("not tried: the gateway is ending"));
            }
            let outcome = end.clone().unwrap_or_else(|| {
                let recipients: Vec<_> = places.iter().map(|at| addresses[*at].clone()).collect();
                let own = self.settings.delivered_to.then(|| self.input(attempt, recipients.first()));
                let input = match &own {
                    Some(own) => own,
                    None => common.get_or_insert_with(|| self.input(attempt, None)),
                };
                match input {
                    Err(outcome) => outcome.clone(),
                    Ok(input) => {
                        let (outcome, is_worth) = self.run(attempt, &recipients, input);
                        if !is_worth {
                            // Those who come after it are not to wait as long again.
                            end = Some(outcome.clone());
                        }
                        outcome
                    }
                }
            });
            places.iter().for_each(|at| outcomes[*at] = Some(outcome.clone()));
        }
        outcomes.into_iter().map(|outcome| outcome.expect("each is in a chunk, or was refused")).collect()
    }

    fn stop(&self) {
        self.stop.ring();
    }
}

/// What a command that has ended by itself means.
fn judge(status: ExitStatus, said: &str) -> Outcome {
    let Some(code) = status.code() else {
        let signal = status.signal().unwrap_or_default();
        return Outcome::deferred(format!("killed by signal {signal}{}", saying(said)));
    };
    if code == 0 {
        return if said.is_empty() { Outcome::delivered() } else { Outcome::delivered_saying(said) };
    }
    match Status::leading(said).map(|status| status.class) {
        Some(Class::Permanent) => return Outcome::rejected(format!("{said} (exit code {code})")),
        Some(Class::Temporary) => return Outcome::deferred(format!("{said} (exit code {code})")),
        Some(Class::Success) | None => {}
    }
    // The names are those of sysexits.h.
    let rejected = |status: &str, name: &str| Outcome::rejected(format!("{status} {name}{}", saying(said)));
    let deferred = |name: &str| Outcome::deferred(format!("exit code {code} ({name}){}", saying(said)));
    let unreachable = |name: &str| Outcome::unreachable(format!("exit code {code} ({name}){}", saying(said)));
    match code {
        64 => unreachable("usage error"),
        65 => rejected("5.6.0", "data format error"),
        66 => deferred("cannot open input"),
        67 => rejected("5.1.1", "user unknown"),
        68 => rejected("5.1.2", "host name unknown"),
        69 => unreachable("service unavailable"),
        70 => deferred("internal software error"),
        71 => deferred("system error"),
        72 => unreachable("critical system file missing"),
        73 => deferred("cannot create output file"),
        74 => deferred("input/output error"),
        75 => deferred("temporary failure"),
        76 => deferred("remote error in protocol"),
        77 => deferred("permission denied"),
        78 => unreachable("configuration error"),
        126 => unreachable("not executable"),
        127 => unreachable("not found"),
        _ => Outcome::deferred(format!("exit code {code}{}", saying(said))),
    }
}

fn saying(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

/// The first line with anything in it, without control characters, and not all of a long one.
fn first_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines = text.lines().map(str::trim);
    let line = lines.into_iter().find(|line| !line.is_empty()).unwrap_or_default();
    let mut line = line.replace(char::is_control, "?");
    line.truncate(line.floor_char_boundary(SAID_SIZE_MAX));
    line
}

#[cfg(test)]
mod tests;
