//! What is exposed: gathered from shards, targets, policies and the process when somebody asks for it, and written as text.
//!
//! A shard that does not answer in time is said to be down, and counted with what it said last: a counter never goes back because of it.
//! What the file system is asked is asked on another thread: where it takes its time, what it said last is given.
//!
//! However many ask, shards are asked once a second at most: who comes meanwhile is given what was written then.
//!
//! Knows nothing of who asks, and over what.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::delivery::{DeadLetters, Targets};
use crate::mail::Phase;
use crate::policy::Policies;
use crate::shard::Shards;
use crate::shard::meters::{LaneReading, LogReading, ShardReading};
use crate::telemetry::distribution::{Buckets, Recorded, Scale};
use crate::telemetry::exposition::{Exposition, Format, Samples};
use crate::telemetry::metrics as m;
use crate::telemetry::process::Process;
use crate::telemetry::{log, reloads};

/// What waits for no target yet: nobody has decided who gets it.
const UNDECIDED: &str = "undecided";

/// Of whom it is gathered: all of it as it is in force.
pub struct Sources {
    /// The shards.
    pub shards: Shards,
    /// The targets.
    pub targets: Targets,
    /// The policies.
    pub policies: Policies,
    /// The configuration.
    pub config: Arc<Config>,
}

/// Gathers; one for all who ask.
#[derive(Default)]
pub struct Scraper {
    /// What each shard said last.
    last: Mutex<Vec<Option<ShardReading>>>,
    dead: Arc<Mutex<Option<CountedDead>>>,
    dead_count: Arc<Background<Option<u64>>>,
    machine: Arc<Background<Machine>>,
    /// What was written of late, and when. Whoever asks while it is being written waits for it.
    kept: tokio::sync::Mutex<Vec<(Format, Instant, String)>>,
}

/// How long what was written is good for who asks.
const KEPT: Duration = Duration::from_secs(1);
/// How long the kernel is waited for, and a disk that has to be asked.
const MACHINE_PATIENCE: Duration = Duration::from_secs(3);
/// How long dead letters may be counted before what they were last is given, or nothing. There may be millions.
const DEAD_PATIENCE: Duration = Duration::from_millis(300);

/// What the kernel says.
#[derive(Clone, Copy, Default)]
struct Machine {
    process: Process,
    /// What is free of the spool's file system, and its size, octets.
    room: Option<(u64, u64)>,
}

impl Machine {
    /// Looks; `data` is on the spool's file system.
    fn look(data: &Path) -> Self {
        let room = rustix::fs::statvfs(data).ok();
        let room = room.map(|room| (room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize));
        Machine { process: Process::read(), room }
    }
}

/// Something that is looked up on a thread that may block: one look at a time, and what the last one has found.
struct Background<T> {
    is_under_way: AtomicBool,
    found: Mutex<Option<T>>,
}

impl<T> Default for Background<T> {
    fn default() -> Self {
        Background { is_under_way: AtomicBool::new(false), found: Mutex::new(None) }
    }
}

impl<T: Clone + Send + 'static> Background<T> {
    /// What is found within `patience`; otherwise, or where a look is under way already, what was found last.
    async fn look(
        self: &Arc<Self>,
        patience: Duration,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if !self.is_under_way.swap(true, Ordering::AcqRel) {
            let this = self.clone();
            let looking = tokio::task::spawn_blocking(move || {
                let found = look();
                *lock(&this.found) = Some(found);
                this.is_under_way.store(false, Ordering::Release);
            });
            let _ = tokio::time::timeout(patience, looking).await;
        }
        lock(&self.found).clone()
    }
}

/// How many dead letters there were, when the folder was as this says.
struct CountedDead {
    folder: PathBuf,
    modified: SystemTime,
    count: u64,
    /// When they were counted, and how long that took.
    counted: (Instant, Duration),
}

