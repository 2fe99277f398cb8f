//! A server for tests that answers by a script.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{Endpoint, Introduction, Protocol, Target, Timeouts};

/// What a server says.
#[derive(Clone)]
pub struct Script {
    /// Spoken.
    pub protocol: Protocol,
    /// What it offers.
    pub offers: Vec<&'static str>,
    /// By verb, `greeting` and `.` among them: the answers, one after another over all connections, the last for ever. Without one it is agreed to.
    /// `close`, `hang` and `never end` are done, and not said; what begins with `raw ` is said without a line end.
    pub answers: HashMap<&'static str, Vec<&'static str>>,
    /// What TLS is done with, from the beginning if `is_implicit`.
    pub tls: Option<Arc<ServerConfig>>,
    /// See `tls`.
    pub is_implicit: bool,
}

impl Script {
    /// Agrees to everything, and offers these.
    pub fn of(protocol: Protocol, offers: &[&'static str]) -> Self {
        let offers = offers.to_vec();
        Script { protocol, offers, answers: HashMap::new(), tls: None, is_implicit: false }
    }

    /// Says these to this.
    pub fn saying(mut self, verb: &'static str, answers: &[&'static str]) -> Self {
        self.answers.insert(verb, answers.to_vec());
        self
    }
}

/// What a server has heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Connections that were made.
    pub connections: usize,
    /// Commands, with `TLS` before those that came so.
    pub commands: Vec<String>,
    /// Contents whose end was said, transparency undone.
    pub contents: Vec<Vec<u8>>,
}

/// A server on this runtime.
pub struct Scripted {
    /// Where it listens.
    pub endpoint: Endpoint,
    heard: Arc<Mutex<Heard>>,
}

