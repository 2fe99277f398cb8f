//! A certificate chain and its private key: read, parsed, checked against each other.
//!
//! What is wrong is told for people: which file, what, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::files::Files;

const DAY: i64 = 24 * 60 * 60;

/// Where a certificate and its private key are, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, followed by those of its authorities.
    pub chain: PathBuf,
    /// The private key: PKCS#8, SEC 1 or PKCS#1, not encrypted. May be the same file.
    pub key: PathBuf,
}

/// What is known of a certificate in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The DNS names in it (SAN), in lower case; `*.` at the beginning stands for exactly one label.
    pub names: Vec<Box<str>>,
    /// The file it was read from.
    pub chain: PathBuf,
    /// Its first second, in seconds since 1970.
    pub not_before: i64,
    /// Its last second, in seconds since 1970.
    pub not_after: i64,
}

/// Whether a certificate is good at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Its time has not come.
    NotYet,
    /// It is good.
    Valid,
    /// Its time is over.
    Expired,
}

impl Certificate {
    /// Whether it is good at `now`.
    pub fn validity(&self, now: SystemTime) -> Validity {
        match unix_seconds(now) {
            now if now < self.not_before => Validity::NotYet,
            now if now > self.not_after => Validity::Expired,
            _ => Validity::Valid,
        }
    }

    /// Whole days until it expires, as of `now`; negative once it has.
    pub fn days_left(&self, now: SystemTime) -> i64 {
        self.not_after.saturating_sub(unix_seconds(now)).div_euclid(DAY)
    }
}

/// Why certificates cannot be used: the file, what is wrong with it, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    path: PathBuf,
    words: String,
}

impl LoadError {
    pub(super) fn new(path: &Path, words: impl Into<String>) -> Self {
        LoadError { path: path.to_owned(), words: words.into() }
    }

    /// The file that is at fault.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.words)
    }
}

impl std::error::Error for LoadError {}

/// A chain and a key that belong together.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) certificate: Certificate,
    pub(super) key: Arc<CertifiedKey>,
}

impl Pair {
    /// Parses a chain and its key, and checks that they belong together. Says nothing about their time.
    ///
    /// # Errors
    /// Everything that would keep a client from being answered.
    pub(super) fn load(
        files: &Files,
        paths: &CertificateFiles,
        provider: &CryptoProvider,
    ) -> Result<Self, LoadError> {
        let chain = certificates(files, &paths.chain)?;
        let leaf = parse(&chain[0]).map_err(|words| LoadError::new(&paths.chain, words))?;
        for (i, authority) in chain.iter().enumerate().skip(1) {
            parse(authority)
                .map_err(|words| LoadError::new(&paths.chain, format!("certificate {}: {words}", i + 1)))?;
        }
        let certificate = Certificate {
            names: dns_names(&leaf).map(|name| name.to_ascii_lowercase().into()).collect(),
            chain: paths.chain.clone(),
            not_before: leaf.validity().not_before.timestamp(),
            not_after: leaf.validity().not_after.timestamp(),
        };
        let key = private_key(files, &paths.key)?;
        let key = provider.key_provider.load_private_key(key).map_err(|_| {
            LoadError::new(
                &paths.key,
                "the private key cannot be used: keys are RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 or \
                 P-521, or Ed25519",
            )
        })?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(|_| mismatch(&key, paths))?;
        Ok(Pair { certificate, key: Arc::new(key) })
    }
}

/// The certificates in a file, at least one.
///
/// # Errors
/// The file cannot be read, is not PEM, or has none in it.
pub(super) fn certificates(files: &Files, path: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let content = files.content(path).map_err(|error| unreadable(path, error))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(content).collect();
    let found = found.map_err(|error| not_pem(path, &error))?;
    if !found.is_empty() {
        return Ok(found);
    }
    Err(LoadError::new(
        path,
        match content {
            [] => "the file is empty: it should have the certificate in it",
            [0x30, ..] => {
                "there is no certificate in PEM in it, but perhaps one in DER: convert it with `openssl x509 \
                 -inform der`"
            }
            _ if has(content, "PRIVATE KEY-----") => {
                "there is a private key in it but no certificate: are the two files exchanged?"
            }
            _ => "there is no certificate in it: it should begin with `-----BEGIN CERTIFICATE-----`",
        },
    ))
}

