//! Hostile clients against the real gateway: what each scenario does, and that nobody else is harmed by it.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::servers::Server;

/// What the gateway may hold whatever is thrown at it.
const MEMORY_MAX: u64 = 64 << 20;
/// Connections of each scenario: endless-line has one face for even connections and another for odd ones.
const CONNECTIONS: u64 = 2;

#[test]
fn good_clients_go_on_among_all_the_hostile_ones_and_each_of_those_does_what_it_says() {
    let mut gateway = Gateway::start();
    let hostile = format!("all={CONNECTIONS}");
    let pid = gateway.server.pid().to_string();
    let load = ["--connections=8", "--pipeline", "--duration=3s", "--server-pid", &pid];
    let report = gateway.load(&[&load[..], &["--hostile", &hostile, "--hostile-source=127.0.0.64"]].concat());

    assert!(report["accepted"].as_u64() > Some(0), "{report}");
    assert_eq!(report["failed"], 0, "{report}");
    assert_eq!(report["failures"], Value::Array(vec![]), "{report}");
    let felt = |when: &str| report["hostile"][when]["rate"].as_f64();
    assert!(felt("before") > Some(0.0) && felt("during") > Some(0.0), "{}", report["hostile"]);
    assert!(report["hostile"]["ratio"]["p99"].as_f64() > Some(0.0), "{}", report["hostile"]);
    let memory = report["server"]["memory_octets"].as_u64().unwrap();
    assert!(memory <= MEMORY_MAX, "the gateway held {memory} octets");

    let scenarios = scenarios(&report);
    assert_eq!(scenarios.len(), 13);
    for (name, is_as_it_says) in CLAIMS {
        let told = &scenarios[name];
        let is_whole = told.endings.values().sum::<u64>() == told.connections;
        assert!(told.connections >= CONNECTIONS && is_whole && is_as_it_says(told), "{name}: {told:?}");
    }
    gateway.must_be_well();
}

#[test]
fn hostile_clients_may_come_alone() {
    let mut gateway = Gateway::start();
    let report = gateway.load(&[
        "--connections=0",
        "--warm-up=0s",
        "--duration=1s",
        "--hostile=hold=3",
        "--hostile=reset",
    ]);
    assert_eq!((&report["accepted"], &report["hostile"]["during"]), (&Value::from(0), &Value::Null));
    let scenarios = scenarios(&report);
    assert_eq!(scenarios["hold"].ended("held"), 3);
    assert!(scenarios["reset"].connections > 4, "{:?}", scenarios["reset"]);
    gateway.must_be_well();
}

/// A scenario's name, and what must be told of it.
type Claim = (&'static str, fn(&Told) -> bool);

const CLAIMS: [Claim; 13] = [
    // Within the time for a command.
    ("slow-commands", |told| told.sent > 0 && told.is_kept()),
    ("slow-content", |told| told.sent > 0 && told.is_kept()),
    ("hold", |told| told.sent == 0 && told.is_kept()),
    ("early-talk", |told| told.sent > 0 && told.ended("closed 221") > 0),
    // The command line is refused, the line of content taken until it is too large.
    ("endless-line", |told| told.sent > 1 << 16 && told.replies_421 > 0 && told.ended("held") > 0),
    ("endless-rcpt", |told| told.sent > 0 && told.replies_4xx > 0),
    ("reset", |told| told.sent > 0 && told.connections > CONNECTIONS && told.ended("left") > 0),
    ("garbage", |told| told.sent > 0 && told.connections > CONNECTIONS && told.replies_5xx > 0),
    // The announcement is refused, and content comes without it.
    ("huge-size", |told| told.sent > 1 << 20 && told.replies_5xx >= CONNECTIONS),
    // This gateway offers no TLS.
    ("tls-flood", |told| told.connections > CONNECTIONS && told.replies_5xx > 0),
    ("reconnect", |told| told.sent == 0 && told.connections > 10 * CONNECTIONS),
    ("half-close", |told| told.connections > CONNECTIONS && told.ended("closed 354") > 0),
    ("never-read", |told| told.sent > 0 && told.replies_421 + told.replies_4xx + told.replies_5xx == 0),
];

/// What a report tells of one scenario.
#[derive(Debug)]
struct Told {
    connections: u64,
    sent: u64,
    replies_421: u64,
    replies_4xx: u64,
    replies_5xx: u64,
    endings: BTreeMap<String, u64>,
}

impl Told {
    /// Nobody was sent away.
    fn is_kept(&self) -> bool {
        self.connections == CONNECTIONS && self.ended("held") == CONNECTIONS
    }

    fn ended(&self, how: &str) -> u64 {
        self.endings.get(how).copied().unwrap_or_default()
    }
}

fn scenarios(report: &Value) -> BTreeMap<String, Told> {
    let scenarios = report["hostile"]["scenarios"].as_array().expect("scenarios");
    let told = scenarios.iter().map(|scenario| {
        let number = |name: &str| scenario[name].as_u64().unwrap();
        let endings = scenario["endings"].as_array().unwrap().iter().map(|ending| {
            let how = match &ending["ending"] {
                Value::String(how) => how.clone(),
                how => format!("closed {}", how["closed"]),
            };
            (how, ending["count"].as_u64().unwrap())
        });
        let told = Told {
            connections: number("connections"),
            sent: number("sent_octets"),
            replies_421: number("replies_421"),
            replies_4xx: number("replies_4xx"),
            replies_5xx: number("replies_5xx"),
            endings: endings.collect(),
        };
        (scenario["scenario"].as_str().unwrap().to_owned(), told)
    });
    told.collect()
}

/// A gateway that discards what it delivers.
struct Gateway {
    server: Server,
    reports: TempDir,
}

impl Gateway {
    fn start() -> Self {
        Gateway { server: Server::gateway_that_discards(), reports: tempfile::tempdir().unwrap() }
    }

    /// Runs a load to its end; its report.
    fn load(&self, arguments: &[&str]) -> Value {
        let json = self.reports.path().join("report.json");
        let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_loadtest"))
            .args(["run", "--target", &self.server.address.to_string(), "--json"])
            .arg(&json)
            .args(arguments)
            .output()
            .unwrap();
        let told = [stdout, stderr].concat();
        assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&told));
        serde_json::from_slice(&fs::read(json).unwrap()).unwrap()
    }

    /// It lives, and takes a message.
    fn must_be_well(&mut self) {
        assert!(self.server.is_running(), "the gateway has ended");
        let report = self.load(&["--connections=1", "--messages=1", "--warm-up=0s"]);
        assert_eq!(report["accepted"], 1, "{report}");
    }
}
