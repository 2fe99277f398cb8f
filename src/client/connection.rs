//! One connection to a server: commands, and their replies in time.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;

use super::{BadReply, Endpoint, Reply, ReplyReader};
use crate::mail::Mailbox;

/// Octets read at a time.
const READ_SIZE: usize = 4096;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 5321.
    Smtp,
    /// RFC 2033.
    Lmtp,
}

/// How we introduce ourselves.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// What is spoken.
    pub protocol: Protocol,
    /// Our name.
    pub name: String,
}

/// How long each step may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Finding the host and connecting to it, one of its addresses after the other.
    pub connect: Duration,
    /// The greeting (RFC 5321 §4.5.3.2.1 gives 5 minutes).
    pub greeting: Duration,
    /// Each command: until its reply is whole (§4.5.3.2.2 ff.: 5 minutes).
    pub command: Duration,
}

impl Timeouts {
    /// The same for all steps.
    pub fn all(timeout: Duration) -> Self {
        Timeouts { connect: timeout, greeting: timeout, command: timeout }
    }
}

/// What a connection was about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Connect.
    Connect,
    /// Take the greeting.
    Greeting,
    /// LHLO, EHLO or HELO.
    Hello,
    /// MAIL.
    Mail,
    /// RCPT.
    Recipient,
    /// RSET.
    Reset,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Connect => "connecting",
            Step::Greeting => "the greeting",
            Step::Hello => "the introduction",
            Step::Mail => "MAIL",
            Step::Recipient => "RCPT",
            Step::Reset => "RSET",
        })
    }
}

/// A connection that failed: it is of no use any more.
#[derive(Debug)]
pub struct Failure {
    /// At what.
    pub step: Step,
    /// And why.
    pub why: Why,
}

/// Why a connection failed.
#[derive(Debug)]
pub enum Why {
    /// There is none, or it has ended.
    Gone(io::Error),
    /// It took too long.
    TimedOut,
    /// What came was no reply, or was not asked for.
    Bad(BadReply),
    /// The server does not want to go on.
    Refused(Reply),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.step)?;
        match &self.why {
            Why::Gone(error) => error.fmt(f),
            Why::TimedOut => f.write_str("no answer in time"),
            Why::Bad(bad) => bad.fmt(f),
            Why::Refused(reply) => reply.fmt(f),
        }
    }
}

impl std::error::Error for Failure {}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection on which we have introduced ourselves.
pub struct Connection {
    stream: Box<dyn Stream>,
    reader: ReplyReader,
    timeouts: Timeouts,
    /// The lines of the answer to EHLO or LHLO; empty after HELO.
    extensions: String,
}

