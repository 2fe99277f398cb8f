//! Which command is permitted when: the order of RFC 5321 §4.1.4 as one table.

/// Where a session stands.
///
/// ```text
///              Greet   Restart   Secure    Hello Mail Recipient  Data    Chunk ChunkEnd EndOfData Conclude Reset   Other      Close
/// Connected    Greeted ·         Connected ·     ·    ·          ·       ·     ·        ·         ·        ·       ·          Closed
/// Greeted      ·       Connected Greeted   Ready ·    ·          ·       ·     ·        ·         ·        Greeted Greeted    Closed
/// Ready        ·       Connected Greeted   Ready Mail ·          ·       ·     ·        ·         ·        Ready   Ready      Closed
/// Mail         ·       ·         ·         Ready ·    Recipients ·       ·     ·        ·         ·        Ready   Mail       Closed
/// Recipients   ·       ·         ·         Ready ·    Recipients Content Chunk ·        ·         ·        Ready   Recipients Closed
/// Content      ·       ·         ·         ·     ·    ·          ·       ·     ·        Arrived   Ready    ·       ·          Closed
/// Chunk        ·       ·         ·         ·     ·    ·          ·       ·     Chunked  Arrived   Ready    ·       ·          Closed
/// Chunked      ·       ·         ·         Ready ·    ·          ·       Chunk ·        ·         ·        Ready   Chunked    Closed
/// Arrived      ·       ·         ·         ·     ·    ·          ·       ·     ·        ·         Ready    ·       ·          Closed
/// Closed       ·       ·         ·         ·     ·    ·          ·       ·     ·        ·         ·        ·       ·          ·
/// ```
///
/// A dot is a bad sequence: 503 for a command, impossible for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing was said yet.
    Connected,
    /// The 220 was given.
    Greeted,
    /// The peer has named itself; no transaction is open.
    Ready,
    /// A transaction without a recipient.
    Mail,
    /// A transaction that DATA may follow.
    Recipients,
    /// After the 354: every octet is content.
    Content,
    /// After a BDAT: so many octets are content.
    Chunk,
    /// A chunk has come, and was not the last: BDAT may follow.
    Chunked,
    /// The whole content is here; its fate is not decided yet.
    Arrived,
    /// Nothing is taken any more.
    Closed,
}

/// What happens to a session. A command is an event once it is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The 220 is given.
    Greet,
    /// XCLIENT: the session is another peer's from its beginning.
    Restart,
    /// TLS has begun: what was known of the peer is forgotten.
    Secure,
    /// HELO, EHLO or LHLO.
    Hello,
    /// MAIL.
    Mail,
    /// RCPT.
    Recipient,
    /// DATA.
    Data,
    /// BDAT.
    Chunk,
    /// A chunk is complete that is not the last.
    ChunkEnd,
    /// End-of-data, or of the last chunk, of content that is not refused.
    EndOfData,
    /// The reply to end-of-data is given.
    Conclude,
    /// RSET, or a DATA that is refused.
    Reset,
    /// NOOP, VRFY, HELP, AUTH.
    Other,
    /// The session ends, by QUIT or otherwise.
    Close,
}

impl State {
    /// The state after `event`, or `None` if the event is out of sequence.
    pub const fn next(self, event: Event) -> Option<State> {
        use State::*;
        Some(match (self, event) {
            (Closed, _) => return None,
            (_, Event::Close) => Closed,
            (Connected, Event::Greet) => Greeted,
            (Greeted | Ready, Event::Restart) => Connected,
            (Connected, Event::Secure) => Connected,
            (Greeted | Ready, Event::Secure) => Greeted,
            (Greeted | Ready | Mail | Recipients | Chunked, Event::Hello) => Ready,
            (Ready, Event::Mail) => Mail,
            (Mail | Recipients, Event::Recipient) => Recipients,
            (Recipients, Event::Data) => Content,
            (Recipients | Chunked, Event::Chunk) => Chunk,
            (Chunk, Event::ChunkEnd) => Chunked,
            (Content | Chunk, Event::EndOfData) => Arrived,
            (Content | Chunk | Arrived, Event::Conclude) => Ready,
            (Greeted, Event::Reset) => Greeted,
            (Ready | Mail | Recipients | Chunked, Event::Reset) => Ready,
            (Greeted | Ready | Mail | Recipients | Chunked, Event::Other) => self,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the type's doc, row by row.
    const ROWS: [(State, &str); 10] = [
        (
            State::Connected,
            "Greeted ·         Connected ·     ·    ·          ·       ·     ·        ·         ·        ·       ·          Closed",
        ),
        (
            State::Greeted,
            "·       Connected Greeted   Ready ·    ·          ·       ·     ·        ·         ·        Greeted Greeted    Closed",
        ),
        (
            State::Ready,
            "·       Connected Greeted   Ready Mail ·          ·       ·     ·        ·         ·        Ready   Ready      Closed",
        ),
        (
            State::Mail,
            "·       ·         ·         Ready ·    Recipients ·       ·     ·        ·         ·        Ready   Mail       Closed",
        ),
        (
            State::Recipients,
            "·       ·         ·         Ready ·    Recipients Content Chunk ·        ·         ·        Ready   Recipients Closed",
        ),
        (
            State::Content,
            "·       ·         ·         ·     ·    ·          ·       ·     ·        Arrived   Ready    ·       ·          Closed",
        ),
        (
            State::Chunk,
            "·       ·         ·         ·     ·    ·          ·       ·     Chunked  Arrived   Ready    ·       ·          Closed",
        ),
        (
            State::Chunked,
            "·       ·         ·         Ready ·    ·          ·       Chunk ·        ·         ·        Ready   Chunked    Closed",
        ),
        (
            State::Arrived,
            "·       ·         ·         ·     ·    ·          ·       ·     ·        ·         Ready    ·       ·          Closed",
        ),
        (
            State::Closed,
            "·       ·         ·         ·     ·    ·          ·       ·     ·        ·         ·        ·       ·          ·",
        ),
    ];

    const EVENTS: [Event; 14] = [
        Event::Greet,
        Event::Restart,
        Event::Secure,
        Event::Hello,
        Event::Mail,
        Event::Recipient,
        Event::Data,
        Event::Chunk,
        Event::ChunkEnd,
        Event::EndOfData,
        Event::Conclude,
        Event::Reset,
        Event::Other,
        Event::Close,
    ];

    #[test]
    fn every_cell_of_the_table_is_as_drawn() {
        for (state, row) in ROWS {
            let cells: Vec<_> = row.split_whitespace().collect();
            assert_eq!(cells.len(), EVENTS.len(), "{row}");
            for (event, cell) in EVENTS.into_iter().zip(cells) {
                let next = state.next(event).map_or("·".to_string(), |s| format!("{s:?}"));
                assert_eq!(next, cell, "{state:?} × {event:?}");
            }
        }
    }

    #[test]
    fn the_drawing_is_the_table() {
        let drawn = include_str!("state.rs");
        for (state, row) in ROWS {
            let line = format!("/// {:<13}{row}", format!("{state:?}"));
            assert!(drawn.contains(&line), "not drawn in the doc: {line}");
        }
    }
}
