//! `[admin]` and `[monitor]`: where the gateway can be asked and told.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use super::error::Fault;
use super::value::{Parsed, Text};

/// The socket's name in the data directory, where nothing else is said.
const SOCKET_NAME: &str = "admin.sock";

/// `[admin]`: where the gateway can be asked and told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admin {
    /// The unix socket; none: there is no such socket.
    pub socket: Option<PathBuf>,
    /// Members of this group may open it too.
    pub group: Option<String>,
    /// An address where it listens as well; never without `token_file`.
    pub listen: Option<SocketAddr>,
    /// The file of the token that is asked for there.
    pub token_file: Option<PathBuf>,
}

/// `[monitor]`: where it says how it is, to anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [monitor]")]
pub struct Monitor {
    /// The address; none: nobody can ask there.
    #[serde(deserialize_with = "address", skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
}

/// `[admin]` as it stands in the file.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [admin]")]
pub struct AdminFile {
    #[serde(deserialize_with = "socket", skip_serializing_if = "Option::is_none")]
    socket: Option<Text<SocketPath>>,
    #[serde(deserialize_with = "group", skip_serializing_if = "Option::is_none")]
    group: Option<Text<Group>>,
    #[serde(deserialize_with = "address", skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
}

impl AdminFile {
    /// With the socket in `data` where nothing else is said.
    pub fn resolve(self, data: &Path) -> Result<Admin, Fault> {
        let socket = match self.socket {
            Some(Text(SocketPath(socket))) => socket,
            None => Some(data.join(SOCKET_NAME)),
        };
        let group = self.group.map(|Text(Group(name))| name);
        let Some(listen) = self.listen else {
            return Ok(Admin { socket, group, listen: None, token_file: self.token_file });
        };
        if self.token_file.is_none() {
            let words = format!(
                "whoever reaches {listen} could do anything: add admin.token_file = \"token\", a file with a line of 16 to 512 \
                 characters that nobody guesses (openssl rand -hex 32)"
            );
            return Err(Fault::new("admin.listen", words));
        }
        Ok(Admin { socket, group, listen: Some(listen), token_file: self.token_file })
    }
}

impl From<&Admin> for AdminFile {
    fn from(admin: &Admin) -> Self {
        AdminFile {
            socket: Some(Text(SocketPath(admin.socket.clone()))),
            group: admin.group.clone().map(|name| Text(Group(name))),
            listen: admin.listen,
            token_file: admin.token_file.clone(),
        }
    }
}

/// A path, or none.
#[derive(Clone, Debug)]
struct SocketPath(Option<PathBuf>);

impl Parsed for SocketPath {
    const EXPECTED: &'static str = "the path of a socket, or \"none\"";

    fn parsed(text: &str) -> Option<Self> {
        match text {
            "none" | "false" => Some(SocketPath(None)),
            "" | "true" => None,
            _ => (!text.contains('\0')).then(|| SocketPath(Some(text.into()))),
        }
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(path) => path.display().fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// The name of a group, which is looked up when the socket is made.
#[derive(Clone, Debug, Serialize)]
struct Group(String);

impl Parsed for Group {
    const EXPECTED: &'static str = "the name of a group";

    fn parsed(text: &str) -> Option<Self> {
        (!text.is_empty() && !text.contains('\0')).then(|| Group(text.into()))
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn socket<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Text<SocketPath>>, D::Error> {
    Text::deserialize(deserializer).map(Some)
}

fn group<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Text<Group>>, D::Error> {
    Text::deserialize(deserializer).map(Some)
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    Text::deserialize(deserializer).map(|Text(address)| Some(address))
}
