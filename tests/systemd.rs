//! Under systemd: what it is told, its watchdog, the sockets it hands over, and what its unit permits.
//!
//! No systemd runs here: a socket of the test is told, and `systemd-socket-activate` or the test itself hands over.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

use socket2::{Domain, Socket, Type};
use support::client::Client;
use support::ledger;
use support::maildir;
use support::server::{Refused, Server};
use support::setup::Setup;
use support::tools;
use support::wait;

/// What stands in for systemd: all that it has been told, in order.
struct Supervisor {
    told: Arc<Mutex<Vec<String>>>,
    command: Command,
}

impl Supervisor {
    fn of(setup: &Setup) -> Self {
        let path = setup.home().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = told.clone();
        // Ends with the test's process.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(size) = socket.recv(&mut buffer) {
                let message = String::from_utf8_lossy(&buffer[..size]).into_owned();
                telling.lock().expect("no panic").push(message);
            }
        });
        let mut command = setup.command();
        command.env("NOTIFY_SOCKET", path);
        Supervisor { told, command }
    }

    fn start(&mut self, setup: &Setup) -> Server {
        let command = std::mem::replace(&mut self.command, Command::new("true"));
        Server::start(command, &setup.home().join("log")).unwrap_or_else(|refused| panic!("{refused}"))
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().expect("no panic").clone()
    }

    /// How often it was told exactly this.
    fn count(&self, message: &str) -> usize {
        self.told().iter().filter(|told| *told == message).count()
    }

    /// Waits until a message begins with this, and gives it.
    #[track_caller]
    fn wait_for(&self, beginning: &str) -> String {
        let found =
            wait::poll(wait::PATIENCE, || self.told().into_iter().find(|told| told.starts_with(beginning)));
        found.unwrap_or_else(|| panic!("no {beginning} in {:?}", self.told()))
    }
}

#[test]
fn the_service_manager_is_told_from_ready_to_the_end() {
    let setup = Setup::new();
    let mut supervisor = Supervisor::of(&setup);
    let mut server = supervisor.start(&setup);
    let ready = supervisor.wait_for("READY=1\n");
    assert!(
        ready.contains(&format!("\nMAINPID={}\n", server.pid())) && ready.contains("\nSTATUS="),
        "{ready}"
    );
    let mut client = Client::greet(server.address());
    server.signal("HUP");
    supervisor.wait_for("RELOADING=1\nMONOTONIC_USEC=");
    let readies = || supervisor.told().iter().filter(|told| told.starts_with("READY=1\n")).count();
    wait::until("it is ready again", || readies() == 2);
    setup.file("incoming.toml", "colour = \"blue\"\n");
    server.signal("HUP");
    wait::until("it is ready as it was", || readies() == 3);
    assert!(supervisor.told().last().expect("something").contains("not replaced"));
    let replies = client.envelope("a@client.test", &["b@mx.test"]).expect("replies");
    assert_eq!(replies.last().expect("to DATA").code, 354);
    server.signal("TERM");
    supervisor.wait_for("STOPPING=1\n");
    let draining = wait::poll(wait::PATIENCE, || {
        supervisor.told().into_iter().find(|told| told.contains("EXTEND_TIMEOUT_USEC="))
    });
    let draining = draining.expect("more time is asked for");
    assert!(draining.contains("1 shards have sessions"), "{draining}");
    let time = draining.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")).expect("a time");
    let time: u64 = time.parse().expect("a number");
    assert!(time > 30_000_000, "drain_timeout is 30 s, and more is asked for: {draining}");
    assert_eq!(client.content(&ledger::content(0)).expect("a reply").code, 250);
    assert!(server.wait().success());
    assert!(!supervisor.told().iter().any(|told| told.contains("WATCHDOG")), "nobody asked for it");
}

#[test]
fn the_watchdog_is_told_until_a_shard_hangs_and_again_when_it_goes_on() {
    let mut setup = Setup::new();
    setup.set("shards", "2");
    let mut supervisor = Supervisor::of(&setup);
    supervisor.command.env("WATCHDOG_USEC", "200000");
    let server = supervisor.start(&setup);
    let is_told = |times: usize| wait::until("it is told", || supervisor.count("WATCHDOG=1\n") >= times);
    is_told(3);
    {
        let _hanging = Hanging::shard(server.pid(), 1);
        wait::until("the log says so", || server.log().contains("shards do not answer"));
        let told = supervisor.count("WATCHDOG=1\n");
        let complaints = server.log().matches("shards do not answer").count();
        wait::until("it is asked again", || {
            server.log().matches("shards do not answer").count() > complaints
        });
        assert_eq!(supervisor.count("WATCHDOG=1\n"), told, "it was vouched for");
    }
    is_told(supervisor.count("WATCHDOG=1\n") + 2);
}

/// A thread that is held until this is dropped.
struct Hanging(libc::pid_t);

