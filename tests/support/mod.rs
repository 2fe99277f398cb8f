//! The test lab: a real server in a temporary folder, clients that speak to it, and the ledger that judges it.
//!
//! - [`setup`] writes a configuration and starts the binary on a port of the kernel's choice; [`server`] is the running
//!   process, which is stopped when it is dropped, also by a panic;
//! - [`client`] is one SMTP session, command by command, in clear or over TLS; [`load`] is many of them at once, and
//!   [`neighbour`] one that measures how it is served beside others;
//! - [`certificates`] issues what servers and clients show;
//! - [`ledger`] remembers what was acknowledged; [`maildir`] reads what was delivered;
//! - [`mail_servers`] are Dovecot and Postfix, for what stands behind the gateway, and [`dns`] says who that is;
//! - [`moody_store`] is an LMTP server that does as the test says;
//! - [`disk`] and [`files`] are storage that fails when it is told to; [`trial`] is what tests with them have in common.
//!
//! Nothing here waits for a fixed time: [`wait`] polls a condition until it holds or its deadline has passed.
//!
//! Knows nothing of the library's inside: it sees the program as an operator does.
#![allow(dead_code)] // every test program compiles this module and uses a part of it

pub mod certificates;
pub mod client;
pub mod disk;
pub mod dns;
pub mod files;
pub mod ledger;
pub mod load;
pub mod mail_servers;
pub mod maildir;
pub mod moody_store;
pub mod neighbour;
pub mod server;
pub mod setup;
pub mod tools;
pub mod trial;
pub mod wait;
