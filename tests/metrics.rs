//! What a scraper is told: the exposition of a running gateway, read by Prometheus' own tools and by Prometheus itself, which then knows the
//! numbers that were sent; and what is written of it in docs/: the list, the dashboard, the alerts.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use incoming::telemetry::metrics::{self, Kind};
use regex::Regex;
use support::certificates::Authority;
use support::client::Client;
use support::mail_servers::{Beside, free_port};
use support::server::Server;
use support::setup::Setup;
use support::{ledger, maildir, tools, wait};

// ---- a gateway that is looked at

/// A gateway that anybody may look at, and where.
struct Watched {
    setup: Setup,
    monitor: SocketAddr,
}

impl Watched {
    fn new() -> Self {
        let mut setup = Setup::new();
        let monitor = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        setup.set("monitor.listen", format!("\"{monitor}\"")).set("shards", 2);
        Watched { setup, monitor }
    }

    /// The exposition, and its type.
    fn metrics(&self, accept: &str) -> (String, String) {
        let (head, body) = get(self.monitor, "/metrics", accept);
        assert!(head.starts_with("HTTP/1.1 200") || head.starts_with("HTTP/1.0 200"), "{head}\n{body}");
        let kind = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-type").then(|| value.to_string())
        });
        (kind.expect("a type"), body)
    }

    /// The samples, by name and labels.
    fn samples(&self) -> BTreeMap<String, f64> {
        let (_, body) = self.metrics("");
        let samples = body.lines().filter(|line| !line.starts_with('#'));
        let pair = |line: &str| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_string(), value.parse().unwrap_or_else(|e| panic!("{line}: {e}")))
        };
        samples.map(pair).collect()
    }

    fn sample(&self, name: &str) -> f64 {
        let samples = self.samples();
        *samples.get(name).unwrap_or_else(|| panic!("no {name} in {samples:#?}"))
    }
}

/// `path` of an HTTP server: head and body.
fn get(address: SocketAddr, path: &str, accept: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(wait::PATIENCE)).expect("a timeout");
    let accept = if accept.is_empty() { String::new() } else { format!("Accept: {accept}\r\n") };
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n{accept}Connection: close\r\n\r\n")
        .expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer in UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    match head.to_lowercase().contains("transfer-encoding: chunked") {
        true => (head.into(), unchunked(body)),
        false => (head.into(), body.into()),
    }
}

fn unchunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            break;
        }
        text += &rest[..size];
        body = &rest[size + 2..];
    }
    text
}

// ---- Prometheus

/// A Prometheus that looks at one gateway every second; its data go with it.
struct Prometheus {
    _process: Beside,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(target: SocketAddr) -> Self {
        for _ in 0..20 {
            let folder = tempfile::tempdir().expect("a folder");
            let config = folder.path().join("prometheus.yml");
            let text = format!(
                "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}\nscrape_configs:\n  - job_name: incoming\n    static_configs:\n      - targets: [\"{target}\"]\n"
            );
            fs::write(&config, text).expect("a configuration");
            tools::run("promtool", ["check", "config", config.to_str().expect("UTF-8")]);
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
            let mut command = Command::new(tools::program("prometheus"));
            command
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
                .arg("--storage.tsdb.retention.size=64MB")
                .arg(format!("--web.listen-address={address}"))
                .arg("--log.level=error")
                .stderr(Stdio::null());
            let mut process = Beside::start(&mut command);
            let is_up = wait::poll(wait::PATIENCE, || {
                let is_ready =
                    TcpStream::connect(address).is_ok() && get(address, "/-/ready", "").0.contains(" 200");
                (is_ready || !process.is_running()).then_some(is_ready)
            });
            // Somebody else may have taken the port meanwhile.
            if is_up == Some(true) && process.is_running() {
                return Prometheus { _process: process, address, _folder: folder };
            }
        }
        panic!("Prometheus does not start");
    }

    /// The value of an expression that has one.
    fn value(&self, expression: &str) -> Option<f64> {
        let encoded: String = expression.bytes().map(|octet| format!("%{octet:02x}")).collect();
        let (head, body) = get(self.address, &format!("/api/v1/query?query={encoded}"), "");
        assert!(head.contains(" 200"), "{expression}: {body}");
        let answer: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }

