//! The gateway in other people's programs: the examples are run as they are, by clients that are not ours; and gateways are started,
//! asked, changed and ended in this very process.

mod support;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use incoming::delivery::{Attempt, BlockingDelivery, Delivering, Delivery, Outcome};
use incoming::mail::{Refusal, Status};
use incoming::policy::{Answer, Facts, Phase, Phases, Policy, Verdict};
use incoming::telemetry::{Event, Observer};
use incoming::{Builder, DrainOrder, Gateway, Stage};
use support::client::Client;
use support::tools::{self, assert_succeeded};
use support::wait;

const PATIENCE: Duration = Duration::from_secs(60);
/// Says to this test program that it is to die of an observer's panic.
const PANIC_VARIABLE: &str = "LIBRARY_TEST_PANICS_IN";

/// Tells the recipients of each message.
struct Tell(Sender<String>);

impl BlockingDelivery for Tell {
    fn deliver(&self, message: &Attempt) -> Vec<Outcome> {
        let recipients: Vec<_> = message.paths().map(|path| path.to_string()).collect();
        let _ = self.0.send(recipients.join(" "));
        vec![Outcome::delivered(); recipients.len()]
    }
}

/// Has no time now.
struct Later;

impl Delivery for Later {
    fn deliver<'a>(&'a self, message: &'a Attempt) -> Delivering<'a> {
        Box::pin(async { vec![Outcome::deferred("not now"); message.recipients.len()] })
    }
}

/// Names what it sees.
struct Names(Sender<&'static str>);

impl Observer for Names {
    fn observe(&self, event: &Event<'_>) {
        let _ = self.0.send(event.name());
    }
}

/// A gateway of one shard, on a port of the system's choice.
fn small(folder: &Path) -> Builder {
    Gateway::builder()
        .hostname("mx.test")
        .listen("127.0.0.1:0")
        .data(folder)
        .set("shards", "1")
        .set("spool.segment_size", "8 MiB")
}

fn telling() -> (Tell, Receiver<String>) {
    let (tell, told) = mpsc::channel();
    (Tell(tell), told)
}

fn send(address: SocketAddr, to: &str) {
    let mut client = Client::greet(address);
    client.deliver("me@client.test", &[to], b"Subject: hello\r\n\r\nhello\r\n");
    client.expect("QUIT", 221);
}

/// The example, built as these tests are: where all tests are built, cargo has done that already.
fn example(name: &str) -> PathBuf {
    let folder = env::current_exe().expect("a path");
    let folder = folder.parent().and_then(Path::parent).expect("target/<profile>/deps");
    let profile = if folder.ends_with("release") { "release" } else { "test" };
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--profile", profile, "--example", name]);
    assert_succeeded(&build.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs"));
    folder.join("examples").join(name)
}

/// An example that runs in a folder of its own, and is stopped when this is dropped.
struct Program {
    child: Child,
    address: SocketAddr,
    lines: Receiver<String>,
    _folder: tempfile::TempDir,
}

impl Program {
    fn start(name: &str, arguments: &[&str], folder: tempfile::TempDir) -> Program {
        let mut child = Command::new(example(name))
            .args(arguments)
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the example starts");
        let (line, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|text| line.send(text)));
        let mut errors = BufReader::new(child.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
        let mut address = None;
        loop {
            match errors.next() {
                None => panic!("the example ended before it was ready"),
                Some(line) if line == "ready" => break,
                Some(line) => {
                    let said = line.split_once("listening on ").and_then(|(_, rest)| rest.split_once(','));
                    address = address.or_else(|| said.and_then(|(address, _)| address.parse().ok()));
                }
            }
        }
        std::thread::spawn(move || errors.for_each(drop));
        Program { child, address: address.expect("it says where it listens"), lines, _folder: folder }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("it prints a line")
    }

    fn stop(mut self) {
        tools::signal(self.child.id(), "TERM");
        assert!(self.child.wait().expect("it ends").success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn swaks(address: SocketAddr, from: &str) -> std::process::Output {
    Command::new(tools::program("swaks"))
        .args(["--server", &address.ip().to_string(), "--port", &address.port().to_string()])
        .args(["--from", from, "--to", "b@mx.test,c@mx.test", "--helo", "client.test"])
        .args(["--header", "Subject: =?utf-8?q?caf=C3=A9?=", "--body", "hello", "--timeout", "60"])
        .output()
        .expect("swaks runs")
}

#[test]
fn the_smallest_program_fits_a_screen_and_prints_sender_recipients_and_subject() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/print.rs")).unwrap();
    assert!(text.lines().count() <= 40);
    let program = Program::start("print", &["127.0.0.1:0"], tempfile::tempdir().unwrap());
    assert_succeeded(&swaks(program.address, "a@client.test"));
    assert_eq!(program.line(), "a@client.test to b@mx.test, c@mx.test: \"café\"");
    program.stop();
}

#[test]
fn a_program_refuses_whom_it_wants_to() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("list"), "Bad@client.test\n").unwrap();
    let program = Program::start("refuse", &["list", "127.0.0.1:0"], folder);
    let refused = swaks(program.address, "bad@client.test");
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(said.contains("550 5.7.1 You are not welcome here"), "{said}");
    let taken = assert_succeeded(&swaks(program.address, "good@client.test"));
    assert!(taken.contains(&format!("queued as {}", program.line())), "{taken}");
    program.stop();
}

#[test]
fn gateways_follow_each_other_in_one_process_and_the_next_delivers_what_the_last_has_left() {
    let folder = tempfile::tempdir().unwrap();
    let hurried =
        || small(folder.path()).set("delivery.backoff_base", "1s").set("delivery.backoff_max", "1s");
    let first = hurried().delivery("them", Later).build().unwrap().start().unwrap();
    let address = first.addresses()[0];
    send(address, "left@mx.test");
    let ended = first.stop().unwrap();
    assert_eq!((ended.left, ended.is_forced), (1, false));
    assert_eq!(first.stop().unwrap(), ended, "whoever asks again is told the same");
    assert_eq!((first.stage(), first.config()), (None, None));
    assert_eq!(first.reload().unwrap_err().to_string(), "the gateway has ended");
    let (tell, told) = telling();
    // The port is free again, and so is the folder.
    let second = hurried().listen(address.to_string()).blocking_delivery("them", tell);
    let second = second.build().unwrap().start().unwrap();
    assert_eq!(second.addresses().len(), 2, "each listen is one more");
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "left@mx.test");
    send(second.addresses()[1], "new@mx.test");
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "new@mx.test");
    assert_eq!(second.stop().unwrap().left, 0);
}

