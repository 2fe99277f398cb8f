//! The configuration as its user meets it: files, variables, flags, and the words about what is wrong.

use std::path::Path;

use incoming::config::policies::PolicyKind;
use incoming::config::transports::TransportKind;
use incoming::config::{Config, ConfigError, Flags, Placement, Sources, System};

const FAULTS: &str = include_str!("configuration/faults.txt");
const REFERENCE: &str = include_str!("../docs/CONFIGURATION.md");

fn system() -> System {
    System { hostname: "vm".into(), cores_count: 4, descriptors_max: 20_000 }
}

/// A configuration in the words of the table: lines of a file, and `$` lines.
fn load(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let (orders, lines): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with("$ "));
    let mut sources = Sources::default();
    if !lines.is_empty() {
        std::fs::write(path, lines.join("\n")).unwrap();
        sources.file = Some(path.into());
    }
    for order in orders {
        match order.split_once(' ').unwrap().1.split_once(' ').unwrap() {
            ("env", assignment) => {
                let (name, text) = assignment.split_once('=').unwrap();
                sources.environment.push((name.into(), text.into()));
            }
            ("flag", flag) => set(&mut sources.flags, flag.split_once(' ').unwrap()),
            _ => panic!("{order}"),
        }
    }
    Config::load(&sources, &system())
}

fn set(flags: &mut Flags, (name, text): (&str, &str)) {
    let text = text.to_string();
    match name {
        "--listen" => flags.listen.push(text),
        "--data" => flags.data = Some(text),
        "--shards" => flags.shards = Some(text),
        "--cores" => flags.cores = Some(text),
        "--log-format" => flags.log_format = Some(text),
        "--log-level" => flags.log_level = Some(text),
        _ => panic!("{name}"),
    }
}

fn loaded(text: &str) -> Config {
    let folder = tempfile::tempdir().unwrap();
    load(text, &folder.path().join("incoming.toml")).unwrap_or_else(|e| panic!("{text}\n{e}"))
}

#[test]
fn every_fault_is_told_where_it_stands_and_with_what_would_be_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("incoming.toml");
    let mut wrong = String::new();
    let cases: Vec<_> = FAULTS.split("\n== ").skip(1).collect();
    assert!(cases.len() > 40);
    for case in cases {
        let (name, rest) = case.split_once('\n').unwrap();
        let (text, expected) = rest.split_once("=> ").unwrap();
        let said = match load(text.trim_end(), &path) {
            Ok(_) => "nothing".into(),
            Err(e) => e.to_string().replace(path.to_str().unwrap(), "FILE"),
        };
        let types: Vec<_> = PolicyKind::WORDS.iter().map(|word| format!("{word:?}")).collect();
        if said != expected.trim_end().replace("TYPES", &types.join(", ")) {
            wrong.push_str(&format!("== {name}\n=> {said}\n"));
        }
    }
    assert!(wrong.is_empty(), "said otherwise:\n{wrong}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let sources = Sources { file: Some("/nonexistent/incoming.toml".into()), ..Sources::default() };
    let e = Config::load(&sources, &system()).unwrap_err();
    assert_eq!(
        e.to_string(),
        "/nonexistent/incoming.toml: cannot read it: No such file or directory (os error 2)"
    );
}

#[test]
fn a_host_name_that_is_no_domain_must_be_given() {
    for hostname in ["", "my_laptop", "bücher"] {
        let system = System { hostname: hostname.into(), ..system() };
        let e = Config::load(&Sources::default(), &system).unwrap_err().to_string();
        assert_eq!(
            e,
            format!(
                "hostname: the system's host name is not a domain: {hostname:?}; expected a host name such as \"mx.example.com\""
            )
        );
        let mut sources = Sources::default();
        sources.environment.push(("INCOMING_HOSTNAME".into(), "mx.example.com".into()));
        assert_eq!(Config::load(&sources, &system).unwrap().hostname.as_str(), "mx.example.com");
    }
}

#[test]
fn only_what_was_typed_is_a_usage_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("incoming.toml");
    for (text, is_usage) in [
        ("$ flag --shards 0", true),
        ("$ flag --data \n", true),
        ("$ env INCOMING_SHARDS=0", false),
        ("shards = 0", false),
    ] {
        let fault = load(text, &path);
        assert_eq!(fault.is_err_and(|e| e.is_usage()), is_usage, "{text}");
    }
}

