//! No mail without TLS, from strangers: a listener's `tls = "required"` says it to everybody.

use super::{Answer, Facts, Phase, Phases, Policy, Verdict};
use crate::mail::{Refusal, Status, TlsVersion};

/// See the module.
pub struct TlsRequired {
    name: String,
    min_version: TlsVersion,
}

impl TlsRequired {
    /// TLS of `min_version` or later.
    pub fn new(name: &str, min_version: TlsVersion) -> Self {
        TlsRequired { name: name.into(), min_version }
    }
}

impl Policy for TlsRequired {
    fn name(&self) -> &str {
        &self.name
    }

    fn phases(&self) -> Phases {
        Phases::of(Phase::Mail)
    }

    fn is_guard(&self) -> bool {
        true
    }

    fn check(&self, _: Phase, facts: &Facts<'_>) -> Answer {
        // X.7.10 of the registry of enhanced status codes: encryption needed.
        let refuse = |text, key: &str| Refusal::new(Status::permanent(7, 10), text).keyed(key).into();
        match facts.tls {
            None => refuse("Encryption needed: issue STARTTLS first", "no TLS"),
            Some(tls) if tls.version < self.min_version => {
                refuse("Encryption needed: the version of TLS is too old", "an old version")
            }
            Some(_) => Verdict::Accept.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Tls;

    #[test]
    fn tls_must_be_there_and_new_enough() {
        let tls = |version| Tls { version, cipher: "c".into(), server_name: None, client: None };
        let (old, new) = (tls(TlsVersion::Tls12), tls(TlsVersion::Tls13));
        let table = [
            (TlsVersion::Tls12, None, "reject"),
            (TlsVersion::Tls12, Some(&old), "accept"),
            (TlsVersion::Tls13, Some(&old), "reject"),
            (TlsVersion::Tls13, Some(&new), "accept"),
        ];
        for (min_version, tls, word) in table {
            let facts = Facts { tls, ..Facts::of("192.0.2.1") };
            let policy = TlsRequired::new("tls_required", min_version);
            let Answer::Now(Ok(verdict)) = policy.check(Phase::Mail, &facts) else { panic!("at once") };
            assert_eq!(verdict.word(), word, "{min_version} {tls:?}");
        }
    }
}