/// Counting dead letters anew takes at most one of so many parts of a thread's time.
const COUNTING_PART: u32 = 20;

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scraper {
    /// Everything there is to say, as it was a second ago at most, in `format`. Shards spend some tens of microseconds on it, and are waited
    /// for five seconds at most.
    ///
    /// # Panics
    /// Outside of a tokio runtime with a clock.
    pub async fn exposition(&self, sources: Sources, format: Format) -> String {
        let mut kept = self.kept.lock().await;
        kept.retain(|(_, written, _)| written.elapsed() < KEPT);
        if let Some((_, _, text)) = kept.iter().find(|(of, ..)| *of == format) {
            return text.clone();
        }
        let answers = sources.shards.ask_all(|shard| shard.read_meters()).await;
        let shards = self.remember(answers);
        let (folder, known) = (sources.config.dead_dir(), self.dead.clone());
        let dead = self.dead_count.look(DEAD_PATIENCE, move || count_dead(&folder, &known));
        let data = sources.config.data.clone();
        let machine = self.machine.look(MACHINE_PATIENCE, move || Machine::look(&data));
        let (dead, machine) = futures_lite::future::zip(dead, machine).await;
        let (dead, machine) = (dead.flatten(), machine.unwrap_or_default());
        let text = Gathered { shards, dead, machine, sources, now: unix_now() }.write(format);
        kept.push((format, Instant::now(), text.clone()));
        text
    }

    /// For each shard whether it has answered, and what it said last, if ever.
    fn remember(&self, answers: Vec<Option<ShardReading>>) -> Vec<(bool, Option<ShardReading>)> {
        let mut last = lock(&self.last);
        last.resize_with(answers.len(), || None);
        let each = answers.into_iter().zip(last.iter_mut()).map(|(answer, last)| {
            let is_up = answer.is_some();
            if is_up {
                *last = answer;
            }
            (is_up, last.clone())
        });
        each.collect()
    }
}

