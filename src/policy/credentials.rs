//! Who may log in: the credentials file, and whether a password is somebody's.
//!
//! ```text
//! # name, colon, PHC string; `incoming auth hash` writes such lines
//! alice@example.com:$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0$…
//! ```
//!
//! Invariants:
//! - every hash was checked when it was read: its algorithm is Argon2id, and what one verification takes of time and memory has a bound;
//! - an unknown name takes as long as a wrong password (RFC 4954 §6 has one answer for both);
//! - no error, and nothing that is printed for debugging, shows a hash.
//!
//! Names are compared octet by octet: neither case nor normalisation is looked at.
//!
//! Knows nothing of SASL, and of who waits for the answer: see [`super::Verifier`].

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use argon2::password_hash::Error as HashError;
use argon2::{ARGON2ID_IDENT, Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier, Version};

/// A file of credentials has at most so many octets: about 150,000 users.
pub const CREDENTIALS_SIZE_MAX: u64 = 16 << 20;
/// A name has at most so many octets: as many as any name in SASL needs (RFC 4616 §2).
pub const USER_SIZE_MAX: usize = 255;
/// What one verification may take: memory in KiB, passes over it, lanes. Several times what anybody recommends; more is a slip of the
/// pen, or somebody's way to stop the others from logging in.
const MEMORY_MAX: u32 = 256 << 10;
const TIME_MAX: u32 = 16;
const LANES_MAX: u32 = 16;
/// Shorter salts and hashes, in octets, are not safe (RFC 9106 §3.1, §4).
const SALT_SIZE_MIN: usize = 8;
const HASH_SIZE_MIN: usize = 16;

/// The users and their passwords' hashes.
pub struct Credentials {
    hashes: HashMap<Box<str>, PasswordHash>,
    /// In the order of the file. What an unknown name costs is what the name of some user would, and of the same user each time.
    costs: Vec<Params>,
    choice: RandomState,
    warnings: Vec<String>,
}

/// Why a text is no credentials file: where, what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialsError {
    /// The file, where it is one.
    pub file: Option<PathBuf>,
    /// The line, counted from 1; `None` where it is about the file as a whole.
    pub line: Option<usize>,
    /// What is wrong there, and what to do.
    pub words: String,
}

impl fmt::Display for CredentialsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{}:{line}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, Some(line)) => write!(f, "line {line}: ")?,
            (None, None) => {}
        }
        f.write_str(&self.words)
    }
}

impl std::error::Error for CredentialsError {}

impl Credentials {
    /// Reads the lines of `text`.
    pub fn parse(text: &str) -> Result<Credentials, CredentialsError> {
        let (mut hashes, mut lines, mut costs) = (HashMap::new(), HashMap::new(), Vec::new());
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let fault = |words| CredentialsError { file: None, line: Some(line), words };
            let (user, hash, params) = entry(text).map_err(fault)?;
            if let Some(first) = lines.insert(user, line) {
                return Err(fault(format!("{user} stands in line {first} already: remove one of the two")));
            }
            hashes.insert(user.into(), hash);
            costs.push(params);
        }
        Ok(Credentials { hashes, costs, choice: RandomState::new(), warnings: Vec::new() })
    }

    /// Reads the file at `path`.
    pub fn load(path: &Path) -> Result<Credentials, CredentialsError> {
        let fault = |words| CredentialsError { file: Some(path.into()), line: None, words };
        let cannot_read = |e| fault(format!("cannot read it: {e}"));
        let file = File::open(path).map_err(cannot_read)?;
        let mode = file.metadata().map_err(cannot_read)?.permissions().mode();
        let mut octets = Vec::new();
        file.take(CREDENTIALS_SIZE_MAX + 1).read_to_end(&mut octets).map_err(cannot_read)?;
        if octets.len() as u64 > CREDENTIALS_SIZE_MAX {
            return Err(fault(format!(
                "it has more than {} MiB: is it the right file?",
                CREDENTIALS_SIZE_MAX >> 20
            )));
        }
        let text = String::from_utf8(octets).map_err(|e| {
            let line =
                e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|c| **c == b'\n').count() + 1;
            CredentialsError { line: Some(line), ..fault("it is not in UTF-8: save it as such".into()) }
        })?;
        let mut credentials =
            Self::parse(&text).map_err(|e| CredentialsError { file: Some(path.into()), ..e })?;
        let shown = path.display();
        for (bit, can) in [(0o004, "read"), (0o002, "write")] {
            if mode & bit != 0 {
                credentials
                    .warnings
                    .push(format!("{shown}: every user of this machine can {can} it: chmod o-rwx {shown}"));
            }
        }
        Ok(credentials)
    }

    /// What the operator should know about the file that was loaded.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How many users there are.
    pub fn users_count(&self) -> usize {
        self.hashes.len()
    }

    /// Whether `password` is `user`'s.
    ///
    /// Takes tens of milliseconds and tens of MiB: never on a shard. An unknown user costs as much as a wrong password does.
    ///
    /// # Panics
    /// Where there is no memory: as any allocation does, and no answer about the password.
    pub fn verify(&self, user: &str, password: &[u8]) -> bool {
        let Some(hash) = self.hashes.get(user) else {
            let choice = self.choice.hash_one(user) % self.costs.len().max(1) as u64;
            let params = self.costs.get(choice as usize).cloned().unwrap_or_default();
            std::hint::black_box(hash_with(password, params));
            return false;
        };
        match Argon2::default().verify_password(password, hash) {
            Ok(()) => true,
            Err(HashError::PasswordInvalid) => false,
            Err(e) => panic!("cannot verify a password: {e}"),
        }
    }

    /// The PHC string of `password`, with a random salt and 19 MiB, two passes, one lane, as OWASP recommends.
    ///
    /// # Panics
    /// Where there is neither memory nor randomness to be had.
    pub fn hash(password: &[u8]) -> String {
        hash_with(password, Params::default()).to_string()
    }
}

