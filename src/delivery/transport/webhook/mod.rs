//! Hands messages to an application over HTTP(S): one POST, signed, with a key by which a second delivery is known.
//!
//! A message is sent as it is (`message/rfc822`, the envelope in header fields) or as JSON with its envelope, its header fields and
//! its content. It is streamed either way, at the cost of reading it twice where it is signed and large:
//! a signature stands before what it signs, and nobody takes trailers.
//!
//! A request is for all its recipients: they have one outcome. Who has so many that one request cannot name them gets several; which
//! recipients go together is decided by the envelope alone, so that the same request is made again after a failure, with the same key.
//!
//! Invariants:
//! - delivered is only what an endpoint has answered 2xx after the last octet was on its way;
//! - an endpoint that is away, silent, or not who it should be (TLS) defers, and nothing was sent to it in the last case;
//! - no octet of a message goes anywhere but to the host of the URL.

mod answer;
mod body;
mod endpoint;
mod fields;
mod signature;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_lite::future;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Body, Response};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use self::answer::Answer;
use self::body::{Encoder, Form};
use self::endpoint::Clients;
use self::signature::Secrets;
use crate::delivery::record::{ArrivalRecord, EnvelopeRecord};
use crate::delivery::{
    Address, Attempt, Chunks, CopyError, Delivering, Delivery, HeaderFields, HeaderReader, Outcome,
};
use crate::limits::{COPY_SIZE, MIB};
use crate::mail::{Capabilities, Envelope};

pub use answer::may_reject;
pub use endpoint::WebhookUrl;

/// Content up to this is read once and kept until it is sent, octets.
const WHOLE_SIZE_MAX: u64 = COPY_SIZE as u64;
/// Of an answer's body, octets: what is left of it costs the connection.
const SAID_SIZE_MAX: usize = 4 << 10;
/// How long an endpoint may take to say it, once its answer has begun.
const SAID_TIMEOUT: Duration = Duration::from_secs(5);

/// An endpoint, and how it is spoken to.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where messages are posted.
    pub url: WebhookUrl,
    /// What is posted.
    pub format: Format,
    /// A file with the secrets that sign requests; none: they are not signed.
    pub secret_file: Option<PathBuf>,
    /// A file with header fields that go with every request.
    pub header_file: Option<PathBuf>,
    /// A file with the certificates of those who may vouch for the endpoint, instead of the system's.
    pub authorities: Option<PathBuf>,
    /// From the lookup of the name to the end of the handshake.
    pub connect_timeout: Duration,
    /// For each piece of a message, and until the answer begins; for the whole once, and once more for each MiB.
    pub timeout: Duration,
    /// Recipients of one request.
    pub recipients_per_request_max: usize,
    /// Statuses that reject beside those that always do; see [`may_reject`].
    pub reject_statuses: Vec<u16>,
}

/// What a request's body is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The content as it is; the envelope is in header fields.
    #[default]
    Rfc822,
    /// An object with the envelope, the header fields and the content in base64.
    Json,
}

/// Posts messages to an endpoint.
pub struct Webhook {
    /// What the transport is called.
    name: Box<str>,
    settings: Settings,
    clients: Clients,
    secrets: Option<Secrets>,
    /// What reasons call the endpoint.
    host: String,
}

/// The members of a JSON body before its content.
#[derive(Serialize)]
struct Record<'a> {
    message_id: String,
    /// Octets of the content.
    size: u64,
    /// Of the recipients, those of this request only.
    envelope: EnvelopeRecord,
    arrival: ArrivalRecord,
    /// Decoded (RFC 2047).
    subject: Option<String>,
    from: Vec<Address>,
    to: Vec<Address>,
    cc: Vec<Address>,
    /// Name and value of every field, unfolded, in order.
    header: Vec<(&'a str, std::borrow::Cow<'a, str>)>,
    /// There are more fields than these.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    header_is_cut: bool,
}

impl Webhook {
    /// The transport called `name`, to the endpoint of `settings`, whose files are read. An error is in words that follow that name.
    pub fn new(name: &str, settings: Settings) -> Result<Self, String> {
        let (clients, secrets) = (Clients::new(&settings)?, endpoint::secrets(&settings)?);
        let host = settings.url.host();
        Ok(Webhook { name: name.into(), settings, clients, secrets, host })
    }

