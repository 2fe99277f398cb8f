//! Asking a service over HTTP(S) whether a recipient exists.
//!
//! The status of the answer says it: 200 and 204 that there is one, 404 and 410 that there is none; everything else leaves it open. With 200, a body in JSON may say more: see [`Said`].

use std::fmt;
use std::path::PathBuf;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy as Redirects;
use reqwest::{Certificate, Client, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::inquiry::{Asking, Source, unknown};
use crate::mail::{ForwardPath, Mailbox, Refusal, Status, Tag};
use crate::policy::{Facts, Found, Unavailable, Verdict};

/// What a service may say at most, octets.
const BODY_SIZE_MAX: usize = 16 << 10;
/// Targets at most, as of an alias of a map.
const TARGETS_MAX: usize = 100;
/// Octets of a refusal's words at most: a reply is one line of 512 (RFC 5321 §4.5.3.1.5).
const REPLY_SIZE_MAX: usize = 400;
/// What a URL may take, octets: an address and a sender, each octet of them in three.
const URL_SIZE_MAX: usize = 4096;
/// Everything but what RFC 3986 §2.3 reserves nothing for: a local part cannot become a path or a query.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a question may have of a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placeholder {
    Address,
    Local,
    Domain,
    Sender,
    Client,
}

const PLACEHOLDERS: [(&str, Placeholder); 5] = [
    ("{address}", Placeholder::Address),
    ("{local}", Placeholder::Local),
    ("{domain}", Placeholder::Domain),
    ("{sender}", Placeholder::Sender),
    ("{client}", Placeholder::Client),
];

/// A URL with placeholders behind its host.
#[derive(Clone, Debug, PartialEq)]
pub struct UrlTemplate {
    text: String,
    /// Texts, and what follows each.
    pieces: Vec<(String, Option<Placeholder>)>,
    is_secure: bool,
}

impl UrlTemplate {
    /// What [`UrlTemplate::parse`] takes.
    pub const EXPECTED: &'static str = "a URL with placeholders behind its host, such as \"https://users.example.com/{domain}/{local}\", of \
                                        {address}, {local}, {domain}, {sender} and {client}, one of the first two at least";

    /// `None` where `text` is no such URL.
    pub fn parse(text: &str) -> Option<UrlTemplate> {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find('{') {
            let (name, placeholder) = PLACEHOLDERS.iter().find(|(name, _)| rest[at..].starts_with(name))?;
            pieces.push((rest[..at].to_string(), Some(*placeholder)));
            rest = &rest[at + name.len()..];
        }
        pieces.push((rest.to_string(), None));
        let names_somebody =
            |piece: &(_, _)| matches!(piece.1, Some(Placeholder::Address | Placeholder::Local));
        let is_one_at_least = pieces.iter().any(names_somebody);
        let mut template = UrlTemplate { text: text.into(), pieces, is_secure: false };
        let filled = |value: &str| Url::parse(&template.fill(|_| value.into())).ok();
        let (url, other) = (filled("x")?, filled("y")?);
        // Whom we ask is not for those to say whom we ask about.
        let is_same_host = url.origin() == other.origin() && url.username() == other.username();
        let is_fit = is_one_at_least
            && is_same_host
            && url.host().is_some()
            && url.username().is_empty()
            && url.password().is_none()
            && url.fragment().is_none()
            && text.len() < URL_SIZE_MAX / 2;
        template.is_secure = url.scheme() == "https";
        (is_fit && matches!(url.scheme(), "http" | "https")).then_some(template)
    }

    fn fill(&self, value: impl Fn(Placeholder) -> String) -> String {
        let mut url = String::with_capacity(self.text.len() + 64);
        for (text, placeholder) in &self.pieces {
            url.push_str(text);
            if let Some(placeholder) = placeholder {
                url.extend(utf8_percent_encode(&value(*placeholder), ENCODED));
            }
        }
        url
    }
}

