//! A new process takes over from an old one: no connection is refused, no session dropped, no acknowledged message lost.

mod support;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use support::client::Client;
use support::ledger::{self, Ledger};
use support::maildir;
use support::setup::{self, Setup};
use support::tools;
use support::wait;

/// The process that serves now. It is nobody's child: it ends with the test.
struct Heir {
    pid: u32,
}

impl Heir {
    /// Has the process that serves `setup` succeeded.
    fn take_over(setup: &Setup) -> Result<Heir, String> {
        let Output { status, stdout, stderr } = upgrade(setup);
        let words = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
        if !status.success() {
            return Err(words.into_owned());
        }
        let line = words.lines().find_map(|line| line.strip_prefix("process "));
        let pid = line.and_then(|rest| rest.split_whitespace().next());
        Ok(Heir { pid: pid.and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("no pid in {words}")) })
    }

    fn is_running(&self) -> bool {
        // One that nobody has waited for is still listed.
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
    }

    fn stop(&self) {
        tools::signal(self.pid, "TERM");
        wait::until("the heir has ended", || !self.is_running());
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        if self.is_running() {
            tools::signal(self.pid, "KILL");
            wait::poll(wait::PATIENCE, || (!self.is_running()).then_some(()));
        }
    }
}

fn upgrade(setup: &Setup) -> Output {
    let config = setup.home().join("incoming.toml");
    setup::incoming().arg("upgrade").arg("--config").arg(config).output().expect("the command runs")
}

/// Clients that connect anew for each message, and count every connection that comes to nothing.
struct Callers {
    stop: Arc<AtomicBool>,
    turned_away: Arc<AtomicUsize>,
    first: Arc<std::sync::Mutex<Option<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Callers {
    fn start(address: SocketAddr, ledger: &Arc<Ledger>, count: usize) -> Self {
        let (stop, turned_away) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let first = Arc::new(std::sync::Mutex::new(None));
        let call = || {
            let (stop, turned_away, ledger) = (stop.clone(), turned_away.clone(), ledger.clone());
            let first = first.clone();
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Err(e) = call(address, &ledger) {
                        turned_away.fetch_add(1, Ordering::Relaxed);
                        first.lock().unwrap().get_or_insert(e.to_string());
                    }
                }
            })
        };
        let threads = (0..count).map(|_| call()).collect();
        Callers { stop, turned_away, first, threads }
    }

    /// How many were turned away, and what the first of them heard.
    fn stop(self) -> (usize, Option<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        (self.turned_away.load(Ordering::Relaxed), self.first.lock().unwrap().take())
    }
}

/// One message on a connection of its own. A session may be ended with 421 between its commands, as its process ends; a connection
/// without a greeting, and one that breaks, may not be.
fn call(address: SocketAddr, ledger: &Ledger) -> io::Result<()> {
    let mut client = Client::connect(address)?;
    let greeting = client.reply()?;
    if greeting.code != 220 {
        return Err(io::Error::other(greeting.line()));
    }
    let number = ledger.number();
    for (line, code) in [
        ("EHLO client.test", 250),
        ("MAIL FROM:<a@client.test>", 250),
        ("RCPT TO:<b@mx.test>", 250),
        ("DATA", 354),
    ] {
        client.send(format!("{line}\r\n").as_bytes())?;
        let reply = client.reply()?;
        if reply.code == 421 {
            return Ok(());
        }
        if reply.code != code {
            return Err(io::Error::other(format!("{line}: {}", reply.line())));
        }
    }
    let reply = client.content(&ledger::content(number))?;
    if reply.code != 250 {
        return Err(io::Error::other(reply.line()));
    }
    ledger.acknowledge(number);
    let _ = client.send(b"QUIT\r\n");
    Ok(())
}

