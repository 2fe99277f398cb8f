//! What an endpoint's answer means for the recipients of a request. The table of `docs/DELIVERY.md`.
//!
//! | status | outcome |
//! |---|---|
//! | 2xx | delivered |
//! | 3xx | deferred: nobody has decided about the message, the URL is wrong |
//! | 413, 422, 451 | rejected: the endpoint does not want this message |
//! | 408, 425, 429 | deferred |
//! | every other 4xx | deferred, unless `reject_statuses` says otherwise |
//! | 502, 503, 504 | deferred, and the endpoint as a whole counts as failed |
//! | 5xx, and what is no answer at all | deferred |
//!
//! Why 4xx are deferred but for the three: they do not say that it is the message. 400 is what is said in clear to a port that wants TLS,
//! 401, 403 and 407 come from a secret that is wrong, 402 from an account, 404, 405, 410 and 421 from an endpoint that is not deployed yet
//! or a URL that is wrong, and all of them for every message: rejecting them would empty the whole queue into the dead letters. 409 and 423
//! say that the request with this key is still being worked on.
//!
//! A reason begins with `HTTP`: a bare status would be taken for a server's reply code (`422`, of which the sender is told).
//!
//! `Retry-After` is honoured with everything that is deferred (RFC 9110 §10.2.3), up to [`RETRY_AFTER_MAX`].

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;

use crate::delivery::Outcome;

/// An endpoint that asks for more is asked again after this all the same.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// Of what an endpoint says, characters.
const SAID_SIZE_MAX: usize = 300;

/// 4xx that say that it is the message.
const REJECTED: [u16; 3] = [413, 422, 451];
/// 4xx that are deferred whatever is configured: the endpoint asks for time.
const ALWAYS_DEFERRED: [u16; 3] = [408, 425, 429];
/// The endpoint is not there: what is before it says so.
const UNREACHABLE: [u16; 3] = [502, 503, 504];

/// An answer, as far as it matters.
pub struct Answer<'a> {
    /// Its status.
    pub status: StatusCode,
    /// Its field `Retry-After`.
    pub retry_after: Option<&'a str>,
    /// Its beginning, if it is text for people.
    pub said: &'a str,
    /// Who answered.
    pub host: &'a str,
}

/// Whether the configuration may make this status a rejection.
pub fn may_reject(status: u16) -> bool {
    (400..500).contains(&status) && !ALWAYS_DEFERRED.contains(&status)
}

impl Answer<'_> {
    /// The outcome it is at `now`, where `rejected` are further statuses that reject.
    pub fn outcome(&self, rejected: &[u16], now: SystemTime) -> Outcome {
        let status = self.status.as_u16();
        let deferred = match status {
            200..300 => return Outcome::delivered_saying(self.words("")),
            300..400 => Outcome::deferred(self.words("redirects are not followed: is the URL right?")),
            400..500 if REJECTED.contains(&status) || rejected.contains(&status) => {
                return Outcome::rejected(self.words(""));
            }
            _ if UNREACHABLE.contains(&status) => Outcome::unreachable(self.words("")),
            _ => Outcome::deferred(self.words("")),
        };
        match self.retry_after.and_then(|text| retry_after(text, now)) {
            Some(wait) => deferred.after(wait),
            None => deferred,
        }
    }

    /// `HTTP 503 Service Unavailable: closed for today (hooks.example.com)`.
    fn words(&self, ours: &str) -> String {
        let mut text = format!("HTTP {}", self.status.as_u16());
        if let Some(reason) = self.status.canonical_reason() {
            text += &format!(" {reason}");
        }
        for words in [ours, &printable(self.said)].into_iter().filter(|words| !words.is_empty()) {
            text += &format!(": {words}");
        }
        text + &format!(" ({})", self.host)
    }
}

/// How long to wait, where `text` says that: seconds, or a date (RFC 9110 §10.2.3).
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let wait = match is_number {
        // More digits than fit are as much as there can be.
        true => Duration::from_secs(text.parse().unwrap_or(u64::MAX)),
        // A date that has passed: at once.
        false => httpdate::parse_http_date(text).ok()?.duration_since(now).ok()?,
    };
    Some(wait.min(RETRY_AFTER_MAX)).filter(|wait| !wait.is_zero())
}

