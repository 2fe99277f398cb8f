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
