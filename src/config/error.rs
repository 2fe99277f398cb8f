//! What is wrong with a configuration, and where.

use std::fmt;

/// A fault in a configuration: where, which key, and what would have been accepted.
///
/// As text: `<file>:<line>: <key>: <words>`, or `<variable or flag>: <words>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub(super) place: Option<String>,
    pub(super) key: Option<String>,
    pub(super) words: String,
    pub(super) is_usage: bool,
}

impl ConfigError {
    /// Of what a program said at `place`.
    pub(crate) fn of_program(place: String, words: String) -> Self {
        ConfigError { place: Some(place), key: None, words, is_usage: false }
    }

    /// Whether the fault is in what was typed on the command line.
    pub fn is_usage(&self) -> bool {
        self.is_usage
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.place, &self.key].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.words)
    }
}

impl std::error::Error for ConfigError {}

/// A fault that shows only when the layers are together: a key and words, the place yet to be found.
#[derive(Debug)]
pub struct Fault {
    pub key: String,
    pub words: String,
}

impl Fault {
    pub fn new(key: impl Into<String>, words: impl Into<String>) -> Self {
        Fault { key: key.into(), words: words.into() }
    }
}
