//! The figures of a run, and how they are told: [`Report`] is what all of it is made from.

pub mod hostile;
pub mod html;
mod machine;
pub mod progress;
#[cfg(test)]
mod sample;
mod settings;
pub mod summary;
pub mod units;

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use self::hostile::HostileFigures;
use crate::drive::Outcome;
use crate::drive::probe::Probe;
use crate::measure::{Failed, Failure, INTERVAL, Interval, Phase};
use crate::plan::Plan;
use crate::usage::Usage;
pub use machine::Machine;
pub use settings::settings;

/// Above this part of its cores' time the harness may have been what limits.
const BUSY_MAX: f64 = 0.9;

/// A course has no more points than a chart has room for.
const COURSE_POINTS_MAX: usize = 240;

/// The steps of a latency curve within a factor of ten, as parts that are longer; closer together towards its end.
const CURVE_STEPS: [f64; 11] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15];

/// One run, in figures. Times are microseconds unless a name says otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of the harness.
    pub loadtest: &'static str,
    /// The command line that asked for it.
    pub command: Vec<String>,
    /// Where the harness ran.
    pub machine: Machine,
    /// The run's part of every message's name.
    pub run: String,
    /// When it began, seconds since 1970.
    pub started: u64,
    /// What was to be done.
    pub plan: Plan,
    /// What the server said of itself.
    pub probe: Probe,
    /// It was ended before its goal.
    pub is_interrupted: bool,
    /// How long counting lasted.
    pub elapsed_seconds: f64,
    /// Messages whose end-of-data was answered 250.
    pub accepted: u64,
    /// Messages that came to something else.
    pub failed: u64,
    /// 250s to an end-of-data a second, of those that came while counting.
    pub rate: f64,
    /// Recipients of accepted messages.
    pub recipients: u64,
    /// Octets of content of accepted messages.
    pub content_octets: u64,
    /// Octets of content accepted a second.
    pub octets_per_second: f64,
    /// Octets sent while counting.
    pub sent_octets: u64,
    /// Octets received while counting.
    pub received_octets: u64,
    /// Connections that were greeted, from the beginning.
    pub connections: u64,
    /// TLS handshakes in full.
    pub tls_full: u64,
    /// TLS handshakes that resumed a session.
    pub tls_resumed: u64,
    /// Latencies of each phase that came about.
    pub phases: Vec<PhaseFigures>,
    /// Open loop: how it kept to its times.
    pub schedule: Option<ScheduleFigures>,
    /// Replies by phase and code.
    pub replies: Vec<ReplyFigures>,
    /// Failures by kind.
    pub failures: Vec<FailureFigures>,
    /// The course of the run, warm-up included.
    pub timeline: Vec<Point>,
    /// The same for drawing. Not written as JSON, which has it finer.
    #[serde(skip)]
    pub course: Course,
    /// Seconds from the beginning of the load to that of counting.
    pub counting_from_seconds: f64,
    /// What the harness itself used.
    pub load: Cost,
    /// What the server used, if it was named.
    pub server: Option<ServerFigures>,
    /// What came of hostile clients, and what the load felt of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostile: Option<HostileFigures>,
    /// What a reader of these figures must know.
    pub warnings: Vec<String>,
}

/// Latencies of one phase.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseFigures {
    /// Which.
    pub phase: Phase,
    /// How they are spread.
    #[serde(flatten)]
    pub latency: Latency,
}

/// How latencies are spread, microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// The shortest.
    pub min: f64,
    /// Their mean.
    pub mean: f64,
    /// Half are no longer.
    pub p50: f64,
    /// 90 of 100 are no longer.
    pub p90: f64,
    /// 99 of 100 are no longer.
    pub p99: f64,
    /// 999 of 1,000 are no longer.
    pub p99_9: f64,
    /// 9,999 of 10,000 are no longer.
    pub p99_99: f64,
    /// The longest.
    pub max: f64,
    /// Percentile and latency, from the shortest to the longest.
    pub curve: Vec<(f64, f64)>,
}

/// How an open loop kept to its times.
#[derive(Clone, Debug, Serialize)]
pub struct ScheduleFigures {
    /// Messages a second that fell due.
    pub rate: f64,
    /// From when a message fell due to when it was begun.
    pub lag: Latency,
    /// Messages that were never begun.
    pub never_begun: u64,
}

/// How often a phase was answered with a code.
#[derive(Clone, Debug, Serialize)]
pub struct ReplyFigures {
    /// Which phase.
    pub phase: Phase,
    /// Which code.
    pub code: u16,
    /// How often.
    pub count: u64,
    /// The first of them in full, where it refuses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
}

/// How often something failed.
#[derive(Clone, Debug, Serialize)]
pub struct FailureFigures {
    /// What.
    pub failure: Failure,
    /// How often, and the first time.
    #[serde(flatten)]
    pub failed: Failed,
}

