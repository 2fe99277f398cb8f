//! What each command does, and its reply.

use std::time::Instant;

use crate::mail::{Body, Class, Refusal};

use super::super::command::{self, Verb};
use super::super::config::{AuthMode, Dialect, TlsMode};
use super::super::effect::Effect;
use super::super::line::Taken;
use super::super::params::Offered;
use super::super::reply::{self, Offers, Reply};
use super::super::state::{Event, State};
use super::super::transaction::{Content, Transaction};
use super::{Awaits, Hello, InQuestion, Session};
use crate::mail::Phase;

/// RFC 4954 §4: responses have their own bound, whatever that of commands is; this one is thought sufficient.
const RESPONSE_SIZE_MAX: usize = 12288;

impl Session {
    /// Takes a command line, or a part of one; returns how many octets.
    pub(super) fn take_line(&mut self, octets: &[u8], now: Instant, replies: &mut Vec<u8>) -> usize {
        let size_max = match self.exchange {
            None => self.config.command_size_max,
            Some(_) => self.config.command_size_max.max(RESPONSE_SIZE_MAX),
        };
        let (taken, line) = self.line.take(octets, size_max);
        if let Some(ear) = &mut self.ear {
            match &line {
                Taken::Part => {}
                Taken::Line(line) => ear.line(line, self.exchange.is_some()),
                Taken::TooLong { .. } | Taken::Endless | Taken::Tls => ear.long_line(),
            }
        }
        match line {
            // Counted from the end of the last command, not from the last octet: a trickle does not extend
            // it.
            Taken::Part => return taken,
            Taken::Line(line) => match self.exchange.take() {
                Some(exchange) => self.take_response(*exchange, &line, replies),
                None => self.take_command(&line, taken < octets.len(), now, replies),
            },
            Taken::TooLong { head } => match self.exchange.take() {
                None if command::is_spoilt_chunk(&head) => self.end_with(Reply::BadChunk, replies),
                _ => self.refuse(Reply::LineTooLong, replies),
            },
            Taken::Endless => self.end_with(Reply::LineEndless, replies),
            Taken::Tls => self.end_with(Reply::NotSmtp, replies),
        }
        self.latest = now;
        taken
    }

    /// `is_followed`: there are octets behind the line already.
    fn take_command(&mut self, line: &[u8], is_followed: bool, now: Instant, replies: &mut Vec<u8>) {
        let (verb, arguments) = match command::parse(line) {
            Ok(command) => command,
            Err(_) if command::is_spoilt_chunk(line) => return self.end_with(Reply::BadChunk, replies),
            Err(why) => return self.refuse(why, replies),
        };
        if verb.is_idle() {
            if self.idle_count >= self.config.idle_commands_max {
                return self.end_with(Reply::TooManyIdle, replies);
            }
            self.idle_count += 1;
        }
        if let Some(why) = self.missing_for(verb) {
            return self.refuse(why, replies);
        }
        match (verb, self.config.dialect) {
            // RFC 2033 §4.1: LHLO takes the place of both, and neither is there.
            (Verb::Ehlo | Verb::Helo, Dialect::Lmtp) | (Verb::Lhlo, Dialect::Smtp) => {
                return self.refuse(Reply::Unrecognized, replies);
            }
            _ => {}
        }
        match verb {
            Verb::Ehlo | Verb::Lhlo => self.take_hello(arguments, true, replies),
            Verb::Helo => self.take_hello(arguments, false, replies),
            Verb::Mail => self.take_mail(arguments, replies),
            Verb::Rcpt => self.take_recipient(arguments, replies),
            Verb::Data => self.take_data(arguments, is_followed, now, replies),
            Verb::Rset => self.take_reset(arguments, replies),
            Verb::Quit => self.take_quit(arguments, replies),
            Verb::Noop => self.take_other(Reply::Ok, replies),
            Verb::Help => self.take_other(Reply::Help, replies),
            Verb::Vrfy if arguments.is_empty() => self.refuse(Reply::BadArguments, replies),
            Verb::Vrfy => self.take_other(Reply::CannotVerify, replies),
            Verb::NotOffered => self.refuse(Reply::NotOffered, replies),
            Verb::Bdat => self.take_chunk(arguments, now, replies),
            Verb::Starttls => self.take_starttls(arguments, replies),
            Verb::Auth => self.take_auth(arguments, replies),
            Verb::Xclient => self.take_xclient(arguments, now, replies),
            Verb::Foreign => self.end_with(Reply::NotSmtp, replies),
        }
    }

