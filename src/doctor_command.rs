//! `incoming doctor`: what this machine is for the gateway.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use incoming::config::Config;
use incoming::doctor::{Finding, Level, Report, examine};
use serde_json::json;

use crate::{FAULT, print};

#[derive(Args)]
pub struct DoctorCommand {
    /// One object of JSON, with what was measured.
    #[arg(long)]
    json: bool,
}

/// Looks, and prints what was found.
pub fn run(command: &DoctorCommand, config: &Config) -> ExitCode {
    let report = examine(config);
    let text = if command.json { as_json(&report) } else { as_text(&report) };
    match report.worst() {
        Level::Fault => {
            print(&text);
            ExitCode::from(FAULT)
        }
        _ => print(&text),
    }
}

fn as_json(report: &Report) -> String {
    let object = json!({ "worst": report.worst(), "findings": report.findings });
    format!("{object:#}\n")
}

fn as_text(report: &Report) -> String {
    let width = report.findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or(0);
    let mut text: String = report.findings.iter().map(|finding| lines(finding, width)).collect();
    let counts =
        [(Level::Fault, "fault"), (Level::Warning, "warning"), (Level::Note, "note")].map(|(level, word)| {
            let count = report.count(level);
            format!("{count} {word}{}", if count == 1 { "" } else { "s" })
        });
    let _ = writeln!(text, "\n{}", counts.join(", "));
    text
}

/// A line for what was found, and one each for what it costs and how to mend it.
fn lines(finding: &Finding, width: usize) -> String {
    let Finding { check, level, finding: found, cost, remedy, .. } = finding;
    // Names of files and devices are others' text: none ends a line or moves a cursor.
    let shown = |text: &str| text.replace(char::is_control, "\u{fffd}");
    let mut text = format!("{:<8} {check:<width$}  {}\n", level.word(), shown(found));
    for (word, said) in [("costs", cost), ("mend", remedy)] {
        if let Some(said) = said {
            let _ = writeln!(text, "{:<8} {:<width$}  {word}: {}", "", "", shown(said));
        }
    }
    text
}
