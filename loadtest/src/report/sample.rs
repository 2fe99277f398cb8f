//! Reports for tests, made up: no clock and no machine is in them.

use super::*;
use crate::plan::{Target, Tls, TlsMode};

/// A run in which everything that can be told has happened.
pub fn full() -> Report {
    let point = |n: u32| Point {
        at: f64::from(n) * 0.25,
        accepted: 8_000 + u64::from(n % 7) * 100,
        failed: u64::from(n == 9) * 3,
        content_octets: 32_768_000,
        p50: 1_200.0,
        p99: 4_000.0 + f64::from(n % 5) * 700.0,
        max: 30_000.0,
    };
    let timeline: Vec<Point> = (0..44).map(point).collect();
    let phase = |phase, count, unit: f64| PhaseFigures { phase, latency: latency(count, unit) };
    Report {
        command: ["loadtest", "run", "--to", "a b@mx.test"].map(str::to_owned).to_vec(),
        plan: Plan {
            target: Target { name: "postfix".to_owned(), ..quiet().plan.target },
            rate: Some(40_000.0),
            tls: Some(Tls {
                mode: TlsMode::StartTls,
                is_resuming: true,
                authorities: None,
                server_name: "mx.test".to_owned(),
            }),
            ..quiet().plan
        },
        probe: Probe {
            greeting: "mx.test ESMTP \u{1b}[2J</script><script>alert(1)</script>".to_owned(),
            extensions: ["PIPELINING", "SIZE 10240000", "X<img src=x onerror='alert(2)'>"]
                .map(str::to_owned)
                .to_vec(),
        },
        failed: 15,
        recipients: 642_080,
        connections: 70,
        tls_full: 64,
        tls_resumed: 6,
        phases: vec![
            phase(Phase::Connect, 70, 310.0),
            phase(Phase::Tls, 70, 2_900.0),
            phase(Phase::Mail, 321_055, 95.0),
            phase(Phase::EndOfData, 321_040, 1_210.0),
            phase(Phase::Transaction, 321_040, 1_500.0),
        ],
        schedule: Some(ScheduleFigures { rate: 40_000.0, lag: latency(321_055, 12.0), never_begun: 78_945 }),
        replies: vec![
            ReplyFigures { phase: Phase::Mail, code: 250, count: 321_055, first: None },
            ReplyFigures {
                phase: Phase::Recipient,
                code: 451,
                count: 12,
                first: Some("451-4.3.0 <b>no</b>\r\n451 4.3.0 later".to_owned()),
            },
            ReplyFigures { phase: Phase::EndOfData, code: 250, count: 321_040, first: None },
        ],
        failures: vec![FailureFigures {
            failure: Failure::Closed,
            failed: Failed { count: 3, first: "after the end-of-data of message 5\u{7}".to_owned() },
        }],
        course: Course { seconds: 0.25, points: timeline.clone() },
        timeline,
        server: Some(ServerFigures {
            cost: Cost { cpu_seconds: 9.87, cpu_seconds_per_1000: Some(0.030_744) },
            memory_octets: 48 << 20,
            processes: 3,
        }),
        warnings: vec!["the target did not keep up: 78945 messages were never begun".to_owned()],
        ..quiet()
    }
}

/// A run in which as little happened as can.
pub fn quiet() -> Report {
    Report {
        loadtest: "0.1.0",
        command: vec!["loadtest".to_owned(), "run".to_owned()],
        machine: Machine {
            kernel: "Linux 6.1.0".to_owned(),
            processor: "Fast CPU @ 3.00GHz".to_owned(),
            core_count: 2,
            memory_octets: 8 << 30,
        },
        run: "1a2b3c4d".to_owned(),
        started: 1_700_000_000,
        plan: Plan { is_pipelined: true, ..Plan::against("127.0.0.1:2525".parse().expect("an address"), 1) },
        probe: Probe::default(),
        is_interrupted: false,
        elapsed_seconds: 10.0,
        accepted: 321_040,
        failed: 0,
        rate: 32_104.0,
        recipients: 321_040,
        content_octets: 1_314_979_840,
        octets_per_second: 131_497_984.0,
        sent_octets: 1_350_000_000,
        received_octets: 40_000_000,
        connections: 64,
        tls_full: 0,
        tls_resumed: 0,
        phases: Vec::new(),
        schedule: None,
        replies: Vec::new(),
        failures: Vec::new(),
        timeline: Vec::new(),
        course: Course::default(),
        counting_from_seconds: 1.0,
        load: Cost { cpu_seconds: 6.5, cpu_seconds_per_1000: Some(0.020_247) },
        server: None,
        hostile: None,
        warnings: Vec::new(),
    }
}

/// Latencies around `unit` microseconds.
fn latency(count: u64, unit: f64) -> Latency {
    Latency {
        count,
        min: unit * 0.4,
        mean: unit * 1.1,
        p50: unit,
        p90: unit * 1.9,
        p99: unit * 3.7,
        p99_9: unit * 24.0,
        p99_99: unit * 240.0,
        max: unit * 880.0,
        curve: [
            (0.0, 0.4),
            (50.0, 1.0),
            (90.0, 1.9),
            (99.0, 3.7),
            (99.9, 24.0),
            (99.99, 240.0),
            (100.0, 880.0),
        ]
        .map(|(percentile, times)| (percentile, unit * times))
        .to_vec(),
    }
}
