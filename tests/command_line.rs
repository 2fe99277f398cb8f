//! The command line: what it prints and how it exits.

use std::process::{Command, Output};

fn incoming(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_incoming"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("INCOMING_")) {
        command.env_remove(name);
    }
    command.env("INCOMING_HOSTNAME", "mx.example.com").args(arguments).output().unwrap()
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
