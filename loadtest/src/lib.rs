//! `loadtest`: drives an SMTP server as hard, or as steadily, as it is told, and says what came of it.
//!
//! ```text
//! main ── arguments ── plan          what is to be done, every word of it parsed
//!   │
//!   ├── drive      one glommio executor a core: sockets, TLS, the clock; with hostile the only module that waits
//!   │     ├── smtp      the client's side of RFC 5321 without I/O: replies in, commands and measurements out
//!   │     ├── schedule  which message begins when, and which of them count
//!   │     ├── content   the octets of message number N, the same whenever they are asked for
//!   │     ├── ledger    what was acknowledged, written as it is
//!   │     └── measure   histograms and counts of one core; merged at the end
//!   ├── compare    the same load against several targets in turn
//!   ├── hostile    clients that mean no good, by scenario
//!   ├── usage      CPU time and memory of a server's process tree
//!   ├── report     the figures: for people, as JSON, as one HTML page
//!   └── verify     a ledger against what was delivered: what is missing, duplicated, altered
//! ```
//!
//! Only a 250 to an end-of-data counts as accepted.

pub mod arguments;
pub mod compare;
pub mod content;
pub mod drive;
pub mod hostile;
pub mod ledger;
pub mod measure;
pub mod plan;
pub mod report;
pub mod schedule;
pub mod smtp;
pub mod usage;
pub mod verify;
