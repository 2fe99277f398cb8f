//! The CLI's end: asks the gateway that runs with this configuration.
//!
//! Over the unix socket where there is one, else over TCP with the token. Blocks; not for threads with a runtime.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
pub use hyper::Method;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

use super::http::Fault;
use super::socket;
use super::token::Token;
use crate::config::Config;

/// Until there is a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Until what was asked is answered, and between two parts of a long answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Until what was ordered is done: an upgrade reads the spool.
const ORDER_TIMEOUT: Duration = Duration::from_secs(600);
/// A line of a stream, octets: whoever sends more is no gateway.
const LINE_SIZE_MAX: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// Nobody listens there: no gateway runs, as far as can be told. The words say where.
    Absent(String),
    /// The connection broke before there was an answer.
    Broken(String),
    /// Anything else, in words for people.
    Failed(String),
}

impl From<Unanswered> for String {
    fn from(unanswered: Unanswered) -> String {
        match unanswered {
            Unanswered::Absent(words) | Unanswered::Broken(words) | Unanswered::Failed(words) => words,
        }
    }
}

/// What the gateway says.
#[derive(Debug)]
pub struct Answer {
    /// Whether it is what was asked for (2xx).
    pub is_success: bool,
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as what it is expected to be, or the fault it tells of.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, String> {
        if !self.is_success {
            return Err(self.fault());
        }
        serde_json::from_slice(&self.body).map_err(|e| {
            format!(
                "the gateway answers what this program does not understand: {e}; is it of another version?"
            )
        })
    }

    fn fault(&self) -> String {
        match serde_json::from_slice::<Fault>(&self.body) {
            Ok(Fault { error }) => error,
            Err(_) => format!("the gateway answers with status {}", self.status),
        }
    }
}

/// Asks for `path`, as `/v1/stats`.
pub fn get<T: DeserializeOwned>(config: &Config, path: &str) -> Result<T, String> {
    ask(config, Method::GET, path, None)?.parse()
}

/// Gives an order: `body` to `path`.
pub fn post<T: DeserializeOwned>(config: &Config, path: &str, body: &impl Serialize) -> Result<T, String> {
    ask(config, Method::POST, path, Some(json(body)))?.parse()
}

/// Replaces what is at `path`.
pub fn put<T: DeserializeOwned>(config: &Config, path: &str, body: &impl Serialize) -> Result<T, String> {
    ask(config, Method::PUT, path, Some(json(body)))?.parse()
}

/// Removes what is at `path`.
pub fn delete<T: DeserializeOwned>(config: &Config, path: &str) -> Result<T, String> {
    ask(config, Method::DELETE, path, None)?.parse()
}

/// Asks, and gives the answer as it is.
pub fn ask(config: &Config, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Answer, Unanswered> {
    let patience = if method == Method::GET { ANSWER_TIMEOUT } else { ORDER_TIMEOUT };
    block_on(async {
        let response = request(config, method, path, body, patience).await?;
        let status = response.status();
        let collected = tokio::time::timeout(patience, response.into_body().collect()).await;
        let body = collected.map_err(|_| too_late())?.map_err(broken)?.to_bytes();
        Ok(Answer { is_success: status.is_success(), status: status.as_u16(), body })
    })
}

/// Asks for what comes bit by bit, and gives each bit to `take` as it comes, until the end of it or until `take` has had enough.
pub fn stream(
    config: &Config,
    path: &str,
    mut take: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), String> {
    let taken = block_on(async {
        let response = request(config, Method::GET, path, None, ANSWER_TIMEOUT).await?;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let body = body.collect().await.map_err(broken)?.to_bytes();
            let answer = Answer { is_success: false, status: status.as_u16(), body };
            return Err(Unanswered::Failed(answer.fault()));
        }
        loop {
            let frame = tokio::time::timeout(ANSWER_TIMEOUT, body.frame()).await.map_err(|_| too_late())?;
            let Some(frame) = frame else { return Ok(()) };
            if let Ok(octets) = frame.map_err(broken)?.into_data()
                && take(&octets).is_break()
            {
                return Ok(());
            }
        }
    });
    taken.map_err(String::from)
}