    async fn deliver_all(&self, attempt: &Attempt) -> Vec<Outcome> {
        let groups =
            Groups::of(&attempt.envelope, self.settings.format, self.settings.recipients_per_request_max);
        let mut parts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, recipient) in attempt.recipients.iter().enumerate() {
            parts.entry(groups.group(recipient.index)).or_default().push(at);
        }
        let mut outcomes = vec![None; attempt.recipients.len()];
        let mut of_target: Option<Outcome> = None;
        for places in parts.into_values() {
            let outcome = match &of_target {
                // It would not be there for the next request either.
                Some(outcome) => outcome.clone(),
                None => {
                    let recipients = places.iter().map(|at| attempt.recipients[*at]).collect();
                    let part = Attempt {
                        id: attempt.id,
                        envelope: attempt.envelope.clone(),
                        arrival: attempt.arrival.clone(),
                        recipients,
                        content: attempt.content.clone(),
                    };
                    self.request(&part).await
                }
            };
            if outcome.is_of_target() {
                of_target = Some(outcome.clone());
            }
            places.iter().for_each(|at| outcomes[*at] = Some(outcome.clone()));
        }
        outcomes.into_iter().map(|outcome| outcome.expect("every recipient is in a group")).collect()
    }

    /// One request for all recipients of `attempt`.
    async fn request(&self, attempt: &Attempt) -> Outcome {
        let mebis = attempt.content_size() / MIB;
        let whole =
            self.settings.timeout.saturating_mul(u32::try_from(mebis).unwrap_or(u32::MAX).saturating_add(1));
        match timeout(whole, self.exchange(attempt)).await {
            // It has decided, however long it takes to say why.
            Ok(Ok(response)) => self.judge(response).await,
            Ok(Err(failure)) => self.outcome_of(failure),
            Err(_) => self.outcome_of(Failure::TimedOut),
        }
    }

    /// Until the header of the answer is there.
    async fn exchange(&self, attempt: &Attempt) -> Result<Response, Failure> {
        let form = match self.settings.format {
            Format::Rfc822 => Form::Plain,
            Format::Json => Form::json(members(attempt, &read_header(attempt).await?)),
        };
        let key = attempt.key(&self.name);
        let timestamp = unix_time();
        let mut signing = self.secrets.as_ref().map(|secrets| secrets.begin(&key, timestamp));
        let is_small = attempt.content_size() <= WHOLE_SIZE_MAX;
        let mut whole = Vec::new();
        if is_small || signing.is_some() {
            let mut pieces = Pieces::of(attempt, &form);
            while let Some(piece) = pieces.next().await? {
                if let Some(signing) = &mut signing {
                    signing.update(&piece);
                }
                if is_small {
                    whole.extend_from_slice(&piece);
                }
            }
        }
        let client = self.clients.get().map_err(Failure::NoClient)?;
        let mut request = client
            .post(self.settings.url.url())
            .header("idempotency-key", &key)
            .header("webhook-id", &key)
            .header("webhook-timestamp", timestamp)
            .header("x-incoming-message-id", attempt.id.to_string());
        if let Some(signing) = signing {
            request = request.header("webhook-signature", signing.finish());
        }
        match self.settings.format {
            Format::Rfc822 => {
                request = request.header(CONTENT_TYPE, "message/rfc822");
                for (name, value) in fields::fields(&attempt.envelope, &attempt.arrival, attempt.paths()) {
                    request = request.header(name, value);
                }
            }
            Format::Json => request = request.header(CONTENT_TYPE, "application/json"),
        }
        if is_small {
            let answered = request.body(whole).send();
            return Ok(timeout(self.settings.timeout, answered).await.map_err(|_| Failure::TimedOut)??);
        }
        let size = form.size(attempt.content_size());
        let (sender, feed) = body::feed(size);
        let answered = async { Ok(request.body(Body::wrap(feed)).send().await?) };
        let mut feeding = Feeding { pieces: Pieces::of(attempt, &form), left: size };
        let response = future::or(answered, feeding.run(sender, self.settings.timeout)).await?;
        if response.status().is_success() && feeding.left > 0 {
            return Err(Failure::EarlySuccess(response.status().as_u16()));
        }
        Ok(response)
    }

    async fn judge(&self, response: Response) -> Outcome {
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.map(String::from);
        let said = read_said(response).await;
        let answer = Answer { status, retry_after: retry_after.as_deref(), said: &said, host: &self.host };
        answer.outcome(&self.settings.reject_statuses, SystemTime::now())
    }

    fn outcome_of(&self, failure: Failure) -> Outcome {
        let host = &self.host;
        match failure {
            Failure::Content(e) => Outcome::unasked(CopyError::Read(e).to_string()),
            Failure::NoClient(words) => Outcome::unasked(words),
            Failure::TimedOut => Outcome::unreachable(format!("{host}: no answer in time")),
            Failure::EarlySuccess(status) => {
                Outcome::deferred(format!("HTTP {status} before it had the whole message ({host})"))
            }
            Failure::Http(e) => {
                let is_of_target = e.is_connect() || e.is_timeout();
                let e = e.without_url();
                let cause = std::error::Error::source(&e).unwrap_or(&e);
                let words = format!("{host}: {}", endpoint::reasons(cause));
                if is_of_target { Outcome::unreachable(words) } else { Outcome::deferred(words) }
            }
        }
    }
}

