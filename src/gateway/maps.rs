//! The maps of recipients, read and watched.

use std::path::PathBuf;
use std::sync::Arc;

use super::Error;
use super::watch::{Stamp, Watched};
use crate::config::Config;
use crate::mail::Domain;
use crate::policy::{MapFault, Maps, Recipients};
use crate::telemetry::{Reload, reloaded};

/// What the maps are read from and whom they are for.
struct WatchedMaps {
    recipients: Arc<Recipients>,
    files: Vec<PathBuf>,
    domains: Vec<Domain>,
    separator: Option<u8>,
    seen: Vec<Option<Stamp>>,
    /// Of files that have changed since and may be changing still.
    changing: Option<Vec<Option<Stamp>>>,
}

/// Whose mail is taken, and what is to be watched for it.
pub struct Loaded {
    pub recipients: Arc<Recipients>,
    pub watched: Option<Box<dyn Watched>>,
    /// What `recipients` of before are to know now.
    pub to_replace: Option<Maps>,
}

/// Whose mail `config` takes, and who looks after its maps; those `before` go on where all but their maps is as it was.
pub fn load(config: &Config, before: Option<(&Config, &Arc<Recipients>)>) -> Result<Loaded, Error> {
    let accept = &config.accept;
    let seen = stamps(&accept.maps);
    let maps = Maps::load(&accept.maps, &accept.domains, accept.detail_separator)
        .map_err(|fault| Error(format!("accept.maps: {fault}")))?;
    let known = before
        .filter(|(before, _)| before.hostname == config.hostname && before.accept == config.accept)
        .map(|(_, recipients)| recipients.clone());
    let (recipients, to_replace) = match known {
        Some(known) => (known, Some(maps)),
        None => (Arc::new(Recipients::new(config.hostname.clone(), accept.any, maps)), None),
    };
    let watched = WatchedMaps {
        recipients: recipients.clone(),
        files: accept.maps.clone(),
        domains: accept.domains.clone(),
        separator: accept.detail_separator,
        seen,
        changing: None,
    };
    let is_watched = !accept.maps.is_empty();
    let watched = is_watched.then(|| Box::new(watched) as Box<dyn Watched>);
    Ok(Loaded { recipients, watched, to_replace })
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|file| Stamp::of(file)).collect()
}

impl WatchedMaps {
    fn read(&self) -> Result<Maps, MapFault> {
        Maps::load(&self.files, &self.domains, self.separator)
    }
}

impl Watched for WatchedMaps {
    fn look(&mut self) {
        let now = stamps(&self.files);
        if now == self.seen {
            self.changing = None;
            return;
        }
        // A file that is being written is not read in the middle: what is missing from it would be refused.
        if self.changing.as_ref() != Some(&now) {
            self.changing = Some(now);
            return;
        }
        let read = self.read();
        if stamps(&self.files) != now {
            return;
        }
        self.changing = None;
        self.seen = now;
        reloaded(Reload::Maps, read.is_ok());
        match read {
            Ok(maps) => {
                tracing::info!(addresses = maps.addresses_count(), "maps of recipients were read anew");
                self.recipients.replace(maps);
            }
            Err(fault) => tracing::warn!("maps were not replaced, the old ones are used on: {fault}"),
        }
    }
}