#[test]
fn two_gateways_run_in_one_process_but_not_in_one_folder() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let start = |folder: &tempfile::TempDir| {
        let (tell, told) = telling();
        let gateway = small(folder.path()).blocking_delivery("tell", tell).build().unwrap();
        gateway.start().map(|handle| (handle, told))
    };
    let both: Vec<_> = folders.iter().map(|folder| start(folder).unwrap()).collect();
    for (n, (handle, told)) in both.iter().enumerate() {
        send(handle.addresses()[0], &format!("r{n}@mx.test"));
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), format!("r{n}@mx.test"));
    }
    let e = start(&folders[0]).map(drop).unwrap_err().to_string();
    assert!(e.contains(folders[0].path().to_str().unwrap()), "{e}");
    for (handle, _) in both {
        assert!(!handle.stop().unwrap().is_forced);
    }
}

#[test]
fn the_observer_sees_a_message_from_connect_to_delivery_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let ((name, names), (tell, _told)) = (mpsc::channel(), telling());
    let gateway = small(folder.path()).observer(Names(name)).blocking_delivery("tell", tell);
    let handle = gateway.build().unwrap().start().unwrap();
    send(handle.addresses()[0], "r@mx.test");
    let expected = ["session.connect", "session.accepted", "message.queued", "delivery.result"];
    let mut seen = Vec::new();
    while seen.last() != Some(&"delivery.result") {
        let name = names.recv_timeout(PATIENCE).unwrap();
        if name != "queue.depth" {
            seen.push(name);
        }
    }
    assert_eq!(seen, expected);
    handle.stop().unwrap();
}

/// Refuses after it has waited for somebody.
struct Slow;

impl Policy for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    fn phases(&self) -> Phases {
        Phases::of(Phase::Recipient)
    }

    fn check(&self, _: Phase, facts: &Facts<'_>) -> Answer {
        let is_known = facts.recipient.is_some_and(|path| path.as_str().starts_with("known@"));
        Answer::wait(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            match is_known {
                true => Ok(Verdict::Accept),
                false => Ok(Verdict::Refuse(Refusal::new(Status::permanent(1, 1), "Nobody of that name"))),
            }
        })
    }
}

