//! Tables whose keys depend on their `type`: taken as they are, and looked into when the type is known.

use serde::de::{self, DeserializeOwned, Deserializer};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::error::Fault;

const NAME_SIZE_MAX: usize = 32;
/// What [`is_name`] wants.
pub const NAME_EXPECTED: &str = "a name of at most 32 of a-z, 0-9, _ and -";

/// Whether policies, transports and the like may be called so.
pub fn is_name(text: &str) -> bool {
    let is_name_octet = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_' || c == b'-';
    (1..=NAME_SIZE_MAX).contains(&text.len()) && text.bytes().all(is_name_octet)
}

/// What `settings` say; `place` is the key of the table.
pub fn read<T: DeserializeOwned>(settings: Table, place: &str) -> Result<T, Fault> {
    serde_path_to_error::deserialize(Value::Table(settings)).map_err(|e| {
        let path = e.path().to_string();
        let key = match path.trim_end_matches('?').trim_end_matches('.') {
            "" => place.to_string(),
            path => format!("{place}.{path}"),
        };
        Fault::new(key, e.inner().message().trim())
    })
}

/// The table that says the same.
pub fn write<T: Serialize>(settings: &T) -> Table {
    Table::try_from(settings).expect("settings are a table")
}

/// Takes `keys` out of `table`, into one of their own.
pub fn take(table: &mut Table, keys: &[&str]) -> Table {
    keys.iter().filter_map(|key| Some((key.to_string(), table.remove(*key)?))).collect()
}

/// An array of tables, not looked into yet.
pub fn array<'de, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
) -> Result<Vec<Table>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Array(items) => items
            .into_iter()
            .map(|item| match item {
                Value::Table(table) => Ok(table),
                _ => Err(de::Error::custom(expected)),
            })
            .collect(),
        _ => Err(de::Error::custom(expected)),
    }
}