impl fmt::Display for UrlTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whom to ask, and how.
#[derive(Clone, Debug)]
pub struct HttpService {
    /// What is asked for.
    pub url: UrlTemplate,
    /// A file with one header field for every question, as `Authorization: Bearer …`.
    pub header_file: Option<PathBuf>,
    /// A file with the certificates of those who may vouch for the service, instead of the system's.
    pub authorities: Option<PathBuf>,
    /// Questions at a time, each with a connection of its own.
    pub connections_max: usize,
}

/// Asks a service.
pub struct HttpLookup {
    url: UrlTemplate,
    client: Client,
    places: Semaphore,
}

impl HttpLookup {
    /// Reads the files that `service` names. An error is in words.
    pub fn new(service: &HttpService) -> Result<HttpLookup, String> {
        let read =
            |path: &PathBuf| std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()));
        let mut builder = Client::builder()
            // Nothing between us and the service but what the operator has named; and no other place than that.
            .no_proxy()
            .redirect(Redirects::none())
            .referer(false)
            .https_only(service.url.is_secure)
            .http1_only()
            .pool_max_idle_per_host(service.connections_max)
            .user_agent(concat!("incoming/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &service.header_file {
            let words = "expected one header field such as \"Authorization: Bearer secret\"";
            let (name, value) = header(&read(path)?).ok_or(format!("{}: {words}", path.display()))?;
            builder = builder.default_headers(HeaderMap::from_iter([(name, value)]));
        }
        match &service.authorities {
            Some(path) => {
                let failed =
                    |e: &dyn fmt::Display| format!("{}: no certificates in PEM: {e}", path.display());
                let certificates = Certificate::from_pem_bundle(&read(path)?).map_err(|e| failed(&e))?;
                if certificates.is_empty() {
                    return Err(failed(&"it is empty"));
                }
                builder = builder.tls_certs_only(certificates);
            }
            // A machine without certificates can ask in clear all the same.
            None if !service.url.is_secure => builder = builder.tls_certs_only([]),
            None => {}
        }
        let client =
            builder.build().map_err(|e| format!("no client for HTTP can be made: {}", reasons(&e)))?;
        let places = Semaphore::new(service.connections_max);
        Ok(HttpLookup { url: service.url.clone(), client, places })
    }

    async fn find(&self, url: &str) -> Found {
        let failed = |e: reqwest::Error| Unavailable(format!("HTTP: {}", reasons(&e.without_url())));
        let _place = self.places.acquire().await.expect("it is never closed");
        let response = self.client.get(url).send().await.map_err(failed)?;
        match response.status() {
            StatusCode::OK if is_json(&response) => judge(&read_body(response).await?),
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(Verdict::Accept),
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(unknown()),
            status => Err(Unavailable(format!("HTTP: the service answered {}", status.as_u16()))),
        }
    }
}

/// An error with what it was caused by, in one line.
fn reasons(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn header(octets: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let text = std::str::from_utf8(octets).ok()?.trim();
    let (name, value) = text.split_once(':')?;
    let mut value = HeaderValue::from_str(value.trim()).ok()?;
    value.set_sensitive(true);
    Some((HeaderName::from_bytes(name.trim().as_bytes()).ok()?, value))
}

fn is_json(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

async fn read_body(mut response: Response) -> Result<Vec<u8>, Unavailable> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > BODY_SIZE_MAX => {
                return Err(Unavailable(format!("HTTP: the service says more than {BODY_SIZE_MAX} octets")));
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body),
            Err(e) => return Err(Unavailable(format!("HTTP: {}", reasons(&e.without_url())))),
        }
    }
}

/// What a service says beyond a status. Keys that are not known are left alone.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    verdict: Word,
    /// The words of a refusal.
    reply: Option<String>,
    /// Goes with the message.
    tag: Option<String>,
    /// These stand for the recipient.
    targets: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    #[default]
    Accept,
    Reject,
    Defer,
}

