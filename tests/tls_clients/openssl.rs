//! `openssl s_client` at the handshake.

use std::net::SocketAddr;

use crate::support::certificates::Authority;
use crate::support::client::Client;

use crate::support::tools;
use crate::{BOTH, Gateway};

/// Seconds that a client may take.
const TIMEOUT: u32 = 60;

/// Says `input` over TLS, which STARTTLS begins; everything openssl has to tell of it.
fn starttls(address: SocketAddr, arguments: &[&str], input: &str) -> String {
    s_client(address, &[&["-starttls", "smtp", "-name", "client.test"], arguments].concat(), input)
}

fn s_client(address: SocketAddr, arguments: &[&str], input: &str) -> String {
    let mut command = tools::bounded("openssl", TIMEOUT);
    command.args(["s_client", "-connect", &address.to_string(), "-crlf"]).args(arguments);
    tools::converse(&mut command, input.as_bytes())
}

/// Whether the handshake came to an end and the session after it to its own.
fn is_served(said: &str) -> bool {
    said.contains("221 2.0.0 mx.test Bye") && said.contains("Cipher is")
}

const QUIT: &str = "QUIT\n";
/// Reads to the end of the connection, and takes nothing of the input for a command of its own.
const TO_THE_END: &str = "-ign_eof";

#[test]
fn what_is_spoken_are_tls_1_2_and_1_3_and_nothing_older() {
    let gateway = Gateway::start();
    let authority = gateway.authority_file();
    let trust = [
        "-CAfile",
        authority.to_str().expect("a path"),
        "-verify_return_error",
        "-verify_hostname",
        "mx.test",
    ];
    // OpenSSL itself speaks the old versions on its lowest security level only.
    let old = ["-cipher", "DEFAULT:@SECLEVEL=0", TO_THE_END];
    for (n, address) in gateway.server.addresses().iter().enumerate() {
        let say = |arguments: &[&str]| match n {
            0 => starttls(*address, arguments, QUIT),
            _ => s_client(*address, arguments, QUIT),
        };
        for (version, name) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
            let said = say(&[&trust[..], &[version, TO_THE_END]].concat());
            assert!(is_served(&said) && said.contains(&format!("New, {name}, Cipher is")), "{name}: {said}");
            assert!(said.contains("Verify return code: 0 (ok)"), "{name}: {said}");
        }
        for version in ["-tls1_1", "-tls1"] {
            let said = say(&[&old[..], &[version]].concat());
            assert!(!is_served(&said) && said.contains("alert"), "{version}: {said}");
        }
    }
    // The next one is served as if nothing had been.
    assert!(is_served(&starttls(gateway.address(0), &[TO_THE_END], QUIT)));
}

#[test]
fn a_session_is_resumed_whatever_shard_it_comes_to() {
    const TRIES: usize = 12;
    let gateway = Gateway::with(&BOTH, |setup| {
        setup.set("shards", 3);
    });
    for version in ["-tls1_3", "-tls1_2"] {
        let file = gateway.setup.home().join("session.pem");
        let file = file.to_str().expect("a path");
        let first = starttls(gateway.address(0), &[version, TO_THE_END, "-sess_out", file], QUIT);
        assert!(first.contains("New, "), "{first}");
        // The kernel spreads connections over the shards: that a dozen all come to one has a chance of 3^-11.
        for _ in 0..TRIES {
            let again = starttls(
                gateway.address(0),
                &[version, TO_THE_END, "-sess_in", file, "-sess_out", file],
                QUIT,
            );
            assert!(again.contains("Reused, ") && again.contains("221 2.0.0"), "{version}: {again}");
        }
        // Where as much is asked of clients, the other listener takes it too.
        let other = s_client(gateway.address(1), &[version, TO_THE_END, "-sess_in", file], QUIT);
        assert!(other.contains("Reused, "), "{version}: {other}");
    }
}

