//! A plan in words: every setting, those that were not given as well.

use std::net::IpAddr;
use std::time::Duration;

use super::units::{digits, grouped};
use crate::content::{Sizes, Source};
use crate::hostile::Hostile;
use crate::plan::{Arrivals, Envelope, Goal, Plan, Target, Tls, TlsMode};

/// Every setting of `plan`, by name.
pub fn settings(plan: &Plan) -> Vec<(&'static str, String)> {
    // In full, so that a setting that is added is not forgotten here.
    let Plan {
        target: Target { name, address },
        connections,
        goal,
        warm_up,
        rate,
        arrivals,
        content,
        envelope: Envelope { sender, recipient, recipient_count },
        messages_per_connection,
        is_pipelined,
        is_chunking,
        tls,
        sources,
        cores,
        host,
        timeout,
        seed,
        ledger,
        server_pid,
        hostile,
        hostile_sources,
        hostile_cores,
    } = plan;
    let mut settings = vec![
        ("Target", if *name == address.to_string() { name.clone() } else { format!("{name}, {address}") }),
        ("Load", load(*rate, *arrivals)),
        ("Connections", grouped(*connections as u64)),
        (
            "Messages a connection",
            match messages_per_connection {
                Some(count) => grouped(*count),
                None => "no limit".to_owned(),
            },
        ),
        (
            "Goal",
            match goal {
                Goal::Messages(count) => format!("{} messages", grouped(*count)),
                Goal::Duration(duration) => seconds(*duration),
            },
        ),
        ("Warm-up", seconds(*warm_up)),
        (
            "Content",
            match content {
                Source::Sizes(sizes) => format!("made up, {}", self::sizes(sizes)),
                Source::Corpus(path) => format!("real messages of {}", path.display()),
            },
        ),
        ("Sender", if sender.is_empty() { "the null reverse-path".to_owned() } else { sender.clone() }),
        ("Recipients", format!("{recipient_count} × {recipient}")),
        ("Commands", if *is_pipelined { "pipelined where offered" } else { "one at a time" }.to_owned()),
        ("Contents by", if *is_chunking { "BDAT where offered" } else { "DATA" }.to_owned()),
        ("TLS", tls.as_ref().map_or_else(|| "none".to_owned(), secured)),
        ("EHLO", host.clone()),
        ("Source addresses", source_addresses(sources)),
        ("Cores of the harness", numbers(cores)),
        ("Timeout", seconds(*timeout)),
        ("Seed", seed.to_string()),
    ];
    if let Some(path) = ledger {
        settings.push(("Ledger", path.display().to_string()));
    }
    if let Some(pid) = server_pid {
        settings.push(("Server's process", pid.to_string()));
    }
    if !hostile.is_empty() {
        let each = |hostile: &Hostile| format!("{} × {}", hostile.connections, hostile.scenario.name());
        settings.push(("Hostile clients", hostile.iter().map(each).collect::<Vec<_>>().join(", ")));
        settings.push(("Hostile source addresses", source_addresses(hostile_sources)));
        if !hostile_cores.is_empty() {
            settings.push(("Cores of hostile clients", numbers(hostile_cores)));
        }
    }
    settings
}

fn source_addresses(sources: &[IpAddr]) -> String {
    match sources {
        [] => "the system's choice".to_owned(),
        [one] => one.to_string(),
        [first, .., last] => format!("{} in turn, {first} to {last}", sources.len()),
    }
}

fn numbers(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

fn load(rate: Option<f64>, arrivals: Arrivals) -> String {
    let spread = match arrivals {
        Arrivals::Even => "evenly spread",
        Arrivals::Poisson => "as a Poisson process",
    };
    match rate {
        Some(rate) => format!("open loop: {rate} messages/s fall due, {spread}"),
        None => "closed loop: as fast as replies permit".to_owned(),
    }
}

fn secured(Tls { mode, is_resuming, authorities, server_name }: &Tls) -> String {
    let begin = match mode {
        TlsMode::StartTls => "STARTTLS",
        TlsMode::Implicit => "from the beginning",
    };
    let resumed = if *is_resuming { "sessions resumed where offered" } else { "a full handshake each time" };
    let checked = match authorities {
        Some(path) => format!("certificate checked for {server_name} against {}", path.display()),
        None => format!("any certificate taken for {server_name}"),
    };
    format!("{begin}; {resumed}; {checked}")
}

fn sizes(sizes: &Sizes) -> String {
    match sizes {
        Sizes::Fixed(each) => size(*each),
        Sizes::Range(from, to) => format!("{} to {}", size(*from), size(*to)),
        Sizes::Weighted(sizes) => {
            let sum: f64 = sizes.iter().map(|(_, weight)| weight).sum();
            let part = |(each, weight): &(usize, f64)| {
                format!("{} % of {}", digits(weight * 100.0 / sum), size(*each))
            };
            sizes.iter().map(part).collect::<Vec<_>>().join(", ")
        }
        Sizes::LogNormal { median, sigma, max } => {
            format!("log-normal: median {}, σ {sigma}, at most {}", size(*median), size(*max))
        }
    }
}

fn size(octets: usize) -> String {
    match octets {
        whole if whole > 0 && whole.is_multiple_of(1 << 20) => format!("{} MiB", grouped(whole as u64 >> 20)),
        whole if whole > 0 && whole.is_multiple_of(1 << 10) => format!("{} KiB", grouped(whole as u64 >> 10)),
        other => format!("{} octets", grouped(other as u64)),
    }
}

fn seconds(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn settings_that_were_not_given_are_told_as_well() {
        let settings = settings(&sample::quiet().plan);
        let told =
            |name: &str| settings.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str());
        for (name, value) in [
            ("Target", "127.0.0.1:2525"),
            ("Load", "closed loop: as fast as replies permit"),
            ("Messages a connection", "no limit"),
            ("Goal", "10s"),
            ("Content", "made up, 4 KiB"),
            ("Recipients", "1 × inbox@mx.test"),
            ("TLS", "none"),
            ("Source addresses", "the system's choice"),
            ("Timeout", "1m"),
        ] {
            assert_eq!(told(name), Some(value), "{name}");
        }
        assert_eq!(told("Ledger"), None);
    }

    #[test]
    fn sizes_are_told_in_the_unit_they_are_whole_in() {
        for (text, expected) in [
            ("100", "100 octets"),
            ("2KiB..3MiB", "2 KiB to 3 MiB"),
            ("4KiB*90,1MiB*10", "90.0 % of 4 KiB, 10.0 % of 1 MiB"),
            ("lognormal:20KiB:1.5:50MiB", "log-normal: median 20 KiB, σ 1.5, at most 50 MiB"),
        ] {
            assert_eq!(sizes(&text.parse().unwrap()), expected);
        }
    }
}
