//! `incoming doctor` on machines made worse for it: file systems that keep nothing, limits, a forbidden ring, resolvers that refuse.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::client::Client;
use support::disk::Mount;
use support::dns::Unbound;
use support::ledger;
use support::setup::{Setup, binary, incoming};
use support::tools;
use support::wait;

/// What it found, and how it ended.
struct Examined {
    code: Option<i32>,
    report: Value,
}

impl Examined {
    #[track_caller]
    fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout);
        let report = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {}", tools::said(output)));
        Examined { code: output.status.code(), report }
    }

    /// The findings of this check.
    fn all(&self, check: &str) -> Vec<&Value> {
        let findings = self.report["findings"].as_array().expect("findings");
        findings.iter().filter(|finding| finding["check"] == check).collect()
    }

    /// Panics unless a finding of this check has that level, and all of it together these words.
    #[track_caller]
    fn assert_has(&self, check: &str, level: &str, words: &[&str]) {
        let has = |finding: &&&Value| {
            let said = finding.to_string();
            finding["level"] == level && words.iter().all(|word| said.contains(word))
        };
        assert!(
            self.all(check).iter().any(|finding| has(&finding)),
            "no {level} of {check} with {words:?}: {:#}",
            self.report
        );
    }
}

/// `incoming doctor --json` with this configuration, under a program if there is one.
#[track_caller]
fn examine_under(prefix: &[&str], config: &Path, arguments: &[&str]) -> Examined {
    let mut command = match prefix {
        [] => incoming(),
        [first, rest @ ..] => {
            let mut command = Command::new(tools::program(first));
            command.args(rest).arg(binary()).env_remove("INCOMING_BIN").env_remove(tools::LONG_VARIABLE);
            command
        }
    };
    command.args(["doctor", "--json", "--config"]).arg(config).args(arguments);
    Examined::of(&command.output().expect("the binary runs"))
}

#[track_caller]
fn examine(setup: &Setup) -> Examined {
    examine_under(&[], &setup.write(), &[])
}

/// The names below a folder.
fn names(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        if entry.file_type().expect("its kind").is_dir() {
            found.extend(names(&entry.path()));
        }
        found.insert(entry.path());
    }
    found
}

/// A gateway's configuration with its data on a journaled file system.
fn on_a_journal() -> (Setup, Mount) {
    let mount = Mount::ext4_in_a_file(200);
    let mut setup = Setup::new();
    setup.small_segments().data_at(mount.path().join("data"));
    (setup, mount)
}

// ---- a machine as it should be

#[test]
fn before_a_first_start_it_looks_where_the_data_will_be_and_leaves_nothing() {
    let (setup, mount) = on_a_journal();
    let before = names(&mount.path());
    let examined = examine(&setup);
    assert_eq!(names(&mount.path()), before, "neither the folder nor a file is left");
    assert_eq!(examined.code, Some(0), "{:#}", examined.report);
    assert_ne!(examined.report["worst"], "fault");
    examined.assert_has("io_uring", "ok", &["operations"]);
    examined.assert_has("data folder", "ok", &["not there yet", &mount.path().display().to_string()]);
    examined.assert_has("file system", "ok", &["ext4", "with a journal"]);
    examined.assert_has("device", "note", &["loop", "image"]);
    examined.assert_has("direct I/O", "ok", &[]);
    let sync = examined.all("sync")[0];
    let number = |name: &str| sync["numbers"][name].as_f64().unwrap_or_else(|| panic!("no {name}: {sync}"));
    assert!((1.0..=200.0).contains(&number("syncs")), "{sync}");
    assert!(
        number("sync_micros_median") > 0.0 && number("sync_micros_99") >= number("sync_micros_median"),
        "{sync}"
    );
    examined.assert_has("cores", "ok", &["1 shards pinned"]);
    examined.assert_has("DNS", "ok", &["not looked at"]);
}

#[test]
fn people_get_a_table_of_the_same() {
    let (setup, _mount) = on_a_journal();
    let output =
        incoming().arg("doctor").arg("--config").arg(setup.write()).output().expect("the binary runs");
    let text = tools::assert_succeeded(&output);
    let line = |check: &str| {
        text.lines().find(|line| line.contains(check)).unwrap_or_else(|| panic!("no {check} in\n{text}"))
    };
    assert!(line("io_uring").starts_with("ok "), "{text}");
    assert!(line("loop").starts_with("note "), "{text}");
    assert!(text.contains(" costs: "), "{text}");
    assert!(text.lines().last().is_some_and(|line| line.starts_with("0 faults, ")), "{text}");
}

#[test]
fn beside_a_running_gateway_it_touches_nothing_and_looks_at_that_ones_limits() {
    let (mut setup, _mount) = on_a_journal();
    setup.under(&["prlimit", "--nofile=700"]);
    let server = setup.start();
    let before = names(setup.data());
    let examined = examine(&setup);
    assert_eq!(names(setup.data()), before);
    assert_eq!(examined.code, Some(0), "{:#}", examined.report);
    examined.assert_has("data folder", "ok", &["in use by process"]);
    examined.assert_has("open files", "warning", &["700 (of the running gateway, process "]);
    let mut client = Client::greet(server.address());
    client.deliver("a@client.test", &["b@mx.test"], &ledger::content(0));
}

