//! The message id: the queue id of the `250`, of every log line and of every file about a message.

use std::fmt;
use std::str::FromStr;

/// Crockford's base 32: no I, L, O or U, so that an id survives being read aloud.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Seven digits of five bits hold the 32 bits of the log.
const LOG_DIGITS: usize = 7;

/// Thirteen digits of five bits hold the 64 bits of the sequence.
const SEQUENCE_DIGITS_MAX: usize = 13;

/// Names one message for ever: the log it was accepted into and its number there.
///
/// Unique across shards and restarts: `log` is drawn at random when a log is created, `sequence` never repeats in a log.
/// As text: seven digits of `log`, then `sequence` without leading zeros, in Crockford's base 32 (at most 20 octets).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    /// The log (one spool directory in one life).
    pub log: u32,
    /// The number of the message's final record in that log.
    pub sequence: u64,
}

impl MessageId {
    /// How many digits of the text are the log's.
    pub const LOG_DIGITS: usize = LOG_DIGITS;
    /// The longest text of an id, in octets.
    pub const TEXT_SIZE_MAX: usize = LOG_DIGITS + SEQUENCE_DIGITS_MAX;

    /// Writes the text form into `text` and returns the part used.
    pub fn encode<'a>(&self, text: &'a mut [u8; Self::TEXT_SIZE_MAX]) -> &'a str {
        for (i, digit) in text[..LOG_DIGITS].iter_mut().enumerate() {
            *digit = ALPHABET[(self.log >> (5 * (LOG_DIGITS - 1 - i))) as usize & 31];
        }
        let significant = (64 - self.sequence.leading_zeros() as usize).div_ceil(5).max(1);
        for i in 0..significant {
            text[LOG_DIGITS + i] = ALPHABET[(self.sequence >> (5 * (significant - 1 - i))) as usize & 31];
        }
        std::str::from_utf8(&text[..LOG_DIGITS + significant]).expect("the alphabet is ASCII")
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.encode(&mut [0; Self::TEXT_SIZE_MAX]))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a message id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseMessageIdError;

impl fmt::Display for ParseMessageIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a message id: expected 8 to 20 digits and letters, as in the reply `queued as …`")
    }
}

impl std::error::Error for ParseMessageIdError {}

impl FromStr for MessageId {
    type Err = ParseMessageIdError;

    fn from_str(text: &str) -> Result<Self, ParseMessageIdError> {
        let digit = |c: u8| {
            let at = ALPHABET.iter().position(|a| *a == c.to_ascii_uppercase());
            at.map(|d| d as u64).ok_or(ParseMessageIdError)
        };
        let octets = text.as_bytes();
        if octets.len() <= LOG_DIGITS || octets.len() > Self::TEXT_SIZE_MAX {
            return Err(ParseMessageIdError);
        }
        let mut log = 0u64;
        for c in &octets[..LOG_DIGITS] {
            log = log << 5 | digit(*c)?;
        }
        let mut sequence = 0u64;
        for c in &octets[LOG_DIGITS..] {
            if sequence >> 59 != 0 {
                return Err(ParseMessageIdError);
            }
            sequence = sequence << 5 | digit(*c)?;
        }
        let log = u32::try_from(log).map_err(|_| ParseMessageIdError)?;
        Ok(MessageId { log, sequence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_id_are_one() {
        for log in [0, 1, 31, 32, 0xDEAD_BEEF, u32::MAX] {
            for sequence in [0, 1, 31, 32, 1 << 35, u64::MAX] {
                let id = MessageId { log, sequence };
                assert_eq!(id.to_string().parse(), Ok(id), "{id}");
                assert_eq!(id.to_string().to_lowercase().parse(), Ok(id), "{id}");
            }
        }
        assert_eq!(MessageId { log: 1, sequence: 33 }.to_string(), "000000111");
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in
            ["", "0000000", "U0000000", "ZZZZZZZ1", "0000000ZZZZZZZZZZZZZZ", "00000001\n", "../../etc"]
        {
            assert_eq!(text.parse::<MessageId>(), Err(ParseMessageIdError), "{text:?}");
        }
    }
}