#[test]
fn a_policy_may_wait_and_is_asked_behind_those_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let (tell, told) = telling();
    let gateway = small(folder.path()).accept(["mx.test"]).policy(Slow).blocking_delivery("tell", tell);
    let handle = gateway.build().unwrap().start().unwrap();
    let mut client = Client::greet(handle.addresses()[0]);
    client.expect("MAIL FROM:<me@client.test>", 250);
    assert_eq!(client.expect("RCPT TO:<x@mx.test>", 550).line(), "550 5.1.1 Nobody of that name");
    assert!(client.expect("RCPT TO:<known@elsewhere.test>", 550).text.starts_with("5.7.1"));
    client.expect("RCPT TO:<known@mx.test>", 250);
    client.expect("DATA", 354);
    client.expect("Subject: hello\r\n\r\nhello\r\n.", 250);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "known@mx.test");
    handle.stop().unwrap();
}

fn size_offered(address: SocketAddr) -> String {
    let mut client = Client::connect(address).unwrap();
    client.reply().unwrap();
    let offered = client.expect("EHLO client.test", 250).text;
    offered.lines().find(|line| line.starts_with("SIZE")).unwrap_or_default().to_string()
}

#[test]
fn a_reload_reads_the_file_again_or_puts_another_configuration_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.toml");
    let size = |text: &str| fs::write(&file, format!("[smtp]\nmessage_size_max = \"{text}\"\n")).unwrap();
    size("1 MiB");
    let sources = incoming::config::Sources { file: Some(file.clone()), ..Default::default() };
    let (tell, told) = telling();
    let gateway = small(folder.path()).sources(sources).blocking_delivery("tell", tell).build().unwrap();
    let handle = gateway.start().unwrap();
    let address = handle.addresses()[0];
    assert_eq!(size_offered(address), "SIZE 1048576");
    size("2 MiB");
    assert_eq!(handle.reload().unwrap().changed, ["smtp.message_size_max"]);
    assert_eq!(size_offered(address), "SIZE 2097152");
    size("lots");
    let e = handle.reload().unwrap_err().to_string();
    assert!(e.starts_with(&format!("{}:2: smtp.message_size_max: expected", file.display())), "{e}");
    assert_eq!(size_offered(address), "SIZE 2097152");
    let mut config = incoming::config::Config::clone(&handle.config().unwrap());
    config.smtp.message_size_max = 3 << 20;
    assert_eq!(handle.reload_with(&config).unwrap().changed, ["smtp.message_size_max"]);
    assert_eq!(size_offered(address), "SIZE 3145728");
    config.delivery.transport = "nobody".into();
    let e = handle.reload_with(&config).unwrap_err().to_string();
    assert!(e.contains("delivery.transport") && e.contains("\"tell\""), "{e}");
    // The last good one still stands.
    assert_eq!(handle.reload().unwrap().changed, Vec::<String>::new());
    send(address, "r@mx.test");
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "r@mx.test");
    handle.stop().unwrap();
}

#[test]
fn a_drain_lets_sessions_finish_and_waits_for_deliveries_if_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let (tell, told) = telling();
    let handle = small(folder.path()).blocking_delivery("tell", tell).build().unwrap().start().unwrap();
    assert_eq!(handle.stage(), Some(Stage::Ready));
    let mut client = Client::greet(handle.addresses()[0]);
    client.expect("MAIL FROM:<me@client.test>", 250);
    client.expect("RCPT TO:<r@mx.test>", 250);
    handle.drain(DrainOrder { deliveries: Some(PATIENCE), timeout: None });
    support::wait::until("it drains", || {
        matches!(handle.stage(), Some(Stage::Draining { sessions: 1, messages: 0 }))
    });
    client.expect("DATA", 354);
    client.expect("hello\r\n.", 250);
    let ended = handle.wait().unwrap();
    assert_eq!((ended.left, ended.is_forced), (0, false));
    assert_eq!(told.try_recv().unwrap(), "r@mx.test", "it was delivered before the end");
}

