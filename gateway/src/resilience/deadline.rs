//! How long a request may take, and how the service is told.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;
use tokio::time::Instant;
use weir_config::{Deadlines, Millis};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The numbers of the configuration that a try does not have from its service.
#[derive(Debug, Clone, Default)]
pub struct DeadlineRules {
    /// For the head of the answer.
    pub first_byte: Option<Duration>,
    /// For everything.
    pub total: Option<Duration>,
    header: Option<HeaderName>,
    /// `grpc-timeout` counts.
    grpc: bool,
}

/// When it is all over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Until {
    /// Then.
    pub at: Instant,
    /// The caller asked for less than the configuration gives: being late then says nothing of the service.
    pub callers: bool,
}

impl Until {
    /// The time left.
    pub fn left(&self, now: Instant) -> Duration {
        self.at.saturating_duration_since(now)
    }
}

impl DeadlineRules {
    /// Of a service; `grpc`: that is what it speaks.
    pub fn new(config: Option<&Deadlines>, grpc: bool) -> DeadlineRules {
        let total = config.and_then(|c| c.total).map(Millis::get);
        let header = config.filter(|c| total.is_some() && !c.header.is_empty()).and_then(|c| HeaderName::from_bytes(c.header.as_bytes()).ok());
        DeadlineRules { first_byte: config.and_then(|c| c.first_byte).map(Millis::get), total, header, grpc: grpc || config.is_some() }
    }

    /// Whether there is none, whatever a request says.
    pub fn are_none(&self) -> bool {
        self.total.is_none() && self.header.is_none() && !self.grpc
    }

    /// When a request with these fields must be done. `trusted`: its sender may shorten the total.
    pub fn until(&self, headers: &HeaderMap, trusted: bool, now: Instant) -> Option<Until> {
        let mut until = self.total.map(|total| Until { at: now + total, callers: false });
        let mut shorten = |asked: Duration| {
            if until.is_none_or(|until| now + asked < until.at) {
                until = Some(Until { at: now + asked, callers: true });
            }
        };
        if trusted
            && let Some(asked) = self.header.as_ref().and_then(|name| headers.get(name)).and_then(milliseconds)
        {
            shorten(asked);
        }
        if self.grpc
            && let Some(asked) = headers.get(GRPC_TIMEOUT).and_then(grpc_timeout)
        {
            shorten(asked);
        }
        until
    }

    /// Writes what is left into the request.
    pub fn tell(&self, headers: &mut HeaderMap, until: Until, now: Instant) {
        let left = until.left(now).as_millis().min(99_999_999) as u64;
        if let Some(name) = &self.header {
            headers.insert(name.clone(), HeaderValue::from(left));
        }
        if self.grpc
            && headers.contains_key(GRPC_TIMEOUT)
            && let Ok(value) = HeaderValue::from_str(&format!("{left}m"))
        {
            headers.insert(GRPC_TIMEOUT, value);
        }
    }
}

fn milliseconds(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let digits = !text.is_empty() && text.len() <= 12 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok().map(Duration::from_millis))?
}

/// At most eight digits and a unit: `H`, `M`, `S`, `m`, `u` or `n` (gRPC over HTTP/2, "Requests").
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules(total: Option<u64>) -> DeadlineRules {
        DeadlineRules::new(Some(&Deadlines { total: total.map(Millis::secs), ..Deadlines::default() }), false)
    }

    fn fields(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn a_trusted_caller_may_shorten_the_total_and_nobody_may_lengthen_it() {
        let now = Instant::now();
        let until = |value: &str, trusted| rules(Some(10)).until(&fields(&[("x-request-timeout-ms", value)]), trusted, now).unwrap();
        let configured = Until { at: now + Duration::from_secs(10), callers: false };
        assert_eq!(until("1500", true), Until { at: now + Duration::from_millis(1500), callers: true });
        for (value, trusted) in [("1500", false), ("20000", true), ("-1", true), ("1e3", true), ("", true), ("99999999999999999999", true)] {
            assert_eq!(until(value, trusted), configured, "{value}");
        }
        assert_eq!(rules(None).until(&fields(&[("x-request-timeout-ms", "5")]), true, now), None);
    }

    #[test]
    fn grpc_timeouts_are_read_and_passed_on_shortened() {
        let now = Instant::now();
        for (text, expected) in [("2S", 2000), ("150m", 150), ("1M", 60_000), ("1H", 3_600_000), ("3000u", 3), ("5000000n", 5)] {
            let until = rules(None).until(&fields(&[("grpc-timeout", text)]), false, now).unwrap();
            assert_eq!((until.left(now), until.callers), (Duration::from_millis(expected), true), "{text}");
        }
        let mut headers = fields(&[("grpc-timeout", "2S"), ("x-request-timeout-ms", "1")]);
        let until = rules(Some(10)).until(&headers, false, now).unwrap();
        rules(Some(10)).tell(&mut headers, until, now + Duration::from_millis(500));
        assert_eq!((headers["grpc-timeout"].as_bytes(), headers["x-request-timeout-ms"].as_bytes()), (&b"1500m"[..], &b"1500"[..]));
    }

    proptest! {
        #[test]
        fn hostile_timeouts_do_no_harm(text in "\\PC{0,20}|[0-9]{0,12}[HMSmun]?") {
            if let Ok(value) = HeaderValue::from_str(&text) {
                if let Some(time) = grpc_timeout(&value) {
                    prop_assert!(text.len() <= 9 && time <= Duration::from_secs(99_999_999 * 3600));
                }
                let _ = milliseconds(&value);
            }
        }
    }
}
