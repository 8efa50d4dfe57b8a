//! Lengths of time, and the windows of the calendar (UTC).

/// Microseconds of a second.
pub(super) const SECOND: u64 = 1_000_000;
const DAY: u64 = 86_400 * SECOND;

/// For how long something is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Span {
    /// So many seconds, at least one. Fixed windows of it begin at its multiples since 1970.
    Seconds(u64),
    /// A month of the calendar for fixed windows; 30 days for the others.
    Month,
    /// A year of the calendar for fixed windows; 365 days for the others.
    Year,
}

impl Span {
    /// 60 seconds.
    pub const MINUTE: Span = Span::Seconds(60);
    /// 3600 seconds.
    pub const HOUR: Span = Span::Seconds(3600);
    /// 86,400 seconds.
    pub const DAY: Span = Span::Seconds(86_400);

    /// Its length, in seconds.
    pub const fn seconds(self) -> u64 {
        match self {
            Span::Seconds(0) => 1,
            Span::Seconds(length) => length,
            Span::Month => 30 * 86_400,
            Span::Year => 365 * 86_400,
        }
    }

    /// Its length in microseconds.
    pub(super) fn micros(self) -> u64 {
        self.seconds().saturating_mul(SECOND)
    }

    /// Start and end of the fixed window that `now` is in, in microseconds since 1970.
    pub(super) fn window(self, now: u64) -> (u64, u64) {
        match self {
            Span::Seconds(_) => {
                let length = self.micros();
                let start = now - now % length;
                (start, start.saturating_add(length))
            }
            Span::Month => {
                let (year, month) = month_of(now / DAY);
                let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
                (first_day(year, month) * DAY, first_day(next.0, next.1) * DAY)
            }
            Span::Year => {
                let (year, _) = month_of(now / DAY);
                (first_day(year, 1) * DAY, first_day(year + 1, 1) * DAY)
            }
        }
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
    // A guess that is never late, and early by a year in a few centuries.
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
        for (span, start, end) in [
            (Span::Seconds(1), now, now + 1),
            (Span::MINUTE, 1_709_210_040, 1_709_210_100),
            (Span::HOUR, 1_709_208_000, 1_709_211_600),
            (Span::DAY, 1_709_164_800, 1_709_251_200),
            (Span::Month, 1_706_745_600, 1_709_251_200),
            (Span::Year, 1_704_067_200, 1_735_689_600),
        ] {
            assert_eq!(span.window(now * SECOND + 999_999), (start * SECOND, end * SECOND), "{span:?}");
        }
        assert_eq!(Span::Month.window(1_735_689_599 * SECOND).1, 1_735_689_600 * SECOND);
        assert_eq!(Span::Month.window(1_735_689_600 * SECOND).0, 1_735_689_600 * SECOND);
        assert_eq!(Span::Year.window(0), (0, 365 * DAY));
    }

    proptest! {
        #[test]
        fn now_is_always_inside_and_windows_meet(now in 0u64..20_000_000_000_000_000) {
            for span in [Span::Seconds(1), Span::Seconds(7), Span::MINUTE, Span::HOUR, Span::DAY, Span::Month, Span::Year] {
                let (start, end) = span.window(now);
                prop_assert!(start <= now && now < end);
                prop_assert_eq!(span.window(end).0, end);
                prop_assert_eq!(span.window(start), (start, end));
            }
        }
    }
}
