//! What systemd is told of the gateway (sd_notify(3)), what it asks for (its watchdog), and the listening sockets that it hands over.
//!
//! Where there is no systemd, nobody is told anything and nothing is inherited: nothing here depends on how the gateway was started.
//!
//! - [`Notifier`] tells: ready, reloading, draining, stopping, who comes next. A supervisor that does not read holds the gateway for
//!   [`TELL_TIMEOUT`] at most, and what it has not been told is lost: nothing that matters to mail waits for it.
//! - [`watchdog`] tells that the gateway lives, as long as every shard does what it is asked to. One that hangs takes no mail and is
//!   still in the reuse-port group: better all of it begins anew.
//! - [`inherited_listeners`] are sockets that systemd has bound, and listens on while no gateway runs: whoever connects meanwhile
//!   waits. Each shard accepts on a socket of its own, with a queue of its own, as it does on those that the gateway binds. So the
//!   socket unit has a line for each shard (`ListenStream=` the same address, `ReusePort=yes`). With fewer, the shards without one
//!   take no connections there, which is said; the gateway cannot add sockets to a group of which another user has bound the first
//!   (SO_REUSEPORT, socket(7)). Nor can shards share one: glommio's accept makes the socket non-blocking and blocking again, for all
//!   who share it, and a shard might then block.
//!
//! Knows nothing of sessions and of mail.

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{SocketAddr as InternetAddress, TcpListener};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use sd_notify::NotifyState;
use socket2::{Domain, Socket, Type};

use crate::shard::Shards;

/// How long a supervisor's full queue is waited for.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);
/// How soon a shard that has not answered is asked again. Asking takes five seconds then.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// What is asked for beyond the time that a drain may take: syncs and the ends of threads.
const END_RESERVE: Duration = Duration::from_secs(20);
/// Variables that mean the process that has them, and not one that it starts.
pub const OWN_VARIABLES: [&str; 4] = ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Tells systemd how the gateway is. Cheap to clone; where there is no systemd, it tells nobody.
#[derive(Clone)]
pub struct Notifier {
    told: Option<Arc<Told>>,
}

struct Told {
    socket: UnixDatagram,
    supervisor: SocketAddr,
    is_stopping: AtomicBool,
    /// Somebody else is the service's main process.
    is_over: AtomicBool,
}

impl Notifier {
    /// Tells nobody.
    pub fn of_nobody() -> Self {
        Notifier { told: None }
    }

    /// Tells whom `NOTIFY_SOCKET` names.
    pub fn from_environment() -> Self {
        Self::new(std::env::var_os("NOTIFY_SOCKET"))
    }

    fn new(address: Option<OsString>) -> Self {
        let told = address.filter(|address| !address.is_empty()).and_then(|address| {
            Told::new(&address)
                .inspect_err(|error| {
                    tracing::warn!(
                        ?address,
                        %error,
                        "cannot tell the service manager anything: NOTIFY_SOCKET is no path and no abstract name"
                    )
                })
                .ok()
        });
        Notifier { told: told.map(Arc::new) }
    }

    /// Every shard accepts, after the start or a reload.
    pub fn ready(&self, status: &str) {
        let pid = NotifyState::MainPid(std::process::id());
        self.tell(&[NotifyState::Ready, pid, NotifyState::Status(&one_line(status))]);
    }

    /// The configuration is being read anew. [`Notifier::ready`] is to follow, however that ends.
    pub fn reloading(&self) {
        // systemd takes it only with the time (from version 253 on).
        let Ok(now) = NotifyState::monotonic_usec_now() else { return };
        self.tell(&[NotifyState::Reloading, now, NotifyState::Status("reloading")]);
    }

    /// The end has begun.
    pub fn stopping(&self, status: &str) {
        if let Some(told) = &self.told {
            told.is_stopping.store(true, Ordering::Relaxed);
        }
        self.tell(&[NotifyState::Stopping, NotifyState::Status(&one_line(status))]);
    }

    /// What is going on, in words.
    pub fn status(&self, text: &str) {
        self.tell(&[NotifyState::Status(&one_line(text))]);
    }

    /// How far a drain is that may go on for `left`. To be told more often than every [`END_RESERVE`].
    pub fn draining(&self, status: &str, left: Duration) {
        self.tell(&[NotifyState::Status(&one_line(status)), extension(left + END_RESERVE)]);
    }

    /// The process with this number is the service from now on, and tells for itself; this one tells nothing any more. It must have been
    /// started without [`OWN_VARIABLES`], or it would not know of the watchdog.
    pub fn succeeded_by(&self, pid: u32) {
        self.tell(&[NotifyState::MainPid(pid)]);
        if let Some(told) = &self.told {
            told.is_over.store(true, Ordering::Relaxed);
        }
    }

