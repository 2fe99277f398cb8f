//! Gone at the worst moment.

use super::peer::{Gone, Peer};

/// Content that is sent before the connection goes: more than one segment of TCP, less than any piece that a server
/// gathers before it writes.
const CONTENT_SIZE: usize = 8 * 1024;

/// `reset`: a RST in the middle of content (SO_LINGER of 0). The server finds the connection gone with a message half
/// received, perhaps half on disk. A good one forgets all of it: nothing is delivered, nothing stays behind.
pub async fn reset(peer: &mut Peer<'_>) -> Result<(), Gone> {
    peer.begin_content().await?;
    peer.send(&content()).await
}

/// `half-close`: the end of this side's sending within content; it goes on listening. The server reads the end of the
/// stream where an end-of-data is owed, and its replies would still arrive. A good one takes it for the end of the session,
/// delivers nothing and closes at once.
pub async fn half_close(peer: &mut Peer<'_>) -> Result<(), Gone> {
    peer.begin_content().await?;
    peer.send(&content()).await?;
    peer.shut_sending().await?;
    peer.wait_for_end().await
}

fn content() -> Vec<u8> {
    b"X-Unfinished: never to be delivered\r\n".iter().copied().cycle().take(CONTENT_SIZE).collect()
}