// ---- storage that keeps nothing

#[test]
fn file_systems_in_memory_are_faults_where_something_is_promised() {
    for (kind, check) in [("tmpfs", "file system"), ("ramfs", "direct I/O")] {
        let mount = Mount::new(&["-t", kind, kind]);
        let mut setup = Setup::new();
        setup.data_at(mount.path().join("data"));
        let examined = examine(&setup);
        assert_eq!(examined.code, Some(1), "{kind}: {:#}", examined.report);
        assert_eq!(examined.report["worst"], "fault");
        examined.assert_has("file system", "fault", &[kind, "in memory", "ext4"]);
        let level = if check == "direct I/O" { "fault" } else { "ok" };
        if kind == "ramfs" {
            examined.assert_has("direct I/O", level, &["O_DIRECT"]);
        }
        assert!(names(&mount.path()).is_empty(), "{kind}: something was left");
        // A queue in memory asks nothing of the disk.
        let examined = examine(setup.set("spool.queue", "\"memory\""));
        assert_eq!(examined.code, Some(0), "{kind}: {:#}", examined.report);
        examined.assert_has("queue", "note", &["dead letters only"]);
    }
}

/// The device counts the flushes that it is sent: there are none.
#[test]
fn a_sync_that_does_not_reach_the_device_is_a_fault() {
    let (setup, mount) = on_a_journal();
    let point = mount.path();
    tools::run("mount", ["-o".as_ref(), "remount,nobarrier".as_ref(), point.as_os_str()]);
    let examined = examine(&setup);
    assert_eq!(examined.code, Some(1), "{:#}", examined.report);
    examined.assert_has("mount options", "fault", &["barriers are off"]);
    examined.assert_has("sync", "fault", &["does not reach it"]);
}

#[test]
fn a_file_system_without_a_journal_is_a_fault() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = folder.path().join("image");
    fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("an image");
    tools::run(
        "mkfs.ext4",
        ["-q".as_ref(), "-F".as_ref(), "-O".as_ref(), "^has_journal".as_ref(), image.as_os_str()],
    );
    let mount = Mount::new(&["-o", "loop", image.to_str().expect("a path in UTF-8")]);
    let mut setup = Setup::new();
    setup.small_segments().data_at(mount.path().join("data"));
    let examined = examine(&setup);
    assert_eq!(examined.code, Some(1), "{:#}", examined.report);
    examined.assert_has("file system", "fault", &["no journal", "tune2fs"]);
    // Two segments of each shard, and there is room for less than one.
    let filler = mount.path().join("filler");
    tools::run("fallocate", ["-l".as_ref(), "50M".as_ref(), filler.as_os_str()]);
    examine(&setup).assert_has("room", "fault", &["452"]);
}

#[test]
fn a_folder_where_nothing_may_be_written_is_a_fault() {
    let mount = Mount::new(&["-t", "tmpfs", "-o", "ro", "tmpfs"]);
    let mut setup = Setup::new();
    setup.data_at(mount.path().join("data"));
    let examined = examine(&setup);
    assert_eq!(examined.code, Some(1), "{:#}", examined.report);
    examined.assert_has("direct I/O", "fault", &["Read-only", "--data"]);
    examined.assert_has("mount options", "fault", &["read-only"]);
}

/// What it tries the disk with has no name: whenever it is ended, nothing is left.
#[test]
fn ended_in_the_middle_it_leaves_nothing() {
    let (setup, mount) = on_a_journal();
    let before = names(&mount.path());
    let config = setup.write();
    for signal in [libc::SIGINT, libc::SIGKILL] {
        let mut command = incoming();
        command.args(["doctor", "--config"]).arg(&config).stdout(Stdio::null());
        // A test that was started with signals ignored must not hand that on.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            });
        }
        let mut child = command.spawn().expect("the binary runs");
        let descriptors = PathBuf::from(format!("/proc/{}/fd", child.id()));
        let point = mount.path();
        let is_trying = || {
            let files = fs::read_dir(&descriptors).into_iter().flatten().flatten();
            files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file.starts_with(&point))
        };
        wait::until("it has a file there, or has ended", || {
            is_trying() || child.try_wait().expect("its status").is_some()
        });
        unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        child.wait().expect("it ends");
        assert_eq!(names(&mount.path()), before);
    }
}

// ---- limits

