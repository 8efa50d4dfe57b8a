//! Misbehaviour on request: by headers of one request, or by rules that an admin call leaves behind.
//!
//! | request header | means |
//! |---|---|
//! | `x-stub-latency: 500ms` (or `2s`, or a number of milliseconds) | wait before doing anything |
//! | `x-stub-status: 503` | answer with this status in place of the work |
//! | `x-stub-fault: close\|truncate\|stall\|hang\|reset\|garbage` | see [`Fault`] |
//! | `x-stub-body-size: 100000` | replace the body by one of that many bytes |
//! | `x-stub-header-NAME: VALUE` | answer with this header; replaces one of that name, except `Set-Cookie`, which is added |
//! | `x-stub-after-work: 1` | do the work first, then answer with the status or fault: "done, but the answer was lost" |
//!
//! Rules ([`FaultRule`]) say the same; those that match apply in the order in which they were added, a later one
//! overriding an earlier one, and the request's own headers override them all.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The most an answer can be blown up to by `x-stub-body-size`: 1 GiB.
pub const MAX_BODY_SIZE: u64 = 1 << 30;

/// How an answer goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// Close the connection without an answer.
    Close,
    /// Send the head and half of the body, then close: the declared length or the last chunk is never reached.
    Truncate,
    /// Send the head and half of the body, then nothing more, with the connection open.
    Stall,
    /// Never answer.
    Hang,
    /// Reset the TCP connection (RST) without an answer.
    Reset,
    /// Answer with bytes that are not HTTP, and close.
    Garbage,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        Ok(match text {
            "close" => Fault::Close,
            "truncate" => Fault::Truncate,
            "stall" => Fault::Stall,
            "hang" => Fault::Hang,
            "reset" => Fault::Reset,
            "garbage" => Fault::Garbage,
            _ => {
                return Err(format!(
                    "unknown fault {text:?}: close, truncate, stall, hang, reset or garbage"
                ));
            }
        })
    }
}

/// A standing order to misbehave, as `POST /_stub/faults` takes it in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultRule {
    /// Paths that begin with this are hit; `/` is all of them (but never `/_stub/…`).
    pub path_prefix: String,
    /// Only this method; any if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Wait so many milliseconds before doing anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    /// Answer with this status in place of the work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Go wrong in this way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Replace the body by one of that many bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_size: Option<u64>,
    /// The share of matching requests that are hit, 0.0 to 1.0.
    pub probability: f64,
    /// How many requests are hit before the rule is used up; without end if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// Response headers to set (`Set-Cookie` is added).
    pub headers: BTreeMap<String, String>,
    /// Do the work first, then apply status or fault.
    pub after_work: bool,
}

impl Default for FaultRule {
    fn default() -> Self {
        FaultRule {
            path_prefix: "/".to_owned(),
            method: None,
            latency_ms: None,
            status: None,
            fault: None,
            body_size: None,
            probability: 1.0,
            times: None,
            headers: BTreeMap::new(),
            after_work: false,
        }
    }
}

impl FaultRule {
    /// Checks what JSON types cannot: the status, the probability, the headers' names and values.
    pub fn check(&self) -> Result<(), String> {
        if let Some(status) = self.status {
            status_code(status)?;
        }
        if let Some(size) = self.body_size {
            body_size(size)?;
        }
        if let Some(method) = &self.method {
            Method::from_bytes(method.as_bytes())
                .map_err(|_| format!("{method:?} is no method"))?;
        }
        if !(0.0..=1.0).contains(&self.probability) {
            return Err(format!(
                "probability {} is not between 0 and 1",
                self.probability
            ));
        }
        for (name, value) in &self.headers {
            header(name, value)?;
        }
        Ok(())
    }

    fn matches(&self, method: &Method, path: &str) -> bool {
        path.starts_with(&self.path_prefix)
            && self
                .method
                .as_ref()
                .is_none_or(|m| m.eq_ignore_ascii_case(method.as_str()))
    }

