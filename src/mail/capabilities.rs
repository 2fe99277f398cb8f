//! What can be carried beyond plain mail: a transport has it, a session offers it.

use super::envelope::{Body, Envelope};
use super::status::Status;

/// What a transport carries beyond plain mail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Content of any octets, not in lines (BINARYMIME, RFC 3030).
    pub binary: bool,
    /// What a sender asks to be told goes on to whoever tells it (DSN, RFC 3461).
    pub dsn: bool,
    /// Nothing goes on over a connection without verified TLS (REQUIRETLS, RFC 8689). Where nothing goes on at all, that holds.
    pub require_tls: bool,
}

impl Capabilities {
    /// Everything.
    pub const ALL: Capabilities = Capabilities { binary: true, dsn: true, require_tls: true };

    /// What both carry.
    pub fn and(self, other: Capabilities) -> Capabilities {
        Capabilities {
            binary: self.binary && other.binary,
            dsn: self.dsn && other.dsn,
            require_tls: self.require_tls && other.require_tls,
        }
    }

    /// Why a message with this envelope cannot be carried: a status and words for the operator. That nobody is told anything does
    /// not stop it: it was to be carried when it was accepted, and the message matters more.
    pub fn objection(self, envelope: &Envelope) -> Option<(Status, &'static str)> {
        if envelope.body == Body::Binary && !self.binary {
            // RFC 3463 §3.7, X.6.3: conversion required but not supported.
            return Some((Status::permanent(6, 3), "the transport cannot carry BINARYMIME content"));
        }
        if envelope.require_tls && !self.require_tls {
            // RFC 8689 §5.
            return Some((
                Status::permanent(7, 30),
                "the transport cannot promise verified TLS (REQUIRETLS)",
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::ReversePath;

    #[test]
    fn what_cannot_be_carried_is_objected_to() {
        let envelope = |body, require_tls| Envelope {
            body,
            require_tls,
            ..Envelope::new(ReversePath::Null, Vec::new())
        };
        let none = Capabilities::default();
        let table = [
            (none, Body::EightBit, false, None),
            (none, Body::Binary, false, Some(Status::permanent(6, 3))),
            (none, Body::SevenBit, true, Some(Status::permanent(7, 30))),
            (Capabilities::ALL, Body::Binary, true, None),
        ];
        for (capabilities, body, require_tls, expected) in table {
            let objection = capabilities.objection(&envelope(body, require_tls));
            assert_eq!(objection.map(|(status, _)| status), expected, "{body:?} {require_tls}");
        }
    }
}