    /// Waits until it knows that.
    #[track_caller]
    fn knows(&self, expression: &str, expected: f64) {
        let mut last = None;
        let known = wait::poll(wait::PATIENCE, || {
            last = self.value(expression);
            (last == Some(expected)).then_some(())
        });
        assert!(known.is_some(), "{expression}: {last:?}, not {expected}");
    }
}

#[test]
fn prometheus_knows_what_was_sent() {
    let authority = Authority::new();
    let mut watched = Watched::new();
    watched
        .setup
        .certificates(&[&authority.issue(&["mx.test", "mail.test"])])
        .listeners(&["", "tls = \"implicit\""])
        .set("accept.domains", "[\"mx.test\"]");
    let mut server = watched.setup.start();
    let prometheus = Prometheus::start(watched.monitor);

    // 30 messages for two each in clear, 5 over TLS, 3 recipients that nobody knows, and a command that nobody knows.
    let mut size = 0;
    let mut client = Client::greet(server.address());
    for number in 0..30 {
        let content = ledger::content(number);
        size += content.len();
        client.deliver("a@client.test", &["b@mx.test", "c@mx.test"], &content);
    }
    for (version, count) in [(&rustls::version::TLS12, 2), (&rustls::version::TLS13, 3)] {
        let tls = authority.client_of(&[version]);
        let mut client = Client::connect_tls(server.addresses()[1], &tls).expect("TLS");
        assert_eq!(client.reply().expect("a greeting").code, 220);
        client.expect("EHLO client.test", 250);
        for number in 0..count {
            let content = ledger::content(100 + number);
            size += content.len();
            client.deliver("a@client.test", &["b@mx.test"], &content);
        }
    }
    client.expect("MAIL FROM:<a@client.test>", 250);
    (0..3).for_each(|n| drop(client.expect(&format!("RCPT TO:<n{n}@elsewhere.test>"), 550)));
    client.expect("NONSENSE", 500);

    for (expression, expected) in [
        ("up", 1.0),
        ("sum(incoming_messages_accepted_total)", 35.0),
        ("incoming_messages_accepted_total{tls=\"none\"}", 30.0),
        ("incoming_messages_accepted_total{tls=\"TLS1.2\"}", 2.0),
        ("incoming_messages_accepted_total{tls=\"TLS1.3\"}", 3.0),
        ("incoming_messages_accepted_bytes_total", size as f64),
        ("incoming_recipients_accepted_total", 65.0),
        ("incoming_end_of_data_seconds_count", 35.0),
        ("incoming_end_of_data_seconds_bucket{le=\"+Inf\"}", 35.0),
        ("incoming_spool_commit_messages_sum", 35.0),
        ("incoming_deliveries_total{target=\"store\",outcome=\"delivered\"}", 65.0),
        ("incoming_delivery_attempts_total{target=\"store\"}", 35.0),
        ("sum(incoming_delivery_attempts_in_flight)", 0.0),
        ("incoming_tls_sessions_total{version=\"TLS1.2\"}", 1.0),
        ("incoming_tls_handshake_seconds_count", 2.0),
        ("incoming_sessions_total - incoming_sessions_greeted_total", 0.0),
        ("sum(incoming_refusals_total{phase=\"recipient\",policy=\"recipients\"})", 3.0),
        ("sum(incoming_negative_replies_total{code=\"550\"})", 3.0),
        ("incoming_negative_replies_total{code=\"500\",status=\"5.5.2\"}", 1.0),
        ("incoming_policy_verdicts_total{policy=\"recipients\",verdict=\"rejected\"}", 3.0),
        ("incoming_queue_messages", 0.0),
        ("sum(incoming_shard_up)", 2.0),
        ("sum(incoming_shard_ready)", 2.0),
        ("count(incoming_certificate_expiry_timestamp_seconds - time() > 86400)", 2.0),
        ("incoming_dead_letters", 0.0),
    ] {
        prometheus.knows(expression, expected);
    }
    // What the histograms say fits what it took.
    for name in
        ["incoming_end_of_data_seconds", "incoming_spool_sync_seconds", "incoming_spool_write_seconds"]
    {
        let mean = prometheus.value(&format!("{name}_sum / {name}_count")).expect("a mean");
        assert!(mean > 0.0 && mean < wait::PATIENCE.as_secs_f64(), "{name}: {mean}");
    }
    drop(client);
    prometheus.knows("sum(incoming_sessions_open)", 0.0);
    assert!(server.stop().success());
    prometheus.knows("up", 0.0);
}

