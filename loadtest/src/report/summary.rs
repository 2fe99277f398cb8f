//! The figures for people, as text for a terminal.
//!
//! What is most worth quoting comes first, what a reader must know of it comes last, where the eye rests when the command
//! is done. What has nothing to say is left out.

use std::fmt;

use super::units::{digits, duration, grouped, memory, octets, one_line};
use super::{Cost, Latency, Report, ScheduleFigures};

/// A report as text for a terminal.
pub struct Summary<'a>(pub &'a Report);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        headline(f, report)?;
        phases(f, report)?;
        if let Some(schedule) = &report.schedule {
            self::schedule(f, report, schedule)?;
        }
        replies(f, report)?;
        failures(f, report)?;
        costs(f, report)?;
        if let Some(hostile) = &report.hostile {
            write!(f, "\n{hostile}")?;
        }
        warnings(f, report)
    }
}

fn headline(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let target = &report.plan.target;
    let address = target.address.to_string();
    let name = match target.name == address {
        true => address,
        false => format!("{} ({address})", target.name),
    };
    write!(
        f,
        "{} messages/s accepted, {}/s, over {} by {name}",
        digits(report.rate),
        octets(report.octets_per_second),
        duration(report.elapsed_seconds * 1e6),
    )?;
    match report.probe.greeting.as_str() {
        "" => writeln!(f)?,
        greeting => writeln!(f, ": {}", one_line(greeting))?,
    }
    write!(f, "{} accepted", grouped(report.accepted))?;
    if report.recipients != report.accepted {
        write!(f, " for {} recipients", grouped(report.recipients))?;
    }
    if report.failed > 0 {
        write!(f, ", {} FAILED", grouped(report.failed))?;
    }
    write!(f, "; {} of content", octets(report.content_octets as f64))?;
    writeln!(
        f,
        ", {} sent, {} received",
        octets(report.sent_octets as f64),
        octets(report.received_octets as f64)
    )?;
    write!(f, "{} connections", grouped(report.connections))?;
    if report.tls_full + report.tls_resumed > 0 {
        write!(
            f,
            "; TLS handshakes: {} in full, {} resumed",
            grouped(report.tls_full),
            grouped(report.tls_resumed)
        )?;
    }
    writeln!(f)
}

fn phases(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    if report.phases.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["", "count", "p50", "p90", "p99", "p99.9", "max"]);
    for phase in &report.phases {
        table.push_latency(phase.phase.name(), &phase.latency);
    }
    write!(f, "\n{table}")
}

fn schedule(f: &mut fmt::Formatter<'_>, report: &Report, schedule: &ScheduleFigures) -> fmt::Result {
    writeln!(
        f,
        "\nschedule: {} messages/s fell due, {} were accepted",
        digits(schedule.rate),
        digits(report.rate)
    )?;
    if schedule.never_begun > 0 {
        writeln!(f, "  {} that fell due were never begun", grouped(schedule.never_begun))?;
    }
    let mut table = Table::new(&["", "count", "p50", "p90", "p99", "p99.9", "max"]);
    table.push_latency("due → begun", &schedule.lag);
    write!(f, "{table}")
}

fn replies(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    if report.replies.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["replies", "code", "count", ""]);
    for reply in &report.replies {
        let command = reply.phase.name().split(" →").next().unwrap_or_default();
        table.push([
            command.to_owned(),
            reply.code.to_string(),
            grouped(reply.count),
            reply.first.as_deref().map(one_line).unwrap_or_default(),
        ]);
    }
    write!(f, "\n{table}")
}

fn failures(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    if report.failures.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["failures", "count", ""]);
    for failure in &report.failures {
        table.push([
            failure.failure.name().to_owned(),
            grouped(failure.failed.count),
            one_line(&failure.failed.first),
        ]);
    }
    write!(f, "\n{table}")
}

fn costs(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let mut table = Table::new(&["cost", "CPU-s", "per 1000 messages", "memory"]);
    let figures = |cost: &Cost| {
        [
            digits(cost.cpu_seconds),
            cost.cpu_seconds_per_1000.map(|each| format!("{each:.4}")).unwrap_or_default(),
        ]
    };
    if let Some(server) = &report.server {
        let [all, each] = figures(&server.cost);
        table.push(["server".to_owned(), all, each, memory(server.memory_octets).to_string()]);
    }
    let [all, each] = figures(&report.load);
    table.push(["harness".to_owned(), all, each, String::new()]);
    write!(f, "\n{table}")
}

fn warnings(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    if !report.warnings.is_empty() {
        writeln!(f)?;
    }
    for warning in &report.warnings {
        writeln!(f, "WARNING: {}", one_line(warning))?;
    }
    Ok(())
}

/// Rows of equally many cells. Columns are as wide as their widest cell; the first is set left, numbers right, and a last
/// column without a heading left again: words. A column with nothing but a heading is not shown.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(heading: &[&str]) -> Self {
        Table { rows: vec![heading.iter().map(|&word| word.to_owned()).collect()] }
    }

    fn push<const N: usize>(&mut self, row: [String; N]) {
        debug_assert_eq!(N, self.rows[0].len());
        self.rows.push(row.into());
    }

    fn push_latency(&mut self, name: &str, latency: &Latency) {
        // Units as wide as each other, so that numbers stand below numbers.
        let cell = |microseconds| {
            let quantity = duration(microseconds);
            format!("{} {:<2}", quantity.number, quantity.unit)
        };
        let times = [latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max];
        let cells = [name.to_owned(), grouped(latency.count)].into_iter().chain(times.map(cell));
        self.rows.push(cells.collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = &self.rows[0];
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..heading.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            let has_content = |column: usize| self.rows[1..].iter().any(|row| !row[column].is_empty());
            let columns = row.iter().zip(&widths).enumerate();
            for (column, (cell, width)) in columns.filter(|(column, _)| has_content(*column)) {
                let is_words = column == 0 || (column + 1 == row.len() && heading[column].is_empty());
                let gap = if column == 0 { "" } else { "  " };
                match is_words {
                    true => line.push_str(&format!("{gap}{cell:<width$}")),
                    false => line.push_str(&format!("{gap}{cell:>width$}")),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn everything_that_happened_is_told_in_order_and_aligned() {
        assert_eq!(Summary(&sample::full()).to_string(), include_str!("summary_full.txt"));
    }

    #[test]
    fn what_did_not_happen_is_not_told() {
        assert_eq!(Summary(&sample::quiet()).to_string(), include_str!("summary_quiet.txt"));
    }
}