fn judge(body: &[u8]) -> Found {
    // An object first: a list would pass for one with its values in order.
    let object = serde_json::from_slice(body).map(serde_json::Value::Object);
    let said: Said = object
        .and_then(serde_json::from_value)
        .map_err(|e| Unavailable(format!("HTTP: not as agreed: {e}")))?;
    let refused = |status, text: &str| {
        let text = said.reply.as_deref().map_or(text.into(), printable);
        Ok(Verdict::Refuse(Refusal { text: text.into(), ..Refusal::new(status, "") }))
    };
    match said.verdict {
        Word::Reject => refused(Status::permanent(1, 1), super::NO_SUCH_USER),
        Word::Defer => refused(Status::temporary(2, 0), "Recipient not available, try again later"),
        Word::Accept => match (&said.tag, &said.targets[..]) {
            (None, []) => Ok(Verdict::Accept),
            (Some(tag), []) => {
                let expected = || Unavailable(format!("HTTP: expected {}", Tag::EXPECTED));
                Tag::parse(tag).map(Verdict::Tag).ok_or_else(expected)
            }
            (None, targets) if targets.len() <= TARGETS_MAX => {
                let parse = |text: &String| Mailbox::parse(text, true).map(ForwardPath::Mailbox);
                let targets: Result<Vec<_>, _> = targets.iter().map(parse).collect();
                targets
                    .map(Verdict::Replace)
                    .map_err(|_| Unavailable::new("HTTP: a target that is no address"))
            }
            (None, _) => Err(Unavailable(format!("HTTP: more than {TARGETS_MAX} targets"))),
            (Some(_), _) => Err(Unavailable::new("HTTP: a tag and targets: expected one of them")),
        },
    }
}

/// What may stand in a reply.
fn printable(text: &str) -> String {
    let printable = |c| if matches!(c, ' '..='~') { c } else { '?' };
    text.chars().take(REPLY_SIZE_MAX).map(printable).collect()
}

impl Source for HttpLookup {
    /// The URL: it has everything that the service is told.
    fn question(&self, mailbox: &Mailbox, facts: &Facts<'_>) -> String {
        self.url.fill(|placeholder| match placeholder {
            Placeholder::Address => format!("{}@{}", mailbox.local_part(), mailbox.canonical_domain()),
            Placeholder::Local => mailbox.local_part().into(),
            Placeholder::Domain => mailbox.canonical_domain().into(),
            Placeholder::Sender => facts.reverse_path.map_or("", |path| path.as_str()).into(),
            Placeholder::Client => facts.peer.ip().to_canonical().to_string(),
        })
    }