impl Connection {
    /// Connects, takes the greeting and introduces us.
    pub async fn open(
        endpoint: &Endpoint,
        introduction: &Introduction,
        timeouts: Timeouts,
    ) -> Result<Connection, Failure> {
        let stream = match timeout(timeouts.connect, connect(endpoint)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Failure { step: Step::Connect, why: Why::Gone(error) }),
            Err(_) => return Err(Failure { step: Step::Connect, why: Why::TimedOut }),
        };
        let reader = ReplyReader::default();
        let mut connection = Connection { stream, reader, timeouts, extensions: String::new() };
        let greeting = connection.reply(Step::Greeting, timeouts.greeting).await?;
        demand(Step::Greeting, greeting)?;
        let Introduction { protocol, name } = introduction;
        let verb = if *protocol == Protocol::Lmtp { "LHLO" } else { "EHLO" };
        let reply = connection.command(Step::Hello, &format!("{verb} {name}")).await?;
        if *protocol == Protocol::Smtp && matches!(reply.code, 500 | 502) {
            // RFC 5321 §3.2: who does not know EHLO is said HELO.
            demand(Step::Hello, connection.command(Step::Hello, &format!("HELO {name}")).await?)?;
        } else {
            connection.extensions = demand(Step::Hello, reply)?.text;
        }
        Ok(connection)
    }

    /// Whether the server has announced this extension, by its keyword.
    pub fn offers(&self, keyword: &str) -> bool {
        let keyword_of =
            |line: &str| line.split(' ').next().is_some_and(|word| word.eq_ignore_ascii_case(keyword));
        self.extensions.lines().skip(1).any(keyword_of)
    }

    /// `MAIL FROM:<>`, with SMTPUTF8 where some recipient needs it.
    pub async fn mail_of_nobody(&mut self, utf8: bool) -> Result<Reply, Failure> {
        let line = if utf8 { "MAIL FROM:<> SMTPUTF8" } else { "MAIL FROM:<>" };
        self.command(Step::Mail, line).await
    }

    /// RCPT. A domain is given in A-labels: every server knows them.
    pub async fn recipient(&mut self, mailbox: &Mailbox) -> Result<Reply, Failure> {
        let (local, domain) = (mailbox.local_part(), mailbox.canonical_domain());
        self.command(Step::Recipient, &format!("RCPT TO:<{local}@{domain}>")).await
    }

    /// RSET, which must be taken.
    pub async fn reset(&mut self) -> Result<(), Failure> {
        let reply = self.command(Step::Reset, "RSET").await?;
        demand(Step::Reset, reply).map(drop)
    }

    /// QUIT. The answer would change nothing.
    pub async fn quit(mut self) {
        let _ = timeout(self.timeouts.command, self.stream.write_all(b"QUIT\r\n")).await;
    }

    /// Says a line and takes its reply. A 421 is no answer, but the end (RFC 5321 §3.8).
    async fn command(&mut self, step: Step, line: &str) -> Result<Reply, Failure> {
        assert!(!line.contains(['\r', '\n', '\0']), "a command is one line");
        let said = async {
            self.stream.write_all(format!("{line}\r\n").as_bytes()).await?;
            self.stream.flush().await
        };
        match timeout(self.timeouts.command, said).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Failure { step, why: Why::Gone(error) }),
            Err(_) => return Err(Failure { step, why: Why::TimedOut }),
        }
        let reply = self.reply(step, self.timeouts.command).await?;
        if reply.code == 421 {
            return Err(Failure { step, why: Why::Refused(reply) });
        }
        Ok(reply)
    }

    async fn reply(&mut self, step: Step, patience: Duration) -> Result<Reply, Failure> {
        match timeout(patience, self.read_reply()).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(why)) => Err(Failure { step, why }),
            Err(_) => Err(Failure { step, why: Why::TimedOut }),
        }
    }

    async fn read_reply(&mut self) -> Result<Reply, Why> {
        let mut room = [0; READ_SIZE];
        loop {
            let count = self.stream.read(&mut room).await.map_err(Why::Gone)?;
            if count == 0 {
                return Err(Why::Gone(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the connection has ended",
                )));
            }
            let (taken, reply) = self.reader.handle_input(&room[..count]).map_err(Why::Bad)?;
            match reply {
                // Nothing was asked yet that what follows could answer.
                Some(_) if taken < count => return Err(Why::Bad(BadReply::UNASKED)),
                Some(reply) => return Ok(reply),
                None => {}
            }
        }
    }
}

fn demand(step: Step, reply: Reply) -> Result<Reply, Failure> {
    if reply.is_positive() { Ok(reply) } else { Err(Failure { step, why: Why::Refused(reply) }) }
}

