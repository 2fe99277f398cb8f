//! Asking the mail store itself, in LMTP or SMTP: MAIL of nobody, RCPT, and no mail after it.
//!
//! A refusal of RCPT (550, 551, 553, 554) says that there is no such recipient if its enhanced status code is about the address (RFC 3463
//! §3.2), or it has none and the code is about the mailbox (RFC 5321 §4.2.3). Everything else that is not class 2, as what is about us or
//! the store's own state, leaves it open.

use std::time::Duration;

use tokio::time::timeout;

use super::inquiry::{Asking, Source, unknown};
use crate::client::{Bounds, Connection, Failure, Pool, Reply, Target, Why};
use crate::mail::{Mailbox, Refusal};
use crate::policy::{Facts, Found, Unavailable, Verdict};

/// Refusals on one connection at most: servers slow down those who collect them (Postfix from the tenth on).
const REFUSALS_MAX: u32 = 8;
/// How long a connection may have been idle to be used again: less than any server waits (RFC 5321 §4.5.3.2.7: 5 minutes).
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often one is used: servers count commands that lead to no mail, and slow down those who send many.
const USES_MAX: u32 = 50;
/// How long RSET may take: nobody waits for it, and who takes longer is asked over another connection next time.
const RESET_TIMEOUT: Duration = Duration::from_millis(200);
/// The subject of status codes that are about addresses (RFC 3463 §3.2).
const ADDRESS_SUBJECT: u16 = 1;
/// Subject and detail of others that say so: a mailbox is disabled (RFC 3463 §3.3), and what Exchange says of addresses it does not have.
const OTHERS: [(u16, u16); 2] = [(2, 1), (4, 1)];

/// Asks a mail store.
pub struct Callout {
    pool: Pool,
}

impl Callout {
    /// Asks `target` over up to `connections_max` connections.
    pub fn new(target: Target, connections_max: usize) -> Self {
        let idle_max = connections_max;
        let bounds = Bounds { connections_max, idle_max, idle_timeout: IDLE_TIMEOUT, uses_max: USES_MAX };
        Callout { pool: Pool::new(target, bounds) }
    }

    async fn find(&self, question: &str) -> Found {
        // In A-labels it may be longer than a path may be (RFC 5321 §4.5.3.1.3): nobody could deliver to it there.
        let Ok(mailbox) = Mailbox::parse_stored(question) else { return Ok(unknown()) };
        match self.converse(&mailbox).await {
            Ok(found) => found,
            Err(failure) => Err(Unavailable(format!("{}: {failure}", self.pool.endpoint()))),
        }
    }

    async fn converse(&self, mailbox: &Mailbox) -> Result<Found, Failure> {
        let mut leased = self.pool.take().await?;
        let mut asked = ask(&mut leased.connection, mailbox).await;
        // One that was idle may have been closed at the other end, which says nothing about the server.
        if leased.is_used() && matches!(&asked, Err(Failure { why: Why::Gone(_) | Why::Refused(_), .. })) {
            leased = self.pool.renew(leased).await?;
            asked = ask(&mut leased.connection, mailbox).await;
        }
        let (found, is_refusal) = asked?;
        leased.refusals += u32::from(is_refusal);
        if leased.refusals >= REFUSALS_MAX {
            leased.connection.quit();
        } else if matches!(timeout(RESET_TIMEOUT, leased.connection.reset()).await, Ok(Ok(()))) {
            self.pool.give_back(leased);
        }
        Ok(found)
    }
}

/// What is found, and whether the server has refused something.
async fn ask(connection: &mut Connection, mailbox: &Mailbox) -> Result<(Found, bool), Failure> {
    let needs_utf8 = !mailbox.local_part().is_ascii();
    if needs_utf8 && !connection.offers().has("SMTPUTF8") {
        // Nobody of that name can be delivered to there.
        return Ok((Ok(unknown()), false));
    }
    let reply = connection.mail_of_nobody(needs_utf8).await?;
    if !reply.is_positive() {
        return Ok((Err(Unavailable(format!("MAIL: {reply}"))), true));
    }
    let reply = connection.recipient(mailbox).await?;
    Ok((judge(&reply), !reply.is_positive()))
}

