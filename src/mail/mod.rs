//! The shared words: paths, envelope, message id, status, phases. What every other module may speak of.
//!
//! Promises: a value of one of these types is well-formed by construction (parse, don't validate). Uses std only, but
//! for the tables of Unicode, and knows nothing of SMTP replies, disk or time.

mod capabilities;
mod date;
mod dsn;
mod envelope;
mod id;
mod idn;
mod path;
mod phase;
mod status;
mod tag;
mod tls;

pub use capabilities::Capabilities;
pub use date::format_date;
pub use dsn::{Dsn, EnvelopeId, Notify, OriginalRecipient, RecipientDsn, Ret, is_xtext};
pub use envelope::{Arrival, Body, Envelope, Protocol, Provenance, Via};
pub use id::{MessageId, ParseMessageIdError};
pub use idn::canonical_domain;
pub use path::{Domain, ForwardPath, Mailbox, PathError, ReversePath};
pub use phase::{Phase, Phases};
pub use status::{Class, Refusal, Status};
pub use tag::{TAGS_MAX, Tag};
pub use tls::{ClientCertificate, Tls, TlsVersion};
