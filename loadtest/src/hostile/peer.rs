//! One hostile connection: octets out, replies in, and how it ended.
//!
//! Replies are taken whatever else goes on (while sending, while resting), except by a peer that is [deaf](Manner::Deaf), so that
//! the end of a connection is seen when it comes. A peer that is dropped without [`Peer::end`] is told of as held.

use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use glommio::timer::sleep;

use super::{Ending, Ground, Scenario};
use crate::drive::link::{Habits, Link};
use crate::smtp::{Extensions, Replies, Reply};

/// What a deaf peer lets the kernel receive for it: little, so that a server that writes on regardless is felt at once. The
/// kernel raises it to its own least, some 2 KiB.
const DEAF_BUFFER_SIZE: usize = 2048;

/// How a peer is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As anybody.
    Plain,
    /// Its end is a reset: whatever is under way is lost.
    Resetting,
    /// It never reads.
    Deaf,
}

/// Why there is nothing more to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The server closed it.
    Closed,
    /// It was reset, or broke otherwise.
    Broken,
    /// The server did not let this side come to what it wanted.
    Unwelcome,
}

/// One connection.
pub struct Peer<'a> {
    ground: &'a Ground,
    scenario: Scenario,
    manner: Manner,
    link: Link,
    replies: Replies,
    /// What arrives is not SMTP, and is not read as such any more.
    is_foreign: bool,
    extensions: Extensions,
    answered: u64,
    last_code: Option<u16>,
    begun_at: Instant,
    ending: Ending,
}

impl<'a> Peer<'a> {
    /// Connects.
    ///
    /// # Errors
    /// Those of connecting, which are noted.
    pub async fn connect(
        ground: &'a Ground,
        scenario: Scenario,
        manner: Manner,
        source: Option<IpAddr>,
    ) -> io::Result<Self> {
        let begun_at = Instant::now();
        let habits = Habits {
            is_resetting: manner == Manner::Resetting,
            receive_buffer_size: (manner == Manner::Deaf).then_some(DEAF_BUFFER_SIZE),
        };
        let connected = match Link::connect(ground.plan.target.address, source, habits) {
            // To send nothing waits for the connection as anything would.
            Ok(mut link) => poll_fn(|context| link.poll_write(context, &[])).await.map(|_| link),
            Err(error) => Err(error),
        };
        ground.note(scenario, |figures| match &connected {
            Ok(_) => figures.connections += 1,
            Err(_) => figures.refused += 1,
        });
        Ok(Peer {
            link: connected?,
            ground,
            scenario,
            manner,
            replies: Replies::default(),
            is_foreign: false,
            extensions: Extensions::default(),
            answered: 0,
            last_code: None,
            begun_at,
            ending: Ending::Held,
        })
    }

    /// The connection is over: for the cause given, or because this side leaves.
    pub fn end(mut self, gone: Option<Gone>) {
        self.ending = match gone {
            None | Some(Gone::Unwelcome) => Ending::Left,
            Some(Gone::Closed) => Ending::Closed(self.last_code),
            Some(Gone::Broken) => Ending::Broken,
        };
    }

