//! Listening, and the bounds on whoever connects.
//!
//! | bound | why |
//! |---|---|
//! | connections at a time, for each listener by itself | a flood on one does not keep the others' clients out; one too many is closed at once |
//! | time for the head of a request, and between two requests | who connects and says nothing holds a place no longer |
//! | time for a request's body | nor who says half of one |
//! | size of head and body | memory |
//! | time for a client to take what it is sent | who does not read has no place either; streams say something now and then |
//!
//! Who comes over TCP shows the token with each request; on the monitor's address only what needs none is there. What changes something is
//! logged, with who asked for it. Who comes without the token is told so, and the connection closed; the log has at most a line a minute
//! for each address ([`Strangers`]).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixListener;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CONNECTION, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Method, Request, Response, StatusCode};
use axum::response::IntoResponse;
use futures_lite::FutureExt;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Semaphore, watch};
use tokio::time::Sleep;
use tower_service::Service;

use super::http::{ApiError, AppState, api, monitor, plain_errors_as_json};
use super::socket::{self, Bound};
use super::token::Token;
use super::{Operations, Settings};
use crate::scheduling::yield_to_shards;
use crate::telemetry::Escaped;

/// Connections of one listener at a time.
const CONNECTIONS_MAX: usize = 64;
/// For the head of a request, and between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// A body, octets: orders are short; a list of message ids is the longest.
const BODY_SIZE_MAX: usize = 1 << 20;
/// The head of a request, octets, and what is read ahead.
const HEAD_SIZE_MAX: usize = 16 << 10;
/// How long a client may take nothing of what it is sent.
const SEND_TIMEOUT: Duration = Duration::from_secs(20);
/// Without descriptors accepting pauses for this long.
const PAUSE: Duration = Duration::from_millis(100);
/// Requests that are being answered when the control plane stops may go on for so long.
const GRACE: Duration = Duration::from_secs(60);
/// Who comes without the token is logged so often at most.
const STRANGER_INTERVAL: Duration = Duration::from_secs(60);
/// Addresses of which that is kept apart.
const STRANGERS_MAX: usize = 256;
/// A request that changes nothing, though it has a body.
const LOOKING: &str = "/v1/queue/list";
/// Threads for what blocks (reloads, upgrades, files): one for each request there can be at a time. There are none while nobody asks.
const BLOCKING_THREADS: usize = 2 * CONNECTIONS_MAX;

/// The control plane, running.
pub struct Admin {
    stop: watch::Sender<bool>,
    /// Where it listens on TCP: the API, the monitor.
    addresses: (Option<SocketAddr>, Option<SocketAddr>),
    closed: std::sync::mpsc::Receiver<()>,
    thread: JoinHandle<()>,
}

/// Who may ask for what on a listener.
#[derive(Clone)]
enum Access {
    /// Everything: who can open the socket may.
    Socket,
    /// Everything, with the token.
    Token(Token, Arc<Strangers>),
    /// What anybody may see.
    Monitor,
}

/// Who has come without the token, by address; those for whom there is no room together, under none.
#[derive(Default)]
struct Strangers(Mutex<HashMap<Option<IpAddr>, Stranger>>);

struct Stranger {
    told: Instant,
    /// Requests since.
    untold: u64,
}

impl Strangers {
    /// Another request from there. How many there were, if that is to be told now.
    fn note(&self, address: Option<IpAddr>, now: Instant) -> Option<u64> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = |stranger: &Stranger| now.saturating_duration_since(stranger.told) >= STRANGER_INTERVAL;
        let mut key = address;
        if !known.contains_key(&key) && known.len() >= STRANGERS_MAX {
            known.retain(|_, stranger| !is_due(stranger));
            if known.len() >= STRANGERS_MAX {
                key = None;
            }
        }
        match known.get_mut(&key) {
            Some(stranger) if !is_due(stranger) => {
                stranger.untold += 1;
                None
            }
            stranger => {
                let count = stranger.map_or(0, |stranger| stranger.untold) + 1;
                known.insert(key, Stranger { told: now, untold: 0 });
                Some(count)
            }
        }
    }
}

enum Listener {
    Unix(tokio::net::UnixListener),
    Tcp(tokio::net::TcpListener),
}

