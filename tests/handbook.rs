//! The commands of docs/OPERATIONS.md work: they are run in their order, in one shell, below a temporary folder. How is said at the end
//! of that page.

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::setup::binary;
use support::wait;

const PAGE: &str = include_str!("../docs/OPERATIONS.md");
/// Blocks that cannot be run here. Each has its reason in front of it; more of them would make the page a promise.
const NOT_RUN: usize = 4;

/// A block of commands, by the line it begins at; and why it is not run, if it is not.
#[derive(Debug, PartialEq, Eq)]
struct Block<'a> {
    line: usize,
    commands: Vec<&'a str>,
    not_run: Option<&'a str>,
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut not_run = None;
    let mut open: Option<Block<'_>> = None;
    for (line, text) in (1..).zip(page.lines()) {
        match &mut open {
            Some(_) if text == "```" => blocks.extend(open.take()),
            Some(block) => block.commands.push(text),
            None if text == "```sh" => {
                open = Some(Block { line, commands: Vec::new(), not_run: not_run.take() });
            }
            None => {
                let reason = text.strip_prefix("<!-- not run: ").and_then(|rest| rest.strip_suffix(" -->"));
                not_run = reason.or(not_run.filter(|_| text.is_empty()));
            }
        }
    }
    assert_eq!(open, None, "a block has no end");
    blocks
}

/// What stands for a machine: a folder with its files, and programs that play systemd's.
struct Root {
    folder: tempfile::TempDir,
    ports: [(&'static str, u16); 2],
}

impl Root {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("incoming-handbook-").tempdir().expect("a folder");
        for below in ["bin", "etc", "var/lib", "srv", "tmp"] {
            fs::create_dir_all(folder.path().join(below)).expect("a folder");
        }
        let free =
            || TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its number").port();
        let root = Root { folder, ports: [(":25", free()), (":9464", free())] };
        root.program("systemctl", SYSTEMCTL);
        root.program("journalctl", "#!/bin/sh\nexec cat \"$ROOT/log\"\n");
        std::os::unix::fs::symlink(binary(), root.path().join("bin/incoming")).expect("a link");
        root
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.path().join("bin").join(name);
        fs::write(&path, text).expect("a program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it may be executed");
    }

    /// The commands as they are run here.
    fn here(&self, commands: &str) -> String {
        // The folder's own path may have such a place in it.
        const ROOT: &str = "\u{1}";
        let mut text = commands.replace("0.0.0.0:", "127.0.0.1:").replace(
            "/usr/share/doc/incoming/examples",
            &format!("{}/docs", env!("CARGO_MANIFEST_DIR").replace("/tmp", "\u{2}")),
        );
        for place in ["/etc/incoming", "/var/lib/incoming", "/srv", "/tmp"] {
            for end in ["/", " ", "\n", "\""] {
                text = text.replace(&format!("{place}{end}"), &format!("{ROOT}{place}{end}"));
            }
        }
        for (port, free) in self.ports {
            for end in [" ", "\n", "\"", "/"] {
                text = text.replace(&format!("127.0.0.1{port}{end}"), &format!("127.0.0.1:{free}{end}"));
            }
        }
        // The shell takes no notice of the outcome behind a `!`.
        let line = |line: &str| match line.strip_prefix("! ") {
            Some(command) => format!("if {command}; then echo 'it should fail' >&2; exit 1; fi\n"),
            None => format!("{line}\n"),
        };
        let text: String = text.lines().map(line).collect();
        text.replace("\u{2}", "/tmp").replace(ROOT, &self.path().display().to_string())
    }

    /// The processes that were started with a configuration of this folder.
    fn gateways(&self) -> Vec<u32> {
        let processes = fs::read_dir("/proc").expect("processes").flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let root = self.path().display().to_string();
        let is_ours = |id: &u32| {
            let said = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let said = String::from_utf8_lossy(&said).into_owned();
            said.contains(&root) && said.contains("\0serve\0")
        };
        ids.filter(is_ours).collect()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for id in self.gateways() {
            let _ = Command::new("kill").args(["-9", &id.to_string()]).status();
        }
        // A panic in a panic would hide the first.
        wait::poll(wait::PATIENCE, || self.gateways().is_empty().then_some(()));
    }
}

/// Plays as much of systemctl as the page uses. The process may have been succeeded by another: the gateway says which it is.
const SYSTEMCTL: &str = r#"#!/bin/bash
set -euo pipefail
config=$ROOT/etc/incoming/incoming.toml
socket=$ROOT/var/lib/incoming/admin.sock
main_pid() {
  curl -sf --unix-socket "$socket" http://localhost/v1/stage 2>/dev/null | sed 's/.*"pid": *\([0-9]*\).*/\1/' || true
}
case $1 in
  start)
    pid=$(main_pid)
    [ -z "$pid" ] || ! kill -0 "$pid" 2>/dev/null || { echo "it runs" >&2; exit 1; }
    before=$(grep -cw ready "$ROOT/log" 2>/dev/null || true)
    setsid incoming serve --config "$config" >>"$ROOT/log" 2>&1 </dev/null &
    until [ "$(grep -cw ready "$ROOT/log" || true)" -gt "${before:-0}" ]; do
      kill -0 $! 2>/dev/null || { tail -3 "$ROOT/log" >&2; exit 1; }
      sleep 0.05
    done
    ;;
  stop)
    pid=$(main_pid)
    [ -n "$pid" ] || { echo "it does not run" >&2; exit 1; }
    kill -TERM "$pid"
    while kill -0 "$pid" 2>/dev/null && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null; do sleep 0.05; done
    ;;
  restart)
    "$0" stop
    "$0" start
    ;;
  reload)
    kill -HUP "$(main_pid)"
    ;;
  is-active)
    kill -0 "$(main_pid)" && echo active
    ;;
  *)
    echo "systemctl: $1 is not played" >&2
    exit 1
    ;;