/// What happened within one interval.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Its beginning, seconds since the load began.
    pub at: f64,
    /// Messages accepted.
    pub accepted: u64,
    /// Messages and connections that came to something else.
    pub failed: u64,
    /// Octets of content accepted.
    pub content_octets: u64,
    /// End-of-data to 250: half are no longer.
    pub p50: f64,
    /// 99 of 100 are no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// The course of a run up to the end of counting, in points of equal width; what is left of an interval at the end, too
/// short to tell a rate from, is left out.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// The width of a point, seconds.
    pub seconds: f64,
    /// In order.
    pub points: Vec<Point>,
}

/// CPU time, in all and for each accepted message.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    /// User and system time while counting.
    pub cpu_seconds: f64,
    /// For a thousand accepted messages.
    pub cpu_seconds_per_1000: Option<f64>,
}

/// What the server used.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ServerFigures {
    /// CPU time.
    #[serde(flatten)]
    pub cost: Cost,
    /// The most memory that its processes held together at one look, octets.
    pub memory_octets: u64,
    /// Processes at the end.
    pub processes: usize,
}

impl Report {
    /// The report of what came of `plan`.
    pub fn new(plan: &Plan, outcome: &Outcome) -> Self {
        let figures = &outcome.figures;
        let elapsed = outcome.elapsed.as_secs_f64();
        let per_second = |count: u64| if elapsed > 0.0 { count as f64 / elapsed } else { 0.0 };
        let cost = |cpu_seconds: f64| Cost {
            cpu_seconds,
            cpu_seconds_per_1000: (figures.answered > 0)
                .then(|| cpu_seconds * 1000.0 / figures.answered as f64),
        };
        let phases = Phase::ALL.into_iter().filter(|phase| !figures.phase(*phase).is_empty());
        let replies = figures.replies.iter().map(|(&(phase, code), &count)| {
            let first = figures.refusals.get(&(phase, code)).cloned();
            ReplyFigures { phase, code, count, first }
        });
        let failures = figures.failures.iter();
        Report {
            loadtest: env!("CARGO_PKG_VERSION"),
            command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
            machine: Machine::here(),
            run: format!("{:08x}", outcome.run),
            started: outcome.started,
            plan: plan.clone(),
            probe: outcome.probe.clone(),
            is_interrupted: outcome.is_interrupted || outcome.has_given_up,
            elapsed_seconds: elapsed,
            accepted: figures.accepted,
            failed: figures.failed,
            rate: per_second(figures.answered),
            recipients: figures.recipients,
            content_octets: figures.content_octets,
            octets_per_second: per_second(figures.answered_octets),
            sent_octets: figures.sent_octets,
            received_octets: figures.received_octets,
            connections: figures.connections,
            tls_full: figures.tls_full,
            tls_resumed: figures.tls_resumed,
            phases: phases
                .map(|phase| PhaseFigures { phase, latency: Latency::of(figures.phase(phase)) })
                .collect(),
            schedule: plan.rate.map(|rate| ScheduleFigures {
                rate,
                lag: Latency::of(&figures.lag),
                never_begun: figures.never_begun,
            }),
            replies: replies.collect(),
            failures: failures
                .map(|(&failure, failed)| FailureFigures { failure, failed: failed.clone() })
                .collect(),
            timeline: outcome.intervals.iter().map(Point::of).collect(),
            course: Course::of(&outcome.intervals, outcome.counting_from + outcome.elapsed),
            counting_from_seconds: outcome.counting_from.as_secs_f64(),
            load: cost(outcome.load_cpu_seconds),
            server: outcome.server.map(|Usage { cpu_seconds, memory_octets, processes }| ServerFigures {
                cost: cost(cpu_seconds),
                memory_octets,
                processes,
            }),
            hostile: HostileFigures::of(plan, outcome),
            warnings: warnings(plan, outcome),
        }
    }

    /// The latencies of a phase, if it came about.
    pub fn phase(&self, phase: Phase) -> Option<&Latency> {
        self.phases.iter().find(|figures| figures.phase == phase).map(|figures| &figures.latency)
    }
}

fn warnings(plan: &Plan, outcome: &Outcome) -> Vec<String> {
    let mut warnings = Vec::new();
    let has = |keyword: &str| outcome.probe.extensions.iter().any(|line| line.eq_ignore_ascii_case(keyword));
    // What is offered only below TLS is not known here.
    let is_known = plan.tls.is_none();
    if is_known && plan.is_pipelined && !has("PIPELINING") {
        warnings.push("the target does not offer PIPELINING: every command waited for its reply".to_owned());
    }
    if is_known && plan.is_chunking && !has("CHUNKING") {
        warnings.push("the target does not offer CHUNKING: contents were sent with DATA".to_owned());
    }
    if outcome.is_interrupted {
        warnings.push("the run was ended before its goal".to_owned());
    }
    if outcome.has_given_up {
        warnings.push(format!(
            "given up before its goal: nothing was accepted for {}",
            humantime::format_duration(2 * plan.timeout)
        ));
    }
    let figures = &outcome.figures;
    if figures.never_begun > 0 {
        let lag = units::duration(microseconds(figures.lag.max()));
        warnings.push(format!(
            "the target did not keep up: {} messages that fell due were never begun, and those that were begun came up \
             to {lag} late",
            units::grouped(figures.never_begun),
        ));
    }
    let busy = outcome.load_cpu_seconds / (outcome.elapsed.as_secs_f64() * plan.cores.len() as f64);
    if plan.rate.is_none() && busy > BUSY_MAX {
        warnings.push(format!(
            "the harness was busy {:.0} % of the time: it may have been the limit, give it more cores",
            busy * 100.0
        ));
    }
    if let Some(fault) = &outcome.server_fault {
        warnings.push(format!("what the server used is not known: {fault}"));
    }
    warnings
}