    fn is_stopping(&self) -> bool {
        self.told.as_ref().is_some_and(|told| told.is_stopping.load(Ordering::Relaxed))
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(told) = &self.told else { return };
        if told.is_over.load(Ordering::Relaxed) {
            return;
        }
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = told.socket.send_to_addr(message.as_bytes(), &told.supervisor) {
            tracing::debug!(%error, message = states[0].to_string(), "the service manager was not told");
        }
    }
}

impl Told {
    /// `address`: a path, or an abstract name behind an @.
    fn new(address: &OsStr) -> io::Result<Self> {
        let supervisor = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(address)?,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(TELL_TIMEOUT))?;
        Ok(Told { socket, supervisor, is_stopping: AtomicBool::new(false), is_over: AtomicBool::new(false) })
    }
}

fn extension(by: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(by.as_micros()).unwrap_or(u32::MAX))
}

/// A line is a variable: what is said must not be taken for another.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// Tells that the gateway lives. Ends when it is dropped.
pub struct Watchdog {
    _stop: Sender<()>,
}

/// Tells as often as it is asked to that every shard lives, from a thread of its own. None: nobody asked.
pub fn watchdog(notifier: &Notifier, shards: Shards) -> io::Result<Option<Watchdog>> {
    let Some(timeout) = sd_notify::watchdog_enabled().filter(|timeout| !timeout.is_zero()) else {
        return Ok(None);
    };
    let (stop, stopped) = bounded(0);
    let notifier = notifier.clone();
    let silent = move || {
        let answers = shards.tell_each(0..shards.len(), |_, _| ());
        (0..).zip(answers).filter(|(_, answer)| answer.is_none()).map(|(n, _)| n).collect()
    };
    std::thread::Builder::new()
        .name("watchdog".into())
        .spawn(move || watch(&notifier, timeout / 2, &stopped, silent))?;
    Ok(Some(Watchdog { _stop: stop }))
}

