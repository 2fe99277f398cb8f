//! `incoming queue`: what the operator sees of the queue, and does with it.
//!
//! Asks the gateway that runs with this configuration. Answers come in pages, which are shown as they come. What strangers wrote (paths,
//! reasons) is escaped where a terminal shows it; `--json` gives it as it is, one object a line.

use std::fmt::Display;
use std::io::{self, BufRead, BufWriter, ErrorKind, IsTerminal, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand, ValueEnum};
use incoming::admin::client;
use incoming::admin::queue::{Action, Filter, GiveOrder, List, Listed, Message, Ordered, Standing, Target};
use incoming::config::Config;
use incoming::mail::MessageId;
use incoming::telemetry::Escaped;

use crate::{FAULT, complain};

/// Messages asked for at once.
const PAGE: usize = 500;
/// Ids in one order.
const IDS: usize = 5000;

#[derive(Subcommand)]
pub enum QueueCommand {
    /// Lists what waits for delivery, in the order of arrival; of several shards one after the other.
    List {
        #[command(flatten)]
        filters: Filters,
        /// How many at most; 0: all.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        /// Only how many there are.
        #[arg(long)]
        count: bool,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Shows what is known of one: envelope, who is left where, attempts, the next one's time, the last reply.
    Show {
        /// Its message id.
        id: MessageId,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Writes a message's content to standard output as it would be delivered, octet for octet.
    Cat {
        /// Its message id.
        id: MessageId,
    },
    /// Has messages tried now that wait for their time; with --target only there.
    Retry(Chosen),
    /// Keeps messages from being delivered until they are released. A delivery under way goes on.
    Hold(Chosen),
    /// Lets held messages be delivered again.
    Release(Chosen),
    /// Removes messages for good: they are not delivered to whoever is left, no dead letter is kept and nobody is notified. With --target
    /// those are left alone of which something is left at another target too.
    Drop {
        #[command(flatten)]
        chosen: Chosen,
        /// With --target: also messages of which something is left at another target; they are dropped there too.
        #[arg(long, requires = "target")]
        everywhere: bool,
    },
}

/// Which messages: all that is said must hold.
#[derive(Args, Clone, Default)]
pub struct Filters {
    /// The sender: an address, a domain, a pattern with * and ?; "<>" is the null reverse-path.
    #[arg(long, value_name = "ADDRESS")]
    from: Option<String>,
    /// A recipient: the same.
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    /// Something is left for this target.
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// It stands so.
    #[arg(long, value_enum)]
    state: Option<State>,
    /// It arrived longer ago than this, as 2h or 3d.
    #[arg(long, value_name = "DURATION")]
    older_than: Option<humantime::Duration>,
    /// The last reason why it was not delivered has this text in it.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// It came from this address or network.
    #[arg(long, value_name = "CIDR")]
    peer: Option<String>,
    /// It takes more than this in the spool, as 10MB or 512KiB.
    #[arg(long, value_name = "SIZE")]
    size_over: Option<bytesize::ByteSize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// Waits for nothing but room.
    Backlog,
    /// Waits for its time.
    Deferred,
    /// The operator holds it.
    Held,
    /// A delivery has it.
    InDelivery,
}

/// Messages by their ids, by filters, or all.
#[derive(Args)]
pub struct Chosen {
    /// Message ids.
    #[arg(value_name = "ID", conflicts_with = "all")]
    ids: Vec<MessageId>,
    #[command(flatten)]
    filters: Filters,
    /// All that there are.
    #[arg(long)]
    all: bool,
    /// Does not ask whether that is meant.
    #[arg(long)]
    yes: bool,
    /// Why, for the message's history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    because: String,
    /// One JSON object with the counts.
    #[arg(long)]
    json: bool,
}

impl Filters {
    fn filter(self) -> Filter {
        Filter {
            from: self.from,
            to: self.to,
            target: self.target,
            state: self.state.map(|state| match state {
                State::Backlog => Standing::Backlog,
                State::Deferred => Standing::Deferred,
                State::Held => Standing::Held,
                State::InDelivery => Standing::InDelivery,
            }),
            older_than: self.older_than.map(|age| age.to_string().replace(' ', "")),
            reason: self.reason,
            peer: self.peer,
            size_over: self.size_over.map(|size| size.as_u64()),
        }
    }
}

/// Does what was asked, and says so.
pub fn run(command: QueueCommand, config: &Config) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = match command {
        QueueCommand::List { filters, limit, count, json } => {
            list(config, filters.filter(), (limit, count, json), &mut out)
        }
        QueueCommand::Show { id, json } => show(config, id, json, &mut out),
        QueueCommand::Cat { id } => cat(config, id, &mut out),
        QueueCommand::Retry(chosen) => order(config, (Action::Retry, false), chosen, &mut out),
        QueueCommand::Hold(chosen) => order(config, (Action::Hold, false), chosen, &mut out),
        QueueCommand::Release(chosen) => order(config, (Action::Release, false), chosen, &mut out),
        QueueCommand::Drop { chosen, everywhere } => {
            order(config, (Action::Drop, everywhere), chosen, &mut out)
        }
    };
    let done = match done {
        Ok(is_whole) => out.flush().map(|()| is_whole).map_err(Fault::from),
        Err(fault) => Err(fault),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAULT),
        // Whoever read the output has had enough of it.
        Err(Fault::Closed) => ExitCode::SUCCESS,
        Err(Fault::Said(words)) => {
            complain(&words);
            ExitCode::from(FAULT)
        }
    }
}