/// The certificate in `der`.
///
/// # Errors
/// It is none.
pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, &'static str> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err("it is damaged: it is in PEM, but what is inside is no certificate"),
    }
}

/// The DNS names that a certificate is for.
pub(super) fn dns_names<'a>(certificate: &'a X509Certificate<'_>) -> impl Iterator<Item = &'a str> {
    alternative_names(certificate).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    })
}

/// All names in a certificate's SAN extension. None if it cannot be read.
pub(super) fn alternative_names<'a>(
    certificate: &'a X509Certificate<'_>,
) -> impl Iterator<Item = &'a GeneralName<'a>> {
    let extension = certificate.subject_alternative_name().ok().flatten();
    extension.into_iter().flat_map(|extension| &extension.value.general_names)
}

fn private_key(files: &Files, path: &Path) -> Result<PrivateKeyDer<'static>, LoadError> {
    let content = files.content(path).map_err(|error| unreadable(path, error))?;
    if has(content, "-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(content, "Proc-Type: 4,ENCRYPTED") {
        return Err(LoadError::new(
            path,
            "the private key is encrypted, and nobody is there to type the password at start: decrypt it \
             with `openssl pkey`, and let the file be readable by the gateway's user alone",
        ));
    }
    PrivateKeyDer::from_pem_slice(content).map_err(|error| match error {
        pem::Error::NoItemsFound if has(content, "-----BEGIN CERTIFICATE-----") => LoadError::new(
            path,
            "there is a certificate in it but no private key: are the two files exchanged, or is it the \
             wrong one?",
        ),
        pem::Error::NoItemsFound => LoadError::new(
            path,
            "there is no private key in it: it should begin with `-----BEGIN PRIVATE KEY-----` (or with EC or \
             RSA before PRIVATE)",
        ),
        error => not_pem(path, &error),
    })
}

fn has(content: &[u8], text: &str) -> bool {
    memchr::memmem::find(content, text.as_bytes()).is_some()
}

fn unreadable(path: &Path, error: &io::Error) -> LoadError {
    let advice = match error.kind() {
        io::ErrorKind::NotFound => ": check the path, which is relative to where the gateway was started",
        io::ErrorKind::PermissionDenied => {
            ": let the gateway's user read it, and search the folders above it"
        }
        _ => "",
    };
    LoadError::new(path, format!("cannot be read: {error}{advice}"))
}

fn not_pem(path: &Path, error: &pem::Error) -> LoadError {
    let words = match error {
        pem::Error::MissingSectionEnd { .. } => "a section is cut off before its `-----END`",
        pem::Error::IllegalSectionStart { .. } => "a line that begins with `-----BEGIN` is malformed",
        pem::Error::Base64Decode(_) => "the text of a section is not base64",
        _ => "it cannot be read as PEM",
    };
    LoadError::new(path, format!("{words}: the file is damaged or only half written"))
}

/// A key that is not the first certificate's: whose then?
fn mismatch(pair: &CertifiedKey, paths: &CertificateFiles) -> LoadError {
    let chain = paths.chain.display();
    let of = pair.cert.iter().skip(1).position(|certificate| {
        CertifiedKey::new(vec![certificate.clone()], pair.key.clone()).keys_match().is_ok()
    });
    match of {
        Some(i) => LoadError::new(
            &paths.chain,
            format!(
                "the private key {} belongs to certificate {} in the file: the server's own has to come first, \
                 its authorities after it",
                paths.key.display(),
                i + 2
            ),
        ),
        None => LoadError::new(
            &paths.key,
            format!(
                "the private key does not belong to the certificate in {chain}: one of the two is older, or \
                 another's"
            ),
        ),
    }
}

