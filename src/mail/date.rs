//! The date and time of a header field (RFC 5322 §3.3).

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
}
