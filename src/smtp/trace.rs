//! The `Received:` field of a message, and the date in it (RFC 5321 §4.4, RFC 5322 §3.3).

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use crate::mail::{ForwardPath, MessageId, Tls};

use super::reply::push_number;

/// What a `Received:` field tells.
pub struct Received<'a> {
    /// The argument of HELO or EHLO.
    pub hello: &'a str,
    /// The peer's name, where it is known.
    pub client_name: Option<&'a str>,
    /// Whom we know the peer to be.
    pub peer: SocketAddr,
    /// Us.
    pub hostname: &'a str,
    /// How it was sent: the keyword of the protocol, and what protected it.
    pub keyword: &'static str,
    /// What protected it, if anything did.
    pub tls: Option<&'a Tls>,
    /// What we call it.
    pub id: MessageId,
    /// The recipient, where there is exactly one. With more it is left out, so that none learns of another
    /// (§7.2).
    pub recipient: Option<&'a ForwardPath>,
    /// When; as [`format_date`] writes it.
    pub date: &'a str,
}

impl Received<'_> {
    /// Appends the field, folded, CRLF-ended. No line of it exceeds 998 octets (RFC 5322 §2.1.1).
    pub fn write(&self, trace: &mut Vec<u8>) {
        trace.extend_from_slice(b"Received: from ");
        trace.extend(self.hello.bytes().map(hello_octet));
        trace.extend_from_slice(b" (");
        if let Some(name) = self.client_name {
            trace.extend(name.bytes().map(hello_octet));
            trace.push(b' ');
        }
        push_address(self.peer.ip().to_canonical(), trace);
        trace.extend_from_slice(b")\r\n\tby ");
        trace.extend_from_slice(self.hostname.as_bytes());
        trace.extend_from_slice(b" with ");
        trace.extend_from_slice(self.keyword.as_bytes());
        if let Some(tls) = self.tls {
            write!(trace, " ({} {})", tls.version, tls.cipher).expect("a Vec takes every write");
        }
        trace.extend_from_slice(b" id ");
        trace.extend_from_slice(self.id.encode(&mut [0; MessageId::TEXT_SIZE_MAX]).as_bytes());
        if let Some(recipient) = self.recipient {
            trace.extend_from_slice(b"\r\n\tfor <");
            // Well-formed by its type: no control octet is in it, and no `>` outside a quoted string.
            trace.extend_from_slice(recipient.as_str().as_bytes());
            trace.push(b'>');
        }
        trace.extend_from_slice(b";\r\n\t");
        trace.extend_from_slice(self.date.as_bytes());
        trace.extend_from_slice(b"\r\n");
    }
}

/// The name a peer gives itself may hold any printable octet; those that mean something in a header field are
/// not kept.
fn hello_octet(c: u8) -> u8 {
    if c.is_ascii_alphanumeric() || b"-._:[]".contains(&c) { c } else { b'?' }
}

/// An address literal (RFC 5321 §4.1.3).
fn push_address(address: IpAddr, out: &mut Vec<u8>) {
    out.push(b'[');
    match address {
        IpAddr::V4(v4) => {
            for (i, octet) in v4.octets().into_iter().enumerate() {
                if i > 0 {
                    out.push(b'.');
                }
                push_number(octet.into(), out);
            }
        }
        IpAddr::V6(v6) => write!(out, "IPv6:{v6}").expect("a Vec takes every write"),
    }
    out.push(b']');
}

const SECONDS_PER_DAY: u64 = 86_400;

/// Years that have four digits, as RFC 5322 wants them: the last second of 9999.
const UNIX_TIME_MAX: u64 = 253_402_300_799;

/// Appends the date and time of `unix_time` (seconds since 1970) in UTC, as `Thu, 01 Jan 1970 00:00:00
/// +0000`.
///
/// Times after the year 9999 are written as its last second.
pub fn format_date(unix_time: u64, out: &mut String) {
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let unix_time = unix_time.min(UNIX_TIME_MAX);
    let (days, seconds) = (unix_time / SECONDS_PER_DAY, unix_time % SECONDS_PER_DAY);
    let (year, month, day) = civil_date(days);
    out.push_str(WEEKDAYS[(days % 7) as usize]);
    out.push_str(", ");
    push_two_digits(day, out);
    out.push(' ');
    out.push_str(MONTHS[month as usize - 1]);
    out.push(' ');
    push_two_digits(year / 100, out);
    push_two_digits(year % 100, out);
    out.push(' ');
    push_two_digits(seconds / 3600, out);
    out.push(':');
    push_two_digits(seconds / 60 % 60, out);
    out.push(':');
    push_two_digits(seconds % 60, out);
    out.push_str(" +0000");
}