impl Admin {
    pub(super) fn start(settings: Settings, operations: Arc<dyn Operations>) -> io::Result<Admin> {
        let bound = Listeners::bind(settings)?;
        let addresses = (
            bound.address(|access| matches!(access, Access::Token(..))),
            bound.address(|access| matches!(access, Access::Monitor)),
        );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("admin-blocking")
            .on_thread_start(yield_to_shards)
            .build()?;
        for (what, address) in [("admin interface", addresses.0), ("monitor", addresses.1)] {
            if let Some(address) = address {
                tracing::info!(%address, "the {what} is at");
            }
        }
        let (stop, stopped) = watch::channel(false);
        let (closing, closed) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("admin".into()).spawn(move || {
            yield_to_shards();
            runtime.block_on(serve(bound, operations, stopped, closing));
            // What blocks for longer than that is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Admin { stop, addresses, closed, thread })
    }

    /// Where the API listens on TCP, if it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.addresses.0
    }

    /// Where the monitor listens, if it does.
    pub fn monitor_address(&self) -> Option<SocketAddr> {
        self.addresses.1
    }

    /// Stops listening: when this returns another may listen at the same places. Requests that are being answered may go on; they are
    /// waited for no longer than `patience`, which is to be nothing where one of them is what stops it.
    pub fn stop(self, patience: Duration) {
        let _ = self.stop.send(true);
        // An error says that the thread has ended.
        let _ = self.closed.recv();
        let until = Instant::now() + patience;
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1).min(patience));
        }
    }
}

/// What was bound, and not served yet.
struct Listeners {
    unix: Option<(UnixListener, Bound)>,
    tcp: Vec<(std::net::TcpListener, Access)>,
}

impl Listeners {
    fn bind(settings: Settings) -> io::Result<Listeners> {
        let Settings { socket, group, listen, monitor } = settings;
        let failed = |key: &str, what: &dyn std::fmt::Display, e: io::Error| {
            let remedy = match e.raw_os_error() {
                Some(libc::ENOSYS | libc::EOPNOTSUPP) => {
                    "; that file system has no sockets: name a path on another one, or \"none\""
                }
                _ => "",
            };
            io::Error::new(e.kind(), format!("{key}: cannot listen on {what}: {e}{remedy}"))
        };
        let tcp = [
            ("admin.listen", listen.map(|(address, token)| (address, Access::Token(token, Arc::default())))),
            ("monitor.listen", monitor.map(|address| (address, Access::Monitor))),
        ];
        let mut listening = Vec::new();
        for (key, wanted) in tcp {
            let Some((address, access)) = wanted else { continue };
            let listener = bind_tcp(address).map_err(|e| failed(key, &address, e))?;
            listening.push((listener, access));
        }
        // Last: who has the path is the one that serves.
        let bind = |path: &std::path::PathBuf| {
            socket::bind(path, group.as_deref()).map_err(|e| failed("admin.socket", &path.display(), e))
        };
        Ok(Listeners { unix: socket.as_ref().map(bind).transpose()?, tcp: listening })
    }

    fn address(&self, of: impl Fn(&Access) -> bool) -> Option<SocketAddr> {
        let (listener, _) = self.tcp.iter().find(|(_, access)| of(access))?;
        listener.local_addr().ok()
    }
}

/// With SO_REUSEPORT: while one process takes over from another both listen.
fn bind_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(CONNECTIONS_MAX as i32)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Serves until it is told to stop and what is being answered then is over.
async fn serve(
    listeners: Listeners,
    operations: Arc<dyn Operations>,
    stopped: watch::Receiver<bool>,
    closing: std::sync::mpsc::Sender<()>,
) {
    let state = AppState::new(operations, stopped.clone());
    let (api, monitor) = (api(state.clone()), monitor(state));
    let mut bound = None;
    let mut all: Vec<(Listener, Access)> = Vec::new();
    if let Some((listener, place)) = listeners.unix {
        bound = Some(place);
        all.extend(
            tokio::net::UnixListener::from_std(listener).ok().map(|l| (Listener::Unix(l), Access::Socket)),
        );
    }
    for (listener, access) in listeners.tcp {
        all.extend(tokio::net::TcpListener::from_std(listener).ok().map(|l| (Listener::Tcp(l), access)));
    }
    let places: Vec<Arc<Semaphore>> = all.iter().map(|_| Arc::new(Semaphore::new(CONNECTIONS_MAX))).collect();
    let mut accepting = tokio::task::JoinSet::new();
    for ((listener, access), places) in all.into_iter().zip(&places) {
        let router = if matches!(access, Access::Monitor) { monitor.clone() } else { api.clone() };
        accepting.spawn(accept(listener, access, router, places.clone(), stopped.clone()));
    }
    let mut told = stopped.clone();
    let _ = told.wait_for(|stopped| *stopped).await;
    while accepting.join_next().await.is_some() {}
    drop(bound);
    let _ = closing.send(());
    // A place is given back when its connection has ended.
    let ended = async {
        for places in &places {
            let _ = places.acquire_many(CONNECTIONS_MAX as u32).await;
        }
    };
    let _ = tokio::time::timeout(GRACE, ended).await;
}

