//! RFC 9111 as decisions: may this response be stored, how long is it fresh, may this stored response answer this request.
//!
//! ```text
//! head arrives ─► judge ─► Err(reason): pass, and remember why
//!                    └───► Ok(Terms): stream, keep, and at the end html::body_refusal ─► store
//! request      ─► reuse ─► Fresh | Stale (the client takes it) | Revalidating (serve, refresh behind) | Must (ask the origin)
//! ```

use crate::{
    CacheRequest, Freshness, Gate, Policy,
    control::{RequestControl, ResponseControl, Scope},
    entry::{Entry, NO_MAX_STALE},
    fields, html, respond, vary,
};
use http::{HeaderMap, HeaderName, StatusCode, header};
use std::time::Duration;

/// The longest lifetime of a 404 or 410 page: the next stock delivery makes it a page again.
const GONE_CAP: Duration = Duration::from_secs(60);
/// The lifetime of a page that the origin's own cache called stale: it carries the full `s-maxage` although its successor is being made.
const ORIGIN_STALE_CAP: Duration = Duration::from_secs(2);

/// Statuses whose rules for caches are known here (RFC 9110 section 15); `must-understand` lets no other be stored.
const UNDERSTOOD: [u16; 16] = [200, 203, 204, 300, 301, 302, 303, 307, 308, 400, 404, 405, 410, 414, 451, 501];

/// When a response came.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// When the fetch began, milliseconds since 1970.
    pub request_ms: u64,
    /// When the head came.
    pub response_ms: u64,
}

/// What was decided about a response that may be stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Terms {
    /// When it came, milliseconds since 1970.
    pub response_ms: u64,
    /// How old it was then (RFC 9111 section 4.2.3), milliseconds.
    pub initial_age_ms: u64,
    /// Freshness lifetime, compared with the whole age.
    pub lifetime: Duration,
    /// How long after that it may be served while being refreshed.
    pub stale_while_revalidate: Duration,
    /// How long after that it may be served when the origin fails.
    pub stale_if_error: Duration,
    /// A client's `max-stale` does not apply.
    pub no_max_stale: bool,
    /// Not even an origin that can not be asked is a reason to serve it after its time.
    pub never_stale: bool,
    /// Fields that must not be kept.
    pub strip: Vec<HeaderName>,
    /// Request fields that select among the variants.
    pub vary: Vec<HeaderName>,
}

