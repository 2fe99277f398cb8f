//! The layers and their order: file, environment, flags.
//!
//! Each layer is parsed by itself first, so that a fault is told with the line, the variable or the flag it stands in; then they are
//! laid over each other as TOML tables. What shows only in the whole is told with the place that the key came from last.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::Config;
use super::error::{ConfigError, Fault};
use super::file::File;
use super::transports::TransportKind;

const PREFIX: &str = "INCOMING_";
const SECTIONS: [&str; 12] = [
    "accept",
    "admission",
    "dns",
    "smtp",
    "tls",
    "auth",
    "spool",
    "delivery",
    "notifications",
    "admin",
    "monitor",
    "log",
];
const TOP_LEVEL: [&str; 7] =
    ["hostname", "data", "cores", "shards", "sessions_max", "drain_timeout", "lookups_max"];
/// Longest first: `RETURN_PATH` ends in `PATH`.
const TRANSPORT_KEYS: [&str; 7] =
    ["return_path", "path", "type", "concurrency", "rate", "breaker_failures", "breaker_interval"];

/// Where a configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file, if one was named.
    pub file: Option<PathBuf>,
    /// The environment; variables that do not begin with `INCOMING_` are of no interest.
    pub environment: Vec<(OsString, OsString)>,
    /// The command line.
    pub flags: Flags,
}

/// What the command line may override, as typed.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--listen`, each time it was given; replaces all listeners.
    pub listen: Vec<String>,
    /// `--data`.
    pub data: Option<String>,
    /// `--shards`; replaces `cores`.
    pub shards: Option<String>,
    /// `--cores`; replaces `shards`.
    pub cores: Option<String>,
    /// `--log-format`.
    pub log_format: Option<String>,
    /// `--log-level`.
    pub log_level: Option<String>,
}

/// What a program says that embeds the gateway. It stands over what its sources say, but for the text, which is a file's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    /// A configuration, instead of a file.
    pub text: Option<String>,
    /// Where to listen; replaces all listeners.
    pub listen: Vec<String>,
    /// Keys, as `spool.queue`, and what they are to be, as in the environment.
    pub settings: Vec<(String, String)>,
    /// The transports that it brings along. Where the configuration has none, the first is for all recipients.
    pub transports: Vec<Brought>,
}

/// A transport that a program brings along.
#[derive(Clone, Debug)]
pub(crate) struct Brought {
    pub name: String,
    /// Attempts at a time, where nothing is said.
    pub concurrency: usize,
}

/// What the machine says where nobody else does.
#[derive(Clone, Debug)]
pub struct System {
    /// Its host name.
    pub hostname: String,
    /// Cores this process may use.
    pub cores_count: usize,
    /// Files this process may have open.
    pub descriptors_max: u64,
}

impl System {
    /// This machine and process.
    pub fn here() -> Self {
        System {
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            cores_count: std::thread::available_parallelism().map_or(1, usize::from),
            // No limit is as good as the largest.
            descriptors_max: rustix::process::getrlimit(rustix::process::Resource::Nofile)
                .current
                .unwrap_or(u64::MAX),
        }
    }
}

/// See [`Config::load`].
pub fn load(sources: &Sources, program: &Program, system: &System) -> Result<Config, ConfigError> {
    let mut layers = Layers::default();
    match (&program.text, &sources.file) {
        (Some(text), _) => layers.read_text("the program's configuration".into(), text.clone())?,
        (None, Some(path)) => layers.read_file(path)?,
        (None, None) => {}
    }
    let mut variables: Vec<_> =
        sources.environment.iter().filter_map(|(name, text)| variable(name, text)).collect();
    variables.sort();
    for (name, text) in variables {
        layers.lay_variable(name, text)?;
    }
    layers.lay_flags(&sources.flags)?;
    layers.lay_program(program)?;
    let file = File::deserialize(Value::Table(layers.table.clone())).map_err(|e| ConfigError {
        place: None,
        key: None,
        words: e.message().into(),
        is_usage: false,
    })?;
    let config = file.resolve(system).map_err(|fault| layers.locate(fault))?;
    check_embedded(&config, &program.transports).map_err(|fault| layers.locate(fault))?;
    Ok(config)
}

/// What the configuration leaves to the program is there, and the other way round.
fn check_embedded(config: &Config, brought: &[Brought]) -> Result<(), Fault> {
    for (name, transport) in &config.transports {
        let is_brought = brought.iter().any(|brought| brought.name == *name);
        let is_embedded = matches!(transport.kind, TransportKind::Embedded(_));
        let words = match (is_embedded, is_brought) {
            (true, false) => {
                "\"embedded\" is what a program brings along that has the gateway in it, and this one brings none of this name: \
                 expected another type"
            }
            (false, true) => "expected \"embedded\", for the program brings this transport along",
            _ => continue,
        };
        return Err(Fault::new(format!("transport.{name}.type"), words));
    }
    Ok(())
}

