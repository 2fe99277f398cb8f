//! The figures for people, as text.

use std::fmt;

use super::Report;

/// A report as text for a terminal.
pub struct Summary<'a>(pub &'a Report);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        writeln!(
            f,
            "{} messages accepted in {:.3} s: {:.0}/s",
            report.accepted, report.elapsed_seconds, report.rate
        )?;
        for phase in &report.phases {
            let latency = &phase.latency;
            writeln!(
                f,
                "{:20} {:>10} p50 {:>10.0} p99 {:>10.0} max {:>10.0} µs",
                phase.phase.name(),
                latency.count,
                latency.p50,
                latency.p99,
                latency.max
            )?;
        }
        for failed in &report.failures {
            writeln!(f, "{}: {} ({})", failed.failure.name(), failed.failed.count, failed.failed.first)?;
        }
        if let Some(cost) = report.load.cpu_seconds_per_1000 {
            writeln!(f, "load: {cost:.4} CPU-s per 1000 messages")?;
        }
        if let Some(server) = &report.server {
            writeln!(
                f,
                "server: {:.4} CPU-s per 1000 messages, {} MiB",
                server.cost.cpu_seconds_per_1000.unwrap_or_default(),
                server.memory_octets >> 20
            )?;
        }
        if let Some(hostile) = &report.hostile {
            write!(f, "{hostile}")?;
        }
        for warning in &report.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}
