//! `rate-limiting`: so many requests in a second, a minute, … a year.

mod local;
mod window;

pub(crate) use local::LocalCounters;
pub(crate) use window::{Period, Window};

use crate::{Configured, Live, header_name, wrong};
use async_trait::async_trait;
use http::{HeaderName, HeaderValue, StatusCode, header, request, response};
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{borrow::Cow, sync::Arc, time::{Duration, SystemTime, UNIX_EPOCH}};
use weir_config::{Diagnostic, Node, Secret};
use weir_gateway::{BuildEnv, Environment, Flow, Phases, Plugin, Reply, RequestContext};
use weir_store::Take;

/// Limits how many requests a caller may make in a second, minute, hour, day, month or year; several limits hold at once. A window begins
/// with the calendar's (UTC), and a request over a limit is charged to none. Answers tell the limits in
/// `X-RateLimit-Limit-*`, `X-RateLimit-Remaining-*` and `RateLimit-Limit`, `-Remaining`, `-Reset` (seconds; of the tightest window); over
/// the limit they are 429 with `Retry-After`. Fields, defaults and headers are Kong's.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Requests a second.
    #[schemars(range(min = 1))]
    pub second: Option<u64>,
    /// Requests a minute.
    #[schemars(range(min = 1))]
    pub minute: Option<u64>,
    /// Requests an hour.
    #[schemars(range(min = 1))]
    pub hour: Option<u64>,
    /// Requests a day.
    #[schemars(range(min = 1))]
    pub day: Option<u64>,
    /// Requests a month.
    #[schemars(range(min = 1))]
    pub month: Option<u64>,
    /// Requests a year.
    #[schemars(range(min = 1))]
    pub year: Option<u64>,
    /// Whose requests are counted together. Where a request has no such thing (no consumer, no such header), the address counts.
    pub limit_by: LimitBy,
    /// With `limit_by: header`: the header.
    pub header_name: Option<String>,
    /// With `limit_by: path`: the path whose requests are counted together.
    pub path: Option<String>,
    /// Where requests are counted.
    pub policy: Policy,
    /// When the store is away: `true` falls back to limits of this instance alone; `false` answers 500.
    pub fault_tolerant: bool,
    /// Leave all limit headers (`Retry-After` too) off the answers.
    pub hide_client_headers: bool,
    /// Status over the limit.
    #[schemars(range(min = 400, max = 599))]
    pub error_code: u16,
    /// Message over the limit.
    pub error_message: String,
    /// Read for Kong's sake: Weir counts in the store that `store:` names.
    pub redis: Option<Redis>,
    /// Read for Kong's sake: Weir writes every count at once, as with `-1`.
    pub sync_rate: Option<f64>,
    /// Older spelling of `redis.host`; not used.
    pub redis_host: Option<String>,
    /// Older spelling of `redis.port`; not used.
    pub redis_port: Option<u16>,
    /// Older spelling of `redis.username`; not used.
    pub redis_username: Option<String>,
    /// Older spelling of `redis.password`; not used.
    pub redis_password: Option<Secret>,
    /// Older spelling of `redis.ssl`; not used.
    pub redis_ssl: Option<bool>,
    /// Older spelling of `redis.ssl_verify`; not used.
    pub redis_ssl_verify: Option<bool>,
    /// Older spelling of `redis.server_name`; not used.
    pub redis_server_name: Option<String>,
    /// Older spelling of `redis.timeout`; not used.
    pub redis_timeout: Option<u64>,
    /// Older spelling of `redis.database`; not used.
    pub redis_database: Option<u64>,
}

/// Kong's address of a Redis. Weir counts in the store that `store:` names instead.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Redis {
    /// Not used.
    pub host: Option<String>,
    /// Not used.
    pub port: Option<u16>,
    /// Not used.
    pub timeout: Option<u64>,
    /// Not used.
    pub username: Option<String>,
    /// Not used.
    pub password: Option<Secret>,
    /// Not used.
    pub database: Option<u64>,
    /// Not used.
    pub ssl: Option<bool>,
    /// Not used.
    pub ssl_verify: Option<bool>,
    /// Not used.
    pub server_name: Option<String>,
}

/// Whose requests are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LimitBy {
    /// The consumer's, or the subject's of a verified token.
    #[default]
    Consumer,
    /// The credential's: each token or key by itself.
    Credential,
    /// The client address's.
    Ip,
    /// Everybody's, for each service.
    Service,
    /// Those with the same value of `header_name`.
    Header,
    /// Everybody's on `path`.
    Path,
}

/// Where requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// In this process: the fastest; each of several instances counts for itself.
    #[default]
    Local,
    /// In the store, exactly, over all instances.
    Redis,
    /// The same as `redis`.
    Cluster,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            second: None,
            minute: None,
            hour: None,
            day: None,
            month: None,
            year: None,
            limit_by: LimitBy::default(),
            header_name: None,
            path: None,
            policy: Policy::default(),
            fault_tolerant: true,
            hide_client_headers: false,
            error_code: 429,
            error_message: "API rate limit exceeded".into(),
            redis: None,
            sync_rate: None,
            redis_host: None,
            redis_port: None,
            redis_username: None,
            redis_password: None,
            redis_ssl: None,
            redis_ssl_verify: None,
            redis_server_name: None,
            redis_timeout: None,
            redis_database: None,
        }
    }
}

