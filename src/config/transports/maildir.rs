//! `type = "maildir"`.

use serde::{Deserialize, Serialize};

use crate::config::value::{Text, flag};
use crate::delivery::transport::PathTemplate;

/// Maildirs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Maildir {
    /// The folder, possibly one for each recipient.
    #[serde(default)]
    path: Option<Text<PathTemplate>>,
    /// Whether `Return-Path:` is written first (RFC 5321 §4.4).
    #[serde(default = "yes", deserialize_with = "flag")]
    pub return_path: bool,
}

fn yes() -> bool {
    true
}

impl Maildir {
    /// The folder, possibly one for each recipient.
    pub fn path(&self) -> &PathTemplate {
        &self.path.as_ref().expect("it was settled").0
    }

    /// Without a folder it is one in the data directory.
    pub(super) fn settle(&mut self, data: &str) {
        self.path.get_or_insert_with(|| {
            let path = format!("{}/maildir", data.trim_end_matches('/'));
            Text(PathTemplate::literal(&path))
        });
    }
}
