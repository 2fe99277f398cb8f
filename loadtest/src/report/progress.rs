//! How a run stands while it goes, on stderr: stdout is for the report.
//!
//! On a terminal one line is drawn again and again in its place, and is gone when the run is over. Elsewhere, in a log as a
//! rule, there are whole lines, about [`LINE_COUNT`] of them a run.

use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, Instant};

use super::units::{digits, duration, grouped};
use crate::drive::{Stage, Watcher};
use crate::measure::{INTERVAL, Interval};
use crate::plan::{Goal, Plan};

/// How often the line of a terminal is drawn.
const DRAW_INTERVAL: Duration = INTERVAL;
/// Lines of a run whose length is known, where it is no terminal that they are written to.
const LINE_COUNT: u32 = 20;
/// Runs below this have a line each second.
const SHORT_RUN: Duration = Duration::from_secs(10);
/// Between two lines of a run whose length is not known.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Intervals that make up the last second.
const RECENT_COUNT: usize = 4;

/// Where it is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A terminal: one line that is drawn anew.
    Redrawn,
    /// Anything else: whole lines, less often.
    Lines,
}

/// Tells how a run stands. What cannot be written is not told: a run does not fail of it.
pub struct Progress<W: Write> {
    out: W,
    form: Form,
    goal: Goal,
    warm_up: Duration,
    line_interval: Duration,
    recent: VecDeque<Interval>,
    /// Messages accepted since counting began, as far as whole intervals tell.
    counted: u64,
    failed: u64,
    drawn: Option<Instant>,
    is_line_open: bool,
}

impl<W: Write> Progress<W> {
    /// Of a run of `plan`.
    pub fn new(plan: &Plan, out: W, form: Form) -> Self {
        let line_interval = match plan.goal {
            Goal::Duration(duration) if duration < SHORT_RUN => Duration::from_secs(1),
            Goal::Duration(duration) => (plan.warm_up + duration) / LINE_COUNT,
            Goal::Messages(_) => LINE_INTERVAL,
        };
        Progress {
            out,
            form,
            goal: plan.goal,
            warm_up: plan.warm_up,
            line_interval: line_interval.max(Duration::from_secs(1)),
            recent: VecDeque::new(),
            counted: 0,
            failed: 0,
            drawn: None,
            is_line_open: false,
        }
    }

    /// Clears the line of a terminal. To be called when the run is over, however it ended.
    pub fn finish(&mut self) {
        if std::mem::take(&mut self.is_line_open) {
            let _ = write!(self.out, "\r\x1b[K").and_then(|()| self.out.flush());
        }
    }

    fn handle_stage_at(&mut self, stage: &Stage, elapsed: Duration, now: Instant) {
        let interval = match self.form {
            Form::Redrawn => DRAW_INTERVAL,
            Form::Lines => self.line_interval,
        };
        // A line drawn at once is gone soon; one in a log would say that nothing has happened yet.
        let since = match self.form {
            Form::Redrawn => self.drawn,
            Form::Lines => Some(*self.drawn.get_or_insert(now)),
        };
        if since.is_some_and(|since| now < since + interval) {
            return;
        }
        self.drawn = Some(now);
        let line = self.line(stage, elapsed);
        // A terminal narrower than the line would wrap it, and a wrapped line cannot be drawn over.
        let _ = match self.form {
            Form::Redrawn => write!(self.out, "\r\x1b[?7l{line}\x1b[K\x1b[?7h"),
            Form::Lines => writeln!(self.out, "{line}"),
        };
        let _ = self.out.flush();
        self.is_line_open = self.form == Form::Redrawn;
    }

    fn line(&self, stage: &Stage, elapsed: Duration) -> String {
        let counting = elapsed.saturating_sub(self.warm_up);
        let mut words = vec![match (stage, self.goal) {
            (Stage::Connecting(greeted, of), _) => {
                return format!("connecting: {} of {}", grouped(*greeted as u64), grouped(*of as u64));
            }
            (Stage::WarmUp, _) => format!("warm-up {}", of_time(elapsed, self.warm_up)),
            (Stage::Counting, Goal::Duration(goal)) => of_time(counting, goal),
            (Stage::Counting, Goal::Messages(goal)) => {
                let counted = self.counted.min(goal);
                format!("{} of {}", grouped(counted), grouped(goal))
            }
            (Stage::Finishing, _) => "waiting for replies".to_owned(),
        }];
        let seconds = INTERVAL.as_secs_f64() * self.recent.len() as f64;
        let accepted: u64 = self.recent.iter().map(|interval| interval.accepted).sum();
        let rate = if seconds > 0.0 { accepted as f64 / seconds } else { 0.0 };
        words.push(format!("{}/s", digits(rate)));
        if let Some(latencies) = self.recent_latencies() {
            let at = |quantile: f64| duration(latencies.value_at_quantile(quantile) as f64 / 1000.0);
            words.push(format!("p50 {}", at(0.5)));
            words.push(format!("p99 {}", at(0.99)));
        }
        if self.failed > 0 {
            words.push(format!("{} failed", grouped(self.failed)));
        }
        if matches!(stage, Stage::WarmUp | Stage::Counting)
            && let Some(left) = self.left(elapsed, rate)
        {
            words.push(format!("{} left", clock(left)));
        }
        words.join("  ")
    }