/// Tells every `interval` that the gateway lives, unless some shards are `silent`: those are asked again soon. While it ends nobody is
/// asked, for shards end too, and how long that may take is bounded otherwise.
fn watch(
    notifier: &Notifier,
    interval: Duration,
    stopped: &Receiver<()>,
    mut silent: impl FnMut() -> Vec<usize>,
) {
    loop {
        let silent = if notifier.is_stopping() { Vec::new() } else { silent() };
        // One that has ended since it was asked does not answer either.
        let is_alive = silent.is_empty() || notifier.is_stopping();
        match is_alive {
            true => notifier.tell(&[NotifyState::Watchdog]),
            false => tracing::error!(
                shards = ?silent,
                "shards do not answer: the service manager's watchdog is not told that the gateway lives"
            ),
        }
        let wait = if is_alive { interval } else { interval.min(ASK_AGAIN) };
        if stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// A listening socket that systemd has bound.
pub struct Inherited {
    /// As `FileDescriptorName=` says, or the socket unit's name.
    pub name: String,
    /// Where it listens.
    pub address: InternetAddress,
    /// It blocks, as the gateway's own do.
    pub socket: TcpListener,
}

/// The sockets that systemd hands over to this process, in its order. They are taken the first time: later there are none.
///
/// One that is no listening TCP socket is a fault, which says what to do.
pub fn inherited_listeners() -> Result<Vec<Inherited>, String> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let handed = sd_notify::listen_fds_with_names().map_err(|error| {
        format!(
            "cannot take the sockets that the service manager hands over (LISTEN_FDS, LISTEN_FDNAMES): {error}; start the \
             gateway by its socket unit, or without these variables"
        )
    })?;
    let inherited = handed.map(|(fd, name)| {
        // SAFETY: the service manager has opened it for this process, whose id LISTEN_PID is, and nobody takes it twice (TAKEN).
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        inherit(fd.into(), name)
    });
    inherited.collect()
}

fn inherit(socket: Socket, name: String) -> Result<Inherited, String> {
    let fault = |what: &str| {
        format!(
            "the service manager hands over \"{name}\", which {what}: the socket unit needs ListenStream=ADDRESS:PORT, Accept=no, and \
             for IPv6 BindIPv6Only=ipv6-only"
        )
    };
    let is_internet = matches!(socket.domain(), Ok(Domain::IPV4 | Domain::IPV6));
    let is_stream = matches!(socket.r#type(), Ok(Type::STREAM));
    let address = socket.local_addr().ok().and_then(|address| address.as_socket());
    let Some(address) = address.filter(|_| is_internet && is_stream) else {
        return Err(fault("is no TCP socket"));
    };
    if !matches!(socket.is_listener(), Ok(true)) {
        return Err(fault(&format!("is a socket of {address} that does not listen")));
    }
    // Peers over IPv4 would have other addresses there than everywhere else.
    if address.is_ipv6() && address.ip().is_unspecified() && !matches!(socket.only_v6(), Ok(true)) {
        return Err(fault(&format!("listens on {address} for IPv4 too")));
    }
    // systemd's sockets do not block; those that a ring accepts on do.
    socket.set_nonblocking(false).map_err(|error| fault(&format!("cannot be used: {error}")))?;
    Ok(Inherited { name, address, socket: socket.into() })
}

/// Takes the sockets for `address` out of those inherited: one for each shard, as far as there are; none, if the gateway has to bind
/// them itself. More than there are shards are a fault: nobody would take what comes in at the others.
pub fn take(
    inherited: &mut Vec<Inherited>,
    address: InternetAddress,
    shards: usize,
) -> Result<Vec<TcpListener>, String> {
    let taken: Vec<_> = inherited.extract_if(.., |socket| socket.address == address).collect();
    match taken.len() {
        0 => {}
        count if count > shards => {
            return Err(format!(
                "the service manager hands over {count} sockets for {address}, and there are {shards} shards: have no more lines \
                 ListenStream={address} in the socket unit than shards"
            ));
        }
        count if count < shards => tracing::warn!(
            %address,
            sockets = count,
            shards,
            "only as many shards take connections there as sockets are handed over: have the line ListenStream={address} in the \
             socket unit once for each shard, with ReusePort=yes"
        ),
        _ => {}
    }
    Ok(taken.into_iter().map(|inherited| inherited.socket).collect())
}

/// A socket that no listener wanted is a fault: connections would wait there for ever.
pub fn check_all_taken(left: &[Inherited]) -> Result<(), String> {
    let Some(Inherited { name, address, .. }) = left.first() else { return Ok(()) };
    Err(format!(
        "the service manager hands over \"{name}\", which listens on {address}, and no [[listener]] has that address: add one, or take \
         the line ListenStream={address} out of the socket unit"
    ))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A supervisor, and who tells it.
    fn supervised() -> (tempfile::TempDir, UnixDatagram, Notifier) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        supervisor.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        (folder, supervisor, Notifier::new(Some(path.into())))
    }

    fn told(supervisor: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let size = supervisor.recv(&mut buffer).expect("something is told");
        String::from_utf8(buffer[..size].to_vec()).unwrap()
    }

    #[test]
    fn what_is_told_is_one_variable_a_line() {
        let (_folder, supervisor, notifier) = supervised();
        let pid = std::process::id();
        type Told = (fn(&Notifier), String);
        let tell: [Told; 5] = [
            (|n| n.ready("2 shards\nREADY=0"), format!("READY=1\nMAINPID={pid}\nSTATUS=2 shards READY=0\n")),
            (|n| n.status("a\r\nb"), "STATUS=a  b\n".into()),
            (
                |n| n.draining("days", Duration::from_secs(30 * 86_400)),
                "STATUS=days\nEXTEND_TIMEOUT_USEC=4294967295\n".into(),
            ),
            (
                |n| n.draining("3 sessions", Duration::from_secs(1)),
                "STATUS=3 sessions\nEXTEND_TIMEOUT_USEC=21000000\n".into(),
            ),
            (|n| n.stopping("draining"), "STOPPING=1\nSTATUS=draining\n".into()),
        ];
        for (tell, expected) in tell {
            tell(&notifier);
            assert_eq!(told(&supervisor), expected);
        }
        notifier.reloading();
        let reloading = told(&supervisor);
        let time =
            reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|rest| rest.split_once('\n'));
        assert!(
            time.is_some_and(|(time, rest)| time.parse::<u64>().is_ok() && rest == "STATUS=reloading\n"),
            "{reloading}"
        );
    }

    #[test]
    fn a_supervisor_with_an_abstract_name_is_told() {
        let name = format!("incoming-test-{}", std::process::id());
        let supervisor = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notifier::new(Some(format!("@{name}").into())).status("here");
        assert_eq!(told(&supervisor), "STATUS=here\n");
    }

    #[test]
    fn who_is_not_there_or_does_not_listen_is_no_trouble() {
        for address in [None, Some(""), Some("vsock:2:1"), Some("/nonexistent/notify"), Some("@nobody-here")]
        {
            Notifier::new(address.map(OsString::from)).ready("nobody hears it");
        }
        // Its queue is full after some: the rest are given up.
        let (_folder, _supervisor, notifier) = supervised();
        notifier.told.as_ref().unwrap().socket.set_write_timeout(Some(Duration::from_millis(1))).unwrap();
        (0..600).for_each(|n| notifier.status(&n.to_string()));
    }

    #[test]
    fn who_has_a_successor_tells_nothing_more() {
        let (_folder, supervisor, notifier) = supervised();
        notifier.succeeded_by(7);
        notifier.stopping("draining");
        notifier.status("draining");
        assert_eq!(told(&supervisor), "MAINPID=7\n");
        supervisor.set_nonblocking(true).unwrap();
        assert!(supervisor.recv(&mut [0; 64]).is_err());
    }

    #[test]
    fn the_watchdog_is_told_as_long_as_every_shard_answers() {
        let (_folder, supervisor, notifier) = supervised();
        let (stop, stopped) = bounded(0);
        let (ask, asked) = bounded::<Vec<usize>>(0);
        let watching = notifier.clone();
        let thread = std::thread::spawn(move || {
            watch(&watching, Duration::from_millis(1), &stopped, || asked.recv().unwrap_or(vec![9]));
        });
        ask.send(vec![]).unwrap();
        assert_eq!(told(&supervisor), "WATCHDOG=1\n");
        // Silent ones: nothing is told until all answer again.
        for silent in [vec![1], vec![0, 1], vec![]] {
            supervisor.set_nonblocking(true).unwrap();
            assert!(supervisor.recv(&mut [0; 64]).is_err(), "{silent:?}");
            supervisor.set_nonblocking(false).unwrap();
            ask.send(silent).unwrap();
        }
        assert_eq!(told(&supervisor), "WATCHDOG=1\n");
        // While it ends, nobody is asked.
        notifier.stopping("");
        drop(ask);
        assert_eq!(told(&supervisor), "STOPPING=1\nSTATUS=\n");
        assert_eq!(told(&supervisor), "WATCHDOG=1\n");
        drop(stop);
        thread.join().unwrap();
    }

    fn listener(address: &str) -> Inherited {
        let socket = Socket::from(TcpListener::bind(address).unwrap());
        inherit(socket, "mx.socket".into()).unwrap()
    }

    #[test]
    fn what_is_no_listening_tcp_socket_is_a_fault_that_names_the_remedy() {
        let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        silent.bind(&InternetAddress::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = TcpStream::connect(held.local_addr().unwrap()).unwrap();
        let dual = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        dual.set_only_v6(false).unwrap();
        dual.bind(&"[::]:0".parse::<InternetAddress>().unwrap().into()).unwrap();
        dual.listen(1).unwrap();
        let table: [(Socket, &str); 6] = [
            (OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap()).into(), "is no TCP socket"),
            (OwnedFd::from(UnixStream::pair().unwrap().0).into(), "is no TCP socket"),
            (OwnedFd::from(std::fs::File::open("/dev/null").unwrap()).into(), "is no TCP socket"),
            (silent, "that does not listen"),
            (connected.into(), "that does not listen"),
            (dual, "for IPv4 too"),
        ];
        for (socket, words) in table {
            let Err(fault) = inherit(socket, "mx.socket".into()) else { panic!("taken; expected: {words}") };
            assert!(fault.contains("\"mx.socket\"") && fault.contains("ListenStream="), "{fault}");
            assert!(fault.contains(words), "{words}: {fault}");
        }
    }

    #[test]
    fn an_inherited_socket_blocks_whatever_it_did_before() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let inherited = inherit(socket.into(), "mx.socket".into()).unwrap();
        assert!(!Socket::from(inherited.socket).nonblocking().unwrap());
    }

    #[test]
    fn each_shard_takes_one_of_the_sockets_of_an_address() {
        let mut inherited = vec![listener("127.0.0.1:0"), listener("127.0.0.1:0")];
        let address = inherited[1].address;
        // A second one of the same address, as ReusePort=yes makes it.
        let again = inherited[1].socket.try_clone().unwrap();
        inherited.push(Inherited { name: "mx.socket".into(), address, socket: again });
        let fault = take(&mut vec_of(&inherited), address, 1).unwrap_err();
        assert!(fault.contains("2 sockets") && fault.contains("1 shards"), "{fault}");
        assert_eq!(take(&mut vec_of(&inherited), address, 2).unwrap().len(), 2);
        assert_eq!(take(&mut inherited, address, 3).unwrap().len(), 2);
        assert_eq!(take(&mut inherited, address, 3).unwrap().len(), 0);
        let fault = check_all_taken(&inherited).unwrap_err();
        assert!(
            fault.contains(&inherited[0].address.to_string()) && fault.contains("[[listener]]"),
            "{fault}"
        );
        let left = inherited[0].address;
        take(&mut inherited, left, 1).unwrap();
        assert_eq!(check_all_taken(&inherited), Ok(()));
    }

    fn vec_of(inherited: &[Inherited]) -> Vec<Inherited> {
        let copies = inherited.iter().map(|Inherited { name, address, socket }| Inherited {
            name: name.clone(),
            address: *address,
            socket: socket.try_clone().unwrap(),
        });
        copies.collect()
    }
}