#[test]
fn without_a_word_it_serves_this_machine() {
    let config = loaded("");
    assert_eq!(
        config.listeners.iter().map(|l| l.address.to_string()).collect::<Vec<_>>(),
        ["127.0.0.1:2525"]
    );
    assert_eq!(config.cores, Placement::Shards(4));
    assert!(config.accept.any && config.accept.domains.is_empty());
    assert_eq!(config.spool_dir(), Path::new("incoming-data/spool"));
    assert_eq!(config.dead_dir(), Path::new("incoming-data/dead"));
    let TransportKind::Maildir(maildir) = &config.transports["store"].kind else { panic!() };
    assert_eq!((maildir.path().to_string().as_str(), maildir.return_path), ("incoming-data/maildir", true));
    let banner = config.banner();
    for word in
        ["127.0.0.1:2525", "4 shards", "any recipient", "data in incoming-data", "incoming-data/maildir"]
    {
        assert!(banner.contains(word), "{word}: {banner}");
    }
}

#[test]
fn segments_in_memory_are_small_enough_for_three_in_a_shards_share() {
    let table = [
        // (queue, memory_queue_size, shards, octets of a segment)
        ("disk", "8 MiB", 4, 64 << 20),
        ("memory", "256 MiB", 1, 64 << 20),
        ("memory", "256 MiB", 2, (128 << 20) / 3 / 4096 * 4096),
        ("memory", "24 MiB", 1, 8 << 20),
    ];
    for (queue, size, shards, segment_size) in table {
        let config = loaded(&format!(
            "shards = {shards}\n[smtp]\nmessage_size_max = '1 MiB'\n[spool]\nqueue = '{queue}'\nmemory_queue_size = '{size}'"
        ));
        assert_eq!(config.spool.segment_size_on(shards), segment_size, "{queue} {size} {shards}");
        assert_eq!(config.banner().contains("queue is in memory"), queue == "memory", "{}", config.banner());
    }
}

#[test]
fn flags_override_the_environment_and_the_environment_the_file() {
    let file = "data = \"f\"\ncores = \"0-3,8\"\n[log]\nlevel = \"warn\"\n[smtp]\nerrors_max = 5\n";
    type Reading = fn(&Config) -> String;
    let table: [(&str, Reading, &str); 14] = [
        ("", |c| c.data.display().to_string(), "f"),
        ("$ env INCOMING_DATA=e", |c| c.data.display().to_string(), "e"),
        ("$ env INCOMING_DATA=e\n$ flag --data g", |c| c.data.display().to_string(), "g"),
        ("$ flag --data g", |c| format!("{:?}", c.transports), "PathTemplate { text: \"g/maildir\""),
        ("", |c| format!("{:?}", c.cores), "Cores([0, 1, 2, 3, 8])"),
        ("$ env INCOMING_SHARDS=2", |c| format!("{:?}", c.cores), "Shards(2)"),
        ("$ env INCOMING_SHARDS=2\n$ flag --cores 7", |c| format!("{:?}", c.cores), "Cores([7])"),
        (
            "$ flag --log-level debug\n$ env INCOMING_LOG_LEVEL=error",
            |c| format!("{:?}", c.log.level),
            "Debug",
        ),
        ("$ env INCOMING_SMTP_ERRORS_MAX=7", |c| c.smtp.errors_max.to_string(), "7"),
        ("$ env INCOMING_SMTP_COMMAND_TIMEOUT=90s", |c| format!("{:?}", c.smtp.command_timeout), "90s"),
        (
            "$ env INCOMING_ACCEPT_DOMAINS=Example.com, b.example",
            |c| format!("{:?} {}", c.accept.domains, c.accept.any),
            "[example.com, b.example] false",
        ),
        (
            "$ env INCOMING_LISTEN=127.0.0.1:1, [::1]:2",
            |c| format!("{:?}", c.listeners.iter().map(|l| l.address.port()).collect::<Vec<_>>()),
            "[1, 2]",
        ),
        (
            "$ env INCOMING_TRANSPORT_STORE_RETURN_PATH=false",
            |c| format!("{:?}", c.transports),
            "return_path: false",
        ),
        ("$ env INCOMING_TRANSPORT_STORE_TYPE=discard", |c| format!("{:?}", c.transports), "Discard"),
    ];
    for (orders, read, expected) in table {
        let config = loaded(&format!("{file}{orders}"));
        assert!(read(&config).contains(expected), "{orders}: {} is not {expected}", read(&config));
    }
}

