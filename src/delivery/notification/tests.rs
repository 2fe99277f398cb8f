use proptest::prelude::*;

use super::encoding::is_in_lines;
use super::*;
use crate::mail::{Dsn, EnvelopeId, Notify, OriginalRecipient, RecipientDsn};

const CONTENT: &[u8] = b"Subject: x\r\nFrom: a@e.org\r\n\r\nbody\r\n";

struct Rig {
    envelope: Envelope,
    is_authenticated: bool,
    host: Domain,
}

impl Rig {
    /// A message from `sender` for recipients of whom NOTIFY and ORCPT say something, or nothing where they are empty.
    fn new(sender: &str, mail: (&str, &str), recipients: &[(&str, &str, &str)]) -> Self {
        let path = |text| ForwardPath::parse(text, true).unwrap();
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let recipient = |(index, (_, notify, original)): (usize, &(&str, &str, &str))| RecipientDsn {
            index: index as u32,
            notify: given(notify).map(|text| Notify::parse(&text).unwrap()),
            original: given(original).map(|text| OriginalRecipient::parse(&text, true).unwrap()),
        };
        let dsn = Dsn {
            ret: given(mail.0).map(|text| Ret::parse(&text).unwrap()),
            envelope_id: given(mail.1).map(|text| EnvelopeId::parse(&text).unwrap()),
            recipients: recipients.iter().enumerate().map(recipient).collect(),
        };
        Rig {
            envelope: Envelope {
                dsn: Some(Box::new(dsn)),
                ..Envelope::new(
                    ReversePath::parse(sender, true).unwrap(),
                    recipients.iter().map(|r| path(r.0)).collect(),
                )
            },
            is_authenticated: true,
            host: Domain::parse("Example.ORG", false).unwrap(),
        }
    }

    fn write<'a>(&self, events: &[Event<'a>], content: &[u8]) -> Option<Written> {
        let told = |(index, event): (usize, &Event<'a>)| Told {
            index: index as u32,
            event: *event,
            attempts: 3,
            unix_time: 1_000_000_000,
        };
        let recipients: Vec<_> = events.iter().enumerate().map(told).collect();
        let notification = Notification {
            host: &self.host,
            id: MessageId { log: 1, sequence: 33 },
            envelope: &self.envelope,
            is_authenticated: self.is_authenticated,
            arrived: 951_868_800,
            recipients: &recipients,
            now: 1_735_689_600,
            seed: 0xabc,
        };
        notification.write(content, content.len() as u64)
    }

    fn text(&self, events: &[Event<'_>], content: &[u8]) -> String {
        String::from_utf8(self.write(events, content).unwrap().content).unwrap()
    }
}

/// The example of RFC 3461 §10.1, whose recipients ask for different things.
fn example() -> Rig {
    Rig::new(
        "Alice@Example.ORG",
        ("HDRS", "QQ314159"),
        &[
            ("Bob@Example.COM", "SUCCESS", "rfc822;Bob@Example.COM"),
            ("Carol@Ivory.EDU", "FAILURE", "rfc822;Carol@Ivory.EDU"),
            ("Dana@Ivory.EDU", "SUCCESS,FAILURE", "rfc822;Dana@Ivory.EDU"),
            ("Eric@Bombs.AF.MIL", "", ""),
            ("Fred@Bombs.AF.MIL", "NEVER", ""),
            ("George@Tax-ME.GOV", "DELAY", "rfc822;George@Tax-ME.GOV"),
        ],
    )
}

#[test]
fn a_sender_is_told_what_he_asked_for_and_failures_where_he_asked_nothing() {
    let mut envelope = example().envelope;
    let failed = [false, true, true, true, false, false];
    let delivered = [true, false, true, false, false, false];
    for index in 0..6 {
        let at = index as usize;
        for event in [Event::Failed(""), Event::Expired("")] {
            assert_eq!(wants(&envelope, index, event), failed[at], "{index}");
        }
        for event in [Event::Delivered, Event::Relayed] {
            assert_eq!(wants(&envelope, index, event), delivered[at], "{index}");
        }
    }
    envelope.reverse_path = ReversePath::Null;
    for index in 0..6 {
        assert!(!wants(&envelope, index, Event::Failed("")) && !wants(&envelope, index, Event::Delivered));
    }
}