/// Why a command ends early.
enum Fault {
    /// Nobody reads what is written.
    Closed,
    Said(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Fault::Closed,
            _ => Fault::Said(format!("cannot write: {error}")),
        }
    }
}

impl From<String> for Fault {
    fn from(words: String) -> Self {
        Fault::Said(words)
    }
}

/// False: it is done, and not all is well.
type Outcome = Result<bool, Fault>;

fn list(
    config: &Config,
    filter: Filter,
    (limit, is_count, is_json): (usize, bool, bool),
    out: &mut impl Write,
) -> Outcome {
    if is_count {
        let (count, _) = count(config, &filter)?;
        match is_json {
            true => writeln!(out, "{}", serde_json::json!({ "count": count }))?,
            false => writeln!(out, "{count}")?,
        }
        return Ok(true);
    }
    let mut left = if limit == 0 { usize::MAX } else { limit };
    let mut cursor = None;
    let mut is_first = true;
    loop {
        let asked = List { filter: filter.clone(), limit: left.min(PAGE), count: false, cursor, until: None };
        let Listed { messages, next, .. } = client::post(config, "/v1/queue/list", &asked)?;
        for message in &messages {
            if is_json {
                serde_json::to_writer(&mut *out, message).map_err(io::Error::from)?;
                writeln!(out)?;
                continue;
            }
            if std::mem::take(&mut is_first) {
                writeln!(
                    out,
                    "{}",
                    Line(["ID", "AGE", "SIZE", "STATE", "TRIES", "NEXT", "FROM", "TO"].map(String::from))
                )?;
            }
            tell(message, out)?;
        }
        left -= messages.len().min(left);
        cursor = next;
        if cursor.is_none() {
            return Ok(true);
        }
        if left == 0 {
            if !is_json {
                out.flush()?;
                let _ =
                    writeln!(io::stderr(), "(there may be more: --limit 0 shows all, --count counts them)");
            }
            return Ok(true);
        }
        out.flush()?;
    }
}

/// How many there are, and what they are bounded by: what comes later is not among them.
fn count(config: &Config, filter: &Filter) -> Result<(usize, Vec<String>), Fault> {
    let mut asked = List { filter: filter.clone(), limit: 0, count: true, cursor: None, until: None };
    let mut sum = 0;
    loop {
        let Listed { count, next, until, .. } = client::post(config, "/v1/queue/list", &asked)?;
        sum += count;
        if next.is_none() {
            return Ok((sum, asked.until.unwrap_or(until)));
        }
        asked.cursor = next;
        asked.until.get_or_insert(until);
    }
}

/// A row of the table.
struct Line([String; 8]);

impl Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [id, age, size, state, tries, next, from, to] = &self.0;
        write!(f, "{id:12}  {age:>7}  {size:>9}  {state:11}  {tries:>5}  {next:>7}  {from:24}  {to}")
    }
}

