//! Contents that are made up: one run of octets of which every size is a beginning, closed by CRLF.

use super::{ID_FIELD, ID_SIZE, copy_marked};

/// Octets of a line of the body, CRLF included.
const LINE_SIZE: usize = 78;
/// Every so many lines of the body the message's id is said.
const NAMED_LINES: usize = 8;

/// Octets of content from which on it says the id of its message.
pub const NAMED_SIZE_MIN: usize = ID_FIELD.len() + ID_SIZE + CRLF.len();

const CRLF: &[u8] = b"\r\n";
const PLACE: [u8; ID_SIZE] = [b'x'; ID_SIZE];

/// Contents of given sizes.
pub struct Generated {
    sizes: Vec<usize>,
    octets: Vec<u8>,
    marks: Vec<usize>,
}

impl Generated {
    /// Contents of `sizes` octets each: none of them 1, for a content is empty or ends with CRLF.
    pub fn new(sizes: Vec<usize>) -> Self {
        debug_assert!(!sizes.contains(&1));
        let (octets, marks) = lines(sizes.iter().copied().max().unwrap_or_default());
        Generated { sizes, octets, marks }
    }

    pub(super) fn count(&self) -> usize {
        self.sizes.len()
    }

    /// Octets of the content of this index.
    pub fn size(&self, index: usize) -> usize {
        self.sizes[index]
    }

    pub(super) fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    pub(super) fn are_named(&self) -> bool {
        self.sizes.iter().all(|size| *size >= NAMED_SIZE_MIN)
    }

    /// See [`super::Contents::copy`].
    pub fn copy(&self, index: usize, id: &[u8; ID_SIZE], offset: usize, size_max: usize, out: &mut Vec<u8>) {
        let size = self.sizes[index];
        let end = size.min(offset + size_max);
        let base = out.len();
        copy_marked(&self.octets, &self.marks, id, offset, end, out);
        // The beginning is closed by CRLF wherever it ends; a CR that comes to stand before that would be a bare one.
        let close =
            [(size.wrapping_sub(3), b'x'), (size.wrapping_sub(2), b'\r'), (size.wrapping_sub(1), b'\n')];
        for (at, octet) in close {
            if (offset..end).contains(&at) && (octet != b'x' || self.octets[at] == b'\r') {
                out[base + at - offset] = octet;
            }
        }
    }
}

/// A header section and lines, at least `size` octets, with the places of the id.
fn lines(size: usize) -> (Vec<u8>, Vec<usize>) {
    let mut octets = Vec::with_capacity(size + 1024);
    let mut marks = Vec::new();
    let mut name = |octets: &mut Vec<u8>| {
        marks.push(octets.len());
        octets.extend_from_slice(&PLACE);
    };
    octets.extend_from_slice(ID_FIELD);
    name(&mut octets);
    octets.extend_from_slice(b"\r\nFrom: <load@load.test>\r\nTo: <inbox@mx.test>\r\nMessage-ID: <");
    name(&mut octets);
    octets.extend_from_slice(b"@load.test>\r\nSubject: load\r\n\r\n");
    for line in 0.. {
        if octets.len() >= size {
            break;
        }
        let end = octets.len() + LINE_SIZE - CRLF.len();
        if line % NAMED_LINES == 0 {
            name(&mut octets);
            octets.push(b' ');
        }
        // Letters that differ from line to line, never a dot.
        octets.extend((octets.len()..end).map(|i| b'a' + ((i * 7 + line) % 26) as u8));
        octets.extend_from_slice(CRLF);
    }
    (octets, marks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::MessageId;

    fn whole(size: usize, number: u64) -> Vec<u8> {
        let generated = Generated::new(vec![size]);
        let mut out = Vec::new();
        generated.copy(0, &MessageId { run: 1, number }.to_octets(), 0, usize::MAX / 2, &mut out);
        out
    }

    #[test]
    fn every_size_is_exact_ends_with_crlf_and_has_no_bare_cr_or_lf() {
        for size in (0..2000).filter(|size| *size != 1) {
            let content = whole(size, 7);
            assert_eq!(content.len(), size);
            assert!(content.is_empty() || content.ends_with(CRLF));
            let text = String::from_utf8(content).unwrap();
            let bare = text.replace("\r\n", "").contains(['\r', '\n']);
            assert!(!bare, "{size}: {text:?}");
            assert!(!text.split("\r\n").any(|line| line.starts_with('.') || line.len() > 998), "{size}");
        }
    }

    #[test]
    fn copied_in_pieces_of_any_size_it_is_the_same() {
        let id = MessageId { run: 2, number: 3 }.to_octets();
        let generated = Generated::new(vec![1500]);
        let mut whole = Vec::new();
        generated.copy(0, &id, 0, 1500, &mut whole);
        for piece in [1, 2, 3, 20, 21, 22, 700] {
            let mut pieces = Vec::new();
            while pieces.len() < 1500 {
                generated.copy(0, &id, pieces.len(), piece, &mut pieces);
            }
            assert_eq!(pieces, whole, "pieces of {piece}");
        }
    }

    #[test]
    fn no_two_messages_have_a_common_eighth_of_their_lines() {
        let (one, two) = (whole(10_000, 1), whole(10_000, 2));
        let id = MessageId { run: 1, number: 1 }.to_string();
        let named = String::from_utf8(one.clone()).unwrap().matches(&id).count();
        assert_eq!(named, 2 + (10_000usize - 150).div_ceil(LINE_SIZE * NAMED_LINES));
        assert_ne!(one, two);
    }
}
