//! Removes dead letters that are older than they are to be kept.
//!
//! A letter's age is that of its newest recipient, by the time in its record; times of files say nothing. A letter that is to be sent
//! again is not removed.
//!
//! A clock that was set wrong must not remove everything at once, so the wall clock is held against the monotonic one from look
//! to look, and against the time noted at the last look of an earlier process ([`Clock`]). While it cannot be trusted nothing
//! is removed.
//!
//! Each look lists the folder. A record is read once, and again when the letter may be old enough: for 100,000 letters a look costs
//! a listing, and 24 octets of memory each.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tracing::{info, warn};

use super::resend::is_stopped;
use super::{DeadLetters, ReadError, unix_now};
use crate::mail::MessageId;
use crate::telemetry::Escaped;

/// Where the time of the last look is noted, in seconds since 1970.
const CHECKED: &str = ".checked";
/// Between two looks. Of a short retention it is a hundredth, so that what is kept for an hour is not kept for two.
const INTERVAL_MAX: Duration = Duration::from_secs(15 * 60);
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// How far the wall clock may go its own way from one look to the next, and how long it has to go right after it went farther:
/// time for somebody to notice that it is wrong.
const MISTRUST_MAX: Duration = Duration::from_secs(24 * 3600);

/// See the module.
pub struct Keeper {
    dead: Arc<DeadLetters>,
    retention: Duration,
    stop: Receiver<()>,
    clock: Clock,
    /// When the newest recipient of each letter was given up, at the last reading of its record; `None`: it could not be read.
    newest: HashMap<MessageId, Option<u64>>,
}

impl Keeper {
    /// One that ends when the other end of `stop` is dropped.
    pub fn new(dead: Arc<DeadLetters>, retention: Duration, stop: Receiver<()>) -> Self {
        let noted = fs::read_to_string(dead.dir().join(CHECKED)).ok();
        let noted = noted.and_then(|text| text.trim().parse().ok());
        let clock = Clock::new(noted, retention.min(MISTRUST_MAX));
        Keeper { dead, retention, stop, clock, newest: HashMap::new() }
    }