/// Why `name` cannot stand in a credentials file.
pub fn check_user(name: &str) -> Result<(), &'static str> {
    let is_forbidden = |c: char| c == ':' || c.is_whitespace() || c.is_control();
    match name {
        "" => Err("a user name is empty"),
        _ if name.len() > USER_SIZE_MAX => Err("a user name has more than 255 octets"),
        _ if name.starts_with('#') => Err("a user name begins with #, as comments do"),
        _ if name.contains(is_forbidden) => {
            Err("a user name has a colon, white space or a control character")
        }
        _ => Ok(()),
    }
}

fn hash_with(password: &[u8], params: Params) -> PasswordHash {
    Argon2::from(params).hash_password(password).unwrap_or_else(|e| panic!("cannot hash a password: {e}"))
}

/// One line. What is wrong with it is said without its hash.
fn entry(text: &str) -> Result<(&str, PasswordHash, Params), String> {
    const INSTEAD: &str = "put a line here as `incoming auth hash USER` prints it";
    let (user, hash) = text.split_once(':').ok_or(format!("a line without a colon: {INSTEAD}"))?;
    check_user(user).map_err(|fault| format!("{fault}: use another"))?;
    let fault = |what: &str| format!("the hash of {user} {what}: {INSTEAD}");
    let hash = PasswordHash::new(hash)
        .map_err(|_| fault("is no PHC string ($argon2id$v=19$m=…,t=…,p=…$salt$hash)"))?;
    if hash.algorithm != ARGON2ID_IDENT {
        return Err(fault(&format!("is of the algorithm {}, and only argon2id is known", hash.algorithm)));
    }
    if hash.version != Some(Version::V0x13 as u32) {
        return Err(fault("is not of version 19 of argon2id (v=19)"));
    }
    if !hash.params.iter().map(|(name, _)| name.as_str().to_owned()).eq(["m", "t", "p"]) {
        return Err(fault("has other parameters than m, t and p"));
    }
    let params = Params::try_from(&hash).map_err(|_| fault("has parameters that argon2id does not know"))?;
    let bounds = [
        ("m", params.m_cost(), MEMORY_MAX),
        ("t", params.t_cost(), TIME_MAX),
        ("p", params.p_cost(), LANES_MAX),
    ];
    if let Some((name, given, max)) = bounds.into_iter().find(|(_, given, max)| given > max) {
        return Err(fault(&format!("would cost too much to verify ({name}={given}, at most {max})")));
    }
    if hash.salt.as_ref().is_none_or(|salt| salt.len() < SALT_SIZE_MIN) {
        return Err(fault("has no salt of at least 8 octets"));
    }
    if hash.hash.as_ref().is_none_or(|hash| hash.len() < HASH_SIZE_MIN) {
        return Err(fault("has fewer than 16 octets"));
    }
    Ok((user, hash, params))
}

