//! An inbound SMTP gateway for Linux, to be had in a program of one's own: it takes mail at very high rate, makes each message durable
//! before it says `250`, asks your [`Policy`](policy::Policy) about it, and hands it to your [`Delivery`](delivery::Delivery), again and
//! again until that has it for good.
//!
//! # The smallest program
//!
//! It takes mail until it is told to stop, and prints who writes to whom about what:
//!
//! ```no_run
#![doc = include_str!("../examples/print.rs")]
//! ```
//!
//! # Beside whatever else the program does
//!
//! [`Gateway::run`] makes the process the gateway's; [`Gateway::start`] leaves signals, panics and standard error alone:
//!
//! ```
//! use std::sync::mpsc;
//!
//! use incoming::Gateway;
//! use incoming::delivery::{Attempt, BlockingDelivery, Outcome};
//!
//! /// Tells who has written.
//! struct Tell(mpsc::Sender<String>);
//!
//! impl BlockingDelivery for Tell {
//!     fn deliver(&self, message: &Attempt) -> Vec<Outcome> {
//!         let outcome = match self.0.send(message.envelope.reverse_path.to_string()) {
//!             Ok(()) => Outcome::delivered(),
//!             Err(_) => Outcome::deferred("nobody listens"),
//!         };
//!         vec![outcome; message.recipients.len()]
//!     }
//! }
//!
//! # fn send(address: std::net::SocketAddr) -> std::io::Result<()> {
//! #     use std::io::{BufRead, BufReader, Write};
//! #     let mut stream = std::net::TcpStream::connect(address)?;
//! #     let mut replies = BufReader::new(stream.try_clone()?).lines();
//! #     for (line, code) in [
//! #         ("", "220"),
//! #         ("HELO client.example\r\n", "250"),
//! #         ("MAIL FROM:<me@example.net>\r\n", "250"),
//! #         ("RCPT TO:<you@example.com>\r\n", "250"),
//! #         ("DATA\r\n", "354"),
//! #         ("Subject: hello\r\n\r\nhello\r\n.\r\n", "250"),
//! #         ("QUIT\r\n", "221"),
//! #     ] {
//! #         stream.write_all(line.as_bytes())?;
//! #         let reply = replies.next().expect("a reply")?;
//! #         assert!(reply.starts_with(code), "{line:?}: {reply}");
//! #     }
//! #     Ok(())
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! let (tell, told) = mpsc::channel();
//! let gateway = Gateway::builder()
//!     .listen("127.0.0.1:0")
//!     .data(folder)
//!     .accept(["example.com"])
//!     .blocking_delivery("tell", Tell(tell))
//!     .build()?
//!     .start()?;
//! let address = gateway.addresses()[0];
//! send(address)?; // as any SMTP client does
//! assert_eq!(told.recv()?, "me@example.net");
//! let ended = gateway.stop()?;
//! assert_eq!(ended.left, 0); // messages that wait for the next start
//! # Ok(())
//! # }
//! ```
//!
//! # What a program may say
//!
//! - [`Builder`]: a configuration from a file, as text or setting by setting; `docs/CONFIGURATION.md` has all there is;
//! - [`policy::Policy`]: whom and what to refuse, at each phase of a session, at once or after waiting for others;
//! - [`delivery::Delivery`] and [`delivery::BlockingDelivery`]: what becomes of a message that is durable. What it cannot deliver now is
//!   tried again on schedule; what it rejects becomes a dead letter. At least once: after a crash an attempt may be made again;
//! - [`telemetry::Observer`]: what happens, as it happens. The same are events of `tracing`: install a subscriber to see them, or
//!   [`telemetry::log::start`], which is the program's own log;
//! - [`Handle`]: reload, drain, stop.
//!
//! It needs an io_uring, 512 KiB of memory that may be locked, and a data folder on a file system with O_DIRECT (ext4, xfs).
//!
//! # The map
//!
//! What follows is for those who work on the gateway itself; modules that are not listed below are not for users, and may change at any
//! time.
//!
//! Knowledge flows down, effects flow up. The inner modules know rules and bytes and are pure; only `shard` waits,
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
mod breaker;
mod client;
pub mod config;
pub mod delivery;
mod limits;
pub mod mail;
pub mod policy;
mod scheduling;
mod scrape;
pub mod telemetry;

// Not for users. They are public for the program `incoming` (its commands are other crates to this one) or for tests, fuzzing and
// benchmarks, as is said of each.

// The commands' end of the admin API.
#[doc(hidden)]
pub mod admin;
// `incoming doctor`.
#[doc(hidden)]
pub mod doctor;
// `incoming explain`; what users have of it is named below.
#[doc(hidden)]
pub mod gateway;
// `incoming spool`.
#[doc(hidden)]
pub mod inspect;
// Fuzzing.
#[doc(hidden)]
pub mod proxy;
// Benchmarks and tests of the media.
#[doc(hidden)]
pub mod shard;
// Dialogues, properties, fuzzing, benchmarks.
#[doc(hidden)]
pub mod smtp;
// Simulations, power cuts, golden octets, fuzzing, benchmarks.
#[doc(hidden)]
pub mod spool;
// Tests and benchmarks of handshakes, fuzzing.
#[doc(hidden)]
pub mod tls;

pub use admin::{DrainOrder, Reloaded, Stage};
pub use gateway::{Builder, Ended, Error, Gateway, Handle};