/// Who has connected.
enum Stream {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

impl Listener {
    async fn accept(&self) -> io::Result<(Stream, Caller)> {
        match self {
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let caller =
                    stream.peer_cred().map_or(Caller::Unknown, |peer| Caller::User(peer.uid(), peer.pid()));
                Ok((Stream::Unix(stream), caller))
            }
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok((Stream::Tcp(stream), Caller::Address(peer)))
            }
        }
    }
}

/// Who asks, for the log.
#[derive(Clone, Copy)]
enum Caller {
    User(u32, Option<i32>),
    Address(SocketAddr),
    Unknown,
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Caller::User(uid, Some(pid)) => write!(f, "user {uid}, process {pid}"),
            Caller::User(uid, None) => write!(f, "user {uid}"),
            Caller::Address(address) => address.fmt(f),
            Caller::Unknown => f.write_str("somebody"),
        }
    }
}

/// Accepts on one listener until the control plane stops.
async fn accept(
    listener: Listener,
    access: Access,
    router: Router,
    places: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
) {
    loop {
        let mut told = stopped.clone();
        let stop = async {
            let _ = told.wait_for(|stopped| *stopped).await;
            None
        };
        let accepted = async { Some(listener.accept().await) };
        match stop.or(accepted).await {
            None => return,
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot accept connections to the admin interface for the moment");
                tokio::time::sleep(PAUSE).await;
            }
            Some(Ok((stream, caller))) => {
                // One too many is closed: its client finds out at once.
                let Ok(place) = places.clone().try_acquire_owned() else { continue };
                let (access, router, stopped) = (access.clone(), router.clone(), stopped.clone());
                tokio::spawn(async move {
                    match stream {
                        Stream::Unix(stream) => connection(stream, caller, access, router, stopped).await,
                        Stream::Tcp(stream) => connection(stream, caller, access, router, stopped).await,
                    }
                    drop(place);
                });
            }
        }
    }
}

/// Serves one connection to its end.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    caller: Caller,
    access: Access,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| answer(request, caller, access.clone(), router.clone()));
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_SIZE_MAX)
            .serve_connection(TokioIo::new(Impatient::new(stream)), service)
    );
    let stop = async {
        let _ = stopped.wait_for(|stopped| *stopped).await;
        None
    };
    // How it ended is the client's affair.
    if async { Some(served.as_mut().await) }.or(stop).await.is_none() {
        served.as_mut().graceful_shutdown();
        let _ = served.await;
    }
}

/// Answers a request, if whoever asks may ask.
async fn answer(
    request: Request<Incoming>,
    caller: Caller,
    access: Access,
    mut router: Router,
) -> Result<Response<Body>, std::convert::Infallible> {
    if let Access::Token(token, strangers) = &access {
        let given = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let is_known = given.strip_prefix(b"Bearer ").is_some_and(|given| token.is(given));
        if !is_known {
            let address = if let Caller::Address(address) = caller { Some(address.ip()) } else { None };
            if let Some(count) = strangers.note(address, Instant::now()) {
                tracing::warn!(%caller, count, "requests to the admin interface without the token");
            }
            let words = "the token is missing or wrong: send it as Authorization: Bearer <token>";
            let mut response = ApiError::new(StatusCode::UNAUTHORIZED, words).into_response();
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return Ok(response);
        }
    }
    let is_order =
        !matches!(*request.method(), Method::GET | Method::HEAD) && request.uri().path() != LOOKING;
    let asked = is_order.then(|| (request.method().clone(), request.uri().to_string()));
    let (head, body) = request.into_parts();
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_SIZE_MAX).collect()).await;
    let request = match body {
        Ok(Ok(body)) => Request::from_parts(head, Body::from(body.to_bytes())),
        Ok(Err(_)) => {
            let words = format!("the request is broken, or has more than {BODY_SIZE_MAX} octets");
            return Ok(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, words).into_response());
        }
        Err(_) => {
            let words = "the request did not come in time";
            return Ok(ApiError::new(StatusCode::REQUEST_TIMEOUT, words).into_response());
        }
    };
    let response = match router.call(request).await {
        Ok(response) => plain_errors_as_json(response).await,
        Err(never) => match never {},
    };
    if let Some((method, path)) = asked {
        let (path, status) = (Escaped(path.as_bytes()), response.status().as_u16());
        tracing::info!(%method, %path, status, %caller, "an order from the admin interface");
    }
    Ok(response)
}

