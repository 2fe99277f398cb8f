//! What proves to an endpoint that a request is ours: the symmetric signature of Standard Webhooks 1.0.0.
//!
//! Three header fields: `webhook-id` (the idempotency key), `webhook-timestamp` (seconds since 1970, when it was signed) and
//! `webhook-signature`, for each secret `v1,` and in base64 the HMAC-SHA256 of `id.timestamp.body`, with spaces between.
//!
//! While a secret is exchanged for another there are two, and an endpoint takes the signature that it can verify.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// How secrets are marked as what they are.
const PREFIX: &str = "whsec_";
/// A secret's size, octets (Standard Webhooks, signature scheme).
const SECRET_SIZES: std::ops::RangeInclusive<usize> = 24..=64;
/// Secrets at a time: the new one, the old one, and as many again. Each is a pass over the content.
const SECRETS_MAX: usize = 4;

/// The secrets that requests are signed with.
pub struct Secrets(Vec<hmac::Key>);

/// A signature whose body comes in pieces.
pub struct Signing(Vec<hmac::Context>);

impl Secrets {
    /// What [`Secrets::parse`] takes.
    pub const EXPECTED: &'static str = "expected one to four lines \"whsec_\" and 24 to 64 octets in base64: the secret, and others while it is changed";

    /// The secrets of a file, one a line.
    pub fn parse(file: &[u8]) -> Option<Secrets> {
        let text = std::str::from_utf8(file).ok()?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let secret = |line: &str| {
            let octets = Zeroizing::new(STANDARD.decode(line.strip_prefix(PREFIX)?).ok()?);
            let is_fit = SECRET_SIZES.contains(&octets.len());
            is_fit.then(|| hmac::Key::new(hmac::HMAC_SHA256, &octets))
        };
        let secrets = lines.map(secret).collect::<Option<Vec<_>>>()?;
        (1..=SECRETS_MAX).contains(&secrets.len()).then_some(Secrets(secrets))
    }

    /// A signature of the request with this id, at `timestamp` in seconds since 1970. An id has no `.` in it.
    pub fn begin(&self, id: &str, timestamp: u64) -> Signing {
        debug_assert!(!id.contains('.'), "where an id ends must be plain");
        let mut signing = Signing(self.0.iter().map(hmac::Context::with_key).collect());
        signing.update(format!("{id}.{timestamp}.").as_bytes());
        signing
    }
}

impl Signing {
    /// Takes the next octets of the body.
    pub fn update(&mut self, octets: &[u8]) {
        self.0.iter_mut().for_each(|context| context.update(octets));
    }

    /// The value of `webhook-signature`.
    pub fn finish(self) -> String {
        let signature = |context: hmac::Context| format!("v1,{}", STANDARD.encode(context.sign()));
        self.0.into_iter().map(signature).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(secrets: &Secrets, id: &str, timestamp: u64, body: &[u8], step: usize) -> String {
        let mut signing = secrets.begin(id, timestamp);
        body.chunks(step).for_each(|piece| signing.update(piece));
        signing.finish()
    }

    #[test]
    fn the_published_vector_is_signed_as_published_in_any_pieces() {
        // That of the reference implementations.
        let secrets = Secrets::parse(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let body = br#"{"test": 2432232314}"#;
        for step in 1..=body.len() {
            let signature = sign(&secrets, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body, step);
            assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        }
    }

    #[test]
    fn each_secret_signs() {
        let (one, two) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        let alone = |text: &str| sign(&Secrets::parse(text.as_bytes()).unwrap(), "id", 1, b"body", 1);
        let both = format!("{one}\n\n  {two}\r\n");
        assert_eq!(alone(&both), format!("{} {}", alone(one), alone(two)));
        assert_ne!(alone(one), alone(two));
    }

    #[test]
    fn a_secret_is_marked_long_enough_and_in_base64() {
        let of_size = |size: usize| format!("whsec_{}", STANDARD.encode(vec![7; size]));
        for text in [of_size(24), of_size(64), vec![of_size(32); 4].join("\n")] {
            assert!(Secrets::parse(text.as_bytes()).is_some(), "{text}");
        }
        for text in [
            String::new(),
            "\n".into(),
            of_size(23),
            of_size(65),
            vec![of_size(32); 5].join("\n"),
            of_size(32).replace("whsec_", ""),
            of_size(32).replace("whsec_", "whsk_"),
            format!("{}!", of_size(32)),
            format!("{} {}", of_size(32), of_size(32)),
        ] {
            assert!(Secrets::parse(text.as_bytes()).is_none(), "{text}");
        }
        assert!(Secrets::parse(b"\xff").is_none());
    }
}
