//! Dates for chat templates: the part of `strftime` that does not depend on a locale, for a time that the host gives.

use minijinja::ErrorKind;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// What a template is told of fields that are not filled in: those that hang on a time zone or fractions of a second, and the unknown.
pub(super) const UNSUPPORTED: &str = "a field of strftime that is not known here";
/// The fields that are filled in, the numbers also as `%-d`, without what fills them up.
pub(super) const FIELDS: &str = "%a %A %b %B %c %C %d %D %e %F %g %G %h %H %I %j %k %l %m %M %n %p %P %r %R %S %t %T %u %U %V %w %W %x %X %y %Y %%";

/// `format` with its `%` fields filled in from `time`, seconds since 1970-01-01 00:00 in local time, as Python does on Linux.
pub(super) fn strftime(format: &str, time: i64) -> Result<String, minijinja::Error> {
    let moment = Moment::of(time);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let written = match chars.next() {
            None => Some("%".to_owned()),
            Some('-') => {
                chars.next().and_then(|field| moment.number(field)).map(|(value, ..)| value.to_string())
            }
            Some(field) => match moment.number(field) {
                Some((value, width, ' ')) => Some(format!("{value:width$}")),
                Some((value, width, _)) => Some(format!("{value:0width$}")),
                None => moment.text(field),
            },
        };
        let unsupported = || minijinja::Error::new(ErrorKind::InvalidOperation, UNSUPPORTED);
        out += &written.ok_or_else(unsupported)?;
    }
    Ok(out)
}

/// A time in the terms of a calendar.
struct Moment {
    days: i64,
    second: i64,
    year: i64,
    month: i64,
    day: i64,
    /// From Sunday, 0.
    weekday: i64,
}

impl Moment {
    fn of(time: i64) -> Self {
        let days = time.div_euclid(86_400).clamp(-719_162, 2_932_896); // years 1 to 9999, as Python's
        let (year, month, day) = civil(days);
        Self { days, second: time.rem_euclid(86_400), year, month, day, weekday: (days + 4).rem_euclid(7) }
    }

    /// A field that is a number: with how many digits it is written, and what fills it up.
    fn number(&self, field: char) -> Option<(i64, usize, char)> {
        let hour = self.second / 3600;
        let day_of_year = self.days - days_from_civil(self.year, 1, 1);
        // Weeks by ISO 8601 belong to the year of their Thursday.
        let thursday = self.days - (self.weekday + 6) % 7 + 3;
        let (iso_year, ..) = civil(thursday);
        Some(match field {
            'Y' => (self.year, 1, '0'),
            'G' => (iso_year, 1, '0'),
            'y' => (self.year.rem_euclid(100), 2, '0'),
            'g' => (iso_year.rem_euclid(100), 2, '0'),
            'C' => (self.year / 100, 2, '0'),
            'm' => (self.month, 2, '0'),
            'd' => (self.day, 2, '0'),
            'e' => (self.day, 2, ' '),
            'H' => (hour, 2, '0'),
            'k' => (hour, 2, ' '),
            'I' => ((hour + 11) % 12 + 1, 2, '0'),
            'l' => ((hour + 11) % 12 + 1, 2, ' '),
            'M' => (self.second / 60 % 60, 2, '0'),
            'S' => (self.second % 60, 2, '0'),
            'j' => (day_of_year + 1, 3, '0'),
            'u' => ((self.weekday + 6) % 7 + 1, 1, '0'),
            'w' => (self.weekday, 1, '0'),
            'U' => ((day_of_year + 7 - self.weekday) / 7, 2, '0'),
            'W' => ((day_of_year + 7 - (self.weekday + 6) % 7) / 7, 2, '0'),
            'V' => ((thursday - days_from_civil(iso_year, 1, 1)) / 7 + 1, 2, '0'),
            _ => return None,
        })
    }

