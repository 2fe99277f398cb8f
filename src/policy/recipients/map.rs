//! Maps: the addresses that are ours and what stands for some of them, as files say.
//!
//! A line is one of these; `#` begins a comment, at the start of a line or after a space:
//!
//! ```text
//! alice@example.com                                        an address
//! info@example.com        alice@example.com, bob@b.example an alias: the targets stand for it
//! @example.com                                             every other address of the domain; targets may follow
//! example.com                                              the domain is ours, and only what is listed exists in it
//! /^sales-[0-9]+@example\.com$/                            a regular expression of whole addresses; targets may follow
//! ```
//!
//! What decides about a recipient, in this order: its address, its address without the detail (`alice+detail`), the first expression
//! that matches, the domain's catch-all.
//!
//! Invariants:
//! - a [`Maps`] is whole: a line that cannot be read, or aliases that lead round in a circle, give none at all;
//! - an expression is asked about domains that are ours by another line or the configuration only: `/.*/` opens no relay;
//! - the targets of an alias are final: aliases among them were followed when the file was read. What is asked per recipient is bounded
//!   and, for a plain address in ASCII, allocates nothing.
//!
//! Addresses are compared without regard to the case of ASCII letters. By RFC 5321 §2.4 a local part is its domain's business, and here the
//! domain's owner says how it is: nobody has two mailboxes that differ in case only, and peers write it as they like. Quoted local parts
//! are compared by what is in the quotes (§4.1.2: the quotes are no part of the name). Beyond ASCII, letters are compared as they are.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use hashbrown::HashTable;
use regex::{Regex, RegexBuilder};

use crate::mail::{Domain, ForwardPath, Mailbox};

/// Octets of all files together at most, so that 32 bits say where a key is.
const SIZE_MAX: usize = 1 << 30;
/// Targets of one alias at most, those of its aliases included: so many recipients a message may have for certain (RFC 5321 §4.5.3.1.8).
const TARGETS_MAX: usize = 100;
/// Aliases of aliases, one after another, at most.
const DEPTH_MAX: usize = 10;
/// Expressions at most: each may be asked about each recipient.
const EXPRESSIONS_MAX: usize = 100;
/// What a compiled expression may take, octets.
const EXPRESSION_SIZE_MAX: usize = 1 << 20;
/// A local part of 64 octets, the `@`, and a domain of 255 (RFC 5321 §4.5.3.1).
const KEY_SIZE_MAX: usize = 64 + 1 + 255;
/// Ends each key: no address holds it.
const KEY_END: u8 = b'\n';

/// What is wrong in a map, and where: `FILE:LINE: words`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapFault {
    file: PathBuf,
    line: Option<u32>,
    words: String,
}

impl fmt::Display for MapFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.words)
    }
}

impl std::error::Error for MapFault {}

/// What maps say of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing<'a> {
    /// It is ours.
    Listed,
    /// These stand for it.
    Replaced(&'a [ForwardPath]),
    /// The domain is ours, and there is no such address in it.
    Unknown,
    /// The domain is not ours.
    Foreign,
}

/// Where an alias' targets are, or that there are none.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Targets(u32);

impl Targets {
    const NONE: Targets = Targets(u32::MAX);
}

/// Eight octets for each address: see [`Maps::text`].
struct Entry {
    at: u32,
    targets: Targets,
}

#[derive(Clone, Copy, Default)]
struct OwnDomain {
    /// A line of a map is about the domain or an address of it.
    is_mapped: bool,
    catch_all: Option<Targets>,
}

/// What all maps say together, and the domains of the configuration.
pub struct Maps {
    /// The keys of `entries`, one after another, each with its end.
    text: Vec<u8>,
    entries: HashTable<Entry>,
    hasher: RandomState,
    domains: HashMap<Domain, OwnDomain>,
    expressions: Vec<(Regex, Targets)>,
    targets: Vec<Box<[ForwardPath]>>,
    separator: Option<u8>,
    files_count: usize,
}