/// The name and the text of a variable that is ours; the text is `None` where it is not UTF-8.
fn variable(name: &OsString, text: &OsString) -> Option<(String, Option<String>)> {
    let name = name.to_string_lossy();
    name.starts_with(PREFIX).then(|| (name.into_owned(), text.to_str().map(String::from)))
}

#[derive(Default)]
struct Layers {
    /// What the layers so far say together.
    table: Table,
    /// The file's name and text.
    file: Option<(String, String)>,
    /// By key: the variable or flag that overrode it last.
    overrides: BTreeMap<String, String>,
}

impl Layers {
    fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let name = path.display().to_string();
        match fs::read_to_string(path) {
            Ok(text) => self.read_text(name, text),
            Err(e) => {
                let words = format!("cannot read it: {e}");
                Err(ConfigError { place: Some(name), key: None, words, is_usage: false })
            }
        }
    }

    fn read_text(&mut self, name: String, text: String) -> Result<(), ConfigError> {
        let fault = |line: Option<usize>, key: Option<String>, words: String| ConfigError {
            place: Some(line.map_or(name.clone(), |line| format!("{name}:{line}"))),
            key,
            words,
            is_usage: false,
        };
        let line_at = |e: &toml::de::Error| e.span().map(|span| line_at(&text, span.start));
        let deserializer = toml::Deserializer::parse(&text)
            .map_err(|e| fault(line_at(&e), None, e.message().trim().into()))?;
        serde_path_to_error::deserialize::<_, File>(deserializer).map_err(|e| {
            let line = line_at(e.inner());
            fault(line, key_of(&e), e.inner().message().trim().into())
        })?;
        self.table = toml::from_str(&text).expect("it was parsed a moment ago");
        self.file = Some((name, text));
        Ok(())
    }

    fn lay_variable(&mut self, name: String, text: Option<String>) -> Result<(), ConfigError> {
        let fault =
            |words: String| ConfigError { place: Some(name.clone()), key: None, words, is_usage: false };
        let text = text.ok_or_else(|| fault("expected UTF-8".into()))?;
        let Some(keys) = keys_of_variable(&name) else {
            let known: Vec<_> =
                TOP_LEVEL.iter().map(|key| format!("{PREFIX}{}", key.to_uppercase())).collect();
            let sections = SECTIONS.map(str::to_uppercase).join(", ");
            return Err(fault(format!(
                "unknown variable, expected {PREFIX}LISTEN, {}, {PREFIX}<SECTION>_<KEY> with one of the sections {sections}, \
                 or {PREFIX}TRANSPORT_<NAME>_<KEY>",
                known.join(", ")
            )));
        };
        match keys[0].as_str() {
            "listen" => self.lay_listeners(&name, text.split(',').map(str::trim), false),
            _ => self.lay(&name, &keys, Value::String(text), false),
        }
    }

    fn lay_flags(&mut self, flags: &Flags) -> Result<(), ConfigError> {
        if !flags.listen.is_empty() {
            self.lay_listeners("--listen", flags.listen.iter().map(String::as_str), true)?;
        }
        let flags: [(&str, &[&str], &Option<String>); 5] = [
            ("--data", &["data"], &flags.data),
            ("--shards", &["shards"], &flags.shards),
            ("--cores", &["cores"], &flags.cores),
            ("--log-format", &["log", "format"], &flags.log_format),
            ("--log-level", &["log", "level"], &flags.log_level),
        ];
        for (name, keys, text) in flags {
            if let Some(text) = text {
                let keys: Vec<_> = keys.iter().map(|key| key.to_string()).collect();
                self.lay(name, &keys, Value::String(text.clone()), true)?;
            }
        }
        Ok(())
    }

    fn lay_program(&mut self, program: &Program) -> Result<(), ConfigError> {
        if !program.listen.is_empty() {
            self.lay_listeners("listen", program.listen.iter().map(String::as_str), false)?;
        }
        for (key, text) in &program.settings {
            let keys: Vec<_> = parts(key).into_iter().map(String::from).collect();
            self.lay(&format!("set {key}"), &keys, Value::String(text.clone()), false)?;
        }
        let brought = |name: &String| program.transports.iter().any(|brought| brought.name == *name);
        let transports = self.table.entry("transport").or_insert_with(|| Value::Table(Table::new()));
        let transports = transports.as_table_mut().expect("what was laid is a file's");
        let has_own = transports.keys().any(|name| !brought(name));
        for Brought { name, concurrency } in &program.transports {
            let settings = transports.entry(name).or_insert_with(|| Value::Table(Table::new()));
            let settings = settings.as_table_mut().expect("what was laid is a file's");
            settings.entry("type").or_insert_with(|| "embedded".into());
            settings.entry("concurrency").or_insert(Value::Integer(*concurrency as i64));
        }
        if let (Some(first), false) = (program.transports.first(), has_own) {
            let delivery = self.table.entry("delivery").or_insert_with(|| Value::Table(Table::new()));
            let delivery = delivery.as_table_mut().expect("what was laid is a file's");
            delivery.entry("transport").or_insert_with(|| first.name.clone().into());
        }
        Ok(())
    }

    fn lay_listeners<'a>(
        &mut self,
        place: &str,
        addresses: impl Iterator<Item = &'a str>,
        is_usage: bool,
    ) -> Result<(), ConfigError> {
        let listener = |address: &str| {
            Value::Table(Table::from_iter([("address".to_string(), Value::String(address.into()))]))
        };
        self.lay(place, &["listener".into()], Value::Array(addresses.map(listener).collect()), is_usage)
    }

    /// Lays one value over what the layers below say.
    fn lay(&mut self, place: &str, keys: &[String], value: Value, is_usage: bool) -> Result<(), ConfigError> {
        let mut alone = Table::new();
        put(&mut alone, keys, value.clone());
        if let Err(e) = File::deserialize(Value::Table(alone)) {
            let words = e.message().trim().to_string();
            return Err(ConfigError { place: Some(place.into()), key: None, words, is_usage });
        }
        // Of two ways to say one thing the upper layer's counts; said in one layer, they are left to be found at fault.
        for (this, other) in [("cores", "shards"), ("shards", "cores")] {
            let in_same_layer = |place: &String| place.starts_with("--") == is_usage;
            if keys[0] == this && !self.overrides.get(other).is_some_and(in_same_layer) {
                self.table.remove(other);
            }
        }
        put(&mut self.table, keys, value);
        self.overrides.insert(keys.join("."), place.into());
        Ok(())
    }

    /// Where a fault of the whole stands.
    fn locate(&self, fault: Fault) -> ConfigError {
        if let Some(place) = self.overrides.get(&fault.key).cloned() {
            let is_usage = place.starts_with("--");
            return ConfigError { place: Some(place), key: None, words: fault.words, is_usage };
        }
        let in_file = |(name, text): &(String, String)| {
            line_of(text, &fault.key).map_or(name.clone(), |line| format!("{name}:{line}"))
        };
        let place = self.file.as_ref().map(in_file);
        ConfigError { place, key: Some(fault.key), words: fault.words, is_usage: false }
    }
}

