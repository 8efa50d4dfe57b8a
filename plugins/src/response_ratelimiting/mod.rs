//! `response-ratelimiting`: limits on what the upstream says that an answer cost.

use crate::{
    Configured, Live, header_name,
    rate_limiting::{LocalCounters, Period, Policy, Redis, Window, short_hash},
    wrong,
};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request, response};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use weir_config::{Diagnostic, Node, Secret};
use weir_gateway::{BuildEnv, Environment, Flow, Phases, Plugin, Reply, RequestContext, plugin::Ending};

const BY: &str = "response-ratelimiting";

/// Counts by what the upstream says that an answer cost: `X-Kong-Limit: sms=2, video=1` charges 2 to the limit `sms` and 1 to `video`. The upstream gets what remains in
/// `X-RateLimit-Remaining-<limit>`, the client in `X-RateLimit-Limit-<limit>-<period>` and `X-RateLimit-Remaining-<limit>-<period>`. When an answer charges a limit that is used up, the client gets
/// 429 without a body instead. Windows begin with the calendar's (UTC). Answers from the cache cost nothing. Fields, defaults and headers are Kong's.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The limits by their names, each with at least one period.
    pub limits: BTreeMap<String, Limit>,
    /// The upstream's header that says what an answer cost. It is not passed on.
    pub header_name: String,
    /// Whose answers are counted together. Where a request has no such thing, the address counts.
    pub limit_by: LimitBy,
    /// Where costs are counted.
    pub policy: Policy,
    /// When the store is away: `true` lets requests pass uncounted; `false` answers 500.
    pub fault_tolerant: bool,
    /// Refuse requests as soon as any of the limits is used up, whatever they will cost: 429.
    pub block_on_first_violation: bool,
    /// Leave the limit headers off the answers.
    pub hide_client_headers: bool,
    /// Read for Kong's sake: Weir counts in the store that `store:` names.
    pub redis: Option<Redis>,
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

/// One limit.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limit {
    /// Cost a second.
    #[schemars(range(min = 1))]
    pub second: Option<u64>,
    /// Cost a minute.
    #[schemars(range(min = 1))]
    pub minute: Option<u64>,
    /// Cost an hour.
    #[schemars(range(min = 1))]
    pub hour: Option<u64>,
    /// Cost a day.
    #[schemars(range(min = 1))]
    pub day: Option<u64>,
    /// Cost a month.
    #[schemars(range(min = 1))]
    pub month: Option<u64>,
    /// Cost a year.
    #[schemars(range(min = 1))]
    pub year: Option<u64>,
}

/// Whose answers are counted together.
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
}

impl Default for Config {
    fn default() -> Self {
        Config {
            limits: BTreeMap::new(),
            header_name: "x-kong-limit".into(),
            limit_by: LimitBy::default(),
            policy: Policy::default(),
            fault_tolerant: true,
            block_on_first_violation: false,
            hide_client_headers: false,
            redis: None,
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
    const NAME: &'static str = BY;
    const PRIORITY: i32 = 900;
    const EXAMPLE: &'static str = "limits:\n  sms: {day: 10, month: 100}\n  video: {minute: 5}\nlimit_by: consumer\n";
    type Ready = Rules;

    fn ready(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        if self.limits.is_empty() {
            errors.push(wrong(at, "limits", "at least one limit is wanted"));
        }
        let mut limits = Vec::new();
        for (name, limit) in self.limits {
            let place = at.get("limits").and_then(|l| l.get(&name)).unwrap_or(at);
            match named(place, name, &limit) {
                Ok(limit) => limits.push(limit),
                Err(found) => errors.extend(found),
            }
        }
        let header = header_name(at, "header_name", &self.header_name).map_err(|e| errors.push(e)).ok();
        match header {
            Some(header) if errors.is_empty() => Ok(Rules {
                limits,
                header,
                by: self.limit_by,
                shared: self.policy != Policy::Local,
                fault_tolerant: self.fault_tolerant,
                block: self.block_on_first_violation,
                hide: self.hide_client_headers,
            }),
            _ => Err(errors),
        }
    }

    fn build(ready: Rules, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin> {
        let scopes = ready.limits.iter().map(|limit| format!("{}|{}", env.scope, limit.name)).collect();
        Arc::new(ResponseRateLimiting { rules: ready, scopes, local: live.limits.clone(), environment: env.environment.clone() })
    }
}

/// A limit with its periods and the names of its headers.
struct Named {
    name: String,
    periods: Vec<(Period, u64)>,
    upstream: HeaderName,
    told: Vec<(HeaderName, HeaderName)>,
}

fn named(at: &Node, name: String, limit: &Limit) -> Result<Named, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let all = [limit.second, limit.minute, limit.hour, limit.day, limit.month, limit.year];
    let periods: Vec<(Period, u64)> = Period::ALL.into_iter().zip(all).filter_map(|(p, limit)| Some((p, limit?))).collect();
    if periods.is_empty() {
        errors.push(wrong(at, "", "at least one period is wanted: `second`, `minute`, `hour`, `day`, `month` or `year`"));
    }
    for pair in periods.windows(2) {
        if let [(short, few), (long, many)] = pair
            && many < few
        {
            let message = format!("the limit for {}({many}) cannot be lower than the limit for {}({few})", long.name(), short.name());
            errors.push(wrong(at, long.name(), message));
        }
    }
    let mut field = |text: String| match HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) => Some(name),
        Err(_) => {
            if errors.is_empty() {
                errors.push(wrong(at, "", format!("`{}` can not be part of a header name", name.escape_debug())));
            }
            None
        }
    };
    let upstream = field(format!("x-ratelimit-remaining-{name}"));
    let told: Option<Vec<_>> = periods
        .iter()
        .map(|(p, _)| Some((field(format!("x-ratelimit-limit-{name}-{}", p.name()))?, field(format!("x-ratelimit-remaining-{name}-{}", p.name()))?)))
        .collect();
    match (upstream, told) {
        (Some(upstream), Some(told)) if errors.is_empty() => Ok(Named { name, periods, upstream, told }),
        _ => Err(errors),
    }
}

