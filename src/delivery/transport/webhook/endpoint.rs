//! Where requests go: the URL, and clients for HTTP/1.1 that go nowhere else.
//!
//! Each thread that delivers has a client of its own: a connection lives in the runtime that has opened it, and would end with it
//! under the requests of others. Names are looked up on threads of their own: what a resolver that is away holds up is nobody else's.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy as Redirects;
use reqwest::{Certificate, Client, Url};

use super::Settings;
use super::signature::Secrets;
use crate::client::SystemResolver;

/// Some servers close after 5 s what they have heard nothing on; a connection that is closed while it is taken costs an attempt.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// What a URL may take, octets.
const URL_SIZE_MAX: usize = 2048;
/// Octets of a file of header fields, and of each field: servers take 8 KiB.
const HEADER_FILE_SIZE_MAX: usize = 4 << 10;

/// Fields that are ours, or the client's.
const RESERVED: [&str; 10] = [
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "idempotency-key",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// And all that begin so.
const RESERVED_PREFIXES: [&str; 2] = ["webhook-", "x-incoming-"];

/// The URL of an endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookUrl(Url);

impl WebhookUrl {
    /// What [`WebhookUrl::parse`] takes.
    pub const EXPECTED: &'static str =
        "a URL such as \"https://mail.example.com/incoming\", http or https, without user and fragment";

    /// `None` where `text` is no such URL.
    pub fn parse(text: &str) -> Option<WebhookUrl> {
        let url = Url::parse(text).ok().filter(|_| text.len() <= URL_SIZE_MAX)?;
        let is_fit = matches!(url.scheme(), "http" | "https")
            && url.host_str().is_some_and(|host| !host.is_empty())
            && url.username().is_empty()
            && url.password().is_none()
            && url.fragment().is_none();
        is_fit.then_some(WebhookUrl(url))
    }

    /// Whether requests go through verified TLS.
    pub fn is_secure(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Host, and port if it is said: what reasons call the endpoint. Its path may be a secret.
    pub fn host(&self) -> String {
        let host = self.0.host_str().expect("it was parsed with one");
        match self.0.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.into(),
        }
    }

    pub(super) fn url(&self) -> Url {
        self.0.clone()
    }
}

impl fmt::Display for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The secrets of `settings`, if requests are signed.
pub fn secrets(settings: &Settings) -> Result<Option<Secrets>, String> {
    let Some(path) = &settings.secret_file else { return Ok(None) };
    let secrets = Secrets::parse(&read(path)?);
    secrets.map(Some).ok_or_else(|| format!("{}: {}", path.display(), Secrets::EXPECTED))
}

/// The clients of an endpoint.
pub struct Clients {
    is_secure: bool,
    connect_timeout: Duration,
    fields: HeaderMap,
    /// None: those of the system.
    authorities: Option<Vec<Certificate>>,
    lookups: Arc<Lookups>,
    made: Mutex<HashMap<ThreadId, Client>>,
}

impl Clients {
    /// Clients with the certificates and header fields of `settings`.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let is_secure = settings.url.is_secure();
        let fields = match &settings.header_file {
            Some(path) => {
                let words = "expected lines such as \"Authorization: Bearer secret\", at most 4 KiB, of fields that are not ours";
                fields(&read(path)?).ok_or_else(|| format!("{}: {words}", path.display()))?
            }
            None => HeaderMap::new(),
        };
        let authorities = match &settings.authorities {
            Some(path) => {
                let failed =
                    |e: &dyn fmt::Display| format!("{}: no certificates in PEM: {e}", path.display());
                let certificates = Certificate::from_pem_bundle(&read(path)?).map_err(|e| failed(&e))?;
                if certificates.is_empty() {
                    return Err(failed(&"it is empty"));
                }
                Some(certificates)
            }
            // A machine without certificates can speak in clear all the same.
            None => (!is_secure).then(Vec::new),
        };
        let clients = Clients {
            is_secure,
            connect_timeout: settings.connect_timeout,
            fields,
            authorities,
            lookups: Arc::default(),
            made: Mutex::default(),
        };
        clients.make()?;
        Ok(clients)
    }

    /// That of the calling thread.
    pub fn get(&self) -> Result<Client, String> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.get(&thread::current().id()) {
            return Ok(client.clone());
        }
        let client = self.make()?;
        made.insert(thread::current().id(), client.clone());
        Ok(client)
    }

    fn make(&self) -> Result<Client, String> {
        let mut builder = Client::builder()
            // Nothing between us and the endpoint but what the operator has named; and no other place than that.
            .no_proxy()
            .redirect(Redirects::none())
            .referer(false)
            .https_only(self.is_secure)
            .http1_only()
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .dns_resolver(self.lookups.clone())
            .default_headers(self.fields.clone())
            .user_agent(concat!("incoming/", env!("CARGO_PKG_VERSION")));
        if let Some(authorities) = &self.authorities {
            builder = builder.tls_certs_only(authorities.clone());
        }
        builder.build().map_err(|e| format!("no client for HTTP can be made: {}", reasons(&e)))
    }
}

/// The system's resolver, as the client asks for it.
#[derive(Default)]
struct Lookups(SystemResolver);

impl Resolve for Lookups {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.0.clone();
        Box::pin(async move {
            let found = resolver.find(name.as_str(), 0).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// An error with what it was caused by, in one line.
pub fn reasons(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

/// The fields of a file, one a line.
fn fields(file: &[u8]) -> Option<HeaderMap> {
    let text = std::str::from_utf8(file).ok().filter(|text| text.len() <= HEADER_FILE_SIZE_MAX)?;
    let mut fields = HeaderMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let (name, value) = line.split_once(':')?;
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let is_ours = RESERVED.contains(&name.as_str())
            || RESERVED_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix));
        if is_ours || fields.contains_key(&name) {
            return None;
        }
        let mut value = HeaderValue::from_str(value.trim()).ok()?;
        value.set_sensitive(true);
        fields.insert(name, value);
    }
    (!fields.is_empty()).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_of_one_endpoint_and_has_no_secrets_before_its_host() {
        let table = [
            ("https://h.example/in?k=v", "h.example", true),
            ("http://127.0.0.1:8080/", "127.0.0.1:8080", false),
            ("https://[::1]:8443/x", "[::1]:8443", true),
        ];
        for (text, host, is_secure) in table {
            let url = WebhookUrl::parse(text).unwrap();
            assert_eq!(
                (url.to_string().as_str(), url.host().as_str(), url.is_secure()),
                (text, host, is_secure)
            );
        }
        for text in [
            "",
            "h.example",
            "/in",
            "ftp://h.example/",
            "https://",
            "https://me@h.example/",
            "https://me:secret@h.example/",
            "https://h.example/#x",
        ] {
            assert_eq!(WebhookUrl::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_file_of_fields_has_none_of_ours() {
        let file = b"Authorization: Bearer a:b\n\nX-Tenant:  7 \r\n";
        let fields = fields(file).unwrap();
        assert_eq!(
            (&fields["authorization"], &fields["x-tenant"]),
            (&"Bearer a:b".parse().unwrap(), &"7".parse().unwrap())
        );
        for file in [
            &b""[..],
            b"\n",
            b"secret",
            b": x",
            b"A B: c",
            b"A : c",
            b"A: \xff",
            b"A: b\nA: c",
            b"Host: x",
            b"Content-Type: x",
            b"Webhook-Signature: x",
            b"X-Incoming-Sender: x",
            b"Idempotency-Key: x",
        ] {
            assert!(super::fields(file).is_none(), "{}", file.escape_ascii());
        }
    }
}
