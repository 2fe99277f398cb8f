//! The same load against several targets in turn, A B A B …, and what one is to another.
//!
//! A machine's speed changes from minute to minute; two runs that follow each other share most of it. So a target is
//! compared with the first one **within each round**, and the ratios of the rounds are told with their spread. A run that
//! came to nothing is told of and left out of the ratios.

use std::fmt;

use serde::Serialize;

use crate::measure::Phase;
use crate::report::Report;

/// Every run of a comparison.
#[derive(Serialize)]
pub struct Comparison {
    targets: Vec<Compared>,
}

/// One target's runs.
#[derive(Serialize)]
pub struct Compared {
    /// What it is called.
    pub name: String,
    /// A run for each round; nothing where it could not be done.
    pub rounds: Vec<Option<Report>>,
    /// What was said where it could not be done.
    pub faults: Vec<String>,
    /// What it came to; nothing where no round did.
    pub figures: Option<ComparedFigures>,
}

/// A target's figures over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct ComparedFigures {
    /// Accepted messages a second.
    pub rate: Spread,
    /// The same as a part of the first target's in the same round.
    pub rate_ratio: Option<Spread>,
    /// End-of-data to 250, half are no longer, microseconds.
    pub p50: Option<Spread>,
    /// 99 of 100 are no longer.
    pub p99: Option<Spread>,
    /// The server's CPU seconds for a thousand messages.
    pub cpu_seconds_per_1000: Option<Spread>,
    /// The same as a multiple of the first target's in the same round.
    pub cpu_ratio: Option<Spread>,
    /// The server's peak memory, octets.
    pub memory_octets: Option<Spread>,
}

/// A figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Of the rounds.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Over `values`; nothing over none.
    pub fn over(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        Some(Spread { median, min, max })
    }
}

impl Spread {
    /// For people: the median, and the ends where they differ, each times `unit`.
    pub fn in_unit(self, unit: f64, digits: usize) -> String {
        let [median, min, max] =
            [self.median, self.min, self.max].map(|value| format!("{:.digits$}", value * unit));
        match min == max {
            true => median,
            false => format!("{median} ({min} to {max})"),
        }
    }
}

impl Compared {
    /// The run whose rate is in the middle.
    pub fn typical(&self) -> Option<&Report> {
        let mut runs: Vec<&Report> = self.rounds.iter().flatten().collect();
        runs.sort_by(|one, other| one.rate.total_cmp(&other.rate));
        runs.get(runs.len() / 2).copied()
    }
}

impl Comparison {
    /// A comparison of these targets, without a run yet.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let compared = |name| Compared { name, rounds: Vec::new(), faults: Vec::new(), figures: None };
        Comparison { targets: names.into_iter().map(compared).collect() }
    }

    /// Adds the next round's run of target `index`.
    pub fn add(&mut self, index: usize, run: Result<Report, String>) {
        let target = &mut self.targets[index];
        let run = run.and_then(|report| match report.accepted {
            0 => Err("nothing was accepted".to_owned()),
            _ => Ok(report),
        });
        match run {
            Ok(report) => target.rounds.push(Some(report)),
            Err(fault) => {
                target.faults.push(format!("round {}: {fault}", target.rounds.len() + 1));
                target.rounds.push(None);
            }
        }
        self.targets[index].figures = self.figures(index);
    }

    /// The targets, in the order in which they take turns.
    pub fn targets(&self) -> &[Compared] {
        &self.targets
    }

    /// What a reader must know: faults, and each run's warnings once.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        for target in &self.targets {
            remarks.extend(target.faults.iter().map(|fault| format!("{}, {fault}", target.name)));
            let mut warnings: Vec<_> = target.rounds.iter().flatten().flat_map(|run| &run.warnings).collect();
            warnings.sort();
            warnings.dedup();
            remarks.extend(warnings.into_iter().map(|warning| format!("{}: {warning}", target.name)));
        }
        remarks
    }

    fn figures(&self, index: usize) -> Option<ComparedFigures> {
        let runs = || self.targets[index].rounds.iter().flatten();
        let pairs = || {
            let others = self.targets[index].rounds.iter();
            self.targets[0]
                .rounds
                .iter()
                .zip(others)
                .filter_map(|(one, other)| one.as_ref().zip(other.as_ref()))
        };
        let latency =
            |run: &Report, part: fn(&crate::report::Latency) -> f64| run.phase(Phase::EndOfData).map(part);
        Some(ComparedFigures {
            rate: Spread::over(runs().map(|run| run.rate))?,
            rate_ratio: Spread::over(pairs().map(|(one, other)| other.rate / one.rate)),
            p50: Spread::over(runs().filter_map(|run| latency(run, |latency| latency.p50))),
            p99: Spread::over(runs().filter_map(|run| latency(run, |latency| latency.p99))),
            cpu_seconds_per_1000: Spread::over(runs().filter_map(cpu)),
            cpu_ratio: Spread::over(pairs().filter_map(|(one, other)| Some(cpu(other)? / cpu(one)?))),
            memory_octets: Spread::over(
                runs().filter_map(|run| run.server.map(|server| server.memory_octets as f64)),
            ),
        })
    }
}

fn cpu(run: &Report) -> Option<f64> {
    run.server.and_then(|server| server.cost.cpu_seconds_per_1000)
}

/// A table in Markdown, which reads well as text too, and what went wrong below it.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.targets.first().map_or("", |target| &target.name);
        let head = [
            "target",
            "msg/s",
            &format!("of {first}"),
            "end-of-data → 250 p50 ms",
            "p99 ms",
            "server CPU-s/1000",
            &format!("times {first}"),
            "memory MiB",
        ];
        writeln!(f, "| {} |", head.join(" | "))?;
        writeln!(f, "|{}", "---|".repeat(head.len()))?;
        for target in &self.targets {
            let Some(figures) = &target.figures else {
                writeln!(f, "| {} |{}", target.name, " – |".repeat(head.len() - 1))?;
                continue;
            };
            let cells = [
                target.name.clone(),
                cell(Some(figures.rate), 1.0, 0),
                cell(figures.rate_ratio, 1.0, 3),
                cell(figures.p50, 1e-3, 2),
                cell(figures.p99, 1e-3, 2),
                cell(figures.cpu_seconds_per_1000, 1.0, 4),
                cell(figures.cpu_ratio, 1.0, 1),
                cell(figures.memory_octets, 1.0 / f64::from(1 << 20), 1),
            ];
            writeln!(f, "| {} |", cells.join(" | "))?;
        }
        writeln!(f, "\nMedian of the rounds (smallest to largest). Ratios are to {first} within a round.")?;
        for remark in self.remarks() {
            writeln!(f, "{remark}")?;
        }
        Ok(())
    }
}

fn cell(spread: Option<Spread>, unit: f64, digits: usize) -> String {
    spread.map_or_else(|| "–".to_owned(), |spread| spread.in_unit(unit, digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_median_between_its_ends() {
        assert_eq!(Spread::over([]), None);
        assert_eq!(Spread::over([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::over([4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    }

    #[test]
    fn a_cell_without_spread_says_its_figure_once() {
        let spread = Spread { median: 2000.0, min: 2000.0, max: 2000.0 };
        assert_eq!(cell(Some(spread), 1e-3, 2), "2.00");
        assert_eq!(cell(Some(Spread { min: 1000.0, ..spread }), 1e-3, 1), "2.0 (1.0 to 2.0)");
        assert_eq!(cell(None, 1.0, 0), "–");
    }
}
