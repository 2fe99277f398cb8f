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
