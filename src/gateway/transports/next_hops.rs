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
    let manners = manners(config, session, Protocol::Lmtp)?;
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
    let manners = manners(config, session, Protocol::Smtp)?;
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
    let is_verified = matches!(session.tls, TlsUse::Required | TlsUse::Implicit);
    match endpoint {
        Endpoint::Unix(_) if is_verified && session.tls_name.is_none() => {
            Err(format!("tls_name: needed to know who is at {endpoint}"))
        }
        _ => Ok(()),
    }
}

fn manners(config: &Config, session: Session, protocol: Protocol) -> Result<Manners, String> {
    let trust = match &session.authorities {
        Some(path) => Trust::These(read(path)?),
        None => Trust::System,
    };
    let protection = Protection::new(session.tls, &trust).map_err(|words| match &session.authorities {
        Some(path) => format!("authorities: {}: {words}", path.display()),
        None => words,
    })?;
    if session.capabilities.require_tls && !protection.is_verified() {
        return Err("offers: \"requiretls\" needs tls = \"required\" or \"implicit\"".into());
    }
    let login = match (session.user, session.password_file) {
        (None, None) => None,
        (Some(user), Some(path)) => {
            let text = String::from_utf8(read(&path)?)
                .map_err(|_| format!("password_file: {}: it is no text", path.display()))?;
            let password = text.trim_end_matches(['\r', '\n']).to_string();
            if password.is_empty() || password.contains('\0') || user.is_empty() || user.contains('\0') {
                return Err(format!("password_file: {}: expected one line with a password", path.display()));
            }
            Some(Arc::new(Login { user, password: password.into(), in_clear: session.auth_in_clear }))
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
