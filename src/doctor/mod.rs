//! What this machine is for the gateway: what was found, what it costs, how to mend it.
//!
//! Each subject is a file with two halves: what is read (text of `/proc` and `/sys`, numbers that were measured), as plain data, and a
//! judgement of that data, which is a function and nothing else. So every judgement is tested by a table, whatever machine the test runs on.
//!
//! Invariants:
//! - nothing of the gateway's is touched: what must be tried is tried with a file that has no name, and goes with the process however it
//!   ends;
//! - everything is bounded: [`SYNCS_MAX`] syncs, and some seconds;
//! - what cannot be seen is said to be so. It is a note, never a guess.
//!
//! Works before a first start and beside a running gateway. Does not know what the gateway does at present: that is `incoming stats`.

mod cores;
mod finding;
mod kernel;
mod limits;
mod names;
mod network;
mod processors;
mod reading;
mod storage;
mod trial;

use crate::config::Config;

pub use finding::{Finding, Level, Report};
pub use trial::SYNCS_MAX;

/// Looks at the machine with `config` in mind. Takes some seconds, most of them for the disk and for resolvers that do not answer.
pub fn examine(config: &Config) -> Report {
    let cores = crate::gateway::pinned_cores(config);
    let kernel = kernel::Kernel::read();
    let storage = storage::Storage::read(config, kernel.beneath.is_virtual);
    let place = processors::Processors::read(config, cores.clone());
    let mut findings = Vec::new();
    findings.extend(kernel::judge(&kernel));
    findings.extend(storage::judge(&storage, &storage::Purpose::of(config)));
    findings.extend(limits::judge(&limits::Limits::read(storage.holder), &limits::Wanted::of(config)));
    findings.extend(processors::judge(&place));
    findings.extend(network::judge(&network::Network::read(config), &network::Shards::new(config, cores)));
    findings.extend(names::judge(&names::Names::read(config)));
    Report { findings }
}