    /// What must come before the command on this listener (RFC 3207 §4, RFC 4954 §6). A chunk is not among those that are refused so:
    /// without MAIL it is out of sequence, and its octets are skipped.
    fn missing_for(&self, verb: Verb) -> Option<Reply> {
        let is_mail = matches!(verb, Verb::Mail | Verb::Rcpt | Verb::Data | Verb::Vrfy);
        if self.config.tls == TlsMode::Required && self.tls.is_none() && (is_mail || verb == Verb::Auth) {
            return Some(Reply::NeedsTls);
        }
        let needs_auth = self.config.auth == AuthMode::Required && self.authenticated.is_none();
        (needs_auth && is_mail).then_some(Reply::NeedsAuth)
    }

    /// The parameters this session knows.
    fn offered(&self) -> Offered {
        let capabilities = self.config.capabilities;
        Offered {
            binary: capabilities.binary,
            dsn: capabilities.dsn,
            // RFC 8689 §2: offered over TLS only.
            require_tls: capabilities.require_tls && self.tls.is_some(),
            auth: self.offers_auth() || self.authenticated.is_some(),
        }
    }

    fn take_hello(&mut self, arguments: &[u8], is_extended: bool, replies: &mut Vec<u8>) {
        let name = match (command::hello(arguments), &self.hello_for) {
            (Ok(_), Some(name)) => name.clone(),
            (Ok(name), None) => name.into(),
            (Err(why), _) => return self.refuse(why, replies),
        };
        let hello = Hello { name, is_extended };
        if self.config.phases.contains(Phase::Hello) {
            self.asks(Phase::Hello, Awaits::Hello(hello));
        } else {
            self.accept_hello(hello, replies);
        }
    }

    fn take_mail(&mut self, arguments: &[u8], replies: &mut Vec<u8>) {
        if self.state.next(Event::Mail).is_none() {
            return self.refuse(Reply::BadSequence, replies);
        }
        let (path, params) = match command::mail(arguments, self.offered()) {
            Ok(mail) => mail,
            Err(why) => return self.refuse(why, replies),
        };
        // RFC 1870 §6.1 (2): refused before the content is sent.
        if params.size.is_some_and(|size| size > self.config.message_size_max) {
            return self.refuse(Reply::MessageTooLarge, replies);
        }
        self.refused = None;
        self.transaction = Some(Box::new(Transaction::new(path, params)));
        if !self.asks(Phase::Mail, Awaits::Mail) {
            self.accept_mail(replies);
        }
    }

    fn take_recipient(&mut self, arguments: &[u8], replies: &mut Vec<u8>) {
        let offered = self.offered();
        let is_in_sequence = self.state.next(Event::Recipient).is_some();
        let Some(transaction) = self.transaction.as_mut().filter(|_| is_in_sequence) else {
            return self.refuse(Reply::BadSequence, replies);
        };
        match command::recipient(arguments, transaction.envelope.smtputf8, offered) {
            // RFC 5321 §4.5.3.1.10: the peer sends to those taken and comes again for the rest, so this is no error of its. Once it
            // has come with ten times as many it does not mean to send.
            Ok((_, params)) if !transaction.has_room(&params, &self.config) => {
                self.refuse_excess_recipient(replies);
            }
            Err(why) => {
                self.note_refused_recipient();
                self.refuse(why, replies);
            }
            Ok(recipient) if self.config.phases.contains(Phase::Recipient) => {
                let (path, params) = recipient;
                let in_question = InQuestion { path, params, instead: Vec::new() };
                self.asks(Phase::Recipient, Awaits::Recipient(Box::new(in_question)));
            }
            Ok((path, params)) => {
                self.accept_recipient(InQuestion { path, params, instead: Vec::new() }, replies);
            }
        }
    }

