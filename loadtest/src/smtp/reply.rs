//! Octets → replies (RFC 5321 §4.2).

/// A reply is given up above this: RFC 5321 §4.5.3.1.5 allows 512 octets a line, and EHLO has one for each keyword.
const REPLY_SIZE_MAX: usize = 64 * 1024;

/// One whole reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// Its three digits.
    pub code: u16,
    /// All its lines.
    pub octets: &'a [u8],
}

/// What arrived is no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotSmtp(pub String);

/// Cuts octets into replies. Keeps only the beginning of a reply whose end has not arrived.
#[derive(Default)]
pub struct Replies {
    kept: Vec<u8>,
}

impl Replies {
    /// Calls `with` for each reply that is whole now.
    ///
    /// # Errors
    /// Octets that are no reply. `with` has then seen those before them.
    pub fn take(&mut self, octets: &[u8], mut with: impl FnMut(Reply<'_>)) -> Result<(), NotSmtp> {
        if self.kept.is_empty() {
            // As a rule replies arrive whole, and nothing is copied.
            let taken = take_whole(octets, &mut with)?;
            self.kept.extend_from_slice(&octets[taken..]);
        } else {
            self.kept.extend_from_slice(octets);
            let taken = take_whole(&self.kept, &mut with)?;
            self.kept.drain(..taken);
        }
        match self.kept.len() > REPLY_SIZE_MAX {
            true => Err(NotSmtp(format!("a reply of more than {REPLY_SIZE_MAX} octets"))),
            false => Ok(()),
        }
    }

    /// Whether a reply has begun and not ended.
    pub fn is_midway(&self) -> bool {
        !self.kept.is_empty()
    }
}

/// Octets of the whole replies at the beginning of `octets`, each given to `with`.
fn take_whole(octets: &[u8], with: &mut impl FnMut(Reply<'_>)) -> Result<usize, NotSmtp> {
    let mut start = 0;
    let mut line_start = 0;
    while let Some(size) = memchr::memchr(b'\n', &octets[line_start..]) {
        let line = &octets[line_start..line_start + size];
        let code = match line {
            [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', ..] => {
                u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
            }
            _ => return Err(NotSmtp(format!("{:?}", String::from_utf8_lossy(line)))),
        };
        line_start += size + 1;
        match line.get(3) {
            Some(b'-') => {}
            None | Some(b' ' | b'\r') => {
                with(Reply { code, octets: &octets[start..line_start] });
                start = line_start;
            }
            Some(_) => return Err(NotSmtp(format!("{:?}", String::from_utf8_lossy(line)))),
        }
    }
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_the_same_at_every_split() {
        let octets = b"220 hi\r\n250-a\r\n250-b\r\n250 c\r\n354\r\n250 2.0.0 done\r\n";
        let expected: Vec<(u16, usize)> = vec![(220, 8), (250, 21), (354, 5), (250, 16)];
        for split in 0..=octets.len() {
            let mut replies = Replies::default();
            let mut seen = Vec::new();
            for part in [&octets[..split], &octets[split..]] {
                replies.take(part, |reply| seen.push((reply.code, reply.octets.len()))).unwrap();
            }
            assert_eq!(seen, expected, "split at {split}");
            assert!(!replies.is_midway());
        }
    }

    #[test]
    fn what_is_no_reply_is_said_to_be_none() {
        for octets in ["HTTP/1.1 400\r\n", "\r\n", "25\r\n", "2500 a\r\n", "650 a\r\n"] {
            assert!(Replies::default().take(octets.as_bytes(), |_| ()).is_err(), "{octets:?}");
        }
        let endless = "250-a\r\n".repeat(10_000);
        assert!(Replies::default().take(endless.as_bytes(), |_| ()).is_err());
    }
}