impl Maps {
    /// Reads `files`; `domains` are ours whatever they say. What follows `separator` in a local part is a detail.
    pub fn load(files: &[PathBuf], domains: &[Domain], separator: Option<u8>) -> Result<Maps, MapFault> {
        let mut reader = Reader::new(domains, separator);
        for (n, file) in files.iter().enumerate() {
            let fault = |words: String| MapFault { file: file.clone(), line: None, words };
            let text = fs::read(file).map_err(|e| fault(format!("cannot read it: {e}")))?;
            reader.read(n, file, &text)?;
        }
        let mut maps = reader.finish(files)?;
        maps.files_count = files.len();
        Ok(maps)
    }

    /// Of no file.
    #[cfg(test)]
    pub fn of_domains(domains: &[Domain]) -> Maps {
        Maps::load(&[], domains, None).expect("no file, no fault")
    }

    /// How many files were read.
    pub fn files_count(&self) -> usize {
        self.files_count
    }

    /// How many addresses are listed.
    pub fn addresses_count(&self) -> usize {
        self.entries.len()
    }

    /// Whether mail for `domain`, in its canonical spelling, is ours.
    pub fn has_domain(&self, domain: &str) -> bool {
        self.domains.contains_key(domain)
    }

    /// What is said of this address. The domain is in its canonical spelling.
    pub fn find(&self, local: &str, domain: &str) -> Listing<'_> {
        let Some(own) = self.domains.get(domain) else { return Listing::Foreign };
        if !own.is_mapped && self.expressions.is_empty() {
            return Listing::Listed;
        }
        match self.find_targets(local, domain, own) {
            None if own.is_mapped => Listing::Unknown,
            // A domain that no map is about takes every local part.
            None | Some(Targets::NONE) => Listing::Listed,
            Some(Targets(n)) => Listing::Replaced(&self.targets[n as usize]),
        }
    }

    /// `None` where nothing is said of the address.
    fn find_targets(&self, local: &str, domain: &str, own: &OwnDomain) -> Option<Targets> {
        let mut room = [0; KEY_SIZE_MAX];
        let (key, local_size) = write_key(&mut room, local, domain)?;
        if let Some(targets) = self.exact(key) {
            return Some(targets);
        }
        if let Some(size) = self.size_without_detail(&key[..local_size]) {
            let mut room = [0; KEY_SIZE_MAX];
            let rest = &key[local_size..];
            room[..size].copy_from_slice(&key[..size]);
            room[size..][..rest.len()].copy_from_slice(rest);
            if let Some(targets) = self.exact(&room[..size + rest.len()]) {
                return Some(targets);
            }
        }
        let text = std::str::from_utf8(key).ok()?;
        let matching = self.expressions.iter().find(|(expression, _)| expression.is_match(text));
        matching.map(|(_, targets)| *targets).or(own.catch_all)
    }

    fn size_without_detail(&self, local: &[u8]) -> Option<usize> {
        let separator = self.separator?;
        // `+x` is a name, and no detail of nobody.
        local.iter().skip(1).position(|c| *c == separator).map(|at| at + 1)
    }

    fn exact(&self, key: &[u8]) -> Option<Targets> {
        let entry = self.entries.find(self.hasher.hash_one(key), |entry| self.is_at(entry.at, key))?;
        Some(entry.targets)
    }

    fn is_at(&self, at: u32, key: &[u8]) -> bool {
        let rest = &self.text[at as usize..];
        rest.starts_with(key) && rest[key.len()] == KEY_END
    }
}

/// Writes what an address is compared by, and says how much of it is the local part. `None` where it is longer than any address.
fn write_key<'r>(room: &'r mut [u8; KEY_SIZE_MAX], local: &str, domain: &str) -> Option<(&'r [u8], usize)> {
    let inner = local.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let mut size = 0;
    let mut is_escaped = false;
    for octet in inner.unwrap_or(local).bytes() {
        if inner.is_some() && octet == b'\\' && !is_escaped {
            is_escaped = true;
            continue;
        }
        is_escaped = false;
        *room.get_mut(size)? = octet.to_ascii_lowercase();
        size += 1;
    }
    let local_size = size;
    for octet in std::iter::once(b'@').chain(domain.bytes()) {
        *room.get_mut(size)? = octet;
        size += 1;
    }
    Some((&room[..size], local_size))
}