/// The configuration, checked.
pub struct Rules {
    limits: Vec<Named>,
    header: HeaderName,
    by: LimitBy,
    shared: bool,
    fault_tolerant: bool,
    block: bool,
    hide: bool,
}

struct ResponseRateLimiting {
    rules: Rules,
    /// By limit.
    scopes: Vec<String>,
    local: Arc<LocalCounters>,
    environment: Arc<Environment>,
}

/// Whose limits a request is charged to, and what is left of them: by limit, by period.
#[derive(Clone)]
struct Usage {
    kind: &'static str,
    name: String,
    windows: Arc<Vec<Vec<Window>>>,
    remaining: Arc<Vec<Vec<u64>>>,
}

/// What the answer costs, by limit.
#[derive(Clone)]
struct Costs(Arc<Vec<u64>>);

/// The answer is held back.
#[derive(Clone)]
struct Stopped;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl ResponseRateLimiting {
    fn who(&self, cx: &RequestContext) -> (&'static str, String) {
        let credential = || cx.identity.as_ref().and_then(|i| i.credential.clone()).map(|c| ("credential", c));
        let subject = || cx.identity.as_ref().filter(|i| !i.subject.is_empty()).map(|i| ("subject", i.subject.clone()));
        let found = match self.rules.by {
            LimitBy::Ip => None,
            LimitBy::Credential => credential().or_else(subject),
            LimitBy::Consumer => cx.consumer.as_ref().map(|c| ("consumer", c.entity.id.clone())).or_else(subject).or_else(credential),
        };
        found.unwrap_or_else(|| ("ip", cx.client.ip.to_string()))
    }

    fn windows(&self) -> Vec<Vec<Window>> {
        let now = now();
        self.rules.limits.iter().map(|l| l.periods.iter().map(|(period, limit)| period.window(now, *limit)).collect()).collect()
    }

    /// A caller's name may be as long as a token.
    fn key(&self, limit: usize, kind: &str, name: &str, window: &Window) -> String {
        let hashed = (name.len() > 64).then(|| short_hash(name.as_bytes()));
        format!("response-limit:{{{}|{kind}|{}}}:{}:{}", self.scopes[limit], hashed.as_deref().unwrap_or(name), window.period.name(), window.start)
    }

    /// Writes down what is left, or answers if that is nothing.
    fn begin(&self, cx: &mut RequestContext, req: &request::Parts, (kind, name): (&'static str, String), windows: Vec<Vec<Window>>, used: &[Vec<u64>]) -> Flow {
        let left = |(windows, used): (&Vec<Window>, &Vec<u64>)| windows.iter().zip(used).map(|(w, used)| w.limit.saturating_sub(*used)).collect();
        let remaining: Vec<Vec<u64>> = windows.iter().zip(used).map(left).collect();
        if self.rules.block
            && let Some((limit, _)) = self.rules.limits.iter().zip(&remaining).find(|(_, left)| left.contains(&0))
        {
            self.environment.metrics.plugin(BY, "limited");
            let message = format!("API rate limit exceeded for '{}'", limit.name);
            return Flow::Reply(Reply::error(BY, cx, req.headers.get(header::ACCEPT), StatusCode::TOO_MANY_REQUESTS, &message));
        }
        cx.state.insert(Usage { kind, name, windows: Arc::new(windows), remaining: Arc::new(remaining) });
        Flow::Continue
    }

    /// Costs by limit: `name=2, other=1`, in one field or several. What is not a number, or no limit, costs nothing.
    fn costs(&self, headers: &HeaderMap) -> Vec<u64> {
        let mut costs = vec![0; self.rules.limits.len()];
        let fields = headers.get_all(&self.rules.header).iter().filter_map(|v| v.to_str().ok());
        for (name, cost) in fields.flat_map(|v| v.split(',')).filter_map(|pair| pair.split_once('=')) {
            let place = self.rules.limits.iter().position(|l| l.name == name.trim());
            if let (Some(place), Ok(cost)) = (place, cost.trim().parse()) {
                costs[place] = cost;
            }
        }
        costs
    }
}

#[async_trait]
impl Plugin for ResponseRateLimiting {
    fn phases(&self) -> Phases {
        let shared = if self.rules.shared { Phases::REQUEST_WAIT | Phases::END } else { Phases::REQUEST };
        shared | Phases::TO_UPSTREAM | Phases::FROM_UPSTREAM | Phases::RESPONSE | Phases::BODY
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let (who, windows) = (self.who(cx), self.windows());
        let used: Vec<Vec<u64>> = self.scopes.iter().zip(&windows).map(|(scope, w)| self.local.peek((scope, who.0, &who.1), w)).collect();
        self.begin(cx, req, who, windows, &used)
    }