impl Delivery for Webhook {
    /// Any octets go, and to nobody but the endpoint. Nobody here tells a sender that it was delivered.
    fn capabilities(&self) -> Capabilities {
        Capabilities { binary: true, dsn: false, require_tls: self.settings.url.is_secure() }
    }

    fn deliver<'a>(&'a self, attempt: &'a Attempt) -> Delivering<'a> {
        Box::pin(self.deliver_all(attempt))
    }
}

/// Why there is no answer.
enum Failure {
    /// The content cannot be read.
    Content(io::Error),
    /// There is none on this thread.
    NoClient(String),
    Http(reqwest::Error),
    TimedOut,
    /// It says that it has what it does not have.
    EarlySuccess(u16),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Content(error)
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        Failure::Http(error)
    }
}

/// The pieces of a body, none of them empty.
struct Pieces<'a> {
    chunks: Chunks<'a>,
    head: Bytes,
    /// Until the last piece.
    encoder: Option<Encoder<'a>>,
}

impl<'a> Pieces<'a> {
    fn of(attempt: &'a Attempt, form: &'a Form) -> Self {
        let (head, encoder) = form.begin();
        Pieces { chunks: attempt.chunks(), head, encoder: Some(encoder) }
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if !self.head.is_empty() {
            return Ok(Some(std::mem::take(&mut self.head)));
        }
        while let Some(encoder) = &mut self.encoder {
            let piece = match self.chunks.next().await {
                Some(chunk) => encoder.piece(chunk?),
                None => self.encoder.take().expect("it is here").end(),
            };
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }
}

/// Hands a body to the client.
struct Feeding<'a> {
    pieces: Pieces<'a>,
    /// Octets that the client does not have yet.
    left: u64,
}

impl Feeding<'_> {
    /// Fails where the content does, and where the endpoint takes longer than `patience` for a piece or for its answer, which comes
    /// elsewhere.
    async fn run<T>(&mut self, sender: mpsc::Sender<Bytes>, patience: Duration) -> Result<T, Failure> {
        while let Some(piece) = self.pieces.next().await? {
            let size = piece.len() as u64;
            match timeout(patience, sender.send(piece)).await {
                Ok(Ok(())) => self.left -= size,
                // The client takes no more, and says why.
                Ok(Err(_)) => break,
                Err(_) => return Err(Failure::TimedOut),
            }
        }
        sleep(patience).await;
        Err(Failure::TimedOut)
    }
}

/// Which recipients go together: consecutive ones of the envelope.
struct Groups {
    /// Of each group but the first, its first recipient.
    starts: Vec<u32>,
}

impl Groups {
    fn of(envelope: &Envelope, format: Format, recipients_max: usize) -> Self {
        let mut starts = Vec::new();
        let (mut count, mut size) = (0, 0);
        for (index, path) in (0..).zip(&envelope.forward_paths) {
            let added = match format {
                Format::Rfc822 => fields::recipient_size(path),
                Format::Json => 0,
            };
            if count == recipients_max || count > 0 && size + added > fields::RECIPIENTS_SIZE_MAX {
                starts.push(index);
                (count, size) = (0, 0);
            }
            (count, size) = (count + 1, size + added);
        }
        Groups { starts }
    }