impl Configured for Config {
    const NAME: &'static str = "rate-limiting";
    const PRIORITY: i32 = 910;
    const EXAMPLE: &'static str = "second: 50\nhour: 10000\nlimit_by: consumer\npolicy: redis\n";
    type Ready = Rules;

    fn ready(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let all = [self.second, self.minute, self.hour, self.day, self.month, self.year];
        let limits: Vec<(Period, u64)> = Period::ALL.into_iter().zip(all).filter_map(|(p, limit)| Some((p, limit?))).collect();
        if limits.is_empty() {
            errors.push(wrong(at, "", "at least one limit is wanted: `second`, `minute`, `hour`, `day`, `month` or `year`"));
        }
        for pair in limits.windows(2) {
            if let [(short, few), (long, many)] = pair
                && many < few
            {
                let message = format!("the limit for {}({many}) cannot be lower than the limit for {}({few})", long.name(), short.name());
                errors.push(wrong(at, long.name(), message));
            }
        }
        if limits.iter().any(|(_, limit)| *limit == 0) {
            errors.push(wrong(at, "", "a limit must be 1 or more"));
        }
        let mut by = By::Ip;
        match (self.limit_by, &self.header_name, &self.path) {
            (LimitBy::Header, None, _) => errors.push(wrong(at, "limit_by", "`limit_by: header` needs `header_name`")),
            (LimitBy::Header, Some(name), _) => match header_name(at, "header_name", name) {
                Ok(name) => by = By::Header(name),
                Err(error) => errors.push(error),
            },
            (LimitBy::Path, _, None) => errors.push(wrong(at, "limit_by", "`limit_by: path` needs `path`")),
            (LimitBy::Path, _, Some(path)) if !path.starts_with('/') => errors.push(wrong(at, "path", "a path begins with `/`")),
            (LimitBy::Path, _, Some(path)) => by = By::Path(path.clone()),
            (LimitBy::Consumer, ..) => by = By::Consumer,
            (LimitBy::Credential, ..) => by = By::Credential,
            (LimitBy::Service, ..) => by = By::Service,
            (LimitBy::Ip, ..) => {}
        }
        let status = StatusCode::from_u16(self.error_code).ok().filter(|s| s.is_client_error() || s.is_server_error());
        if status.is_none() {
            errors.push(wrong(at, "error_code", "a status between 400 and 599 is wanted"));
        }
        match status {
            Some(status) if errors.is_empty() => Ok(Rules {
                limits,
                by,
                shared: self.policy != Policy::Local,
                fault_tolerant: self.fault_tolerant,
                hide: self.hide_client_headers,
                status,
                message: self.error_message,
            }),
            _ => Err(errors),
        }
    }

    fn build(ready: Rules, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin> {
        Arc::new(RateLimiting { rules: ready, scope: env.scope.clone(), local: live.limits.clone(), environment: env.environment.clone() })
    }
}

/// The configuration, checked.
pub struct Rules {
    limits: Vec<(Period, u64)>,
    by: By,
    shared: bool,
    fault_tolerant: bool,
    hide: bool,
    status: StatusCode,
    message: String,
}

enum By {
    Consumer,
    Credential,
    Ip,
    Service,
    Header(HeaderName),
    Path(String),
}

struct RateLimiting {
    rules: Rules,
    scope: String,
    local: Arc<LocalCounters>,
    environment: Arc<Environment>,
}

/// Who is counted. The kind is part of it, so that a subject called `192.0.2.1` is not that address.
struct Who<'a> {
    kind: &'static str,
    name: Cow<'a, str>,
}

/// What the answer tells, kept for the response step.
#[derive(Clone)]
struct Told(Vec<(HeaderName, u64)>);

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

