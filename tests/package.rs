//! Debian's package: what it installs works, on a system of its own, and what is removed is gone but for the mail.
//!
//! The system is this machine's in an overlay: what the package changes goes to a file system of the test's. Without systemd running,
//! as in a container; and with it, in namespaces of its own.

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use support::client::Client;
use support::disk::Mount;
use support::ledger;
use support::maildir;
use support::server::Server;
use support::setup::{binary, incoming};
use support::tools;
use support::wait;

/// What a program of the system needs besides files.
const ENTER: &str = r#"mount --rbind /dev "$0/dev" && mount --rbind /sys "$0/sys" && mount -t proc proc "$0/proc" && mount -t tmpfs tmpfs "$0/run" && exec chroot "$0" "$@""#;

/// A system in which packages are installed.
struct System {
    root: Mount,
    _changes: Mount,
}

impl System {
    fn new() -> Self {
        let changes = Mount::ext4_in_a_file(1024);
        let [upper, work] = ["upper", "work"].map(|name| changes.path().join(name));
        [&upper, &work].into_iter().for_each(|folder| fs::create_dir(folder).expect("a folder"));
        let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
        System { root: Mount::new(&["-t", "overlay", "-o", &options, "overlay"]), _changes: changes }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// A command within it.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(tools::program("unshare"));
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", ENTER])
            .arg(self.root.path())
            .args(words);
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8");
        command.env_remove("INCOMING_BIN").env_remove(tools::LONG_VARIABLE);
        command
    }

    /// What a command within it says on both ways. It is to succeed.
    #[track_caller]
    fn run(&self, words: &[&str]) -> String {
        tools::assert_succeeded(&self.command(words).output().expect("it runs"))
    }

    /// As the user of the service.
    fn as_user<'a>(words: &[&'a str]) -> Vec<&'a str> {
        [&["setpriv", "--reuid=incoming", "--regid=incoming", "--init-groups", "--"], words].concat()
    }

    /// Every file and folder that a package could have anything to do with; not what dpkg and others note for themselves.
    fn files(&self) -> BTreeSet<String> {
        let script = "find /etc /usr /var -xdev \\( -path /var/lib/dpkg -o -path /var/cache -o -path /var/log \\) -prune -o -print";
        self.run(&["sh", "-c", script]).lines().map(String::from).collect()
    }
}

/// The package of the program at hand, built once.
fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian");
        let mut command = Command::new(tools::test_file("../packaging/debian/build"));
        command.arg(&folder).env("INCOMING_BIN", binary());
        // It is not kept: as quickly as can be.
        command.env("DPKG_DEB_COMPRESSOR_TYPE", "gzip").env("DPKG_DEB_COMPRESSOR_LEVEL", "1");
        let said = command.output().expect("it runs");
        assert!(said.status.success(), "{}", tools::said(&said));
        String::from_utf8(said.stdout).expect("a path").trim_end().into()
    })
}