    /// A field that is words or several numbers, in the C locale.
    fn text(&self, field: char) -> Option<String> {
        let (hour, minute, second) = (self.second / 3600, self.second / 60 % 60, self.second % 60);
        let (year, month, day) = (self.year, self.month, self.day);
        let (day_name, month_name) = (DAYS[self.weekday as usize], MONTHS[month as usize - 1]);
        let clock = format!("{hour:02}:{minute:02}:{second:02}");
        Some(match field {
            'A' => day_name.to_owned(),
            'a' => day_name[..3].to_owned(),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'P' => if hour < 12 { "am" } else { "pm" }.to_owned(),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'D' | 'x' => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            'T' | 'X' => clock,
            'R' => format!("{hour:02}:{minute:02}"),
            'r' => format!("{:02}:{minute:02}:{second:02} {}", (hour + 11) % 12 + 1, self.text('p')?),
            'c' => format!("{} {} {day:2} {clock} {year}", &day_name[..3], &month_name[..3]),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

/// Year, month and day of a number of days since 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153; // months from March
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `datetime.fromtimestamp(t, timezone.utc).strftime(…)` of CPython 3.11 on Linux.
    #[test]
    fn dates() {
        let all = "%a %A %b %B %d %e %h %H %I %j %k %l %m %M %p %P %S %u %w %y %Y %C|%c|%D %F %R %T %r %x %X|%U %V %W %G %g|%n%t%%";
        let bare = "%-d %-e %-H %-I %-j %-k %-l %-m %-M %-S %-u %-U %-V %-W %-y";
        for (time, expected, expected_bare) in [
            (
                0,
                "Thu Thursday Jan January 01  1 Jan 00 12 001  0 12 01 00 AM am 00 4 4 70 1970 19|Thu Jan  1 00:00:00 1970|01/01/70 1970-01-01 00:00 00:00:00 12:00:00 AM 01/01/70 00:00:00|00 01 00 1970 70|\n\t%",
                "1 1 0 12 1 0 12 1 0 0 4 0 1 0 70",
            ),
            (
                1709210096,
                "Thu Thursday Feb February 29 29 Feb 12 12 060 12 12 02 34 PM pm 56 4 4 24 2024 20|Thu Feb 29 12:34:56 2024|02/29/24 2024-02-29 12:34 12:34:56 12:34:56 PM 02/29/24 12:34:56|08 09 09 2024 24|\n\t%",
                "29 29 12 12 60 12 12 2 34 56 4 8 9 9 24",
            ),
            (
                1735603200,
                "Tue Tuesday Dec December 31 31 Dec 00 12 366  0 12 12 00 AM am 00 2 2 24 2024 20|Tue Dec 31 00:00:00 2024|12/31/24 2024-12-31 00:00 00:00:00 12:00:00 AM 12/31/24 00:00:00|52 01 53 2025 25|\n\t%",
                "31 31 0 12 366 0 12 12 0 0 2 52 1 53 24",
            ),
            (
                1735722065,
                "Wed Wednesday Jan January 01  1 Jan 09 09 001  9  9 01 01 AM am 05 3 3 25 2025 20|Wed Jan  1 09:01:05 2025|01/01/25 2025-01-01 09:01 09:01:05 09:01:05 AM 01/01/25 09:01:05|00 01 00 2025 25|\n\t%",
                "1 1 9 9 1 9 9 1 1 5 3 0 1 0 25",
            ),
            (
                1609545599,
                "Fri Friday Jan January 01  1 Jan 23 11 001 23 11 01 59 PM pm 59 5 5 21 2021 20|Fri Jan  1 23:59:59 2021|01/01/21 2021-01-01 23:59 23:59:59 11:59:59 PM 01/01/21 23:59:59|00 53 00 2020 20|\n\t%",
                "1 1 23 11 1 23 11 1 59 59 5 0 53 0 21",
            ),
            (
                1483228800,
                "Sun Sunday Jan January 01  1 Jan 00 12 001  0 12 01 00 AM am 00 7 0 17 2017 20|Sun Jan  1 00:00:00 2017|01/01/17 2017-01-01 00:00 00:00:00 12:00:00 AM 01/01/17 00:00:00|01 52 00 2016 16|\n\t%",
                "1 1 0 12 1 0 12 1 0 0 7 1 52 0 17",
            ),
            (
                1199059200,
                "Mon Monday Dec December 31 31 Dec 00 12 365  0 12 12 00 AM am 00 1 1 07 2007 20|Mon Dec 31 00:00:00 2007|12/31/07 2007-12-31 00:00 00:00:00 12:00:00 AM 12/31/07 00:00:00|52 01 53 2008 08|\n\t%",
                "31 31 0 12 365 0 12 12 0 0 1 52 1 53 7",
            ),
        ] {
            assert_eq!(strftime(all, time).unwrap(), expected, "{time}");
            assert_eq!(strftime(bare, time).unwrap(), expected_bare, "{time}");
        }
        assert_eq!(strftime("%F", i64::MIN).unwrap(), "1-01-01");
        assert_eq!(strftime("%F", i64::MAX).unwrap(), "9999-12-31");
        assert_eq!(strftime("100%", 0).unwrap(), "100%");
    }

    #[test]
    fn what_the_time_alone_does_not_tell_is_refused() {
        for format in ["%s", "%Z", "%z", "%f", "%q", "%-q", "%-B", "%-", "%_d", "%Ey", "%é", "a %"] {
            assert_eq!(strftime(format, 0).is_ok(), format == "a %", "{format}");
        }
        for field in FIELDS.split(' ') {
            assert!(strftime(field, 0).is_ok(), "{field}");
        }
    }
}
