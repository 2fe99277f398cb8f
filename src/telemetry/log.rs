//! The log: events of `tracing` as lines on standard error, cheap enough for one line per message at full load.
//!
//! A line is appended to a buffer in memory; a thread writes the buffer out at most a tenth of a second later, or as soon as
//! 64 KiB wait. A full buffer is written out by whoever logs next: the log loses no line and has a bound, and a reader of the log
//! that does not read slows the gateway down.
//!
//! Invariants:
//! - lines come out whole and in the order in which they were logged;
//! - what was logged is written when [`Guard`] is dropped, and before the words of a panic, which are the last.
//!
//! Strings of peers are logged through [`super::Escaped`] only.

use std::fmt;
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::limits::{LOG_BUFFER_SIZE_MAX, LOG_WRITE_SIZE};

/// How long a line may wait in memory.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Whom the lines are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// People: one line of text per event.
    Human,
    /// Programs: one JSON object per line and event.
    Json,
}

/// The least important level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What an operator must see to.
    Error,
    /// What an operator should know of.
    Warn,
    /// A line per message accepted and per attempt.
    Info,
    /// Sessions.
    Debug,
    /// Everything.
    Trace,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => LevelFilter::ERROR,
            Level::Warn => LevelFilter::WARN,
            Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
            Level::Trace => LevelFilter::TRACE,
        }
    }
}

/// The log of this process, once it was started.
static STARTED: OnceLock<Arc<Lines>> = OnceLock::new();

/// Starts the log of the process: once, before anything is logged. Lines are written until the guard is dropped.
///
/// Call it with signals blocked, or with no handlers that log.
///
/// # Panics
/// When it is called again.
pub fn start(format: Format, level: Level) -> io::Result<Guard> {
    let lines = Arc::new(Lines::new(Box::new(io::stderr())));
    assert!(STARTED.set(lines.clone()).is_ok(), "the log of a process is started once");
    let writer = lines.clone();
    let text = LevelFilter::from(level).to_string();
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(EnvFilter::new(&text)).with_ansi(false).with_timer(Clock);
    let put: Put = match format {
        Format::Human => {
            let subscriber = subscriber.compact().with_writer(Appender(writer)).with_filter_reloading();
            let handle = subscriber.reload_handle();
            subscriber.init();
            Box::new(move |filter| handle.reload(filter).map_err(|e| e.to_string()))
        }
        Format::Json => {
            let subscriber = subscriber.json().flatten_event(true);
            let subscriber = subscriber.with_writer(Appender(writer)).with_filter_reloading();
            let handle = subscriber.reload_handle();
            subscriber.init();
            Box::new(move |filter| handle.reload(filter).map_err(|e| e.to_string()))
        }
    };
    let _ = CHOICE.set(Choice::new(put, text));
    install_panic_hook(format, lines.clone());
    Guard::start(lines)
}

/// What is logged, while the process runs.
struct Choice {
    put: Put,
    levels: Mutex<Levels>,
    /// The levels have changed.
    changed: Condvar,
}

/// What is logged: the one in force is the temporary one, if there is one.
#[derive(Debug, PartialEq, Eq)]
struct Levels {
    permanent: String,
    /// Until then.
    temporary: Option<(String, Instant)>,
    /// A thread waits for the end of the temporary one.
    is_awaited: bool,
}

impl Levels {
    fn in_force(&self) -> &str {
        self.temporary.as_ref().map_or(&self.permanent, |(text, _)| text)
    }

