//! The body of a request: the content as it is, or a JSON object with the content in base64 as its last value.
//!
//! Its size is known before its first octet is sent, and it is made piece by piece from the content's: a message is never in memory
//! as a whole. [`Feed`] is the end at which the HTTP client takes the pieces.
//!
//! Invariant: a body that did not come whole is an error for the client, which then breaks the request off: no endpoint takes a part
//! for the whole.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;

/// What ends a JSON object behind its content.
const JSON_END: &[u8] = b"\"}\n";
/// What its content begins with, behind the other members.
const JSON_CONTENT: &[u8] = b",\"content\":\"";

/// What a body is made of.
#[derive(Clone, Debug)]
pub enum Form {
    /// The content, octet for octet.
    Plain,
    /// JSON: everything before the content's first digit.
    Json {
        /// The members before it.
        head: Bytes,
    },
}

/// Makes the pieces of a body from the pieces of the content.
pub struct Encoder<'a> {
    form: &'a Form,
    /// Octets of the content that do not fill three yet.
    carry: Vec<u8>,
}

impl Form {
    /// An object of `members`, a JSON object that is not empty, and the content.
    pub fn json(mut members: Vec<u8>) -> Form {
        let brace = members.pop();
        assert!(brace == Some(b'}') && members.len() > 1, "an object with members");
        members.extend_from_slice(JSON_CONTENT);
        Form::Json { head: members.into() }
    }

    /// The body's size, octets, where the content's is `content_size`.
    pub fn size(&self, content_size: u64) -> u64 {
        match self {
            Form::Plain => content_size,
            Form::Json { head } => head.len() as u64 + content_size.div_ceil(3) * 4 + JSON_END.len() as u64,
        }
    }

    /// The body's first piece, which may be empty, and what makes the others.
    pub fn begin(&self) -> (Bytes, Encoder<'_>) {
        let head = match self {
            Form::Plain => Bytes::new(),
            Form::Json { head } => head.clone(),
        };
        (head, Encoder { form: self, carry: Vec::new() })
    }
}

impl Encoder<'_> {
    /// The next piece, of the next octets of the content. It may be empty.
    pub fn piece(&mut self, octets: Bytes) -> Bytes {
        match self.form {
            Form::Plain => octets,
            Form::Json { .. } => {
                let mut text = String::with_capacity((self.carry.len() + octets.len()).div_ceil(3) * 4);
                let filling = octets.len().min((3 - self.carry.len()) % 3);
                let (filling, rest) = octets.split_at(filling);
                self.carry.extend_from_slice(filling);
                if self.carry.len() == 3 {
                    STANDARD.encode_string(&self.carry, &mut text);
                    self.carry.clear();
                }
                let (whole, over) = rest.split_at(rest.len() / 3 * 3);
                STANDARD.encode_string(whole, &mut text);
                self.carry.extend_from_slice(over);
                text.into()
            }
        }
    }

    /// The last piece.
    pub fn end(self) -> Bytes {
        match self.form {
            Form::Plain => Bytes::new(),
            Form::Json { .. } => [STANDARD.encode(&self.carry).as_bytes(), JSON_END].concat().into(),
        }
    }
}

/// A body whose pieces come through a channel.
pub struct Feed {
    pieces: mpsc::Receiver<Bytes>,
    left: u64,
}

/// The feed of a body of `size` octets, and where its pieces go: none of them empty, and one waits at most.
pub fn feed(size: u64) -> (mpsc::Sender<Bytes>, Feed) {
    let (sender, pieces) = mpsc::channel(1);
    (sender, Feed { pieces, left: size })
}

impl http_body::Body for Feed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let piece = ready!(self.pieces.poll_recv(context));
        Poll::Ready(match piece {
            Some(piece) => {
                let left = self.left.checked_sub(piece.len() as u64);
                self.left = left.expect("a body is not longer than was said");
                Some(Ok(Frame::data(piece)))
            }
            None if self.left == 0 => None,
            None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// The body of content that comes in pieces of these sizes, the last of them again and again.
    fn body(form: &Form, content: &[u8], sizes: &[usize]) -> Vec<u8> {
        let (head, mut encoder) = form.begin();
        let (mut body, mut rest) = (head.to_vec(), content);
        let mut sizes = sizes.iter().copied();
        let mut size = usize::MAX;
        while !rest.is_empty() {
            size = sizes.next().unwrap_or(size);
            let (piece, more) = rest.split_at(size.min(rest.len()));
            body.extend_from_slice(&encoder.piece(Bytes::copy_from_slice(piece)));
            rest = more;
        }
        body.extend_from_slice(&encoder.end());
        body
    }

    proptest! {
        #[test]
        fn a_body_is_the_same_however_the_content_comes(
            content in vec(any::<u8>(), 0..200),
            sizes in vec(0usize..10, 0..30).prop_map(|mut sizes| { sizes.push(1); sizes }),
        ) {
            let members = json!({"message_id": "x\"y", "header": [["A", "é\n"]]});
            let form = Form::json(serde_json::to_vec(&members).unwrap());
            let body = body(&form, &content, &sizes);
            prop_assert_eq!(form.size(content.len() as u64), body.len() as u64);
            let mut object: Value = serde_json::from_slice(&body).unwrap();
            let encoded = object.as_object_mut().unwrap().remove("content").unwrap();
            prop_assert_eq!(object, members);
            prop_assert_eq!(STANDARD.decode(encoded.as_str().unwrap()).unwrap(), &content[..]);
            prop_assert_eq!(self::body(&Form::Plain, &content, &sizes), &content[..]);
            prop_assert_eq!(Form::Plain.size(content.len() as u64), content.len() as u64);
        }
    }

    #[test]
    fn a_feed_that_ends_early_is_an_error() {
        use http_body::Body;
        let frames = |size: u64, pieces: &[&'static [u8]]| {
            let (sender, feed) = feed(size);
            let mut feed = Box::pin(feed);
            let mut frames = Vec::new();
            let mut next = |expects_piece: bool| {
                let mut context = Context::from_waker(std::task::Waker::noop());
                match feed.as_mut().poll_frame(&mut context) {
                    Poll::Ready(Some(Ok(frame))) => frames.push(Ok(frame.into_data().unwrap().len())),
                    Poll::Ready(Some(Err(e))) => frames.push(Err(e.kind())),
                    Poll::Ready(None) => assert!(feed.is_end_stream()),
                    Poll::Pending => assert!(!expects_piece),
                }
            };
            for piece in pieces {
                next(false);
                sender.try_send(Bytes::from_static(piece)).unwrap();
                next(true);
            }
            drop(sender);
            next(true);
            frames
        };
        assert_eq!(frames(5, &[b"ab", b"cde"]), [Ok(2), Ok(3)]);
        assert_eq!(frames(0, &[]), []);
        assert_eq!(frames(5, &[b"ab"]), [Ok(2), Err(io::ErrorKind::UnexpectedEof)]);
        assert_eq!(frames(1, &[]), [Err(io::ErrorKind::UnexpectedEof)]);
    }
}
