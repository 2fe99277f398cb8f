//! The transports and routes of a configuration, made ready for the workers.

mod next_hops;

use std::sync::Arc;

use super::Error;
use crate::config::transports::{Transport, TransportKind};
use crate::config::{Config, Route as Configured};
use crate::delivery::transport::{Discard, Maildir};
use crate::delivery::{Means, Route, Routes, Target, TargetId, Targets};
use crate::mail::Capabilities;

/// Makes every transport of `config`, and says who gets what.
pub fn load(config: &Config) -> Result<(Targets, Routes), Error> {
    let mut targets = Vec::with_capacity(config.transports.len());
    for (n, (name, transport)) in config.transports.iter().enumerate() {
        let id = TargetId(u16::try_from(n).map_err(|_| Error("too many transports".into()))?);
        let means = make(config, transport).map_err(|words| Error(format!("transport.{name}: {words}")))?;
        targets.push(Target::new(id, name, means, transport.limits, config.delivery.channel_size));
    }
    let id = |name: &String| {
        let n = config.transports.keys().position(|known| known == name);
        TargetId(n.expect("the configuration names transports that there are") as u16)
    };
    let route = |route: &Configured| Route {
        recipients: route.recipients.clone(),
        tags: route.tags.clone(),
        to: route.to.iter().map(|name| id(&name.0)).collect(),
        is_also: route.also,
    };
    let routes = config.routes.iter().map(route).collect();
    let routes = Routes::new(routes, id(&config.delivery.transport), config.hostname.clone());
    Ok((Targets::new(targets), routes))
}

/// What whoever gets mail can carry: nothing else is offered to clients.
pub fn capabilities(targets: &Targets, routes: &Routes) -> Capabilities {
    let each = routes.targets().into_iter().map(|id| targets.get(id).capabilities());
    each.reduce(Capabilities::and).unwrap_or_default()
}

fn make(config: &Config, transport: &Transport) -> Result<Means, String> {
    Ok(match &transport.kind {
        TransportKind::Discard(_) => Means::Async(Arc::new(Discard)),
        TransportKind::Maildir(maildir) => {
            let (path, host) = (maildir.path().clone(), config.hostname.clone());
            Means::Blocking(Arc::new(Maildir::new(path, maildir.return_path, host)))
        }
        TransportKind::Lmtp(lmtp) => Means::Async(Arc::new(next_hops::lmtp(config, lmtp)?)),
        TransportKind::Smtp(smtp) => Means::Async(Arc::new(next_hops::smtp(config, smtp)?)),
    })
}