#[test]
fn what_waits_is_counted_and_has_an_age_also_after_a_restart() {
    let mut watched = Watched::new();
    watched
        .setup
        .set("delivery.backoff_base", "\"1h\"")
        .set("delivery.backoff_max", "\"1h\"")
        .set("accept.any", true);
    watched.setup.hold_deliveries();
    let mut server = watched.setup.start();
    let mut client = Client::greet(server.address());
    (0..20).for_each(|n| drop(client.deliver("a@client.test", &["b@mx.test"], &ledger::content(n))));
    const AGE: &str = "incoming_queue_oldest_age_seconds{target=\"store\"}";
    const DEFERRED: &str = "incoming_queue_depth{target=\"store\",state=\"deferred\"}";
    wait::until("all are deferred", || watched.sample(DEFERRED) == 20.0);
    assert_eq!(watched.sample("incoming_queue_messages"), 20.0);
    assert_eq!(watched.sample("incoming_deliveries_total{target=\"store\",outcome=\"deferred\"}"), 20.0);
    wait::until("they are some seconds old", || watched.sample(AGE) >= 4.0);
    assert_eq!(watched.sample("incoming_queue_oldest_age_seconds{target=\"nothing\"}"), 0.0);
    server.kill();

    let mut server = watched.setup.start();
    // They wait for their time, and nobody reads them before: they are as old as the process.
    wait::until("they are known again, and have an age", || {
        watched.sample("incoming_queue_messages") == 20.0 && watched.sample(AGE) >= 1.0
    });
    assert!(server.stop().success());
}

// ---- the exposition

/// Something of everything, as far as it is cheap.
fn exercised(watched: &mut Watched) -> Server {
    let authority = Authority::new();
    watched.setup.certificates(&[&authority.issue(&["mx.test"])]).set("accept.domains", "[\"mx.test\"]");
    let server = watched.setup.start();
    let mut client = Client::greet(server.address());
    client.deliver("a@client.test", &["b@mx.test"], &ledger::content(1));
    client.expect("MAIL FROM:<a@client.test>", 250);
    client.expect("RCPT TO:<b@elsewhere.test>", 550);
    wait::until("it is delivered", || maildir::count(watched.setup.maildir()) == 1);
    server
}

#[test]
fn promtool_finds_nothing_wrong_and_nothing_is_missing() {
    let mut watched = Watched::new();
    let mut server = exercised(&mut watched);
    let (kind, text) = watched.metrics("text/plain");
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    let mut check = Command::new(tools::program("promtool"));
    check.args(["check", "metrics"]);
    assert_eq!(tools::converse(&mut check, text.as_bytes()), "", "{text}");
    let (kind, open) = watched.metrics("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.ends_with("\n# EOF\n"), "{open}");
    let samples = watched.samples();
    for metric in metrics::ALL {
        let is_there = samples.keys().any(|sample| family(sample) == Some(metric));
        assert!(is_there, "no sample of {}", metric.name);
    }
    for sample in samples.keys() {
        assert!(family(sample).is_some(), "{sample} is not in the list");
    }
    assert!(server.stop().success());
}

/// The metric of a sample or of what a query names.
fn family(sample: &str) -> Option<&'static metrics::Metric> {
    let name = sample.split('{').next()?;
    let plain = metrics::ALL.iter().find(|metric| metric.name == name && metric.kind != Kind::Histogram);
    plain.copied().or_else(|| {
        let base = ["_bucket", "_sum", "_count"].into_iter().find_map(|suffix| name.strip_suffix(suffix))?;
        metrics::ALL.iter().find(|metric| metric.name == base && metric.kind == Kind::Histogram).copied()
    })
}

#[test]
fn no_peer_adds_a_sample() {
    let mut watched = Watched::new();
    let mut server = exercised(&mut watched);
    let sessions = watched.sample("incoming_sessions_total");
    let before: BTreeSet<String> = watched.samples().into_keys().collect();
    for n in 2..40 {
        let source = Ipv4Addr::new(127, 0, 0, n);
        let mut client = Client::connect_from(source.into(), server.address()).expect("a connection");
        assert_eq!(client.reply().expect("a greeting").code, 220);
        client.expect(&format!("EHLO client{n}.test"), 250);
        client.deliver(&format!("a@client{n}.test"), &[&format!("b{n}@mx.test")], &ledger::content(n.into()));
        client.expect("MAIL FROM:<>", 250);
        client.expect(&format!("RCPT TO:<b@elsewhere{n}.test>"), 550);
    }
    wait::until("all were counted", || watched.sample("incoming_sessions_total") == sessions + 38.0);
    let after: BTreeSet<String> = watched.samples().into_keys().collect();
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(server.stop().success());
}

