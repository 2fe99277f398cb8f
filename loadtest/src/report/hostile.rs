//! What hostile clients did and had done to them, and what the load felt of it.
//!
//! "Before" is the warm-up without its beginning, "during" the time that counts; both are taken from whole intervals of the
//! run's course, so that they differ in nothing but the hostile clients.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::microseconds;
use crate::drive::Outcome;
use crate::hostile::{Ending, Figures, Scenario};
use crate::measure::{INTERVAL, Interval, histogram};
use crate::plan::Plan;

/// What is left out of "before" where the warm-up lasts twice as long or longer: connections are new then, caches cold.
const SETTLING: Duration = Duration::from_secs(1);

/// The section of the report.
#[derive(Clone, Debug, Serialize)]
pub struct HostileFigures {
    /// What the load felt without them, if it was there.
    pub before: Option<Felt>,
    /// What it felt of them.
    pub during: Option<Felt>,
    /// During divided by before.
    pub ratio: Option<Ratio>,
    /// Each scenario.
    pub scenarios: Vec<ScenarioFigures>,
}

/// What the load felt. Times are microseconds from end-of-data to 250.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Felt {
    /// For so long.
    pub seconds: f64,
    /// Messages accepted a second.
    pub rate: f64,
    /// Messages and connections that came to something else.
    pub failed: u64,
    /// Half are no longer.
    pub p50: f64,
    /// 99 of 100 are no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// Each figure during, as a multiple of what it was before. Nothing where that was nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// Of the rates.
    pub rate: Option<f64>,
    /// Of the medians.
    pub p50: Option<f64>,
    /// Of the 99th percentiles.
    pub p99: Option<f64>,
    /// Of the longest.
    pub max: Option<f64>,
}

/// One scenario.
#[derive(Clone, Debug, Serialize)]
pub struct ScenarioFigures {
    /// Which.
    pub scenario: Scenario,
    /// Connections at once, as planned.
    pub planned: usize,
    /// Connections made, one after another.
    pub connections: u64,
    /// Connections that could not be made.
    pub refused: u64,
    /// How they ended.
    pub endings: Vec<EndingFigures>,
    /// How long half of them lasted at most, seconds.
    pub stay_p50_seconds: f64,
    /// How long the longest lasted, seconds.
    pub stay_max_seconds: f64,
    /// Octets sent, below TLS.
    pub sent_octets: u64,
    /// TLS handshakes that came to their end.
    pub handshakes: u64,
    /// TLS handshakes that did not.
    pub failed_handshakes: u64,
    /// 421 replies: the server had enough.
    pub replies_421: u64,
    /// Other 4xx replies.
    pub replies_4xx: u64,
    /// 5xx replies.
    pub replies_5xx: u64,
}

/// How often connections ended in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EndingFigures {
    /// How.
    pub ending: Ending,
    /// How often.
    pub count: u64,
}

impl HostileFigures {
    /// The section, where hostile clients were planned.
    pub fn of(plan: &Plan, outcome: &Outcome) -> Option<Self> {
        if plan.hostile.is_empty() {
            return None;
        }
        let nothing = Figures::default();
        let scenarios = plan.hostile.iter().map(|hostile| {
            let figures = outcome.hostile.get(&hostile.scenario).unwrap_or(&nothing);
            ScenarioFigures::of(hostile.scenario, hostile.connections, figures)
        });
        let from = outcome.counting_from;
        let settled = if from >= 2 * SETTLING { SETTLING } else { Duration::ZERO };
        let felt = |from, until| match plan.connections {
            0 => None,
            _ => Felt::within(&outcome.intervals, from, until),
        };
        let (before, during) = (felt(settled, from), felt(from, from + outcome.elapsed));
        Some(HostileFigures {
            ratio: before.zip(during).map(|(before, during)| Ratio::of(&before, &during)),
            before,
            during,
            scenarios: scenarios.collect(),
        })
    }

    /// Hostile connections made.
    pub fn connections(&self) -> u64 {
        self.scenarios.iter().map(|scenario| scenario.connections).sum()
    }

    /// One scenario's figures, if it was planned.
    pub fn scenario(&self, scenario: Scenario) -> Option<&ScenarioFigures> {
        self.scenarios.iter().find(|figures| figures.scenario == scenario)
    }
}

impl Felt {
    /// Of the intervals that lie within, as times since the load began. Nothing if there are none.
    fn within(intervals: &[Interval], from: Duration, until: Duration) -> Option<Self> {
        let (mut count, mut accepted, mut failed) = (0, 0, 0);
        let mut end_of_data = histogram(2);
        for interval in intervals {
            let begin = INTERVAL * interval.index as u32;
            if begin >= from && begin + INTERVAL <= until {
                count += 1;
                accepted += interval.accepted;
                failed += interval.failed;
                end_of_data.add(&interval.end_of_data).expect("histograms of the same bounds");
            }
        }
        let seconds = (INTERVAL * count).as_secs_f64();
        let at = |quantile: f64| microseconds(end_of_data.value_at_quantile(quantile));
        (count > 0).then(|| Felt {
            seconds,
            rate: accepted as f64 / seconds,
            failed,
            p50: at(0.5),
            p99: at(0.99),
            max: microseconds(end_of_data.max()),
        })
    }
}

impl Ratio {
    fn of(before: &Felt, during: &Felt) -> Self {
        let ratio = |before: f64, during: f64| (before > 0.0).then(|| during / before);
        Ratio {
            rate: ratio(before.rate, during.rate),
            p50: ratio(before.p50, during.p50),
            p99: ratio(before.p99, during.p99),
            max: ratio(before.max, during.max),
        }
    }
}