fn tell(message: &Message, out: &mut impl Write) -> io::Result<()> {
    let (age, from, to) = match &message.envelope {
        None => ("?".into(), "?".into(), "?".into()),
        Some(envelope) => {
            let first = envelope.to.first().map(|to| escaped(to)).unwrap_or_default();
            let others = envelope.recipient_count.saturating_sub(1);
            let to = if others > 0 { format!("{first} and {others} more") } else { first };
            (span(unix_now().saturating_sub(envelope.arrived)), path(&envelope.from), to)
        }
    };
    let tries = message.targets.iter().map(|target| target.attempts).max().unwrap_or(0);
    let next = message.targets.iter().filter_map(|target| target.next_attempt).min();
    let next = match message.state {
        Standing::Deferred => next.map_or("now".into(), |next| span(next.saturating_sub(unix_now()))),
        Standing::Backlog => "now".into(),
        Standing::Held | Standing::InDelivery => "-".into(),
    };
    let line = [
        message.id.clone(),
        age,
        message.size.to_string(),
        message.state.as_str().into(),
        tries.to_string(),
        next,
        from,
        to,
    ];
    writeln!(out, "{}", Line(line))?;
    if let Some(hold) = &message.hold {
        let why = if hold.note.is_empty() { String::new() } else { format!(": {}", escaped(&hold.note)) };
        writeln!(out, "    held by {}{why}", escaped(&hold.by))?;
    }
    for target in &message.targets {
        if let Some(reason) = &target.reason {
            writeln!(out, "    {}: {}", name(target), escaped(reason))?;
        }
    }
    match &message.unreadable {
        None => Ok(()),
        Some(why) => writeln!(out, "    its record cannot be read: {}", escaped(why)),
    }
}

fn show(config: &Config, id: MessageId, is_json: bool, out: &mut impl Write) -> Outcome {
    let message: Message = client::get(config, &format!("/v1/queue/{id}"))?;
    if is_json {
        serde_json::to_writer(&mut *out, &message).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(message.unreadable.is_none());
    }
    let mut row = |key: &str, value: &dyn Display| writeln!(out, "{key:14} {value}");
    row("message", &message.id)?;
    row("state", &message.state.as_str())?;
    if let Some(hold) = &message.hold {
        let note = if hold.note.is_empty() { String::new() } else { format!(": {}", escaped(&hold.note)) };
        let since = time(hold.unix_millis / 1000);
        row("held", &format_args!("since {since} by {}{note}", escaped(&hold.by)))?;
    }
    row("in the spool", &format_args!("{} octets", message.size))?;
    if let Some(envelope) = &message.envelope {
        row("content", &format_args!("{} octets", envelope.content_size))?;
        let age = span(unix_now().saturating_sub(envelope.arrived));
        row("arrived", &format_args!("{} ({age} ago)", time(envelope.arrived)))?;
        let (peer, hello) = (envelope.peer, escaped(&envelope.hello));
        row("peer", &format_args!("{peer} as {hello} with {}", envelope.protocol))?;
        if let Some(user) = &envelope.authenticated {
            row("user", &escaped(user))?;
        }
        if !envelope.tags.is_empty() {
            row("tags", &envelope.tags.join(" "))?;
        }
        row("from", &path(&envelope.from))?;
        row("recipients", &envelope.recipient_count)?;
    }
    if let Some(why) = &message.unreadable {
        row("unreadable", &escaped(why))?;
    }
    for target in &message.targets {
        let next =
            target.next_attempt.map(|next| format!(", next attempt {}", time(next))).unwrap_or_default();
        writeln!(out, "\n{}: {}{next}", name(target), target.state.as_str())?;
        if target.recipients.is_empty() {
            writeln!(out, "    {} recipients, {} attempts", target.recipient_count, target.attempts)?;
        }
        for recipient in &target.recipients {
            writeln!(out, "    {}, {} attempts", escaped(&recipient.address), recipient.attempts)?;
            if let Some(reason) = &recipient.reason {
                writeln!(out, "        {}", escaped(reason))?;
            }
        }
    }
    Ok(message.unreadable.is_none())
}

