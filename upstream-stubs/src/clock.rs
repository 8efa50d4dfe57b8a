//! The time of day as the stubs print it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970; 0 if the machine's clock stands before that.
pub fn unix_seconds() -> u64 {
    since_epoch(SystemTime::now()).as_secs()
}

fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// RFC 3339 in UTC with milliseconds, as JavaScript's `toISOString` gives it: `2026-11-21T01:29:23.005Z`.
pub fn iso(at: SystemTime) -> String {
    let since = since_epoch(at);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}

/// Days since 1970-01-01 to a date. The year is taken to begin on 1 March, so that the leap day comes last.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days from 0000-03-01 to 1970-01-01
    let era = shifted / 146_097; // 400 years
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_the_http_date_library() {
        for text in [
            "Thu, 01 Jan 1970 00:00:00 GMT",
            "Tue, 29 Feb 2000 23:59:59 GMT",
            "Sat, 21 Nov 2026 01:29:23 GMT",
            "Mon, 01 Mar 2100 12:00:00 GMT",
        ] {
            let at = httpdate::parse_http_date(text).unwrap();
            let iso = iso(at);
            let months = [
                "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
            ];
            let month = months.iter().position(|m| *m == &text[8..11]).unwrap() + 1;
            assert_eq!(
                iso,
                format!(
                    "{}-{month:02}-{}T{}.000Z",
                    &text[12..16],
                    &text[5..7],
                    &text[17..25]
                )
            );
        }
    }
}