/// Decides by the head whether a response may be stored, and for how long. `Err`: the reason, one token.
pub fn judge(policy: &Policy, request: &CacheRequest, status: StatusCode, headers: &HeaderMap, times: Times) -> Result<Terms, &'static str> {
    let control = ResponseControl::of(headers);
    let overridden = matches!(policy.freshness, Freshness::For { override_control: true, .. });

    // RFC 9111 section 3: the status is final, understood, and one that the rule wants.
    match status.as_u16() {
        100..=199 | 304 => return Err("status"),
        206 => return Err("partial"),
        _ if headers.contains_key(header::CONTENT_RANGE) => return Err("partial"),
        _ if !policy.statuses.contains(&status.as_u16()) => return Err("status"),
        // A page that leads nowhere is a mistake of the site.
        300..=399 if policy.gate == Gate::Html && !headers.contains_key(header::LOCATION) => return Err("location"),
        _ => {}
    }
    if headers.contains_key(header::SET_COOKIE) || headers.contains_key("set-cookie2") {
        return Err("set-cookie");
    }
    if control.must_understand && !UNDERSTOOD.contains(&status.as_u16()) {
        return Err("must-understand");
    }
    // RFC 9111 section 5.2.2.3: a cache that understands the status may read past the no-store beside must-understand.
    if control.no_store && !control.must_understand && !overridden {
        return Err("no-store");
    }
    let mut strip = Vec::new();
    match control.private {
        Scope::Whole if !overridden => return Err("private"),
        Scope::Fields(ref names) => strip.extend(names.iter().cloned()),
        _ => {}
    }
    let mut validate_always = false;
    match control.no_cache {
        Scope::Whole if !overridden => validate_always = true,
        Scope::Fields(ref names) => strip.extend(names.iter().cloned()),
        _ => {}
    }
    // RFC 9111 section 3.5. A fill that is not the client's own does not carry the client's Authorization.
    if request.fill_is_own && request.headers.contains_key(header::AUTHORIZATION) {
        let allowed = control.public || control.s_maxage.is_some() || control.must_revalidate || overridden;
        if policy.gate == Gate::Html || !allowed {
            return Err("authorization");
        }
    }
    let vary = vary::secondary(headers, request, policy.gate)?;
    if fields::single(headers, &header::CONTENT_LENGTH).and_then(|text| text.parse().ok()).is_some_and(|length: u64| length > policy.max_size) {
        return Err("too-large");
    }
    if policy.gate == Gate::Html {
        html::head_refusal(policy, status, headers, &control)?;
        if validate_always {
            return Err("no-cache");
        }
    }

    let initial_age_ms = initial_age_ms(headers, times);
    let mut lifetime = lifetime(policy, status, headers, &control, times, initial_age_ms)?;
    if policy.gate == Gate::Html {
        let room = |cap: Duration| cap.saturating_add(Duration::from_millis(initial_age_ms));
        if matches!(status.as_u16(), 404 | 410) {
            lifetime = lifetime.min(room(GONE_CAP));
        }
        if headers.get_all("x-nextjs-cache").iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"stale")) {
            lifetime = lifetime.min(room(ORIGIN_STALE_CAP));
        }
    }
    if validate_always {
        lifetime = Duration::ZERO;
    }

    let strict = !overridden && (control.must_revalidate || control.proxy_revalidate || validate_always);
    let (swr, sie) = match policy.freshness {
        _ if strict => (Duration::ZERO, Duration::ZERO),
        // A page that was missing is not worth showing once it may be there.
        _ if policy.gate == Gate::Html && matches!(status.as_u16(), 404 | 410) => (Duration::ZERO, Duration::ZERO),
        Freshness::For { .. } => (policy.stale_while_revalidate, policy.stale_if_error),
        // s-maxage forbids stale answers (RFC 9111 section 5.2.2.10) unless the same response allows them by name.
        Freshness::Origin { .. } => (
            control.stale_while_revalidate.unwrap_or_default().min(policy.stale_while_revalidate),
            control.stale_if_error.unwrap_or_default().min(policy.stale_if_error),
        ),
    };
    let s_maxage_decides = control.s_maxage.is_some() && matches!(policy.freshness, Freshness::Origin { .. });
    let names_a_window = [control.stale_while_revalidate, control.stale_if_error].into_iter().flatten().any(|time| !time.is_zero());
    let useless = Duration::from_millis(initial_age_ms) >= lifetime && swr.is_zero() && sie.is_zero();
    if useless && (policy.gate == Gate::Html || !has_validator(headers)) {
        return Err(if validate_always { "no-cache" } else { "expired" });
    }
    Ok(Terms {
        response_ms: times.response_ms,
        initial_age_ms,
        lifetime,
        stale_while_revalidate: swr,
        stale_if_error: sie,
        no_max_stale: strict || control.s_maxage.is_some(),
        never_stale: strict || (s_maxage_decides && !names_a_window),
        strip,
        vary,
    })
}

fn has_validator(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ETAG) || fields::date(headers, &header::LAST_MODIFIED).is_some()
}

/// How old the response was when it came (RFC 9111 section 4.2.3, `corrected_initial_age`), milliseconds.
fn initial_age_ms(headers: &HeaderMap, times: Times) -> u64 {
    let apparent = fields::date(headers, &header::DATE).map_or(0, |date| (times.response_ms / 1000).saturating_sub(date) * 1000);
    // A list is read as its first member; anything but a number is ignored (RFC 9111 section 5.1).
    let said = headers
        .get(header::AGE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| crate::control::seconds(text.split(',').next().unwrap_or("").trim()))
        .map_or(0, |age| age.as_millis() as u64);
    let delay = times.response_ms.saturating_sub(times.request_ms);
    apparent.max(said.saturating_add(delay))
}

/// RFC 9111 section 4.2.1, with the rule's bounds. Compared with the whole age.
fn lifetime(
    policy: &Policy,
    status: StatusCode,
    headers: &HeaderMap,
    control: &ResponseControl,
    times: Times,
    initial_age_ms: u64,
) -> Result<Duration, &'static str> {
    let (heuristic, cap, default) = match policy.freshness {
        // The rule's time begins when the response comes, however old it was.
        Freshness::For { ttl, .. } => return Ok(ttl.saturating_add(Duration::from_millis(initial_age_ms))),
        Freshness::Origin { heuristic, cap, default } => (heuristic, cap, default),
    };
    let said = control.s_maxage.or(control.max_age).or_else(|| if control.targeted { None } else { expires(headers, times) });
    if let Some(said) = said {
        return Ok(said.min(cap));
    }
    // Statuses that may be kept without being told so (RFC 9110 section 15.1).
    let by_status = matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501);
    if by_status || control.public {
        if let Some(default) = default {
            return Ok(default.saturating_add(Duration::from_millis(initial_age_ms)).min(cap));
        }
        if heuristic > 0.0 && heuristic.is_finite()
            && let Some(modified) = fields::date(headers, &header::LAST_MODIFIED)
        {
            let date = fields::date(headers, &header::DATE).unwrap_or(times.response_ms / 1000);
            let share = date.saturating_sub(modified) as f64 * f64::from(heuristic.min(1.0));
            return Ok(Duration::from_secs(share as u64).min(cap));
        }
        // To be validated at every use.
        if has_validator(headers) && control.no_cache == Scope::Whole {
            return Ok(Duration::ZERO);
        }
    }
    Err("no-freshness")
}