    /// How long the temporary one is still in force; nothing: it is over, or there is none.
    fn left(&self, now: Instant) -> Option<Duration> {
        let (_, until) = self.temporary.as_ref()?;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

/// Puts another filter in force.
type Put = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

static CHOICE: OnceLock<Choice> = OnceLock::new();

/// What is logged now: a level, or a filter as [`set_filter`] takes it. Nothing where no log was started.
pub fn filter() -> Option<String> {
    Some(CHOICE.get()?.levels().in_force().into())
}

/// From here on, until the process ends, this is logged: a level, or levels by where events come from, as
/// `info,incoming::shard=debug`. Gives what it was before. A filter that is none changes nothing. What was wanted for a while is over.
pub fn set_filter(text: &str) -> Result<String, String> {
    CHOICE.get().ok_or(NO_LOG)?.set(text, |levels, text| {
        levels.temporary = None;
        levels.permanent = text;
    })
}

/// What is logged once nothing is wanted for a while: as [`set_filter`], but what is, stays until its end.
pub fn set_permanent_filter(text: &str) -> Result<String, String> {
    CHOICE.get().ok_or(NO_LOG)?.set(text, |levels, text| levels.permanent = text)
}

/// For so long this is logged, then what was set by [`set_filter`] last. What was wanted for a while before is over.
pub fn set_filter_for(text: &str, time: Duration) -> Result<String, String> {
    CHOICE.get().ok_or(NO_LOG)?.set_for(text, time)
}

const NO_LOG: &str = "there is no log in this process";

/// A filter, and its text as it is shown.
fn parse(text: &str) -> Result<(EnvFilter, String), String> {
    let text = text.trim();
    let expected = "expected error, warn, info, debug, trace or off, or a list such as \"info,incoming::delivery=debug\"";
    let filter = EnvFilter::builder()
        .with_regex(false)
        .parse(text)
        .map_err(|e| format!("{expected}, not {text:?}: {e}"))?;
    // A word that is no level is taken for the name of a module.
    let is_word = |part: &str| !part.contains(['=', '[', ':']) && part.trim().parse::<LevelFilter>().is_err();
    if text.is_empty() || text.split(',').any(is_word) {
        return Err(format!("{expected}, not {text:?}"));
    }
    Ok((filter, text.to_lowercase()))
}

impl Choice {
    fn new(put: Put, permanent: String) -> Self {
        let levels = Levels { permanent, temporary: None, is_awaited: false };
        Choice { put, levels: Mutex::new(levels), changed: Condvar::new() }
    }

    fn levels(&self) -> MutexGuard<'_, Levels> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is wanted, and puts in force what is then. Gives what was in force before.
    fn set(&self, text: &str, change: impl FnOnce(&mut Levels, String)) -> Result<String, String> {
        let (_, text) = parse(text)?;
        let mut levels = self.levels();
        let before = levels.in_force().to_string();
        change(&mut levels, text);
        self.enforce(&levels)?;
        drop(levels);
        self.changed.notify_all();
        Ok(before)
    }

    fn enforce(&self, levels: &Levels) -> Result<(), String> {
        let (filter, _) = parse(levels.in_force())?;
        (self.put)(filter)
    }

    fn set_for(&'static self, text: &str, time: Duration) -> Result<String, String> {
        let until = Instant::now().checked_add(time).ok_or("expected a shorter time")?;
        let before = self.set(text, |levels, text| levels.temporary = Some((text, until)))?;
        let mut levels = self.levels();
        if !levels.is_awaited {
            // One thread, whoever wants what: it ends when there is nothing to wait for.
            let thread = thread::Builder::new().name("log-level".into()).spawn(|| self.await_end());
            if let Err(e) = thread {
                levels.temporary = None;
                self.enforce(&levels)?;
                return Err(format!("cannot wait for the end: {e}"));
            }
            levels.is_awaited = true;
        }
        Ok(before)
    }

    /// Waits until nothing is wanted for a while any more.
    fn await_end(&self) {
        let mut levels = self.levels();
        while let Some(left) = levels.left(Instant::now()) {
            levels = self.changed.wait_timeout(levels, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        levels.is_awaited = false;
        let is_over = levels.temporary.take().is_some() && self.enforce(&levels).is_ok();
        let filter = levels.permanent.clone();
        drop(levels);
        if is_over {
            tracing::warn!(filter, "what is logged is as before");
        }
    }
}

/// Writes out every line logged so far. For those who end the process without dropping the [`Guard`].
pub fn write_out() {
    if let Some(lines) = STARTED.get() {
        lines.write_out();
    }
}

/// How often whoever logged had to wait because nobody took the lines fast enough, and the octets of lines that were lost, some of which may have
/// been written.
pub fn trouble() -> (u64, u64) {
    let Some(lines) = STARTED.get() else { return (0, 0) };
    let stalls = lines.lock().stalls;
    // Whoever holds it may wait for the output: what was lost is asked for again.
    let lost = match lines.sink.try_lock() {
        Ok(sink) => sink.lost,
        Err(TryLockError::Poisoned(e)) => e.into_inner().lost,
        Err(TryLockError::WouldBlock) => lines.lost_before.load(Ordering::Relaxed),
    };
    lines.lost_before.fetch_max(lost, Ordering::Relaxed);
    (stalls, lost)
}

/// Ends the log when dropped: everything is written out.
pub struct Guard {
    lines: Arc<Lines>,
    writer: Option<JoinHandle<()>>,
}

impl Guard {
    fn start(lines: Arc<Lines>) -> io::Result<Guard> {
        let writer = lines.clone();
        let writer = thread::Builder::new().name("log".into()).spawn(move || writer.run())?;
        Ok(Guard { lines, writer: Some(writer) })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.lines.lock().is_ending = true;
        self.lines.changed.notify_one();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        self.lines.write_out();
    }
}

/// The lines on their way from the events to the sink.
struct Lines {
    state: Mutex<State>,
    /// The buffer is no longer empty, or has reached the size at which it is written.
    changed: Condvar,
    /// What was known last of octets that were lost.
    lost_before: AtomicU64,
    /// Taken before `state`: who holds it writes the lines that he finds, so their order is kept.
    sink: Mutex<Sink>,
}

struct State {
    buffer: Vec<u8>,
    /// How often whoever logged had to write out.
    stalls: u64,
    is_ending: bool,
}

struct Sink {
    output: Box<dyn Write + Send>,
    /// The buffer that is not being filled.
    spare: Vec<u8>,
    /// Octets that the output did not take.
    lost: u64,
}

impl Lines {
    fn new(output: Box<dyn Write + Send>) -> Self {
        Lines {
            state: Mutex::new(State {
                buffer: Vec::with_capacity(LOG_WRITE_SIZE * 2),
                stalls: 0,
                is_ending: false,
            }),
            changed: Condvar::new(),
            lost_before: AtomicU64::new(0),
            sink: Mutex::new(Sink { output, spare: Vec::with_capacity(LOG_WRITE_SIZE * 2), lost: 0 }),
        }
    }

    /// A thread that panicked while it held a lock left a buffer of whole lines.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends one line.
    fn append(&self, line: &[u8]) {
        loop {
            let mut state = self.lock();
            let (before, after) = (state.buffer.len(), state.buffer.len() + line.len());
            // A line larger than the bound goes into an empty buffer.
            if after <= LOG_BUFFER_SIZE_MAX || before == 0 {
                state.buffer.extend_from_slice(line);
                drop(state);
                if before == 0 || before < LOG_WRITE_SIZE && after >= LOG_WRITE_SIZE {
                    self.changed.notify_one();
                }
                return;
            }
            state.stalls += 1;
            drop(state);
            self.write_out();
        }
    }

    /// Writes out what is in the buffer. Where the sink takes nothing, lines are lost: there is nobody left to tell.
    fn write_out(&self) {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_to(&mut sink);
    }

    fn write_to(&self, sink: &mut Sink) {
        let Sink { output, spare, lost } = sink;
        std::mem::swap(&mut self.lock().buffer, spare);
        if output.write_all(spare).and_then(|()| output.flush()).is_err() {
            *lost += spare.len() as u64;
        }
        spare.clear();
        spare.shrink_to(LOG_WRITE_SIZE * 2);
    }

    /// Writes out as the last thing before the process dies: a thread that holds a lock may be the one that panicked, and is not
    /// waited for.
    fn write_out_dying(&self) {
        let deadline = Instant::now() + WAIT_MAX;
        while Instant::now() < deadline {
            let sink = match self.sink.try_lock() {
                Ok(sink) => Some(sink),
                Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            };
            let state_is_free = !matches!(self.state.try_lock(), Err(TryLockError::WouldBlock));
            if let Some(mut sink) = sink
                && state_is_free
            {
                return self.write_to(&mut sink);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The thread that writes.
    fn run(&self) {
        loop {
            let mut state = self.lock();
            while state.buffer.is_empty() && !state.is_ending {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let is_worth_waiting =
                |state: &mut State| state.buffer.len() < LOG_WRITE_SIZE && !state.is_ending;
            let waited = self.changed.wait_timeout_while(state, WAIT_MAX, is_worth_waiting);
            let is_ending = waited.unwrap_or_else(PoisonError::into_inner).0.is_ending;
            self.write_out();
            if is_ending {
                return;
            }
        }
    }
}

/// Hands each event its way into the buffer.
struct Appender(Arc<Lines>);

impl<'a> MakeWriter<'a> for Appender {
    type Writer = &'a Appender;

    fn make_writer(&'a self) -> &'a Appender {
        self
    }
}

impl Write for &Appender {
    /// Takes all: the subscriber writes one whole line at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.append(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The wall clock as RFC 3339 in UTC with microseconds.
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", humantime::format_rfc3339_micros(SystemTime::now()))
    }
}

/// The words of a panic come after everything that was logged, in the log's format. With `panic = "abort"` they are the last.
fn install_panic_hook(format: Format, lines: Arc<Lines>) {
    let human = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        lines.write_out_dying();
        match format {
            Format::Human => human(info),
            Format::Json => drop(writeln!(io::stderr(), "{}", panic_as_json(info))),
        }
    }));
}

fn panic_as_json(info: &PanicHookInfo<'_>) -> serde_json::Value {
    serde_json::json!({
        "timestamp": humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
        "level": "ERROR",
        "message": info.payload_as_str().unwrap_or("panic"),
        "location": info.location().map(|at| at.to_string()),
        "thread": thread::current().name(),
        "target": "panic",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_for_a_while_never_stays() {
        let put = Arc::new(Mutex::new(0));
        let counted = put.clone();
        let count = move |_| {
            *counted.lock().unwrap() += 1;
            Ok(())
        };
        let choice: &'static Choice = Box::leak(Box::new(Choice::new(Box::new(count), "info".into())));
        let permanent = |text: &str| choice.set(text, |levels, text| levels.permanent = text);
        let long = Duration::from_secs(3600);
        let now = || choice.levels().in_force().to_string();
        assert_eq!(choice.set_for("debug", long), Ok("info".into()));
        assert_eq!(choice.set_for("trace", long), Ok("debug".into()));
        assert_eq!(choice.levels().permanent, "info");
        // As by a reload: it is in force when the time is over.
        assert_eq!((permanent("warn"), now()), (Ok("trace".into()), "trace".into()));
        assert!(choice.set_for("loud", long).is_err() && choice.set_for("info", Duration::MAX).is_err());
        assert_eq!(now(), "trace");
        assert_eq!(choice.set_for("debug", Duration::from_millis(1)), Ok("trace".into()));
        let until = Instant::now() + Duration::from_secs(30);
        while now() != "warn" || choice.levels().is_awaited {
            assert!(Instant::now() < until, "{}", now());
            thread::yield_now();
        }
        assert_eq!(*put.lock().unwrap(), 5);
        // And again, with a thread of its own.
        assert_eq!(choice.set_for("debug", long), Ok("warn".into()));
        choice.set("error", |levels, text| (levels.permanent, levels.temporary) = (text, None)).unwrap();
        assert_eq!(now(), "error");
    }

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Output {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().0.clone()).unwrap()
        }

        fn writes_count(&self) -> usize {
            self.0.lock().unwrap().1
        }
    }

    impl Write for Output {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            let mut inner = self.0.lock().unwrap();
            inner.0.extend_from_slice(octets);
            inner.1 += usize::from(!octets.is_empty());
            Ok(octets.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log() -> (Output, Arc<Lines>) {
        let output = Output::default();
        (output.clone(), Arc::new(Lines::new(Box::new(output))))
    }

    #[test]
    fn lines_appear_within_the_wait_and_together() {
        let (output, lines) = log();
        let guard = Guard::start(lines.clone()).unwrap();
        let start = Instant::now();
        (0..100).for_each(|n| lines.append(format!("{n}\n").as_bytes()));
        while output.text().lines().count() < 100 {
            assert!(start.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(5));
        }
        assert!(output.writes_count() <= 2, "{}", output.writes_count());
        drop(guard);
    }

    #[test]
    fn everything_is_written_at_the_end_whole_and_in_order() {
        let (output, lines) = log();
        let guard = Guard::start(lines.clone()).unwrap();
        thread::scope(|scope| {
            for writer in 0..4 {
                let lines = &lines;
                let line = move |n| format!("{writer} {n} {}\n", "x".repeat(100));
                scope.spawn(move || (0..20_000).for_each(|n| lines.append(line(n).as_bytes())));
            }
        });
        drop(guard);
        let mut next = [0; 4];
        for line in output.text().lines() {
            let mut words = line.split(' ');
            let writer: usize = words.next().unwrap().parse().unwrap();
            assert_eq!(words.next().unwrap().parse(), Ok(next[writer]));
            assert_eq!(words.next().unwrap().len(), 100);
            next[writer] += 1;
        }
        assert_eq!(next, [20_000; 4]);
    }

    #[test]
    fn a_full_buffer_is_written_by_whoever_logs() {
        let (output, lines) = log();
        let line = [b'x'; 1024];
        (0..LOG_BUFFER_SIZE_MAX / line.len()).for_each(|_| lines.append(&line));
        assert_eq!(output.writes_count(), 0, "exactly full");
        lines.append(&line);
        assert_eq!((output.writes_count(), output.text().len()), (1, LOG_BUFFER_SIZE_MAX));
        lines.append(&vec![b'y'; LOG_BUFFER_SIZE_MAX + 1]);
        assert_eq!(lines.lock().buffer.len(), LOG_BUFFER_SIZE_MAX + 1, "alone");
    }

    #[test]
    fn a_dying_thread_does_not_wait_for_a_lock_it_holds() {
        let (output, lines) = log();
        lines.append(b"last words\n");
        let state = lines.lock();
        lines.write_out_dying();
        drop(state);
        assert_eq!(output.text(), "");
        lines.write_out_dying();
        assert_eq!(output.text(), "last words\n");
    }

    #[test]
    fn times_are_rfc_3339() {
        let mut text = String::new();
        Clock.format_time(&mut Writer::new(&mut text)).unwrap();
        assert_eq!((text.len(), &text[10..11], &text[26..]), (27, "T", "Z"), "{text}");
    }
}
