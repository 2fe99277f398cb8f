//! A story as people read it: a line for each event, then one for each recipient. Times are UTC, with how far from now.
//!
//! What strangers wrote is escaped.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::story::{Event, How, LetterState, Missing, Outcome, Reason, Standing, State, Story, What};
use crate::mail::MessageId;
use crate::telemetry::Escaped;

/// A story, told now.
pub struct Shown<'a> {
    pub story: &'a Story,
    /// Milliseconds since 1970.
    pub now: u64,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shown { story, now } = self;
        writeln!(f, "{}: {}", story.message_id, headline(story))?;
        if let Some(id) = &story.resent_from {
            writeln!(
                f,
                "It is the dead letter of {id}, sent again: `incoming why {id}`. Peer and hello are those of then."
            )?;
        }
        if let Some(id) = &story.notification_about {
            writeln!(f, "It tells the sender of {id} what became of that message: `incoming why {id}`.")?;
        }
        if story.log.is_none() {
            writeln!(f, "Its records in the spool were used again: this is what its dead letter says.")?;
        } else if story.begins_late {
            writeln!(
                f,
                "It was moved in the spool, and records from before were used again: earlier attempts are counted, and not told."
            )?;
        }
        if story.unsettled {
            writeln!(
                f,
                "The gateway used files again while they were read: something may be missing. Ask again."
            )?;
        }
        writeln!(f)?;
        for event in &story.events {
            self.write_event(f, event)?;
        }
        writeln!(f, "\nNow, {}:", date(now / 1000))?;
        for standing in &story.recipients {
            self.write_standing(f, standing)?;
        }
        Ok(())
    }
}

fn headline(story: &Story) -> String {
    let left = |standing: &&Standing| matches!(standing.how, How::Waiting { .. });
    let (left, of) = (story.recipients.iter().filter(left).count(), story.recipients.len());
    let left = format!("{left} of {of} deliveries outstanding");
    match story.state {
        State::Waiting => match story.gateway_runs {
            Some(false) => {
                format!("waiting, {left}; no gateway runs, and nothing happens until one is started")
            }
            _ => format!("waiting, {left}"),
        },
        State::InDelivery => format!("in delivery, {left}"),
        State::Held => format!("held by the operator, {left}"),
        State::Delivered => "delivered".into(),
        State::DeadLetter => "a dead letter".into(),
        State::SentAgain => "given up, and sent again as another message".into(),
        State::Dropped => "dropped by the operator".into(),
        State::Damaged => "lost to damage on the disk".into(),
        State::Done => "done".into(),
    }
}