    fn group(&self, index: u32) -> usize {
        self.starts.partition_point(|start| *start <= index)
    }
}

async fn read_header(attempt: &Attempt) -> io::Result<HeaderFields> {
    let (mut reader, mut chunks) = (HeaderReader::default(), attempt.chunks());
    while let Some(chunk) = chunks.next().await {
        if reader.push(&chunk?) {
            break;
        }
    }
    Ok(reader.finish())
}

/// An object with everything but the content.
fn members(attempt: &Attempt, header: &HeaderFields) -> Vec<u8> {
    let record = Record {
        message_id: attempt.id.to_string(),
        size: attempt.content_size(),
        envelope: EnvelopeRecord::from(&attempt.envelope.only(attempt.recipients.iter().map(|r| r.index))),
        arrival: ArrivalRecord::from(&*attempt.arrival),
        subject: header.get("subject").map(|field| field.decoded()),
        from: header.addresses("from"),
        to: header.addresses("to"),
        cc: header.addresses("cc"),
        header: header.iter().map(|field| (field.name(), field.value())).collect(),
        header_is_cut: !header.is_whole(),
    };
    serde_json::to_vec(&record).expect("a record is plain data")
}

/// The beginning of an answer's body where it is text; the rest of a short one is read, so that the connection serves again.
async fn read_said(mut response: Response) -> String {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_text = kind == "text/plain" || kind == "application/json" || kind.ends_with("+json");
    let mut said = Vec::new();
    let reading = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            said.extend_from_slice(&chunk[..chunk.len().min(SAID_SIZE_MAX - said.len())]);
            if said.len() == SAID_SIZE_MAX {
                break;
            }
        }
    };
    // What an endpoint has decided stands in the status: an answer that does not end takes nothing back.
    let _ = timeout(SAID_TIMEOUT, reading).await;
    if is_text { String::from_utf8_lossy(&said).into_owned() } else { String::new() }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use proptest::prelude::*;
    use serde_json::{Value, json};
    use tokio::runtime::Runtime;

    use super::*;
    use crate::delivery::tests::attempt_for;
    use crate::delivery::{Content, Recipient, StoredContent};
    use crate::mail::{ForwardPath, ReversePath};

    fn envelope(local_sizes: &[usize]) -> Envelope {
        let path = |(n, size): (usize, &usize)| {
            ForwardPath::parse(&format!("{n}{}@x.example", "%".repeat(*size)), false).unwrap()
        };
        Envelope::new(ReversePath::Null, local_sizes.iter().enumerate().map(path).collect())
    }

    #[test]
    fn recipients_are_grouped_by_count_and_by_what_fits_a_field() {
        // Ten of 163 octets in the field, the others of 164.
        let long = vec![50; 30];
        let table = [
            (Format::Json, &long[..], 1000, vec![]),
            (Format::Json, &long, 10, vec![10, 20]),
            (Format::Rfc822, &[1; 7], 3, vec![3, 6]),
            (Format::Rfc822, &[1; 7], 1, vec![1, 2, 3, 4, 5, 6]),
            (Format::Rfc822, &[1; 6], 6, vec![]),
            (Format::Rfc822, &long, 1000, vec![25]),
            (Format::Rfc822, &long, 20, vec![20]),
        ];
        for (format, sizes, count_max, starts) in table {
            let groups = Groups::of(&envelope(sizes), format, count_max);
            assert_eq!(groups.starts, starts, "{format:?} {count_max}");
        }
        let groups = Groups { starts: vec![3, 6] };
        assert_eq!([0, 2, 3, 5, 6, 99].map(|index| groups.group(index)), [0, 0, 1, 1, 2, 2]);
    }

    proptest! {
        #[test]
        fn a_group_always_fits_its_field(
            sizes in proptest::collection::vec(0usize..60, 1..200),
            count_max in 1usize..100,
        ) {
            let envelope = envelope(&sizes);
            let groups = Groups::of(&envelope, Format::Rfc822, count_max);
            let mut of_groups = vec![(0, 0); groups.starts.len() + 1];
            for (index, path) in (0..).zip(&envelope.forward_paths) {
                let (count, size) = &mut of_groups[groups.group(index)];
                (*count, *size) = (*count + 1, *size + fields::recipient_size(path));
            }
            for (count, size) in of_groups {
                prop_assert!((1..=count_max).contains(&count));
                prop_assert!(size <= fields::RECIPIENTS_SIZE_MAX || count == 1);
            }
        }
    }

    #[test]
    fn json_tells_the_recipients_of_its_request_and_nobody_else() {
        let mut attempt = attempt_for(&["a@e.org", "b@e.org", "c@e.org"]);
        attempt.recipients = vec![Recipient { index: 2, attempts: 3 }];
        let text = "Received: x\r\nSUBJECT: =?utf-8?q?=C3=A9?=\r\nFrom: A <a@e.net>, b@e.net\r\nTo: c@e.org\r\nto: d@e.org\r\n\r\n";
        attempt.content = Content::Memory(vec![text.into()]).into();
        let members: Value = serde_json::from_slice(&members(&attempt, &attempt.header().unwrap())).unwrap();
        let mailbox = |name: Option<&str>, address: &str| json!({ "name": name, "address": address });
        assert_eq!(
            members,
            json!({
                "message_id": "000000111",
                "size": text.len(),
                "envelope": {
                    "reverse_path": "s@e.net", "forward_paths": ["c@e.org"], "body": "8BITMIME", "smtputf8": false,
                },
                "arrival": {
                    "peer": "192.0.2.1:1234", "hello": "e.net", "protocol": "ESMTP", "unix_time": 1_700_000_000,
                },
                "subject": "é",
                "from": [mailbox(Some("A"), "a@e.net"), mailbox(None, "b@e.net")],
                "to": [mailbox(None, "c@e.org"), mailbox(None, "d@e.org")],
                "cc": [],
                "header": [
                    ["Received", "x"], ["SUBJECT", "=?utf-8?q?=C3=A9?="], ["From", "A <a@e.net>, b@e.net"],
                    ["To", "c@e.org"], ["to", "d@e.org"],
                ],
            })
        );
    }

    fn settings(url: &str) -> Settings {
        Settings {
            url: WebhookUrl::parse(url).unwrap(),
            format: Format::Rfc822,
            secret_file: None,
            header_file: None,
            authorities: None,
            connect_timeout: Duration::from_secs(60),
            timeout: Duration::from_secs(60),
            recipients_per_request_max: 10,
            reject_statuses: Vec::new(),
        }
    }

    /// The outcomes, and the runtime in which the connection is still open.
    fn deliver(webhook: &Webhook, attempt: &Attempt) -> (Runtime, Vec<Outcome>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcomes = runtime.block_on(webhook.deliver(attempt));
        (runtime, outcomes)
    }

    #[test]
    fn what_is_no_answer_is_of_the_target_unless_there_was_a_connection() {
        let says = |words: &'static [u8]| {
            move |listener: TcpListener| {
                let (mut socket, _) = listener.accept().unwrap();
                let _ = socket.read(&mut [0; 4096]);
                let _ = socket.write_all(words);
            }
        };
        let is_silent = |listener: TcpListener| {
            drop(listener.accept().map(|(mut socket, _)| socket.read_to_end(&mut Vec::new())))
        };
        type Endpoint = Box<dyn FnOnce(TcpListener) + Send>;
        let table: [(&str, Endpoint, bool, &str); 5] = [
            ("http", Box::new(says(b"")), false, "connection closed before message completed"),
            ("http", Box::new(says(b"550 no\r\n\r\n")), false, "invalid HTTP version parsed"),
            ("http", Box::new(is_silent), true, "no answer in time"),
            ("https", Box::new(says(b"HTTP/1.1 200 OK\r\n\r\n")), true, "corrupt message"),
            ("https", Box::new(is_silent), true, "timed out"),
        ];
        for (scheme, endpoint, is_of_target, words) in table {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let host = listener.local_addr().unwrap().to_string();
            let endpoint = thread::spawn(|| endpoint(listener));
            // Only what the row is about may take too long.
            let patience = |is_short| Duration::from_millis(if is_short { 300 } else { 60_000 });
            let settings = Settings {
                timeout: patience(words == "no answer in time"),
                connect_timeout: patience(words == "timed out"),
                ..settings(&format!("{scheme}://{host}/"))
            };
            let (_, outcomes) = deliver(&Webhook::new("hook", settings).unwrap(), &attempt_for(&["a@e.org"]));
            let text = outcomes[0].text();
            assert!(text.starts_with(&host) && text.contains(words), "{text}");
            assert_eq!(outcomes[0].is_of_target(), is_of_target, "{text}");
            endpoint.join().unwrap();
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let webhook = Webhook::new("hook", settings(&format!("http://{free}/"))).unwrap();
        let (_, outcomes) = deliver(&webhook, &attempt_for(&["a@e.org"]));
        assert!(
            outcomes[0].is_of_target() && outcomes[0].text().contains("Connection refused"),
            "{outcomes:?}"
        );
    }

    #[test]
    fn an_answer_that_does_not_end_is_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = Settings {
            timeout: SAID_TIMEOUT / 2,
            ..settings(&format!("http://{}/", listener.local_addr().unwrap()))
        };
        let endpoint = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.read(&mut [0; 4096]);
            let header = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nsaid";
            socket.write_all(header).unwrap();
            let _ = socket.read_to_end(&mut Vec::new());
        });
        let webhook = Webhook::new("hook", settings).unwrap();
        let (runtime, outcomes) = deliver(&webhook, &attempt_for(&["a@e.org"]));
        assert!(matches!(outcomes[..], [Outcome::Delivered { .. }]), "{outcomes:?}");
        assert!(outcomes[0].text().starts_with("HTTP 200 OK: said"), "{outcomes:?}");
        drop((runtime, webhook));
        endpoint.join().unwrap();
    }

    /// Content of 64 KiB parts, of which those from `damaged` on are.
    struct Damaged {
        parts_count: usize,
        damaged: usize,
    }

    impl StoredContent for Damaged {
        fn size(&self) -> u64 {
            self.parts_count as u64 * WHOLE_SIZE_MAX
        }

        fn parts_count(&self) -> usize {
            self.parts_count
        }

        fn part(&self, n: usize) -> io::Result<Bytes> {
            let part = Bytes::from(vec![b'x'; WHOLE_SIZE_MAX as usize]);
            if n < self.damaged { Ok(part) } else { Err(io::ErrorKind::InvalidData.into()) }
        }

        fn is_at_hand(&self, _: usize) -> bool {
            true
        }
    }

    #[test]
    fn damaged_content_is_broken_off_and_deferred() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let table = [
            // (format, signed, parts, the first that is damaged, anything is sent)
            (Format::Rfc822, false, 1, 0, false),
            (Format::Rfc822, false, 8, 0, false),
            (Format::Rfc822, false, 8, 7, true),
            (Format::Rfc822, true, 8, 7, false),
            (Format::Json, false, 8, 7, true),
            (Format::Json, false, 8, 0, false),
        ];
        for (format, is_signed, parts_count, damaged, is_begun) in table {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}/", listener.local_addr().unwrap());
            let settings =
                Settings { format, secret_file: is_signed.then(|| secret.clone()), ..settings(&url) };
            let webhook = Webhook::new("hook", settings).unwrap();
            let endpoint = thread::spawn(move || {
                let mut request = Vec::new();
                let (mut socket, _) = listener.accept().unwrap();
                let _ = socket.read_to_end(&mut request);
                request
            });
            let mut attempt = attempt_for(&["a@e.org", "b@e.org"]);
            attempt.content = Content::Stored(Box::new(Damaged { parts_count, damaged })).into();
            let (runtime, outcomes) = deliver(&webhook, &attempt);
            let words = "the stored content is damaged: invalid data";
            assert_eq!(outcomes, [Outcome::unasked(words), Outcome::unasked(words)]);
            drop((runtime, webhook));
            // It waits for somebody where nothing was sent.
            drop(std::net::TcpStream::connect(url.strip_prefix("http://").unwrap().trim_end_matches('/')));
            let request = endpoint.join().unwrap();
            assert_eq!(!request.is_empty(), is_begun, "{format:?} {is_signed} {parts_count} {damaged}");
            if is_begun {
                let end = request.windows(4).position(|octets| octets == b"\r\n\r\n").unwrap() + 4;
                let header =
                    HeaderFields::read(&mut &request[..end].splitn(2, |c| *c == b'\n').nth(1).unwrap()[..]);
                let size: usize = header.unwrap().get("content-length").unwrap().value().parse().unwrap();
                assert!(request.len() - end < size, "{} octets of {size}", request.len() - end);
            }
        }
    }
}