    async fn request_wait(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let (who, windows) = (self.who(cx), self.windows());
        let mut used = Vec::with_capacity(windows.len());
        for (limit, windows) in windows.iter().enumerate() {
            let mut counts = Vec::with_capacity(windows.len());
            for window in windows {
                match self.environment.store.counters.peek(&self.key(limit, who.0, &who.1, window)).await {
                    Ok(count) => counts.push(count),
                    Err(error) => {
                        tracing::warn!(plugin = BY, %error, "the store does not tell the counts");
                        self.environment.metrics.plugin(BY, "error");
                        if self.rules.fault_tolerant {
                            return Flow::Continue;
                        }
                        let accept = req.headers.get(header::ACCEPT);
                        return Flow::Reply(Reply::error(BY, cx, accept, StatusCode::INTERNAL_SERVER_ERROR, "An unexpected error occurred"));
                    }
                }
            }
            used.push(counts);
        }
        self.begin(cx, req, who, windows, &used)
    }

    fn to_upstream(&self, cx: &mut RequestContext, req: &mut request::Parts) {
        let Some(usage) = cx.state.get::<Usage>() else { return };
        for (limit, left) in self.rules.limits.iter().zip(usage.remaining.iter()) {
            req.headers.insert(limit.upstream.clone(), HeaderValue::from(left.iter().min().copied().unwrap_or(0)));
        }
    }

    fn from_upstream(&self, cx: &mut RequestContext, res: &mut response::Parts) {
        let costs = self.costs(&res.headers);
        res.headers.remove(&self.rules.header);
        cx.state.insert(Costs(Arc::new(costs)));
    }

    fn response(&self, cx: &mut RequestContext, res: &mut response::Parts) {
        let Some(usage) = cx.state.get::<Usage>().cloned() else { return };
        let costs = cx.state.get::<Costs>().map_or_else(|| Arc::new(vec![0; self.rules.limits.len()]), |c| c.0.clone());
        let mut stop = false;
        for ((limit, left), (windows, cost)) in self.rules.limits.iter().zip(usage.remaining.iter()).zip(usage.windows.iter().zip(costs.iter())) {
            stop |= *cost > 0 && left.contains(&0);
            if !self.rules.hide {
                for (((told_limit, told_left), left), window) in limit.told.iter().zip(left).zip(windows) {
                    res.headers.insert(told_limit.clone(), HeaderValue::from(window.limit));
                    res.headers.insert(told_left.clone(), HeaderValue::from(left.saturating_sub(*cost)));
                }
            }
        }
        if stop {
            self.environment.metrics.plugin(BY, "limited");
            cx.state.insert(Stopped);
            cx.state.remove::<Costs>();
            res.status = StatusCode::TOO_MANY_REQUESTS;
            for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_RANGE, header::ETAG, header::LAST_MODIFIED, header::TRAILER] {
                res.headers.remove(name);
            }
            res.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        } else if !self.rules.shared {
            for (scope, (windows, cost)) in self.scopes.iter().zip(usage.windows.iter().zip(costs.iter())).filter(|(_, (_, cost))| **cost > 0) {
                self.local.add((scope, usage.kind, &usage.name), windows, *cost);
            }
        }
    }

    fn body(&self, cx: &mut RequestContext, chunk: &mut Bytes, _: bool) {
        if cx.state.get::<Stopped>().is_some() {
            chunk.clear();
        }
    }

    /// Before the client sees the last byte: its next request finds this one counted.
    async fn end(&self, cx: &mut RequestContext, _: Ending) {
        let (Some(usage), Some(costs)) = (cx.state.get::<Usage>().cloned(), cx.state.get::<Costs>().map(|c| c.0.clone())) else { return };
        for (limit, (windows, cost)) in usage.windows.iter().zip(costs.iter()).enumerate().filter(|(_, (_, cost))| **cost > 0) {
            for window in windows {
                // A little longer than the window, for instances whose clocks differ.
                let ttl = Duration::from_secs(window.end.saturating_sub(now()) + 2);
                let key = self.key(limit, usage.kind, &usage.name, window);
                if let Err(error) = self.environment.store.counters.add(&key, *cost, ttl).await {
                    tracing::warn!(plugin = BY, %error, "the store did not count an answer");
                    self.environment.metrics.plugin(BY, "error");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