impl Hanging {
    /// A shard's: the first of its name, for it has started its blocking thread.
    fn shard(pid: u32, n: usize) -> Self {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
        let ids = tasks.map(|task| task.expect("a thread").file_name().into_string().expect("a number"));
        let name = format!("shard-{n}-");
        let is_it = |id: &String| {
            fs::read_to_string(format!("/proc/{pid}/task/{id}/comm"))
                .is_ok_and(|comm| comm.starts_with(&name))
        };
        let numbers = ids.filter(is_it).map(|id| id.parse().expect("a number"));
        let id: libc::pid_t = numbers.min().unwrap_or_else(|| panic!("no thread {name}"));
        // SAFETY: no memory of this process is handed over.
        unsafe {
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, id, 0, 0), 0, "{}", std::io::Error::last_os_error());
            assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, id, 0, 0), 0);
            assert_eq!(libc::waitpid(id, std::ptr::null_mut(), libc::__WALL), id);
        }
        Hanging(id)
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}

// ---- sockets handed over

#[test]
fn who_connects_before_the_gateway_runs_is_served() {
    let mut setup = Setup::new();
    // A port that is free now; who takes it before systemd-socket-activate does, fails this test.
    let address = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let listen = address.to_string();
    setup.listen(&[&listen]).under(&[
        "systemd-socket-activate",
        "-E",
        "NO_COLOR=1",
        "-l",
        &listen,
        "--fdname=mx",
    ]);
    let mut server = setup.launch();
    // It starts the gateway when somebody connects.
    let early: Vec<_> = (0..5)
        .map(|_| wait::poll(wait::PATIENCE, || Client::connect(address).ok()).expect("somebody listens"))
        .collect();
    for mut client in early {
        assert_eq!(client.reply().expect("a greeting").code, 220);
        client.expect("QUIT", 221);
    }
    Client::greet(address).deliver("a@client.test", &["b@mx.test"], &ledger::content(0));
    wait::until("the message is delivered", || maildir::count(setup.maildir()) == 1);
    assert!(server.stop().success());
}

/// Listening sockets of one address, as `ReusePort=yes` makes them.
fn sockets(count: usize) -> (SocketAddr, Vec<TcpListener>) {
    let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
    let bind = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_port(true).expect("shared");
        socket.bind(&address.into()).expect("a port");
        socket.listen(64).expect("it listens");
        // As systemd's.
        socket.set_nonblocking(true).expect("it does not block");
        let socket = TcpListener::from(socket);
        address = socket.local_addr().expect("an address");
        socket
    };
    let sockets = (0..count).map(bind).collect();
    (address, sockets)
}

