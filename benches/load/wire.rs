//! The octets of the load, written once before it begins.

/// Octets of a message on the wire, and what they are grouped into.
pub struct Wire {
    /// MAIL, RCPT and DATA, each as a write of its own or all in one.
    pub envelope: Vec<Vec<u8>>,
    /// Content and end-of-data, one write.
    pub content: Vec<u8>,
}

/// EHLO of the load.
pub const EHLO: &[u8] = b"EHLO load.test\r\n";
/// QUIT.
pub const QUIT: &[u8] = b"QUIT\r\n";

impl Wire {
    /// A message whose content has exactly `size` octets, header section included.
    pub fn new(size: usize, is_pipelined: bool) -> Self {
        let commands = ["MAIL FROM:<load@load.test>\r\n", "RCPT TO:<inbox@mx.test>\r\n", "DATA\r\n"];
        let envelope = if is_pipelined {
            vec![commands.concat().into_bytes()]
        } else {
            commands.map(|command| command.as_bytes().to_vec()).to_vec()
        };
        Wire { envelope, content: [content(size), b".\r\n".to_vec()].concat() }
    }
}

/// Content of exactly `size` octets (at least 64) in lines of 78, none of which begins with a dot.
pub fn content(size: usize) -> Vec<u8> {
    let mut content = b"From: load@load.test\r\nSubject: load\r\n\r\n".to_vec();
    while content.len() < size {
        let left = size - content.len();
        // No line may be shorter than its CRLF.
        let line = if left < 80 { left } else { 78 };
        content.extend(std::iter::repeat_n(b'x', line - 2));
        content.extend_from_slice(b"\r\n");
    }
    assert_eq!(content.len(), size, "content of at least 64 octets");
    content
}
