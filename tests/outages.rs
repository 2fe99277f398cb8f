//! Deliveries that do not get through: a transport that fails for long, hangs, or loses its power, and a clock that jumps meanwhile.
//! Accepting goes on as far as it was promised, and nothing is lost or given up.
//!
//! Needs root: file systems are mounted, each in a temporary folder of its own.

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use support::client::Client;
use support::disk::{Cut, Disk, FileSystem, Mount};
use support::files::Passed;
use support::ledger::{self, Ledger};
use support::load::Load;
use support::maildir;
use support::server::Server;
use support::setup::Setup;
use support::tools;
use support::trial::{SESSIONS, settle, wait_for_more};
use support::wait;

/// What the log says of each attempt that did not get through, with the one recipient that the messages here have.
const DEFERRED: &str = "deferred=1";

fn attempts_deferred(server: &Server) -> usize {
    server.log().matches(DEFERRED).count()
}

#[track_caller]
fn accept(server: &Server, ledger: &Ledger) {
    let number = ledger.number();
    Client::greet(server.address()).deliver("a@client.test", &["b@mx.test"], &ledger::content(number));
    ledger.acknowledge(number);
}

// ---- the queue

/// The Maildir is on a file system that fills up, and is made larger at last.
#[test]
fn a_full_queue_is_answered_421_and_recovers() {
    const DEPTH_MAX: u64 = 50;
    let full = Mount::new(&["-t", "tmpfs", "-o", "size=64k", "tmpfs"]);
    let mut setup = Setup::new();
    setup.retry_soon().set("spool.depth_max", DEPTH_MAX).maildir_at(full.path().join("maildir"));
    let ledger = Ledger::default();
    let mut server = setup.start();
    let refusal = wait::poll(wait::PATIENCE, || {
        let mut client = Client::connect(server.address()).expect("a connection");
        // Soon after the first refusal of a message a connection is refused at once.
        let greeting = client.reply().expect("a greeting or a refusal");
        if greeting.code != 220 {
            return Some(greeting);
        }
        client.expect("EHLO client.test", 250);
        let reply = client.say("MAIL FROM:<a@client.test>");
        if reply.code != 250 {
            return Some(reply);
        }
        client.expect("RSET", 250);
        let number = ledger.number();
        let reply = client.transact("a@client.test", &["b@mx.test"], &ledger::content(number));
        match reply.expect("a reply") {
            reply if reply.code == 250 => ledger.acknowledge(number),
            refusal => return Some(refusal),
        }
        None
    });
    let refusal = refusal.expect("the queue fills up");
    assert!(refusal.line().starts_with("421 4.3.2"), "{refusal:?}");
    assert!(ledger.acknowledged_count() as u64 >= DEPTH_MAX, "{} accepted", ledger.acknowledged_count());

    let point = full.path();
    let arguments = ["-o", "remount,size=64m"].map(AsRef::as_ref).into_iter().chain([point.as_os_str()]);
    tools::run("mount", arguments);
    wait::until("mail is accepted again", || {
        Client::try_greet(server.address())
            .is_ok_and(|mut client| client.say("MAIL FROM:<a@client.test>").code == 250)
    });
    accept(&server, &ledger);
    println!("depth_max {DEPTH_MAX}: {}", ledger.assert_kept(setup.maildir()));
    assert!(server.stop().success());
}

/// The Maildir is on a file system that does not answer: every worker hangs in its first delivery.
#[test]
fn a_hanging_transport_stops_nobody_and_takes_no_memory() {
    const MESSAGES: u64 = 10_000;
    /// Octets: the ledger's entry of a message with one recipient and what the allocator adds. Its content has some two
    /// thousand.
    const MESSAGE_COST_MAX: u64 = 600;
    let passed = Passed::new();
    let mut setup = Setup::new();
    setup.set("spool.cache_size", 1 << 20).set("log.level", "\"warn\"");
    setup.maildir_at(passed.mount_point().join("maildir"));
    passed.fault("hang");
    let ledger = Ledger::default();
    let mut server = setup.start();
    let send = || {
        accept(&server, &ledger);
        let address = server.address().to_string();
        let count = MESSAGES.to_string();
        let arguments =
            ["-s", "20", "-l", "2000", "-m", &count, "-f", "a@client.test", "-t", "b@mx.test", &address];
        tools::run("smtp-source", arguments);
        accept(&server, &ledger);
        server.memory()
    };
    // The first half fills the channel, the cache and what else has a bound.
    let [before, after] = [send(), send()];
    let grown = after.saturating_sub(before);
    println!("a backlog of {MESSAGES} takes {before} octets of memory, twice that {after}");
    assert!(grown < MESSAGES * MESSAGE_COST_MAX, "{grown} octets more for {MESSAGES} messages more");
    assert_eq!(maildir::count(&passed.source()), 0, "a delivery that hangs is not done");

    // A killed process ends when the file system answers.
    server.signal("KILL");
    passed.heal("hang");
    server.kill();
    let elsewhere = setup.home().join("elsewhere");
    setup.maildir_at(&elsewhere);
    let mut server = setup.start();
    let total = 2 * (MESSAGES as usize + 2);
    let mut seen = 0;
    while seen < total {
        let more =
            wait::poll(wait::PATIENCE, || Some(maildir::count(&elsewhere)).filter(|count| *count > seen));
        seen = more.unwrap_or_else(|| panic!("only {seen} of {total} were delivered"));
    }
    assert!(server.stop().success());
    assert_eq!(maildir::count(&elsewhere), total, "nothing had been delivered before, so nothing is twice");
    let contents = maildir::read(&elsewhere).into_iter().map(|stored| stored.content);
    assert_eq!(
        contents.filter(|content| content.starts_with(b"X-Number: ")).count(),
        ledger.acknowledged_count()
    );
}

