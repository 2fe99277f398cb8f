//! An inbound SMTP gateway: thread-per-core, a durable spool per core, delivery behind it.
//!
//! Knowledge flows down, effects flow up. The inner modules know rules and bytes and are pure; only [`shard`] waits,
//! and it contains no rule. Time is an argument.
//!
//! ```text
//!         main ── config ── limits
//!                   │
//!                gateway            cores → shards, threads → workers, signals, drain
//!                   │                inspect, beside it: looks into a spool; doctor: at the machine; only main calls them
//!                   │                admin, beside it: what operators ask, knows it as a trait; scrape, below: what /metrics says
//!         ┌─────────┼──────────┐
//!       shard    telemetry            shard: the only module that names glommio and awaits sockets and files
//!         │                           proxy, below it: what a PROXY protocol header says; knows nobody
//!     ┌──────┬──────┼──────┬────────┐
//!   smtp    tls  policy  spool   delivery   strangers: they meet only in shard and gateway
//!     └──────┴──────┼──────┴────────┘     client, below policy: the other side of SMTP and LMTP
//!                 mail              the shared words: paths, envelope, message id
//! ```
pub mod admin;
mod breaker;
pub mod client;
pub mod config;
pub mod delivery;
pub mod doctor;
pub mod gateway;
pub mod inspect;
pub mod limits;
pub mod mail;
pub mod policy;
pub mod proxy;
mod scheduling;
pub mod scrape;
pub mod shard;
pub mod smtp;
pub mod spool;
pub mod telemetry;
pub mod tls;
