//! One message on its way to some of its recipients, as a transport sees it.

use std::io::{self, Write};
use std::sync::Arc;

use super::HeaderFields;
use super::content::{Chunks, Content, ContentReader, CopyError};
use crate::mail::{Arrival, Envelope, ForwardPath, MessageId};

/// One outstanding recipient of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// Its place in the envelope's forward-paths.
    pub index: u32,
    /// Attempts made before this one.
    pub attempts: u32,
}

/// A message, and the recipients of an attempt.
pub struct Attempt {
    /// The message.
    pub id: MessageId,
    /// Its whole envelope, with recipients that are not of this attempt.
    pub envelope: Arc<Envelope>,
    /// How and when it arrived.
    pub arrival: Arc<Arrival>,
    /// The recipients of this attempt, each once, in ascending order; never empty.
    pub recipients: Vec<Recipient>,
    /// Trace lines and content, octet for octet.
    pub content: Arc<Content>,
}

impl Attempt {
    /// The forward-paths of the recipients, in their order.
    ///
    /// # Panics
    /// Where a recipient's index is outside the envelope.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &ForwardPath> {
        self.recipients.iter().map(|recipient| &self.envelope.forward_paths[recipient.index as usize])
    }

    /// The content's size in octets, our trace lines included.
    pub fn content_size(&self) -> u64 {
        self.content.size()
    }

    /// A reader of the content from its first octet, for a thread that may block. An error of kind `InvalidData` means that the
    /// stored form is damaged: what was read before it must not be delivered.
    pub fn open_content(&self) -> ContentReader<'_> {
        self.content.open()
    }

    /// Writes the whole content into `sink`; this may block. On any error `sink` has a part that must not be delivered.
    pub fn copy_content(&self, sink: &mut dyn Write) -> Result<(), CopyError> {
        self.content.copy_to(sink)
    }

    /// The fields of the header section; this may block.
    pub fn header(&self) -> io::Result<HeaderFields> {
        HeaderFields::read(&mut self.open_content())
    }

    /// The content in parts, for a thread that must not block.
    pub fn chunks(&self) -> Chunks<'_> {
        Chunks::of(&self.content)
    }

    /// The same for every attempt of the transport of this name for these recipients of this message, and for no other: where the other
    /// side can tell by it that it has the message already, nobody gets it twice. Two transports may lead to the same side, for
    /// different ends: what one has brought is not what the other brings.
    pub fn key(&self, transport: &str) -> String {
        let indices: Vec<u8> = self.recipients.iter().flat_map(|r| r.index.to_le_bytes()).collect();
        let digest = crc32c::crc32c_append(crc32c::crc32c(transport.as_bytes()), &indices);
        format!("{}-{digest:08x}", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::tests::attempt_for;

    #[test]
    fn the_header_section_is_that_of_the_content() {
        let mut attempt = attempt_for(&["a@e.org"]);
        attempt.content = Content::Memory(vec!["A: b\r".into(), "\n c\r\n\r\nbody".into()]).into();
        assert_eq!(attempt.header().unwrap().get("a").unwrap().value(), "b c");
    }

    #[test]
    fn the_key_is_that_of_a_message_its_recipients_and_the_transport() {
        let (one, two) = (attempt_for(&["a@e.org"]), attempt_for(&["a@e.org", "b@e.org"]));
        assert_eq!(
            one.key("hook"),
            attempt_for(&["c@e.net"]).key("hook"),
            "the message is the same, and the place in it"
        );
        let keys = [one.key("hook"), two.key("hook"), one.key("archive"), two.key("archive"), one.key("")];
        assert_eq!(keys.iter().collect::<std::collections::BTreeSet<_>>().len(), keys.len(), "{keys:?}");
    }
}