#[test]
fn the_examples_of_the_rfc_are_written_as_it_has_them() {
    let rig = example();
    let events = [
        Event::Delivered,
        Event::Failed("550 error - no such recipient (Ivory.EDU:25, after RCPT)"),
        Event::Relayed,
        Event::Delivered,
        Event::Failed("550 never mind"),
        Event::Failed("550 never mind"),
    ];
    let written = rig.write(&events, CONTENT).unwrap();
    let expected = "\
        From: Mail Delivery System <postmaster@example.org>\r\n\
        To: <Alice@example.org>\r\n\
        Subject: Your message could not be delivered to one recipient\r\n\
        Date: Wed, 01 Jan 2025 00:00:00 +0000\r\n\
        Message-ID: <000000111.0000000000000abc@example.org>\r\n\
        Auto-Submitted: auto-replied\r\n\
        MIME-Version: 1.0\r\n\
        Content-Type: multipart/report; report-type=delivery-status;\r\n\
        \tboundary=\"=_000000111/0000000000000abc\"\r\n\
        \r\n\
        --=_000000111/0000000000000abc\r\n\
        Content-Type: text/plain; charset=us-ascii\r\n\
        Content-Transfer-Encoding: 7bit\r\n\
        \r\n\
        This is the mail system at example.org.\r\n\
        \r\n\
        Your message of Wed, 01 Mar 2000 00:00:00 +0000\r\n\
        could not be delivered to\r\n\
        \r\n  <Carol@ivory.edu>\r\n    550 error - no such recipient\r\n\
        \r\n\
        Your message of Wed, 01 Mar 2000 00:00:00 +0000\r\n\
        was delivered to\r\n\
        \r\n  <Bob@example.com>\r\n\
        \r\n\
        Your message of Wed, 01 Mar 2000 00:00:00 +0000\r\n\
        was passed on, to a system that does not confirm deliveries, for\r\n\
        \r\n  <Dana@ivory.edu>\r\n\
        \r\n\
        No further attempt will be made.\r\n\
        \r\n\
        For help write to <postmaster@example.org> and name 000000111.\r\n\
        The header of your message follows below.\r\n\
        \r\n\
        --=_000000111/0000000000000abc\r\n\
        Content-Type: message/delivery-status\r\n\
        Content-Transfer-Encoding: 7bit\r\n\
        \r\n\
        Original-Envelope-Id: QQ314159\r\n\
        Reporting-MTA: dns; example.org\r\n\
        Arrival-Date: Wed, 01 Mar 2000 00:00:00 +0000\r\n\
        \r\n\
        Original-Recipient: rfc822;Bob@Example.COM\r\n\
        Final-Recipient: rfc822;Bob@example.com\r\n\
        Action: delivered\r\n\
        Status: 2.0.0\r\n\
        Last-Attempt-Date: Sun, 09 Sep 2001 01:46:40 +0000\r\n\
        \r\n\
        Original-Recipient: rfc822;Carol@Ivory.EDU\r\n\
        Final-Recipient: rfc822;Carol@ivory.edu\r\n\
        Action: failed\r\n\
        Status: 5.0.0\r\n\
        Remote-MTA: dns; ivory.edu\r\n\
        Diagnostic-Code: smtp; 550 error - no such recipient\r\n\
        Last-Attempt-Date: Sun, 09 Sep 2001 01:46:40 +0000\r\n\
        \r\n\
        Original-Recipient: rfc822;Dana@Ivory.EDU\r\n\
        Final-Recipient: rfc822;Dana@ivory.edu\r\n\
        Action: relayed\r\n\
        Status: 2.0.0\r\n\
        Last-Attempt-Date: Sun, 09 Sep 2001 01:46:40 +0000\r\n\
        \r\n\
        --=_000000111/0000000000000abc\r\n\
        Content-Type: text/rfc822-headers\r\n\
        Content-Transfer-Encoding: 7bit\r\n\
        \r\n\
        Subject: x\r\nFrom: a@e.org\r\n\
        \r\n\
        --=_000000111/0000000000000abc--\r\n";
    assert_eq!(String::from_utf8_lossy(&written.content), expected);
    let path = ForwardPath::parse("Alice@Example.ORG", false).unwrap();
    assert_eq!(written.envelope, Envelope::new(ReversePath::Null, vec![path]));
}