fn push_two_digits(number: u64, out: &mut String) {
    out.push((b'0' + (number / 10) as u8) as char);
    out.push((b'0' + (number % 10) as u8) as char);
}

/// Year, month and day of the month, of a day counted from 1970-01-01.
///
/// Counted in years that begin in March, so that the leap day is a year's last, and in cycles of 400 years,
/// which all have 146,097 days.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_FROM_MARCH_0_TO_1970: u64 = 719_468;
    const DAYS_PER_CYCLE: u64 = 146_097;
    let days = days + DAYS_FROM_MARCH_0_TO_1970;
    let (cycle, day_of_cycle) = (days / DAYS_PER_CYCLE, days % DAYS_PER_CYCLE);
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    // March to July and August to December have 153 days each, as five months of 30.6 days.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (cycle * 400 + year_of_cycle + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(unix_time: u64) -> String {
        let mut out = String::new();
        format_date(unix_time, &mut out);
        out
    }

    #[test]
    fn dates_are_as_the_calendar_has_them() {
        // From `date -u -R -d @N`.
        let table = [
            (0, "Thu, 01 Jan 1970 00:00:00 +0000"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 +0000"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 +0000"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 +0000"),
            (1_000_000_000, "Sun, 09 Sep 2001 01:46:40 +0000"),
            (1_709_164_800, "Thu, 29 Feb 2024 00:00:00 +0000"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 +0000"),
            (1_735_689_600, "Wed, 01 Jan 2025 00:00:00 +0000"),
            (2_147_483_648, "Tue, 19 Jan 2038 03:14:08 +0000"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 +0000"),
            (UNIX_TIME_MAX, "Fri, 31 Dec 9999 23:59:59 +0000"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 +0000"),
        ];
        for (unix_time, expected) in table {
            assert_eq!(date(unix_time), expected);
        }
    }

    #[test]
    fn days_follow_one_another() {
        let is_leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
        let mut expected = (1970, 1, 1);
        for days in 0..200_000 {
            assert_eq!(civil_date(days), expected, "day {days}");
            let (year, month, day) = expected;
            let last = match month {
                4 | 6 | 9 | 11 => 30,
                2 => 28 + u64::from(is_leap(year)),
                _ => 31,
            };
            expected = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (_, d) if d == last => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
        }
    }

    fn written(hello: &str, peer: &str, recipient: Option<&str>) -> String {
        let recipient = recipient.map(|r| ForwardPath::parse(r, true).unwrap());
        let received = Received {
            hello,
            client_name: Some(hello).filter(|_| hello == "named.example"),
            peer: peer.parse().unwrap(),
            hostname: "mx.example.com",
            keyword: "ESMTP",
            tls: None,
            id: MessageId { log: 1, sequence: 33 },
            recipient: recipient.as_ref(),
            date: "Thu, 01 Jan 1970 00:00:00 +0000",
        };
        let mut trace = Vec::new();
        received.write(&mut trace);
        String::from_utf8(trace).unwrap()
    }

    #[test]
    fn the_field_reads_as_the_rfc_writes_it() {
        assert_eq!(
            written("c.example", "192.0.2.1:25", Some("b@example.com")),
            "Received: from c.example ([192.0.2.1])\r\n\tby mx.example.com with ESMTP id 000000111\r\n\
             \tfor <b@example.com>;\r\n\tThu, 01 Jan 1970 00:00:00 +0000\r\n"
        );
        assert_eq!(
            written("c.example", "[2001:db8::1]:25", None),
            "Received: from c.example ([IPv6:2001:db8::1])\r\n\tby mx.example.com with ESMTP id 000000111;\r\n\
             \tThu, 01 Jan 1970 00:00:00 +0000\r\n"
        );
        assert!(
            written("named.example", "192.0.2.1:25", None)
                .contains("from named.example (named.example [192.0.2.1])\r\n")
        );
        assert!(written("c", "[::ffff:192.0.2.1]:25", None).contains("([192.0.2.1])"));
    }

    #[test]
    fn a_peers_name_cannot_forge_the_field() {
        let trace = written("x(by;evil)\"\\<@>", "192.0.2.1:25", None);
        assert!(trace.starts_with("Received: from x?by?evil?????? ([192.0.2.1])\r\n"), "{trace}");
    }
}