fn keys_of_variable(name: &str) -> Option<Vec<String>> {
    let rest = name.strip_prefix(PREFIX)?;
    if rest.bytes().any(|c| c.is_ascii_lowercase()) {
        return None;
    }
    let rest = rest.to_ascii_lowercase();
    let keys = |keys: &[&str]| Some(keys.iter().map(|key| key.to_string()).collect());
    if rest == "listen" || TOP_LEVEL.contains(&rest.as_str()) {
        return keys(&[&rest]);
    }
    let (section, key) = rest.split_once('_')?;
    match section {
        "transport" => TRANSPORT_KEYS.iter().find_map(|known| {
            let name = key.strip_suffix(known)?.strip_suffix('_')?;
            keys(&["transport", name, known])
        }),
        _ if SECTIONS.contains(&section) => keys(&[section, key]),
        _ => None,
    }
}

fn put(table: &mut Table, keys: &[String], value: Value) {
    let (last, sections) = keys.split_last().expect("a key has a name");
    let mut inner = table;
    for section in sections {
        let entry = inner.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        inner = entry.as_table_mut().expect("the file was parsed: its sections are tables");
    }
    inner.insert(last.clone(), value);
}

/// The key of a fault, without the part that serde cannot name.
fn key_of<E>(error: &serde_path_to_error::Error<E>) -> Option<String> {
    let path = error.path().to_string();
    let key = path.trim_end_matches('?').trim_end_matches('.');
    (!key.is_empty()).then(|| key.to_string())
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|c| **c == b'\n').count()
}

/// The parts of a key, between dots that are not in quotes; without the quotes.
fn parts(key: &str) -> Vec<&str> {
    let mut is_quoted = false;
    let is_dot = |c: char| {
        is_quoted ^= c == '"';
        c == '.' && !is_quoted
    };
    key.split(is_dot).map(|part| part.trim_matches('"')).collect()
}

/// The line of a key, or of the section it belongs to. `listener[1].tls` is a key of the second listener.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let mut table = root.get_ref();
    let mut line = None;
    for part in parts(key) {
        let (name, index) = part.split_once('[').unwrap_or((part, ""));
        let Some((name, value)) = table.iter().find(|(key, _)| key.get_ref().as_ref() == name) else {
            break;
        };
        line = Some(line_at(text, name.span().start));
        let mut inner = value;
        if let (DeValue::Array(items), Ok(index)) = (value.get_ref(), index.trim_end_matches(']').parse()) {
            let index: usize = index;
            inner = items.get(index)?;
            line = Some(line_at(text, inner.span().start));
        }
        match inner.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    line
}