/// What may stand in a line of a log: words with one space between.
fn printable(text: &str) -> String {
    let is_printed = |c: char| !c.is_control() && c != char::REPLACEMENT_CHARACTER;
    let shown: String = text.chars().map(|c| if is_printed(c) { c } else { ' ' }).collect();
    let words: Vec<_> = shown.split_whitespace().collect();
    words.join(" ").chars().take(SAID_SIZE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Fault;

    fn outcome(status: u16, retry_after: Option<&str>, said: &str, rejected: &[u16]) -> Outcome {
        let status = StatusCode::from_u16(status).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        Answer { status, retry_after, said, host: "h.example" }.outcome(rejected, now)
    }

    #[test]
    fn every_status_is_delivered_deferred_or_rejected_as_documented() {
        const REJECTED_4XX: [u16; 3] = [413, 422, 451];
        for status in 100..1000 {
            let words = |outcome: &Outcome| outcome.reason().unwrap().to_string();
            match (status, outcome(status, None, "", &[])) {
                (200..300, Outcome::Delivered { .. }) => {}
                (502..=504, o @ Outcome::Deferred { fault: Fault::Target, .. }) => {
                    assert!(words(&o).starts_with(&format!("HTTP {status}")))
                }
                (400..500, o @ Outcome::Deferred { fault: Fault::Message, retry_after: None, .. }) => {
                    assert!(!REJECTED_4XX.contains(&status), "{status}");
                    assert!(words(&o).starts_with(&format!("HTTP {status}")));
                }
                (400..500, o @ Outcome::Rejected { .. }) => {
                    assert!(REJECTED_4XX.contains(&status), "{status}");
                    assert!(words(&o).starts_with(&format!("HTTP {status}")));
                }
                (100..200 | 300..400 | 500.., Outcome::Deferred { fault: Fault::Message, .. }) => {}
                (_, outcome) => panic!("{status}: {outcome:?}"),
            }
            if may_reject(status) {
                assert!(matches!(outcome(status, None, "", &[status]), Outcome::Rejected { .. }), "{status}");
            }
        }
        assert!([408, 425, 429, 399, 500].iter().all(|status| !may_reject(*status)));
    }

    #[test]
    fn retry_after_is_honoured_up_to_a_day() {
        // 784111777 is Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110 §5.6.7.
        let table = [
            ("120", Some(120)),
            (" 120 ", Some(120)),
            ("86400", Some(86_400)),
            ("86401", Some(86_400)),
            ("99999999999999999999999", Some(86_400)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Sun Nov  6 08:50:37 1994", Some(60)),
            ("Fri, 01 Jan 2100 00:00:00 GMT", Some(86_400)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:48:37 GMT", None),
            ("0", None),
            ("-5", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
        ];
        for status in [302, 401, 408, 425, 429, 500, 503] {
            for (text, seconds) in table {
                let expected = seconds.map(Duration::from_secs);
                match outcome(status, Some(text), "", &[]) {
                    Outcome::Deferred { retry_after, .. } => assert_eq!(retry_after, expected, "{text:?}"),
                    outcome => panic!("{status}: {outcome:?}"),
                }
            }
        }
        assert!(matches!(outcome(422, Some("120"), "", &[]), Outcome::Rejected { .. }));
    }

    #[test]
    fn a_reason_has_the_status_the_words_and_the_host_on_one_line() {
        let long = "x".repeat(1000);
        let table = [
            (
                422,
                "no\r\nsuch \x1b[31m  thing\u{fffd}",
                "HTTP 422 Unprocessable Entity: no such [31m thing (h.example)",
            ),
            (500, "", "HTTP 500 Internal Server Error (h.example)"),
            (599, "é", "HTTP 599: é (h.example)"),
            (
                301,
                "",
                "HTTP 301 Moved Permanently: redirects are not followed: is the URL right? (h.example)",
            ),
            (400, &long, &format!("HTTP 400 Bad Request: {} (h.example)", &long[..300])),
        ];
        for (status, said, expected) in table {
            assert_eq!(outcome(status, None, said, &[]).reason(), Some(expected));
        }
    }
}
