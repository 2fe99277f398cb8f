use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use bytes::Bytes;

use super::*;
use crate::delivery::tests::attempt_for;
use crate::delivery::{Content, Fault, StoredContent};
use crate::mail::ReversePath;

fn settings(command: &[&str]) -> PipeSettings {
    PipeSettings {
        command: CommandTemplate::parse(command.iter().map(ToString::to_string).collect()).unwrap(),
        user: None,
        folder: "/".into(),
        environment: BTreeMap::new(),
        timeout: Duration::from_secs(60),
        return_path: false,
        delivered_to: false,
        line_ends: LineEnds::Crlf,
        scratch: std::env::temp_dir(),
        host: Domain::parse("mx.example.com", false).unwrap(),
    }
}

/// What `script` makes of a message for these recipients; `$1` is the recipient.
fn deliver(script: &str, recipients: &[&str]) -> Vec<Outcome> {
    let command = ["/bin/sh", "-c", script, "sh", "{recipient}"];
    Pipe::new(settings(&command)).unwrap().deliver(&attempt_for(recipients))
}

fn one(script: &str) -> Outcome {
    let [outcome] = &deliver(script, &["a@e.org"])[..] else { panic!("one outcome") };
    outcome.clone()
}

#[test]
fn how_a_command_ends_is_what_becomes_of_the_recipient() {
    let rejected = Outcome::rejected;
    let deferred = Outcome::deferred;
    let unreachable = Outcome::unreachable;
    let table = [
        ("exit 0", Outcome::delivered()),
        ("cat >/dev/null; echo stored as 7; echo more", Outcome::delivered_saying("stored as 7")),
        ("exit 67", rejected("5.1.1 user unknown")),
        ("echo who is $1; exit 67", rejected("5.1.1 user unknown: who is a@e.org")),
        ("echo 5.2.2 full >&2; exit 1", rejected("5.2.2 full (exit code 1)")),
        ("echo 4.2.2 full; exit 67", deferred("4.2.2 full (exit code 67)")),
        ("echo 2.0.0 fine; exit 1", deferred("exit code 1: 2.0.0 fine")),
        ("echo 5.1.1 no; exit 0", Outcome::delivered_saying("5.1.1 no")),
        ("echo 5.1.1 no; kill -9 $$", deferred("killed by signal 9: 5.1.1 no")),
        ("exit 65", rejected("5.6.0 data format error")),
        ("exit 68", rejected("5.1.2 host name unknown")),
        ("exit 69", unreachable("exit code 69 (service unavailable)")),
        ("exit 77", deferred("exit code 77 (permission denied)")),
        ("exit 64", unreachable("exit code 64 (usage error)")),
        ("exit 66", deferred("exit code 66 (cannot open input)")),
        ("exit 70", deferred("exit code 70 (internal software error)")),
        ("exit 71", deferred("exit code 71 (system error)")),
        ("exit 72", unreachable("exit code 72 (critical system file missing)")),
        ("exit 73", deferred("exit code 73 (cannot create output file)")),
        ("exit 74", deferred("exit code 74 (input/output error)")),
        ("echo; echo '\t no luck\r'; exit 75", deferred("exit code 75 (temporary failure): no luck")),
        ("exit 76", deferred("exit code 76 (remote error in protocol)")),
        ("exit 78", unreachable("exit code 78 (configuration error)")),
        ("exit 126", unreachable("exit code 126 (not executable)")),
        ("/nonexistent 2>/dev/null", unreachable("exit code 127 (not found)")),
        ("exit 1", deferred("exit code 1")),
        ("exit 255", deferred("exit code 255")),
    ];
    for (script, expected) in table {
        assert_eq!(one(script), expected, "{script}");
    }
}

