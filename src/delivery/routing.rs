//! Who gets a message: targets, by recipient and by what policies have noticed.
//!
//! Routes are looked at in their order. The first that fits a recipient says where its copy goes; those before it that fit and are
//! `also` add to that. Where none fits, the default target has it.
//!
//! It is decided when an attempt is due, not when a message comes: what waits follows a changed configuration.
//!
//! Invariants: every recipient has at least one target, none twice, and at most [`TARGETS_MAX`], which the configuration sees to; how long it takes does not depend on how many routes there are,
//! but on those that name the recipient.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::TargetId;
use crate::limits::TARGETS_MAX;
use crate::mail::{Domain, Envelope, ForwardPath, Tag, Via};

/// Recipients that a route is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipientPattern {
    text: Box<str>,
    /// What it is found by: in canonical form.
    key: Box<str>,
}

impl RecipientPattern {
    /// What [`RecipientPattern::parse`] takes.
    pub const EXPECTED: &'static str = "an address, a domain, \"*.\" and a domain, an address with \"*\" in the place of the domain, or \"*\"";

    /// `a@example.com`, `example.com`, `*.example.com` (every domain below it), `a@*`, `*`.
    pub fn parse(text: &str) -> Option<Self> {
        let domain = |text: &str| Domain::parse(text, true).ok().map(|domain| domain.canonical().to_string());
        let key = match (text, text.rsplit_once('@')) {
            ("*", _) => "*".to_string(),
            (_, Some((local, "*"))) => {
                let mailbox = crate::mail::Mailbox::parse(&format!("{local}@a.example"), true).ok()?;
                format!("{}@*", mailbox.local_part().to_lowercase())
            }
            (_, Some(_)) => {
                let mailbox = crate::mail::Mailbox::parse(text, true).ok()?;
                format!("{}@{}", mailbox.local_part().to_lowercase(), mailbox.canonical_domain())
            }
            (_, None) => match text.strip_prefix("*.") {
                Some(parent) => format!("*.{}", domain(parent)?),
                None => domain(text)?,
            },
        };
        Some(RecipientPattern { text: text.into(), key: key.into() })
    }
}

impl fmt::Display for RecipientPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One route.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// It fits these recipients; none: all.
    pub recipients: Vec<RecipientPattern>,
    /// It fits messages with one of these tags; none: all.
    pub tags: Vec<Tag>,
    /// Who gets what fits.
    pub to: Vec<TargetId>,
    /// Later routes are looked at as well.
    pub is_also: bool,
}

/// All routes, made ready to be asked.
#[derive(Clone, Debug)]
pub struct Routes {
    routes: Vec<Route>,
    /// The routes that name a key, in their order.
    by_key: HashMap<Box<str>, Vec<usize>>,
    /// The routes for all recipients, in their order.
    for_all: Vec<usize>,
    default: TargetId,
    /// All targets by their names.
    names: HashMap<Arc<str>, TargetId>,
    host: Domain,
}

/// Who gets a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routed {
    /// All recipients go to one target.
    All(TargetId),
    /// Each recipient, by its place in the envelope, with each of its targets.
    Each(Vec<(u32, TargetId)>),
}

impl Routed {
    /// Everybody who gets some of it; some may be named often.
    pub fn targets(&self) -> impl Iterator<Item = TargetId> {
        let (all, each) = match self {
            Routed::All(target) => (Some(*target), &[][..]),
            Routed::Each(each) => (None, &each[..]),
        };
        all.into_iter().chain(each.iter().map(|(_, target)| *target))
    }
}

impl Routes {
    /// `routes` in this order, and `default` behind them, to targets with these names, of a gateway named `host`.
    pub fn new(
        routes: Vec<Route>,
        default: TargetId,
        names: HashMap<Arc<str>, TargetId>,
        host: Domain,
    ) -> Self {
        let mut by_key: HashMap<Box<str>, Vec<usize>> = HashMap::new();
        let mut for_all = Vec::new();
        for (n, route) in routes.iter().enumerate() {
            if route.recipients.is_empty() {
                for_all.push(n);
            }
            for pattern in &route.recipients {
                match &*pattern.key {
                    "*" => for_all.push(n),
                    key => by_key.entry(key.into()).or_default().push(n),
                }
            }
        }
        for_all.dedup();
        Routes { routes, by_key, for_all, default, names, host }
    }