// ---- what is written of it

fn document(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

fn read(name: &str) -> String {
    let path = document(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn the_list_of_metrics_is_complete_and_right() {
    let text = read("METRICS.md");
    let mut listed = Vec::new();
    for row in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, kind, labels, meaning, look] = cells[..] else { panic!("five cells: {row}") };
        let name = name.trim_matches('`');
        let metric = metrics::ALL.iter().find(|metric| metric.name == name);
        let metric = metric.unwrap_or_else(|| panic!("there is no metric {name}"));
        assert_eq!(kind, format!("{:?}", metric.kind).to_lowercase(), "{name}");
        let of_metric: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        assert_eq!(labels, of_metric.join(", "), "{name}");
        assert_eq!(meaning, metric.help, "{name}");
        assert!(!look.is_empty(), "{name}: what is it for?");
        listed.push(name);
    }
    let known: Vec<&str> = metrics::ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(listed, known);
}

/// Names of metrics in an expression of Prometheus.
fn named(expression: &str) -> Vec<String> {
    let name = Regex::new(r"\b(?:incoming|process)_[a-z_]+\b").expect("a pattern");
    // What stands in quotes is a label's value.
    let quoted = Regex::new(r#""[^"]*""#).expect("a pattern");
    let expression = quoted.replace_all(expression, "");
    name.find_iter(&expression).map(|found| found.as_str().to_string()).collect()
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("grafana/incoming.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut asked = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{}", panel["title"]);
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().expect("an expression");
            let names = named(expression);
            assert!(!names.is_empty(), "{expression}");
            for name in names {
                assert!(family(&name).is_some(), "{}: there is no {name}", panel["title"]);
                asked.insert(name);
            }
        }
    }
    assert!(asked.len() > 30, "{asked:?}");
}

#[test]
fn every_alert_fires_when_it_should_and_says_what_to_do() {
    let rules = document("alerts.yml");
    let said = tools::assert_succeeded(&tools::run(
        "promtool",
        ["check".as_ref(), "rules".as_ref(), rules.as_os_str()],
    ));
    assert!(said.contains("SUCCESS"), "{said}");
    let text = read("alerts.yml");
    let tests = fs::read_to_string(tools::test_file("metrics/alerts_test.yml")).expect("the tests");
    for alert in text.split("- alert: ").skip(1) {
        let name = alert.lines().next().expect("a name");
        assert!(tests.contains(&format!("- name: {name}\n")), "{name} has no test");
        for part in ["expr: ", "severity: ", "summary: ", "description: "] {
            assert!(alert.contains(part), "{name} has no {part}");
        }
        let anchor = format!("runbook: OPERATIONS.md#{}", name.to_lowercase());
        assert!(alert.contains(&anchor), "{name}: {anchor}");
        let expression =
            alert.lines().find(|line| line.trim_start().starts_with("expr: ")).expect("an expression");
        for name in named(expression) {
            assert!(family(&name).is_some(), "there is no {name}");
        }
    }
    let tests = tools::test_file("metrics/alerts_test.yml");
    let said = tools::assert_succeeded(&tools::run(
        "promtool",
        ["test".as_ref(), "rules".as_ref(), tests.as_os_str()],
    ));
    assert!(said.contains("SUCCESS"), "{said}");
}

/// Many at once cost each shard little: sessions go on.
#[test]
fn scrapes_stop_nobody() {
    let mut watched = Watched::new();
    let mut server = exercised(&mut watched);
    let mut client = Client::greet(server.address());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..25).for_each(|_| assert!(watched.samples().len() > 100)));
        }
        for n in 0..50 {
            client.deliver("a@client.test", &["b@mx.test"], &ledger::content(1000 + n));
        }
    });
    wait::until("all is counted", || watched.sample("incoming_recipients_accepted_total") == 51.0);
    drop(client);
    assert!(server.stop().success());
}