    /// What the run gives all its clients.
    pub fn ground(&self) -> &'a Ground {
        self.ground
    }

    /// What the last EHLO was answered.
    pub fn extensions(&self) -> Extensions {
        self.extensions
    }

    /// Waits for the greeting.
    pub async fn greeting(&mut self) -> Result<u16, Gone> {
        self.await_answers(1).await
    }

    /// Sends `octets` and waits until `count` replies more have come; the code of the last.
    pub async fn exchange(&mut self, octets: &[u8], count: u64) -> Result<u16, Gone> {
        let expected = self.answered + count;
        self.send(octets).await?;
        self.await_answers(expected).await
    }

    /// Sends one command that must succeed.
    pub async fn command(&mut self, command: &str) -> Result<(), Gone> {
        match self.exchange(format!("{command}\r\n").as_bytes(), 1).await? {
            200..400 => Ok(()),
            _ => Err(Gone::Unwelcome),
        }
    }

    /// Greeting and EHLO.
    pub async fn hello(&mut self) -> Result<(), Gone> {
        if self.greeting().await? != 220 {
            return self.wait_for_end().await;
        }
        let host = &self.ground.plan.host;
        self.command(&format!("EHLO {host}")).await
    }

    /// MAIL and one RCPT, addressed as the load's messages are.
    pub async fn begin_transaction(&mut self) -> Result<(), Gone> {
        self.command("MAIL FROM:<hostile@load.test>").await?;
        let recipient = self.recipient();
        self.command(&recipient).await
    }

    /// A session up to the 354.
    pub async fn begin_content(&mut self) -> Result<(), Gone> {
        self.hello().await?;
        self.begin_transaction().await?;
        self.command("DATA").await
    }

    /// RCPT for the load's first recipient.
    pub fn recipient(&self) -> String {
        format!("RCPT TO:<{}>", self.ground.plan.envelope.recipient.replace("{n}", "1"))
    }

    /// Sends all of `octets`.
    pub async fn send(&mut self, octets: &[u8]) -> Result<(), Gone> {
        let mut sent = 0;
        poll_fn(|context| {
            while sent < octets.len() {
                match self.link.poll_write(context, &octets[sent..]) {
                    Poll::Ready(Ok(size)) => {
                        sent += size;
                        self.ground.note(self.scenario, |figures| figures.sent_octets += size as u64);
                    }
                    // What the server said last may still be there.
                    Poll::Ready(Err(_)) => match self.poll_receive(context) {
                        Poll::Ready(Err(gone)) => return Poll::Ready(Err(gone)),
                        _ => return Poll::Ready(Err(Gone::Broken)),
                    },
                    Poll::Pending => return self.poll_receive(context).map(|gone| gone.map(|_| ())),
                }
            }
            self.link.poll_sent(context).map_err(|_| Gone::Broken)
        })
        .await
    }

    /// Rests, taking what comes.
    pub async fn rest(&mut self, time: Duration) -> Result<(), Gone> {
        let mut over = pin!(sleep(time));
        poll_fn(|context| match over.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => self.poll_receive(context),
        })
        .await
    }

    /// Does nothing until the connection is over.
    pub async fn wait_for_end<T>(&mut self) -> Result<T, Gone> {
        poll_fn(|context| match self.poll_receive(context) {
            Poll::Ready(Err(gone)) => Poll::Ready(Err(gone)),
            _ => Poll::Pending,
        })
        .await
    }

    /// Ends this side's sending.
    pub async fn shut_sending(&mut self) -> Result<(), Gone> {
        self.link.shut().map_err(|_| Gone::Broken)
    }

    /// A full TLS handshake.
    pub async fn shake_hands(&mut self) -> Result<(), Gone> {
        let ground = self.ground;
        let shaken = match self.link.secure(&ground.tls) {
            Ok(()) => {
                poll_fn(|context| {
                    self.link.poll_handshake(context, &mut ground.scratch.borrow_mut()).map_ok(|_| ())
                })
                .await
            }
            Err(error) => Err(error),
        };
        ground.note(self.scenario, |figures| match shaken {
            Ok(()) => figures.handshakes += 1,
            Err(_) => figures.failed_handshakes += 1,
        });
        shaken.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Gone::Closed,
            _ => Gone::Broken,
        })
    }

    async fn await_answers(&mut self, expected: u64) -> Result<u16, Gone> {
        poll_fn(|context| {
            if self.answered >= expected {
                return Poll::Ready(Ok(self.last_code.unwrap_or_default()));
            }
            match self.poll_receive(context) {
                Poll::Ready(Err(gone)) => Poll::Ready(Err(gone)),
                _ if self.answered >= expected => Poll::Ready(Ok(self.last_code.unwrap_or_default())),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// Takes all that has arrived. Pending as long as the connection lives, and by a deaf peer always.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        if self.manner == Manner::Deaf {
            return Poll::Pending;
        }
        loop {
            let Peer { ground, scenario, link, replies, is_foreign, extensions, answered, last_code, .. } =
                self;
            let scratch = &mut *ground.scratch.borrow_mut();
            let received = link.poll_read(context, scratch, |octets| {
                if octets.is_empty() {
                    return Err(Gone::Closed);
                }
                let take = |reply: Reply<'_>| {
                    *answered += 1;
                    *last_code = Some(reply.code);
                    if reply.code == 250 {
                        *extensions = Extensions::of(&reply);
                    }
                    ground.note(*scenario, |figures| *figures.replies.entry(reply.code).or_default() += 1);
                };
                *is_foreign = *is_foreign || replies.take(octets, take).is_err();
                Ok(())
            });
            match received {
                Poll::Ready(Ok(Ok(()))) => {}
                Poll::Ready(Ok(Err(gone))) => return Poll::Ready(Err(gone)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Gone::Broken)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        let stay = self.begun_at.elapsed();
        self.ground.note(self.scenario, |figures| figures.record_ending(self.ending, stay));
    }
}
