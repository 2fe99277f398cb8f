//! The transports `lmtp` and `smtp`, made of their settings and the files these name.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::client::{Endpoint, Introduction, Login, Protection, Protocol, TlsUse, Trust};
use crate::config::Config;
use crate::config::transports::{Lmtp, Session, Smtp};
use crate::delivery::transport::NextHop;
use crate::delivery::transport::next_hop::{Exchanges, Hosts, Manners, MxOf};

/// To the server of `settings`. Errors are in words that follow the transport's name.
pub fn lmtp(config: &Config, settings: &Lmtp) -> Result<NextHop, String> {
    let session = settings.session();
    let endpoint = settings.address.0.clone();
    check_name(&session, &endpoint)?;
    let is_local = is_local(&endpoint);
    check_login(&session, is_local)?;
    check_promise(&session, false)?;
    let manners = manners(config, session, Protocol::Lmtp, is_local)?;
    Ok(NextHop::new(Hosts::fixed([(endpoint, 0)], &manners), manners))
}

/// To the servers of `settings`. Errors are in words that follow the transport's name.
pub fn smtp(config: &Config, settings: &Smtp) -> Result<NextHop, String> {
    let Smtp { hosts, mx, mx_domain, port, .. } = settings;
    let of = match (&hosts[..], &mx[..], mx_domain) {
        ([_, ..], [], None) => None,
        ([], [_, ..], None) => Some(MxOf::Recipients(mx.clone())),
        ([], [], Some(domain)) => Some(MxOf::Domain(domain.0.clone())),
        _ => return Err("needs one of hosts, mx and mx_domain, and only one".into()),
    };
    let session = settings.session();
    for host in hosts {
        check_name(&session, &host.address.0.0)?;
    }
    check_promise(&session, of.is_some())?;
    let is_local = of.is_none() && hosts.iter().all(|host| is_local(&host.address.0.0));
    check_login(&session, is_local)?;
    let manners = manners(config, session, Protocol::Smtp, is_local)?;
    let hosts = match of {
        None => Hosts::fixed(hosts.iter().map(|host| (host.address.0.0.clone(), host.priority)), &manners),
        Some(of) => {
            let servers: Vec<_> = config.dns.servers.iter().map(|server| server.0).collect();
            let exchanges = Exchanges::new(&servers, config.dns.timeout)?;
            Hosts::exchanges(exchanges, of, *port, config.hostname.clone())
        }
    };
    Ok(NextHop::new(hosts, manners))
}

/// A socket in the file system has no name that a certificate could be for.
fn check_name(session: &Session, endpoint: &Endpoint) -> Result<(), String> {
    match endpoint {
        Endpoint::Unix(_) if is_verified(session) && session.tls_name.is_none() => {
            Err(format!("tls_name: needed to know who is at {endpoint}"))
        }
        _ => Ok(()),
    }
}

fn is_local(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::Unix(_))
}

fn is_verified(session: &Session) -> bool {
    matches!(session.tls, TlsUse::Required | TlsUse::Implicit)
}

/// With opportunistic TLS the password goes to whoever is in the way: that is as good as in clear. Nobody is where all servers are on this machine.
fn check_login(session: &Session, is_local: bool) -> Result<(), String> {
    match &session.user {
        Some(_) if !(is_verified(session) || session.auth_in_clear || is_local) => {
            Err("user: needs tls = \"required\" or \"implicit\", or auth_in_clear = true".into())
        }
        _ => Ok(()),
    }
}

/// RFC 8689 §4.2.1: TLS is worth what the server's name is, and one that came out of the DNS unsigned is worth nothing.
fn check_promise(session: &Session, is_named_by_dns: bool) -> Result<(), String> {
    if !session.capabilities.require_tls {
        return Ok(());
    }
    if !is_verified(session) {
        return Err("offers: \"requiretls\" needs tls = \"required\" or \"implicit\"".into());
    }
    if is_named_by_dns && session.tls_name.is_none() {
        return Err("offers: \"requiretls\" needs tls_name where the DNS names the hosts".into());
    }
    Ok(())
}

fn manners(config: &Config, session: Session, protocol: Protocol, is_local: bool) -> Result<Manners, String> {
    let trust = match &session.authorities {
        Some(path) => Trust::These(read(path)?),
        None => Trust::System,
    };
    let protection = Protection::new(session.tls, &trust).map_err(|words| match &session.authorities {
        Some(path) => format!("authorities: {}: {words}", path.display()),
        None => words,
    })?;
    let login = match (session.user, session.password_file) {
        (None, None) => None,
        (Some(user), Some(path)) => {
            let text = String::from_utf8(read(&path)?)
                .map_err(|_| format!("password_file: {}: it is no text", path.display()))?;
            let password = text.trim_end_matches(['\r', '\n']).to_string();
            if password.is_empty() || password.contains('\0') || user.is_empty() || user.contains('\0') {
                return Err(format!("password_file: {}: expected one line with a password", path.display()));
            }
            let in_clear = session.auth_in_clear || is_local;
            Some(Arc::new(Login { user, password: password.into(), in_clear }))
        }
        _ => return Err("user and password_file need each other".into()),
    };
    let name = session.hello.unwrap_or_else(|| config.hostname.as_str().into());
    Ok(Manners {
        introduction: Introduction { protocol, name },
        protection,
        tls_name: session.tls_name,
        login,
        timeouts: session.timeouts,
        bounds: session.bounds,
        forwards_origin: session.xforward,
        in_chunks: session.chunking,
        capabilities: session.capabilities,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(lines: &str) -> Session {
        toml::from_str::<Smtp>(lines).unwrap().session()
    }

    #[test]
    fn a_password_is_for_servers_that_have_shown_who_they_are() {
        let table = [
            ("", false, false),
            ("tls = \"off\"", false, false),
            ("tls = \"opportunistic\"", false, false),
            ("tls = \"required\"", false, true),
            ("tls = \"implicit\"", false, true),
            ("auth_in_clear = true", false, true),
            ("tls = \"off\"", true, true),
        ];
        for (lines, is_local, expected) in table {
            let with_user = session(&format!("user = \"me\"\n{lines}"));
            assert_eq!(check_login(&with_user, is_local).is_ok(), expected, "{lines} {is_local}");
            assert_eq!(check_login(&session(lines), is_local), Ok(()), "there is nothing to say");
        }
    }

    #[test]
    fn requiretls_is_promised_for_names_of_the_operator_only() {
        let table = [
            ("tls = \"required\"", false, true),
            ("tls = \"opportunistic\"", false, false),
            ("tls = \"required\"", true, false),
            ("tls = \"required\"\ntls_name = \"mx.example\"", true, true),
            ("tls = \"opportunistic\"\ntls_name = \"mx.example\"", true, false),
        ];
        for (lines, is_named_by_dns, expected) in table {
            let promised = session(&format!("offers = [\"requiretls\"]\n{lines}"));
            assert_eq!(check_promise(&promised, is_named_by_dns).is_ok(), expected, "{lines}");
            assert_eq!(check_promise(&session(lines), is_named_by_dns), Ok(()));
        }
    }
}
