//! Windows of the calendar, in UTC.

use http::HeaderName;

/// The length of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Period {
    Second,
    Minute,
    Hour,
    Day,
    Month,
    Year,
}

/// One window of one limit. Times are in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub period: Period,
    pub limit: u64,
    pub start: u64,
    /// The first second after it.
    pub end: u64,
}

const DAY: u64 = 86_400;

impl Period {
    pub(crate) const ALL: [Period; 6] = [Period::Second, Period::Minute, Period::Hour, Period::Day, Period::Month, Period::Year];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Period::Second => "second",
            Period::Minute => "minute",
            Period::Hour => "hour",
            Period::Day => "day",
            Period::Month => "month",
            Period::Year => "year",
        }
    }

    /// `X-RateLimit-Limit-*` and `X-RateLimit-Remaining-*`.
    pub(crate) fn headers(self) -> (HeaderName, HeaderName) {
        let (limit, remaining) = match self {
            Period::Second => ("x-ratelimit-limit-second", "x-ratelimit-remaining-second"),
            Period::Minute => ("x-ratelimit-limit-minute", "x-ratelimit-remaining-minute"),
            Period::Hour => ("x-ratelimit-limit-hour", "x-ratelimit-remaining-hour"),
            Period::Day => ("x-ratelimit-limit-day", "x-ratelimit-remaining-day"),
            Period::Month => ("x-ratelimit-limit-month", "x-ratelimit-remaining-month"),
            Period::Year => ("x-ratelimit-limit-year", "x-ratelimit-remaining-year"),
        };
        (HeaderName::from_static(limit), HeaderName::from_static(remaining))
    }

    /// The window that `now` is in.
    pub(crate) fn window(self, now: u64, limit: u64) -> Window {
        let fixed = |length: u64| (now - now % length, now - now % length + length);
        let (start, end) = match self {
            Period::Second => fixed(1),
            Period::Minute => fixed(60),
            Period::Hour => fixed(3600),
            Period::Day => fixed(DAY),
            Period::Month => {
                let (year, month) = month_of(now / DAY);
                let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
                (first_day(year, month) * DAY, first_day(next.0, next.1) * DAY)
            }
            Period::Year => {
                let (year, _) = month_of(now / DAY);
                (first_day(year, 1) * DAY, first_day(year + 1, 1) * DAY)
            }
        };
        Window { period: self, limit, start, end }
    }
}

/// Days of the Gregorian calendar before a year: 365 each, and a leap day for those that have one.
fn days_before(year: u64) -> u64 {
    let past = year - 1;
    past * 365 + past / 4 - past / 100 + past / 400
}

fn is_leap(year: u64) -> bool {
    (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
}

/// Days before each month of a common year.
const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];

/// The day, counted from 1970, on which a month (1 to 12) of a year begins.
fn first_day(year: u64, month: u64) -> u64 {
    let leap_day = u64::from(month > 2 && is_leap(year));
    days_before(year) - days_before(1970) + BEFORE[(month as usize - 1).min(11)] + leap_day
}

/// The year and month of a day counted from 1970.
fn month_of(day: u64) -> (u64, u64) {
    let mut year = 1970 + day / 366;
    while first_day(year + 1, 1) <= day {
        year += 1;
    }
    let month = (1..=12).rev().find(|m| first_day(year, *m) <= day).unwrap_or(1);
    (year, month)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn windows_follow_the_calendar() {
        // 2024-02-29T12:34:56Z
        let now = 1_709_210_096;
        for (period, start, end) in [
            (Period::Second, now, now + 1),
            (Period::Minute, 1_709_210_040, 1_709_210_100),
            (Period::Hour, 1_709_208_000, 1_709_211_600),
            (Period::Day, 1_709_164_800, 1_709_251_200),
            (Period::Month, 1_706_745_600, 1_709_251_200),
            (Period::Year, 1_704_067_200, 1_735_689_600),
        ] {
            assert_eq!(period.window(now, 1), Window { period, limit: 1, start, end });
        }
        assert_eq!(Period::Month.window(1_735_689_599, 1).end, 1_735_689_600);
        assert_eq!(Period::Month.window(1_735_689_600, 1).start, 1_735_689_600);
        assert_eq!(Period::Year.window(0, 1), Window { period: Period::Year, limit: 1, start: 0, end: 365 * DAY });
    }

    proptest! {
        #[test]
        fn now_is_always_inside_and_windows_meet(now in 0u64..20_000_000_000) {
            for period in Period::ALL {
                let window = period.window(now, 1);
                prop_assert!(window.start <= now && now < window.end);
                prop_assert_eq!(period.window(window.end, 1).start, window.end);
                prop_assert_eq!(period.window(window.start, 1), window);
            }
        }
    }
}