    fn ask<'a>(&'a self, question: &'a str) -> Asking<'a> {
        Box::pin(self.find(question))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::ReversePath;

    fn lookup(url: &str) -> HttpLookup {
        let url = UrlTemplate::parse(url).unwrap_or_else(|| panic!("{url}"));
        let service = HttpService { url, header_file: None, authorities: None, connections_max: 1 };
        HttpLookup::new(&service).unwrap()
    }

    #[test]
    fn a_question_holds_what_the_url_asks_for_and_nothing_breaks_out_of_its_place() {
        let url = "http://u.example/a/{domain}/{local}?of={address}&from={sender}&ip={client}";
        let table = [
            (
                "alice@x.example",
                "b@y.example",
                "a/x.example/alice?of=alice%40x.example&from=b%40y.example&ip=192.0.2.1",
            ),
            (
                "a/b?c#d=&e@BÜCHER.example",
                "",
                "a/xn--bcher-kva.example/a%2Fb%3Fc%23d%3D%26e?of=a%2Fb%3Fc%23d%3D%26e%40xn--bcher-kva.example&from=&ip=192.0.2.1",
            ),
            ("\"..\"@x.example", "", "a/x.example/%22..%22?of=%22..%22%40x.example&from=&ip=192.0.2.1"),
            (
                "{local}%41@x.example",
                "",
                "a/x.example/%7Blocal%7D%2541?of=%7Blocal%7D%2541%40x.example&from=&ip=192.0.2.1",
            ),
            ("é@x.example", "", "a/x.example/%C3%A9?of=%C3%A9%40x.example&from=&ip=192.0.2.1"),
        ];
        for (recipient, sender, expected) in table {
            let mailbox = Mailbox::parse(recipient, true).unwrap();
            let sender = ReversePath::parse(sender, true).unwrap();
            let facts = Facts { reverse_path: Some(&sender), ..Facts::of("::ffff:192.0.2.1") };
            let question = lookup(url).question(&mailbox, &facts);
            assert_eq!(question, format!("http://u.example/{expected}"));
            assert_eq!(Url::parse(&question).unwrap().as_str(), question, "it is sent as it is");
        }
    }

    #[test]
    fn a_url_is_of_one_host_and_names_the_recipient() {
        for url in [
            "https://u.example/{address}",
            "http://127.0.0.1:8080/?u={local}&d={domain}",
            "http://[::1]/{local}",
        ] {
            assert_eq!(UrlTemplate::parse(url).unwrap().to_string(), url);
        }
        for url in [
            "",
            "u.example/{address}",
            "ftp://u.example/{address}",
            "https://u.example/",
            "https://u.example/{sender}",
            "https://{domain}/{local}",
            "https://u.example:{local}/",
            "https://{local}@u.example/{local}",
            "https://me:secret@u.example/{local}",
            "https://u.example/{user}",
            "https://u.example/{local",
            "https://u.example/#{local}",
        ] {
            assert_eq!(UrlTemplate::parse(url), None, "{url}");
        }
    }

    #[test]
    fn what_a_service_says_becomes_a_verdict() {
        let paths =
            |texts: &[&str]| texts.iter().map(|text| ForwardPath::parse(text, true).unwrap()).collect();
        let long = format!(r#"{{"verdict": "reject", "reply": "{}"}}"#, "x".repeat(1000));
        let refused = |status, text: &str| {
            Ok(Verdict::Refuse(Refusal { text: text.to_string().into(), ..Refusal::new(status, "") }))
        };
        let table: [(&str, Found); 8] = [
            ("{}", Ok(Verdict::Accept)),
            (r#"{"verdict": "accept", "more": [1]}"#, Ok(Verdict::Accept)),
            (r#"{"tag": "vip"}"#, Ok(Verdict::Tag(Tag::parse("vip").unwrap()))),
            (
                r#"{"targets": ["a@b.example", "c@d.example"]}"#,
                Ok(Verdict::Replace(paths(&["a@b.example", "c@d.example"]))),
            ),
            (r#"{"verdict": "reject"}"#, refused(Status::permanent(1, 1), "No such user here")),
            (
                r#"{"verdict": "reject", "reply": "gone\r\n250 é"}"#,
                refused(Status::permanent(1, 1), "gone??250 ?"),
            ),
            (
                r#"{"verdict": "defer"}"#,
                refused(Status::temporary(2, 0), "Recipient not available, try again later"),
            ),
            (&long, refused(Status::permanent(1, 1), &"x".repeat(400))),
        ];
        for (body, expected) in table {
            assert_eq!(judge(body.as_bytes()), expected, "{body}");
        }
        let many = format!(r#"{{"targets": [{}]}}"#, vec![r#""a@b.example""#; 101].join(","));
        for body in [
            "",
            "[]",
            "no",
            r#"{"verdict": "maybe"}"#,
            r#"{"tag": "a b"}"#,
            r#"{"targets": ["postmaster"]}"#,
            r#"{"targets": ["a@b.example\r\nx"]}"#,
            r#"{"targets": "a@b.example"}"#,
            r#"{"tag": "vip", "targets": ["a@b.example"]}"#,
            &many,
        ] {
            assert!(judge(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn a_header_is_one_field() {
        assert!(header(b"Authorization: Bearer x\n").is_some());
        for octets in [&b""[..], b"secret", b": x", b"A: b\nC: d", b"A B: c", b"A: \xff"] {
            assert!(header(octets).is_none(), "{octets:?}");
        }
    }
}
