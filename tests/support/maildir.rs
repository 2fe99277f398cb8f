//! Reads a Maildir: what was delivered, taken apart into the fields the gateway added and the content it was given.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One delivered message.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its file.
    pub path: PathBuf,
    /// The text between the brackets of `Return-Path:`, the first line.
    pub return_path: String,
    /// The gateway's own `Received:` field, unfolded, without its name.
    pub received: String,
    /// The octets as they were accepted.
    pub content: Vec<u8>,
}

/// Every message in a folder's `new` and `cur`, and in those of the folders below it. A folder that is not there is empty.
#[track_caller]
pub fn read(folder: &Path) -> Vec<Stored> {
    files(folder).into_iter().filter_map(|file| Stored::read(&file)).collect()
}

/// How many messages there are, without reading them.
pub fn count(folder: &Path) -> usize {
    files(folder).len()
}

/// What the name of a delivered file says of its delivery: `<seconds>.M<µs>P<pid>Q<count>_<message id>.<host>,S=<octets>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// When it began, since 1970 by the wall clock.
    pub began: Duration,
    /// The gateway's process.
    pub pid: u32,
    /// The message.
    pub id: String,
}

/// The deliveries whose files are in a folder.
#[track_caller]
pub fn deliveries(folder: &Path) -> Vec<Delivery> {
    let parse = |name: &str| {
        let (seconds, rest) = name.split_once(".M")?;
        let (micros, rest) = rest.split_once('P')?;
        let (pid, rest) = rest.split_once('Q')?;
        let (_, rest) = rest.split_once('_')?;
        let (id, _) = rest.split_once('.')?;
        let began = Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?);
        Some(Delivery { began, pid: pid.parse().ok()?, id: id.into() })
    };
    let names = files(folder).into_iter().map(|file| file.file_name().unwrap_or_default().to_os_string());
    names
        .map(|name| {
            parse(&name.to_string_lossy()).unwrap_or_else(|| panic!("not a Maildir's name: {name:?}"))
        })
        .collect()
}

/// Files that a delivery has begun and not finished.
pub fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(folder, &["tmp"], &mut found);
    found
}

impl Stored {
    /// Nothing if the file went away between the listing and the reading.
    #[track_caller]
    fn read(file: &Path) -> Option<Self> {
        let octets = match fs::read(file) {
            Err(e) if e.kind() == ErrorKind::NotFound => return None,
            read => read.unwrap_or_else(|e| panic!("{}: {e}", file.display())),
        };
        let line_end = if octets.windows(2).any(|pair| pair == b"\r\n") { "\r\n" } else { "\n" };
        let what = file.display();
        let (return_path, rest) = take_field(&octets, "Return-Path:", line_end)
            .unwrap_or_else(|| panic!("{what} does not begin with Return-Path:"));
        let (received, content) = take_field(rest, "Received:", line_end)
            .unwrap_or_else(|| panic!("{what} has no Received: below Return-Path:"));
        let return_path = return_path.trim();
        let bare = return_path.strip_prefix('<').and_then(|r| r.strip_suffix('>'));
        let bare = bare.unwrap_or_else(|| panic!("{what}: Return-Path: {return_path}"));
        Some(Stored { path: file.into(), return_path: bare.into(), received, content: content.to_vec() })
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(folder, &["new", "cur"], &mut found);
    found.sort();
    found
}

/// Collects the files in every folder below `folder` that has one of these names.
fn walk(folder: &Path, names: &[&str], found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let is_wanted = folder.file_name().is_some_and(|name| names.iter().any(|n| name == *n));
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path(), names, found),
            Ok(_) if is_wanted => found.push(entry.path()),
            _ => {}
        }
    }
}

/// The field at the start of `octets`, unfolded, and what comes after it.
fn take_field<'a>(octets: &'a [u8], name: &str, line_end: &str) -> Option<(String, &'a [u8])> {
    let mut rest = octets.strip_prefix(name.as_bytes())?;
    let mut value = Vec::new();
    loop {
        let end = rest.windows(line_end.len()).position(|w| w == line_end.as_bytes())?;
        value.extend_from_slice(&rest[..end]);
        rest = &rest[end + line_end.len()..];
        if !matches!(rest.first(), Some(b' ' | b'\t')) {
            return Some((String::from_utf8_lossy(&value).trim().to_string(), rest));
        }
    }
}