/// Where a line is: the number of its file, and its own.
type Place = (usize, u32);

/// An alias as it was read.
struct Alias {
    place: Place,
    given: Vec<Mailbox>,
}

/// Maps while they are read. Until the end, [`Targets`] are numbers of `aliases`.
struct Reader {
    maps: Maps,
    aliases: Vec<Alias>,
    size: usize,
}

impl Reader {
    fn new(domains: &[Domain], separator: Option<u8>) -> Reader {
        let maps = Maps {
            text: Vec::new(),
            entries: HashTable::new(),
            hasher: RandomState::new(),
            domains: domains.iter().map(|domain| (domain.clone(), OwnDomain::default())).collect(),
            expressions: Vec::new(),
            targets: Vec::new(),
            separator,
            files_count: 0,
        };
        Reader { maps, aliases: Vec::new(), size: 0 }
    }

    fn read(&mut self, n: usize, file: &Path, text: &[u8]) -> Result<(), MapFault> {
        let fault = |line, words| MapFault { file: file.into(), line, words };
        self.size += text.len();
        if self.size > SIZE_MAX {
            return Err(fault(None, format!("maps of more than {} MiB are not read", SIZE_MAX >> 20)));
        }
        let (maps, lines) = (&mut self.maps, memchr::memchr_iter(b'\n', text).count() + 1);
        maps.text.reserve_exact(text.len());
        maps.entries.reserve(lines, |entry| hash(&maps.hasher, &maps.text, entry));
        for (line, octets) in (1..).zip(text.split(|c| *c == b'\n')) {
            let read = match std::str::from_utf8(octets) {
                Ok(text) => self.read_line(text, (n, line)),
                Err(_) => Err("expected UTF-8".into()),
            };
            read.map_err(|words| fault(Some(line), words))?;
        }
        Ok(())
    }