impl Scripted {
    /// Begins to serve.
    pub async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::Tcp("127.0.0.1".into(), listener.local_addr().unwrap().port());
        let heard = Arc::<Mutex<Heard>>::default();
        let (script, told) = (Arc::new(Mutex::new(script)), heard.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                told.lock().unwrap().connections += 1;
                let mut session = Session { script: script.clone(), heard: told.clone(), is_tls: false };
                tokio::spawn(async move { session.serve(Box::new(stream)).await });
            }
        });
        Scripted { endpoint, heard }
    }

    /// How it is spoken to in clear.
    pub fn target(&self, protocol: Protocol, timeouts: Timeouts) -> Target {
        let introduction = Introduction { protocol, name: "mx.test".into() };
        Target::in_clear(self.endpoint.clone(), introduction, timeouts)
    }

    /// What it has heard.
    pub fn heard(&self) -> Heard {
        self.heard.lock().unwrap().clone()
    }

    /// The commands it has heard, on one line.
    pub fn commands(&self) -> String {
        self.heard().commands.join(" | ")
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

struct Session {
    script: Arc<Mutex<Script>>,
    heard: Arc<Mutex<Heard>>,
    is_tls: bool,
}

impl Session {
    async fn serve(&mut self, mut stream: Box<dyn Stream>) -> io::Result<()> {
        let (tls, is_implicit, protocol) = {
            let script = self.script.lock().unwrap();
            (script.tls.clone().map(TlsAcceptor::from), script.is_implicit, script.protocol)
        };
        if is_implicit {
            stream = Box::new(tls.clone().unwrap().accept(stream).await?);
            self.is_tls = true;
        }
        self.answer(&mut stream, "greeting", "220 scripted").await?;
        let mut recipients = 0;
        loop {
            let line = String::from_utf8(read_until(&mut stream, b"\r\n").await?).unwrap();
            let line = line.trim_end();
            let shown = if self.is_tls { format!("TLS {line}") } else { line.into() };
            self.heard.lock().unwrap().commands.push(shown);
            let verb = line.split([' ', ':']).next().unwrap().to_string();
            match verb.as_str() {
                "EHLO" | "LHLO" => {
                    let offers = self.script.lock().unwrap().offers.clone();
                    let lines = [&["scripted"], &offers[..]].concat();
                    let last = lines.len() - 1;
                    let marked = lines
                        .iter()
                        .enumerate()
                        .map(|(n, l)| format!("250{}{l}", if n == last { ' ' } else { '-' }));
                    let agreed = marked.collect::<Vec<_>>().join("\r\n");
                    self.answer(&mut stream, &verb, &agreed).await?;
                }
                "STARTTLS" => {
                    if self.answer(&mut stream, &verb, "220 go").await?.starts_with("220")
                        && let Some(tls) = &tls
                    {
                        stream = Box::new(tls.accept(stream).await?);
                        self.is_tls = true;
                    }
                }
                "MAIL" | "RSET" => {
                    recipients = 0;
                    self.answer(&mut stream, &verb, "250 Ok").await?;
                }
                "RCPT" => {
                    let said = self.answer(&mut stream, &verb, "250 Ok").await?;
                    recipients += usize::from(said.starts_with('2'));
                }
                "DATA" => {
                    let agreed = if recipients > 0 { "354 go" } else { "503 nobody" };
                    if self.answer(&mut stream, &verb, agreed).await?.starts_with('3') {
                        let mut content = Vec::new();
                        loop {
                            let line = read_until(&mut stream, b"\r\n").await?;
                            if line == b".\r\n" {
                                break;
                            }
                            content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
                        }
                        self.end(&mut stream, content, protocol, recipients).await?;
                    }
                }
                "BDAT" => {
                    let size = line.split(' ').nth(1).unwrap().parse().unwrap();
                    let mut content = vec![0; size];
                    stream.read_exact(&mut content).await?;
                    self.end(&mut stream, content, protocol, recipients).await?;
                }
                "QUIT" => return self.answer(&mut stream, &verb, "221 Bye").await.map(drop),
                _ => {
                    let agreed = if line.starts_with("AUTH LOGIN") { "334 " } else { "250 Ok" };
                    self.answer(&mut stream, &verb, agreed).await?;
                }
            }
        }
    }

    async fn end(
        &mut self,
        stream: &mut Box<dyn Stream>,
        content: Vec<u8>,
        protocol: Protocol,
        recipients: usize,
    ) -> io::Result<()> {
        self.heard.lock().unwrap().contents.push(content);
        let count = if protocol == Protocol::Lmtp { recipients } else { 1 };
        for _ in 0..count {
            self.answer(stream, ".", "250 2.0.0 stored").await?;
        }
        Ok(())
    }

    /// Answers as the script has it, or else agrees; what was said.
    async fn answer(&mut self, stream: &mut Box<dyn Stream>, verb: &str, agreed: &str) -> io::Result<String> {
        let said = {
            let mut script = self.script.lock().unwrap();
            match script.answers.get_mut(verb) {
                Some(answers) if answers.len() > 1 => answers.remove(0).to_string(),
                Some(answers) => answers[0].to_string(),
                None => agreed.to_string(),
            }
        };
        match said.as_str() {
            "close" => return Err(io::ErrorKind::ConnectionAborted.into()),
            "hang" => std::future::pending().await,
            "never end" => loop {
                stream.write_all(b"250-more\r\n").await?;
            },
            "drip" => loop {
                stream.write_all(b"2").await?;
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            },
            "" | "agree" => stream.write_all(format!("{agreed}\r\n").as_bytes()).await?,
            text => match text.strip_prefix("raw ") {
                Some(text) => stream.write_all(text.as_bytes()).await?,
                None => stream.write_all(format!("{text}\r\n").as_bytes()).await?,
            },
        }
        Ok(if said == "agree" { agreed.into() } else { said })
    }
}

async fn read_until(stream: &mut Box<dyn Stream>, end: &[u8]) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    while !octets.ends_with(end) {
        octets.push(stream.read_u8().await?);
    }
    Ok(octets)
}
