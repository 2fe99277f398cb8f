//! The transports and routes of a configuration, made ready for the workers.

mod next_hops;

use std::collections::HashMap;
use std::sync::Arc;

use super::Error;
use crate::config::transports::{self, Transport, TransportKind};
use crate::config::{Config, Route as Configured};
use crate::delivery::transport::{Discard, Maildir, Pipe, PipeSettings, User, Webhook};
use crate::delivery::{Means, Route, Routes, Target, TargetId, Targets};
use crate::mail::Capabilities;

/// The names of all targets that there are or have been in this process, and of those that its logs know: a name keeps its id.
#[derive(Default)]
pub struct Names(Vec<Arc<str>>);

impl Names {
    /// The id of this name; a new one, if it has none yet.
    pub fn id(&mut self, name: &str) -> Result<TargetId, Error> {
        let known = self.0.iter().position(|known| **known == *name);
        let at = known.unwrap_or_else(|| {
            self.0.push(name.into());
            self.0.len() - 1
        });
        let too_many = |_| Error("there have been more than 65,000 names of transports: restart".into());
        u16::try_from(at + 1).map_err(too_many)?;
        Ok(TargetId(at as u16))
    }

    /// All of them, by their ids.
    pub fn all(&self) -> &[Arc<str>] {
        &self.0
    }
}

/// Makes every transport of `config`, but for those of the library's user, who brings `own` ones; and says who gets what.
pub fn load(
    config: &Config,
    names: &mut Names,
    own: &HashMap<String, Means>,
) -> Result<(Targets, Routes), Error> {
    let mut targets = Vec::with_capacity(config.transports.len());
    let mut ids = HashMap::new();
    for (name, transport) in &config.transports {
        let id = names.id(name)?;
        ids.insert(Arc::from(name.as_str()), id);
        let means = match own.get(name) {
            Some(means) => means.clone(),
            None => {
                make(config, name, transport).map_err(|words| Error(format!("transport.{name}: {words}")))?
            }
        };
        targets.push(Target::new(id, name, means, transport.limits, config.delivery.channel_size));
    }
    let id = |name: &String| *ids.get(&**name).expect("the configuration names transports that there are");
    let route = |route: &Configured| Route {
        recipients: route.recipients.clone(),
        tags: route.tags.clone(),
        to: route.to.iter().map(|name| id(&name.0)).collect(),
        is_also: route.also,
    };
    let routes = config.routes.iter().map(route).collect();
    let default = id(&config.delivery.transport);
    let routes = Routes::new(routes, default, ids, config.hostname.clone());
    Ok((Targets::new(targets), routes))
}

/// What whoever gets mail can carry: nothing else is offered to clients.
pub fn capabilities(targets: &Targets, routes: &Routes) -> Capabilities {
    let each = routes.targets().into_iter().map(|id| targets.get(id).capabilities());
    each.reduce(Capabilities::and).unwrap_or_default()
}

fn make(config: &Config, name: &str, transport: &Transport) -> Result<Means, String> {
    Ok(match &transport.kind {
        TransportKind::Discard(_) => Means::Async(Arc::new(Discard)),
        TransportKind::Maildir(maildir) => {
            let (path, host) = (maildir.path().clone(), config.hostname.clone());
            Means::Blocking(Arc::new(Maildir::new(path, maildir.return_path, host)))
        }
        TransportKind::Lmtp(lmtp) => Means::Async(Arc::new(next_hops::lmtp(config, lmtp)?)),
        TransportKind::Smtp(smtp) => Means::Async(Arc::new(next_hops::smtp(config, smtp)?)),
        TransportKind::Pipe(settings) => Means::Blocking(Arc::new(pipe(config, settings)?)),
        TransportKind::Embedded(_) => return Err("the program does not bring it along".into()),
        TransportKind::Webhook(webhook) => Means::Async(Arc::new(Webhook::new(name, webhook.settings())?)),
    })
}

fn pipe(config: &Config, settings: &transports::Pipe) -> Result<Pipe, String> {
    if settings.delivered_to && settings.command.is_for_many() {
        return Err("delivered_to: there is nobody to name where one process is for {recipients}".into());
    }
    let made = Pipe::new(PipeSettings {
        command: settings.command.clone(),
        user: user(settings)?,
        folder: settings.directory.clone(),
        environment: settings.environment.clone(),
        timeout: settings.timeout,
        return_path: settings.return_path,
        delivered_to: settings.delivered_to,
        line_ends: settings.line_ends,
        scratch: config.data.clone(),
        host: config.hostname.clone(),
    });
    made.map_err(|e| e.to_string())
}

/// As whom a command runs, if not as we do. As root only where that is said.
fn user(settings: &transports::Pipe) -> Result<Option<User>, String> {
    let is_root = rustix::process::geteuid().is_root();
    let Some(name) = &settings.user else {
        return match (&settings.group, is_root) {
            (Some(_), _) => Err("group: expected a user too".into()),
            (None, true) => {
                Err("user: expected the one who runs the command, for the gateway runs as root".into())
            }
            (None, false) => Ok(None),
        };
    };
    let user = nix::unistd::User::from_name(name).map_err(|e| format!("user: {e}"))?;
    let user = user.ok_or_else(|| format!("user: there is no {name:?}"))?;
    let gid = match &settings.group {
        None => user.gid,
        Some(name) => {
            let group = nix::unistd::Group::from_name(name).map_err(|e| format!("group: {e}"))?;
            group.ok_or_else(|| format!("group: there is no {name:?}"))?.gid
        }
    };
    let user = User { uid: user.uid.as_raw(), gid: gid.as_raw() };
    let us = User { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    match user == us {
        true => Ok(None),
        false if is_root => Ok(Some(user)),
        false => Err("user: only a gateway that runs as root can run a command as somebody else".into()),
    }
}
