//! Handshakes for nothing.

use super::peer::{Gone, Peer};
use crate::plan::TlsMode;

/// What stands in place of a ClientHello where TLS is offered nowhere.
const NO_HELLO_SIZE: usize = 512;

/// `tls-flood`: a full handshake (no session is ever resumed), and the connection is dropped. It costs the server a
/// signature each time, ten times what a message costs. A good one bounds how many it does at once, or its other sessions
/// feel no more of them than their part of the CPU. Where the load's TLS is implicit so is this; else it begins with
/// STARTTLS. Where that is not offered it is sent regardless, and octets that are no ClientHello behind it: a good server
/// refuses the command and then whatever the octets are as commands.
pub async fn flood(peer: &mut Peer<'_>) -> Result<(), Gone> {
    if peer.ground().plan.tls.as_ref().is_some_and(|tls| tls.mode == TlsMode::Implicit) {
        return peer.shake_hands().await;
    }
    peer.hello().await?;
    let is_offered = peer.extensions().starttls;
    let code = peer.exchange(b"STARTTLS\r\n", 1).await?;
    if is_offered && code == 220 {
        return peer.shake_hands().await;
    }
    let junk = &peer.ground().junk[..NO_HELLO_SIZE];
    // With a line's end, so that there is a reply to wait for.
    peer.exchange(&[junk, b"\r\n"].concat(), 1).await?;
    Ok(())
}