#[test]
fn what_cannot_be_started_is_unreachable() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "not a program").unwrap();
    for program in ["/nonexistent", file.to_str().unwrap(), folder.path().to_str().unwrap()] {
        let outcomes =
            Pipe::new(settings(&[program])).unwrap().deliver(&attempt_for(&["a@e.org", "b@e.org"]));
        assert!(outcomes.iter().all(Outcome::is_of_target), "{outcomes:?}");
        assert!(outcomes[0].text().starts_with(&format!("cannot run {program}: ")), "{outcomes:?}");
    }
    let gone = PipeSettings { folder: "/nonexistent".into(), ..settings(&["/bin/true"]) };
    assert!(Pipe::new(gone).unwrap().deliver(&attempt_for(&["a@e.org"]))[0].is_of_target());
}

#[test]
fn what_a_shell_did_not_find_is_not_tried_for_the_next() {
    for (code, runs) in [(127, 1), (126, 1), (78, 2), (1, 2)] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("runs");
        let script = format!("echo >>\"$1\"; exit {code}");
        let pipe = Pipe::new(settings(&["/bin/sh", "-c", &script, "sh", file.to_str().unwrap()])).unwrap();
        let outcomes = pipe.deliver(&attempt_for(&["a@e.org", "b@e.org"]));
        assert_eq!(outcomes[0], outcomes[1]);
        assert_eq!(fs::read(&file).unwrap().len(), runs, "{code}");
    }
}

fn with_content(parts: &[&[u8]]) -> Attempt {
    let mut attempt = attempt_for(&["a@e.org"]);
    attempt.content =
        Arc::new(Content::Memory(parts.iter().map(|part| Bytes::copy_from_slice(part)).collect()));
    attempt
}

#[test]
fn a_command_reads_the_content_octet_for_octet() {
    let every_octet: Vec<u8> = (0..=255).collect();
    let large = b"a line\r\n".repeat(100_000);
    let contents: [&[&[u8]]; 5] = [
        &[],
        &[b"Received: x\r\n", b"\r\n.\r\n..\r\nFrom x\r\n"],
        &[&every_octet, b"no line end"],
        &[b"bare\n.\nlf\r", b"\nthe end\r"],
        &[&large, &every_octet],
    ];
    for parts in contents {
        for line_ends in [LineEnds::Crlf, LineEnds::Lf] {
            for (return_path, delivered_to) in [(false, false), (true, false), (true, true)] {
                let folder = tempfile::tempdir().unwrap();
                let file = folder.path().join("message");
                let file = file.to_str().unwrap();
                let command = ["/bin/sh", "-c", "cat >\"$1\"; cat /dev/stdin | cmp - \"$1\"", "sh", file];
                let settings = PipeSettings {
                    line_ends,
                    return_path,
                    delivered_to,
                    scratch: folder.path().into(),
                    ..settings(&command)
                };
                let outcomes = Pipe::new(settings).unwrap().deliver(&with_content(parts));
                assert_eq!(outcomes, [Outcome::delivered()]);
                let mut expected = Vec::new();
                if return_path {
                    expected.extend_from_slice(b"Return-Path: <s@e.net>\r\n");
                }
                if delivered_to {
                    expected.extend_from_slice(b"Delivered-To: a@e.org\r\n");
                }
                expected.extend(parts.concat());
                let mut seen = fs::read(file).unwrap();
                if line_ends == LineEnds::Lf {
                    // Two ways to say it: what is left of CRLF is none, and what was cut out is made of it.
                    assert!(!seen.windows(2).any(|pair| pair == b"\r\n"));
                    let text = expected.split(|c| *c == b'\n').collect::<Vec<_>>();
                    let last = text.len() - 1;
                    let cut = |(n, line): (usize, &&[u8])| match line.strip_suffix(b"\r") {
                        Some(line) if n < last => line.to_vec(),
                        _ => line.to_vec(),
                    };
                    expected = text.iter().enumerate().map(cut).collect::<Vec<_>>().join(&b'\n');
                }
                assert!(seen == expected, "{:?}", seen.split_off(seen.len().saturating_sub(50)));
                assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the input has no name");
            }
        }
    }
}