    fn read_line(&mut self, line: &str, place: Place) -> Result<(), String> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix('/') {
            return self.read_expression(rest, place);
        }
        let mut words = words(line)?.into_iter();
        let first =
            words.next().ok_or("expected an address, a domain or an expression before the targets")?;
        let mut targets = || self.alias(place, words.by_ref());
        if let Some(domain) = first.strip_prefix('@') {
            let domain = parse_domain(domain)?;
            let targets = targets()?;
            let own = self.maps.domains.entry(domain).or_default();
            own.is_mapped = true;
            return match own.catch_all.replace(targets) {
                Some(other) if (other, targets) != (Targets::NONE, Targets::NONE) => Err(twice(first)),
                _ => Ok(()),
            };
        }
        if !first.contains('@') {
            let domain = parse_domain(first)?;
            if targets()? != Targets::NONE {
                return Err(format!("a domain alone has no targets: write @{first} for every address of it"));
            }
            self.maps.domains.entry(domain).or_default().is_mapped = true;
            return Ok(());
        }
        let address = parse_address(first)?;
        if is_route(address.local_part()) {
            return Err(format!("{first} asks to be sent on, and such recipients are never accepted"));
        }
        let targets = targets()?;
        self.add_address(&address, targets).map_err(|()| twice(first))
    }

    fn add_address(&mut self, address: &Mailbox, targets: Targets) -> Result<(), ()> {
        let maps = &mut self.maps;
        let domain = address.canonical_domain();
        match maps.domains.get_mut(&*domain) {
            Some(own) => own.is_mapped = true,
            None => {
                let domain = Domain::parse(&domain, true).expect("it was parsed as part of an address");
                maps.domains.insert(domain, OwnDomain { is_mapped: true, catch_all: None });
            }
        }
        let mut room = [0; KEY_SIZE_MAX];
        let (key, _) = write_key(&mut room, address.local_part(), &domain).ok_or(())?;
        if let Some(other) = maps.exact(key) {
            // Lists made of several have an address twice; what stands for it must be said once.
            return if (other, targets) == (Targets::NONE, Targets::NONE) { Ok(()) } else { Err(()) };
        }
        let at = u32::try_from(maps.text.len()).expect("the size is bounded");
        maps.text.extend_from_slice(key);
        maps.text.push(KEY_END);
        let Maps { text, entries, hasher, .. } = maps;
        entries.insert_unique(hasher.hash_one(key), Entry { at, targets }, |e| hash(hasher, text, e));
        Ok(())
    }

    /// `rest` is what follows the first slash.
    fn read_expression(&mut self, rest: &str, place: Place) -> Result<(), String> {
        let mut is_escaped = false;
        let is_end = |c: char| {
            let is_end = c == '/' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            is_end
        };
        let end = rest.find(is_end).ok_or("expected a slash at the end of the expression")?;
        let (expression, rest) = (&rest[..end], &rest[end + 1..]);
        if self.maps.expressions.len() == EXPRESSIONS_MAX {
            return Err(format!("expected at most {EXPRESSIONS_MAX} expressions"));
        }
        // By itself first: a bracket too many must not close ours.
        let failed = |e: regex::Error| format!("/{expression}/ is no expression: {}", in_one_line(&e));
        Regex::new(expression).map_err(failed)?;
        let regex = RegexBuilder::new(&format!(r"\A(?:{expression})\z"))
            .case_insensitive(true)
            .size_limit(EXPRESSION_SIZE_MAX)
            .build()
            .map_err(failed)?;
        let targets = self.alias(place, words(rest)?.into_iter())?;
        self.maps.expressions.push((regex, targets));
        Ok(())
    }

    fn alias<'a>(&mut self, place: Place, targets: impl Iterator<Item = &'a str>) -> Result<Targets, String> {
        let given = targets.map(parse_address).collect::<Result<Vec<_>, _>>()?;
        if given.is_empty() {
            return Ok(Targets::NONE);
        }
        self.aliases.push(Alias { place, given });
        Ok(Targets(self.aliases.len() as u32 - 1))
    }

    /// Follows the aliases to their ends.
    fn finish(mut self, files: &[PathBuf]) -> Result<Maps, MapFault> {
        let mut followed: Vec<Option<Followed>> = (0..self.aliases.len()).map(|_| None).collect();
        for n in 0..self.aliases.len() {
            self.follow(n, 1, &mut followed).map_err(|((file, line), words)| MapFault {
                file: files[file].clone(),
                line: Some(line),
                words,
            })?;
        }
        let targets = followed.into_iter().map(|followed| match followed {
            Some(Followed::Whole { targets, .. }) => targets,
            _ => unreachable!("each was followed to its end"),
        });
        self.maps.targets = targets.collect();
        self.maps.text.shrink_to_fit();
        Ok(self.maps)
    }

    fn follow(
        &self,
        n: usize,
        level: usize,
        followed: &mut Vec<Option<Followed>>,
    ) -> Result<usize, (Place, String)> {
        let Alias { place, given } = &self.aliases[n];
        let fault = |words: String| Err((*place, words));
        match &followed[n] {
            Some(Followed::Whole { depth, .. }) => return Ok(*depth),
            Some(Followed::Begun) => return fault("the alias leads back to itself".into()),
            None if level > DEPTH_MAX => {
                return fault(format!("more than {DEPTH_MAX} aliases lead from one to the next up to here"));
            }
            None => followed[n] = Some(Followed::Begun),
        }
        let (mut all, mut depth) = (Vec::new(), 1);
        let add = |target: ForwardPath, all: &mut Vec<ForwardPath>| {
            if !all.contains(&target) {
                all.push(target);
            }
        };
        for target in given {
            let domain = target.canonical_domain();
            let own = self.maps.domains.get(&*domain);
            match own.and_then(|own| self.maps.find_targets(target.local_part(), &domain, own)) {
                // What leads to itself at once stays: `alice  alice, archive`.
                Some(Targets(next)) if next != Targets::NONE.0 && next as usize != n => {
                    depth = depth.max(1 + self.follow(next as usize, level + 1, followed)?);
                    let Some(Followed::Whole { targets, .. }) = &followed[next as usize] else {
                        unreachable!("it was followed to its end")
                    };
                    targets.iter().for_each(|target| add(target.clone(), &mut all));
                }
                _ => add(ForwardPath::Mailbox(target.clone()), &mut all),
            }
        }
        if depth > DEPTH_MAX {
            return fault(format!("more than {DEPTH_MAX} aliases lead from one to the next from here"));
        }
        if all.len() > TARGETS_MAX {
            return fault(format!("expected at most {TARGETS_MAX} targets, not {}", all.len()));
        }
        followed[n] = Some(Followed::Whole { targets: all.into(), depth });
        Ok(depth)
    }
}