#[test]
fn nobody_is_told_nothing() {
    let rig = example();
    for events in [&[][..], &[Event::Failed("no")], &[Event::Failed("no"), Event::Delivered]] {
        assert_eq!(rig.write(events, CONTENT), None);
    }
    let null = Rig::new("", ("", ""), &[("a@e.org", "", "")]);
    assert_eq!(null.write(&[Event::Failed("550 no")], CONTENT), None);
}

#[test]
fn the_whole_message_comes_back_only_with_a_failure_to_somebody_known_who_asked_for_it() {
    let recipients = [("a@e.org", "SUCCESS,FAILURE", "")];
    let large = [CONTENT, &b"x\r\n".repeat(crate::limits::RETURNED_SIZE_MAX)].concat();
    let failed = Event::Failed("550 no");
    let table = [
        ("FULL", (true, false), failed, CONTENT, true),
        ("FULL", (false, false), failed, CONTENT, false),
        ("FULL", (true, true), failed, CONTENT, false),
        ("FULL", (true, false), Event::Delivered, CONTENT, false),
        ("FULL", (true, false), failed, &large, false),
        ("HDRS", (true, false), failed, CONTENT, false),
        ("", (true, false), failed, CONTENT, false),
    ];
    for (ret, (is_authenticated, require_tls), event, content, is_whole) in table {
        let mut rig = Rig::new("s@e.net", (ret, ""), &recipients);
        rig.envelope.require_tls = require_tls;
        rig.is_authenticated = is_authenticated;
        let written = rig.write(&[event], content).unwrap();
        assert_eq!(written.envelope.require_tls, require_tls);
        let text = String::from_utf8(written.content).unwrap();
        assert_eq!(text.contains("message/rfc822\r\n"), is_whole, "{ret} {event:?}");
        assert_eq!(text.contains("text/rfc822-headers"), !is_whole);
        assert_eq!(text.contains("\r\nSubject: x\r\nFrom: a@e.org\r\n\r\nbody\r\n\r\n--="), is_whole);
        assert_eq!(text.contains("Your message follows below."), is_whole);
    }
}

#[test]
fn content_that_cannot_be_read_is_left_out() {
    let rig = example();
    let told = [Told { index: 1, event: Event::Failed("550 no"), attempts: 1, unix_time: 0 }];
    let notification = Notification {
        host: &rig.host,
        id: MessageId { log: 1, sequence: 33 },
        envelope: &rig.envelope,
        is_authenticated: true,
        arrived: 0,
        recipients: &told,
        now: 0,
        seed: 1,
    };
    let text = String::from_utf8(notification.write(CONTENT, 1000).unwrap().content).unwrap();
    assert!(!text.contains("rfc822-headers") && !text.contains("follows"), "{text}");
    assert_eq!(text.matches("\r\n--=_").count(), 3);
}

#[test]
fn what_is_not_for_the_sender_stays_here() {
    let rig = Rig::new("s@e.net", ("", ""), &[("a@e.org", "", ""), ("b@e.org", "", "")]);
    let reasons = ["/var/mail/a: Permission denied", "cannot connect to 10.0.0.7:25: refused"];
    let text = rig.text(&[Event::Failed(reasons[0]), Event::Expired(reasons[1])], CONTENT);
    for secret in ["/var", "Permission", "10.0", "refused", "Diagnostic-Code", "Remote-MTA"] {
        assert!(!text.contains(secret), "{text}");
    }
    for part in ["Status: 5.0.0", "Status: 4.4.7", "Given up after 3 attempts."] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let own = rig.text(&[Event::Failed("5.6.3 it cannot be carried")], CONTENT);
    assert!(own.contains("    5.6.3 it cannot be carried\r\n") && own.contains("Status: 5.6.3\r\n"));
    assert!(!own.contains("Diagnostic-Code"), "nobody replied: {own}");
}