pub(super) fn unix_seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519};

    use super::super::testing::*;
    use super::super::{Acceptor, ClientCertificates};
    use super::*;

    /// Runs `openssl` with `input`, and gives back what it writes.
    fn openssl(arguments: &str, input: &str) -> String {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let mut child = Command::new("openssl")
            .args(arguments.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "openssl {arguments}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn load(folder: &Folder, issued: &Issued) -> Result<Acceptor, LoadError> {
        Acceptor::load(folder.settings(std::slice::from_ref(issued)), now())
    }

    #[test]
    fn every_kind_of_key_in_every_kind_of_pem_is_taken() {
        let authority = Authority::new();
        let folder = Folder::new();
        for algorithm in [ECDSA, &PKCS_ECDSA_P384_SHA384, &PKCS_ECDSA_P521_SHA512, RSA, &PKCS_ED25519] {
            let issued = authority.issue(&Wanted { algorithm, ..Wanted::names(&["mx.example"]) });
            let acceptor = load(&folder, &issued).unwrap();
            Wire::connect(&acceptor, &Offer::default().client(), "mx.example").unwrap();
            let traditional = match algorithm {
                _ if std::ptr::eq(algorithm, &PKCS_ED25519) => continue,
                // PKCS#1.
                _ if std::ptr::eq(algorithm, RSA) => openssl("rsa -traditional", &issued.key),
                // SEC 1, and what `openssl ecparam -genkey` puts before it.
                _ => {
                    "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
                        .to_owned()
                        + &openssl("ec", &issued.key)
                }
            };
            assert!(!traditional.contains("BEGIN PRIVATE"), "{traditional}");
            let acceptor = load(&folder, &Issued { key: traditional, ..issued }).unwrap();
            Wire::connect(&acceptor, &Offer::default().client(), "mx.example").unwrap();
        }
    }

    #[test]
    fn a_chain_is_sent_whole_and_one_file_may_hold_all() {
        let authority = Authority::new();
        let issued = authority.issue_for(&["mx.example"]);
        let whole = format!("{}{}{}", issued.key, issued.chain, authority.pem());
        let folder = Folder::new();
        let acceptor = load(&folder, &Issued { chain: whole.clone(), key: whole }).unwrap();
        let wire = Wire::connect(&acceptor, &Offer::default().client(), "mx.example").unwrap();
        assert_eq!(wire.client.peer_certificates().unwrap().len(), 2);
    }

    #[test]
    fn what_is_wrong_is_said_with_the_file_and_what_to_do() {
        let authority = Authority::new();
        let good = authority.issue_for(&["mx.example"]);
        let other = authority.issue_for(&["other.example"]);
        let Issued { chain, key } = &good;
        let reversed = format!("{}{chain}", authority.pem());
        let encrypted = openssl("pkcs8 -topk8 -passout pass:secret", key);
        let encrypted_sec1 = openssl("ec -aes128 -passout pass:secret", key);
        let half = &chain[..chain.len() / 2];
        let no_base64 = chain.replacen("MII", "M!!", 1);
        let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let damaged_second = format!("{chain}{no_certificate}");
        let small = openssl("genrsa 1024", "");
        let der = "\u{30}\u{1}\u{2}".to_owned();
        // The chain's file and the key's; in which of the two the fault is; words of it.
        let cases: &[(&str, &str, &str, &[&str])] = &[
            ("", key, "0.pem", &["empty"]),
            (key, key, "0.pem", &["no certificate", "exchanged"]),
            ("some text", key, "0.pem", &["no certificate", "BEGIN CERTIFICATE"]),
            (&der, key, "0.pem", &["DER", "openssl"]),
            (half, key, "0.pem", &["cut off", "half written"]),
            (&no_base64, key, "0.pem", &["base64"]),
            (no_certificate, key, "0.pem", &["damaged"]),
            (&damaged_second, key, "0.pem", &["certificate 2", "damaged"]),
            (&reversed, key, "0.pem", &["certificate 2", "has to come first"]),
            (chain, "", "0.key", &["no private key"]),
            (chain, chain, "0.key", &["no private key", "exchanged"]),
            (chain, &encrypted, "0.key", &["encrypted", "openssl pkey"]),
            (chain, &encrypted_sec1, "0.key", &["encrypted", "openssl pkey"]),
            (chain, &key[..60], "0.key", &["cut off"]),
            (chain, &small, "0.key", &["2048"]),
            (chain, &other.key, "0.key", &["does not belong", "0.pem"]),
        ];
        let folder = Folder::new();
        for (chain, key, file, words) in cases {
            let issued = Issued { chain: (*chain).into(), key: (*key).into() };
            let error = load(&folder, &issued).unwrap_err();
            assert_eq!(error.path(), folder.path(file), "{error}");
            let text = error.to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
            assert!(!text.contains('\n') && !text.contains("MII"), "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_with_the_reason() {
        let folder = Folder::new();
        let mut settings = folder.settings(&[Authority::new().issue_for(&["mx.example"])]);
        std::fs::remove_file(folder.path("0.key")).unwrap();
        let error = Acceptor::load(settings.clone(), now()).unwrap_err();
        assert!(error.to_string().contains("0.key: cannot be read: No such file"), "{error}");
        std::fs::create_dir(folder.path("0.key")).unwrap();
        let error = Acceptor::load(settings.clone(), now()).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
        std::fs::remove_dir(folder.path("0.key")).unwrap();
        // A device without end, and one that nobody writes to.
        std::os::unix::fs::symlink("/dev/zero", folder.path("0.key")).unwrap();
        Acceptor::load(settings.clone(), now()).unwrap_err();
        folder.write("large", vec![b' '; 5 << 20]);
        settings.certificates[0].key = folder.path("large");
        let error = Acceptor::load(settings, now()).unwrap_err();
        assert!(error.to_string().contains("larger than 4 MiB"), "{error}");
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = unreadable(&folder.path("0.key"), &denied);
        assert!(error.to_string().contains("let the gateway's user read it"), "{error}");
    }

    #[test]
    fn authorities_that_cannot_be_used_are_named() {
        let folder = Folder::new();
        let issued = Authority::new().issue_for(&["mx.example"]);
        for (content, words) in [("", "empty"), (issued.key.as_str(), "no certificate")] {
            let mut settings = folder.settings(std::slice::from_ref(&issued));
            let authorities = folder.write("authorities.pem", content);
            settings.client_certificates = ClientCertificates::Request { authorities };
            let error = Acceptor::load(settings, now()).unwrap_err();
            assert_eq!(error.path(), folder.path("authorities.pem"));
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn names_and_times_are_those_of_the_certificate() {
        let authority = Authority::new();
        let wanted =
            Wanted { from: (2026, 1, 2), to: (2026, 1, 12), ..Wanted::names(&["MX.example", "*.example"]) };
        let folder = Folder::new();
        // Not a reason to refuse at the start.
        let acceptor = load(&folder, &authority.issue(&wanted)).unwrap();
        let [certificate] = &acceptor.certificates()[..] else { panic!("one") };
        assert_eq!(certificate.names, ["mx.example".into(), "*.example".into()]);
        assert_eq!(certificate.chain, folder.path("0.pem"));
        let at = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds as u64);
        let (first, last) = (certificate.not_before, certificate.not_after);
        assert_eq!(last - first, 10 * DAY);
        for (time, validity, days) in [
            (first - 1, Validity::NotYet, 10),
            (first, Validity::Valid, 10),
            (first + 1, Validity::Valid, 9),
            (last - DAY, Validity::Valid, 1),
            (last, Validity::Valid, 0),
            (last + 1, Validity::Expired, -1),
            (last + DAY, Validity::Expired, -1),
            (last + DAY + 1, Validity::Expired, -2),
        ] {
            assert_eq!((certificate.validity(at(time)), certificate.days_left(at(time))), (validity, days));
        }
    }
}