    /// End-of-data to 250 within the last second.
    fn recent_latencies(&self) -> Option<hdrhistogram::Histogram<u64>> {
        let mut sum = Interval::new(0);
        self.recent.iter().for_each(|interval| sum.add(interval));
        (!sum.end_of_data.is_empty()).then_some(sum.end_of_data)
    }

    fn left(&self, elapsed: Duration, rate: f64) -> Option<Duration> {
        match self.goal {
            Goal::Duration(goal) => Some((self.warm_up + goal).saturating_sub(elapsed)),
            Goal::Messages(goal) => {
                let seconds = goal.saturating_sub(self.counted) as f64 / rate;
                let left = Duration::try_from_secs_f64(seconds).ok()?;
                Some(left + self.warm_up.saturating_sub(elapsed))
            }
        }
    }
}

impl<W: Write> Watcher for Progress<W> {
    fn handle_interval(&mut self, interval: &Interval) {
        let mut copy = Interval::new(interval.index);
        copy.add(interval);
        if INTERVAL * interval.index as u32 >= self.warm_up {
            self.counted += copy.accepted;
        }
        self.failed += copy.failed;
        self.recent.push_back(copy);
        if self.recent.len() > RECENT_COUNT {
            self.recent.pop_front();
        }
    }

    fn handle_stage(&mut self, stage: Stage, elapsed: Duration) {
        self.handle_stage_at(&stage, elapsed, Instant::now());
    }
}

impl<W: Write> Drop for Progress<W> {
    fn drop(&mut self) {
        self.finish();
    }
}

fn of_time(elapsed: Duration, whole: Duration) -> String {
    format!("{} of {}", clock(elapsed.min(whole)), clock(whole))
}

/// To a tenth of a second below a minute, `1:05` and `1:01:05` above.
fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, _) => format!("{:.1} s", duration.as_secs_f64()),
        (0, minutes, seconds) => format!("{minutes}:{seconds:02}"),
        (hours, minutes, seconds) => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn interval(index: usize, accepted: u64, failed: u64) -> Interval {
        let mut interval = Interval { accepted, failed, ..Interval::new(index) };
        // Told as 2.01 ms: the histogram of an interval has two digits, and is never short.
        interval.end_of_data.record(2_000_000).unwrap();
        interval
    }

    fn written(goal: Goal, form: Form) -> String {
        let plan = Plan { goal, ..sample::quiet().plan };
        let mut out = Vec::new();
        let begin = Instant::now();
        let mut progress = Progress::new(&plan, &mut out, form);
        for step in 0..40 {
            let elapsed = Duration::from_millis(step * 50);
            if step % 5 == 4 {
                progress.handle_interval(&interval(step as usize / 5, 250, u64::from(step == 39)));
            }
            let stage = if elapsed < plan.warm_up { Stage::WarmUp } else { Stage::Counting };
            progress.handle_stage_at(&stage, elapsed, begin + elapsed);
        }
        progress.handle_stage_at(&Stage::Finishing, Duration::from_secs(3), begin + Duration::from_secs(3));
        progress.finish();
        drop(progress);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_log_has_a_line_a_second_of_a_short_run() {
        let lines = written(Goal::Duration(Duration::from_secs(2)), Form::Lines);
        let expected = "0.0 s of 2.0 s  1,000/s  p50 2.01 ms  p99 2.01 ms  2.0 s left\n\
            waiting for replies  1,000/s  p50 2.01 ms  p99 2.01 ms  1 failed\n";
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_terminal_has_one_line_four_times_a_second_and_none_at_the_end() {
        let drawn = written(Goal::Messages(1_500), Form::Redrawn);
        assert!(!drawn.contains('\n'), "{drawn:?}");
        assert_eq!(drawn.matches('\r').count(), 9 + 1, "{drawn:?}");
        assert!(drawn.ends_with("\r\x1b[K"), "{drawn:?}");
        assert!(drawn.contains("750 of 1,500  1,000/s  p50 2.01 ms  p99 2.01 ms  0.8 s left"), "{drawn:?}");
    }

    #[test]
    fn time_left_is_told_only_where_it_is_known() {
        let plan = Plan { goal: Goal::Messages(100), warm_up: Duration::ZERO, ..sample::quiet().plan };
        let mut progress = Progress::new(&plan, std::io::sink(), Form::Lines);
        let line = progress.line(&Stage::Counting, Duration::from_secs(1));
        assert_eq!(line, "0 of 100  0/s");
        progress.handle_interval(&interval(0, 10, 0));
        assert!(progress.line(&Stage::Counting, Duration::from_secs(1)).ends_with("2.2 s left"));
        assert_eq!(progress.line(&Stage::Connecting(3, 64), Duration::ZERO), "connecting: 3 of 64");
    }
}
