//! Clients that send mail: swaks, Postfix's and Python's.

use std::fs;
use std::process::Output;

use crate::Gateway;
use crate::support::maildir::Stored;
use crate::support::setup::Setup;
use crate::support::tools::{self, assert_succeeded};

/// Seconds that a client may take.
const TIMEOUT: u32 = 120;

/// What `Received:` says of the connection.
fn keyword(stored: &Stored) -> String {
    let (_, rest) = stored.received.split_once(" with ").unwrap_or_else(|| panic!("{}", stored.received));
    rest.split_once(" id ").unwrap_or_else(|| panic!("{}", stored.received)).0.to_string()
}

#[test]
fn swaks_sends_in_clear_over_starttls_and_over_implicit_tls() {
    let gateway = Gateway::start();
    let authority = gateway.authority_file();
    let trust =
        ["--tls-verify", "--tls-ca-path", authority.to_str().expect("a path"), "--tls-sni", "mx.test"];
    let table: [(usize, &[&str], &str); 5] = [
        (0, &[], "ESMTP"),
        (0, &["--tls"], "ESMTPS (TLS1.3 TLS_AES_"),
        (1, &["--tls-on-connect"], "ESMTPS (TLS1.3 TLS_AES_"),
        (0, &["--tls", "--tls-protocol", "tlsv1_2"], "ESMTPS (TLS1.2 TLS_ECDHE_ECDSA_WITH_"),
        (1, &["--tls-on-connect", "--tls-protocol", "tlsv1_2"], "ESMTPS (TLS1.2 TLS_ECDHE_ECDSA_WITH_"),
    ];
    for (n, arguments, _) in &table {
        let address = gateway.address(*n);
        let mut command = tools::bounded("swaks", TIMEOUT);
        command.args(["--server", &address.ip().to_string(), "--port", &address.port().to_string()]);
        command
            .args(["--from", "a@client.test", "--to", "b@mx.test", "--helo", "client.test"])
            .args(*arguments);
        command.args(["--header", &format!("Subject: {}", arguments.join(" "))]);
        if !arguments.is_empty() {
            command.args(trust);
        }
        assert_succeeded(&command.output().expect("swaks runs"));
    }
    let stored = gateway.delivered(table.len());
    for (_, arguments, expected) in table {
        let subject = format!("Subject: {}\r\n", arguments.join(" "));
        let of = |s: &&Stored| String::from_utf8_lossy(&s.content).contains(&subject);
        let stored = stored.iter().find(of).unwrap_or_else(|| panic!("no {subject}"));
        let keyword = keyword(stored);
        let is_so = if arguments.is_empty() { keyword == expected } else { keyword.starts_with(expected) };
        assert!(is_so, "{arguments:?}: {keyword}");
    }
}

#[test]
fn postfix_verifies_the_certificate_and_its_name() {
    let gateway = Gateway::start();
    let authority = gateway.authority_file();
    let folder = gateway.setup.home().join("postfix");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("main.cf"), "compatibility_level = 3.6\nmyhostname = client.test\n")
        .expect("its configuration");
    let finger = |level: &str, names: &[&str], is_wrapped: bool| -> String {
        let address = gateway.address(usize::from(is_wrapped));
        let mut command = tools::bounded("posttls-finger", TIMEOUT);
        command.env("MAIL_CONFIG", &folder).args(["-c", "-l", level, "-L", "summary,verbose"]);
        command.arg("-F").arg(&authority);
        if is_wrapped {
            command.arg("-w");
        }
        command.arg(format!("[{}]:{}", address.ip(), address.port())).args(names);
        tools::said(&command.output().expect("posttls-finger runs"))
    };
    for is_wrapped in [false, true] {
        let said = finger("may", &[], is_wrapped);
        assert!(said.contains("TLS connection established"), "{said}");
        let said = finger("secure", &["mx.test"], is_wrapped);
        assert!(said.contains("Verified TLS connection established"), "{said}");
        let said = finger("secure", &["other.test"], is_wrapped);
        assert!(!said.contains("Verified TLS connection"), "{said}");
    }
}

#[test]
fn smtp_source_goes_on_in_clear_where_tls_is_optional() {
    const MESSAGES: usize = 500;
    let gateway = Gateway::start();
    let mut command = tools::bounded("smtp-source", TIMEOUT);
    command.args([
        "-s",
        "20",
        "-m",
        &MESSAGES.to_string(),
        "-l",
        "2000",
        "-f",
        "a@client.test",
        "-t",
        "b@mx.test",
    ]);
    command.arg(format!("inet:{}", gateway.address(0)));
    assert_succeeded(&command.output().expect("smtp-source runs"));
    assert!(
        gateway
            .delivered(MESSAGES)
            .iter()
            .all(|stored| keyword(stored) == "SMTP" || keyword(stored) == "ESMTP")
    );
}

/// Runs `tls_clients.py` with the gateway's address and its authority.
pub fn smtplib(setup: &Setup, address: impl ToString, authority: &str, arguments: &[&str]) -> Output {
    let mut command = tools::bounded(tools::PYTHON, TIMEOUT);
    command.arg(tools::test_file("tls_clients/clients.py")).arg(address.to_string());
    command.arg(setup.file("authority.pem", authority)).args(arguments);
    command.output().expect("Python runs")
}

#[test]
fn smtplib_logs_in_over_tls_and_sends_chunks_and_binary_lines() {
    let listeners = ["tls = \"required\"\nauth = \"optional\"", "tls = \"implicit\"\nauth = \"required\""];
    let gateway =
        Gateway::with(&listeners, |setup| crate::logins::set_users(setup, &[("jürgen", "geheim ü")]));
    for (n, way) in [(0, "starttls"), (1, "implicit")] {
        let said = smtplib(&gateway.setup, gateway.address(n), &gateway.authority.pem(), &["session", way]);
        assert_succeeded(&said);
    }
    let stored = gateway.delivered(2 * 3);
    assert!(stored.iter().all(|s| keyword(s).contains("TLS1.3")));
    let with = |word: &str| stored.iter().filter(|s| keyword(s).split(' ').next() == Some(word)).count();
    assert_eq!((with("ESMTPSA"), with("UTF8SMTPSA")), (4, 2), "RFC 3848, RFC 6531 §4.3");
    let chunks = stored
        .iter()
        .filter(|s| s.content == b"Subject: chunks\r\n\r\n.\r\n..\r\nMAIL FROM:<x@y>\r\n")
        .count();
    assert_eq!(chunks, 2);
}

#[test]
fn lmtp_has_a_reply_for_each_recipient() {
    let gateway = Gateway::with(&["protocol = \"lmtp\"\ntls = \"optional\""], |_| {});
    let said = smtplib(&gateway.setup, gateway.address(0), &gateway.authority.pem(), &["lmtp"]);
    assert_succeeded(&said);
    let address = gateway.address(0);
    let mut command = tools::bounded("swaks", TIMEOUT);
    command.args([
        "--protocol",
        "LMTP",
        "--server",
        &address.ip().to_string(),
        "--port",
        &address.port().to_string(),
    ]);
    command.args([
        "--from",
        "a@client.test",
        "--to",
        "b@mx.test,c@mx.test,d@mx.test",
        "--lhlo",
        "client.test",
    ]);
    let said = assert_succeeded(&command.output().expect("swaks runs"));
    assert!(said.matches("queued as").count() >= 1, "{said}");
    // One for each of Python's two messages, one for swaks': their recipients share a Maildir.
    let stored = gateway.delivered(3);
    assert!(stored.iter().all(|s| keyword(s).starts_with("LMTP")), "{stored:?}");
}