/// How many dead letters there are: counted only when the folder has changed since. `None`: it cannot be read.
fn count_dead(folder: &Path, known: &Mutex<Option<CountedDead>>) -> Option<u64> {
    // Before it is read: what comes meanwhile is counted the next time.
    let modified = fs::metadata(folder).and_then(|metadata| metadata.modified()).ok()?;
    let mut known = lock(known);
    if let Some(CountedDead { folder: of, modified: at, count, counted: (when, took) }) = known.as_ref()
        && of == folder
    {
        // Of a moment ago it may have changed twice within one tick of the file system's clock.
        let is_settled = modified.elapsed().is_ok_and(|elapsed| elapsed >= Duration::from_secs(1));
        if *at == modified && is_settled || when.elapsed() < *took * COUNTING_PART {
            return Some(*count);
        }
    }
    let begun = Instant::now();
    let count = DeadLetters::open(folder).ids().ok()?.len() as u64;
    let counted = (begun, begun.elapsed());
    *known = Some(CountedDead { folder: folder.to_owned(), modified, count, counted });
    Some(count)
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What was gathered.
struct Gathered {
    shards: Vec<(bool, Option<ShardReading>)>,
    dead: Option<u64>,
    machine: Machine,
    sources: Sources,
    now: u64,
}

impl Gathered {
    fn write(&self, format: Format) -> String {
        let mut text = Exposition::new(format);
        self.write_state(&mut text);
        self.write_sessions(&mut text);
        self.write_messages(&mut text);
        self.write_queue(&mut text);
        self.write_spool(&mut text);
        self.write_deliveries(&mut text);
        self.write_files(&mut text);
        self.write_process(&mut text);
        text.finish()
    }

    /// What the shards have said.
    fn readings(&self) -> impl Iterator<Item = &ShardReading> {
        self.shards.iter().filter_map(|(_, reading)| reading.as_ref())
    }

    fn logs(&self) -> impl Iterator<Item = &LogReading> {
        self.readings().flat_map(|reading| &reading.logs)
    }

    fn sum(&self, of: impl Fn(&ShardReading) -> u64) -> u64 {
        self.readings().map(of).sum()
    }

    fn log_sum(&self, of: impl Fn(&LogReading) -> u64) -> u64 {
        self.logs().map(of).sum()
    }

    /// The sums of what is counted under the same words.
    fn by<'a, K: Ord + 'a, I: IntoIterator<Item = (K, u64)>>(
        &'a self,
        of: impl Fn(&'a ShardReading) -> I,
    ) -> BTreeMap<K, u64> {
        let mut sums = BTreeMap::new();
        for (key, count) in self.readings().flat_map(of) {
            *sums.entry(key).or_default() += count;
        }
        sums
    }

    fn buckets(&self, scale: Scale, of: impl Fn(&ShardReading) -> &Recorded) -> Buckets {
        let mut sum = Buckets::none(scale);
        self.readings().for_each(|reading| sum.add(&of(reading).buckets()));
        sum
    }

    fn seconds(&self, of: impl Fn(&ShardReading) -> &Recorded) -> Buckets {
        self.buckets(Scale::Seconds, of)
    }

    /// A sample for each shard that has ever answered.
    fn each(&self, mut write: impl FnMut(&str, &ShardReading, bool)) {
        for (n, (is_up, reading)) in self.shards.iter().enumerate() {
            if let Some(reading) = reading {
                write(&n.to_string(), reading, *is_up);
            }
        }
    }

    fn write_state(&self, text: &mut Exposition) {
        text.family(&m::BUILD_INFO, |samples| samples.add([env!("CARGO_PKG_VERSION")], 1_u64));
        text.family(&m::SHARD_UP, |samples| {
            for (n, (is_up, _)) in self.shards.iter().enumerate() {
                samples.add([&n.to_string()], *is_up);
            }
        });
        text.family(&m::READY, |samples| {
            self.each(|shard, reading, is_up| samples.add([shard], reading.is_ready && is_up));
        });
        text.family(&m::OVERLOAD_LEVEL, |samples| {
            self.each(|shard, reading, _| samples.add([shard], reading.level));
        });
    }

    fn write_sessions(&self, text: &mut Exposition) {
        text.family(&m::SESSIONS_OPEN, |samples| {
            self.each(|shard, reading, _| samples.add([shard], reading.sessions_open));
        });
        text.family(&m::SESSIONS_MAX, |samples| {
            self.each(|shard, reading, _| samples.add([shard], reading.sessions_max));
        });
        text.one(&m::SESSIONS, self.sum(|reading| reading.counts.sessions));
        text.one(&m::GREETED, self.sum(|reading| reading.counts.greeted));
        let greeting = self.seconds(|reading| &reading.times.greeting);
        text.family(&m::GREETING, |samples| samples.histogram([], &greeting));
        text.one(&m::ACCEPT_FAILURES, self.sum(|reading| reading.counts.accept_failures));
        self.words(text, &m::TLS_SESSIONS, |reading| reading.counts.tls);
        self.words(text, &m::TLS_FAILURES, |reading| reading.counts.tls_failures);
        let handshake = self.seconds(|reading| &reading.times.handshake);
        text.family(&m::TLS_HANDSHAKE, |samples| samples.histogram([], &handshake));
        self.words(text, &m::AUTHENTICATIONS, |reading| reading.counts.authentications);
    }

    /// A family of counters with one label.
    fn words<const N: usize>(
        &self,
        text: &mut Exposition,
        metric: &'static m::Metric,
        of: impl Fn(&ShardReading) -> [(&'static str, u64); N],
    ) {
        let sums = self.by(of);
        text.family(metric, |samples| sums.iter().for_each(|(word, count)| samples.add([word], *count)));
    }

    fn write_messages(&self, text: &mut Exposition) {
        self.words(text, &m::MESSAGES, |reading| reading.counts.messages);
        text.one(&m::OCTETS, self.sum(|reading| reading.counts.octets));
        text.one(&m::RECIPIENTS, self.sum(|reading| reading.counts.recipients));
        self.words(text, &m::NOT_STORED, |reading| reading.counts.not_stored);
        let end_of_data = self.seconds(|reading| &reading.times.end_of_data);
        text.family(&m::END_OF_DATA, |samples| samples.histogram([], &end_of_data));
        text.family(&m::POLICY_WAIT, |samples| {
            for phase in Phase::ALL {
                let waits = self.seconds(|reading| &reading.times.policy_wait[phase as usize].1);
                samples.histogram([word(phase)], &waits);
            }
        });
        let refusals = self.by(|reading| {
            let refusals = reading.counts.refusals.iter();
            refusals.map(|(kind, count)| ((kind.phase, &*kind.policy, &*kind.reason), *count))
        });
        text.family(&m::REFUSALS, |samples| {
            for ((phase, policy, reason), count) in &refusals {
                samples.add([word(*phase), policy, reason], *count);
            }
        });
        let replies = self.by(|reading| {
            reading.counts.replies.iter().map(|(reply, count)| ((reply.code(), reply.status()), *count))
        });
        text.family(&m::NEGATIVE_REPLIES, |samples| {
            for ((code, status), count) in &replies {
                samples.add([code, status], *count);
            }
        });
        let mut verdicts = BTreeMap::new();
        for (policy, said) in self.sources.policies.said() {
            let counts = [
                ("rejected", said.rejected),
                ("deferred", said.deferred),
                ("tagged", said.tagged),
                ("unavailable", said.unavailable),
            ];
            for (verdict, count) in counts {
                *verdicts.entry((policy, verdict)).or_insert(0_u64) += count;
            }
        }
        text.family(&m::POLICY_VERDICTS, |samples| {
            for ((policy, verdict), count) in &verdicts {
                samples.add([policy, verdict], *count);
            }
        });
    }

    fn write_queue(&self, text: &mut Exposition) {
        text.one(&m::QUEUE_MESSAGES, self.log_sum(|log| log.depth as u64));
        text.one(&m::QUEUE_HELD, self.log_sum(|log| log.held as u64));
        text.one(&m::QUEUE_MAX, self.sum(|reading| reading.depth_max as u64));
        let mut lanes: BTreeMap<&str, Lane> = BTreeMap::new();
        lanes.insert(UNDECIDED, Lane::default());
        lanes.extend(self.sources.targets.iter().map(|target| (&**target.name(), Lane::default())));
        for reading in self.logs().flat_map(|log| &log.lanes) {
            let name = if reading.target.is_empty() { UNDECIDED } else { &reading.target };
            lanes.entry(name).or_default().add(reading);
        }
        text.family(&m::QUEUE_DEPTH, |samples| {
            for (target, lane) in &lanes {
                samples.add([target, "backlog"], lane.backlog);
                samples.add([target, "deferred"], lane.deferred);
                samples.add([target, "handed_off"], lane.handed_off);
            }
        });
        text.family(&m::QUEUE_OLDEST, |samples| {
            for (target, lane) in &lanes {
                samples.add([target], lane.oldest.map_or(0, |oldest| self.now.saturating_sub(oldest)));
            }
        });
    }

    fn write_spool(&self, text: &mut Exposition) {
        let live = self.log_sum(|log| log.live_size);
        let files =
            self.log_sum(|log| (log.segments + log.free_segments) as u64 * u64::from(log.segment_size));
        text.one(&m::SPOOL_LIVE, live);
        text.one(&m::SPOOL_RECLAIMABLE, files.saturating_sub(live));
        text.family(&m::SPOOL_SEGMENTS, |samples| {
            samples.add(["used"], self.log_sum(|log| log.segments as u64));
            samples.add(["free"], self.log_sum(|log| log.free_segments as u64));
        });
        let (free, size) = self.machine.room.unzip();
        text.family(&m::SPOOL_FREE, |samples| known(samples, free));
        text.family(&m::SPOOL_SIZE, |samples| known(samples, size));
        let times = [
            (&m::SPOOL_WRITE, self.seconds(|reading| &reading.times.write)),
            (&m::SPOOL_SYNC, self.seconds(|reading| &reading.times.sync)),
            (&m::SPOOL_COMMIT, self.buckets(Scale::Count, |reading| &reading.times.commit)),
        ];
        for (metric, buckets) in times {
            text.family(metric, |samples| samples.histogram([], &buckets));
        }
        text.one(&m::SPOOL_WRITTEN, self.log_sum(|log| log.counters.written_size));
        text.one(&m::SPOOL_CARRIED, self.log_sum(|log| log.counters.carried));
        self.words(text, &m::SPOOL_FAILURES, |reading| reading.counts.io_failures);
        text.family(&m::MEMORY_USED, |samples| {
            self.each(|shard, reading, _| {
                reading.budgets.iter().for_each(|(budget, used, _)| samples.add([shard, budget], *used));
            });
        });
        text.family(&m::MEMORY_MAX, |samples| {
            self.each(|shard, reading, _| {
                reading.budgets.iter().for_each(|(budget, _, max)| samples.add([shard, budget], *max));
            });
        });
    }

    fn write_deliveries(&self, text: &mut Exposition) {
        let targets: Vec<_> =
            self.sources.targets.iter().map(|target| (target, target.read_meters())).collect();
        text.family(&m::ATTEMPTS, |samples| {
            targets.iter().for_each(|(target, read)| samples.add([target.name()], read.attempts));
        });
        text.family(&m::DELIVERIES, |samples| {
            for (target, read) in &targets {
                samples.add([target.name(), "delivered"], read.delivered);
                samples.add([target.name(), "deferred"], read.deferred);
                samples.add([target.name(), "rejected"], read.rejected);
            }
        });
        text.family(&m::ATTEMPT_DURATION, |samples| {
            targets.iter().for_each(|(target, read)| samples.histogram([target.name()], &read.durations));
        });
        text.family(&m::IN_FLIGHT, |samples| {
            targets.iter().for_each(|(target, read)| samples.add([target.name()], read.in_flight));
        });
        text.family(&m::CONCURRENCY, |samples| {
            targets.iter().for_each(|(target, _)| samples.add([target.name()], target.concurrency_max()));
        });
        text.family(&m::CHANNEL, |samples| {
            for (target, _) in &targets {
                samples.add([target.name()], target.jobs().capacity() - target.jobs().room());
            }
        });
        text.family(&m::BREAKER_OPEN, |samples| {
            targets.iter().for_each(|(target, _)| samples.add([target.name()], target.is_down()));
        });
        text.family(&m::BREAKER_OPENED, |samples| {
            targets.iter().for_each(|(target, _)| samples.add([target.name()], target.opened_count()));
        });
        text.family(&m::DEAD_LETTERS, |samples| known(samples, self.dead));
    }

    fn write_files(&self, text: &mut Exposition) {
        // All acceptors show the same.
        let acceptor = self.readings().find_map(|reading| reading.acceptor.as_ref());
        let certificates = acceptor.map(|acceptor| acceptor.certificates()).unwrap_or_default();
        let mut ends: BTreeMap<&str, i64> = BTreeMap::new();
        for certificate in &certificates {
            for name in &certificate.names {
                let end = ends.entry(name).or_insert(certificate.not_after);
                *end = certificate.not_after.min(*end);
            }
        }
        text.family(&m::CERTIFICATE_EXPIRY, |samples| {
            ends.iter().for_each(|(name, end)| samples.add([name], *end as f64));
        });
        let reloads = reloads();
        text.family(&m::RELOADS, |samples| {
            for reload in &reloads {
                samples.add([reload.what.word(), "ok"], reload.good);
                samples.add([reload.what.word(), "failed"], reload.bad);
            }
        });
        text.family(&m::RELOAD_GOOD, |samples| {
            reloads.iter().for_each(|reload| samples.add([reload.what.word()], reload.is_good));
        });
        text.family(&m::RELOAD_TIME, |samples| {
            reloads.iter().for_each(|reload| samples.add([reload.what.word()], reload.last_good));
        });
        let (stalls, lost) = log::trouble();
        text.one(&m::LOG_STALLS, stalls);
        text.one(&m::LOG_LOST, lost);
    }

    fn write_process(&self, text: &mut Exposition) {
        let Machine { process, .. } = &self.machine;
        text.family(&m::CPU, |samples| known(samples, process.cpu_seconds));
        text.family(&m::RESIDENT, |samples| known(samples, process.resident_bytes));
        text.family(&m::OPEN_FDS, |samples| known(samples, process.open_fds));
        text.family(&m::MAX_FDS, |samples| known(samples, process.max_fds));
        text.family(&m::THREADS, |samples| known(samples, process.threads));
        text.family(&m::START_TIME, |samples| known(samples, process.start_unix));
    }
}

/// The sample, if its value is known.
fn known(samples: &mut Samples<'_>, value: Option<impl Into<crate::telemetry::exposition::Value>>) {
    if let Some(value) = value {
        samples.add([], value);
    }
}

/// A phase as a label's value.
fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Connect => "connect",
        Phase::Hello => "hello",
        Phase::Mail => "mail",
        Phase::Recipient => "recipient",
        Phase::Data => "data",
        Phase::Message => "message",
    }
}

/// What waits for one target, over all logs.
#[derive(Default)]
struct Lane {
    backlog: usize,
    deferred: usize,
    handed_off: usize,
    oldest: Option<u64>,
}

impl Lane {
    fn add(&mut self, reading: &LaneReading) {
        self.backlog += reading.waiting.backlog;
        self.deferred += reading.waiting.deferred;
        self.handed_off += reading.handed_off;
        self.oldest = self.oldest.into_iter().chain(reading.oldest).min();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, System};
    use crate::delivery::transport::Discard;
    use crate::delivery::{Limits, Means, Target, TargetId};
    use crate::shard::meters::tests::reading;

    fn written(scraper: &Scraper, answers: Vec<Option<ShardReading>>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        fs::write(&file, format!("data = {:?}\n[accept]\nany = true\n", folder.path())).unwrap();
        let system = System { hostname: "mx.test".into(), cores_count: 1, descriptors_max: 1000 };
        let sources = config::Sources { file: Some(file), ..config::Sources::default() };
        let config = Config::load(&sources, &system).unwrap();
        let target = Target::new(TargetId(0), "none", Means::Async(Arc::new(Discard)), Limits::default(), 4);
        let sources = Sources {
            shards: Shards::new(Vec::new()),
            targets: Targets::new(vec![target]),
            policies: Policies::new(Vec::new()),
            config: Arc::new(config),
        };
        let shards = scraper.remember(answers);
        let machine = Machine::look(folder.path());
        Gathered { shards, dead: Some(0), machine, sources, now: 0 }.write(Format::OpenMetrics)
    }

    #[test]
    fn a_shard_that_does_not_answer_is_down_and_counted_with_what_it_said_last() {
        let scraper = Scraper::default();
        let table: [(Vec<Option<ShardReading>>, &[&str]); 4] = [
            (vec![Some(reading(3)), None], &["up{shard=\"0\"} 1", "up{shard=\"1\"} 0", "sessions_total 3"]),
            (vec![Some(reading(3)), Some(reading(4))], &["up{shard=\"1\"} 1", "sessions_total 7"]),
            (
                vec![Some(reading(5)), None],
                &["up{shard=\"1\"} 0", "ready{shard=\"1\"} 0", "sessions_total 9"],
            ),
            (vec![None, None], &["up{shard=\"0\"} 0", "sessions_total 9", "# EOF"]),
        ];
        for (answers, expected) in table {
            let text = written(&scraper, answers);
            for words in expected {
                assert!(text.contains(words), "no {words} in\n{text}");
            }
        }
    }

    #[test]
    fn dead_letters_are_counted_anew_when_there_are_others() {
        let folder = tempfile::tempdir().unwrap();
        let known = Mutex::default();
        assert_eq!(count_dead(&folder.path().join("missing"), &known), None);
        for count in 0..3_u64 {
            assert_eq!(count_dead(folder.path(), &known), Some(count));
            let id = crate::mail::MessageId { log: 1, sequence: count };
            fs::create_dir(folder.path().join(id.to_string())).unwrap();
            // Counting has taken no time worth waiting for.
            lock(&known).as_mut().unwrap().counted.1 = Duration::ZERO;
        }
        assert_eq!(count_dead(folder.path(), &known), Some(3));
    }

    #[test]
    fn what_takes_its_time_holds_nobody_up_and_is_looked_up_once_at_a_time() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let background = Arc::new(Background::default());
        runtime.block_on(async {
            assert_eq!(background.look(Duration::from_secs(60), || 1).await, Some(1));
            let slow = move || {
                wait.recv().unwrap();
                2
            };
            assert_eq!(background.look(Duration::ZERO, slow).await, Some(1));
            assert_eq!(
                background.look(Duration::from_secs(60), || unreachable!("one at a time")).await,
                Some(1)
            );
            go.send(()).unwrap();
            while background.is_under_way.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            assert_eq!(background.look(Duration::from_secs(60), || 3).await, Some(3));
        });
    }
}