#[test]
fn an_installed_package_serves_and_a_purged_one_leaves_the_mail() {
    let folder = tempfile::tempdir().expect("a folder");
    let system = System::new();
    let before = system.files();
    fs::copy(package(), system.path("/incoming.deb")).expect("a copy");
    let installed = system.run(&["dpkg", "--force-unsafe-io", "--install", "/incoming.deb"]);
    assert!(!installed.to_lowercase().contains("warning"), "{installed}");

    // The user, and what is his.
    let user = system.run(&["getent", "passwd", "incoming"]);
    assert!(user.contains(":/var/lib/incoming:/usr/sbin/nologin"), "{user}");
    let data = fs::metadata(system.path("/var/lib/incoming")).expect("a data folder");
    assert_eq!(data.uid().to_string(), user.split(':').nth(2).expect("a number"));
    assert_eq!(data.mode() & 0o777, 0o750);

    // The configuration, as the user.
    let check = ["incoming", "check", "--config", "/etc/incoming/incoming.toml"];
    let printed = system.run(&System::as_user(&check));
    assert!(printed.contains("data = \"/var/lib/incoming\""), "{printed}");
    assert!(printed.contains("address = \"127.0.0.1:2525\""), "{printed}");

    // A message. The port is another's, perhaps.
    let serve = [
        "incoming",
        "serve",
        "--config",
        "/etc/incoming/incoming.toml",
        "--listen",
        "127.0.0.1:0",
        "--shards",
        "1",
    ];
    let command = system.command(&System::as_user(&serve));
    let mut server =
        Server::start(command, &folder.path().join("log")).unwrap_or_else(|refused| panic!("{refused}"));
    Client::greet(server.address()).deliver("a@client.test", &["b@mx.test"], &ledger::content(0));
    let delivered = system.path("/var/lib/incoming/maildir");
    wait::until("the message is delivered", || maildir::count(&delivered) == 1);
    assert!(server.stop().success());

    the_unit_is_sound(&system);
    every_page_renders(&system);
    completions_complete(&system);

    // Installed again, it leaves what the operator has written.
    let configuration = system.path("/etc/incoming/incoming.toml");
    let written = fs::read_to_string(&configuration).expect("a configuration") + "# mine\n";
    fs::write(&configuration, &written).expect("it is written");
    system.run(&["dpkg", "--force-unsafe-io", "--install", "--force-confold", "/incoming.deb"]);
    assert_eq!(fs::read_to_string(&configuration).expect("a configuration"), written);

    // Removed, it leaves that and the mail; purged, the mail.
    system.run(&["dpkg", "--remove", "incoming"]);
    assert!(configuration.exists() && maildir::count(&delivered) == 1);
    assert!(!system.path("/usr/bin/incoming").exists());
    fs::remove_file(system.path("/incoming.deb")).expect("it is there");
    let said = system.run(&["dpkg", "--purge", "incoming"]);
    assert!(said.contains("/var/lib/incoming is kept"), "{said}");
    assert_eq!(maildir::count(&delivered), 1);
    let left: Vec<_> = system
        .files()
        .difference(&before)
        .filter(|path| !path.starts_with("/var/lib/incoming"))
        .cloned()
        .collect();
    assert_eq!(left, Vec::<String>::new(), "left of a purged package");

    // Without mail there is nothing to keep.
    fs::copy(package(), system.path("/incoming.deb")).expect("a copy");
    system.run(&["dpkg", "--force-unsafe-io", "--install", "/incoming.deb"]);
    system.run(&["sh", "-c", "rm -rf /var/lib/incoming/*"]);
    system.run(&["dpkg", "--purge", "incoming"]);
    assert!(!system.path("/var/lib/incoming").exists());
}

/// systemd finds nothing wrong with the units, and little that they leave open.
fn the_unit_is_sound(system: &System) {
    let units = ["/usr/lib/systemd/system/incoming.service", "/usr/lib/systemd/system/incoming.socket"];
    let said = system.run(&[&["systemd-analyze", "verify", "--recursive-errors=no"], &units[..]].concat());
    assert_eq!(said, "", "systemd-analyze verify");
    let rated = system.run(&["systemd-analyze", "security", "--offline=true", "--threshold=20", units[0]]);
    assert!(rated.contains("Overall exposure level"), "{rated}");
}

fn every_page_renders(system: &System) {
    let files = system.run(&["dpkg", "--listfiles", "incoming"]);
    let pages: Vec<_> = files.lines().filter(|file| file.contains("/man1/")).collect();
    for page in ["incoming", "incoming-dead-list", "incoming-completions"] {
        assert!(pages.contains(&format!("/usr/share/man/man1/{page}.1.gz").as_str()), "{page}: {pages:?}");
    }
    assert!(!files.contains("incoming-man.1"), "a page of what is hidden");
    for page in pages {
        let output = system.command(&["man", "--warnings", "--local-file", page]).output().expect("it runs");
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && warnings.is_empty(), "{page}: {warnings}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("SYNOPSIS"), "{page}");
    }
}

fn completions_complete(system: &System) {
    let table = [
        ("incoming dead ", "", "list"),
        ("incoming ", "che", "check"),
        ("incoming check ", "--conf", "--config"),
    ];
    for (words, word, expected) in table {
        let count = words.split_whitespace().count();
        let script = format!(
            "source /usr/share/bash-completion/completions/incoming
             COMP_WORDS=({words} '{word}') COMP_CWORD={count}
             _incoming incoming '{word}' \"${{COMP_WORDS[{count} - 1]}}\"
             echo \"${{COMPREPLY[@]}}\""
        );
        let completed = system.run(&["bash", "-c", &script]);
        assert!(completed.split_whitespace().any(|word| word == expected), "{words}{word}: {completed}");
    }
}

// ---- with systemd running