#[test]
fn addresses_beyond_ascii_go_as_the_sender_can_take_them() {
    let recipients = [("grüße@bücher.example", "", "utf-8;gr\\x{FC}\\x{DF}e\\x{2B}x@bücher.example")];
    let content = "Subject: ü\r\n\r\nbody\r\n".as_bytes();
    let event = [Event::Failed("550 5.1.1 no grüße here")];
    let mut ascii = Rig::new("s@e.net", ("", ""), &recipients);
    ascii.envelope.smtputf8 = true;
    let written = ascii.write(&event, content).unwrap();
    assert!(written.content.is_ascii() && !written.envelope.smtputf8);
    assert_eq!(written.envelope.body, Body::SevenBit);
    let text = String::from_utf8(written.content).unwrap();
    for part in [
        "Content-Type: message/delivery-status\r\n",
        "Original-Recipient: utf-8;gr\\x{FC}\\x{DF}e\\x{2B}x@b\\x{FC}cher.example\r\n",
        "Final-Recipient: utf-8;gr\\x{FC}\\x{DF}e@b\\x{FC}cher.example\r\n",
        "Diagnostic-Code: smtp; 550 5.1.1 no gr??e here\r\n",
        "text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n",
        "  <gr=C3=BC=C3=9Fe@b=C3=BCcher.example>\r\n",
        "message/global-headers\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nSubject: =C3=BC\r\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let mut utf8 = Rig::new("ß@e.net", ("FULL", ""), &recipients);
    utf8.envelope.smtputf8 = true;
    let written = utf8.write(&event, content).unwrap();
    assert!(written.envelope.smtputf8 && written.envelope.body == Body::EightBit);
    let text = String::from_utf8(written.content).unwrap();
    for part in [
        "To: <ß@e.net>\r\n",
        "message/global-delivery-status\r\nContent-Transfer-Encoding: 8bit\r\n",
        "Original-Recipient: utf-8;grüße+x@bücher.example\r\n",
        "Final-Recipient: utf-8;grüße@bücher.example\r\n",
        "text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n",
        "message/global\r\nContent-Transfer-Encoding: 8bit\r\n\r\nSubject: ü\r\n\r\nbody\r\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn eight_bit_content_is_declared() {
    let rig = Rig::new("s@e.net", ("FULL", ""), &[("a@e.org", "", "")]);
    let written = rig.write(&[Event::Failed("550 no")], b"Subject: x\r\n\r\n\xe9\r\n").unwrap();
    assert_eq!((written.envelope.body, written.envelope.smtputf8), (Body::EightBit, false));
}

#[test]
fn no_content_holds_the_boundary() {
    let rig = Rig::new("s@e.net", ("FULL", ""), &[("a@e.org", "", "")]);
    let boundary = |n: u64| format!("=_000000111/{n:016x}");
    let hostile = format!("Subject: x\r\n\r\n--{}\r\n--{}--\r\n", boundary(0xabc), boundary(0xabd));
    let text = rig.text(&[Event::Failed("550 no")], hostile.as_bytes());
    assert!(text.contains(&format!("boundary=\"{}\"", boundary(0xabe))), "{text}");
    assert!(text.contains(&hostile));
}

#[test]
fn of_five_thousand_recipients_a_thousand_have_their_outcomes_and_fifty_are_named() {
    let path = |n: usize| format!("r{n}@e.org");
    let paths: Vec<_> = (0..5000).map(path).collect();
    let recipients: Vec<_> = paths.iter().map(|path| (path.as_str(), "", "")).collect();
    let rig = Rig::new("s@e.net", ("", ""), &recipients);
    let reason = format!("550 5.1.1 {}", "no ".repeat(600));
    let text = rig.text(&vec![Event::Failed(&reason); 5000], CONTENT);
    assert_eq!(text.matches("Final-Recipient: rfc822;").count(), STATUS_MAX);
    assert_eq!(text.matches("\r\n  <r").count(), NAMED_MAX);
    assert!(text.contains("  and to 4950 more: see the next part"), "{}", &text[..2000]);
    assert!(text.contains("\r\nThe next part names 1000 of all 5000 recipients.\r\n"));
    assert!(text.contains("<postmaster@example.org>") && text.len() < STATUS_MAX * 4096);
}

fn hostile() -> impl Strategy<Value = String> {
    const HOSTILE: &[&str] = &[
        "\r\n",
        "\n",
        "\r",
        "\0",
        "--",
        "=_000000111/0000000000000abc",
        "é",
        " ",
        "\t",
        "X: y",
        ".",
        "(",
        "\u{2028}",
    ];
    let piece = prop_oneof![
        4 => proptest::sample::select(HOSTILE).prop_map(String::from),
        1 => "[ -~]{0,20}",
        1 => Just("x".repeat(1200)),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// Whatever others have written: three parts, and in each only the fields that are ours.
    #[test]
    fn nothing_of_strangers_ends_a_line_or_a_part(
        reason in hostile(),
        code in proptest::sample::select(&["", "550 ", "550 5.1.1 ", "5.1.1 ", "451-"][..]),
        content in hostile(),
        local in "\"([ -!#-\\[\\]-~é]|\\\\[ -~]){0,20}\"",
        original in hostile(),
        to_utf8: bool,
        full: bool,
        smtputf8: bool,
    ) {
        let encoded: String = original.chars().filter(|c| !c.is_control()).take(150)
            .map(|c| if c.is_ascii_alphanumeric() { c.to_string() } else { format!("\\x{{{:02X}}}", u32::from(c)) }).collect();
        let original = format!("utf-8;{}", &encoded[..encoded.len().min(490)]);
        let original = if OriginalRecipient::parse(&original, true).is_some() { original } else { String::new() };
        let (local, sender) = (format!("{local}@e.org"), if to_utf8 { "é@e.net" } else { "\"--=_x \\\" <a>,\"@e.net" });
        prop_assume!(ForwardPath::parse(&local, true).is_ok());
        let mut rig = Rig::new(sender, (if full { "FULL" } else { "" }, "a+20+2Bb"), &[(&local, "", &original)]);
        rig.envelope.smtputf8 = smtputf8 || to_utf8;
        let written = rig.write(&[Event::Failed(&format!("{code}{reason}"))], content.as_bytes()).unwrap();
        prop_assert!(is_in_lines(&written.content), "{}", written.content.escape_ascii());
        prop_assert_eq!(written.envelope.body == Body::EightBit, !written.content.is_ascii());
        let text = String::from_utf8(written.content).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let boundary = head.rsplit_once("boundary=\"").unwrap().1.strip_suffix('"').unwrap();
        let names = |text: &str| -> Vec<String> {
            let is_first = |line: &&str| !line.starts_with([' ', '\t']);
            text.split("\r\n").filter(is_first).map(|line| line.split(':').next().unwrap().to_owned()).collect()
        };
        prop_assert_eq!(names(head), [
            "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type",
        ]);
        // The header section's own empty line is the CRLF of the first delimiter.
        let body = format!("\r\n{body}");
        let parts: Vec<_> = body.split(&format!("\r\n--{boundary}")).collect();
        prop_assert_eq!(parts.len(), 5, "{}", text);
        prop_assert_eq!((parts[0], parts[4]), ("", "--\r\n"));
        for part in &parts[1..4] {
            let (head, _) = part.strip_prefix("\r\n").unwrap().split_once("\r\n\r\n").unwrap();
            prop_assert_eq!(names(head), ["Content-Type", "Content-Transfer-Encoding"]);
        }
        let status = parts[2].splitn(3, "\r\n\r\n").collect::<Vec<_>>();
        prop_assert_eq!(names(status[1]), ["Original-Envelope-Id", "Reporting-MTA", "Arrival-Date"]);
        let expected = ["Original-Recipient", "Final-Recipient", "Action", "Status", "Diagnostic-Code", "Last-Attempt-Date"];
        let is_reply = code.starts_with(['4', '5']) && !code.starts_with("5.")
            || code.is_empty() && names(status[2]).contains(&"Diagnostic-Code".into());
        let expected: Vec<_> = expected.into_iter()
            .filter(|name| is_reply || *name != "Diagnostic-Code")
            .filter(|name| !original.is_empty() || *name != "Original-Recipient")
            .collect();
        prop_assert_eq!(names(status[2].trim_end_matches("\r\n")), expected, "{}", status[2]);
    }
}