impl Shown<'_> {
    fn write_event(&self, f: &mut fmt::Formatter<'_>, event: &Event) -> fmt::Result {
        let when = event.unix_millis.map_or_else(|| "-".into(), date_millis);
        let mut line = |word: &str, text: String| writeln!(f, "{when:24}  {word:9}  {text}");
        let at = |target: &Option<String>| target.as_deref().map(|name| format!("at {name}"));
        match &event.what {
            What::Connected { .. } => line("connected", self.came()),
            What::Accepted { waited_millis, number } => {
                line("accepted", self.accepted(*waited_millis, *number))
            }
            What::Attempt { target, duration_millis, recipients } => {
                let took = time(Duration::from_millis(u64::from(*duration_millis)));
                line("attempt", format!("{}, {took}", at(target).unwrap_or_else(|| "made".into())))?;
                self.write_outcomes(f, recipients)
            }
            What::NotTried { target, recipients } => {
                line("not tried", at(target).unwrap_or_else(|| "it could not be read".into()))?;
                self.write_outcomes(f, recipients)
            }
            What::Order { order, by, note, target } => {
                let by = format!("by {}", escaped(by));
                let words = [at(target), Some(by), (!note.is_empty()).then(|| escaped(note))];
                line(order, words.into_iter().flatten().collect::<Vec<_>>().join(", "))
            }
            What::Discarded { kept_in } => {
                line("discarded", format!("its records were damaged; what is left of them is in {kept_in}"))
            }
            What::GivenUp { target, recipients } => {
                line("given up", at(target).unwrap_or_default())?;
                self.write_outcomes(f, recipients)
            }
            What::SentAgain { as_message } => line("sent again", format!("as {as_message}")),
        }
    }

    /// Who brought it.
    fn came(&self) -> String {
        let arrival = &self.story.shown.arrival;
        let mut text = format!("from {}", arrival.peer);
        if let Some(name) = &arrival.client_name {
            text += &format!(" ({})", escaped(name));
        }
        let protocol = arrival.keyword(self.story.shown.envelope.smtputf8);
        text += &format!(", hello {}, {protocol}", escaped(&arrival.hello));
        if let Some(tls) = &arrival.tls {
            text += &format!(", {} with {}", tls.version, escaped(&tls.cipher));
            if let Some(client) = &tls.client {
                text += &format!(", certificate of {}", escaped(&client.name));
            }
        }
        if let Some(user) = &arrival.authenticated {
            text += &format!(", authenticated as {}", escaped(user));
        }
        text
    }

    fn accepted(&self, waited_millis: Option<u32>, number: Option<u16>) -> String {
        let Story { shown, size, log, .. } = self.story;
        let from = escaped(shown.envelope.reverse_path.as_str());
        let count = shown.envelope.forward_paths.len();
        let mut text = match waited_millis {
            Some(waited) => {
                format!("{} later, ", time(Duration::from_millis(waited.into())))
            }
            None => String::new(),
        };
        if let Some(number) = number.filter(|number| *number > 1) {
            text += &format!("message {number} of its session, ");
        }
        text += &format!("from <{from}> to {}, {size} octets", crate::inspect::counted(count, "recipient"));
        if waited_millis.is_none() && self.story.notification_about.is_none() {
            text += &format!("; {}", self.came());
        }
        if !shown.arrival.tags.is_empty() {
            let tags: Vec<_> = shown.arrival.tags.iter().map(|tag| tag.as_str()).collect();
            text += &format!(", tags {}", tags.join(" "));
        }
        if let Some(log) = log {
            text += &format!("; in log {log}");
        }
        text
    }

    fn write_outcomes(&self, f: &mut fmt::Formatter<'_>, outcomes: &[Outcome]) -> fmt::Result {
        for outcome in outcomes {
            let Outcome { forward_path, outcome: how, attempts, reply, next_attempt, .. } = outcome;
            let to = escaped(forward_path);
            let reply = if reply.is_empty() { String::new() } else { format!(": {}", escaped(reply)) };
            let words = match *how {
                "delivered" => format!("delivered{reply}"),
                "given_up" => format!("given up after {}{reply}", attempts_made(*attempts)),
                how => {
                    let next = match next_attempt {
                        0 => String::new(),
                        next => format!(", again at {}", date(*next)),
                    };
                    format!("{how}, {} so far{next}{reply}", attempts_made(*attempts))
                }
            };
            writeln!(f, "{:37}<{to}> {words}", "")?;
        }
        Ok(())
    }

    fn write_standing(&self, f: &mut fmt::Formatter<'_>, standing: &Standing) -> fmt::Result {
        let to = escaped(&standing.forward_path);
        let at = standing.target.as_deref().map_or_else(String::new, |name| format!(" at {name}"));
        write!(f, "  <{to}>{at}: ")?;
        match &standing.how {
            How::Delivered { unix_millis, reply } => {
                write!(f, "delivered at {}", self.moment(unix_millis / 1000))?;
                if reply.is_empty() { writeln!(f) } else { writeln!(f, ": {}", escaped(reply)) }
            }
            How::Waiting { .. } => self.write_waiting(f, &standing.how),
            How::GivenUp { unix_millis, attempts, reason, letter } => {
                let (when, attempts) = (self.moment(unix_millis / 1000), attempts_made(*attempts));
                writeln!(f, "given up at {when} after {attempts}: {}", escaped(reason))?;
                writeln!(f, "      {}", self.letter(letter))
            }
            How::Dropped => writeln!(f, "dropped"),
            How::Damaged => writeln!(f, "not delivered: the message was damaged on the disk"),
            How::Done => writeln!(f, "done; how is not known any more"),
        }
    }

    fn write_waiting(&self, f: &mut fmt::Formatter<'_>, how: &How) -> fmt::Result {
        let How::Waiting { next_attempt, attempt, reason, held, gives_up_after, last_attempt } = how else {
            return Ok(());
        };
        let due = next_attempt.filter(|next| next.saturating_mul(1000) > self.now);
        match (held, due, self.story.gateway_runs) {
            (true, ..) => write!(f, "held: attempt {attempt} is made when it is released")?,
            (_, Some(next), runs) => {
                // What it has hastened is in its memory only: the target is back, or somebody has ordered it.
                let bound = if runs == Some(true) { " at the latest" } else { "" };
                write!(f, "attempt {attempt} is made at {}{bound}", self.moment(next))?;
            }
            (_, None, Some(false)) => write!(f, "attempt {attempt} is made when a gateway is started")?,
            (_, None, _) => {
                write!(f, "attempt {attempt} is due: it is being made, or waits for a place at the target")?;
            }
        }
        write!(f, "; given up when an attempt fails later than {}", self.moment(*gives_up_after))?;
        if let Some(last) = last_attempt {
            write!(f, ", or when attempt {last} fails")?;
        }
        match reason.as_deref().filter(|reason| !reason.is_empty()) {
            Some(reason) => writeln!(f, "; the last one said: {}", escaped(reason)),
            None => writeln!(f),
        }
    }

    fn letter(&self, letter: &LetterState) -> String {
        let id = &self.story.message_id;
        match letter {
            LetterState::Kept { path, is_to_be_sent_again: false } => {
                format!("its dead letter is in {path}: `incoming dead resend {id}` sends it again")
            }
            LetterState::Kept { path, is_to_be_sent_again: true } => {
                format!("its dead letter is in {path}, and is to be sent again")
            }
            LetterState::SentAgain { as_messages } => {
                let whys = as_messages.iter().map(|id| format!("`incoming why {id}`"));
                format!("sent again as {}: {}", as_messages.join(", "), whys.collect::<Vec<_>>().join(", "))
            }
            LetterState::Removed => {
                "its dead letter is not there any more: removed by hand, or for its age".into()
            }
            LetterState::Unreadable { error } => {
                format!("whether its dead letter is there is not known: {error}")
            }
        }
    }

    /// A time, and how far it is.
    fn moment(&self, unix_time: u64) -> String {
        let now = self.now / 1000;
        let far = match unix_time.checked_sub(now) {
            Some(0) => "now".into(),
            Some(ahead) => format!("in {}", time(Duration::from_secs(ahead))),
            None => format!("{} ago", time(Duration::from_secs(now - unix_time))),
        };
        format!("{} ({far})", date(unix_time))
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = &self.message_id;
        write!(f, "nobody here knows the message {id}. ")?;
        match self.reason {
            Reason::InMemory => {
                f.write_str("The queue is in memory (spool.queue) and has no records on a disk: what waits, the running gateway knows")?;
            }
            Reason::NoSuchLog => {
                let prefix = &id[..MessageId::LOG_DIGITS.min(id.len())];
                match self.looked.is_empty() {
                    true => write!(f, "There is no spool in {}", self.spool())?,
                    false => write!(
                        f,
                        "No log in {} has ids that begin with {prefix} (looked into {}): another gateway accepted it, or the log was removed when its shard was gone and nothing was left in it",
                        self.spool(),
                        self.looked.join(", ")
                    )?,
                }
            }
            Reason::NotYetGiven => {
                write!(f, "Log {} of {} has given no such number yet", self.log(), self.spool())?;
            }
            Reason::NotAccepted => {
                write!(f, "Its record in log {} does not count: the sender was not told 250", self.log())?;
            }
            Reason::NotAMessage(kind) => {
                write!(
                    f,
                    "In log {} the number is that of another record ({kind}), not of a message",
                    self.log()
                )?;
            }
            Reason::Recycled => {
                write!(f, "It is done, if it ever was: log {} has used its records again", self.log())?;
                match self.remembers_since() {
                    Some(since) => write!(f, ", and remembers messages since {}", date(since))?,
                    None => f.write_str(", and remembers none")?,
                }
            }
            Reason::NotThere => write!(
                f,
                "Its record in log {} is missing or damaged: `incoming spool verify` says more",
                self.log()
            )?,
        }
        match &self.sent[..] {
            [] => write!(f, ". In {} there is no dead letter of it either", self.dead())?,
            sent => {
                f.write_str(". It was a dead letter, sent again as")?;
                for sent in sent {
                    write!(f, " {} ({})", sent.as_id, date(sent.unix_time))?;
                }
            }
        }
        if let Some(error) = &self.unreadable {
            write!(f, "; {error}")?;
        }
        if self.is_unsettled() {
            f.write_str(". The gateway used files again while they were read: ask again")?;
        }
        Ok(())
    }
}

