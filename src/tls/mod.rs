//! TLS, sans-I/O: certificates become an [`Acceptor`], and it makes a [`Channel`] for each connection.
//!
//! ```text
//!   files ─► certificates ─► resolver ─┐
//!                          clients ────┴─► acceptor ─accept()─► channel:  ciphertext ◄─► plaintext
//!     ▲                                      │ reload()
//!     └──────────── has_changed() ───────────┘
//! ```
//!
//! Promises:
//! - TLS 1.2 and 1.3 only, the server's order of preference, no early data, no renegotiation, no compression;
//! - a client that offers protocols (ALPN) and not `smtp` is refused, so that no HTTP client is made to speak
//!   SMTP (ALPACA); an unknown server name gets the default certificate, never an alert;
//! - certificates are replaced whole or not at all: what is loaded was checked first, and what was begun with
//!   the old goes on with the old;
//! - a session ticket is good at the acceptor that gave it and at no other;
//! - whatever a peer sends, a channel's memory and its output are bounded, and after the end of TLS nothing
//!   that arrives is ever read.
//!
//! Knows nothing of SMTP, sockets or async. It reads files in [`Acceptor::load`], [`Acceptor::reload`] and
//! [`Acceptor::has_changed`], which are for a thread that may wait.

mod acceptor;
mod certificates;
mod channel;
mod clients;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod resolver;
#[cfg(test)]
mod testing;

pub use acceptor::{Acceptor, ClientCertificates, Settings};
pub use certificates::{Certificate, CertificateFiles, LoadError, Validity};
pub use channel::{Channel, TlsError};
