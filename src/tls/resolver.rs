//! Which certificate a client is shown: by the name it asks for and the signatures it understands.
//!
//! Candidates are looked for in this order, and the first that the client can verify is taken:
//! 1. those with exactly the name asked for;
//! 2. those with a wildcard for it: `*.example.com` is one label before `example.com` (RFC 6125 §6.4.3);
//! 3. the default, which is the first one configured, with those that share a name with it;
//! 4. all others.
//!
//! Within each, ECDSA before Ed25519 before RSA: in this order they cost the least. A client that can verify
//! none is shown the default, and fails in its own words. An unknown name is no reason for an alert: a sender
//! that knows us by another name should still find TLS (RFC 7672 §3.1 and RFC 8461 have the *sender* decide).

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};

use super::certificates::Pair;

/// The certificates of an acceptor, by name.
#[derive(Debug)]
pub(super) struct Resolver {
    /// Never empty; the first is the default.
    keys: Vec<Arc<CertifiedKey>>,
    exact: HashMap<Box<str>, Vec<usize>>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, Vec<usize>>,
    /// Every certificate: the default and those that share a name with it first.
    fallback: Vec<usize>,
}

impl Resolver {
    /// # Panics
    /// Without certificates: there would be nothing to show.
    pub(super) fn new(pairs: &[Pair]) -> Self {
        assert!(!pairs.is_empty(), "an acceptor has at least one certificate");
        let rank = |i: &usize| match pairs[*i].key.key.algorithm() {
            SignatureAlgorithm::ECDSA => 0,
            SignatureAlgorithm::RSA => 2,
            _ => 1,
        };
        let mut ranked: Vec<usize> = (0..pairs.len()).collect();
        ranked.sort_by_key(rank);
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        for i in &ranked {
            for name in &pairs[*i].certificate.names {
                let (by, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut wildcard, parent),
                    None => (&mut exact, &**name),
                };
                let candidates: &mut Vec<usize> = by.entry(Box::from(name)).or_default();
                if !candidates.contains(i) {
                    candidates.push(*i);
                }
            }
        }
        let default = &pairs[0].certificate.names;
        let is_default =
            |i: &usize| *i == 0 || pairs[*i].certificate.names.iter().any(|name| default.contains(name));
        let (mut fallback, others): (Vec<usize>, Vec<usize>) = ranked.into_iter().partition(is_default);
        fallback.extend(others);
        Resolver { keys: pairs.iter().map(|pair| pair.key.clone()).collect(), exact, wildcard, fallback }
    }

    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> &Arc<CertifiedKey> {
        // rustls has already taken out the schemes that no cipher suite of the client goes with.
        let suits = |i: &&usize| self.keys[**i].key.choose_scheme(schemes).is_some();
        let name = name.map(str::to_ascii_lowercase);
        let exact = name.as_deref().and_then(|name| self.exact.get(name));
        let parent = name.as_deref().and_then(|name| name.split_once('.'));
        let wildcard = parent.and_then(|(_, parent)| self.wildcard.get(parent));
        let named = [exact, wildcard].into_iter().flatten().flatten();
        let chosen = named.chain(&self.fallback).find(suits);
        &self.keys[chosen.copied().unwrap_or(0)]
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.choose(hello.server_name(), hello.signature_schemes()).clone())
    }
}

#[cfg(test)]
mod tests {
    use rustls::CipherSuite;

    use super::super::Acceptor;
    use super::super::testing::*;
    use super::*;

    /// The leaf that a client is shown, as an index into `all`.
    fn shown(acceptor: &Acceptor, all: &[Issued], offer: Offer, name: &str) -> Option<usize> {
        let wire = Wire::connect(acceptor, &offer.client(), name).ok()?;
        let leaf = &wire.client.peer_certificates().unwrap()[0];
        all.iter().position(|issued| issued.der() == *leaf)
    }

