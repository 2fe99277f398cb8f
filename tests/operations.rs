//! What an operator does to a gateway, and what it does in return: refused starts that name the remedy, the effective
//! configuration, a clean end, an unclean end that loses nothing, and too few descriptors.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use support::client::{Client, on_the_wire};
use support::disk::Mount;
use support::ledger::{self, Ledger};
use support::load::Load;
use support::maildir;
use support::server::Refused;
use support::setup::{Setup, incoming};
use support::tools;
use support::wait;

// ---- starting

#[track_caller]
fn refused(setup: &Setup) -> Refused {
    match setup.try_start() {
        Err(refused) => {
            let status = refused.status.unwrap_or_else(|| panic!("{refused}"));
            assert!(!status.success(), "exit code 0\n{}", refused.log);
            assert!(!refused.log.contains("panicked"), "a panic is no start error\n{}", refused.log);
            refused
        }
        Ok(server) => panic!("it started\n{}", server.log()),
    }
}

/// Whether the error names each of `facts`, and one of `remedies`, without regard to case.
#[track_caller]
fn assert_names(log: &str, facts: &[&str], remedies: &[&str]) {
    let lower = log.to_lowercase();
    let has = |text: &&str| lower.contains(&text.to_lowercase());
    assert!(facts.iter().all(has), "not all of {facts:?} in\n{log}");
    assert!(remedies.iter().any(has), "none of the remedies {remedies:?} in\n{log}");
}

#[test]
fn a_taken_port_is_a_start_error() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = holder.local_addr().expect("its address").to_string();
    let mut setup = Setup::new();
    setup.listen(&[&address]);
    assert_names(&refused(&setup).log, &[&address, "in use"], &["listen", "stop", "another"]);
}

#[test]
fn the_port_of_another_gateway_is_a_start_error() {
    // Its listeners share their port among shards; another process must not slip in among them.
    let first = Setup::new();
    let server = first.start();
    let address = server.address().to_string();
    let mut second = Setup::new();
    second.listen(&[&address]);
    assert_names(&refused(&second).log, &[&address, "in use"], &["listen", "stop", "another"]);
}

#[test]
fn a_data_directory_in_use_is_a_start_error() {
    let setup = Setup::new();
    let _server = setup.start();
    let mut second = Setup::new();
    second.data_at(setup.data());
    let log = refused(&second).log;
    assert_names(&log, &[&setup.data().display().to_string(), "in use"], &["another", "stop", "--data"]);
}

#[test]
fn a_data_directory_that_cannot_be_written_is_a_start_error() {
    let mut in_a_file = Setup::new();
    let file = in_a_file.home().join("file");
    fs::write(&file, "not a folder").expect("a file");
    in_a_file.data_at(file.clone());
    assert_names(
        &refused(&in_a_file).log,
        &[&file.display().to_string()],
        &["--data", "another", "writable"],
    );

    // Root may write everywhere but here.
    let read_only = Mount::new(&["-t", "tmpfs", "-o", "ro", "tmpfs"]);
    let mut setup = Setup::new();
    setup.data_at(read_only.path().join("data"));
    let path = read_only.path().display().to_string();
    assert_names(&refused(&setup).log, &[&path], &["--data", "another", "writable"]);
}

#[test]
fn a_file_system_that_keeps_nothing_is_a_start_error() {
    // ramfs has no O_DIRECT; tmpfs has it in newer kernels, and forgets everything all the same.
    for kind in ["tmpfs", "ramfs"] {
        let mount = Mount::new(&["-t", kind, kind]);
        let mut setup = Setup::new();
        setup.data_at(mount.path().join("data"));
        let path = mount.path().display().to_string();
        let log = refused(&setup).log;
        assert_names(&log, &[&path], &["tmpfs", "ramfs", "O_DIRECT", "memory"]);
        assert_names(&log, &[], &["--data", "another", "ext4"]);
    }
}

#[test]
fn too_little_locked_memory_is_a_start_error() {
    let mut setup = Setup::new();
    setup.under(&["prlimit", "--memlock=0"]);
    assert_names(&refused(&setup).log, &["memory"], &["memlock", "ulimit -l", "LimitMEMLOCK"]);
}

#[test]
fn the_soft_limit_of_locked_memory_is_raised_to_the_hard_one() {
    let mut setup = Setup::new();
    setup.under(&["prlimit", "--memlock=0:8388608"]);
    assert!(setup.start().stop().success());
}