#[test]
fn ten_upgrades_under_load_refuse_no_connection_and_lose_no_message() {
    let mut setup = Setup::new();
    setup.set("shards", "2").small_segments();
    let mut server = setup.start();
    let address = server.address();
    let ledger = Arc::new(Ledger::default());
    let callers = Callers::start(address, &ledger, 4);
    let mut heirs: Vec<Heir> = Vec::new();
    for n in 0..10 {
        let before = ledger.acknowledged_count();
        wait::until("mail is taken", || ledger.acknowledged_count() > before + 20);
        // Two at a time cannot be: the one before the last has to end first.
        let heir = wait::poll(wait::PATIENCE, || match Heir::take_over(&setup) {
            Ok(heir) => Some(heir),
            Err(words) if words.contains("try again when it has ended") => None,
            Err(words) => panic!("upgrade {n}: {words}"),
        });
        heirs.push(heir.expect("the one before ends"));
    }
    let before = ledger.acknowledged_count();
    wait::until("the last of them takes mail", || ledger.acknowledged_count() > before + 20);
    let (turned_away, first) = callers.stop();
    assert_eq!(turned_away, 0, "{first:?}");
    assert!(server.wait().success());
    let (last, others) = heirs.split_last().unwrap();
    wait::until("the others have ended", || others.iter().all(|heir| !heir.is_running()));
    let accepted = ledger.acknowledged_count();
    wait::until("everything is delivered", || maildir::count(setup.maildir()) >= accepted);
    last.stop();
    let balance = ledger.assert_kept(setup.maildir());
    assert_eq!(balance.duplicates, 0, "{balance:?}");
}

#[test]
fn sessions_of_the_old_process_go_on_and_what_it_leaves_is_delivered_by_the_new_one() {
    let mut setup = Setup::new();
    setup.retry_soon();
    let mut server = setup.start();
    let address = server.address();
    setup.hold_deliveries();
    let content = ledger::content(1);
    let mut client = Client::greet(address);
    client.deliver("a@client.test", &["b@mx.test"], &content);
    // The transaction is open while another process takes over; and that has other shards.
    client.expect("MAIL FROM:<a@client.test>", 250);
    setup.set("shards", "2").write();
    let heir = Heir::take_over(&setup).expect("it is succeeded");
    client.expect("RCPT TO:<c@mx.test>", 250);
    client.expect("DATA", 354);
    assert_eq!(client.content(&content).unwrap().code, 250);
    assert!(server.wait().success(), "{}", server.log());
    Client::greet(address).deliver("a@client.test", &["d@mx.test"], &content);
    setup.release_deliveries();
    wait::until("all three are delivered", || maildir::count(setup.maildir()) == 3);
    heir.stop();
    let logs = fs::read_dir(setup.data().join("spool")).unwrap().count();
    assert_eq!(logs, 4, "the version, the old log that was adopted, two new ones");
    // What was adopted is done: the next start finds nothing in it.
    let server = setup.start();
    assert_eq!(maildir::count(setup.maildir()), 3);
    drop(server);
}

#[test]
fn a_successor_that_cannot_serve_leaves_the_old_process_serving() {
    let setup = Setup::new();
    let server = setup.start();
    let address = server.address();
    let mut client = Client::greet(address);
    let config = setup.home().join("incoming.toml");
    let good = fs::read_to_string(&config).unwrap();
    for (bad, words) in [
        // It does not find what its configuration names.
        (
            good.replace("address = \"127.0.0.1:0\"", "address = \"127.0.0.1:0\"\ntls = \"optional\"")
                + "\n[tls]\ncertificates = [{ chain = \"/nowhere/chain.pem\", key = \"/nowhere/key.pem\" }]\n",
            "before it had checked its configuration",
        ),
        // It finds out later.
        (
            good.clone() + "\n[[listener]]\naddress = \"192.0.2.1:25\"\n[accept]\nany = true\n",
            "before it served",
        ),
        // Where it would put its mail nobody has a lock.
        (
            good.replace("/data\"", "/elsewhere\"")
                + &format!("\n[admin]\nsocket = {:?}\n", setup.data().join("admin.sock")),
            "before it served",
        ),
    ] {
        fs::write(&config, bad).unwrap();
        let Err(told) = Heir::take_over(&setup) else { panic!("it is succeeded") };
        assert!(told.contains(words), "{told}");
        client.deliver("a@client.test", &["b@mx.test"], &ledger::content(1));
        for _ in 0..4 {
            Client::greet(address).deliver("a@client.test", &["b@mx.test"], &ledger::content(2));
        }
    }
    fs::write(&config, good).unwrap();
    let heir = Heir::take_over(&setup).expect("it is succeeded");
    Client::greet(address).deliver("a@client.test", &["b@mx.test"], &ledger::content(3));
    wait::until("all are delivered", || maildir::count(setup.maildir()) == 16);
    drop(client);
    heir.stop();
}
