//! `[[route]]`: who gets which messages.

use serde::{Deserialize, Deserializer, Serialize};
use toml::Table;

use super::error::Fault;
use super::tables;
use super::value::{Parsed, flag, list, write_list};
use crate::delivery::RecipientPattern;
use crate::limits::TARGETS_MAX;
use crate::mail::Tag;

/// Routes at most.
const ROUTES_MAX: usize = 100_000;

/// One route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// It fits these recipients; none: all.
    #[serde(default, deserialize_with = "list", serialize_with = "write_list")]
    pub recipients: Vec<RecipientPattern>,
    /// It fits messages with one of these tags; none: all.
    #[serde(default, deserialize_with = "list", serialize_with = "write_list")]
    pub tags: Vec<Tag>,
    /// The names of the transports that get what fits.
    #[serde(deserialize_with = "list", serialize_with = "write_list")]
    pub to: Vec<TransportName>,
    /// Later routes are looked at as well.
    #[serde(default, deserialize_with = "flag")]
    pub also: bool,
}

/// The name of a transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportName(pub String);

impl std::fmt::Display for TransportName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Parsed for TransportName {
    const EXPECTED: &'static str = "the name of a transport";

    fn parsed(text: &str) -> Option<Self> {
        Some(TransportName(text.into()))
    }
}

impl Parsed for RecipientPattern {
    const EXPECTED: &'static str = RecipientPattern::EXPECTED;

    fn parsed(text: &str) -> Option<Self> {
        RecipientPattern::parse(text)
    }
}

/// The tables of `[[route]]`, not looked into yet: what is wrong in them is told with their number.
pub fn tables<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Table>, D::Error> {
    tables::array(deserializer, "expected tables [[route]]")
}

/// The routes that `tables` describe, to transports that there are.
pub fn resolve<'a>(
    tables: Vec<Table>,
    transports: impl Iterator<Item = &'a String> + Clone,
) -> Result<Vec<Route>, Fault> {
    if tables.len() > ROUTES_MAX {
        return Err(Fault::new("route", format!("expected at most {ROUTES_MAX} routes")));
    }
    let mut routes = Vec::with_capacity(tables.len());
    for (n, table) in tables.into_iter().enumerate() {
        let place = format!("route[{n}]");
        let route: Route = tables::read(table, &place)?;
        let fault = |words| Err(Fault::new(format!("{place}.to"), words));
        if route.to.is_empty() || route.to.len() > TARGETS_MAX {
            return fault(format!("expected 1 to {TARGETS_MAX} names of transports"));
        }
        let is_known = |TransportName(name): &&TransportName| transports.clone().any(|known| known == name);
        if let Some(unknown) = route.to.iter().find(|name| !is_known(name)) {
            let names: Vec<_> = transports.map(|name| format!("{name:?}")).collect();
            let words = format!("expected names of transports, {}, not {:?}", names.join(" or "), unknown.0);
            return fault(words);
        }
        routes.push(route);
    }
    // Copies that are left out because a recipient has too many would be missed too late.
    let (also, others): (Vec<&Route>, Vec<&Route>) = routes.iter().partition(|route| route.also);
    let mut copies: Vec<&str> = also.iter().flat_map(|route| &route.to).map(|name| name.0.as_str()).collect();
    copies.sort_unstable();
    copies.dedup();
    let most = others.iter().map(|route| route.to.len()).max().unwrap_or(1);
    if copies.len() + most > TARGETS_MAX {
        let words = format!(
            "a recipient may have {TARGETS_MAX} transports at most; routes with `also` name {} in all, and one of the others {most}",
            copies.len()
        );
        return Err(Fault::new("route", words));
    }
    Ok(routes)
}

/// The table that gives `route` again.
pub fn write(route: &Route) -> Table {
    tables::write(route)
}