#[test]
fn what_makes_no_sense_is_said_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let build = |change: &dyn Fn(Builder) -> Builder| {
        let built = change(small(folder.path())).build();
        built.map(|gateway| gateway.config().delivery.transport.clone()).map_err(|e| e.to_string())
    };
    let tell = || telling().0;
    assert_eq!(build(&|b| b), Ok("store".into()));
    assert_eq!(
        build(&|b| b.blocking_delivery("one", tell()).delivery("two", Later)),
        Ok("one".into()),
        "the first is the default"
    );
    assert_eq!(
        build(&|b| b.blocking_delivery("one", tell()).set("delivery.transport", "store")),
        Err("set delivery.transport: expected the name of a transport, \"one\", not \"store\"".into())
    );
    assert_eq!(
        build(&|b| b.delivery("one", Later).delivery("one", Later)),
        Err("delivery \"one\": a transport of this name is brought along twice".into())
    );
    assert_eq!(
        build(&|b| b.set("transport.one.type", "discard").delivery("one", Later)),
        Err("set transport.one.type: expected \"embedded\", for the program brings this transport along"
            .into())
    );
    assert_eq!(
        build(&|b| b.set("transport.other.type", "discard").delivery("one", Later)),
        Err("delivery.transport: expected the name of a transport, \"one\" or \"other\", not \"store\""
            .into()),
        "where the configuration has a transport, it says who gets what"
    );
    let e = build(&|b| b.listen("0.0.0.0:0")).unwrap_err();
    assert!(e.starts_with("accept.domains: missing, and 0.0.0.0:0 can be reached"), "{e}");
    for (key, value) in [("spool.colour", "red"), ("", ""), ("hostname.x", "y"), ("listener.address", "z")] {
        let e = build(&|b| b.set(key, value)).unwrap_err();
        assert!(e.starts_with(&format!("set {key}: ")), "{e}");
    }
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "nothing was written");
}

#[test]
fn a_configuration_of_the_programs_own_stands_instead_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = small(folder.path()).build().unwrap().config().clone();
    config.sessions_max = 77;
    let gateway = Gateway::builder().config(&config).build().unwrap();
    assert_eq!(*gateway.config(), config);
    let gateway = Gateway::builder().config(&config).set("sessions_max", "78").build().unwrap();
    assert_eq!(gateway.config().sessions_max, 78);
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let start = |socket: &str| {
        let gateway = small(folder.path()).delivery("later", Later).set("admin.socket", socket);
        gateway.build().unwrap().start()
    };
    let e = start("/nonexistent/admin.sock").unwrap_err().to_string();
    assert!(e.contains("/nonexistent"), "{e}");
    // Folder and spool are free again.
    start(folder.path().join("admin.sock").to_str().unwrap()).unwrap().stop().unwrap();
}

/// The signals that this process handles, of those that end or change a gateway.
fn handled_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a line of it");
    let all = u64::from_str_radix(line.trim(), 16).expect("a mask");
    let ours = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM];
    all & ours.iter().map(|signal| 1 << (signal - 1)).sum::<u64>()
}

#[test]
fn a_start_takes_no_signal_from_the_program() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(handled_signals(), 0);
    let handle = small(folder.path()).delivery("later", Later).build().unwrap().start().unwrap();
    assert_eq!(handled_signals(), 0);
    handle.stop().unwrap();
}

/// Panics where it is told of the event of this name; as a policy, where it is asked.
struct Panics(String);

impl Observer for Panics {
    fn observe(&self, event: &Event<'_>) {
        assert_ne!(event.name(), self.0);
    }
}

impl Policy for Panics {
    fn name(&self) -> &str {
        "panics"
    }

    fn phases(&self) -> Phases {
        Phases::of(Phase::Mail)
    }

    fn check(&self, _: Phase, _: &Facts<'_>) -> Answer {
        panic!("{}", self.0)
    }
}

#[test]
fn a_panic_of_a_policy_or_an_observer_ends_the_process_without_a_hook() {
    if let Ok(place) = env::var(PANIC_VARIABLE) {
        let folder = tempfile::tempdir().unwrap();
        let gateway = small(folder.path()).delivery("later", Later);
        let gateway = match place.as_str() {
            "policy" => gateway.policy(Panics(place)),
            _ => gateway.observer(Panics(place)),
        };
        let handle = gateway.build().unwrap().start().unwrap();
        let mut client = Client::connect(handle.addresses()[0]).unwrap();
        let _ = client.reply();
        let _ = client.send(b"EHLO client.test\r\n");
        let _ = client.reply();
        let _ = client.transact("me@client.test", &["r@mx.test"], b"Subject: hello\r\n\r\nhello\r\n");
        let _ = handle.wait();
        return;
    }
    for place in ["policy", "session.connect", "delivery.result"] {
        let mut child = Command::new(env::current_exe().unwrap());
        let name = "a_panic_of_a_policy_or_an_observer_ends_the_process_without_a_hook";
        child.args(["--exact", name]).env(PANIC_VARIABLE, place).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = child.spawn().unwrap();
        let status = wait::poll(wait::PATIENCE, || child.try_wait().unwrap());
        let _ = child.kill();
        let _ = child.wait();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.map(|status| status.signal()), Some(Some(libc::SIGABRT)), "{place}");
    }
}
