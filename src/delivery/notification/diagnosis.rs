//! What a reason tells a sender: a status, and those of its words that are meant for others than our operator.

use std::net::IpAddr;

use crate::mail::{Class, Domain, Status};

/// A reason taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Diagnosis<'a> {
    /// The enhanced status code it gives, or what its reply code stands for, or what was expected.
    pub status: Status,
    /// The reason, if it is for the sender: a reply, or words of ours with a status code in front. Everything else is for our operator: it may
    /// name folders, URLs or machines.
    pub words: Option<&'a str>,
    /// Whether `words` is the reply of a server.
    pub is_reply: bool,
    /// Who gave that reply, as a name of type `dns`.
    pub remote: Option<String>,
}

/// Takes `reason` apart; `otherwise` is the status if it has none.
pub(super) fn diagnose(reason: &str, otherwise: Status) -> Diagnosis<'_> {
    let Some((class, behind)) = reply_code(reason) else {
        let status = Status::leading(reason).filter(|status| status.class != Class::Success);
        return Diagnosis {
            status: status.unwrap_or(otherwise),
            words: status.map(|_| split_remote(reason, false).0),
            is_reply: false,
            remote: None,
        };
    };
    // RFC 2034 §4: the class of both is the same.
    let status = Status::leading(behind).filter(|status| status.class == class);
    let (words, remote) = split_remote(reason, true);
    Diagnosis {
        status: match class {
            // A reply that says yes explains no failure.
            Class::Success => otherwise,
            // RFC 3461 §6.3 (g).
            _ => status.unwrap_or(Status { class, subject: 0, detail: 0 }),
        },
        words: Some(words),
        is_reply: true,
        remote,
    }
}

/// The class of the reply code at the start of `text`, and what is behind it.
fn reply_code(text: &str) -> Option<(Class, &str)> {
    let (code, behind) = text.split_at_checked(3)?;
    let class = match code.as_bytes() {
        [b'2', b'0'..=b'5', b'0'..=b'9'] => Class::Success,
        [b'4', b'0'..=b'5', b'0'..=b'9'] => Class::Temporary,
        [b'5', b'0'..=b'5', b'0'..=b'9'] => Class::Permanent,
        _ => return None,
    };
    let behind = if behind.is_empty() { behind } else { behind.strip_prefix([' ', '-'])? };
    Some((class, behind))
}

/// The words, and who gave the reply, where ` (host:port, after …)` stands at the end; words of ours have no step there. A socket of this
/// machine is nobody else's business.
fn split_remote(reason: &str, is_reply: bool) -> (&str, Option<String>) {
    let split = || {
        let (words, place) = reason.strip_suffix(')')?.rsplit_once(" (")?;
        let endpoint = match place.split_once(", after ") {
            Some((endpoint, _)) => endpoint,
            None if is_reply => return None,
            None => place,
        };
        let (host, port) = endpoint.rsplit_once(':')?;
        port.parse::<u16>().ok()?;
        Some((words, host))
    };
    let Some((words, host)) = split() else {
        let socket = reason.rfind(" (unix:").filter(|_| reason.ends_with(')'));
        return (&reason[..socket.unwrap_or(reason.len())], None);
    };
    let remote = match host.trim_matches(['[', ']']).parse() {
        Ok(IpAddr::V4(v4)) => Some(format!("[{v4}]")),
        Ok(IpAddr::V6(v6)) => Some(format!("[IPv6:{v6}]")),
        Err(_) => Domain::parse(host, false).ok().map(|domain| domain.as_str().to_owned()),
    };
    (words, remote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_gives_its_status_and_what_may_be_told() {
        let expired = Status::temporary(4, 7);
        let all = |status: &'static str| move |words: &'static str| (status, Some(words));
        let table = [
            ("550 5.1.1 no such user", all("5.1.1")("550 5.1.1 no such user"), true, None),
            (
                "550 5.1.1 no such user (mx1.example:25, after RCPT)",
                all("5.1.1")("550 5.1.1 no such user"),
                true,
                Some("mx1.example"),
            ),
            ("550 no (192.0.2.1:24, after RCPT)", all("5.0.0")("550 no"), true, Some("[192.0.2.1]")),
            ("550 no ([::1]:24, after RCPT)", all("5.0.0")("550 no"), true, Some("[IPv6:::1]")),
            ("451 4.3.0 (x_y:24, after DATA)", all("4.3.0")("451 4.3.0"), true, None),
            ("550 no (unix:/run/lmtp, after RCPT)", all("5.0.0")("550 no"), true, None),
            ("550 no (unix:/a (b)/c, after RCPT)", all("5.0.0")("550 no"), true, None),
            ("550 no (mx:25)", all("5.0.0")("550 no (mx:25)"), true, None),
            ("550 no (really)", all("5.0.0")("550 no (really)"), true, None),
            ("451-4.7.1 later", all("4.7.1")("451-4.7.1 later"), true, None),
            ("550", all("5.0.0")("550"), true, None),
            ("550 4.1.1 classes differ", all("5.0.0")("550 4.1.1 classes differ"), true, None),
            ("550 5.01.1 a zero", all("5.0.0")("550 5.01.1 a zero"), true, None),
            ("550 5.1.1.1 four", all("5.0.0")("550 5.1.1.1 four"), true, None),
            ("550 5.1000.1 four digits", all("5.0.0")("550 5.1000.1 four digits"), true, None),
            ("250 2.0.0 yes", all("4.4.7")("250 2.0.0 yes"), true, None),
            ("5.6.3 it cannot be carried", all("5.6.3")("5.6.3 it cannot be carried"), false, None),
            ("5.3.4 too large (unix:/run/lmtp)", all("5.3.4")("5.3.4 too large"), false, None),
            ("5.3.4 too large (mx1.example:25)", all("5.3.4")("5.3.4 too large"), false, None),
            ("5.2.2 full (exit code 1)", all("5.2.2")("5.2.2 full (exit code 1)"), false, None),
            ("HTTP 422 Unprocessable Entity: 5.1.1 no (app.internal:8443)", ("4.4.7", None), false, None),
            ("2.0.0 yes", ("4.4.7", None), false, None),
            ("/var/mail/b: Permission denied", ("4.4.7", None), false, None),
            ("5501 octets", ("4.4.7", None), false, None),
            ("560 no such code", ("4.4.7", None), false, None),
            ("55é", ("4.4.7", None), false, None),
            ("", ("4.4.7", None), false, None),
        ];
        for (reason, (status, words), is_reply, remote) in table {
            let diagnosis = diagnose(reason, expired);
            assert_eq!(diagnosis.status.to_string(), status, "{reason}");
            let remote = remote.map(String::from);
            let expected = Diagnosis { status: diagnosis.status, words, is_reply, remote };
            assert_eq!(diagnosis, expected, "{reason}");
        }
    }
}
