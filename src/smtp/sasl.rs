//! SASL in AUTH (RFC 4954): the mechanisms PLAIN (RFC 4616) and LOGIN, responses in, challenges and credentials out.
//!
//! Knows nothing of who may what.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::effect::Credentials;
use super::reply::Reply;

/// The longest name of a user, in octets.
const USER_SIZE_MAX: usize = 255;

/// An exchange that waits for the next response.
#[derive(Debug)]
pub enum Exchange {
    /// PLAIN: everything is in one response.
    Plain,
    /// LOGIN: the name is to come.
    LoginUser,
    /// LOGIN: the password is to come.
    LoginPassword {
        /// Whose.
        user: Box<str>,
    },
}

/// What a response leads to.
pub enum Step {
    /// The reply that asks for the next response.
    Challenge(Exchange, Reply),
    /// To be looked at.
    Complete(Credentials),
    /// The exchange is over.
    Failed(Reply),
}

/// The argument of AUTH: a mechanism, and perhaps its initial response.
pub fn begin(arguments: &[u8]) -> Step {
    let mut words = arguments.split(|c| *c == b' ').filter(|word| !word.is_empty());
    let (Some(mechanism), initial, None) = (words.next(), words.next(), words.next()) else {
        return Step::Failed(Reply::BadArguments);
    };
    let (exchange, challenge) = if mechanism.eq_ignore_ascii_case(b"PLAIN") {
        (Exchange::Plain, Reply::Challenge)
    } else if mechanism.eq_ignore_ascii_case(b"LOGIN") {
        (Exchange::LoginUser, Reply::ChallengeUser)
    } else {
        return Step::Failed(Reply::UnknownMechanism);
    };
    match initial {
        None => Step::Challenge(exchange, challenge),
        // RFC 4954 §4: an empty initial response is sent as `=`.
        Some(b"=") => exchange.respond(b""),
        Some(response) => exchange.respond(response),
    }
}

impl Exchange {
    /// Takes a response as it was sent, without its CRLF.
    pub fn respond(self, response: &[u8]) -> Step {
        if response == b"*" {
            return Step::Failed(Reply::Cancelled);
        }
        let Ok(decoded) = STANDARD.decode(response).map(Zeroizing::new) else {
            return Step::Failed(Reply::BadResponse);
        };
        match self {
            Exchange::Plain => plain(&decoded).map_or_else(Step::Failed, Step::Complete),
            Exchange::LoginUser => match user(&decoded) {
                Ok(user) => Step::Challenge(Exchange::LoginPassword { user }, Reply::ChallengePassword),
                Err(why) => Step::Failed(why),
            },
            Exchange::LoginPassword { user } => Step::Complete(Credentials { user, password: decoded }),
        }
    }
}

/// `[authzid] NUL authcid NUL passwd`. To act as another user than the one whose password is given is permitted to nobody.
fn plain(message: &[u8]) -> Result<Credentials, Reply> {
    let mut parts = message.split(|c| *c == 0);
    let (Some(acts_as), Some(name), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Reply::BadResponse);
    };
    let user = user(name)?;
    if !acts_as.is_empty() && acts_as != name {
        return Err(Reply::WrongCredentials);
    }
    Ok(Credentials { user, password: Zeroizing::new(password.to_vec()) })
}

fn user(octets: &[u8]) -> Result<Box<str>, Reply> {
    let text = std::str::from_utf8(octets).map_err(|_| Reply::BadResponse)?;
    let is_name = !text.is_empty() && text.len() <= USER_SIZE_MAX && !text.chars().any(char::is_control);
    if is_name { Ok(text.into()) } else { Err(Reply::BadResponse) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays an exchange: `user:password`, or the reply it ends with.
    fn play(arguments: &str, responses: &[&str]) -> String {
        let mut step = begin(arguments.as_bytes());
        let mut responses = responses.iter();
        loop {
            match step {
                Step::Complete(Credentials { user, password }) => {
                    assert!(responses.next().is_none());
                    return format!("{user}:{}", password.escape_ascii());
                }
                Step::Failed(reply) => {
                    assert!(responses.next().is_none());
                    return std::str::from_utf8(&reply.octets()[..9]).unwrap().into();
                }
                Step::Challenge(exchange, _) => {
                    step = exchange.respond(responses.next().expect("no more challenges").as_bytes())
                }
            }
        }
    }

    #[test]
    fn credentials_come_out_as_they_were_given() {
        let base64 = |octets: &[u8]| STANDARD.encode(octets);
        let plain = |octets: &[u8]| format!("PLAIN {}", base64(octets));
        let (u, p) = (&base64(b"u")[..], &base64(b"p\0\xff")[..]);
        let table: [(String, &[&str], &str); 16] = [
            (plain(b"\0u\0p"), &[], "u:p"),
            (plain(b"u\0u\0p\xff"), &[], "u:p\\xff"),
            (plain("\0bü\0".as_bytes()), &[], "bü:"),
            ("plain".into(), &["AHUAcA=="], "u:p"),
            ("LOGIN".into(), &[u, p], "u:p\\x00\\xff"),
            (format!("login {u}"), &[p], "u:p\\x00\\xff"),
            (plain(b"other\0u\0p"), &[], "535 5.7.8"),
            (plain(b"u\0p"), &[], "501 5.5.2"),
            (plain(b"\0u\0p\0"), &[], "501 5.5.2"),
            (plain(b"\0\0p"), &[], "501 5.5.2"),
            (plain(b"\0a\nb\0p"), &[], "501 5.5.2"),
            ("PLAIN =".into(), &[], "501 5.5.2"),
            ("PLAIN".into(), &["*"], "501 5.7.0"),
            ("LOGIN".into(), &[u, "%"], "501 5.5.2"),
            ("CRAM-MD5".into(), &[], "504 5.5.4"),
            ("PLAIN a b".into(), &[], "501 5.5.4"),
        ];
        for (arguments, responses, expected) in table {
            assert_eq!(play(&arguments, responses), expected, "{arguments} {responses:?}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let credentials = Credentials { user: "u".into(), password: Zeroizing::new(b"secret".to_vec()) };
        assert!(!format!("{credentials:?}").contains("secret"));
    }
}