/// `Expires` against `Date` (RFC 9111 section 5.3). Given twice or not as a date, it is in the past.
fn expires(headers: &HeaderMap, times: Times) -> Option<Duration> {
    if !headers.contains_key(header::EXPIRES) {
        return None;
    }
    let end = fields::date(headers, &header::EXPIRES).unwrap_or(0);
    let date = fields::date(headers, &header::DATE).unwrap_or(times.response_ms / 1000);
    Some(Duration::from_secs(end.saturating_sub(date)))
}

/// Whether a stored response may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// Fresh enough for this request.
    Fresh,
    /// Past its time, and the client said that it takes it so (`max-stale`).
    Stale,
    /// Past its time; serve it and refresh it behind (RFC 5861 section 3).
    Revalidating,
    /// The origin must be asked first.
    Must,
}

/// Whether `entry` may answer a request with these directives (RFC 9111 sections 4.2 and 5.2.1).
pub fn reuse(entry: &Entry, wants: &RequestControl, now_ms: u64) -> Reuse {
    if wants.no_cache {
        return Reuse::Must;
    }
    let whole = |time: Duration| time.as_millis().min(i64::MAX as u128) as i64;
    let left = entry.fresh_ms(now_ms);
    if wants.max_age.is_some_and(|most| entry.age_ms(now_ms) / 1000 > most.as_secs()) || wants.min_fresh.is_some_and(|least| left < whole(least)) {
        // max-age with max-stale: the client still takes it, if it is past its time by no more than that.
        let takes = wants.min_fresh.is_none() && wants.max_stale.is_some_and(|most| left < 0 && -left <= whole(most));
        return if takes && entry.meta().flags & NO_MAX_STALE == 0 { Reuse::Stale } else { Reuse::Must };
    }
    if left > 0 {
        return Reuse::Fresh;
    }
    if wants.max_stale.is_some_and(|most| -left <= whole(most)) && entry.meta().flags & NO_MAX_STALE == 0 {
        return Reuse::Stale;
    }
    if within(entry.meta().swr_ms, left) {
        return Reuse::Revalidating;
    }
    Reuse::Must
}

/// Whether `entry` may answer because the origin fails (RFC 5861 section 4).
pub fn stale_if_error(entry: &Entry, wants: &RequestControl, now_ms: u64) -> bool {
    let left = entry.fresh_ms(now_ms);
    if wants.no_cache || wants.min_fresh.is_some() || wants.max_age.is_some_and(|most| entry.age_ms(now_ms) / 1000 > most.as_secs()) {
        return false;
    }
    within(entry.meta().sie_ms.max(entry.meta().swr_ms), left)
}

fn within(window_ms: u64, left_ms: i64) -> bool {
    window_ms > 0 && left_ms > -(window_ms.min(i64::MAX as u64) as i64)
}

/// The head of an entry after a 304 (RFC 9111 section 3.2): the new fields replace the stored ones of the same name, except those that describe
/// the body. `None`: the 304 is about another representation (RFC 9111 section 4.3.4), or says that responses vary by more than was known
/// when this one was stored.
pub fn merged(entry: &Entry, fresh: &HeaderMap) -> Option<HeaderMap> {
    let mut merged = entry.origin_headers();
    if !is_about(&merged, fresh) || vary::names_more(&merged, fresh) {
        return None;
    }
    let describes_body = [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_TYPE, header::CONTENT_RANGE];
    for name in fresh.keys() {
        if describes_body.contains(name) {
            continue;
        }
        merged.remove(name);
        for value in fresh.get_all(name) {
            merged.append(name.clone(), value.clone());
        }
    }
    if !fresh.contains_key(header::DATE) {
        // The old Date would make the renewed response look as old as the first one.
        merged.remove(header::DATE);
    }
    Some(merged)
}

/// Whether a 304 is about the stored response: a strong entity tag must be the very same, a weak one must match, and where there is no tag to
/// compare, the dates decide. A 304 without validators can mean only what it was asked about.
fn is_about(stored: &HeaderMap, fresh: &HeaderMap) -> bool {
    let date = |headers| fields::date(headers, &header::LAST_MODIFIED);
    match (fresh.get(header::ETAG), stored.get(header::ETAG)) {
        (Some(new), Some(old)) if new.as_bytes().starts_with(b"W/") => respond::opaque(new.as_bytes()) == respond::opaque(old.as_bytes()),
        (Some(new), Some(old)) => new == old,
        _ => date(fresh).is_none_or(|new| date(stored).is_none_or(|old| new == old)),
    }
}
