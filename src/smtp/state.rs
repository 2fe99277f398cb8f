//! Which command is permitted when: the order of RFC 5321 §4.1.4 as one table.

/// Where a session stands.
///
/// ```text
///              Greet    Hello  Mail  Recipient   Data     EndOfData  Conclude  Reset       Other       Close
/// Connected    Greeted  ·      ·     ·           ·        ·          ·         ·           ·           Closed
/// Greeted      ·        Ready  ·     ·           ·        ·          ·         Greeted     Greeted     Closed
/// Ready        ·        Ready  Mail  ·           ·        ·          ·         Ready       Ready       Closed
/// Mail         ·        Ready  ·     Recipients  ·        ·          ·         Ready       Mail        Closed
/// Recipients   ·        Ready  ·     Recipients  Content  ·          ·         Ready       Recipients  Closed
/// Content      ·        ·      ·     ·           ·        Arrived    Ready     ·           ·           Closed
/// Arrived      ·        ·      ·     ·           ·        ·          Ready     ·           ·           Closed
/// Closed       ·        ·      ·     ·           ·        ·          ·         ·           ·           ·
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
    /// HELO or EHLO.
    Hello,
    /// MAIL.
    Mail,
    /// RCPT.
    Recipient,
    /// DATA.
    Data,
    /// End-of-data of content that is not refused.
    EndOfData,
    /// The reply to end-of-data is given.
    Conclude,
    /// RSET, or a DATA that is refused.
    Reset,
    /// NOOP, VRFY, HELP.
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
            (Greeted | Ready | Mail | Recipients, Event::Hello) => Ready,
            (Ready, Event::Mail) => Mail,
            (Mail | Recipients, Event::Recipient) => Recipients,
            (Recipients, Event::Data) => Content,
            (Content, Event::EndOfData) => Arrived,
            (Content | Arrived, Event::Conclude) => Ready,
            (Greeted, Event::Reset) => Greeted,
            (Ready | Mail | Recipients, Event::Reset) => Ready,
            (Greeted | Ready | Mail | Recipients, Event::Other) => self,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the type's doc, row by row.
    const ROWS: [(State, &str); 8] = [
        (
            State::Connected,
            "Greeted  ·      ·     ·           ·        ·          ·         ·           ·           Closed",
        ),
        (
            State::Greeted,
            "·        Ready  ·     ·           ·        ·          ·         Greeted     Greeted     Closed",
        ),
        (
            State::Ready,
            "·        Ready  Mail  ·           ·        ·          ·         Ready       Ready       Closed",
        ),
        (
            State::Mail,
            "·        Ready  ·     Recipients  ·        ·          ·         Ready       Mail        Closed",
        ),
        (
            State::Recipients,
            "·        Ready  ·     Recipients  Content  ·          ·         Ready       Recipients  Closed",
        ),
        (
            State::Content,
            "·        ·      ·     ·           ·        Arrived    Ready     ·           ·           Closed",
        ),
        (
            State::Arrived,
            "·        ·      ·     ·           ·        ·          Ready     ·           ·           Closed",
        ),
        (
            State::Closed,
            "·        ·      ·     ·           ·        ·          ·         ·           ·           ·",
        ),
    ];

    const EVENTS: [Event; 10] = [
        Event::Greet,
        Event::Hello,
        Event::Mail,
        Event::Recipient,
        Event::Data,
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