// ---- the clock

/// A wall clock that a test sets (libfaketime). The monotonic clock is left as it is.
struct Clock(PathBuf);

impl Clock {
    fn under(setup: &mut Setup) -> Self {
        let found = tools::run("sh", ["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"]).stdout;
        let library = String::from_utf8(found).expect("a path");
        let file = setup.home().join("clock");
        let clock = Clock(file.clone());
        clock.set("+0");
        setup.under(&[
            "env",
            &format!("LD_PRELOAD={}", library.lines().next().expect("libfaketime is installed")),
            &format!("FAKETIME_TIMESTAMP_FILE={}", file.display()),
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "FAKETIME_NO_CACHE=1",
        ]);
        clock
    }

    /// Sets it to another distance from the truth, as `+2h` or `-10d`.
    fn set(&self, distance: &str) {
        // In one step: the library reads the file at any moment.
        let aside = self.0.with_extension("new");
        fs::write(&aside, format!("{distance}\n"))
            .and_then(|()| fs::rename(&aside, &self.0))
            .expect("the clock is set");
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970")
}

/// The consumer is away for longer than a message may wait, says the clock: nobody is given up for it.
#[test]
fn an_outage_of_the_consumer_gives_nobody_up() {
    let mut setup = Setup::new();
    setup.retry_soon().set("delivery.queue_lifetime", "\"1h\"");
    let clock = Clock::under(&mut setup);
    setup.hold_deliveries();
    let ledger = Arc::new(Ledger::default());
    let mut server = setup.start();
    let load = Load::start(server.address(), &ledger, SESSIONS);
    wait_for_more(&ledger, &mut server, 50);
    load.stop();
    let count = ledger.acknowledged_count();
    for distance in ["+2h", "+50h"] {
        clock.set(distance);
        let goal = attempts_deferred(&server) + 3 * count;
        wait::until("everything was tried again", || attempts_deferred(&server) >= goal);
        assert_eq!(setup.dead_letters(), [""; 0], "given up at {distance}");
    }
    // A restart in the middle of the outage changes nothing.
    server.kill();
    let mut server = setup.start();
    wait::until("everything was tried again", || attempts_deferred(&server) >= 3 * count);
    accept(&server, &ledger);
    setup.release_deliveries();
    println!("an outage of 50 hours: {}", ledger.assert_kept(setup.maildir()));
    assert_eq!(setup.dead_letters(), [""; 0]);
    let latest = maildir::deliveries(setup.maildir()).into_iter().map(|delivery| delivery.began).max();
    assert!(latest > Some(now() + Duration::from_hours(49)), "the clock was not set: {latest:?}");
    assert!(server.stop().success());
}

/// A long queue is offered by and by, and leaves room: messages that come now, the large ones that no memory keeps among them, are
/// delivered among it, not behind it.
#[test]
fn new_mail_does_not_wait_for_a_long_queue() {
    const NEW: usize = 8;
    let mut setup = Setup::new();
    setup.retry_soon().set("delivery.channel_size", 16).set("delivery.workers", 1);
    setup.hold_deliveries();
    let ledger = Arc::new(Ledger::default());
    let mut server = setup.start();
    let load = Load::start(server.address(), &ledger, SESSIONS);
    wait_for_more(&ledger, &mut server, 2000);
    load.stop();
    server.kill();
    setup.release_deliveries();

    let mut server = setup.start();
    wait::until("the queue is being delivered", || maildir::count(setup.maildir()) > 0);
    let mut client = Client::greet(server.address());
    let new = [(); NEW].map(|()| {
        let number = ledger.number();
        let content = ledger::content(number);
        let id = client.deliver("a@client.test", &["b@mx.test"], &content);
        ledger.acknowledge(number);
        (id, content.len())
    });
    let large = new.iter().filter(|(_, size)| *size > 100_000).count();
    assert_eq!(large, 1, "numbers in a row have every size");
    ledger.assert_kept(setup.maildir());
    let mut deliveries = maildir::deliveries(setup.maildir());
    deliveries.sort_by_key(|delivery| delivery.began);
    for (id, size) in new {
        let place = deliveries.iter().position(|delivery| delivery.id == id).expect("it was delivered");
        let behind = deliveries.len() - place;
        println!("{behind} of {} were delivered after a new one of {size} octets", deliveries.len());
        assert!(behind > 100, "a new one of {size} octets was the {place}th of {}", deliveries.len());
    }
    assert!(server.stop().success());
}

/// The clock jumps by ten days, forth and back, under way and between two lives.
#[test]
fn a_clock_that_jumps_gives_nobody_up_and_causes_no_storm() {
    /// The shortest wait between two attempts: a quarter less than `retry_soon` says.
    const WAIT_MIN: Duration = Duration::from_millis(750);
    let mut setup = Setup::new();
    setup.retry_soon();
    let clock = Clock::under(&mut setup);
    setup.hold_deliveries();
    let ledger = Arc::new(Ledger::default());
    let mut server = setup.start();
    let load = Load::start(server.address(), &ledger, SESSIONS);
    wait_for_more(&ledger, &mut server, 50);
    load.stop();
    let count = ledger.acknowledged_count();
    for distance in ["+10d", "-10d", "+0"] {
        let (since, before) = (Instant::now(), attempts_deferred(&server));
        clock.set(distance);
        wait::until("everything was tried again", || attempts_deferred(&server) >= before + 3 * count);
        let tried = attempts_deferred(&server) - before;
        // One for the attempt that was due anyway, one for the beginning of an interval.
        let permitted = count * (2 + (since.elapsed().as_millis() / WAIT_MIN.as_millis()) as usize);
        assert!(tried <= permitted, "{tried} attempts at {distance}, {permitted} were due");
    }
    assert!(server.stop().success());
    for distance in ["+10d", "-10d"] {
        clock.set(distance);
        let mut server = setup.start();
        accept(&server, &ledger);
        wait::until("there are attempts", || attempts_deferred(&server) > 0);
        server.kill();
    }
    assert_eq!(setup.dead_letters(), [""; 0]);
    clock.set("+0");
    println!("ten days forth and back: {}", settle(&setup, &ledger));
    assert_eq!(setup.dead_letters(), [""; 0]);
}

// ---- power

/// The disk of the Maildir loses its power when everything is quiet, and in the middle of deliveries; the spool's does not. What
/// was noted as delivered must be there, for nobody else has it any more.
#[test]
fn what_was_delivered_survives_a_power_cut_under_the_maildir() {
    for (file_system, size_mb) in [(FileSystem::Ext4, 128), (FileSystem::Xfs, 320)] {
        let mut disk = Disk::new(file_system, size_mb, 1);
        let mut setup = Setup::new();
        setup.retry_soon().maildir_at(disk.mount_point().join("maildir"));
        let ledger = Arc::new(Ledger::default());

        let mut server = setup.start();
        let load = Load::start(server.address(), &ledger, SESSIONS);
        wait_for_more(&ledger, &mut server, 100);
        load.stop();
        ledger.assert_kept(setup.maildir());
        assert!(server.stop().success());
        disk.power_off(Cut::Drop);
        disk.reboot();
        // Nothing is running that could deliver anything again.
        let quiet = ledger.balance(setup.maildir());
        assert!(quiet.missing.is_empty(), "{file_system:?}: {quiet}");

        let mut server = setup.start();
        let load = Load::start(server.address(), &ledger, SESSIONS);
        wait_for_more(&ledger, &mut server, 100);
        disk.power_off(Cut::Torn);
        wait::until("a delivery has failed", || attempts_deferred(&server) > 0);
        load.stop();
        // The outcomes of what was delivered before are durable after a clean end: the spool has no second copy.
        assert!(server.stop().success());
        disk.reboot();
        println!("power cuts under a Maildir on {file_system:?}: {quiet}; {}", settle(&setup, &ledger));
    }
}