    fn apply(&self, effect: &mut Effect) {
        if let Some(ms) = self.latency_ms {
            effect.latency = Duration::from_millis(ms);
        }
        effect.status = self
            .status
            .and_then(|s| StatusCode::from_u16(s).ok())
            .or(effect.status);
        effect.fault = self.fault.or(effect.fault);
        effect.body_size = self.body_size.or(effect.body_size);
        effect.after_work |= self.after_work;
        effect
            .headers
            .extend(self.headers.iter().filter_map(|(n, v)| header(n, v).ok()));
    }
}

/// What is to happen to one request.
#[derive(Debug, Default)]
pub(crate) struct Effect {
    pub latency: Duration,
    pub status: Option<StatusCode>,
    pub fault: Option<Fault>,
    pub body_size: Option<u64>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub after_work: bool,
}

/// The standing rules of one service.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    rules: Mutex<Vec<FaultRule>>,
    /// The number of rules, so that a service without any takes no lock.
    count: AtomicUsize,
}

impl Faults {
    pub fn add(&self, rule: FaultRule) -> Result<(), String> {
        rule.check()?;
        let mut rules = self.rules.lock();
        rules.push(rule);
        self.count.store(rules.len(), Ordering::Release);
        Ok(())
    }

    pub fn clear(&self) {
        let mut rules = self.rules.lock();
        rules.clear();
        self.count.store(0, Ordering::Release);
    }

    pub fn list(&self) -> Vec<FaultRule> {
        self.rules.lock().clone()
    }

    /// What happens to this request. Counts down the rules that hit. `Err` if one of its headers makes no sense.
    pub fn effect(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Effect, String> {
        let mut effect = Effect::default();
        if self.count.load(Ordering::Acquire) > 0 {
            let mut rules = self.rules.lock();
            for rule in rules.iter_mut().filter(|r| r.matches(method, path)) {
                if rule.probability < 1.0 && fastrand::f64() >= rule.probability {
                    continue;
                }
                rule.apply(&mut effect);
                rule.times = rule.times.map(|n| n.saturating_sub(1));
            }
            rules.retain(|rule| rule.times != Some(0));
            self.count.store(rules.len(), Ordering::Release);
        }
        from_headers(headers, &mut effect)?;
        Ok(effect)
    }
}

const PREFIX: &str = "x-stub-";

fn from_headers(headers: &HeaderMap, effect: &mut Effect) -> Result<(), String> {
    for (name, value) in headers {
        let Some(what) = name.as_str().strip_prefix(PREFIX) else {
            continue;
        };
        let text = || value.to_str().map_err(|_| format!("{name} is not text"));
        match what {
            "latency" => effect.latency = latency(text()?)?,
            "status" => {
                effect.status = Some(status_code(
                    text()?
                        .parse()
                        .map_err(|_| "x-stub-status wants a number".to_owned())?,
                )?)
            }
            "fault" => effect.fault = Some(text()?.parse()?),
            "body-size" => {
                effect.body_size =
                    Some(body_size(text()?.parse().map_err(|_| {
                        "x-stub-body-size wants a number of bytes".to_owned()
                    })?)?)
            }
            "after-work" => effect.after_work = matches!(text()?, "1" | "yes" | "true"),
            _ => {
                if let Some(wanted) = what.strip_prefix("header-") {
                    effect.headers.push(header(wanted, text()?)?);
                }
            }
        }
    }
    Ok(())
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    let parsed = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| format!("{name:?} is no header name"))?;
    let value = HeaderValue::from_str(value)
        .map_err(|_| format!("header {name} cannot have that value"))?;
    Ok((parsed, value))
}

fn status_code(status: u16) -> Result<StatusCode, String> {
    match StatusCode::from_u16(status) {
        // An answer of 1xx would leave the client waiting for the final one.
        Ok(code) if (200..=599).contains(&status) => Ok(code),
        _ => Err(format!("status {status} is not between 200 and 599")),
    }
}