/// A system whose systemd runs, with nothing else but the journal.
struct Booted {
    system: System,
    unshared: Child,
    log: PathBuf,
    /// systemd, as it is called from outside.
    init: String,
    group: PathBuf,
    _groups: Mount,
}

impl Booted {
    fn new(log: &Path) -> Self {
        let system = System::new();
        let units = system.path("/etc/systemd/system");
        for target in
            ["sysinit", "basic", "local-fs", "network-online", "sockets", "timers", "paths", "multi-user"]
        {
            for folder in ["/usr/lib/systemd/system", "/etc/systemd/system"] {
                let wanted = system.path(folder).join(format!("{target}.target.wants"));
                for name in
                    fs::read_dir(wanted).into_iter().flatten().map(|unit| unit.expect("a unit").file_name())
                {
                    if !name.to_string_lossy().starts_with("systemd-journald") {
                        let _ = fs::remove_file(units.join(&name));
                        symlink("/dev/null", units.join(&name)).expect("it is masked");
                    }
                }
            }
        }
        fs::write(units.join("incoming-test.target"), "[Unit]\nWants=systemd-journald.service\n")
            .expect("a target");
        fs::write(system.path("/etc/fstab"), "").expect("no mounts");
        let groups = Mount::new(&["-t", "cgroup2", "cgroup2"]);
        let group = groups.path().join(format!("incoming-test-{}", std::process::id()));
        fs::create_dir(&group).expect("a control group");
        let output = File::create(log).expect("a log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec \"$@\""]).arg(&group);
        command.arg(tools::program("unshare"));
        command.args(["--mount", "--propagation", "private", "--pid", "--uts", "--ipc", "--net", "--cgroup"]);
        command
            .args(["--fork", "--kill-child"])
            .arg(tools::test_file("package/boot"))
            .arg(system.root.path());
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a second handle")).stderr(output);
        let unshared = command.spawn().expect("it runs");
        let mut booted =
            Booted { system, unshared, log: log.into(), init: String::new(), group, _groups: groups };
        let id = booted.unshared.id();
        let is_init = |id: &String| {
            fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|comm| comm == "systemd\n")
        };
        wait::until("systemd runs", || {
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
            booted.init = children.trim().to_string();
            is_init(&booted.init)
        });
        wait::until("systemd has started", || {
            booted.output(&["systemctl", "is-system-running"]).stdout.starts_with(b"running")
        });
        booted
    }

    fn output(&self, words: &[&str]) -> Output {
        let mut command = Command::new(tools::program("nsenter"));
        command.args([
            "--target", &self.init, "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--root",
            "--wd",
        ]);
        command
            .args(words)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env_remove("INCOMING_BIN").env_remove(tools::LONG_VARIABLE);
        command.output().expect("it runs")
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> String {
        tools::assert_succeeded(&self.output(words))
    }

    /// What systemd knows of the service.
    fn shown(&self, property: &str) -> String {
        let shown = self.run(&["systemctl", "show", "incoming.service", "--value", "--property", property]);
        shown.trim().to_string()
    }

    /// A message from within.
    #[track_caller]
    fn send(&self, host: &str, port: u16) {
        let script = format!(
            "import smtplib\nwith smtplib.SMTP({host:?}, {port}) as s: s.sendmail('a@e.org', ['b@e.org'], 'Subject: x\\r\\n\\r\\nhello\\r\\n')"
        );
        self.run(&[tools::PYTHON, "-c", &script]);
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.output(&["journalctl", "--no-pager", "--lines=40"]);
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("--- systemd's log\n{log}--- the journal's end\n{}---", tools::said(&journal));
        }
        // All that runs within goes with it.
        let _ = self.unshared.kill();
        let _ = self.unshared.wait();
        // Its processes take their time to end, and until then their groups stay.
        wait::poll(wait::PATIENCE, || {
            let mut remove = Command::new(tools::program("find"));
            remove.arg(&self.group).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", "+"]);
            let _ = remove.stderr(Stdio::null()).status();
            (!self.group.exists()).then_some(())
        });
    }
}