#[test]
fn a_ticket_is_worth_nothing_where_something_else_is_asked_of_clients() {
    let clients = Authority::new();
    let listeners = [
        "tls = \"optional\"",
        "tls = \"optional\"\nclient_certificates = \"request\"",
        "tls = \"optional\"\nclient_certificates = \"require\"",
    ];
    let gateway = Gateway::with(&listeners, |setup| {
        let file = setup.file("clients.pem", clients.pem());
        setup.set("tls.client_authorities", format!("{file:?}"));
    });
    let issued = clients.issue(&["sender.test"]);
    let (chain, key) = (gateway.setup.file("c.pem", &issued.chain), gateway.setup.file("k.pem", &issued.key));
    let shown = ["-cert", chain.to_str().expect("a path"), "-key", key.to_str().expect("a path"), TO_THE_END];
    for version in ["-tls1_3", "-tls1_2"] {
        for from in 0..listeners.len() {
            let file = gateway.setup.home().join(format!("session{version}{from}.pem"));
            let file = file.to_str().expect("a path");
            let arguments = [&shown[..], &[version]].concat();
            let first =
                starttls(gateway.address(from), &[&arguments[..], &["-sess_out", file]].concat(), QUIT);
            assert!(is_served(&first), "{version} {from}: {first}");
            for to in 0..listeners.len() {
                let again =
                    starttls(gateway.address(to), &[&arguments[..], &["-sess_in", file]].concat(), QUIT);
                assert!(is_served(&again), "{version} {from} {to}: {again}");
                assert_eq!(
                    again.contains("Reused, "),
                    from == to,
                    "{version}, a ticket of {from} at {to}: {again}"
                );
            }
        }
        // Nor does it stand for the certificate that is not shown.
        let file = gateway.setup.home().join(format!("session{version}0.pem"));
        let bare = [version, TO_THE_END, "-sess_in", file.to_str().expect("a path")];
        let refused = starttls(gateway.address(2), &bare, QUIT);
        assert!(!refused.contains("221 2.0.0"), "{version}: {refused}");
    }
}

