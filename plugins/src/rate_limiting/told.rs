//! What answers tell of the limits: Kong's fields, and those of draft-ietf-httpapi-ratelimit-headers (revision 10 and later: structured fields).

use super::settings::Checked;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use std::{fmt::Write, sync::LazyLock};
use weir_gateway::Fields as AnswerFields;
use weir_store::limits::{Method, Reading};

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// Names and values that do not change from answer to answer.
pub(crate) struct Fields {
    /// Kong's, by period.
    periods: Vec<(HeaderName, HeaderName)>,
    /// In the order of the readings.
    rules: Vec<Shown>,
    policy: HeaderValue,
}

struct Shown {
    /// Which of the periods it is.
    period: usize,
    limit: HeaderValue,
    /// Its name as a structured string.
    name: String,
    span: u64,
}

/// Whole seconds that are not over too early.
pub(crate) fn seconds(micros: u64) -> u64 {
    micros.div_ceil(1_000_000)
}

/// A number as a value: small ones cost nothing.
pub(crate) fn number(n: u64) -> HeaderValue {
    static SMALL: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| (0..1000u32).map(|n| HeaderValue::from_static(n.to_string().leak())).collect());
    usize::try_from(n).ok().and_then(|n| SMALL.get(n)).cloned().unwrap_or_else(|| HeaderValue::from(n))
}

impl Fields {
    pub fn new(limits: &[Checked]) -> Fields {
        let mut fields = Fields { periods: vec![], rules: vec![], policy: HeaderValue::from_static("") };
        let mut names: Vec<&str> = vec![];
        let mut policy = String::new();
        for limit in limits {
            for (rule, period) in limit.rules.iter().zip(&limit.periods) {
                let place = names.iter().position(|name| name == period).unwrap_or_else(|| {
                    names.push(period);
                    let name = |what: &str| HeaderName::try_from(format!("x-ratelimit-{what}-{period}")).unwrap_or(LIMIT);
                    fields.periods.push((name("limit"), name("remaining")));
                    names.len() - 1
                });
                let name = if limits.len() == 1 { format!("\"{period}\"") } else { format!("\"{}-{period}\"", limit.label) };
                let comma = if policy.is_empty() { "" } else { ", " };
                let _ = write!(policy, "{comma}{name};q={};w={}", rule.limit, rule.span.seconds());
                if let Method::Bucket { burst } = rule.method
                    && burst != rule.limit
                {
                    let _ = write!(policy, ";weir-burst={burst}");
                }
                fields.rules.push(Shown { period: place, limit: HeaderValue::from(rule.limit), name, span: rule.span.seconds() });
            }
        }
        fields.policy = HeaderValue::try_from(policy).unwrap_or(fields.policy);
        fields
    }

    /// Sets all fields.
    pub fn tell(&self, readings: &[Reading], to: &mut AnswerFields) {
        // Of a rule: what is left, and the seconds until there is more. One that refuses names the time that its caller has to wait;
        // `Retry-After` is never before it.
        let reset = |r: &Reading| seconds(if r.wait == u64::MAX { r.reset } else { r.reset.max(r.wait) });
        let told = || self.rules.iter().zip(readings);
        to.reserve(2 * self.periods.len() + 5);
        // Mostly all are about one reading.
        let mut last = (0, number(0));
        let mut number = |n: u64| {
            if last.0 != n {
                last = (n, number(n));
            }
            last.1.clone()
        };
        // Of a period the rule with the least left; of all the one with the least left, and of two the longer, since it is the one that stays.
        for (place, (limit, remaining)) in self.periods.iter().enumerate() {
            if let Some((rule, reading)) = told().filter(|(rule, _)| rule.period == place).min_by_key(|(_, reading)| reading.left) {
                to.set(limit.clone(), rule.limit.clone());
                to.set(remaining.clone(), number(reading.left));
            }
        }
        if let Some((rule, reading)) = told().min_by_key(|(rule, reading)| (reading.left, u64::MAX - rule.span)) {
            to.set(LIMIT, rule.limit.clone());
            to.set(REMAINING, number(reading.left));
            to.set(RESET, number(reset(reading).max(1)));
        }
        let mut state = Vec::with_capacity(32 * self.rules.len());
        let mut digits = itoa::Buffer::new();
        for (rule, reading) in told() {
            if !state.is_empty() {
                state.extend_from_slice(b", ");
            }
            state.extend_from_slice(rule.name.as_bytes());
            state.extend_from_slice(b";r=");
            state.extend_from_slice(digits.format(reading.left).as_bytes());
            state.extend_from_slice(b";t=");
            state.extend_from_slice(digits.format(reset(reading)).as_bytes());
        }
        to.set(POLICY, self.policy.clone());
        if let Ok(state) = HeaderValue::from_maybe_shared(Bytes::from(state)) {
            to.set(STATE, state);
        }
    }
}
