//! The command line: what it prints and how it exits.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use incoming::policy::Credentials;

fn incoming(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_incoming"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("INCOMING_")) {
        command.env_remove(name);
    }
    command.env("INCOMING_HOSTNAME", "mx.example.com").args(arguments);
    command
}

#[test]
fn exit_codes_tell_faults_from_misuse() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.into_os_string().into_string().unwrap()
    };
    let (good, bad) = (path("good.toml", "data = \"d\"\n"), path("bad.toml", "colour = \"blue\"\n"));
    let table: [(&[&str], i32, &str); 10] = [
        (&["--version"], 0, ""),
        (&["--help"], 0, ""),
        (&["check"], 0, ""),
        (&["check", "--config", &good], 0, ""),
        (&["--config", &good, "check", "--listen", "127.0.0.1:0"], 0, ""),
        (&["check", "--config", &bad], 1, "bad.toml:1: colour: unknown field `colour`"),
        (&["serve", "--config", "/nonexistent"], 1, "incoming: /nonexistent: cannot read it: No such file"),
        (
            &["check", "--shards", "0"],
            2,
            "incoming: --shards: expected a whole number from 1 to 1024, not \"0\"",
        ),
        (&["check", "--shards", "1", "--cores", "0"], 2, "cannot be used with"),
        (&["serve", "--colour"], 2, "unexpected argument"),
    ];
    for (arguments, code, words) in table {
        let output = incoming(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words) && said.is_empty() == words.is_empty(), "{arguments:?}: {said}");
    }
}

#[test]
fn check_prints_the_effective_configuration() {
    let output = incoming(&["check", "--listen", "127.0.0.1:1", "--listen", "[::1]:2", "--cores", "0-1"]);
    let printed: toml::Table = toml::from_str(&String::from_utf8(output.stdout).unwrap()).unwrap();
    assert_eq!(printed["hostname"].as_str(), Some("mx.example.com"));
    assert_eq!(printed["cores"].as_str(), Some("0-1"));
    assert_eq!(printed["listener"].as_array().unwrap().len(), 2);
    assert!(!printed.contains_key("shards"));
}

#[test]
fn a_hashed_password_makes_a_line_of_the_credentials_file() {
    let auth = |arguments: &[&str], typed: &[u8]| {
        // No configuration is needed, and none is in the way.
        let arguments = [&["auth", "hash", "--config", "/nonexistent"], arguments].concat();
        let mut command = command(&arguments);
        command.env("INCOMING_COLOUR", "blue");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // One that refuses its arguments does not read.
        let _ = child.stdin.take().unwrap().write_all(typed);
        child.wait_with_output().unwrap()
    };
    let text = |octets: Vec<u8>| String::from_utf8(octets).unwrap();
    let printed: String = [("alice@example.com", &b"secret\nnot read"[..]), ("bob", b" s\xc3\xa9cret")]
        .map(|(user, typed)| text(auth(&[user], typed).stdout))
        .concat();
    let credentials = Credentials::parse(&printed).unwrap_or_else(|e| panic!("{printed}: {e}"));
    assert!(credentials.verify("alice@example.com", b"secret"));
    assert!(credentials.verify("bob", " s\u{e9}cret".as_bytes()) && !credentials.verify("bob", b"secret"));
    let bare = auth(&[], b"secret\n");
    assert!(bare.status.success() && bare.stderr.is_empty());
    assert!(text(bare.stdout).starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
    let table: [(&[&str], &[u8], i32, &str); 5] = [
        (&[], b"", 1, "incoming: the password is empty"),
        (&[], b"\n", 1, "incoming: the password is empty"),
        (&[], b"a\0b\n", 1, "incoming: the password has a NUL"),
        (&["a:b"], b"secret\n", 2, "a user name has a colon"),
        (&["#a"], b"secret\n", 2, "a user name begins with #"),
    ];
    for (arguments, typed, code, words) in table {
        let output = auth(arguments, typed);
        let said = text(output.stderr);
        assert_eq!((output.status.code(), output.stdout), (Some(code), vec![]), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}
