//! One thing that was found, and all of them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::reading::Unseen;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; also what cannot be seen.
    Note,
    /// It costs something that somebody will notice.
    Warning,
    /// With this the gateway does not start, or does not keep what it promises.
    Fault,
}

impl Level {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Fault => "fault",
        }
    }
}

/// One thing that was found. Texts are sentences without a full stop.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What was looked at: one or two words.
    pub check: &'static str,
    /// How much it matters.
    pub level: Level,
    /// What was found.
    pub finding: String,
    /// What it costs; nothing where it is as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    /// How to mend it, where that can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// What was measured, with its unit in the name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<&'static str, f64>,
}

impl Finding {
    fn new(level: Level, check: &'static str, finding: impl Into<String>) -> Self {
        Finding { check, level, finding: finding.into(), cost: None, remedy: None, numbers: BTreeMap::new() }
    }

    pub(super) fn ok(check: &'static str, finding: impl Into<String>) -> Self {
        Finding::new(Level::Ok, check, finding)
    }

    pub(super) fn note(check: &'static str, finding: impl Into<String>) -> Self {
        Finding::new(Level::Note, check, finding)
    }

    pub(super) fn warning(check: &'static str, finding: impl Into<String>) -> Self {
        Finding::new(Level::Warning, check, finding)
    }

    pub(super) fn fault(check: &'static str, finding: impl Into<String>) -> Self {
        Finding::new(Level::Fault, check, finding)
    }

    /// It cannot be seen from here, and why.
    pub(super) fn unseen(check: &'static str, Unseen(why): &Unseen) -> Self {
        Finding::note(check, format!("cannot be seen here: {why}"))
    }

    pub(super) fn costs(self, cost: impl Into<String>) -> Self {
        Finding { cost: Some(cost.into()), ..self }
    }

    pub(super) fn mend(self, remedy: impl Into<String>) -> Self {
        Finding { remedy: Some(remedy.into()), ..self }
    }

    pub(super) fn number(mut self, name: &'static str, number: f64) -> Self {
        self.numbers.insert(name, number);
        self
    }
}

/// Everything that was found, in the order in which it is to be read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Report {
    /// How many there are of a level.
    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// What matters most.
    pub fn worst(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }
}
