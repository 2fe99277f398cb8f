//! The gateway's life.

use std::fmt;

use crate::config::Config;

/// Why the gateway could not start or go on: what, where, and what to do about it.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Runs the gateway until it is told to stop.
pub fn run(_: Config) -> Result<(), Error> {
    Err(Error("no shard is built in".into()))
}