impl Latency {
    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile: f64| microseconds(histogram.value_at_quantile(quantile));
        let is_empty = histogram.is_empty();
        Latency {
            count: histogram.len(),
            min: if is_empty { 0.0 } else { microseconds(histogram.min()) },
            mean: histogram.mean() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: if is_empty { 0.0 } else { microseconds(histogram.max()) },
            curve: curve(histogram),
        }
    }
}

/// Percentile and microseconds at [`CURVE_STEPS`], as far as there are messages that tell them apart.
fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let count = histogram.len() as f64;
    let mut curve = Vec::new();
    let mut decade = 1.0;
    while decade * count >= 1.0 {
        for longer in CURVE_STEPS.map(|step| step * decade).into_iter().filter(|longer| longer * count >= 1.0)
        {
            // Without the dust of binary fractions: 99.9, not 99.90000000000001.
            let percentile = ((1.0 - longer) * 1e9).round() / 1e7;
            curve.push((percentile, microseconds(histogram.value_at_percentile(percentile))));
        }
        decade /= 10.0;
    }
    if !histogram.is_empty() {
        curve.push((100.0, microseconds(histogram.max())));
    }
    curve
}

impl Course {
    fn of(intervals: &[Interval], end: Duration) -> Self {
        let stride = intervals.len().div_ceil(COURSE_POINTS_MAX).max(1);
        let mut sums: Vec<Interval> = Vec::new();
        for interval in intervals {
            match sums.last_mut().filter(|sum| sum.index / stride == interval.index / stride) {
                Some(sum) => sum.add(interval),
                None => {
                    let mut sum = Interval::new(interval.index / stride * stride);
                    sum.add(interval);
                    sums.push(sum);
                }
            }
        }
        let width = INTERVAL * stride as u32;
        let is_whole = |sum: &&Interval| INTERVAL * sum.index as u32 + width <= end;
        let whole: Vec<Point> = sums.iter().filter(is_whole).map(Point::of).collect();
        match whole.is_empty() {
            false => Course { seconds: width.as_secs_f64(), points: whole },
            // A run below an interval is one point, as wide as it was long.
            true => Course {
                seconds: width.min(end).as_secs_f64(),
                points: sums.iter().take(1).map(Point::of).collect(),
            },
        }
    }
}

impl Point {
    fn of(interval: &Interval) -> Self {
        let at = |quantile: f64| microseconds(interval.end_of_data.value_at_quantile(quantile));
        Point {
            at: (INTERVAL * interval.index as u32).as_secs_f64(),
            accepted: interval.accepted,
            failed: interval.failed,
            content_octets: interval.content_octets,
            p50: at(0.5),
            p99: at(0.99),
            max: microseconds(interval.end_of_data.max()),
        }
    }
}

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_course_of_a_long_run_has_few_points_and_every_message_but_those_of_the_last_moment() {
        for (count, points, seconds) in
            [(0, 0, 0.25), (1, 1, 0.25), (240, 240, 0.25), (241, 120, 0.5), (14_400, 240, 15.0)]
        {
            let interval = |index| Interval { accepted: 7, ..Interval::new(index) };
            let intervals: Vec<Interval> = (0..count).map(interval).collect();
            let course = Course::of(&intervals, INTERVAL * count as u32);
            assert_eq!(
                (course.points.len(), course.seconds),
                (points, if count == 0 { 0.0 } else { seconds })
            );
            let accepted: u64 = course.points.iter().map(|point| point.accepted).sum();
            assert_eq!(accepted, (points as f64 * seconds / 0.25) as u64 * 7, "{count}");
        }
    }

    #[test]
    fn a_run_shorter_than_an_interval_is_one_point_as_wide_as_itself() {
        let course = Course::of(&[Interval::new(0)], Duration::from_millis(100));
        assert_eq!((course.points.len(), course.seconds), (1, 0.1));
    }

    #[test]
    fn a_curve_goes_as_far_as_there_are_messages_and_ends_with_the_longest() {
        for (count, last_but_one) in [(1, 0.0), (100, 99.0), (10_000, 99.99)] {
            let mut histogram = crate::measure::histogram(3);
            (1..=count).for_each(|n| histogram.record(n * 1_000).unwrap());
            let curve = curve(&histogram);
            assert!(curve.is_sorted(), "{curve:?}");
            assert_eq!(curve[curve.len() - 2].0, last_but_one);
            assert_eq!(curve.last(), Some(&(100.0, microseconds(histogram.max()))));
        }
        assert!(curve(&crate::measure::histogram(3)).is_empty());
    }
}