/// A stream that breaks when the other side takes nothing for too long.
struct Impatient<S> {
    stream: S,
    /// Since somebody waits to write.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn new(stream: S) -> Self {
        Impatient { stream, patience: None }
    }

    /// What a write came to, unless it has taken too long.
    fn bounded<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.patience = None;
            return written;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(SEND_TIMEOUT)));
        match Future::poll(patience.as_mut(), context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, octets);
        self.bounded(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.bounded(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(context);
        self.bounded(context, ended)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    use super::*;
    use crate::admin::testing::FakeGateway;
    use crate::admin::{Progress, Stage};

    /// Sends `request`, and gives everything that is answered until the connection ends.
    fn exchange(mut stream: impl Read + Write, request: &str) -> String {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    fn get(path: &str, more: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n")
    }

    fn socket(gateway: &FakeGateway) -> PathBuf {
        gateway.config.admin.socket.clone().unwrap()
    }

    #[test]
    fn over_tcp_nothing_is_said_without_the_token() {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, "0123456789abcdef\n").unwrap();
        std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let toml = format!("[admin]\nlisten = \"127.0.0.1:0\"\ntoken_file = {:?}", token.to_str().unwrap());
        let gateway = FakeGateway::new(folder.path(), &toml);
        let served = gateway.serve();
        let ask = |path: &str, more: &str| {
            exchange(std::net::TcpStream::connect(served.address().unwrap()).unwrap(), &get(path, more))
        };
        let field = |value: &str| format!("Authorization: {value}\r\n");
        for more in [
            "".into(),
            field("Bearer 0123456789abcdeF"),
            field("Bearer "),
            field("0123456789abcdef"),
            field("Basic 0123456789abcdef"),
        ] {
            for path in ["/v1/stage", "/livez", "/nothing"] {
                let answer = ask(path, &more);
                assert!(answer.starts_with("HTTP/1.1 401 "), "{path} {more}: {answer}");
                assert!(
                    answer.contains("www-authenticate: Bearer") && answer.contains(r#"{"error":"#),
                    "{answer}"
                );
            }
        }
        // And the connection is closed, though nobody has asked for that.
        let stream = std::net::TcpStream::connect(served.address().unwrap()).unwrap();
        let begun = Instant::now();
        let answer = exchange(stream, "GET /v1/stage HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 401 ") && begun.elapsed() < HEAD_TIMEOUT, "{answer}");
        let answer = ask("/v1/stage", &field("Bearer 0123456789abcdef"));
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("ready"), "{answer}");
    }

    #[test]
    fn who_comes_without_the_token_is_told_of_once_a_minute_with_a_count() {
        let (strangers, began) = (Strangers::default(), Instant::now());
        let note = |address: [u8; 4], seconds| {
            strangers.note(Some(address.into()), began + Duration::from_secs(seconds))
        };
        let table = [(0, Some(1)), (1, None), (59, None), (60, Some(3)), (61, None), (300, Some(2))];
        for (seconds, expected) in table {
            assert_eq!(note([192, 0, 2, 1], seconds), expected, "{seconds}");
        }
        assert_eq!(note([192, 0, 2, 2], 300), Some(1));
        // A flood from everywhere: those for whom there is no room are told of together.
        let told = (0..10_000u32).filter_map(|n| note((n + (10 << 24)).to_be_bytes(), 301));
        assert!(told.count() <= STRANGERS_MAX + 1);
        assert!(strangers.0.lock().unwrap().len() <= STRANGERS_MAX + 1);
    }

    #[test]
    fn the_monitor_shows_and_takes_no_orders() {
        let folder = tempfile::tempdir().unwrap();
        let toml = "[admin]\nsocket = \"none\"\n[monitor]\nlisten = \"127.0.0.1:0\"";
        let gateway = FakeGateway::new(folder.path(), toml);
        let served = gateway.serve();
        assert!(!folder.path().join("admin.sock").exists());
        let ask = |request: &str| {
            exchange(std::net::TcpStream::connect(served.monitor_address().unwrap()).unwrap(), request)
        };
        for path in ["/livez", "/readyz", "/metrics"] {
            assert!(ask(&get(path, "")).starts_with("HTTP/1.1 200 "), "{path}");
        }
        *gateway.stage.lock().unwrap() = Stage::Draining { sessions: 1, messages: 0 };
        let answer = ask(&get("/readyz", ""));
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("draining"), "{answer}");
        assert!(ask(&get("/livez", "")).starts_with("HTTP/1.1 200 "));
        for path in ["/v1/stage", "/v1/sessions", "/v1/stats", "/v1/log-level", "/"] {
            assert!(ask(&get(path, "")).starts_with("HTTP/1.1 404 "), "{path}");
        }
        let order = "POST /v1/drain HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        assert!(ask(order).starts_with("HTTP/1.1 404 "));
        assert!(gateway.drained.lock().unwrap().is_empty());
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let gateway = FakeGateway::new(folder.path(), "");
        let _served = gateway.serve();
        let ask = |request: &str| exchange(UnixStream::connect(socket(&gateway)).unwrap(), request);
        let head = |size: usize| get("/v1/stage", &format!("X: {}\r\n", "x".repeat(size)));
        assert!(ask(&head(1000)).starts_with("HTTP/1.1 200 "));
        assert!(ask(&head(HEAD_SIZE_MAX)).starts_with("HTTP/1.1 431 "));
        let body = |size: usize| {
            let fields = "Host: x\r\nConnection: close\r\nContent-Type: application/json\r\n";
            format!("POST /v1/drain HTTP/1.1\r\n{fields}Content-Length: {size}\r\n\r\n{}", " ".repeat(size))
        };
        assert!(ask(&body(BODY_SIZE_MAX + 1)).starts_with("HTTP/1.1 413 "));
        assert!(ask(&body(10)).starts_with("HTTP/1.1 400 "), "no JSON");
    }

    #[test]
    fn a_flood_on_one_listener_keeps_nobody_from_another() {
        let folder = tempfile::tempdir().unwrap();
        let gateway = FakeGateway::new(folder.path(), "[monitor]\nlisten = \"127.0.0.1:0\"");
        let served = gateway.serve();
        let address = served.monitor_address().unwrap();
        // They say nothing.
        let held: Vec<_> =
            (0..CONNECTIONS_MAX).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let mut one_too_many = std::net::TcpStream::connect(address).unwrap();
        assert_eq!(one_too_many.read(&mut [0]).unwrap_or(0), 0, "it is closed at once");
        gateway.get::<Progress>("/v1/stage").unwrap();
        drop(held);
        let until = Instant::now() + Duration::from_secs(30);
        let is_served = || exchange(std::net::TcpStream::connect(address).unwrap(), &get("/livez", ""));
        while !is_served().starts_with("HTTP/1.1 200 ") {
            assert!(Instant::now() < until, "their places are free again");
        }
    }

    #[test]
    fn it_can_be_stopped_and_started_again_and_by_one_of_its_own_requests() {
        let folder = tempfile::tempdir().unwrap();
        let gateway = FakeGateway::new(folder.path(), "");
        for _ in 0..3 {
            let served = gateway.serve();
            gateway.get::<Progress>("/v1/stage").unwrap();
            // A connection that says nothing does not hold it up.
            let _idle = UnixStream::connect(socket(&gateway)).unwrap();
            let begun = Instant::now();
            drop(served);
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            assert!(!socket(&gateway).exists());
            assert!(gateway.get::<Progress>("/v1/stage").unwrap_err().contains("no gateway answers"));
        }
        // As a reload of [admin]: the answer is still given, and a new one listens before the old one is gone.
        let first = super::super::start(Settings::of(&gateway.config).unwrap(), gateway.clone()).unwrap();
        let next = std::sync::Mutex::new(Some(first));
        let gateway = gateway.clone();
        let again = gateway.clone();
        let next = Arc::new(next);
        let inside = next.clone();
        *gateway.on_reload.lock().unwrap() = Some(Box::new(move || {
            let new = super::super::start(Settings::of(&again.config).unwrap(), again.clone()).unwrap();
            let old = inside.lock().unwrap().replace(new).unwrap();
            old.stop(Duration::ZERO);
        }));
        let _: crate::admin::Reloaded = gateway.post("/v1/reload", serde_json::json!({})).unwrap();
        gateway.get::<Progress>("/v1/stage").unwrap();
        *gateway.on_reload.lock().unwrap() = None;
        next.lock().unwrap().take().unwrap().stop(Duration::from_secs(10));
    }
}
