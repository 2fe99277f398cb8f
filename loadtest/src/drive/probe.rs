//! The first look at a target: is it there, does it speak SMTP, what does it call itself and offer.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::Serialize;

use crate::plan::{Plan, TlsMode};
use crate::smtp::Replies;

/// What the target said of itself before the load began.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Probe {
    /// The greeting, without its code. Empty where TLS comes first.
    pub greeting: String,
    /// What EHLO offers, before TLS.
    pub extensions: Vec<String>,
}

/// Connects once and goes as far as EHLO; where TLS comes first, no further than connecting.
///
/// # Errors
/// Those of connecting, and a greeting other than 220.
pub fn probe(plan: &Plan) -> io::Result<Probe> {
    let mut stream = TcpStream::connect_timeout(&plan.target.address, plan.timeout)?;
    stream.set_read_timeout(Some(plan.timeout))?;
    stream.set_write_timeout(Some(plan.timeout))?;
    if plan.tls.as_ref().is_some_and(|tls| tls.mode == TlsMode::Implicit) {
        return Ok(Probe::default());
    }
    let mut replies = Replies::default();
    let silent = |error| silent(error, plan.timeout);
    let greeting = reply(&mut stream, &mut replies).map_err(silent)?;
    if !greeting.starts_with("220") {
        return Err(io::Error::other(format!("greeted with {greeting:?}")));
    }
    stream.write_all(format!("EHLO {}\r\n", plan.host).as_bytes())?;
    let hello = reply(&mut stream, &mut replies).map_err(silent)?;
    if !hello.starts_with("250") {
        return Err(io::Error::other(format!("EHLO was answered {hello:?}")));
    }
    // A courtesy: the connection has served its purpose whatever becomes of it.
    let _ = stream.write_all(b"QUIT\r\n");
    let _ = reply(&mut stream, &mut replies);
    Ok(Probe {
        greeting: greeting.lines().next().unwrap_or_default().get(4..).unwrap_or_default().to_owned(),
        extensions: hello.lines().skip(1).filter_map(|line| Some(line.get(4..)?.to_owned())).collect(),
    })
}

/// A socket whose time is over says that it is not ready.
fn silent(error: io::Error, timeout: Duration) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no reply within {}", humantime::format_duration(timeout)),
        ),
        _ => error,
    }
}

fn reply(stream: &mut TcpStream, replies: &mut Replies) -> io::Result<String> {
    let mut octets = [0; 4096];
    loop {
        let size = stream.read(&mut octets)?;
        if size == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before a reply"));
        }
        let mut whole = None;
        replies
            .take(&octets[..size], |reply| {
                whole.get_or_insert_with(|| String::from_utf8_lossy(reply.octets).trim_end().to_owned());
            })
            .map_err(|e| io::Error::other(format!("not SMTP: {}", e.0)))?;
        if let Some(reply) = whole {
            return Ok(reply);
        }
    }
}