fn judge(reply: &Reply) -> Found {
    // What is said of anything else, of us or of the store's own state, says nothing of the recipient; and without a status code 554 is
    // said of a transaction.
    let is_about_recipient = match reply.status() {
        None => matches!(reply.code, 550 | 551 | 553),
        Some(status) => {
            status.subject == ADDRESS_SUBJECT || OTHERS.contains(&(status.subject, status.detail))
        }
    };
    match reply.code {
        _ if reply.is_positive() => Ok(Verdict::Accept),
        550 | 551 | 553 | 554 if is_about_recipient => {
            let Verdict::Refuse(refusal) = unknown() else { unreachable!("it is a refusal") };
            Ok(Verdict::Refuse(Refusal::keyed(refusal, reply.to_string())))
        }
        _ => Err(Unavailable(format!("RCPT: {reply}"))),
    }
}

impl Source for Callout {
    /// The address, its domain in one spelling. The local part is the store's business, and may differ in case.
    fn question(&self, mailbox: &Mailbox, _: &Facts<'_>) -> String {
        format!("{}@{}", mailbox.local_part(), mailbox.canonical_domain())
    }

    fn ask<'a>(&'a self, question: &'a str) -> Asking<'a> {
        Box::pin(self.find(question))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Endpoint, Introduction, Protocol, Timeouts};

    #[test]
    fn only_a_refusal_of_the_recipient_says_that_there_is_none() {
        let table = [
            (250, "2.1.5 Ok", "exists"),
            (251, "will forward", "exists"),
            (550, "5.1.1 <a@x.example> User doesn't exist", "unknown"),
            (550, "no", "unknown"),
            (551, "5.1.6 moved", "unknown"),
            (553, "5.1.3 what?", "unknown"),
            (554, "5.4.1 no such recipient", "unknown"),
            (550, "5.2.1 Mailbox disabled", "unknown"),
            (554, "transaction failed", "open"),
            (550, "5.3.0 no database", "open"),
            (554, "5.4.6 routing loop", "open"),
            (554, "5.7.1 Relay access denied", "open"),
            (550, "5.7.1 Service unavailable, client host blocked", "open"),
            (552, "5.2.2 Mailbox full", "open"),
            (503, "5.5.1 need MAIL", "open"),
            (530, "5.7.0 Must issue a STARTTLS command first", "open"),
            (450, "4.2.1 Mailbox busy", "open"),
            (451, "4.3.0 no database", "open"),
            (354, "go ahead", "open"),
        ];
        for (code, text, expected) in table {
            let said = match judge(&Reply { code, text: text.into() }) {
                Ok(Verdict::Accept) => "exists",
                Ok(Verdict::Refuse(refusal)) if refusal.status.to_string() == "5.1.1" => "unknown",
                Ok(_) => "something else",
                Err(_) => "open",
            };
            assert_eq!(said, expected, "{code} {text}");
        }
    }

    /// A domain may be longer in A-labels than the path it came in.
    #[test]
    fn what_is_too_long_for_a_path_is_nobody() {
        let labels = vec!["\u{e9}"; 32].join(".");
        let mailbox = Mailbox::parse(&format!("x@{labels}"), true).unwrap();
        let endpoint = Endpoint::parse("127.0.0.1:1").unwrap();
        let introduction = Introduction { protocol: Protocol::Lmtp, name: "mx.example".into() };
        let callout = Callout::new(Target::in_clear(endpoint, introduction, Timeouts::all(RESET_TIMEOUT)), 1);
        let question = callout.question(&mailbox, &Facts::of("192.0.2.1"));
        assert!(question.len() > 254);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert_eq!(runtime.block_on(callout.ask(&question)), Ok(unknown()));
    }
}
