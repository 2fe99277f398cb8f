//! Who the peer is: STARTTLS (RFC 3207), AUTH (RFC 4954), XCLIENT.

use std::sync::Arc;
use std::time::Instant;

use crate::mail::Tls;

use super::super::config::{AuthMode, TlsMode};
use super::super::effect::{Authentication, Effect};
use super::super::reply::Reply;
use super::super::sasl::{self, Step};
use super::super::state::{Event, State};
use super::super::xclient::Xclient;
use super::{Awaits, Session};

impl Session {
    /// A handshake can be made: appends what is said before it. To be written in clear; whatever was received before is forgotten.
    pub fn handle_tls_ready(&mut self, replies: &mut Vec<u8>) {
        if matches!(self.awaits, Awaits::Tls { .. }) && self.state != State::Connected {
            Reply::StartTls.write(replies);
        }
    }

    /// No handshake can be made now.
    pub fn handle_tls_unavailable(&mut self, now: Instant, replies: &mut Vec<u8>) {
        let Awaits::Tls { is_dropped } = self.awaits else { return };
        self.awaits = Awaits::Nothing;
        self.latest = now;
        match self.state {
            // In clear there is nothing to be said to a peer that speaks TLS.
            State::Connected => self.close(),
            // Of what was not read nobody knows whether a command or content comes next.
            _ if is_dropped => self.end_with(Reply::TlsUnavailable, replies),
            _ => Reply::TlsUnavailable.write(replies),
        }
        self.leave_if_due(replies);
    }

    /// The handshake is done: from here on everything goes through TLS. What the peer has said before is forgotten (RFC 3207 §4.2).
    pub fn handle_secured(&mut self, tls: Tls, now: Instant, replies: &mut Vec<u8>) {
        if !matches!(self.awaits, Awaits::Tls { .. }) {
            return;
        }
        self.awaits = Awaits::Nothing;
        self.latest = now;
        self.hello = None;
        // XCLIENT's words too: they came in clear. The address is the connection's, as with the PROXY protocol, and stays.
        self.hello_for = None;
        self.authenticated = None;
        self.tls = Some(Arc::new(tls));
        self.advance(Event::Secure);
        if self.state == State::Connected {
            self.meet(replies);
        }
        self.leave_if_due(replies);
    }

    /// The handshake failed: nothing can be said any more.
    pub fn handle_tls_failed(&mut self) {
        if matches!(self.awaits, Awaits::Tls { .. }) {
            self.close();
        }
    }

    /// The answer to [`Effect::Authenticate`].
    pub fn handle_authenticated(&mut self, outcome: Authentication, now: Instant, replies: &mut Vec<u8>) {
        match std::mem::replace(&mut self.awaits, Awaits::Nothing) {
            Awaits::Authenticated(user) => {
                self.latest = now;
                match outcome {
                    Authentication::Accepted => {
                        self.authenticated = Some(user.into());
                        Reply::Authenticated.write(replies);
                    }
                    Authentication::Refused => self.refuse_credentials(replies),
                    Authentication::Unavailable => Reply::AuthUnavailable.write(replies),
                }
                self.leave_if_due(replies);
            }
            other => self.awaits = other,
        }
    }

    pub(super) fn start_tls(&mut self) {
        self.awaits = Awaits::Tls { is_dropped: false };
        self.effect = Some(Effect::StartTls);
    }

    pub(super) fn offers_starttls(&self) -> bool {
        self.tls.is_none() && matches!(self.config.tls, TlsMode::Optional | TlsMode::Required)
    }

    /// A password is never asked for in clear.
    pub(super) fn offers_auth(&self) -> bool {
        self.config.auth != AuthMode::Disabled && self.tls.is_some() && self.authenticated.is_none()
    }

    pub(super) fn take_starttls(&mut self, arguments: &[u8], replies: &mut Vec<u8>) {
        if self.config.tls == TlsMode::Disabled {
            return self.refuse(Reply::NotOffered, replies);
        }
        if !arguments.is_empty() {
            return self.refuse(Reply::NoArguments, replies);
        }
        // Twice, or in the middle of a transaction.
        if self.tls.is_some() || self.state.next(Event::Secure).is_none() {
            return self.refuse(Reply::BadSequence, replies);
        }
        self.start_tls();
    }

    pub(super) fn take_auth(&mut self, arguments: &[u8], replies: &mut Vec<u8>) {
        if self.config.auth == AuthMode::Disabled {
            return self.refuse(Reply::NotOffered, replies);
        }
        if self.tls.is_none() {
            return self.refuse(Reply::AuthNeedsTls, replies);
        }
        // RFC 4954 §4: once, not within a transaction, and behind EHLO, which alone has offered it.
        let is_extended = self.hello.as_ref().is_some_and(|hello| hello.is_extended);
        if self.state != State::Ready || !is_extended || self.authenticated.is_some() {
            return self.refuse(Reply::BadSequence, replies);
        }
        self.take_step(sasl::begin(arguments), replies);
    }

    pub(super) fn take_response(&mut self, exchange: sasl::Exchange, line: &[u8], replies: &mut Vec<u8>) {
        self.take_step(exchange.respond(line), replies);
    }

    fn take_step(&mut self, step: Step, replies: &mut Vec<u8>) {
        match step {
            Step::Challenge(exchange, challenge) => {
                self.exchange = Some(Box::new(exchange));
                challenge.write(replies);
            }
            Step::Complete(credentials) => {
                self.awaits = Awaits::Authenticated(credentials.user.clone());
                self.effect = Some(Effect::Authenticate(credentials));
            }
            Step::Failed(Reply::WrongCredentials) => self.refuse_credentials(replies),
            Step::Failed(reply) => self.refuse(reply, replies),
        }
    }

    /// Whoever guesses is not let guess long.
    fn refuse_credentials(&mut self, replies: &mut Vec<u8>) {
        self.wrong_credentials_count = self.wrong_credentials_count.saturating_add(1);
        match self.wrong_credentials_count > self.config.wrong_credentials_max {
            true => self.end_with(Reply::TooManyWrong, replies),
            false => self.refuse(Reply::WrongCredentials, replies),
        }
    }

    pub(super) fn take_xclient(&mut self, arguments: &[u8], now: Instant, replies: &mut Vec<u8>) {
        if !self.peer.may_xclient {
            return self.refuse(Reply::MayNotXclient, replies);
        }
        if self.state.next(Event::Restart).is_none() {
            return self.refuse(Reply::BadSequence, replies);
        }
        let xclient = match Xclient::parse(arguments) {
            Ok(xclient) => xclient,
            Err(why) => return self.refuse(why, replies),
        };
        self.peer.address = xclient.peer(self.peer.address);
        // Another client is not whom the one before has logged in as.
        match (xclient.login, xclient.address) {
            (Some(login), _) => self.authenticated = login.map(Arc::from),
            (None, Some(_)) => self.authenticated = None,
            (None, None) => {}
        }
        self.hello = None;
        self.hello_for = xclient.hello;
        self.latest = now;
        self.advance(Event::Restart);
        self.meet(replies);
    }
}