#[test]
fn what_check_prints_is_the_same_configuration() {
    let full = "
        hostname = 'mx.example.com'
        data = '/var/lib/incoming'
        cores = '8,0-3'
        drain_timeout = '1m 30s'
        [[listener]]
        address = '0.0.0.0:25'
        [[listener]]
        address = '[::]:25'
        backlog = 7
        tls = 'required'
        client_certificates = 'request'
        auth = 'required'
        proxy_from = ['192.0.2.0/24', '2001:db8::1']
        xclient_from = ['192.0.2.1']
        [[listener]]
        address = '[::1]:24'
        protocol = 'lmtp'
        tls = 'disabled'
        [tls]
        certificates = [{ chain = 'c.pem', key = 'k.pem' }, { chain = 'd.pem', key = 'd.pem' }]
        min_version = '1.3'
        client_authorities = 'a.pem'
        handshake_timeout = '3s'
        handshakes_max = 7
        [auth]
        credentials = 'credentials'
        threads = 2
        queue_max = 3
        [accept]
        domains = ['example.com', 'bücher.example', '[192.0.2.1]']
        [admission]
        max_connections_per_ip = 7
        ban_after = 3
        ban_time = '1h 1s'
        exempt = ['192.0.2.0/24', '2001:db8::/32']
        [smtp]
        message_size_max = '10MB'
        content_rate_min = 0
        normalise_bare_line_ends_from = ['192.0.2.0/24', '2001:db8::1']
        [spool]
        durability = 'none'
        segment_size = '9.5 MiB'
        [delivery]
        transport = 'per-user'
        queue_lifetime = '2days 3h'
        [transport.per-user]
        path = '/mail/{domain}/{local}'
        return_path = false
        concurrency = 3
        [transport.nowhere]
        type = 'discard'
        rate = 100
        breaker_failures = 0
        [[route]]
        recipients = ['boss@example.com', '*.example.org']
        tags = ['vip']
        to = ['nowhere', 'per-user']
        [[route]]
        to = ['nowhere']
        also = true
        [log]
        format = 'json'";
    let in_memory = "shards = 2\n[spool]\nqueue = 'memory'\nmemory_queue_size = '1000 MB'";
    for text in ["", "[accept]\nany = false", full, in_memory] {
        let config = loaded(text);
        let printed = config.to_toml();
        assert_eq!(loaded(&printed), config, "{printed}");
        assert_eq!(loaded(&printed).to_toml(), printed);
    }
}

#[test]
fn every_key_and_its_default_are_documented() {
    let printed: toml::Table = toml::from_str(&loaded("").to_toml()).unwrap();
    let mut missing = Vec::new();
    for (key, value) in &printed {
        let inner = match value {
            toml::Value::Table(table) if key == "transport" => table["store"].as_table(),
            toml::Value::Table(table) => Some(table),
            toml::Value::Array(tables) => tables[0].as_table(),
            _ => None,
        };
        let Some(inner) = inner else {
            missing.extend((!is_documented(key, key, value)).then(|| key.clone()));
            continue;
        };
        missing.extend(
            inner.iter().filter(|(k, v)| !is_documented(key, k, v)).map(|(k, _)| format!("{key}.{k}")),
        );
    }
    assert!(missing.is_empty(), "not in docs/CONFIGURATION.md as | `key` | `default` |: {missing:?}");
}

/// Whether a row of the reference names the key and the default, or says in words what the default depends on.
fn is_documented(section: &str, key: &str, default: &toml::Value) -> bool {
    let depends = ["hostname", "sessions_max", "shards", "workers", "any", "address", "tls"].contains(&key)
        || section == "transport";
    let row_start = match depends {
        true => format!("| `{key}` | "),
        false => format!("| `{key}` | `{default}` | "),
    };
    REFERENCE.lines().any(|line| line.starts_with(&row_start))
}