esac
"#;

#[test]
fn the_commands_of_the_handbook_work_in_their_order() {
    let root = Root::new();
    let mut script = String::new();
    for block in blocks(PAGE).iter().filter(|block| block.not_run.is_none()) {
        script += &format!("echo '--- line {}' >&2\n{}\n", block.line, block.commands.join("\n"));
    }
    let path = root.path().join("script");
    fs::write(&path, root.here(&script)).expect("a script");
    let (out, err) = (root.path().join("out"), root.path().join("err"));
    let mut command = Command::new("timeout");
    command.args(["300", "bash", "-eu", "-o", "pipefail"]).arg(&path);
    let variables = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("INCOMING_"));
    variables.for_each(|(name, _)| {
        command.env_remove(name);
    });
    let tools = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}/bin:{tools}", root.path().display())).env("ROOT", root.path());
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    // Files, not pipes: what was started holds them longer than the script runs.
    command.stdout(fs::File::create(&out).expect("a file")).stderr(fs::File::create(&err).expect("a file"));
    let status = command.status().expect("bash runs");
    let read = |path: &PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let log = read(&root.path().join("log"));
    let (out, err) = (read(&out), read(&err));
    let last = |text: &str| {
        text.lines().rev().take(25).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    };
    assert!(
        status.success(),
        "{status}: the last of these lines of the page\n{}\n\nsaid\n{}\n\nlog\n{}",
        last(&err),
        last(&out),
        last(&log)
    );
}

#[test]
fn few_commands_of_the_handbook_cannot_be_run_and_each_has_a_reason() {
    let blocks = blocks(PAGE);
    let left_out: Vec<_> = blocks.iter().filter_map(|block| block.not_run).collect();
    assert_eq!(left_out.len(), NOT_RUN, "{left_out:?}");
    assert!(left_out.iter().all(|reason| reason.len() > 10), "{left_out:?}");
    assert!(blocks.len() > 4 * NOT_RUN, "{}", blocks.len());
}

#[test]
fn every_alert_has_its_section_in_the_handbook() {
    let rules = include_str!("../docs/alerts.yml");
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(!alerts.is_empty());
    for alert in &alerts {
        assert!(PAGE.lines().any(|line| line == format!("### {alert}")), "{alert}");
        assert!(rules.contains(&format!("OPERATIONS.md#{}", alert.to_lowercase())), "{alert}");
    }
    let sections = PAGE.lines().filter_map(|line| line.strip_prefix("### Incoming"));
    assert_eq!(sections.count(), alerts.len(), "a section without an alert");
}

#[test]
fn blocks_are_found_with_their_reasons() {
    let page = "text\n<!-- not run: needs much -->\n```sh\na\n```\n```sh\nb\nc\n```\n```toml\nd\n```\n";
    let block =
        |line, commands: &[&'static str], not_run| Block { line, commands: commands.to_vec(), not_run };
    assert_eq!(blocks(page), [block(3, &["a"], Some("needs much")), block(6, &["b", "c"], None)]);
}