    fn take_data(&mut self, arguments: &[u8], is_followed: bool, now: Instant, replies: &mut Vec<u8>) {
        // RFC 2920 §3.1: DATA "can only appear as the last command in a group". What follows it is content
        // that was not asked for. Were the DATA refused, that content would be read as commands; were it
        // permitted, it would not be known whose it is.
        if is_followed {
            return self.end_with(Reply::EarlyContent, replies);
        }
        if !arguments.is_empty() {
            return self.refuse(Reply::NoArguments, replies);
        }
        if self.state.next(Event::Data).is_none() {
            let is_refused = self.transaction.as_ref().is_some_and(|t| t.is_recipient_refused);
            return self.refuse(if is_refused { self.no_recipients() } else { Reply::BadSequence }, replies);
        }
        // RFC 3030 §3: "the BODY=BINARYMIME … DATA … 503".
        if self.transaction.as_ref().is_some_and(|t| t.envelope.body == Body::Binary) {
            return self.refuse(Reply::BinaryNeedsChunks, replies);
        }
        if !self.asks(Phase::Data, Awaits::Data { is_early: false }) {
            self.accept_data(false, now, replies);
        }
    }

    fn take_reset(&mut self, arguments: &[u8], replies: &mut Vec<u8>) {
        if !arguments.is_empty() {
            return self.refuse(Reply::NoArguments, replies);
        }
        self.abandon();
        self.refused = None;
        self.advance(Event::Reset);
        Reply::Ok.write(replies);
    }

    /// RFC 5321 §3.3 has 554 for content without a recipient where every RCPT was refused; RFC 2033 §4.2 insists on 503.
    pub(super) fn no_recipients(&self) -> Reply {
        match self.config.dialect {
            Dialect::Smtp => Reply::NoRecipients,
            Dialect::Lmtp => Reply::BadSequence,
        }
    }

    /// NOOP, HELP, VRFY: an answer, and nothing changes (RFC 5321 §4.1.4: permitted at any time).
    fn take_other(&mut self, reply: Reply, replies: &mut Vec<u8>) {
        self.advance(Event::Other);
        reply.write(replies);
    }

    fn take_quit(&mut self, arguments: &[u8], replies: &mut Vec<u8>) {
        if !arguments.is_empty() {
            return self.refuse(Reply::NoArguments, replies);
        }
        reply::write_bye(&self.config, replies);
        self.close();
    }

    pub(super) fn accept_connection(&mut self, replies: &mut Vec<u8>) {
        // Who has shaken hands has waited for our word, and who may speak for others is no stranger.
        let is_met = self.tls.is_some() || self.peer.may_xclient;
        if self.peer.greeting_delay_millis == 0 || is_met {
            self.greet(replies);
        }
    }

    pub(super) fn greet(&mut self, replies: &mut Vec<u8>) {
        self.advance(Event::Greet);
        reply::write_greeting(&self.config, replies);
    }

    /// RFC 5321 §4.1.4: EHLO in the middle of a transaction clears it "exactly as if a RSET command had been
    /// issued".
    pub(super) fn accept_hello(&mut self, hello: Hello, replies: &mut Vec<u8>) {
        match hello.is_extended {
            true => reply::write_ehlo(&self.config, self.offers(), replies),
            false => reply::write_helo(&self.config, replies),
        }
        self.abandon();
        self.refused = None;
        self.hello = Some(hello);
        self.advance(Event::Hello);
    }

    fn offers(&self) -> Offers {
        Offers {
            params: self.offered(),
            starttls: self.offers_starttls(),
            auth: self.offers_auth(),
            xclient: self.peer.may_xclient,
        }
    }

    pub(super) fn accept_mail(&mut self, replies: &mut Vec<u8>) {
        self.advance(Event::Mail);
        Reply::MailOk.write(replies);
    }