impl Missing {
    fn log(&self) -> &str {
        self.looked.first().map_or("", String::as_str)
    }
}

fn attempts_made(count: u32) -> String {
    crate::inspect::counted(count as usize, "attempt")
}

fn escaped(text: &str) -> String {
    Escaped(text.as_bytes()).to_string()
}

/// The two largest parts of a time.
fn time(time: Duration) -> String {
    let whole = match time.as_secs() {
        0 => Duration::from_millis(time.as_millis() as u64),
        seconds => Duration::from_secs(seconds),
    };
    let text = humantime::format_duration(whole).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// As RFC 3339 writes it, in UTC; of one beyond its years the seconds.
fn date(unix_time: u64) -> String {
    match rfc3339(Duration::from_secs(unix_time)) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => format!("@{unix_time}"),
    }
}

fn date_millis(unix_millis: u64) -> String {
    match rfc3339(Duration::from_millis(unix_millis)) {
        Some(time) => humantime::format_rfc3339_millis(time).to_string(),
        None => format!("@{}", unix_millis / 1000),
    }
}

fn rfc3339(since: Duration) -> Option<SystemTime> {
    const YEAR_10000: u64 = 253_402_300_800;
    (since.as_secs() < YEAR_10000).then(|| SystemTime::UNIX_EPOCH + since)
}
