//! Sudden ends of the process: kills at random moments, and panics. Nothing acknowledged is lost, and what is delivered
//! twice is what had just been delivered.

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use support::client::Client;
use support::ledger::Ledger;
use support::load::Load;
use support::maildir::{self, Delivery};
use support::setup::Setup;
use support::tools;
use support::wait;

/// What of a delivery's way to a durable outcome is bounded by the gateway's own clocks: a report has reached its shard when the
/// shard looks by itself, and then waits for company.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);
const COMPANY_TIME: Duration = Duration::from_millis(20);

/// What is bounded by the machine only: the attempt itself (a file's name has the time of its beginning), the write and the
/// sync that are under way when the outcome comes, its own write and its own sync. Here milliseconds each; a busy machine may
/// take longer.
const MACHINE_TIME: Duration = Duration::from_millis(600);

/// So long after its beginning a delivery cannot be made again.
const DUPLICATE_AGE_MAX: Duration = Duration::from_millis(
    (REPORT_INTERVAL.as_millis() + COMPANY_TIME.as_millis() + MACHINE_TIME.as_millis()) as u64,
);

/// `smtp-source`, which sends some hundred small messages as fast as it can, or until the gateway goes away.
struct Source(Child);

impl Source {
    fn start(address: SocketAddr) -> Self {
        let mut command = Command::new(tools::program("smtp-source"));
        command.args(["-s", "2", "-l", "2000", "-m", "300", "-f", "a@client.test", "-t", "bulk@mx.test"]);
        command.arg(address.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Source(command.spawn().expect("smtp-source runs"))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Moments that differ from each other and are the same in every run.
struct Moments(u64);

impl Moments {
    fn within(&mut self, range: std::ops::Range<u64>) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis(range.start + (self.0 >> 33) % (range.end - range.start))
    }
}

fn wall_clock() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970")
}

/// How many deliveries were repeated, and the age of the oldest of them when its process was killed. Panics if one life
/// delivered a message twice, or a delivery was repeated that must have had a durable outcome.
#[track_caller]
fn judge_duplicates(deliveries: Vec<Delivery>, kills: &BTreeMap<u32, Duration>) -> (usize, Duration) {
    let mut by_id: BTreeMap<String, Vec<Delivery>> = BTreeMap::new();
    deliveries.into_iter().for_each(|delivery| by_id.entry(delivery.id.clone()).or_default().push(delivery));
    let (mut repeated, mut oldest) = (0, Duration::ZERO);
    for (id, mut copies) in by_id {
        copies.sort_by_key(|copy| copy.began);
        copies.pop();
        for copy in copies.windows(2) {
            assert!(copy[0].pid != copy[1].pid, "{id} was delivered twice in one life");
        }
        for copy in copies {
            let killed =
                kills.get(&copy.pid).unwrap_or_else(|| panic!("{id} was delivered again by the same life"));
            let age = killed.saturating_sub(copy.began);
            assert!(age <= DUPLICATE_AGE_MAX, "{id} was delivered again {age:?} after its delivery");
            (repeated, oldest) = (repeated + 1, oldest.max(age));
        }
    }
    (repeated, oldest)
}

#[test]
fn kills_at_random_moments_lose_nothing_and_repeat_only_the_latest_deliveries() {
    let kill_count = if tools::is_long() { 1000 } else { 100 };
    let mut setup = Setup::new();
    let maildirs = setup.home().join("maildirs");
    setup.maildir_at(maildirs.join("{local}")).small_segments().retry_soon().set("shards", 2);
    let ledger = Arc::new(Ledger::default());
    let mut moments = Moments(9);
    let mut kills = BTreeMap::new();
    let mut early_count = 0;
    for round in 0..kill_count {
        let mut server = if round % 5 == 4 {
            // Killed while it starts, reads its spool, or delivers what it has found.
            let server = setup.launch();
            thread::sleep(moments.within(0..120));
            early_count += 1;
            server
        } else {
            let server = setup.start();
            let load = Load::start(server.address(), &ledger, 1);
            let source = Source::start(server.address());
            thread::sleep(moments.within(0..250));
            // Before one kill in twenty it is quiet for longer than a delivery can stay without a durable outcome: nothing comes
            // that outcomes could share a write with.
            let load = if round % 20 == 0 {
                load.stop();
                drop(source);
                thread::sleep(DUPLICATE_AGE_MAX + moments.within(0..250));
                None
            } else {
                Some((load, source))
            };
            kills.insert(server.pid(), wall_clock());
            tools::signal(server.pid(), "KILL");
            drop(load);
            server
        };
        // Not earlier than the truth: what happened after a kill did not happen.
        let ended = wall_clock();
        server.kill();
        kills.entry(server.pid()).or_insert(ended);
    }
    let mut server = setup.start();
    let inbox = maildirs.join("inbox");
    let balance = ledger.assert_kept(&inbox);
    assert!(server.stop().success());
    let deliveries = maildir::deliveries(&maildirs);
    let count = deliveries.len();
    let (repeated, oldest) = judge_duplicates(deliveries, &kills);
    println!("{kill_count} kills, {early_count} of them before it was ready: {balance}");
    println!("{repeated} of {count} deliveries repeated, the oldest {oldest:?} after its beginning");
}

/// `io_uring_enter` fails now and then, which ends a shard's executor with a panic sooner or later.
#[test]
fn a_panic_of_one_shard_ends_the_process_and_loses_nothing() {
    tools::program("strace");
    for error in ["EBUSY", "EAGAIN", "EINTR", "ENOMEM"] {
        let mut setup = Setup::new();
        setup.small_segments().set("shards", 2);
        // As its own parent's child the gateway stays ours (-D); each thread's calls are counted by themselves.
        let inject = format!("inject=io_uring_enter:error={error}:when=400+37");
        let trace = [
            "strace",
            "-D",
            "-f",
            "-qq",
            "--seccomp-bpf",
            "-o",
            "/dev/null",
            "-e",
            "trace=io_uring_enter",
            "-e",
        ];
        setup.under(&[&trace[..], &[&inject]].concat());
        let ledger = Arc::new(Ledger::default());
        let mut server = setup.start();
        let address = server.address();
        let load = Load::start(address, &ledger, 8);
        let status = server.wait();
        load.stop();
        assert!(!status.success(), "{status}");
        assert!(server.log().contains("panicked"), "it ended for another reason\n{}", server.log());
        // The kernel closes what a ring held a little later.
        wait::until("nobody listens any more", || Client::connect(address).is_err());
        assert!(ledger.acknowledged_count() > 0, "it ended before the load began");

        setup.under(&[]);
        let mut server = setup.start();
        println!("{error}: {status}, {}", ledger.assert_kept(setup.maildir()));
        assert!(server.stop().success());
    }
}

/// Recovery is as good after it was cut off as before: killed at every stage of its start, again and again.
#[test]
fn kills_during_recovery_lose_nothing() {
    let mut setup = Setup::new();
    setup.small_segments().retry_soon();
    setup.hold_deliveries();
    let ledger = Arc::new(Ledger::default());
    let mut server = setup.start();
    let load = Load::start(server.address(), &ledger, 8);
    wait::until("there is something to recover", || ledger.acknowledged_count() >= 500);
    server.kill();
    load.stop();
    for moment in (0..60).step_by(2) {
        let mut server = setup.launch();
        thread::sleep(Duration::from_millis(moment));
        server.kill();
    }
    setup.release_deliveries();
    let mut server = setup.start();
    println!("30 kills during recovery: {}", ledger.assert_kept(setup.maildir()));
    assert!(server.stop().success());
}