fn cat(config: &Config, id: MessageId, out: &mut impl Write) -> Outcome {
    let mut written = Ok(());
    client::stream(config, &format!("/v1/queue/{id}/content"), |octets| {
        written = out.write_all(octets);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written?;
    Ok(true)
}

fn order(
    config: &Config,
    (action, everywhere): (Action, bool),
    chosen: Chosen,
    out: &mut impl Write,
) -> Outcome {
    let Chosen { ids, filters, all, yes, because, json } = chosen;
    let filter = filters.filter();
    let word = action.as_str();
    let only_target = Filter { target: filter.target.clone(), ..Filter::default() };
    let is_fitting = match (ids.is_empty(), filter.is_empty(), all) {
        (false, true, false) | (true, false, false) | (true, true, true) => true,
        (false, false, false) => action == Action::Retry && filter == only_target,
        _ => false,
    };
    if !is_fitting {
        let words = format!(
            "queue {word} takes message ids, or filters (see --help), or --all, and not two of them: say which messages are meant"
        );
        return Err(Fault::Said(words));
    }
    let mut until = None;
    if ids.is_empty() {
        // What comes after that was not meant.
        let (count, bounds) = count(config, &filter)?;
        if !yes && !is_meant((action, everywhere), count, &filter)? {
            return Ok(false);
        }
        until = Some(bounds);
    }
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let mut sum = Ordered::default();
    let mut chunks = ids.chunks(IDS);
    let mut given = GiveOrder {
        order: action,
        ids: chunks.next().unwrap_or_default().to_vec(),
        filter,
        all,
        until,
        everywhere,
        cursor: None,
        by: None,
        note: because,
    };
    loop {
        match client::post(config, "/v1/queue/order", &given) {
            Ok(done) => sum.add(done),
            Err(fault) if sum == Ordered::default() => return Err(Fault::Said(fault)),
            // What was done before is told with it.
            Err(fault) => sum.fault = Some(fault),
        }
        if sum.fault.is_some() {
            sum.next = None;
            break;
        }
        given.cursor = sum.next.take();
        if given.cursor.is_some() {
            continue;
        }
        match chunks.next() {
            Some(ids) => given.ids = ids.to_vec(),
            None => break,
        }
    }
    let Ordered { changed, unchanged, unknown, unrecorded, elsewhere, .. } = sum;
    if json {
        serde_json::to_writer(&mut *out, &sum).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        let past = match action {
            Action::Hold => "held",
            Action::Release => "released",
            Action::Drop => "dropped",
            Action::Retry => "to be tried now",
        };
        writeln!(out, "{past}: {changed}")?;
        let others = [
            (unchanged, "nothing to change"),
            (unknown, "not in the queue"),
            (elsewhere, "left alone, for something is left at another target (--everywhere drops them too)"),
            (unrecorded, "not recorded, for the disk is full or does not answer: a restart may forget it"),
        ];
        for (count, what) in others.iter().filter(|(count, _)| *count > 0) {
            writeln!(out, "{what}: {count}")?;
        }
    }
    if let Some(fault) = &sum.fault {
        out.flush()?;
        complain(&format!("not all of it was done: {fault}"));
    }
    Ok(sum.fault.is_none() && unrecorded == 0 && (ids.is_empty() || unknown == 0))
}

/// Whether so many messages are meant.
fn is_meant((action, everywhere): (Action, bool), count: usize, filter: &Filter) -> Result<bool, Fault> {
    let word = action.as_str();
    if !io::stdin().is_terminal() {
        let words =
            format!("queue {word}: {count} messages fit: add --yes if they are meant, or name their ids");
        return Err(Fault::Said(words));
    }
    let of_which = scope((action, everywhere), filter);
    write!(io::stderr(), "{word} {count} messages{of_which}? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Where an order by filters is in force, which is not where the filter may make believe.
fn scope((action, everywhere): (Action, bool), filter: &Filter) -> &'static str {
    match (action, &filter.target) {
        (_, None) => "",
        (Action::Retry, Some(_)) => " at this target",
        (Action::Drop, Some(_)) if !everywhere => {
            ", but for those of which something is left at another target too (--everywhere)"
        }
        _ => " at all targets",
    }
}

fn name(target: &Target) -> String {
    target.target.clone().unwrap_or_else(|| "target not decided yet".into())
}

fn escaped(text: &str) -> String {
    Escaped(text.as_bytes()).to_string()
}

fn path(path: &str) -> String {
    if path.is_empty() { "<>".into() } else { escaped(path) }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn time(unix: u64) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix.min(253_402_300_799)))
}

/// In the largest unit that fits, and the next one.
fn span(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(3);
    let (unit, name) = units[first];
    let more = units.get(first + 1).map(|(next, name)| (seconds % unit / next, name)).filter(|(n, _)| *n > 0);
    match more {
        Some((n, next)) => format!("{}{name}{n}{next}", seconds / unit),
        None => format!("{}{name}", seconds / unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short_and_say_enough() {
        let table = [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (61, "1m1s"),
            (3600, "1h"),
            (7320, "2h2m"),
            (90_000, "1d1h"),
        ];
        table.into_iter().for_each(|(seconds, expected)| assert_eq!(span(seconds), expected));
    }

    #[test]
    fn who_names_a_target_is_told_where_the_order_is_in_force() {
        let there = Filter { target: Some("a".into()), ..Filter::default() };
        let table = [
            ((Action::Retry, false), "this target"),
            ((Action::Hold, false), "all targets"),
            ((Action::Release, false), "all targets"),
            ((Action::Drop, false), "but for those"),
            ((Action::Drop, true), "all targets"),
        ];
        for (order, part) in table {
            assert!(scope(order, &there).contains(part), "{order:?}");
            assert_eq!(scope(order, &Filter::default()), "");
        }
    }
}
