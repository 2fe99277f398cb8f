//! Connections to a policy service: kept when a question is answered, used again for the next, bounded in number.
//!
//! A service may end a connection that is not in use at any moment. So a kept one that turns out to be ended before any octet of the
//! reply has come is no failure: the question is asked once more, on a new one.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::reply::{self, REPLY_SIZE_MAX};

/// A connection that was not used for so long is ended: what is between may have forgotten it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Over TCP.
    Tcp(SocketAddr),
    /// At a socket in the file system.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Nothing has come that nobody asked for, not even the end.
    fn is_quiet(&self) -> bool;
}

impl Stream for TcpStream {
    fn is_quiet(&self) -> bool {
        matches!(self.try_read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }
}

impl Stream for UnixStream {
    fn is_quiet(&self) -> bool {
        matches!(self.try_read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }
}

struct Idle {
    stream: Box<dyn Stream>,
    since: Instant,
}

/// See the module.
pub struct Connections {
    address: Address,
    /// The one used last is at the end.
    idle: Mutex<Vec<Idle>>,
    places: Semaphore,
}

enum Failure {
    /// The connection was ended before the reply began.
    Ended(String),
    Other(String),
}

impl Connections {
    /// At most `connections_max` to `address`.
    pub fn new(address: Address, connections_max: usize) -> Self {
        Connections { address, idle: Mutex::new(Vec::new()), places: Semaphore::new(connections_max) }
    }

    /// What the service replies. An error is in words for the operator. Dropped before its end, it ends its connection: the answer
    /// that is owed there must not be another question's.
    pub async fn ask(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        let _place = self.places.acquire().await.expect("it is never closed");
        if let Some(mut stream) = self.take_idle() {
            match exchange(&mut *stream, request).await {
                Ok(reply) => return Ok(self.keep(stream, reply)),
                Err(Failure::Ended(_)) => {}
                Err(Failure::Other(words)) => return Err(self.failed(&words)),
            }
        }
        let connected = match &self.address {
            Address::Tcp(address) => TcpStream::connect(address).await.map(|stream| {
                // Costs speed only where it fails.
                let _ = stream.set_nodelay(true);
                Box::new(stream) as Box<dyn Stream>
            }),
            Address::Unix(path) => {
                UnixStream::connect(path).await.map(|stream| Box::new(stream) as Box<dyn Stream>)
            }
        };
        let mut stream = connected.map_err(|e| self.failed(&format!("cannot connect: {e}")))?;
        match exchange(&mut *stream, request).await {
            Ok(reply) => Ok(self.keep(stream, reply)),
            Err(Failure::Ended(words) | Failure::Other(words)) => Err(self.failed(&words)),
        }
    }

    fn failed(&self, words: &str) -> String {
        format!("the policy service at {}: {words}", self.address)
    }

    fn take_idle(&self) -> Option<Box<dyn Stream>> {
        let mut idle = self.idle();
        let now = Instant::now();
        idle.retain(|one| now.duration_since(one.since) < IDLE_TIMEOUT && one.stream.is_quiet());
        idle.pop().map(|one| one.stream)
    }

    fn keep(&self, stream: Box<dyn Stream>, reply: Vec<u8>) -> Vec<u8> {
        self.idle().push(Idle { stream, since: Instant::now() });
        reply
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn exchange(stream: &mut dyn Stream, request: &[u8]) -> Result<Vec<u8>, Failure> {
    let ended = |e: io::Error| Failure::Ended(format!("the connection has failed: {e}"));
    stream.write_all(request).await.map_err(ended)?;
    let mut reply = vec![0; REPLY_SIZE_MAX];
    let mut size = 0;
    loop {
        let read = stream.read(&mut reply[size..]).await;
        match read {
            Ok(0) if size == 0 => return Err(Failure::Ended("closed without an answer".into())),
            Ok(0) => return Err(Failure::Other("closed within an answer".into())),
            Ok(count) => size += count,
            Err(e) if size == 0 => return Err(ended(e)),
            Err(e) => return Err(Failure::Other(format!("the connection has failed: {e}"))),
        }
        match reply::end(&reply[..size]) {
            Some(end) if end == size => {
                reply.truncate(end);
                return Ok(reply);
            }
            Some(_) => return Err(Failure::Other("answers more than was asked".into())),
            None if size == reply.len() => {
                return Err(Failure::Other(format!("an answer of more than {REPLY_SIZE_MAX} octets")));
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Serves connections one after another: the answers of each, behind whose last it is closed. Returns how many requests came in all.
    fn service(scripts: &'static [&'static [&'static str]]) -> (Address, thread::JoinHandle<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let served = thread::spawn(move || {
            let mut count = 0;
            for answers in scripts {
                let (mut stream, _) = listener.accept().unwrap();
                for answer in *answers {
                    let mut octets = [0; 1024];
                    if stream.read(&mut octets).unwrap_or(0) == 0 {
                        break;
                    }
                    count += 1;
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            }
            count
        });
        (address, served)
    }

    fn asked(address: &Address, times: usize) -> Vec<Result<String, String>> {
        let connections = Connections::new(address.clone(), 2);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ask = async {
            let mut answers = Vec::new();
            for _ in 0..times {
                let answer = connections.ask(b"request=x\n\n").await;
                answers.push(answer.map(|octets| String::from_utf8(octets).unwrap()));
            }
            answers
        };
        let ask = async { tokio::time::timeout(Duration::from_secs(60), ask).await.expect("in time") };
        let answers = runtime.block_on(ask);
        let told = |words: String| words.rsplit_once(": ").unwrap().1.to_string();
        answers.into_iter().map(|answer| answer.map_err(told)).collect()
    }

    const OK: &str = "action=OK\n\n";

    #[test]
    fn a_connection_is_used_again_and_an_ended_one_replaced() {
        // Two questions on the first connection, which is ended then; the third question goes to the second.
        let (address, served) = service(&[&[OK, OK], &[OK]]);
        assert_eq!(
            asked(&address, 3),
            [const { Ok::<&str, &str>(OK) }; 3].map(|ok| Ok(ok.unwrap().to_string()))
        );
        assert_eq!(served.join().unwrap(), 3);
        // A connection that takes a question and ends without an answer: asked once more.
        let (address, served) = service(&[&[OK, ""], &[OK]]);
        assert!(asked(&address, 2).iter().all(Result::is_ok));
        assert_eq!(served.join().unwrap(), 3);
    }

    #[test]
    fn what_is_no_answer_is_an_error_of_its_question_alone() {
        let table: [(&'static [&'static [&'static str]], &str); 4] = [
            (&[&[""]], "closed without an answer"),
            (&[&["action=O"]], "closed within an answer"),
            (&[&["action=OK\n\naction=OK\n\n"]], "answers more than was asked"),
            (&[&[LONG]], "an answer of more than 4096 octets"),
        ];
        for (script, words) in table {
            let (address, served) = service(script);
            assert_eq!(asked(&address, 1), [Err(words.to_string())]);
            assert_eq!(served.join().unwrap(), 1, "{words}");
        }
    }

    const LONG: &str = {
        const OCTETS: [u8; 5000] = [b'x'; 5000];
        match str::from_utf8(&OCTETS) {
            Ok(text) => text,
            Err(_) => panic!("ASCII"),
        }
    };
}