#[test]
fn the_service_lives_as_its_units_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let booted = Booted::new(&folder.path().join("log"));
    fs::copy(package(), booted.system.path("/incoming.deb")).expect("a copy");

    // Installing starts it; it is active, because it has said so.
    booted.run(&["dpkg", "--force-unsafe-io", "--install", "/incoming.deb"]);
    assert_eq!(booted.shown("ActiveState"), "active");
    assert!(booted.shown("StatusText").contains("shards"), "{}", booted.shown("StatusText"));
    booted.send("127.0.0.1", 2525);
    let delivered = booted.system.path("/var/lib/incoming/maildir");
    wait::until("the message is delivered", || maildir::count(&delivered) == 1);
    let first = booted.shown("MainPID");
    booted.run(&["systemctl", "reload", "incoming"]);
    wait::until("it is active again", || booted.shown("ActiveState") == "active");
    assert_eq!(booted.shown("MainPID"), first, "a reload is no restart");

    // The package again: the new program takes over from the running one, which is no restart; with a bad configuration nothing happens.
    let life = booted.shown("InvocationID");
    let said = booted.run(&["dpkg", "--force-unsafe-io", "--install", "/incoming.deb"]);
    assert!(!said.contains("incoming: "), "{said}");
    wait::until("another is the main process", || booted.shown("MainPID") != first);
    let second = booted.shown("MainPID");
    assert_eq!((booted.shown("ActiveState"), booted.shown("InvocationID")), ("active".into(), life));
    let file = booted.system.path("/etc/incoming/incoming.toml");
    let good = fs::read_to_string(&file).expect("a configuration");
    fs::write(&file, format!("colour = \"blue\"\n{good}")).expect("it is written");
    let output = booted.output(&["dpkg", "--force-unsafe-io", "--install", "/incoming.deb"]);
    let said = tools::said(&output);
    assert!(output.status.success() && said.contains("colour") && said.contains("goes on running"), "{said}");
    assert_eq!(booted.shown("MainPID"), second);
    fs::write(&file, good).expect("it is written");

    // Drained by order it stays down.
    booted.run(&["incoming", "drain", "--config", "/etc/incoming/incoming.toml"]);
    wait::until("it is down", || booted.shown("ActiveState") == "inactive");
    booted.run(&["systemctl", "start", "incoming"]);
    let first = booted.shown("MainPID");

    // One that is killed is started again, with what it had accepted.
    booted.run(&["systemctl", "kill", "--signal=KILL", "incoming"]);
    wait::until("another runs", || {
        booted.shown("ActiveState") == "active" && booted.shown("MainPID") != first
    });

    // The sockets of the socket unit, two for each address and a shard for each.
    let listeners =
        "[[listener]]\naddress = \"0.0.0.0:25\"\n[[listener]]\naddress = \"[::]:25\"\n[accept]\nany = true\n";
    let configuration = format!("data = \"/var/lib/incoming\"\nshards = 2\n{listeners}");
    fs::write(booted.system.path("/etc/incoming/incoming.toml"), configuration).expect("it is written");
    booted.run(&["systemctl", "stop", "incoming.service"]);
    booted.run(&["systemctl", "start", "incoming.socket"]);
    assert_eq!(booted.shown("ActiveState"), "inactive");
    for host in ["127.0.0.1", "::1"] {
        (0..4).for_each(|_| booted.send(host, 25));
    }
    wait::until("the messages are delivered", || maildir::count(&delivered) == 9);
    let said = booted.run(&["journalctl", "--no-pager", "--unit=incoming.service"]);
    assert!(!said.contains("sockets are handed over"), "{said}");
    // Whoever comes while it starts again waits.
    booted.run(&["systemctl", "restart", "--no-block", "incoming.service"]);
    booted.send("127.0.0.1", 25);
    wait::until("the message is delivered", || maildir::count(&delivered) == 10);

    booted.run(&["dpkg", "--remove", "incoming"]);
    assert_eq!(booted.shown("MainPID"), "0");
    assert_eq!(booted.shown("Result"), "success");
}

// ---- what the package is made of

#[test]
fn a_manual_that_cannot_be_written_is_a_fault() {
    let output = incoming().args(["man", "/nonexistent"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        tools::said(&output).contains("/nonexistent: cannot write the manual"),
        "{}",
        tools::said(&output)
    );
}

#[test]
fn every_shell_has_its_completions() {
    for (shell, words) in
        [("bash", "complete -F _incoming"), ("zsh", "#compdef incoming"), ("fish", "complete -c incoming")]
    {
        let output = incoming().args(["completions", shell]).output().expect("it runs");
        let script = tools::assert_succeeded(&output);
        assert!(script.contains(words) && script.contains("explain"), "{shell}: {script}");
    }
}