#[test]
fn a_client_certificate_names_the_peer_where_one_is_asked_for() {
    let (clients, others) = (Authority::new(), Authority::new());
    let settings = |word: &str| format!("tls = \"optional\"\nclient_certificates = \"{word}\"");
    let gateway = Gateway::with(&[&settings("request"), &settings("require"), BOTH[0]], |setup| {
        let file = setup.file("clients.pem", clients.pem());
        setup.set("tls.client_authorities", format!("{file:?}"));
        setup.hold_deliveries();
    });
    let known = clients.issue(&["sender.test"]);
    let unknown = others.issue(&["stranger.test"]);
    let table = [
        // (listener, certificate, what comes of it)
        (0, Some(&known), true),
        (0, Some(&unknown), true),
        (0, None, true),
        (1, Some(&known), true),
        (1, Some(&unknown), false),
        (1, None, false),
        (2, Some(&known), true),
    ];
    for (n, issued, is_served_then) in table {
        let mut arguments = vec![TO_THE_END.to_string()];
        if let Some(issued) = issued {
            let (chain, key) =
                (gateway.setup.file("c.pem", &issued.chain), gateway.setup.file("k.pem", &issued.key));
            arguments.extend([
                "-cert".into(),
                chain.display().to_string(),
                "-key".into(),
                key.display().to_string(),
            ]);
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        for version in ["-tls1_3", "-tls1_2"] {
            let said = starttls(gateway.address(n), &[&arguments[..], &[version]].concat(), QUIT);
            assert_eq!(said.contains("221 2.0.0"), is_served_then, "listener {n}, {version}: {said}");
        }
    }
    // Behind the listener that requires one, mail goes as everywhere.
    let mut client = gateway_client(&gateway, 1, &known);
    client.deliver("a@client.test", &["b@mx.test"], b"Subject: from a known one\r\n\r\nx\r\n");
    client.expect("QUIT", 221);
    assert!(is_in_spool(&gateway, "sender.test"), "whom the certificate names is not kept with the message");
    // Who is not known has no name, whatever it says of itself.
    let mut client = gateway_client(&gateway, 0, &unknown);
    client.deliver("a@client.test", &["b@mx.test"], b"Subject: from an unknown one\r\n\r\nx\r\n");
    client.expect("QUIT", 221);
    assert!(!is_in_spool(&gateway, "stranger.test"));
}

/// Whether this is in a file of the spool.
fn is_in_spool(gateway: &Gateway, octets: &str) -> bool {
    let mut grep = tools::bounded("grep", TIMEOUT);
    grep.args(["-r", "-q", "-a", "-F", "-e"]).arg(octets);
    let status = grep.arg(gateway.setup.data().join("spool")).status().expect("grep runs");
    assert!(matches!(status.code(), Some(0 | 1)), "{status}");
    status.success()
}

fn gateway_client(gateway: &Gateway, n: usize, issued: &crate::support::certificates::Issued) -> Client {
    Client::try_greet_tls(gateway.address(n), &gateway.authority.client_with(issued))
        .expect("a session over TLS")
}

#[test]
fn smtp_is_the_only_protocol_to_be_had() {
    let gateway = Gateway::start();
    for (protocols, is_had) in
        [("smtp", true), ("h2,smtp", true), ("h2", false), ("http/1.1", false), ("imap,pop3", false)]
    {
        for version in ["-tls1_3", "-tls1_2"] {
            let said = s_client(gateway.address(1), &["-alpn", protocols, version, TO_THE_END], QUIT);
            assert_eq!(is_served(&said), is_had, "{protocols}: {said}");
            let told = if is_had { "ALPN protocol: smtp" } else { "alert no application protocol" };
            assert!(said.contains(told), "{protocols}: {said}");
        }
    }
}

#[test]
fn the_name_a_client_asks_for_decides_what_it_is_shown() {
    let authority = Authority::new();
    let issued = [&["mx.test"][..], &["mail.test", "*.hosted.test"], &["third.test"]]
        .map(|names| authority.issue(names));
    let gateway = Gateway::with(&BOTH, |setup| {
        setup.certificates(&issued.each_ref());
    });
    let table = [
        // (asked for, common name of what is shown)
        (Some("mx.test"), "mx.test"),
        (Some("mail.test"), "mail.test"),
        (Some("MAIL.Test"), "mail.test"),
        (Some("one.hosted.test"), "mail.test"),
        (Some("third.test"), "third.test"),
        (Some("two.one.hosted.test"), "mx.test"),
        (Some("nobody.test"), "mx.test"),
        (None, "mx.test"),
    ];
    for (asked, shown) in table {
        let arguments = match asked {
            Some(name) => vec!["-servername", name, TO_THE_END],
            None => vec!["-noservername", TO_THE_END],
        };
        for said in
            [starttls(gateway.address(0), &arguments, QUIT), s_client(gateway.address(1), &arguments, QUIT)]
        {
            assert!(
                said.contains(&format!("subject=CN = {shown}\n")),
                "{asked:?} was not shown {shown}: {said}"
            );
            assert!(is_served(&said), "{asked:?}: {said}");
        }
    }
}

#[test]
fn nothing_is_negotiated_twice() {
    let gateway = Gateway::start();
    // A line with nothing but R has openssl ask for it, in TLS 1.2; in 1.3 K asks for new keys, which everybody has to give.
    let said =
        s_client(gateway.address(1), &["-tls1_2", "-no_ign_eof", "-legacy_renegotiation"], "R\nEHLO x\n");
    assert!(said.contains("RENEGOTIATING"), "it was not asked for: {said}");
    assert!(said.contains("no renegotiation") && !said.contains("250-mx.test"), "{said}");
    let mut client = Client::connect_tls(gateway.address(1), &gateway.client()).expect("TLS");
    assert_eq!(client.reply().expect("a greeting").code, 220);
    for _ in 0..3 {
        client.tls().0.refresh_traffic_keys().expect("TLS 1.3");
        client.expect("NOOP", 250);
    }
}
