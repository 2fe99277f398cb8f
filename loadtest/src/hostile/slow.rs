//! Little by little, or nothing at all: what a client costs is what it makes a server keep.

use std::time::Duration;

use super::peer::{Gone, Peer};

/// Between two octets of a command: often enough that a bound on silence alone never ends it.
const COMMAND_OCTET_INTERVAL: Duration = Duration::from_millis(500);
/// Between two octets of content: as above; RFC 5321 §4.5.3.2.5 asks a server for three minutes between two of them.
const CONTENT_OCTET_INTERVAL: Duration = Duration::from_secs(1);

/// `slow-commands`: a NOOP with an argument that never ends, an octet at a time. The server holds a session and the
/// beginning of a line. A good one bounds the time for a whole command, not that between octets, and ends the session
/// with 421 (RFC 5321 §4.5.3.2.7 allows it after five minutes).
pub async fn commands(peer: &mut Peer<'_>) -> Result<(), Gone> {
    peer.hello().await?;
    for octet in b"NOOP ".iter().chain(std::iter::repeat(&b'x')) {
        peer.send(&[*octet]).await?;
        peer.rest(COMMAND_OCTET_INTERVAL).await?;
    }
    Ok(())
}

/// `slow-content`: DATA, then lines of content an octet at a time. The server holds an open transaction, and what it has
/// set aside for content. A good one holds no more than the octets that came, and bounds the whole of it.
pub async fn content(peer: &mut Peer<'_>) -> Result<(), Gone> {
    peer.begin_content().await?;
    for octet in b"X-Slow: yes\r\n".iter().cycle() {
        peer.send(&[*octet]).await?;
        peer.rest(CONTENT_OCTET_INTERVAL).await?;
    }
    Ok(())
}

/// `hold`: connects and says nothing. The server holds a session. A good one holds next to nothing for it and ends it
/// with 421 after the time for a command.
pub async fn hold(peer: &mut Peer<'_>) -> Result<(), Gone> {
    peer.wait_for_end().await
}