    pub(super) fn accept_recipient(&mut self, recipient: InQuestion, replies: &mut Vec<u8>) {
        let Some(transaction) = &mut self.transaction else { return };
        let InQuestion { path, params, instead } = recipient;
        let is_taken = match instead.is_empty() {
            true => {
                transaction.add(path, params);
                true
            }
            false => transaction.add_all(instead, &params, &self.config),
        };
        // Those that an alias stands for do not find room: the peer sends to those taken and comes again for this one.
        if !is_taken {
            return self.refuse_excess_recipient(replies);
        }
        transaction.accepted_count += 1;
        self.advance(Event::Recipient);
        Reply::RecipientOk.write(replies);
    }

    fn refuse_excess_recipient(&mut self, replies: &mut Vec<u8>) {
        match self.transaction.as_mut().is_some_and(|transaction| transaction.note_excess(&self.config)) {
            true => self.end_with(Reply::TooManyErrors, replies),
            false => Reply::TooManyRecipients.write(replies),
        }
    }

    pub(super) fn accept_data(&mut self, is_early: bool, now: Instant, replies: &mut Vec<u8>) {
        if is_early {
            return self.end_with(Reply::EarlyContent, replies);
        }
        if let Some(transaction) = &mut self.transaction {
            transaction.content = Some(Content::new(&self.config, self.peer.bare_line_ends, now));
            self.contents_count = self.contents_count.saturating_add(1);
            self.advance(Event::Data);
            Reply::StartContent.write(replies);
        }
    }

    pub(super) fn note_refused_recipient(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.is_recipient_refused = true;
        }
    }

    /// Refuses a command. One refusal too many is a 421 in its place.
    pub(super) fn refuse(&mut self, reply: Reply, replies: &mut Vec<u8>) {
        if self.errors_count >= self.config.errors_max {
            return self.end_with(Reply::TooManyErrors, replies);
        }
        self.errors_count += 1;
        reply.write(replies);
        self.pause();
    }

    /// Whoever errs often is answered later and later again: for a sender that is broken or guesses, time is what it has least of.
    fn pause(&mut self) {
        let is_due = self.errors_count > self.config.error_delay_after && !self.config.error_delay.is_zero();
        let is_free = self.effect.is_none() && matches!(self.awaits, Awaits::Nothing);
        if is_due && is_free && self.state != State::Closed {
            self.effect = Some(Effect::Pause(self.config.error_delay));
            self.awaits = Awaits::Pause;
        }
    }

    /// Refuses for somebody else, with the same bound; but the reply to content stands, or the peer would
    /// send it again.
    pub(super) fn refuse_by_policy(&mut self, why: &Refusal, phase: Phase, replies: &mut Vec<u8>) {
        if why.disconnect {
            return self.refuse_and_end(why, phase, replies);
        }
        // Deferred is not at fault: the peer is to come again, now with the next recipient, and later with this one.
        if why.status.class == Class::Temporary {
            self.deferrals_count = self.deferrals_count.saturating_add(1);
            let bound = self.deferrals_max();
            if self.deferrals_count > bound && phase != Phase::Message {
                return self.end_with(Reply::TryAgainLater, replies);
            }
            return reply::write_refusal(why, phase, replies);
        }
        if self.errors_count >= self.config.errors_max && phase != Phase::Message {
            return self.end_with(Reply::TooManyErrors, replies);
        }
        self.errors_count = self.errors_count.saturating_add(1);
        reply::write_refusal(why, phase, replies);
        self.pause();
    }

    /// Commands that may be deferred since the last accepted message: one for each recipient there may be, and as many again as may err.
    fn deferrals_max(&self) -> u16 {
        let errors_max = usize::try_from(self.config.errors_max).unwrap_or(usize::MAX);
        let max = self.config.recipients_max.saturating_add(errors_max);
        u16::try_from(max).unwrap_or(u16::MAX - 1)
    }

    pub(super) fn refuse_and_end(&mut self, why: &Refusal, phase: Phase, replies: &mut Vec<u8>) {
        reply::write_refusal(why, phase, replies);
        debug_assert!(self.state != State::Closed);
        self.close();
    }
}
