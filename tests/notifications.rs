//! What another program makes of our notifications: Python's email package finds the parts and fields that we wrote, whatever others
//! have written into them.

mod support;

use std::io::Write;
use std::process::{Command, Stdio};

use incoming::delivery::notification::{Event, Notification, Told};
use incoming::mail::{
    Domain, Dsn, Envelope, EnvelopeId, ForwardPath, MessageId, OriginalRecipient, RecipientDsn, Ret,
    ReversePath,
};
use serde_json::Value;

use support::tools::PYTHON;

const SEED: u64 = 0xabc;
const ID: MessageId = MessageId { log: 1, sequence: 33 };

struct Case {
    sender: &'static str,
    recipient: &'static str,
    original: &'static str,
    envelope_id: &'static str,
    reason: &'static str,
    content: Vec<u8>,
    ret: Ret,
}

impl Case {
    fn write(&self) -> Vec<u8> {
        let recipient = RecipientDsn {
            index: 0,
            notify: None,
            original: Some(OriginalRecipient::parse(self.original, true).expect("an ORCPT")),
        };
        let dsn = Dsn {
            ret: Some(self.ret),
            envelope_id: Some(EnvelopeId::parse(self.envelope_id).expect("an ENVID")),
            recipients: vec![recipient],
        };
        let envelope = Envelope {
            dsn: Some(Box::new(dsn)),
            smtputf8: true,
            ..Envelope::new(
                ReversePath::parse(self.sender, true).expect("a path"),
                vec![ForwardPath::parse(self.recipient, true).expect("a path")],
            )
        };
        let notification = Notification {
            host: &Domain::parse("mx.example.com", false).expect("a domain"),
            id: ID,
            envelope: &envelope,
            is_authenticated: true,
            arrived: 1_000_000_000,
            recipients: &[Told { index: 0, event: Event::Failed(self.reason), attempts: 1, unix_time: 0 }],
            now: 1_000_000_001,
            seed: SEED,
        };
        notification.write(&self.content[..], self.content.len() as u64).expect("a failure is told").content
    }
}

fn parsed(messages: &[Vec<u8>]) -> Vec<Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/notifications/parse.py");
    let mut child = Command::new(PYTHON)
        .args(["-X", "utf8", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 runs");
    let mut stdin = child.stdin.take().expect("it was piped");
    let input: Vec<u8> =
        messages.iter().flat_map(|m| [format!("{}\n", m.len()).as_bytes(), m].concat()).collect();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic").expect("it reads all");
    assert!(output.status.success(), "{}", output.status);
    let lines = String::from_utf8(output.stdout).expect("JSON");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn python_finds_three_parts_and_our_fields_in_hostile_notifications() {
    let senders = ["s@e.net", "\"--=_x \\\" <a>,(b)\"@e.net", "é@bücher.example"];
    let recipients = ["a@e.org", "\"a b,<c>;\\\"\"@e.org", "-é@e.org"];
    let originals = ["rfc822;a@e.org", "X400;/c+3Dus+20+20/+28x", "utf-8;\\x{E9}@bücher.example"];
    let envelope_ids = ["QQ314159", "--+3D_000000111/0000000000000abc", "a+20+20b+3A+28c+29"];
    let reasons = [
        "550 5.1.1 no such user",
        "550 5.1.1 x\r\n\r\n--=_000000111/0000000000000abc\r\nContent-Type: text/html\r\n\r\n<b>",
        "554 \r\nFinal-Recipient: rfc822;other@e.org\0 (mx.example:25, after DATA)",
    ];
    let lines = "x".repeat(2000);
    let contents = [
        b"Subject: x\r\n\r\nbody\r\n".to_vec(),
        b"Subject: x\r\n\r\n--=_000000111/0000000000000abc\r\n--=_000000111/0000000000000abd--\r\n".to_vec(),
        format!("Subject: {lines}\r\n\r\n{lines}").into_bytes(),
        "Subject: =?ü?=  \r\n folded \r\n\r\nbödy\r\n".as_bytes().to_vec(),
        b"Subject: \xff\0\r\n\r\n.\r\n..\r\nFrom x\r\n".to_vec(),
        b"\r\nno header".to_vec(),
        b"".to_vec(),
    ];
    let mut cases = Vec::new();
    for (n, content) in contents.iter().cycle().take(contents.len() * 27).enumerate() {
        let at = |step: usize| n / contents.len() / step % 3;
        cases.push(Case {
            sender: senders[at(1)],
            recipient: recipients[at(3)],
            original: originals[at(9)],
            envelope_id: envelope_ids[n % 3],
            reason: reasons[(n + at(1)) % 3],
            content: content.clone(),
            ret: if n % 2 == 0 { Ret::Full } else { Ret::Headers },
        });
    }
    let messages: Vec<_> = cases.iter().map(Case::write).collect();
    let found = parsed(&messages);
    assert_eq!(found.len(), cases.len());
    for ((case, message), found) in cases.iter().zip(&messages).zip(&found) {
        let shown = || format!("{}\n{found:#}", String::from_utf8_lossy(message));
        assert_eq!(found["type"], "multipart/report", "{}", shown());
        assert_eq!(found["report_type"], "delivery-status");
        let header =
            ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"];
        assert_eq!(found["header"], Value::from(header.to_vec()), "{}", shown());
        assert_eq!(found["types"].as_array().expect("a list").len(), 3, "{}", shown());
        assert_eq!(found["types"][0], "text/plain");
        assert!(found["defects"].as_array().expect("a list").is_empty(), "{}", shown());
        let words = found["words"].as_str().expect("text");
        assert!(words.contains(&format!("  <{}>\r\n    55", case.recipient)), "{}", shown());
        let [message_fields, recipient_fields] = &found["status"].as_array().expect("a list")[..] else {
            panic!("one group for the message and one for the recipient: {}", shown())
        };
        let value = |fields: &Value, name: &str| -> String {
            let is_it = |field: &&Value| field[0] == name;
            let mut found = fields.as_array().expect("a list").iter().filter(is_it);
            let value = found.next().unwrap_or_else(|| panic!("{name}: {}", shown()));
            assert!(found.next().is_none(), "{name} twice: {}", shown());
            value[1].as_str().expect("text").to_owned()
        };
        let id = EnvelopeId::parse(case.envelope_id).expect("an ENVID").decode();
        assert_eq!(value(message_fields, "Original-Envelope-Id"), id, "{}", shown());
        assert_eq!(value(recipient_fields, "Action"), "failed");
        let is_code = |code: &str| ["5.1.1", "5.0.0"].contains(&code);
        assert!(is_code(&value(recipient_fields, "Status")), "{}", shown());
        assert!(value(recipient_fields, "Diagnostic-Code").starts_with("smtp; 55"));
        let recipient = value(recipient_fields, "Final-Recipient");
        if case.recipient.is_ascii() {
            assert_eq!(recipient, format!("rfc822;{}", case.recipient), "{}", shown());
        } else if case.sender.is_ascii() {
            assert_eq!(recipient, "utf-8;-\\x{E9}@e.org", "{}", shown());
        } else {
            assert_eq!(recipient, "utf-8;-é@e.org", "{}", shown());
        }
        if found["types"][2] == "text/rfc822-headers" {
            let end = case.content.windows(4).position(|w| w == b"\r\n\r\n").map_or(0, |at| at + 2);
            let header: String = case.content[..end].iter().map(|c| format!("{c:02x}")).collect();
            assert_eq!(found["returned"], header, "{}", shown());
        }
    }
}