/// How far an alias has been followed.
enum Followed {
    Begun,
    Whole { targets: Box<[ForwardPath]>, depth: usize },
}

fn hash(hasher: &RandomState, text: &[u8], entry: &Entry) -> u64 {
    let rest = &text[entry.at as usize..];
    let size = memchr::memchr(KEY_END, rest).expect("every key has its end");
    hasher.hash_one(&rest[..size])
}

/// Whether what is before the domain is an address again, in one of the ways of old (RFC 1123 §5.2.16 has the percent sign; the
/// exclamation mark is UUCP's).
pub fn is_route(local: &str) -> bool {
    local.contains(['%', '!', '@'])
}

/// The words of a line: between spaces and commas, but for those in quotes, and up to the comment.
fn words(line: &str) -> Result<Vec<&str>, String> {
    let (mut words, mut start) = (Vec::new(), None);
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, c) in line.char_indices() {
        if is_quoted {
            is_quoted = c != '"' || is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            continue;
        }
        match c {
            ',' | ' ' | '\t' => words.extend(start.take().map(|start| &line[start..at])),
            '#' if start.is_none() => return Ok(words),
            _ => {
                start.get_or_insert(at);
                is_quoted = c == '"';
            }
        }
    }
    if is_quoted {
        return Err("expected a second quotation mark".into());
    }
    words.extend(start.map(|start| &line[start..]));
    Ok(words)
}

fn parse_address(text: &str) -> Result<Mailbox, String> {
    Mailbox::parse(text, true)
        .map_err(|_| format!("expected an address such as alice@example.com, not {text}"))
}

fn parse_domain(text: &str) -> Result<Domain, String> {
    Domain::parse(text, true).map_err(|_| format!("expected a domain such as example.com, not {text:?}"))
}

fn twice(what: &str) -> String {
    format!("{what} is listed already, and what stands for it must be said once")
}