struct Damaged;

impl StoredContent for Damaged {
    fn size(&self) -> u64 {
        8
    }

    fn parts_count(&self) -> usize {
        2
    }

    fn part(&self, n: usize) -> io::Result<Bytes> {
        match n {
            0 => Ok(Bytes::from_static(b"part")),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn is_at_hand(&self, _: usize) -> bool {
        true
    }
}

#[test]
fn no_command_sees_content_that_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ran");
    let mut attempt = attempt_for(&["a@e.org", "b@e.org"]);
    attempt.content = Arc::new(Content::Stored(Box::new(Damaged)));
    let outcomes =
        Pipe::new(settings(&["/usr/bin/touch", file.to_str().unwrap()])).unwrap().deliver(&attempt);
    assert!(outcomes.iter().all(|o| o.text().contains("damaged") && !o.is_of_target()), "{outcomes:?}");
    assert!(!file.exists());
}

#[test]
fn a_process_for_each_or_one_for_many() {
    let many = ["a@e.org", "-b@e.org", "c@e.org"];
    let script = "echo $#: $*; exit 1";
    let for_each = Pipe::new(settings(&["/bin/sh", "-c", script, "--", "x{recipient}", "{sender}"])).unwrap();
    let texts = |outcomes: Vec<Outcome>| outcomes.iter().map(|o| o.text().to_owned()).collect::<Vec<_>>();
    assert_eq!(
        texts(for_each.deliver(&attempt_for(&many))),
        [
            "exit code 1: 2: xa@e.org s@e.net",
            "exit code 1: 2: x-b@e.org s@e.net",
            "exit code 1: 2: xc@e.org s@e.net"
        ]
    );
    let for_all = Pipe::new(settings(&["/bin/sh", "-c", script, "sh", "{recipients}", "{id}"])).unwrap();
    let all = "exit code 1: 3: a@e.org c@e.org 000000111";
    let refused = "5.1.3 an address that begins with - is not taken";
    assert_eq!(texts(for_all.deliver(&attempt_for(&many))), [all, refused, all]);
    let mut attempt = attempt_for(&["a@e.org"]);
    let envelope = crate::mail::Envelope {
        reverse_path: ReversePath::parse("-s@e.net", false).unwrap(),
        ..(*attempt.envelope).clone()
    };
    attempt.envelope = Arc::new(envelope);
    let of_sender = Pipe::new(settings(&["/bin/true", "{sender}"])).unwrap().deliver(&attempt);
    assert!(matches!(&of_sender[..], [Outcome::Rejected { reason }] if reason.starts_with("5.1.7 ")));
}

#[test]
fn a_process_takes_so_many_recipients() {
    let paths: Vec<_> = (0..1200).map(|n| format!("r{n}@e.org")).collect();
    let paths: Vec<_> = paths.iter().map(String::as_str).collect();
    let pipe = Pipe::new(settings(&["/bin/sh", "-c", "echo $# $1; exit 1", "sh", "{recipients}"])).unwrap();
    let outcomes = pipe.deliver(&attempt_for(&paths));
    for (n, expected) in
        [(0, "500 r0@e.org"), (499, "500 r0@e.org"), (500, "500 r500@e.org"), (1199, "200 r1000@e.org")]
    {
        assert_eq!(outcomes[n].text(), format!("exit code 1: {expected}"));
    }
}

#[test]
fn a_command_has_the_environment_and_the_descriptors_it_is_given() {
    let environment = BTreeMap::from([("HOME".to_string(), "/x y".to_string())]);
    let script = "env | grep -v '^\\(PWD\\|SHLVL\\|_\\|OLDPWD\\)=' | sort | tr '\\n' ' '; exit 1";
    let settings_of =
        |command: &[&str]| PipeSettings { environment: environment.clone(), ..settings(command) };
    let pipe = Pipe::new(settings_of(&["/bin/sh", "-c", script])).unwrap();
    let [outcome] = &pipe.deliver(&attempt_for(&["a@e.org"]))[..] else { panic!("one outcome") };
    assert_eq!(
        outcome.text(),
        format!(
            "exit code 1: CLIENT_ADDRESS=192.0.2.1 HOME=/x y MESSAGE_ID=000000111 PATH={PATH} RECIPIENT=a@e.org SENDER=s@e.net"
        )
    );
    let _kept_open = fs::File::open("/dev/null").unwrap();
    let script = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:-1], os.getpgid(0) == os.getpid()); raise SystemExit(1)";
    let pipe = Pipe::new(settings_of(&["/usr/bin/python3", "-c", script])).unwrap();
    let [outcome] = &pipe.deliver(&attempt_for(&["a@e.org"]))[..] else { panic!("one outcome") };
    assert_eq!(outcome.text(), "exit code 1: [0, 1, 2] True");
}