    #[test]
    fn the_name_decides_and_an_unknown_one_gets_the_default() {
        let authority = Authority::new();
        let all = [
            authority.issue_for(&["default.example"]),
            authority.issue_for(&["mx1.example", "MX2.Example"]),
            authority.issue_for(&["*.wild.example", "wild.example"]),
            authority.issue_for(&["exact.wild.example"]),
        ];
        let acceptor = Acceptor::load(Folder::new().settings(&all), now()).unwrap();
        let cases = [
            ("default.example", 0),
            ("mx1.example", 1),
            ("mx2.example", 1),
            ("MX1.EXAMPLE", 1),
            ("a.wild.example", 2),
            ("wild.example", 2),
            ("exact.wild.example", 3),
            // A wildcard is one label, not two and not none.
            ("a.b.wild.example", 0),
            ("example", 0),
            ("unknown.example", 0),
            ("xn--bcher-kva.example", 0),
            // No name: it is an address.
            ("192.0.2.1", 0),
        ];
        for versions in [ONLY_12, ONLY_13] {
            for (name, expected) in cases {
                assert_eq!(shown(&acceptor, &all, Offer::versions(versions), name), Some(expected), "{name}");
            }
        }
    }

    #[test]
    fn the_client_s_signatures_choose_among_certificates_of_a_name_and_ecdsa_is_preferred() {
        let authority = Authority::new();
        let issue =
            |algorithm, names: &[&str]| authority.issue(&Wanted { algorithm, ..Wanted::names(names) });
        let all = [
            issue(RSA, &["mx.example"]),
            issue(ECDSA, &["mx.example", "*.example"]),
            issue(RSA, &["only-rsa.example"]),
            issue(ECDSA, &["only-ecdsa.example"]),
        ];
        let acceptor = Acceptor::load(Folder::new().settings(&all), now()).unwrap();
        let any = |_: &SignatureScheme| true;
        let only_rsa = |scheme: &SignatureScheme| {
            matches!(scheme, SignatureScheme::RSA_PSS_SHA256 | SignatureScheme::RSA_PKCS1_SHA256)
        };
        let only_ecdsa = |scheme: &SignatureScheme| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256;
        type Understands<'a> = &'a dyn Fn(&SignatureScheme) -> bool;
        let cases: [(&str, Understands, usize); 11] = [
            ("mx.example", &any, 1),
            ("mx.example", &only_rsa, 0),
            ("mx.example", &only_ecdsa, 1),
            // No exact one suits: the wildcard's.
            ("only-rsa.example", &only_ecdsa, 1),
            ("only-rsa.example", &only_rsa, 2),
            // Nothing of that name suits: the default.
            ("only-ecdsa.example", &only_rsa, 0),
            ("unknown.test", &any, 1),
            ("unknown.test", &only_rsa, 0),
            ("unknown.test", &only_ecdsa, 1),
            ("192.0.2.1", &only_rsa, 0),
            ("192.0.2.1", &only_ecdsa, 1),
        ];
        for versions in [ONLY_12, ONLY_13] {
            for (name, understands, expected) in cases {
                let mut offer = Offer::versions(versions);
                offer.schemes.retain(|scheme| understands(scheme));
                assert_eq!(shown(&acceptor, &all, offer, name), Some(expected), "{name}");
            }
        }
        // In TLS 1.2 the suite names the kind of key, whatever schemes are listed.
        let offer = Offer {
            suites: |suite| suite == CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            ..Offer::versions(ONLY_12)
        };
        assert_eq!(shown(&acceptor, &all, offer, "mx.example"), Some(0));
    }

    #[test]
    fn a_client_that_verifies_nothing_of_ours_fails_in_its_own_words() {
        let acceptor = acceptor();
        let mut offer = Offer::default();
        offer.schemes.retain(|scheme| *scheme == SignatureScheme::ED25519);
        let outcome = Wire::connect(&acceptor, &offer.client(), "mx.example").map(|_| ());
        assert!(matches!(outcome, Err(super::super::TlsError::Handshake(_))), "{outcome:?}");
    }
}