#[test]
fn limits_of_the_process_are_judged() {
    let (setup, _mount) = on_a_journal();
    let config = setup.write();
    let examined = examine_under(&["prlimit", "--nofile=256"], &config, &[]);
    assert_eq!(examined.code, Some(0), "{:#}", examined.report);
    examined.assert_has("open files", "warning", &["256", "421", "LimitNOFILE"]);
    let examined = examine_under(&["prlimit", "--memlock=65536"], &config, &[]);
    assert_eq!(examined.code, Some(1), "{:#}", examined.report);
    examined.assert_has("locked memory", "fault", &["does not start", "LimitMEMLOCK"]);
}

#[test]
fn without_io_uring_it_says_so_and_goes_on() {
    let (setup, _mount) = on_a_journal();
    let launcher = tools::test_file("faults/without-io-uring");
    let under = [tools::PYTHON, launcher.to_str().expect("a path in UTF-8")];
    let examined = examine_under(&under, &setup.write(), &[]);
    assert_eq!(examined.code, Some(1), "{:#}", examined.report);
    examined.assert_has("io_uring", "fault", &["not permitted", "seccomp", "io_uring_disabled"]);
    examined.assert_has("file system", "ok", &["ext4"]);
}

#[test]
fn cores_that_are_not_there_are_a_fault() {
    let (setup, _mount) = on_a_journal();
    let mut text = setup.toml().replace("shards = 1\n", "");
    text.insert_str(0, "cores = \"0,4095\"\n");
    let config = setup.file("cores.toml", text);
    let examined = examine_under(&[], &config, &[]);
    assert_eq!(examined.code, Some(1), "{:#}", examined.report);
    examined.assert_has("cores", "fault", &["4095", "not there"]);
}

// ---- names

/// A list with its test entry, one that refuses, and one that is no list.
const ZONES: &str = r#"
    local-zone: "." static
    local-data: ". 300 NS ns.example."
    local-data: "2.0.0.127.good.example. 300 A 127.0.0.2"
    local-data: "2.0.0.127.refusing.example. 300 A 127.255.255.254"
    local-data: "test.names.example. 300 A 127.0.1.2"
"#;

#[test]
fn resolvers_and_lists_are_asked_where_a_policy_asks_them() {
    let (setup, _mount) = on_a_journal();
    let unbound = Unbound::start(setup.home(), ZONES);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let nobody = silent.local_addr().expect("its address");
    let zone = |name: &str| format!("{{ zone = \"{name}.example\" }}");
    let with = |servers: &[String]| {
        let policies = format!(
            "\n[dns]\nservers = {servers:?}\ntimeout = \"1s\"\n\
             \n[[policy]]\ntype = \"dnsbl\"\nname = \"lists\"\nreject_at = 1\nlists = [{}, {}, {}]\n\
             \n[[policy]]\ntype = \"dnsbl\"\nname = \"names\"\nquery = \"hello\"\nat = \"hello\"\nreject_at = 1\nlists = [{}]\n",
            zone("good"),
            zone("refusing"),
            zone("nolist"),
            zone("names")
        );
        setup.file("lists.toml", setup.toml() + &policies)
    };
    let examined = examine_under(&[], &with(&[unbound.address.to_string(), nobody.to_string()]), &[]);
    assert_eq!(examined.code, Some(0), "{:#}", examined.report);
    examined.assert_has("DNS", "ok", &[&unbound.address.to_string(), "[dns] servers"]);
    examined.assert_has("DNS", "warning", &[&nobody.to_string(), "does not answer"]);
    examined.assert_has("list", "ok", &["good.example"]);
    examined.assert_has("list", "ok", &["names.example"]);
    examined.assert_has("list", "warning", &["refusing.example", "127.255.255.254"]);
    examined.assert_has("list", "warning", &["nolist.example", "test entry"]);
    let examined = examine_under(&[], &with(&[nobody.to_string()]), &[]);
    assert_eq!(examined.code, Some(1), "{:#}", examined.report);
    examined.assert_has("DNS", "fault", &[&nobody.to_string(), "unbound"]);
}

// ---- steering

#[test]
fn a_steered_gateway_takes_mail_and_one_that_cannot_steer_says_so() {
    let (mut setup, _mount) = on_a_journal();
    setup.listeners(&["steering = true"]).set("log.level", "\"debug\"").set("shards", 2);
    let server = setup.start();
    for n in 0..8 {
        let mut client = Client::greet(server.address());
        client.deliver("a@client.test", &["b@mx.test"], &ledger::content(n));
    }
    let log = server.log();
    let is_steered = log.contains("steered to the core they arrive on");
    // A machine of one core has two shards there, and neither is pinned.
    assert!(is_steered || log.contains("steering does nothing"), "{log}");
    assert!(!log.contains("cannot steer"), "{log}");
    let examined = examine(&setup);
    match is_steered {
        true => assert!(examined.all("steering").is_empty(), "{:#}", examined.report),
        false => examined.assert_has("steering", "warning", &["does nothing"]),
    }
    drop(server);
    let examined = examine(setup.set("shards", 1000));
    examined.assert_has("cores", "warning", &["none is pinned"]);
    examined.assert_has("steering", "warning", &["does nothing"]);
}