/// As [`stream`], line by line; the lines without their ends.
pub fn lines(
    config: &Config,
    path: &str,
    mut take: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), String> {
    let mut rest: Vec<u8> = Vec::new();
    let mut is_too_long = false;
    stream(config, path, |octets| {
        rest.extend_from_slice(octets);
        let mut taken = 0;
        while let Some(size) = memchr::memchr(b'\n', &rest[taken..]) {
            take(&rest[taken..taken + size])?;
            taken += size + 1;
        }
        rest.drain(..taken);
        is_too_long = rest.len() > LINE_SIZE_MAX;
        if is_too_long { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if is_too_long { Err("the gateway sends a line without an end".into()) } else { Ok(()) }
}

fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("what is sent can be written")
}

fn block_on<T>(what: impl Future<Output = Result<T, Unanswered>>) -> Result<T, Unanswered> {
    let failed = |e| Unanswered::Failed(format!("cannot wait for an answer: {e}"));
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(failed)?
        .block_on(what)
}

fn too_late() -> Unanswered {
    Unanswered::Failed("the gateway does not answer: it is overloaded or stuck".into())
}

fn broken(error: hyper::Error) -> Unanswered {
    Unanswered::Broken(format!(
        "the connection to the gateway broke: {error}; it may have too many of them, or have ended"
    ))
}

/// Sends a request, and gives the head of the answer.
async fn request(
    config: &Config,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
    patience: Duration,
) -> Result<Response<Incoming>, Unanswered> {
    let mut request = Request::builder().method(method).uri(path).header(HOST, "incoming");
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let admin = &config.admin;
    match (&admin.socket, admin.listen, &admin.token_file) {
        (Some(path), ..) => {
            let stream = socket::connect(path).and_then(|stream| {
                stream.set_nonblocking(true)?;
                tokio::net::UnixStream::from_std(stream)
            });
            let stream = stream.map_err(|e| explain_socket(path, &e))?;
            exchange(stream, finish(request, body)?, patience).await
        }
        (None, Some(address), Some(file)) => {
            let token = Token::read(file).map_err(|e| Unanswered::Failed(e.to_string()))?;
            let address = reachable(address);
            let connecting = tokio::net::TcpStream::connect(address);
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
            let connected = connected.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
            let stream = connected.map_err(|e| explain(&address, &e))?;
            exchange(stream, finish(request.header(AUTHORIZATION, token.bearer()), body)?, patience).await
        }
        _ => Err(Unanswered::Failed(
            "the gateway cannot be asked: admin.socket is \"none\", and there is no admin.listen with admin.token_file".into(),
        )),
    }
}

fn finish(
    request: hyper::http::request::Builder,
    body: Option<Vec<u8>>,
) -> Result<Request<Full<Bytes>>, Unanswered> {
    let body = Full::new(Bytes::from(body.unwrap_or_default()));
    request.body(body).map_err(|e| Unanswered::Failed(format!("this cannot be asked: {e}")))
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
    patience: Duration,
) -> Result<Response<Incoming>, Unanswered> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    tokio::time::timeout(patience, sender.send_request(request))
        .await
        .map_err(|_| too_late())?
        .map_err(broken)
}

/// Where everything is listened to, this machine is reached by its loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

fn explain_socket(path: &Path, error: &io::Error) -> Unanswered {
    match error.kind() {
        ErrorKind::PermissionDenied => Unanswered::Failed(format!(
            "{}: {error}: only the gateway's user, root, and the members of admin.group may ask it",
            path.display()
        )),
        _ => explain(&path.display(), error),
    }
}

fn explain(place: &dyn std::fmt::Display, error: &io::Error) -> Unanswered {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => Unanswered::Absent(format!(
            "no gateway answers at {place} ({error}): does it run, and with this configuration? (--config, --data)"
        )),
        _ => Unanswered::Failed(format!("cannot ask the gateway at {place}: {error}")),
    }
}

/// The status of an answer that is no fault though it is none of success.
pub const UNAVAILABLE: u16 = StatusCode::SERVICE_UNAVAILABLE.as_u16();
