//! Figures as people write them: three digits that mean something, and a unit that fits.
//!
//! Times are microseconds wherever a number has no name that says otherwise, as in [`super::Report`]. MB are 10⁶ octets,
//! MiB are 2²⁰; rates are told in the first, memory and sizes in the second.

use std::fmt::Write;

/// Text from a server is cut behind this many characters where a line is all that it gets.
const TEXT_SIZE_MAX: usize = 200;

/// A number and its unit, apart so that a column of them can be aligned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    /// The digits.
    pub number: String,
    /// What they count.
    pub unit: &'static str,
}

impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.number, self.unit)
    }
}

/// A time of so many microseconds.
pub fn duration(microseconds: f64) -> Quantity {
    let (value, unit) = match microseconds {
        0.0 => return Quantity { number: "0".to_owned(), unit: "µs" },
        short if short < 999.5 => (short, "µs"),
        middling if middling < 999_500.0 => (middling / 1e3, "ms"),
        long => (long / 1e6, "s"),
    };
    Quantity { number: digits(value), unit }
}

/// So many octets, in units of a thousand.
pub fn octets(count: f64) -> Quantity {
    let (value, unit) = match count {
        few if few < 999.5 => return Quantity { number: format!("{few:.0}"), unit: "octets" },
        some if some < 999_500.0 => (some / 1e3, "kB"),
        many if many < 999_500_000.0 => (many / 1e6, "MB"),
        more if more < 999_500_000_000.0 => (more / 1e9, "GB"),
        most => (most / 1e12, "TB"),
    };
    Quantity { number: digits(value), unit }
}

/// So many octets of memory, in units of 1024.
pub fn memory(octets: u64) -> Quantity {
    let octets = octets as f64;
    let (value, unit) = match octets {
        few if few < 1024.0 * 1024.0 => (octets / 1024.0, "KiB"),
        some if some < 1024.0 * 1024.0 * 1024.0 => (octets / 1024.0 / 1024.0, "MiB"),
        _ => (octets / 1024.0 / 1024.0 / 1024.0, "GiB"),
    };
    Quantity { number: digits(value), unit }
}

/// Three digits that mean something, more only in front of the point.
pub fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        large if large >= 99.95 => grouped(value.round() as u64),
        middling if middling >= 9.995 => format!("{value:.1}"),
        small if small >= 0.0995 => format!("{value:.2}"),
        smaller if smaller >= 0.000_995 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

/// A whole number, its thousands apart.
pub fn grouped(count: u64) -> String {
    let plain = count.to_string();
    let mut text = String::with_capacity(plain.len() + plain.len() / 3);
    for (i, digit) in plain.chars().enumerate() {
        if i > 0 && (plain.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What a server said, as one line that does nothing to a terminal: line ends become ` / `, other controls are spelt
/// out, and what is too long is cut.
pub fn one_line(text: &str) -> String {
    let mut line = String::new();
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    for (i, character) in lines.join(" / ").chars().enumerate() {
        if i == TEXT_SIZE_MAX {
            line.push('…');
            break;
        }
        // Marks that turn the direction of writing hide as much as controls do.
        let is_turning =
            matches!(character, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match character.is_control() || is_turning {
            true => {
                let _ = write!(line, "{}", character.escape_unicode());
            }
            false => line.push(character),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_the_unit_that_fits() {
        let cases = [
            (0.0, "0 µs"),
            (1.0, "1.00 µs"),
            (12.34, "12.3 µs"),
            (999.4, "999 µs"),
            (999.6, "1.00 ms"),
            (12_345.0, "12.3 ms"),
            (999_499.0, "999 ms"),
            (999_501.0, "1.00 s"),
            (3_600_000_000.0, "3,600 s"),
        ];
        for (microseconds, expected) in cases {
            assert_eq!(duration(microseconds).to_string(), expected, "{microseconds}");
        }
    }

    #[test]
    fn numbers_are_grouped_and_cut_to_what_means_something() {
        for (value, expected) in [
            (0.0, "0"),
            (0.0123, "0.0123"),
            (0.5, "0.50"),
            (9.999, "10.0"),
            (99.96, "100"),
            (1234567.4, "1,234,567"),
        ] {
            assert_eq!(digits(value), expected, "{value}");
        }
        assert_eq!(octets(131_072_000.0).to_string(), "131 MB");
        assert_eq!(memory(3 << 29).to_string(), "1.50 GiB");
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn what_a_server_says_does_nothing_to_a_terminal() {
        assert_eq!(one_line("451-4.3.0 no\r\n451 4.3.0 not now\r\n"), "451-4.3.0 no / 451 4.3.0 not now");
        assert_eq!(one_line("mx\u{1b}[2J\u{202e}x"), "mx\\u{1b}[2J\\u{202e}x");
        assert_eq!(one_line(&"ä".repeat(500)).chars().count(), TEXT_SIZE_MAX + 1);
    }
}