impl RateLimiting {
    fn who<'a>(&'a self, cx: &'a RequestContext, req: &'a request::Parts) -> Who<'a> {
        let who = |kind, name: &'a str| Some(Who { kind, name: Cow::Borrowed(name) });
        let identity = cx.identity.as_ref().filter(|i| !i.subject.is_empty());
        let credential = cx.identity.as_ref().and_then(|i| i.credential.as_deref());
        let found = match &self.rules.by {
            By::Ip => None,
            By::Consumer => cx
                .consumer
                .as_ref()
                .and_then(|c| who("consumer", &c.entity.id))
                .or_else(|| identity.and_then(|i| who("subject", &i.subject)))
                .or_else(|| credential.and_then(|c| who("credential", c))),
            By::Credential => credential.and_then(|c| who("credential", c)).or_else(|| identity.and_then(|i| who("subject", &i.subject))),
            By::Service => cx.service.as_ref().and_then(|s| who("service", &s.name)),
            // Hashed: it may be a secret, and as long as a head.
            By::Header(name) => req.headers.get(name).map(|v| Who { kind: "header", name: Cow::Owned(short_hash(v.as_bytes())) }),
            By::Path(path) => (req.uri.path() == path).then_some(()).and_then(|()| who("path", path)),
        };
        found.unwrap_or_else(|| Who { kind: "ip", name: Cow::Owned(cx.client.ip.to_string()) })
    }

    fn windows(&self) -> Vec<Window> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.rules.limits.iter().map(|(period, limit)| period.window(now.as_secs(), *limit)).collect()
    }

    fn take_local(&self, who: &Who<'_>, windows: &[Window]) -> (bool, Vec<u64>) {
        self.local.take((&self.scope, who.kind, who.name.as_ref()), windows)
    }

    /// All windows of a caller share the part in braces, which is what a cluster places keys by.
    fn takes(&self, who: &Who<'_>, windows: &[Window]) -> Vec<Take> {
        let name = if who.name.len() > 64 { Cow::Owned(short_hash(who.name.as_bytes())) } else { Cow::Borrowed(who.name.as_ref()) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        windows
            .iter()
            .map(|w| Take {
                key: format!("limit:{{{}|{}|{name}}}:{}:{}", self.scope, who.kind, w.period.name(), w.start),
                cost: 1,
                limit: w.limit,
                // A little longer than the window, for instances whose clocks differ.
                ttl: Duration::from_secs(w.end.saturating_sub(now) + 2),
            })
            .collect()
    }

    /// Writes down what the answer will tell, and answers if the limit is passed.
    fn decide(&self, cx: &mut RequestContext, req: &request::Parts, windows: &[Window], allowed: bool, values: &[u64]) -> Flow {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut told = Vec::with_capacity(2 * windows.len() + 3);
        // The tightest window; of two, the longer, since it is the one that stays.
        let mut tightest: Option<(u64, &Window)> = None;
        for (window, value) in windows.iter().zip(values) {
            let remaining = window.limit.saturating_sub(*value);
            let (limit_name, remaining_name) = window.period.headers();
            told.push((limit_name, window.limit));
            told.push((remaining_name, remaining));
            if tightest.is_none_or(|(least, _)| remaining <= least) {
                tightest = Some((remaining, window));
            }
        }
        let reset = tightest.map_or(1, |(_, w)| w.end.saturating_sub(now).max(1));
        if let Some((remaining, window)) = tightest {
            told.extend([(LIMIT, window.limit), (REMAINING, remaining), (RESET, reset)]);
        }
        if !self.rules.hide {
            cx.state.insert(Told(told));
        }
        self.environment.metrics.plugin("rate-limiting", if allowed { "allowed" } else { "limited" });
        if allowed {
            return Flow::Continue;
        }
        let mut reply = Reply::error("rate-limiting", cx, req.headers.get(header::ACCEPT), self.rules.status, &self.rules.message);
        if !self.rules.hide {
            reply.headers.insert(header::RETRY_AFTER, HeaderValue::from(reset));
        }
        Flow::Reply(reply)
    }
}

pub(crate) fn short_hash(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest[..16].iter().map(|b| format!("{b:02x}")).collect()
}

#[async_trait]
impl Plugin for RateLimiting {
    fn phases(&self) -> Phases {
        Phases::RESPONSE | if self.rules.shared { Phases::REQUEST_WAIT } else { Phases::REQUEST }
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let windows = self.windows();
        let (allowed, values) = self.take_local(&self.who(cx, req), &windows);
        self.decide(cx, req, &windows, allowed, &values)
    }

    async fn request_wait(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let windows = self.windows();
        let takes = self.takes(&self.who(cx, req), &windows);
        match self.environment.store.counters.take(&takes).await {
            Ok(taken) => self.decide(cx, req, &windows, taken.allowed, &taken.values),
            Err(error) => {
                tracing::warn!(plugin = "rate-limiting", scope = self.scope, %error, "the store did not count");
                if !self.rules.fault_tolerant {
                    self.environment.metrics.plugin("rate-limiting", "error");
                    let accept = req.headers.get(header::ACCEPT);
                    return Flow::Reply(Reply::error("rate-limiting", cx, accept, StatusCode::INTERNAL_SERVER_ERROR, "An unexpected error occurred"));
                }
                self.environment.metrics.plugin("rate-limiting", "fallback");
                let (allowed, values) = self.take_local(&self.who(cx, req), &windows);
                self.decide(cx, req, &windows, allowed, &values)
            }
        }
    }

    fn response(&self, cx: &mut RequestContext, res: &mut response::Parts) {
        if let Some(Told(fields)) = cx.state.get::<Told>() {
            for (name, value) in fields {
                res.headers.insert(name.clone(), HeaderValue::from(*value));
            }
        }
    }
}

#[cfg(test)]
mod tests;