#[test]
fn a_process_without_sysfs_is_a_start_error() {
    let mut setup = Setup::new();
    let hide = "mount -t tmpfs none /sys && exec \"$@\"";
    setup.under(&["unshare", "--mount", "--propagation", "private", "sh", "-c", hide, "sh"]);
    let refused = refused(&setup);
    assert_eq!(refused.status.and_then(|status| status.code()), Some(1), "{refused}");
    assert_names(&refused.log, &["/sys/devices/system/cpu"], &["mount"]);
}

#[test]
fn a_process_without_io_uring_is_a_start_error() {
    let mut setup = Setup::new();
    let launcher = tools::test_file("faults/without-io-uring");
    setup.under(&[tools::PYTHON, launcher.to_str().expect("a path in UTF-8")]);
    let refused = refused(&setup);
    assert_eq!(refused.status.and_then(|status| status.code()), Some(1), "{refused}");
    assert_names(&refused.log, &["io_uring", "not permitted"], &["seccomp", "io_uring_disabled"]);
}

#[test]
fn a_spool_of_an_unknown_version_is_refused_and_left_alone() {
    let mut setup = Setup::new();
    setup.small_segments().retry_soon().hold_deliveries();
    let mut server = setup.start();
    Client::greet(server.address()).deliver("a@client.test", &["b@mx.test"], &ledger::content(0));
    assert!(server.stop().success());
    let version = setup.data().join("spool/VERSION");
    let known = fs::read(&version).expect("the version");
    for unknown in ["incoming spool 999\n", "", "something else", "incoming spool 1", "\u{fffd}\0"] {
        fs::write(&version, unknown).expect("another version");
        let before = tree(setup.data());
        let refused = refused(&setup);
        assert_eq!(refused.status.and_then(|status| status.code()), Some(1), "{refused}");
        assert_names(&refused.log, &[&version.display().to_string()], &["version"]);
        assert!(tree(setup.data()) == before, "{unknown:?}: something was touched");
    }
    // Nor was anything lost by it.
    fs::write(&version, known).expect("the version");
    setup.release_deliveries();
    let _server = setup.start();
    wait::until("the message is delivered", || maildir::count(setup.maildir()) == 1);
}

/// Every file and folder below, with its octets and the time it was last changed.
fn tree(folder: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
        let changed = entry.metadata().and_then(|m| m.modified()).expect("its time");
        let is_folder = entry.file_type().expect("its kind").is_dir();
        let octets = if is_folder { Vec::new() } else { fs::read(entry.path()).expect("its octets") };
        found.insert(entry.path(), (changed, octets));
        if is_folder {
            found.append(&mut tree(&entry.path()));
        }
    }
    found
}

#[test]
fn a_fault_in_the_configuration_names_its_place_and_what_would_do() {
    let table: [(&str, &str, &[&str]); 7] = [
        // (setting, value, what the error names)
        (
            "smtp.message_size_maximum",
            "1000000",
            &["incoming.toml:", "message_size_maximum", "message_size_max"],
        ),
        ("smtp.message_size_max", "\"much\"", &["incoming.toml", "message_size_max"]),
        ("smtp.recipients_max", "-1", &["incoming.toml", "recipients_max"]),
        ("spool.durability", "\"maybe\"", &["incoming.toml", "durability", "sync", "none"]),
        ("spool.queue", "\"tape\"", &["incoming.toml", "queue", "disk"]),
        ("delivery.transport", "\"stork\"", &["incoming.toml", "stork", "store"]),
        ("hostname", "unquoted", &["incoming.toml:2", "quoted"]),
    ];
    for (setting, value, names) in table {
        let mut setup = Setup::new();
        setup.set(setting, value);
        assert_names(&refused(&setup).log, names, &[""]);
        let output = check(&setup, &[]);
        assert!(!output.status.success(), "check accepts {setting} = {value}");
        assert_names(&String::from_utf8_lossy(&output.stderr), names, &[""]);
    }
}

#[test]
fn a_public_listener_needs_a_word_about_whose_mail_it_takes() {
    let mut setup = Setup::new();
    setup.listen(&["0.0.0.0:0"]);
    assert_names(&refused(&setup).log, &["0.0.0.0"], &["accept.domains"]);
    for (setting, value) in [("accept.any", "true"), ("accept.domains", "[\"mx.test\"]")] {
        let mut setup = Setup::new();
        setup.listen(&["0.0.0.0:0"]).set(setting, value);
        setup.start();
    }
}

// ---- check

fn check(setup: &Setup, environment: &[(&str, &str)]) -> Output {
    let mut command = incoming();
    command.env("NO_COLOR", "1").envs(environment.iter().copied());
    command.arg("check").arg("--config").arg(setup.write()).output().expect("the binary runs")
}