/// Starts the gateway with these sockets as systemd hands them over.
fn hand_over(setup: &mut Setup, sockets: &[TcpListener]) -> Result<Server, Refused> {
    setup.under(&["sh", "-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]);
    let mut command = setup.command();
    command.env("LISTEN_FDS", sockets.len().to_string());
    command.env("LISTEN_FDNAMES", vec!["mx"; sockets.len()].join(":"));
    // Above all that they are copied to.
    let raised = sockets.iter().map(|socket| {
        // SAFETY: it is open, and what comes back belongs to nobody else.
        let fd = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 100) };
        assert!(fd >= 100);
        fd
    });
    let raised: Vec<_> = raised.collect();
    let handed = raised.clone();
    // SAFETY: between fork and exec only dup2 is called, which may be.
    unsafe {
        command.pre_exec(move || {
            for (to, from) in (3..).zip(&handed) {
                if libc::dup2(*from, to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let started = Server::start(command, &setup.home().join("log"));
    // SAFETY: they are this function's.
    raised.into_iter().for_each(|fd| unsafe { assert_eq!(libc::close(fd), 0) });
    started
}

#[test]
fn each_shard_takes_a_socket_of_its_own() {
    let mut setup = Setup::new();
    let (address, sockets) = sockets(2);
    setup.set("shards", "2").listen(&[&address.to_string()]);
    // They are spread over both sockets' queues before anybody accepts.
    let early: Vec<_> = (0..40).map(|_| Client::connect(address).expect("it connects")).collect();
    let server = hand_over(&mut setup, &sockets).unwrap_or_else(|refused| panic!("{refused}"));
    drop(sockets);
    for mut client in early {
        assert_eq!(client.reply().expect("a greeting").code, 220);
    }
    assert!(!server.log().contains("sockets are handed over"), "{}", server.log());
}

#[test]
fn with_fewer_sockets_than_shards_all_are_served_and_the_log_says_what_to_do() {
    let mut setup = Setup::new();
    let (address, sockets) = sockets(1);
    setup.set("shards", "2").listen(&[&address.to_string(), "127.0.0.1:0"]);
    let server = hand_over(&mut setup, &sockets).unwrap_or_else(|refused| panic!("{refused}"));
    for address in server.addresses() {
        for _ in 0..8 {
            Client::greet(*address).expect("QUIT", 221);
        }
    }
    wait::until("the log says what to do", || server.log().contains("ReusePort=yes"));
}

#[test]
fn sockets_that_cannot_be_used_are_start_errors_that_name_the_remedy() {
    let held = TcpListener::bind("127.0.0.1:0").expect("a port");
    let connected =
        std::net::TcpStream::connect(held.local_addr().expect("an address")).expect("it connects");
    let (elsewhere, unwanted) = sockets(1);
    let (shared, three) = sockets(3);
    let table: [(Vec<TcpListener>, String, &[&str]); 3] = [
        (unwanted, "127.0.0.1:0".into(), &["mx", &elsewhere.to_string(), "[[listener]]", "ListenStream="]),
        (three, shared.to_string(), &["3 sockets", "1 shards", "ListenStream="]),
        (
            vec![Socket::from(connected).into()],
            "127.0.0.1:0".into(),
            &["mx", "does not listen", "ListenStream="],
        ),
    ];
    for (sockets, listen, facts) in table {
        let mut setup = Setup::new();
        setup.listen(&[&listen]);
        let Err(refused) = hand_over(&mut setup, &sockets) else { panic!("it started: {facts:?}") };
        assert_eq!(refused.status.and_then(|status| status.code()), Some(1), "{refused}");
        facts.iter().for_each(|fact| assert!(refused.log.contains(fact), "{fact}: {refused}"));
    }
}

// ---- the unit

/// What the values of a key in the unit are.
fn unit(key: &str) -> Vec<String> {
    let text = fs::read_to_string(tools::test_file("../docs/incoming.service")).expect("a unit");
    text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(String::from).collect()
}

/// The system calls of a group of systemd's, and of the groups in it; or the one of this name.
fn calls(name: &str) -> BTreeSet<String> {
    if !name.starts_with('@') {
        return BTreeSet::from([name.to_string()]);
    }
    let Output { stdout, .. } = tools::run("systemd-analyze", ["syscall-filter", name]);
    let text = String::from_utf8(stdout).expect("text");
    let names = text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    names.flat_map(calls).collect()
}

#[test]
fn what_was_ordered_to_end_stays_down() {
    assert_eq!(unit("Restart"), ["on-failure"]);
    // Where somebody had to be cut off.
    assert_eq!(unit("SuccessExitStatus"), ["3"]);
}

#[test]
fn the_unit_permits_whatever_the_gateway_asks_of_the_kernel() {
    let mut permitted = BTreeSet::new();
    for list in unit("SystemCallFilter") {
        let of = |list: &str| -> BTreeSet<_> { list.split_whitespace().flat_map(calls).collect() };
        match list.strip_prefix('~') {
            None => permitted.append(&mut of(&list)),
            Some(list) => permitted = &permitted - &of(list),
        }
    }
    assert!(permitted.contains("io_uring_enter") && !permitted.contains("setuid"), "{permitted:?}");
    assert!(permitted.contains("chown") && !permitted.contains("chroot"), "admin.group: {permitted:?}");
    let families = unit("RestrictAddressFamilies").join(" ");

    let mut setup = Setup::new();
    let trace = setup.home().join("trace");
    setup.under(&["strace", "-f", "-qq", "-s", "0", "-o", trace.to_str().expect("a path in UTF-8")]);
    let mut server = setup.start();
    Client::greet(server.address()).deliver("a@client.test", &["b@mx.test"], &ledger::content(0));
    wait::until("the message is delivered", || maildir::count(setup.maildir()) == 1);
    let gateway = fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.pid())).expect("it runs");
    let gateway = gateway.trim().parse().expect("one process");
    tools::signal(gateway, "HUP");
    tools::signal(gateway, "TERM");
    assert!(server.wait().success());

    let text = fs::read_to_string(&trace).expect("a trace");
    let mut refused = BTreeSet::new();
    let mut count = 0;
    for line in text.lines() {
        let call = line.split_once(char::is_whitespace).map_or("", |(_, call)| call.trim_start());
        // The ends of calls that were interrupted, signals and ends of threads.
        let Some((name, arguments)) = call.split_once('(').filter(|_| !call.starts_with(['<', '-', '+']))
        else {
            continue;
        };
        count += 1;
        let is_permitted = match name {
            "socket" => arguments.split(',').next().is_some_and(|family| families.contains(family)),
            // MemoryDenyWriteExecute=
            "mmap" | "mprotect" => !(arguments.contains("PROT_WRITE") && arguments.contains("PROT_EXEC")),
            _ => true,
        };
        if !is_permitted || !permitted.contains(name) {
            refused.insert(call.to_string());
        }
    }
    assert!(count > 1000, "{count} calls");
    assert!(refused.is_empty(), "not permitted:\n{refused:#?}");
}
