//! Who we are to a server that wants to know (AUTH, RFC 4954).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::Offers;

/// A user and a password.
#[derive(Clone)]
pub struct Login {
    /// The user's name.
    pub user: String,
    /// Their password.
    pub password: Zeroizing<String>,
    /// Also where everybody on the way can read it.
    pub in_clear: bool,
}

/// The password is nobody's business.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).field("in_clear", &self.in_clear).finish()
    }
}

impl Login {
    /// What is said, line by line, each after a reply that asks for it: by PLAIN (RFC 4616), or by LOGIN where only that is offered. Nothing where
    /// neither is.
    pub(super) fn lines(&self, offers: &Offers) -> Option<Vec<Zeroizing<String>>> {
        let Login { user, password, .. } = self;
        if offers.names("AUTH", "PLAIN") {
            let words = Zeroizing::new(format!("\0{user}\0{}", password.as_str()));
            return Some(vec![Zeroizing::new(format!("AUTH PLAIN {}", STANDARD.encode(words.as_bytes())))]);
        }
        offers.names("AUTH", "LOGIN").then(|| {
            let encoded = |text: &str| Zeroizing::new(STANDARD.encode(text));
            vec![Zeroizing::new("AUTH LOGIN".into()), encoded(user), encoded(password)]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mechanism_is_one_that_is_offered() {
        let login =
            Login { user: "tim".into(), password: String::from("tanstaaftanstaaf").into(), in_clear: false };
        let table: [(&str, Option<&[&str]>); 5] = [
            // The example of RFC 4616 §4.
            ("mx\nAUTH LOGIN PLAIN", Some(&["AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm"])),
            ("mx\nauth plain", Some(&["AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm"])),
            ("mx\nAUTH LOGIN", Some(&["AUTH LOGIN", "dGlt", "dGFuc3RhYWZ0YW5zdGFhZg=="])),
            ("mx\nAUTH CRAM-MD5", None),
            ("mx\n8BITMIME", None),
        ];
        for (offers, expected) in table {
            let lines = login.lines(&Offers::new(offers.into()));
            let lines =
                lines.as_ref().map(|lines| lines.iter().map(|line| line.as_str()).collect::<Vec<_>>());
            assert_eq!(lines.as_deref(), expected, "{offers}");
        }
        assert!(!format!("{login:?}").contains("tanstaaf"));
    }
}