impl ScenarioFigures {
    fn of(scenario: Scenario, planned: usize, figures: &Figures) -> Self {
        let replies = |which: &dyn Fn(u16) -> bool| {
            figures.replies.iter().filter(|(code, _)| which(**code)).map(|(_, count)| count).sum()
        };
        let stay = |nanoseconds: u64| Duration::from_nanos(nanoseconds).as_secs_f64();
        let endings = figures.endings.iter();
        ScenarioFigures {
            scenario,
            planned,
            connections: figures.connections,
            refused: figures.refused,
            endings: endings.map(|(&ending, &count)| EndingFigures { ending, count }).collect(),
            stay_p50_seconds: stay(figures.stays.value_at_quantile(0.5)),
            stay_max_seconds: stay(figures.stays.max()),
            sent_octets: figures.sent_octets,
            handshakes: figures.handshakes,
            failed_handshakes: figures.failed_handshakes,
            replies_421: replies(&|code| code == 421),
            replies_4xx: replies(&|code| (400..500).contains(&code) && code != 421),
            replies_5xx: replies(&|code| code >= 500),
        }
    }
}

impl fmt::Display for HostileFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(before), Some(during), Some(ratio)) = (&self.before, &self.during, &self.ratio) {
            writeln!(f, "what the load felt of hostile clients")?;
            writeln!(f, "  {:22} {:>12} {:>12} {:>8}", "", "before", "during", "ratio")?;
            let milliseconds = |microseconds: f64| microseconds / 1000.0;
            let rows = [
                ("accepted a second", before.rate, during.rate, ratio.rate, 0),
                ("end-of-data, ms, p50", milliseconds(before.p50), milliseconds(during.p50), ratio.p50, 3),
                ("                   p99", milliseconds(before.p99), milliseconds(during.p99), ratio.p99, 3),
                ("                   max", milliseconds(before.max), milliseconds(during.max), ratio.max, 3),
            ];
            for (name, before, during, ratio, digits) in rows {
                let ratio = ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
                writeln!(f, "  {name:22} {before:>12.digits$} {during:>12.digits$} {ratio:>8}")?;
            }
            writeln!(f, "  {:22} {:>12} {:>12}", "failed", before.failed, during.failed)?;
        }
        writeln!(
            f,
            "hostile clients\n  {:13} {:>5} {:>7} {:>8} {:>8} {:>10} {:>7} {:>7} {:>7}  ended",
            "", "conns", "made", "p50 s", "max s", "sent", "421", "4xx", "5xx"
        )?;
        for scenario in &self.scenarios {
            writeln!(
                f,
                "  {:13} {:>5} {:>7} {:>8.3} {:>8.3} {:>10} {:>7} {:>7} {:>7}  {}",
                scenario.scenario.name(),
                scenario.planned,
                scenario.connections,
                scenario.stay_p50_seconds,
                scenario.stay_max_seconds,
                bytesize::ByteSize(scenario.sent_octets).to_string(),
                scenario.replies_421,
                scenario.replies_4xx,
                scenario.replies_5xx,
                scenario.ends()
            )?;
        }
        Ok(())
    }
}

impl ScenarioFigures {
    /// The ways in which its connections ended, for people.
    fn ends(&self) -> String {
        let mut words: Vec<String> = self
            .endings
            .iter()
            .map(|EndingFigures { ending, count }| match ending {
                Ending::Closed(Some(code)) => format!("{count} closed after {code}"),
                Ending::Closed(None) => format!("{count} closed without a reply"),
                Ending::Broken => format!("{count} reset"),
                Ending::Left => format!("{count} left"),
                Ending::Held => format!("{count} held to the end"),
            })
            .collect();
        let more = [
            (self.refused, "not let in"),
            (self.handshakes, "handshakes"),
            (self.failed_handshakes, "handshakes failed"),
        ];
        words.extend(more.iter().filter(|(count, _)| *count > 0).map(|(n, what)| format!("{n} {what}")));
        words.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(index: usize, accepted: u64, milliseconds: u64) -> Interval {
        let mut interval = Interval::new(index);
        interval.accepted = accepted;
        interval.end_of_data.record_n(milliseconds * 1_000_000, accepted).unwrap();
        interval
    }

    #[test]
    fn before_and_during_are_of_whole_intervals_on_their_own_side() {
        let intervals: Vec<Interval> = (0..8).map(|n| interval(n, if n < 4 { 100 } else { 50 }, 2)).collect();
        let at = Duration::from_millis;
        let before = Felt::within(&intervals, at(0), at(1000)).unwrap();
        assert_eq!((before.rate, before.seconds), (400.0, 1.0));
        // An interval that hangs over an edge is on neither side.
        let during = Felt::within(&intervals, at(1100), at(1900)).unwrap();
        assert_eq!((during.rate, during.seconds), (200.0, 0.5));
        let ratio = Ratio::of(&before, &during);
        assert_eq!((ratio.rate, ratio.p50), (Some(0.5), Some(1.0)));
        assert!(Felt::within(&intervals, at(100), at(300)).is_none());
    }

    #[test]
    fn what_was_nothing_before_has_no_ratio() {
        let felt = Felt { seconds: 1.0, rate: 0.0, failed: 0, p50: 0.0, p99: 0.0, max: 0.0 };
        assert_eq!(Ratio::of(&felt, &felt), Ratio { rate: None, p50: None, p99: None, max: None });
    }

    #[test]
    fn replies_are_told_apart_by_what_a_server_means_by_them() {
        let mut figures = Figures::default();
        figures.replies.extend([(220, 1), (421, 2), (452, 3), (500, 4), (554, 5)]);
        let told = ScenarioFigures::of(Scenario::Hold, 1, &figures);
        assert_eq!((told.replies_421, told.replies_4xx, told.replies_5xx), (2, 3, 9));
    }
}
