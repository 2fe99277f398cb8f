//! What looks for weak or open servers: testssl.sh and nmap.

use std::fs;

use serde_json::Value;

use crate::support::maildir;
use crate::support::tools;
use crate::{BOTH, Gateway};

/// Seconds that a scan may take.
const TIMEOUT: u32 = 300;

/// What testssl.sh is to look at: nothing that asks other hosts.
const CHECKS: [&str; 5] =
    ["--protocols", "--std", "--server-preference", "--server-defaults", "--vulnerable"];

#[test]
fn testssl_finds_nothing_of_weight() {
    let gateway = Gateway::start();
    let authority = gateway.authority_file();
    let scan = |n: usize| {
        let json = gateway.setup.home().join(format!("testssl{n}.json"));
        let mut command = tools::bounded("testssl", TIMEOUT);
        command.args([
            "--quiet",
            "--color",
            "0",
            "--warnings",
            "batch",
            "--nodns",
            "none",
            "--ip",
            "127.0.0.1",
        ]);
        command.arg("--openssl").arg(tools::program("openssl")).arg("--add-ca").arg(&authority);
        command.args(CHECKS).arg("--jsonfile").arg(&json);
        if n == 0 {
            command.args(["--starttls", "smtp"]);
        }
        command.arg(format!("localhost:{}", gateway.address(n).port()));
        let said = tools::said(&command.output().expect("testssl runs"));
        let report = fs::read_to_string(&json).unwrap_or_else(|e| panic!("{e}\n{said}"));
        let findings: Vec<Value> = serde_json::from_str(&report).unwrap_or_else(|e| panic!("{e}\n{said}"));
        (findings, said)
    };
    let reports: Vec<_> = std::thread::scope(|scope| {
        let scans = [0, 1].map(|n| scope.spawn(move || scan(n)));
        scans.into_iter().map(|scan| scan.join().expect("a scan")).collect()
    });
    for (findings, said) in reports {
        let field = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_string();
        let of = |id: &str| {
            findings.iter().filter(|f| field(f, "id") == id).map(|f| field(f, "finding")).collect::<Vec<_>>()
        };
        // It has looked, and has seen what there is.
        for (id, words) in [
            ("TLS1_3", "offered"),
            ("TLS1_2", "offered"),
            ("TLS1", "not offered"),
            ("cert_chain_of_trust", "passed"),
        ] {
            assert!(of(id).iter().any(|finding| finding.starts_with(words)), "{id}: {:?}\n{said}", of(id));
        }
        let weighty: Vec<_> = findings
            .iter()
            .filter(|f| {
                !["OK", "INFO", "LOW", "WARN", "DEBUG"].contains(&f["severity"].as_str().unwrap_or_default())
            })
            .map(|f| format!("{} {}: {}", field(f, "severity"), field(f, "id"), field(f, "finding")))
            .collect();
        assert!(weighty.is_empty(), "{weighty:#?}\n{said}");
    }
}

#[test]
fn nmap_finds_no_open_relay_and_no_users() {
    // nmap tries recipients at our own name too: that they are odd ones there is for whoever gets them to say.
    let gateway = Gateway::with(&BOTH, |setup| {
        setup.set("accept.domains", "[\"example.com\"]");
    });
    let port = gateway.address(0).port().to_string();
    let scan = |script: &str, arguments: &str| {
        let mut command = tools::bounded("nmap", TIMEOUT);
        // With a + before its name a script looks at a port that is nobody's.
        command.args([
            "-Pn",
            "-n",
            "-sT",
            "-p",
            &port,
            "--script",
            script,
            "--script-args",
            arguments,
            "127.0.0.1",
        ]);
        let said = tools::said(&command.output().expect("nmap runs"));
        assert!(said.contains(&format!("{port}/tcp open")), "{said}");
        said
    };
    let said = scan("+smtp-commands", "smtp-commands.domain=client.test");
    assert!(said.contains("STARTTLS") && said.contains("CHUNKING"), "{said}");
    let said = scan("+smtp-open-relay", "smtp-open-relay.domain=client.test,smtp-open-relay.ip=127.0.0.1");
    assert!(said.contains("doesn't seem to be an open relay"), "{said}");
    let said = scan(
        "+smtp-enum-users",
        "smtp-enum-users.methods={VRFY,EXPN,RCPT},smtp-enum-users.domain=elsewhere.test",
    );
    assert!(said.contains("smtp-enum-users") && !said.contains("RCPT, "), "{said}");
    assert_eq!(maildir::count(gateway.setup.maildir()), 0, "something was relayed");
}