    /// Looks now and then until it is told to stop.
    pub fn run(&mut self) {
        let interval = (self.retention / 100).clamp(INTERVAL_MIN, INTERVAL_MAX);
        loop {
            self.look(unix_now(), Instant::now());
            if self.stop.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    fn look(&mut self, unix_now: u64, now: Instant) {
        let ids = match self.dead.ids() {
            Ok(ids) => ids,
            Err(e) => {
                let dir = self.dead.dir().display();
                return warn!("cannot look for old dead letters in {dir}: {e}");
            }
        };
        // Where there is nothing to remove there is nothing to fear.
        let trust =
            if ids.is_empty() { self.clock.begin(unix_now, now) } else { self.clock.check(unix_now, now) };
        match trust {
            Trust::Yes => {}
            Trust::Lost => {
                let pause = humantime::format_duration(self.clock.mistrust);
                return warn!(
                    "the clock was set, or the gateway was away: no dead letters are removed for {pause}"
                );
            }
            Trust::No => return,
        }
        // Without it the next process waits for trust; removing must not depend on it, for it makes room on a full disk.
        let _ = fs::write(self.dead.dir().join(CHECKED), unix_now.to_string());
        let before = std::mem::take(&mut self.newest);
        self.newest.reserve(ids.len());
        let Some(limit) = unix_now.checked_sub(self.retention.as_secs()) else { return };
        for id in ids {
            if is_stopped(&self.stop) {
                return;
            }
            let known = before.get(&id).copied();
            match known {
                Some(Some(newest)) if newest > limit => drop(self.newest.insert(id, known.flatten())),
                _ => self.judge(id, limit, known == Some(None)),
            }
        }
    }

    /// Reads the letter, and removes it if it is old enough.
    fn judge(&mut self, id: MessageId, limit: u64, is_told: bool) {
        let judged = self.dead.read(id).and_then(|letter| match letter.newest() > limit {
            true => Ok((letter, false)),
            false => Ok(match self.dead.remove_older(id, limit)? {
                Some(removed) => (removed, true),
                None => (letter, false),
            }),
        });
        match judged {
            Ok((letter, true)) => {
                let from = Escaped(letter.envelope.reverse_path.as_str().as_bytes());
                let recipients = letter.recipients.len();
                info!(message_id = %id, %from, recipients, given_up = letter.newest(), "an old dead letter is removed");
            }
            Ok((letter, false)) => drop(self.newest.insert(id, Some(letter.newest()))),
            Err(ReadError::Gone(_)) => {}
            Err(e) => {
                if !is_told {
                    warn!(message_id = %id, "a dead letter cannot be read, and is kept whatever its age: {e}");
                }
                self.newest.insert(id, None);
            }
        }
    }
}

/// Whether the wall clock can be believed to have gone on as time does.
///
/// From look to look it may differ from the monotonic clock by `mistrust`; from process to process no monotonic clock is known, so
/// the noted time may lie back by no more. When it differs by more, in either direction, or nothing is noted, it is believed
/// again after having gone right for as long as `mistrust`.
///
/// Until then nothing is noted: a process that ends earlier leaves the doubt to the next.
struct Clock {
    last: Option<(u64, Instant)>,
    noted: Option<u64>,
    mistrust: Duration,
    doubted_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    Yes,
    /// Not any more, from this look on.
    Lost,
    No,
}

impl Clock {
    fn new(noted: Option<u64>, mistrust: Duration) -> Self {
        Clock { last: None, noted, mistrust, doubted_since: None }
    }

    /// Whatever it says is right.
    fn begin(&mut self, unix_now: u64, now: Instant) -> Trust {
        self.last = Some((unix_now, now));
        self.doubted_since = None;
        Trust::Yes
    }

    fn check(&mut self, unix_now: u64, now: Instant) -> Trust {
        let expected = match self.last {
            Some((unix_then, then)) => Some(unix_then.saturating_add(now.duration_since(then).as_secs())),
            None => self.noted,
        };
        self.last = Some((unix_now, now));
        if expected.is_none_or(|expected| unix_now.abs_diff(expected) > self.mistrust.as_secs()) {
            self.doubted_since = Some(now);
            return Trust::Lost;
        }
        match self.doubted_since {
            Some(since) if now.duration_since(since) < self.mistrust => Trust::No,
            _ => {
                self.doubted_since = None;
                Trust::Yes
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Sender, bounded};

    use super::*;
    use crate::delivery::Recipient;
    use crate::delivery::tests::message;

    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;

    #[test]
    fn a_clock_that_goes_its_own_way_is_not_believed_until_it_went_right_for_a_day() {
        use Trust::{Lost, No, Yes};
        let start = Instant::now();
        let t = 1_000_000;
        type Looks<'a> = &'a [(u64, u64, Trust)];
        // Each look: the monotonic clock since the start, the wall clock since `t`, in seconds; what is made of it.
        let table: [(&str, Option<u64>, Looks); 8] = [
            (
                "goes on",
                Some(t),
                &[(0, 10, Yes), (900, 910, Yes), (1800, 1700, Yes), (2700, 2700 + DAY / 2, Yes)],
            ),
            ("away for hours", Some(t), &[(0, DAY, Yes), (900, DAY + 900, Yes)]),
            (
                "away for days",
                Some(t),
                &[
                    (0, DAY + 1, Lost),
                    (900, DAY + 901, No),
                    (DAY - 1, 2 * DAY, No),
                    (DAY, 2 * DAY + 1, Yes),
                    (DAY + 900, 2 * DAY + 901, Yes),
                ],
            ),
            ("never looked", None, &[(0, 0, Lost), (900, 900, No), (DAY, DAY, Yes)]),
            ("jumps ahead", Some(t), &[(0, 0, Yes), (900, 40 * DAY, Lost), (1800, 40 * DAY + 900, No)]),
            (
                "is put right again",
                Some(t),
                &[
                    (0, 0, Yes),
                    (900, 40 * DAY, Lost),
                    (1800, 1800, Lost),
                    (2700, 2700, No),
                    (1800 + DAY, 1800 + DAY, Yes),
                ],
            ),
            (
                "jumps again and again",
                Some(t),
                &[(0, 40 * DAY, Lost), (DAY, 80 * DAY, Lost), (2 * DAY, 120 * DAY, Lost)],
            ),
            ("goes back", Some(t + 10 * DAY), &[(0, 0, Lost), (DAY, DAY, Yes)]),
        ];
        for (what, noted, looks) in table {
            let mut clock = Clock::new(noted, Duration::from_secs(DAY));
            for (since, wall, trust) in looks {
                let got = clock.check(t + wall, start + Duration::from_secs(*since));
                assert_eq!(got, *trust, "{what} after {since} s");
            }
        }
    }

    struct Rig {
        _root: tempfile::TempDir,
        dead: Arc<DeadLetters>,
        _running: Sender<()>,
        stop: Receiver<()>,
        start: Instant,
        /// When the letters were written, by the wall clock.
        written: u64,
    }

    impl Rig {
        /// So many letters, and a gateway that looked when they were written.
        fn new(letters: u64) -> Self {
            let root = tempfile::tempdir().unwrap();
            let dead = Arc::new(DeadLetters::new(root.path()).unwrap());
            for sequence in 0..letters {
                let given_up = [(Recipient { index: 0, attempts: 0 }, "no")];
                dead.write(&message(sequence), "store", &given_up).unwrap();
            }
            let written = unix_now();
            fs::write(root.path().join(CHECKED), written.to_string()).unwrap();
            let (running, stop) = bounded(0);
            Rig { _root: root, dead, _running: running, stop, start: Instant::now(), written }
        }

        fn keeper(&self) -> Keeper {
            Keeper::new(self.dead.clone(), Duration::from_secs(30 * DAY), self.stop.clone())
        }

        /// Looks at this time after the letters were written, by the monotonic and by the wall clock.
        fn look(&self, keeper: &mut Keeper, since: u64, wall: u64) -> usize {
            keeper.look(self.written + wall, self.start + Duration::from_secs(since));
            self.dead.ids().unwrap().len()
        }

        /// As [`Rig::look`], with both clocks going on together.
        fn pass(&self, keeper: &mut Keeper, since: u64) -> usize {
            self.look(keeper, since, since)
        }
    }

    #[test]
    fn letters_go_when_they_are_old_enough_and_not_before() {
        let rig = Rig::new(3);
        let mut keeper = rig.keeper();
        assert_eq!(rig.pass(&mut keeper, 0), 3);
        assert_eq!(rig.pass(&mut keeper, 30 * DAY - 60), 3);
        assert_eq!(rig.pass(&mut keeper, 30 * DAY + 60), 0);
        // Without letters any clock is right.
        assert_eq!(rig.look(&mut keeper, 30 * DAY + 120, 90 * DAY), 0);
    }

    #[test]
    fn a_clock_set_ahead_removes_nothing_in_this_process_or_the_next() {
        let rig = Rig::new(3);
        let mut keeper = rig.keeper();
        assert_eq!(rig.pass(&mut keeper, 0), 3);
        assert_eq!(rig.look(&mut keeper, 900, 300 * DAY), 3);
        assert_eq!(rig.look(&mut keeper, 1800, 300 * DAY + 900), 3);
        let mut next = rig.keeper();
        assert_eq!(rig.look(&mut next, 2700, 300 * DAY + 1800), 3);
        assert_eq!(rig.look(&mut next, 3600, 300 * DAY + 2700), 3);
        assert_eq!(rig.look(&mut next, 4500, 4500), 3, "put right");
        assert_eq!(rig.look(&mut rig.keeper(), 4500, 31 * DAY), 3, "noted is still the last good time");
        assert_eq!(rig.look(&mut next, 2700 + 2 * DAY, 2700 + 2 * DAY), 3);
        assert_eq!(rig.pass(&mut next, 30 * DAY + 60), 0);
    }

    #[test]
    fn age_is_that_of_the_newest_recipient_and_files_say_nothing() {
        let rig = Rig::new(2);
        let mut keeper = rig.keeper();
        assert_eq!(rig.pass(&mut keeper, 0), 2);
        // The record of one is as if a recipient had been added later.
        let path = rig.dead.path(MessageId { log: 1, sequence: 0 }).join("dead.json");
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let mut added = record["recipients"][0].clone();
        added["index"] = 1.into();
        added["forward_path"] = "b@e.org".into();
        added["unix_time"] = (rig.written + 10 * DAY).into();
        record["recipients"].as_array_mut().unwrap().insert(0, added);
        fs::write(&path, record.to_string()).unwrap();
        assert_eq!(rig.pass(&mut keeper, 30 * DAY + 60), 1);
        assert_eq!(rig.pass(&mut keeper, 40 * DAY - 60), 1);
        assert_eq!(rig.pass(&mut keeper, 40 * DAY + 60), 0);
    }

    #[test]
    fn what_is_asked_for_or_cannot_be_read_is_kept() {
        let rig = Rig::new(4);
        let mut keeper = rig.keeper();
        let id = |sequence| MessageId { log: 1, sequence };
        rig.dead.requests().add(&[id(1)]).unwrap();
        fs::write(rig.dead.path(id(2)).join("dead.json"), "{}").unwrap();
        fs::create_dir(rig.dead.dir().join("notes")).unwrap();
        std::os::unix::fs::symlink(rig.dead.path(id(2)), rig.dead.dir().join("link")).unwrap();
        assert_eq!(rig.pass(&mut keeper, 0), 4);
        assert_eq!(rig.pass(&mut keeper, 31 * DAY), 2);
        assert_eq!(rig.dead.ids().unwrap(), [id(1), id(2)]);
        rig.dead.requests().withdraw(id(1)).unwrap();
        assert_eq!(rig.pass(&mut keeper, 31 * DAY + 900), 1);
        assert!(rig.dead.dir().join("notes").exists() && rig.dead.dir().join("link").exists());
    }
}