fn body_size(size: u64) -> Result<u64, String> {
    if size > MAX_BODY_SIZE {
        Err(format!(
            "a body of {size} bytes is over the limit of {MAX_BODY_SIZE}"
        ))
    } else {
        Ok(size)
    }
}

/// `500ms`, `2s`, `1.5s` or a bare number of milliseconds; at most a day.
fn latency(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no latency: write 500ms or 2s");
    let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 0.001),
        (None, Some(number)) => (number, 1.0),
        (None, None) => (text, 0.001),
    };
    let seconds = number.trim().parse::<f64>().map_err(|_| bad())? * unit;
    if !(0.0..=86_400.0).contains(&seconds) {
        return Err(bad());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn latencies_are_read_in_all_their_spellings() {
        for (text, ms) in [
            ("500ms", 500),
            ("2s", 2000),
            ("1.5s", 1500),
            ("250", 250),
            ("0", 0),
        ] {
            assert_eq!(latency(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "ms", "-1s", "nan", "inf", "1e99s", "5m"] {
            assert!(latency(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_rule_is_used_up_after_its_times() {
        let faults = Faults::default();
        faults
            .add(FaultRule {
                path_prefix: "/a".into(),
                status: Some(503),
                times: Some(2),
                ..FaultRule::default()
            })
            .unwrap();
        let hit = |path: &str| {
            faults
                .effect(&Method::GET, path, &HeaderMap::new())
                .unwrap()
                .status
                .is_some()
        };
        assert!(!hit("/b"));
        assert!(hit("/a/1") && hit("/a/2"));
        assert!(!hit("/a/3"));
        assert!(faults.list().is_empty());
    }

    #[test]
    fn the_requests_own_headers_override_rules() {
        let faults = Faults::default();
        faults
            .add(FaultRule {
                status: Some(503),
                latency_ms: Some(5),
                ..FaultRule::default()
            })
            .unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("x-stub-status", HeaderValue::from_static("404"));
        headers.insert(
            "x-stub-header-cache-control",
            HeaderValue::from_static("no-store"),
        );
        let effect = faults.effect(&Method::GET, "/", &headers).unwrap();
        assert_eq!(effect.status, Some(StatusCode::NOT_FOUND));
        assert_eq!(effect.latency, Duration::from_millis(5));
        assert_eq!(effect.headers[0].0, "cache-control");
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        let bad = [
            FaultRule {
                status: Some(99),
                ..FaultRule::default()
            },
            FaultRule {
                probability: 1.5,
                ..FaultRule::default()
            },
            FaultRule {
                probability: f64::NAN,
                ..FaultRule::default()
            },
            FaultRule {
                method: Some("GET IT".into()),
                ..FaultRule::default()
            },
            FaultRule {
                headers: [("bad name".to_owned(), "x".to_owned())].into(),
                ..FaultRule::default()
            },
            FaultRule {
                headers: [("x".to_owned(), "a\r\nb".to_owned())].into(),
                ..FaultRule::default()
            },
        ];
        for rule in bad {
            assert!(Faults::default().add(rule.clone()).is_err(), "{rule:?}");
        }
    }

    proptest! {
        #[test]
        fn hostile_fault_headers_never_panic(name in "[a-z-]{0,12}", value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut headers = HeaderMap::new();
            if let (Ok(n), Ok(v)) = (HeaderName::from_bytes(format!("x-stub-{name}").as_bytes()), HeaderValue::from_bytes(&value)) {
                headers.insert(n, v);
            }
            for fixed in ["latency", "status", "fault", "body-size", "after-work"] {
                if let Ok(v) = HeaderValue::from_bytes(&value) {
                    headers.insert(HeaderName::from_bytes(format!("x-stub-{fixed}").as_bytes()).unwrap(), v);
                }
            }
            let _ = Faults::default().effect(&Method::GET, "/", &headers);
        }
    }
}