/// Without the hashes.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("users_count", &self.users_count()).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    /// A line for `user` that is cheap to verify.
    pub fn line(user: &str, password: &[u8]) -> String {
        format!("{user}:{}\n", hash_with(password, Params::new(64, 1, 1, None).unwrap()))
    }

    const SALT: &str = "c2FsdHNhbHRzYWx0c2FsdA";
    const HASH: &str = "CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";

    #[test]
    fn passwords_are_verified() {
        let text = format!(
            "# staff\r\n\n  \n{}{}\t{}",
            line("alice@example.com", b"correct horse"),
            line("b\u{fc}cher", "p\u{e4}ss".as_bytes()),
            line("carol", b"\xff\x00")
        );
        let credentials = Credentials::parse(&text).unwrap();
        assert_eq!(credentials.users_count(), 3);
        let table: [(&str, &[u8], bool); 10] = [
            ("alice@example.com", b"correct horse", true),
            ("alice@example.com", b"correct horse ", false),
            ("alice@example.com", b"", false),
            ("Alice@example.com", b"correct horse", false),
            ("b\u{fc}cher", "p\u{e4}ss".as_bytes(), true),
            ("bu\u{308}cher", "p\u{e4}ss".as_bytes(), false),
            ("carol", b"\xff\x00", true),
            ("carol", b"correct horse", false),
            ("dave", b"correct horse", false),
            ("", b"", false),
        ];
        for (user, password, is_right) in table {
            assert_eq!(credentials.verify(user, password), is_right, "{user} {password:?}");
        }
        assert!(!Credentials::parse("").unwrap().verify("alice@example.com", b"correct horse"));
    }

    /// A test vector of the reference implementation: hashes that others made are understood.
    #[test]
    fn a_known_hash_is_verified() {
        let text = "u:$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        assert!(Credentials::parse(text).unwrap().verify("u", b"password"));
    }

    #[test]
    fn a_hash_is_new_each_time_and_has_the_recommended_parameters() {
        let (one, other) = (Credentials::hash(b"secret"), Credentials::hash(b"secret"));
        assert_ne!(one, other);
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
        let credentials = Credentials::parse(&format!("u:{one}")).unwrap();
        assert!(credentials.verify("u", b"secret") && !credentials.verify("u", b"Secret"));
    }

    #[test]
    fn a_fault_names_its_line_and_what_to_do_but_no_hash() {
        let of = |middle: &str| format!("u:{middle}${SALT}${HASH}");
        let table = [
            (
                "u".to_string(),
                "a line without a colon: put a line here as `incoming auth hash USER` prints it",
            ),
            (format!(":$argon2id$v=19$m=64,t=1,p=1${SALT}${HASH}"), "a user name is empty"),
            ("a b:x".to_string(), "a user name has a colon, white space or a control character"),
            ("a\u{7f}:x".to_string(), "a user name has a colon, white space or a control character"),
            ("a\u{a0}b:x".to_string(), "a user name has a colon, white space or a control character"),
            (format!("{}:x", "u".repeat(256)), "a user name has more than 255 octets"),
            ("u:plaintext".to_string(), "the hash of u is no PHC string"),
            ("u:$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW".to_string(), "the hash of u "),
            (of("$argon2i$v=19$m=64,t=1,p=1"), "is of the algorithm argon2i, and only argon2id is known"),
            (of("$scrypt$ln=16,r=8,p=1"), "is of the algorithm scrypt, and only argon2id is known"),
            (of("$argon2id$v=16$m=64,t=1,p=1"), "is not of version 19"),
            (of("$argon2id$m=64,t=1,p=1"), "is not of version 19"),
            (of("$argon2id$v=19$m=64,t=1"), "has other parameters than m, t and p"),
            (of("$argon2id$v=19$m=64,t=1,p=1,data=AAAA"), "has other parameters than m, t and p"),
            (of("$argon2id$v=19"), "has other parameters than m, t and p"),
            (of("$argon2id$v=19$m=64,t=0,p=1"), "has parameters that argon2id does not know"),
            (of("$argon2id$v=19$m=8,t=1,p=2"), "has parameters that argon2id does not know"),
            (
                of("$argon2id$v=19$m=262145,t=1,p=1"),
                "would cost too much to verify (m=262145, at most 262144)",
            ),
            (of("$argon2id$v=19$m=4294967295,t=1,p=1"), "would cost too much to verify (m=4294967295"),
            (of("$argon2id$v=19$m=64,t=17,p=1"), "would cost too much to verify (t=17, at most 16)"),
            (of("$argon2id$v=19$m=4096,t=1,p=17"), "would cost too much to verify (p=17, at most 16)"),
            (of("$argon2id$v=19$m=4096,t=1,p=536870912"), "has parameters that argon2id does not know"),
            (format!("u:$argon2id$v=19$m=64,t=1,p=1${SALT}"), "has fewer than 16 octets"),
            (format!("u:$argon2id$v=19$m=64,t=1,p=1${SALT}$AAAAAAAAAAAAAAAAAA"), "has fewer than 16 octets"),
            (format!("u:$argon2id$v=19$m=64,t=1,p=1$AAAA${HASH}"), "the hash of u "),
            (format!("u:$argon2id$v=19$m=64,t=1,p=1${SALT}${HASH}$"), "is no PHC string"),
            (format!("{}u:x", line("u", b"")), "the hash of u is no PHC string"),
        ];
        for (text, words) in table {
            let text = format!("# one\n{text}");
            let e = Credentials::parse(&text).expect_err(&text);
            let said = e.to_string();
            assert_eq!(e.line, Some(text.lines().count()), "{text}");
            assert!(said.contains(words), "{text}: {said}");
            assert!(!said.contains(HASH) && !said.contains(SALT) && !said.contains("plaintext"), "{said}");
        }
        let twice = format!("{}\n{}{}", line("u", b"a"), line("v", b"a"), line("u", b"b"));
        let said = Credentials::parse(&twice).unwrap_err().to_string();
        assert_eq!(said, "line 4: u stands in line 1 already: remove one of the two");
    }

    #[test]
    fn a_file_is_named_in_its_faults_and_warnings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let write = |octets: &[u8], mode| {
            std::fs::write(&path, octets).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        };
        let shown = path.display().to_string();
        let said = Credentials::load(&path).unwrap_err().to_string();
        assert!(said.starts_with(&format!("{shown}: cannot read it: No such file")), "{said}");
        for (octets, expected) in [
            (&b"u:x\n"[..], format!("{shown}:1: the hash of u is no PHC string")),
            (b"# a\n# \xff\n", format!("{shown}:2: it is not in UTF-8")),
            (&vec![b'\n'; (CREDENTIALS_SIZE_MAX + 1) as usize], format!("{shown}: it has more than 16 MiB")),
        ] {
            write(octets, 0o600);
            let said = Credentials::load(&path).unwrap_err().to_string();
            assert!(said.starts_with(&expected), "{said}");
        }
        let table: [(u32, &[&str]); 5] =
            [(0o600, &[]), (0o640, &[]), (0o660, &[]), (0o644, &["read"]), (0o666, &["read", "write"])];
        for (mode, can) in table {
            write(line("u", b"p").as_bytes(), mode);
            let credentials = Credentials::load(&path).unwrap();
            assert!(credentials.verify("u", b"p"));
            let expected: Vec<_> = (can.iter())
                .map(|can| format!("{shown}: every user of this machine can {can} it: chmod o-rwx {shown}"))
                .collect();
            assert_eq!(credentials.warnings(), expected, "{mode:o}");
        }
    }

    /// Measured against each other, in time of the processor, and with room: a name that is looked up and not found takes a thousandth.
    #[test]
    fn an_unknown_user_costs_what_a_wrong_password_does() {
        let expensive = hash_with(b"x", Params::new(8 << 10, 2, 1, None).unwrap());
        let text: String = (0..3).map(|i| format!("user{i}:{expensive}\n")).collect();
        let credentials = Credentials::parse(&text).unwrap();
        let fastest_of = |user: &str| {
            let times = (0..9).map(|_| {
                let started = clock_gettime(ClockId::ThreadCPUTime);
                assert!(!credentials.verify(user, b"y"));
                let ended = clock_gettime(ClockId::ThreadCPUTime);
                (ended.tv_sec - started.tv_sec) * 1_000_000_000 + (ended.tv_nsec - started.tv_nsec)
            });
            times.min().unwrap()
        };
        let (known, unknown) = (fastest_of("user1"), fastest_of("nobody"));
        assert!(unknown * 3 > known && known * 3 > unknown, "{known:?} {unknown:?}");
    }

    #[test]
    fn debugging_shows_no_hash() {
        let credentials = Credentials::parse(&line("u", b"p")).unwrap();
        assert_eq!(format!("{credentials:?}"), "Credentials { users_count: 1, .. }");
    }
}