/// The process ids that a script has written to `file`, when it has.
fn written_ids(file: &Path) -> Vec<u32> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        if text.ends_with('\n') && text.lines().count() >= 2 {
            return text.lines().map(|line| line.trim().parse().unwrap()).collect();
        }
        assert!(Instant::now() < deadline, "it did not begin: {text:?}");
        thread::yield_now();
    }
}

/// Whether a process runs. One that waits to be reaped by init does not.
fn runs(id: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Waits until none of them runs: what was sent SIGKILL, and is no child of ours, ends when the kernel gets to it.
fn wait_for_ends(ids: &[u32]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while ids.iter().any(|id| runs(*id)) {
        assert!(Instant::now() < deadline, "some run: {ids:?}");
        thread::yield_now();
    }
}

#[test]
fn at_the_timeout_everything_that_was_started_ends() {
    // What ignores SIGTERM, in the background as well; and what does not.
    for ignore in ["trap '' TERM;", ""] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ids");
        let script = format!(
            "{ignore} (echo $$ >>\"$1\"; exec sleep 1000) & echo $! >>\"$1\"; echo begun; sleep 1000; exit 0"
        );
        let settings = PipeSettings {
            timeout: Duration::from_secs(1),
            ..settings(&["/bin/sh", "-c", &script, "sh", file.to_str().unwrap()])
        };
        let outcomes = Pipe::new(settings).unwrap().deliver(&attempt_for(&["a@e.org", "b@e.org"]));
        assert!(outcomes.iter().all(Outcome::is_of_target), "{outcomes:?}");
        assert_eq!(outcomes[0].text(), "/bin/sh was killed after 1s: begun");
        assert_eq!(outcomes[1], outcomes[0], "the second recipient does not wait as well");
        wait_for_ends(&written_ids(&file));
    }
}

#[test]
fn a_command_that_has_left_its_group_is_killed() {
    let script = "import os, time; os.setpgid(0, os.getpgid(os.getppid())); print('left', flush=True); time.sleep(1000)";
    let settings =
        PipeSettings { timeout: Duration::from_secs(1), ..settings(&["/usr/bin/python3", "-c", script]) };
    let outcomes = Pipe::new(settings).unwrap().deliver(&attempt_for(&["a@e.org"]));
    assert_eq!(outcomes, [Outcome::unreachable("/usr/bin/python3 was killed after 1s: left")]);
}

#[test]
fn a_command_can_be_asked_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("asked");
    // A shell would not do: some take every signal again when they begin.
    let script = "import signal, sys, time\n\
        def asked(*_):\n  open(sys.argv[1], 'w').write('asked\\n')\n  sys.exit(0)\n\
        signal.signal(signal.SIGTERM, asked)\n\
        time.sleep(1000)";
    let settings = PipeSettings {
        timeout: Duration::from_secs(1),
        ..settings(&["/usr/bin/python3", "-c", script, file.to_str().unwrap()])
    };
    // As the threads of the gateway are.
    let blocked = thread::spawn(move || {
        // SAFETY: the set is owned by this frame and filled before it is read.
        unsafe {
            let mut all = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
        }
        Pipe::new(settings).unwrap().deliver(&attempt_for(&["a@e.org"]))
    });
    let outcomes = blocked.join().unwrap();
    assert!(
        matches!(&outcomes[..], [Outcome::Deferred { .. }]),
        "asked to end, it did not deliver: {outcomes:?}"
    );
    assert_eq!(fs::read_to_string(file).unwrap(), "asked\n");
}

