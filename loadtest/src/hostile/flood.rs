//! More than anybody asked for, sooner, or in another shape.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

use super::peer::{Gone, Peer};

/// Between two steps of those that would otherwise send without pause: 200 steps a second and connection.
const STEP_INTERVAL: Duration = Duration::from_millis(5);
/// Octets of an endless line in one step: 1.6 MB/s and connection, above what any limit on lines lets through.
const LINE_STEP_SIZE: usize = 8 * 1024;
/// Octets of a huge message in one step: 13 MB/s and connection, so that 64 MiB, a limit that many set, are reached within
/// some five seconds.
const HUGE_STEP_SIZE: usize = 64 * 1024;
/// An end to what should be refused long before.
const HUGE_SIZE_MAX: usize = 1 << 30;
/// RCPTs in one step: half of what RFC 5321 §4.5.3.1.8 lets everybody send to one transaction.
const RECIPIENT_STEP_COUNT: usize = 50;
/// Octets of garbage in one step, at most.
const GARBAGE_SIZE_MAX: usize = 4 * 1024;
/// Steps of garbage before the connection is given up: a server that bounds errors ends it sooner.
const GARBAGE_STEPS: usize = 40;
/// Pairs of commands in one step of a peer that never reads.
const DEAF_STEP_COUNT: usize = 64;

/// Ends of data that are none, and commands behind them: RFC 5321 §4.1.1.4 and what came of reading it otherwise. If one
/// of the ends is believed, what follows is a second message in a session that never sent it.
const SMUGGLED: [&[u8]; 7] = [
    b"\n.\nMAIL FROM:<smuggled@load.test>\r\nRCPT TO:<inbox@mx.test>\r\nDATA\r\n",
    b"\n.\r\nMAIL FROM:<smuggled@load.test>\r\nRCPT TO:<inbox@mx.test>\r\nDATA\r\n",
    b"\r\n.\nMAIL FROM:<smuggled@load.test>\r\nRCPT TO:<inbox@mx.test>\r\nDATA\r\n",
    b"\r.\rMAIL FROM:<smuggled@load.test>\rRCPT TO:<inbox@mx.test>\rDATA\r",
    b"\r\n\0.\r\nMAIL FROM:<smuggled@load.test>\r\n",
    b"MAIL FROM:<a\0b@load.test>\r\nRCPT TO:<\xff\xfe@mx.test>\r\n",
    b"EHLO \r\r\n\n\r\nRSET\nRSET\rRSET\r\n",
];

/// `early-talk`: a whole message sent before the greeting was read, as spam engines do that never look at replies. A good
/// server takes it as input that is early, or answers 554; it never mixes up the replies.
pub async fn early_talk(peer: &mut Peer<'_>) -> Result<(), Gone> {
    let recipient = peer.recipient();
    let session = format!("EHLO early.test\r\nMAIL FROM:<>\r\n{recipient}\r\nRSET\r\nQUIT\r\n");
    peer.send(session.as_bytes()).await?;
    // QUIT is the last word: the server closes.
    peer.wait_for_end().await
}

/// `endless-line`, even connections: a command line without an end. A good server keeps no more of it than the longest
/// line it takes, answers 500 and, if it does not close, reads on without keeping anything.
pub async fn endless_command_line(peer: &mut Peer<'_>) -> Result<(), Gone> {
    peer.hello().await?;
    endless_line(peer, b"NOOP ").await
}

/// `endless-line`, odd connections: a line of content without an end. A good server's memory does not grow with it, and
/// it is refused (552 or 500) once the message is larger than it takes; until then it is a message as any.
pub async fn endless_content_line(peer: &mut Peer<'_>) -> Result<(), Gone> {
    peer.begin_content().await?;
    endless_line(peer, b"X-Endless: ").await
}

/// `huge-size`: MAIL with a SIZE of 10^18, then the same without it and as much content as is taken. A good server
/// answers 552 to the first at once (RFC 1870 §6.1), and to the second when its limit is reached, with memory bounded in
/// between and the disk free again behind it.
pub async fn huge_size(peer: &mut Peer<'_>) -> Result<(), Gone> {
    peer.hello().await?;
    let announced = b"MAIL FROM:<hostile@load.test> SIZE=1000000000000000000\r\n";
    if peer.exchange(announced, 1).await? < 400 {
        peer.command("RSET").await?;
    }
    peer.begin_transaction().await?;
    peer.command("DATA").await?;
    let line: Vec<u8> = b"x".repeat(76).into_iter().chain(*b"\r\n").collect();
    let step: Vec<u8> = line.iter().copied().cycle().take(HUGE_STEP_SIZE / line.len() * line.len()).collect();
    for _ in 0..HUGE_SIZE_MAX / step.len() {
        peer.send(&step).await?;
        peer.rest(STEP_INTERVAL).await?;
    }
    peer.command(".").await
}

/// `endless-rcpt`: RCPT for ever in one transaction. Each accepted one is memory. A good server answers 452 from a
/// number on (RFC 5321 §4.5.3.1.10), which costs it nothing, and its bounds on the whole session end it.
pub async fn endless_recipients(peer: &mut Peer<'_>) -> Result<(), Gone> {
    peer.hello().await?;
    peer.command("MAIL FROM:<hostile@load.test>").await?;
    let step = format!("{}\r\n", peer.recipient()).repeat(RECIPIENT_STEP_COUNT);
    loop {
        peer.exchange(step.as_bytes(), RECIPIENT_STEP_COUNT as u64).await?;
        peer.rest(STEP_INTERVAL).await?;
    }
}

/// `garbage`: random octets in any state, NULs, bare CR and LF, and what smuggles commands where those are read loosely.
/// Every other line is a parser's worst day. A good server answers 500 until it has had enough of it (421), and takes
/// nothing of content for a command.
pub async fn garbage(peer: &mut Peer<'_>, random: &mut SmallRng) -> Result<(), Gone> {
    // Some say EHLO and begin content first: garbage is to meet more states than the first.
    match random.random_range(0..3) {
        0 => {}
        1 => peer.hello().await?,
        _ => peer.begin_content().await?,
    }
    let junk = &peer.ground().junk;
    for _ in 0..GARBAGE_STEPS {
        let size = random.random_range(1..=GARBAGE_SIZE_MAX);
        let from = random.random_range(0..junk.len() - size);
        let smuggled = SMUGGLED[random.random_range(0..SMUGGLED.len())];
        peer.send(&[&junk[from..from + size], smuggled].concat()).await?;
        peer.rest(STEP_INTERVAL).await?;
    }
    Ok(())
}

/// `never-read`: commands on and on, and never a look at the replies. They fill this side's window, then the server's own
/// buffers. A good server stops reading when its replies cannot be sent, keeps no more of them, and ends the session when
/// that lasts.
pub async fn never_read(peer: &mut Peer<'_>) -> Result<(), Gone> {
    let step = b"MAIL FROM:<hostile@load.test>\r\nRSET\r\n".repeat(DEAF_STEP_COUNT);
    peer.send(b"EHLO deaf.test\r\n").await?;
    loop {
        peer.send(&step).await?;
        peer.rest(STEP_INTERVAL).await?;
    }
}

async fn endless_line(peer: &mut Peer<'_>, start: &[u8]) -> Result<(), Gone> {
    peer.send(start).await?;
    let step = vec![b'x'; LINE_STEP_SIZE];
    loop {
        peer.send(&step).await?;
        peer.rest(STEP_INTERVAL).await?;
    }
}