    /// Every target that some message may go to.
    pub fn targets(&self) -> Vec<TargetId> {
        let mut all: Vec<_> = self.routes.iter().flat_map(|route| &route.to).copied().collect();
        all.push(self.default);
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Who gets a message with this envelope and these tags.
    pub fn route(&self, envelope: &Envelope, tags: &[Tag]) -> Routed {
        if let Some(Via::Through(name)) = &envelope.via
            && let Some(target) = self.named(name)
        {
            return Routed::All(target);
        }
        if self.routes.is_empty() {
            return Routed::All(self.default);
        }
        let mut each = Vec::with_capacity(envelope.forward_paths.len());
        for (index, path) in (0..).zip(&envelope.forward_paths) {
            let (mut targets, _) = self.targets_of(path, tags);
            if let Some(Via::Only(name)) = &envelope.via
                && let Some(only) = self.named(name).filter(|only| targets.contains(only))
            {
                targets = vec![only];
            }
            each.extend(targets.into_iter().map(|target| (index, target)));
        }
        let (_, first) = each[0];
        match each.len() == envelope.forward_paths.len() && each.iter().all(|(_, target)| *target == first) {
            true => Routed::All(first),
            false => Routed::Each(each),
        }
    }

    /// Whether a recipient's mail goes to this target, and not just a copy of it.
    pub fn is_own(&self, path: &ForwardPath, tags: &[Tag], target: TargetId) -> bool {
        let (targets, own_count) = self.targets_of(path, tags);
        // Routes may have changed since: who has none of what they say now was not just given a copy.
        targets.iter().position(|known| *known == target).is_none_or(|at| at < own_count)
    }

    fn named(&self, name: &str) -> Option<TargetId> {
        self.names.get(name).copied()
    }

    /// The targets of a recipient, and how many of them it has by itself: the others have copies.
    fn targets_of(&self, path: &ForwardPath, tags: &[Tag]) -> (Vec<TargetId>, usize) {
        let mut fitting = self.for_all.clone();
        let (local, domain): (&str, Cow<'_, str>) = match path {
            ForwardPath::Postmaster => ("postmaster", self.host.canonical().into()),
            ForwardPath::Mailbox(mailbox) => (mailbox.local_part(), mailbox.canonical_domain()),
        };
        let local = local.to_lowercase();
        let mut find = |key: &str| fitting.extend(self.by_key.get(key).into_iter().flatten());
        find(&format!("{local}@{domain}"));
        find(&format!("{local}@*"));
        find(&domain);
        let mut rest = &*domain;
        while let Some((_, parent)) = rest.split_once('.') {
            find(&format!("*.{parent}"));
            rest = parent;
        }
        fitting.sort_unstable();
        fitting.dedup();
        let fits = |route: &&Route| route.tags.is_empty() || route.tags.iter().any(|tag| tags.contains(tag));
        let fitting = fitting.into_iter().map(|n| &self.routes[n]).filter(fits);
        let mut also: Vec<&Route> = Vec::new();
        let mut targets: Vec<TargetId> = Vec::new();
        for route in fitting {
            if !route.is_also {
                targets.extend(&route.to);
                break;
            }
            also.push(route);
        }
        if targets.is_empty() {
            targets.push(self.default);
        }
        let own_count = targets.len();
        for target in also.into_iter().flat_map(|route| &route.to) {
            if !targets.contains(target) {
                targets.push(*target);
            }
        }
        assert!(targets.len() <= TARGETS_MAX, "the configuration was looked at");
        (targets, own_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::ReversePath;

    fn route(recipients: &[&str], tags: &[&str], to: &[u16], is_also: bool) -> Route {
        Route {
            recipients: recipients.iter().map(|text| RecipientPattern::parse(text).unwrap()).collect(),
            tags: tags.iter().map(|tag| Tag::parse(tag).unwrap()).collect(),
            to: to.iter().map(|id| TargetId(*id)).collect(),
            is_also,
        }
    }

    #[test]
    fn the_first_route_that_fits_decides_and_those_before_it_may_add() {
        let routes = vec![
            route(&[], &[], &[9], true),
            route(&["boss@example.com", "abuse@*"], &[], &[1, 2], false),
            route(&[], &["spam"], &[3], false),
            route(&["example.com", "bücher.example"], &[], &[4], false),
            route(&["*.example.com"], &["list", "bulk"], &[5], false),
            route(&["*.example.com"], &[], &[6, 9], false),
            route(&["mx.example.net"], &[], &[7], true),
        ];
        let routes =
            Routes::new(routes, TargetId(0), names(), Domain::parse("mx.example.net", false).unwrap());
        let table: [(&str, &[&str], &[u16]); 14] = [
            ("x@elsewhere.example", &[], &[0, 9]),
            ("boss@example.com", &[], &[1, 2, 9]),
            ("BOSS@Example.COM", &["spam"], &[1, 2, 9]),
            ("abuse@anywhere.example", &[], &[1, 2, 9]),
            ("x@example.com", &["other", "spam"], &[3, 9]),
            ("x@example.com", &[], &[4, 9]),
            ("x@xn--bcher-kva.example", &[], &[4, 9]),
            ("x@bücher.example", &[], &[4, 9]),
            ("x@a.example.com", &[], &[6, 9]),
            ("x@a.b.example.com", &["bulk"], &[5, 9]),
            ("boss@a.example.com", &[], &[6, 9]),
            ("x@notexample.com", &[], &[0, 9]),
            ("postmaster", &[], &[0, 9, 7]),
            ("\"a b\"@example.com", &[], &[4, 9]),
        ];
        for (recipient, tags, expected) in table {
            let path = ForwardPath::parse(recipient, true).unwrap();
            let tags: Vec<_> = tags.iter().map(|tag| Tag::parse(tag).unwrap()).collect();
            let (targets, own_count) = routes.targets_of(&path, &tags);
            for (n, target) in targets.iter().enumerate() {
                assert_eq!(routes.is_own(&path, &tags, *target), n < own_count, "{recipient} {target:?}");
            }
            let targets: Vec<u16> = targets.iter().map(|target| target.0).collect();
            assert_eq!(targets, expected, "{recipient} {tags:?}");
        }
        assert_eq!(routes.targets().len(), 9);
    }

    fn names() -> HashMap<Arc<str>, TargetId> {
        (0..10).map(|n| (format!("t{n}").into(), TargetId(n))).collect()
    }

    #[test]
    fn a_message_may_name_its_target() {
        let routes = vec![route(&["a.example"], &[], &[1, 2], false)];
        let routes = Routes::new(routes, TargetId(0), names(), Domain::parse("h.example", false).unwrap());
        let paths = ["x@a.example", "x@b.example"];
        let paths: Vec<_> = paths.iter().map(|path| ForwardPath::parse(path, false).unwrap()).collect();
        let each =
            |each: &[(u32, u16)]| Routed::Each(each.iter().map(|(n, id)| (*n, TargetId(*id))).collect());
        let usual = each(&[(0, 1), (0, 2), (1, 0)]);
        let table = [
            (None, usual.clone()),
            (Some(Via::Through("t7".into())), Routed::All(TargetId(7))),
            (Some(Via::Through("gone".into())), usual.clone()),
            (Some(Via::Only("t2".into())), each(&[(0, 2), (1, 0)])),
            (Some(Via::Only("gone".into())), usual),
        ];
        for (via, expected) in table {
            let envelope = Envelope { via, ..Envelope::new(ReversePath::Null, paths.clone()) };
            assert_eq!(routes.route(&envelope, &[]), expected, "{:?}", envelope.via);
        }
    }

    #[test]
    fn what_all_recipients_share_is_said_once() {
        let routes = vec![route(&["a.example"], &[], &[1], false), route(&["b.example"], &[], &[1], false)];
        let routes = Routes::new(routes, TargetId(0), names(), Domain::parse("h.example", false).unwrap());
        let routed = |paths: &[&str]| {
            let paths = paths.iter().map(|path| ForwardPath::parse(path, false).unwrap()).collect();
            routes.route(&Envelope::new(ReversePath::Null, paths), &[])
        };
        assert_eq!(routed(&["x@a.example", "x@b.example"]), Routed::All(TargetId(1)));
        let each = Routed::Each(vec![(0, TargetId(1)), (1, TargetId(0))]);
        assert_eq!(routed(&["x@a.example", "x@c.example"]), each);
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", "*.", "@example.com", "a@", "a@*.example.com", "**", "a b", "*@*@*", ".."] {
            assert_eq!(RecipientPattern::parse(text), None, "{text:?}");
        }
    }
}