#[test]
fn when_the_gateway_ends_nothing_is_left_running() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids");
    let script = "trap '' TERM; (sleep 1000) & echo $! >>\"$1\"; echo $$ >>\"$1\"; sleep 1000";
    let command = ["/bin/sh", "-c", script, "sh", file.to_str().unwrap()];
    let pipe = Arc::new(Pipe::new(settings(&command)).unwrap());
    let delivering = thread::spawn({
        let pipe = pipe.clone();
        move || pipe.deliver(&attempt_for(&["a@e.org", "b@e.org"]))
    });
    let ids = written_ids(&file);
    assert!(ids.iter().all(|id| runs(*id)));
    pipe.stop();
    let outcomes = delivering.join().unwrap();
    assert!(
        outcomes.iter().all(|o| matches!(o, Outcome::Deferred { fault: Fault::Message, .. })),
        "{outcomes:?}"
    );
    wait_for_ends(&ids);
    assert_eq!(pipe.deliver(&attempt_for(&["a@e.org"]))[0].text(), "not tried: the gateway is ending");
}

#[test]
fn output_without_end_and_output_held_open_hold_up_nobody() {
    let table = [
        ("yes; exit 1", "/bin/sh was killed after 1s: y"),
        ("head -c 1000000 /dev/zero | tr '\\0' x; exit 1", "exit code 1: "),
        ("sleep 3 & echo done; exit 1", "exit code 1: done"),
        ("exec >&- 2>&-; sleep 0.2; exit 1", "exit code 1"),
        ("printf '\\033[31m\\377\\n'; exit 1", "exit code 1: ?[31m\u{fffd}"),
    ];
    for (script, expected) in table {
        let settings =
            PipeSettings { timeout: Duration::from_secs(1), ..settings(&["/bin/sh", "-c", script]) };
        let outcomes = Pipe::new(settings).unwrap().deliver(&attempt_for(&["a@e.org"]));
        let text = outcomes[0].text();
        assert!(text.starts_with(expected) && text.len() <= SAID_SIZE_MAX + 100, "{script}: {text}");
    }
}

#[test]
fn twenty_at_a_time_do_not_disturb_each_other() {
    let pipe = Arc::new(Pipe::new(settings(&["/bin/sh", "-c", "cat; exit 1"])).unwrap());
    let threads: Vec<_> = (0..20)
        .map(|n| {
            let pipe = pipe.clone();
            thread::spawn(move || {
                for round in 0..5 {
                    let content = format!("message {n} {round}");
                    let outcomes = pipe.deliver(&with_content(&[content.as_bytes()]));
                    assert_eq!(outcomes, [Outcome::deferred(format!("exit code 1: {content}"))]);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_command_runs_as_the_user_it_is_given() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let settings = PipeSettings {
        user: Some(User { uid: 65534, gid: 65534 }),
        ..settings(&["/bin/sh", "-c", "echo $(id -u) $(id -g) $(id -G) $(cat /dev/stdin | wc -c); exit 1"])
    };
    for size in [10, 1_000_000] {
        let settings = PipeSettings {
            command: settings.command.clone(),
            scratch: settings.scratch.clone(),
            folder: "/".into(),
            environment: BTreeMap::new(),
            host: settings.host.clone(),
            ..settings
        };
        let outcomes = Pipe::new(settings).unwrap().deliver(&with_content(&[&vec![b'x'; size]]));
        assert_eq!(outcomes[0].text(), format!("exit code 1: 65534 65534 65534 {size}"));
    }
}