#[test]
fn check_prints_the_effective_configuration() {
    let mut setup = Setup::new();
    setup.set("smtp.recipients_max", 123);
    let output = check(&setup, &[("INCOMING_SMTP_MESSAGE_SIZE_MAX", "7654321")]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    // From the file, from the environment, and defaults.
    for part in ["mx.test", "recipients_max = 123", "7654321", "durability = \"sync\"", "command_timeout"] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    // What it prints is a configuration again, and means the same.
    let file = setup.home().join("effective.toml");
    fs::write(&file, &text).expect("a file");
    let again = incoming().arg("check").arg("--config").arg(&file).output().expect("the binary runs");
    assert_eq!(String::from_utf8_lossy(&again.stdout), text);
}

// ---- ending

#[test]
fn sigterm_finishes_what_has_begun_and_says_421_to_the_rest() {
    let setup = Setup::new();
    let mut server = setup.start();
    let address = server.address();
    let content = ledger::content(0);
    let wire = on_the_wire(&content);
    let mut busy = Client::greet(address);
    let mut idle = Client::greet(address);
    let replies = busy.envelope("a@client.test", &["b@mx.test"]).expect("replies");
    assert_eq!(replies.last().map(|r| r.code), Some(354));
    busy.send(&wire[..wire.len() / 2]).expect("half of the content is sent");

    server.signal("TERM");
    let reply = idle.reply().expect("a word to the idle session");
    assert_eq!(reply.code, 421, "{reply:?}");
    assert!(idle.is_closed());

    busy.send(&wire[wire.len() / 2..]).expect("the other half is sent");
    let reply = busy.reply().expect("a reply to the content");
    assert_eq!(reply.code, 250, "{reply:?}");
    let status = server.wait();
    assert!(status.success(), "{status}");
    assert!(Client::connect(address).is_err(), "nobody listens any more");

    // Delivered before the end, or by the next life.
    let _server = setup.start();
    wait::until("the message is delivered", || maildir::count(setup.maildir()) == 1);
    assert_eq!(maildir::read(setup.maildir())[0].content, content);
}

#[test]
fn sigint_ends_it_too() {
    let setup = Setup::new();
    let mut server = setup.start();
    server.signal("INT");
    let status = server.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn a_second_signal_ends_it_at_once_and_loses_nothing_acknowledged() {
    let mut setup = Setup::new();
    // The test ends long before the drain would.
    setup.retry_soon().set("drain_timeout", "\"10m\"");
    setup.hold_deliveries();
    let mut server = setup.start();
    let ledger = Ledger::default();
    let number = ledger.number();
    let mut busy = Client::greet(server.address());
    let mut idle = Client::greet(server.address());
    idle.deliver("a@client.test", &["b@mx.test"], &ledger::content(number));
    ledger.acknowledge(number);
    busy.envelope("a@client.test", &["b@mx.test"]).expect("replies");
    busy.send(b"content without an end\r\n").expect("it is sent");

    server.signal("TERM");
    assert_eq!(idle.reply().expect("a word to the idle session").code, 421);
    assert!(server.ended().is_none(), "it waits for the session in DATA");
    server.signal("TERM");
    server.wait();
    assert!(busy.is_closed());

    setup.release_deliveries();
    let _server = setup.start();
    ledger.assert_kept(setup.maildir());
    assert_eq!(maildir::count(setup.maildir()), 1, "content without an end is never delivered");
}

#[test]
fn every_acknowledged_message_survives_kill_9() {
    let rounds = if tools::is_long() { 1000 } else { 20 };
    let mut setup = Setup::new();
    setup.small_segments().retry_soon().set("shards", 2);
    let ledger = Arc::new(Ledger::default());
    for round in 0..rounds {
        // Held deliveries leave everything to recovery; the others are killed between delivery and its record.
        if round % 2 == 0 {
            setup.hold_deliveries()
        } else {
            setup.release_deliveries()
        }
        let mut server = setup.start();
        let wanted = ledger.acknowledged_count() + 1 + (round * 37) % 150;
        let load = Load::start(server.address(), &ledger, 8);
        wait::until("the load has its acknowledgements", || ledger.acknowledged_count() >= wanted);
        server.kill();
        load.stop();
    }
    setup.release_deliveries();
    let mut server = setup.start();
    let balance = ledger.assert_kept(setup.maildir());
    println!("{rounds} rounds of kill -9: {balance}");
    assert!(server.stop().success());
}

#[test]
fn mail_survives_a_restart_with_another_number_of_shards() {
    let mut setup = Setup::new();
    setup.small_segments().retry_soon();
    setup.hold_deliveries();
    let ledger = Arc::new(Ledger::default());
    for shards in [3, 1, 2] {
        let mut server = setup.set("shards", shards).start();
        let wanted = ledger.acknowledged_count() + 50;
        let load = Load::start(server.address(), &ledger, 8);
        wait::until("the load has its acknowledgements", || ledger.acknowledged_count() >= wanted);
        server.kill();
        load.stop();
    }
    setup.release_deliveries();
    let mut server = setup.set("shards", 1).start();
    println!("shards 3, 1, 2, 1: {}", ledger.assert_kept(setup.maildir()));
    assert!(server.stop().success());
    // Logs that belong to no shard and hold nothing are removed at the next start.
    let mut server = setup.start();
    let logs = |name: &str| setup.data().join("spool").join(name).is_dir();
    assert!(logs("000") && !logs("001") && !logs("002"));
    assert!(server.stop().success());
}

#[test]
fn a_transaction_that_is_cut_off_is_never_delivered() {
    let setup = Setup::new();
    let mut server = setup.start();
    let wire = on_the_wire(&ledger::content(0));
    // The whole dialogue but the last k octets, ended by FIN and by the death of the connection.
    for missing in [1, 2, 3, 4, 5, 100, wire.len()] {
        for is_polite in [true, false] {
            let mut client = Client::greet(server.address());
            client.envelope("a@client.test", &["b@mx.test"]).expect("replies");
            client.send(&wire[..wire.len() - missing]).expect("a part of the content is sent");
            if is_polite {
                client.finish_sending().expect("FIN");
                while client.reply().is_ok() {}
            }
        }
    }
    let last = Ledger::default();
    let number = last.number();
    Client::greet(server.address()).deliver("a@client.test", &["b@mx.test"], &ledger::content(number));
    last.acknowledge(number);
    last.assert_kept(setup.maildir());
    assert!(server.stop().success());
    let mut server = setup.start();
    assert!(server.stop().success());
    assert_eq!(maildir::count(setup.maildir()), 1, "only the finished transaction is delivered");
}

// ---- enduring

#[test]
fn running_out_of_descriptors_is_survived() {
    let mut setup = Setup::new();
    setup.under(&["prlimit", "--nofile=256"]);
    let server = setup.start();
    let address = server.address();
    let content = ledger::content(0);
    let mut kept = Client::greet(address);
    // A full backlog ends the crowd early.
    let patience = Duration::from_millis(500);
    let crowd: Vec<Client> = (0..400).map_while(|_| Client::connect_within(address, patience).ok()).collect();
    // The session that was there first is served on.
    kept.deliver("a@client.test", &["b@mx.test"], &content);
    drop(crowd);
    // Those of the crowd that were still waiting to be accepted have places for a moment, after they have gone.
    let served = wait::poll(wait::PATIENCE, || Client::try_greet(address).ok());
    let mut served = served.expect("a new session is served again");
    served.deliver("a@client.test", &["b@mx.test"], &content);
    wait::until("both messages are delivered", || maildir::count(setup.maildir()) == 2);
}

#[test]
fn a_hostile_session_leaves_the_others_alone() {
    let setup = Setup::new();
    let server = setup.start();
    let address = server.address();
    let attacks: [(&str, Vec<u8>); 6] = [
        ("a line without an end", vec![b'A'; 2 << 20]),
        ("replies that nobody reads", b"NOOP\r\n".repeat(200_000)),
        ("octets of a TLS ClientHello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(1000)),
        ("null octets", vec![0; 1 << 20]),
        ("content without an end", hostile_content()),
        ("a flood of errors", b"XYZZY\r\n".repeat(10_000)),
    ];
    let mut hostile: Vec<_> = attacks.iter().map(|(name, _)| (*name, Client::greet(address))).collect();
    for ((name, client), (_, octets)) in hostile.iter_mut().zip(&attacks) {
        let patience = Duration::from_millis(200);
        // Whether the gateway takes the octets or ends the session is its own affair.
        let _ = client.send_for(octets, patience);
        let mut friend = Client::greet(address);
        friend.deliver("a@client.test", &["b@mx.test"], &ledger::content(0));
        assert_eq!(friend.say("QUIT").code, 221, "beside {name}");
    }
    wait::until("the friends' messages are delivered", || maildir::count(setup.maildir()) == attacks.len());
    drop(hostile);
    Client::greet(address).expect("NOOP", 250);
    assert_eq!(maildir::count(setup.maildir()), attacks.len(), "nothing hostile was delivered");
}

fn hostile_content() -> Vec<u8> {
    let mut octets = b"MAIL FROM:<a@client.test>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\n".to_vec();
    octets.extend_from_slice(&b"no end in sight\r\n".repeat(50_000));
    octets
}