/// The last line of what the crate says, which has the reason; those before draw where it is.
fn in_one_line(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ").to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    fn read(texts: &[&str]) -> Result<Maps, String> {
        let domains = [Domain::parse("open.example", true).unwrap()];
        let mut reader = Reader::new(&domains, Some(b'+'));
        let files: Vec<_> = (0..texts.len()).map(|n| PathBuf::from(format!("map{n}"))).collect();
        for (n, text) in texts.iter().enumerate() {
            reader.read(n, &files[n], text.as_bytes()).map_err(|e| e.to_string())?;
        }
        reader.finish(&files).map_err(|e| e.to_string())
    }

    fn maps(text: &str) -> Maps {
        read(&[text]).unwrap()
    }

    fn found(maps: &Maps, address: &str) -> String {
        let mailbox = Mailbox::parse(address, true).unwrap();
        match maps.find(mailbox.local_part(), &mailbox.canonical_domain()) {
            Listing::Listed => "listed".into(),
            Listing::Unknown => "unknown".into(),
            Listing::Foreign => "foreign".into(),
            Listing::Replaced(targets) => {
                targets.iter().map(ForwardPath::as_str).collect::<Vec<_>>().join(" ")
            }
        }
    }

    #[test]
    fn an_address_is_found_by_itself_then_its_detail_then_an_expression_then_the_catch_all() {
        let maps = maps(
            "# our people\n\
             alice@Example.com\n\
             ALICE@example.com # twice is once\n\
             bob+lists@example.com\tlists@example.com\r\n\
             bob@example.com\n\
             info@example.com  alice@example.com,bob@elsewhere.example  # both\n\
             \"john doe\"@example.com\n\
             \"quoted\"@example.com\n\
             büro@bücher.example\n\
             \n\
             example.net\n\
             /^sales-[0-9]+@example\\.com$/\n\
             /help-.*@(example\\.com|open\\.example)/ alice@example.com\n\
             /.*@all\\.example/\n\
             @caught.example\n\
             known@caught.example\n\
             @moved.example everybody@example.com\n",
        );
        let table = [
            ("alice@example.com", "listed"),
            ("Alice@EXAMPLE.com", "listed"),
            ("alice+anything+more@example.com", "listed"),
            ("bob+lists@example.com", "lists@example.com"),
            ("bob+other@example.com", "listed"),
            ("bob+lists+more@example.com", "listed"),
            ("info@example.com", "alice@example.com bob@elsewhere.example"),
            ("info+detail@example.com", "alice@example.com bob@elsewhere.example"),
            ("\"John Doe\"@example.com", "listed"),
            ("\"Alice\"@example.com", "listed"),
            ("quoted@example.com", "listed"),
            ("\"quo\\ted\"@example.com", "listed"),
            ("+alice@example.com", "unknown"),
            ("büro@xn--bcher-kva.example", "listed"),
            ("BÜRO@BÜCHER.example", "unknown"),
            ("nobody@example.com", "unknown"),
            ("alice@example.net", "unknown"),
            ("sales-12@example.com", "listed"),
            ("Sales-12@example.com", "listed"),
            ("sales-12x@example.com", "unknown"),
            ("xsales-12@example.com", "unknown"),
            ("help-me@example.com", "alice@example.com"),
            ("help-me@open.example", "alice@example.com"),
            ("a-help-me@example.com", "unknown"),
            ("help-me@open.example.org", "foreign"),
            ("a@all.example", "foreign"),
            ("anybody@open.example", "listed"),
            ("anybody@caught.example", "listed"),
            ("anybody@moved.example", "everybody@example.com"),
            ("alice@sub.example.com", "foreign"),
            ("alice@example.com.evil.example", "foreign"),
        ];
        for (address, expected) in table {
            assert_eq!(found(&maps, address), expected, "{address}");
        }
    }

    #[test]
    fn aliases_are_followed_to_their_ends() {
        let maps = maps(
            "a@x.example b@x.example, c@x.example\n\
             b@x.example d@elsewhere.example c+detail@x.example\n\
             c@x.example\n\
             self@x.example self@x.example, archive@x.example\n\
             other@x.example self@x.example\n\
             @y.example one@y.example\n",
        );
        let table = [
            ("a@x.example", "d@elsewhere.example c+detail@x.example c@x.example"),
            ("self@x.example", "self@x.example archive@x.example"),
            ("other@x.example", "self@x.example archive@x.example"),
            ("two@y.example", "one@y.example"),
            ("one@y.example", "one@y.example"),
        ];
        for (address, expected) in table {
            assert_eq!(found(&maps, address), expected, "{address}");
        }
    }

    #[test]
    fn a_fault_names_file_and_line() {
        let chain = |length: usize| {
            let alias = |n: usize| format!("a{n}@x.example a{}@x.example\n", n + 1);
            (0..length).map(alias).collect::<String>()
        };
        let many = (0..101).map(|n| format!(" a{n}@elsewhere.example")).collect::<String>();
        let expressions = "/a@x\\.example/\n".repeat(101);
        let table: [(&[&str], &str); 18] = [
            (&["a@x.example", "\n\nalice"], "nothing"),
            (&["a@x.example", "\n\nal_ice"], "map1:3: expected a domain such as example.com, not \"al_ice\""),
            (&["a b@x.example"], "map0:1: a domain alone has no targets: write @a for every address of it"),
            (&["a@@x.example"], "map0:1: expected an address such as alice@example.com, not a@@x.example"),
            (&["@x.example bob"], "map0:1: expected an address such as alice@example.com, not bob"),
            (&["a@x.example, \"b"], "map0:1: expected a second quotation mark"),
            (&[","], "map0:1: expected an address, a domain or an expression before the targets"),
            (
                &["a%b@x.example"],
                "map0:1: a%b@x.example asks to be sent on, and such recipients are never accepted",
            ),
            (&["/[/"], "map0:1: /[/ is no expression: unclosed character class"),
            (&["/a)|(b/"], "map0:1: /a)|(b/ is no expression: unopened group"),
            (&["/a@x.example"], "map0:1: expected a slash at the end of the expression"),
            (&[&expressions], "map0:101: expected at most 100 expressions"),
            (
                &["a@x.example", "a@x.example b@x.example"],
                "map1:1: a@x.example is listed already, and what stands for it must be said once",
            ),
            (
                &["@x.example\n@x.example b@x.example"],
                "map0:2: @x.example is listed already, and what stands for it must be said once",
            ),
            (&["a@x.example b@x.example\nb@x.example a@x.example"], "map0:1: the alias leads back to itself"),
            (&[&chain(10)], "nothing"),
            (&[&chain(11)], "map0:11: more than 10 aliases lead from one to the next up to here"),
            (&[&format!("x.example\nb@x.example{many}")], "map0:2: expected at most 100 targets, not 101"),
        ];
        for (texts, expected) in table {
            let said = read(texts).map_or_else(|e| e, |_| "nothing".into());
            assert_eq!(said, expected, "{texts:?}");
        }
        // Whichever end of a chain is read first.
        let backwards = chain(11).lines().rev().map(|line| format!("{line}\n")).collect::<String>();
        assert_eq!(
            read(&[&backwards]).err().unwrap(),
            "map0:11: more than 10 aliases lead from one to the next from here"
        );
        let mut reader = Reader::new(&[], None);
        let fault = reader.read(0, Path::new("map"), b"a@x.example\n\xff").unwrap_err();
        assert_eq!(fault.to_string(), "map:2: expected UTF-8");
        let fault = Maps::load(&["/nonexistent/map".into()], &[], None).err().unwrap();
        assert_eq!(
            fault.to_string(),
            "/nonexistent/map: cannot read it: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn without_a_separator_there_is_no_detail() {
        let mut reader = Reader::new(&[], None);
        reader.read(0, Path::new("map"), b"alice@x.example").unwrap();
        let maps = reader.finish(&[]).unwrap();
        assert_eq!(found(&maps, "alice+detail@x.example"), "unknown");
    }

    #[test]
    fn a_million_addresses_take_little_memory() {
        const COUNT: usize = 1_000_000;
        let text: String = (0..COUNT).map(|n| format!("somebody-{n:07}@example.com\n")).collect();
        let began = Instant::now();
        let maps = maps(&text);
        let loaded = began.elapsed();
        assert_eq!(maps.addresses_count(), COUNT);
        let size = maps.text.capacity() + maps.entries.allocation_size();
        assert!(size < 56 * COUNT, "{} octets for each", size / COUNT);
        let began = Instant::now();
        for n in 0..COUNT {
            let local = "SOMEBODY-0000000";
            let (local, n) = (&local[..9], n * 7919 % COUNT);
            assert_eq!(maps.find(&format!("{local}{n:07}"), "example.com"), Listing::Listed, "{n}");
        }
        println!(
            "loaded in {loaded:?}, {} octets each, {COUNT} found in {:?}",
            size / COUNT,
            began.elapsed()
        );
        assert_eq!(maps.find("somebody-1000000", "example.com"), Listing::Unknown);
    }

    proptest! {
        #[test]
        fn whatever_a_file_holds_is_read_or_refused(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader::new(&[], Some(b'+'));
            if reader.read(0, Path::new("map"), &octets).is_ok() {
                let _ = reader.finish(&["map".into()]);
            }
        }

        #[test]
        fn what_is_listed_is_found_in_any_case(
            names in prop::collection::btree_set("[a-z0-9._+-]{1,20}|\"[a-z ]{1,9}\"", 1..20),
        ) {
            let is_address = |name: &&String| Mailbox::parse(&format!("{name}@x.example"), true).is_ok();
            let names: Vec<_> = names.iter().filter(is_address).collect();
            let maps = maps(&names.iter().map(|name| format!("{name}@x.example\n")).collect::<String>());
            for name in names {
                prop_assert_eq!(maps.find(&name.to_uppercase(), "x.example"), Listing::Listed);
                let detailed = format!("{}+x", name.trim_matches('"'));
                let is_found = maps.find(&detailed, "x.example") == Listing::Listed;
                // A name that has a separator itself is listed with its detail.
                prop_assert!(is_found || name.contains('+'));
                prop_assert!(maps.find(name, "y.example") == Listing::Foreign);
            }
        }
    }
}