async fn connect(endpoint: &Endpoint) -> io::Result<Box<dyn Stream>> {
    match endpoint {
        Endpoint::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Endpoint::Tcp(host, port) => {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
            let addresses: Vec<SocketAddr> = lookup_host((host.as_str(), *port)).await?.collect();
            for address in addresses {
                match TcpStream::connect(address).await {
                    Ok(stream) => {
                        stream.set_nodelay(true)?;
                        return Ok(Box::new(stream));
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::net::TcpListener;

    use super::*;

    const SOON: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(60);

    /// Speaks to a server that greets with `greeting`, and answers the lines it gets with `answers`, one after another.
    fn speak(
        greeting: &'static [u8],
        answers: &'static [&'static [u8]],
        timeouts: Timeouts,
    ) -> (Result<Vec<Reply>, Failure>, String) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let told = heard.clone();
        let result = runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = Endpoint::Tcp("127.0.0.1".into(), listener.local_addr().unwrap().port());
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut answers = answers.iter();
                let _ = stream.write_all(greeting).await;
                let mut octet = [0];
                while stream.read(&mut octet).await.is_ok_and(|n| n > 0) {
                    told.lock().unwrap().push(octet[0]);
                    if octet[0] == b'\n' {
                        match answers.next() {
                            Some(answer) => stream.write_all(answer).await.unwrap_or_default(),
                            None => return,
                        }
                    }
                }
            });
            let introduction = Introduction { protocol: Protocol::Smtp, name: "mx.test".into() };
            let mut connection = Connection::open(&endpoint, &introduction, timeouts).await?;
            let mailbox = Mailbox::parse("a@bücher.example", true).unwrap();
            let utf8 = connection.offers("smtputf8");
            let replies = vec![connection.mail_of_nobody(utf8).await?, connection.recipient(&mailbox).await?];
            connection.reset().await?;
            Ok(replies)
        });
        let heard = String::from_utf8(heard.lock().unwrap().clone()).unwrap();
        (result, heard)
    }

    #[test]
    fn each_command_has_its_reply() {
        let answers: &[&[u8]] =
            &[b"250-mx\r\n250-SMTPUTF8\r\n250 HELP\r\n", b"250 Ok\r\n", b"550 5.1.1 no\r\n", b"250 Ok\r\n"];
        let (replies, heard) = speak(b"220-mx\r\n220 hello\r\n", answers, Timeouts::all(LONG));
        let codes: Vec<_> = replies.unwrap().iter().map(|reply| reply.code).collect();
        assert_eq!(codes, [250, 550]);
        assert_eq!(
            heard,
            "EHLO mx.test\r\nMAIL FROM:<> SMTPUTF8\r\nRCPT TO:<a@xn--bcher-kva.example>\r\nRSET\r\n"
        );
    }

    #[test]
    fn who_does_not_know_ehlo_is_said_helo() {
        let answers: &[&[u8]] =
            &[b"502 what\r\n", b"250 mx\r\n", b"250 Ok\r\n", b"250 Ok\r\n", b"250 Ok\r\n"];
        let (replies, heard) = speak(b"220 mx\r\n", answers, Timeouts::all(LONG));
        assert_eq!(replies.unwrap().len(), 2);
        assert_eq!(
            heard,
            "EHLO mx.test\r\nHELO mx.test\r\nMAIL FROM:<>\r\nRCPT TO:<a@xn--bcher-kva.example>\r\nRSET\r\n"
        );
    }

    #[test]
    fn what_is_not_as_it_should_be_ends_the_connection() {
        type Case = (&'static [u8], &'static [&'static [u8]], Timeouts, &'static str);
        let table: [Case; 9] = [
            (b"554 no\r\n", &[], Timeouts::all(LONG), "the greeting: 554 no"),
            (b"421 busy\r\n", &[], Timeouts::all(LONG), "the greeting: 421 busy"),
            (b"SSH-2.0\r\n", &[], Timeouts::all(LONG), "the greeting: a line without a reply code"),
            (
                b"220 mx\r\n250 mx\r\n",
                &[],
                Timeouts::all(LONG),
                "the greeting: octets that were not asked for",
            ),
            (b"220 mx\r\n", &[], Timeouts::all(LONG), "the introduction: the connection has ended"),
            (b"220 mx\r\n", &[b"550 no\r\n"], Timeouts::all(LONG), "the introduction: 550 no"),
            (b"220 mx\r\n", &[b"250 mx\r\n", b"421 bye\r\n"], Timeouts::all(LONG), "MAIL: 421 bye"),
            (
                b"220 mx\r\n",
                &[b"250 mx\r\n", b"250 a\r\n250 b\r\n"],
                Timeouts::all(LONG),
                "MAIL: octets that were not asked for",
            ),
            (
                b"220 mx",
                &[],
                Timeouts { greeting: SOON, ..Timeouts::all(LONG) },
                "the greeting: no answer in time",
            ),
        ];
        for (greeting, answers, timeouts, expected) in table {
            let (result, _) = speak(greeting, answers, timeouts);
            assert_eq!(result.unwrap_err().to_string(), expected, "{answers:?}");
        }
    }
}
