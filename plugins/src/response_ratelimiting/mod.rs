//! `response-ratelimiting`: limits on what the upstream says that an answer cost.

use crate::{
    Configured, Live, header_name,
    rate_limiting::{Allowed, By, Counts, Prefixes, Redis, Who, not_used, number, periods},
    wrong,
};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request, response};
use schemars::JsonSchema;
use serde::Deserialize;
use smallvec::SmallVec;
use std::{collections::BTreeMap, sync::Arc};
use weir_config::{Diagnostic, Node, Secret};
use weir_gateway::{BuildEnv, Environment, Flow, Phases, Plugin, Reply, RequestContext, plugin::Ending};
use weir_store::limits::{Asked, How, Key, Method, Rule};
use weir_store::{Charge, StoreResult};

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

/// Where costs are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// In this process: the fastest; each of several instances counts for itself.
    #[default]
    Local,
    /// In the store, over all instances.
    Redis,
    /// The same as `redis`.
    Cluster,
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
                by: match self.limit_by {
                    LimitBy::Consumer => By::Consumer,
                    LimitBy::Credential => By::Credential,
                    LimitBy::Ip => By::Ip,
                },
                shared: self.policy != Policy::Local,
                fault_tolerant: self.fault_tolerant,
                block: self.block_on_first_violation,
                hide: self.hide_client_headers,
            }),
            _ => Err(errors),
        }
    }

    fn warnings(at: &Node) -> Vec<Diagnostic> {
        not_used(at)
    }

    fn build(ready: Rules, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin> {
        let seeds = ready.limits.iter().map(|limit| live.limits.meters.key((BY, &env.scope, &limit.name))).collect();
        Arc::new(ResponseRateLimiting { rules: ready, seeds, scope: env.scope.clone(), counts: live.limits.clone(), environment: env.environment.clone() })
    }
}

/// A limit with its periods and the names of its headers.
struct Named {
    name: String,
    periods: Vec<Allowed>,
    rules: Vec<Rule>,
    upstream: HeaderName,
    told: Vec<(HeaderName, HeaderName)>,
}

fn named(at: &Node, name: String, limit: &Limit) -> Result<Named, Vec<Diagnostic>> {
    let periods = periods(at, [limit.second, limit.minute, limit.hour, limit.day, limit.month, limit.year], "period")?;
    let field = |text: String| HeaderName::from_bytes(text.as_bytes()).map_err(|_| vec![wrong(at, "", format!("`{}` can not be part of a header name", name.escape_debug()))]);
    let upstream = field(format!("x-ratelimit-remaining-{name}"))?;
    let told = periods
        .iter()
        .map(|p| Ok((field(format!("x-ratelimit-limit-{name}-{}", p.period))?, field(format!("x-ratelimit-remaining-{name}-{}", p.period))?)))
        .collect::<Result<_, Vec<Diagnostic>>>()?;
    let rules = periods.iter().map(|p| Rule { limit: p.limit, span: p.span, method: Method::Fixed }).collect();
    Ok(Named { name, periods, rules, upstream, told })
}

/// The configuration, checked.
pub struct Rules {
    limits: Vec<Named>,
    header: HeaderName,
    by: By,
    shared: bool,
    fault_tolerant: bool,
    block: bool,
    hide: bool,
}

struct ResponseRateLimiting {
    rules: Rules,
    /// By limit.
    seeds: Vec<Key>,
    scope: String,
    counts: Arc<Counts>,
    environment: Arc<Environment>,
}

/// Who pays, as it is counted here, by limit, or in the store; and what was left before: by limit, by period.
#[derive(Clone)]
struct Usage {
    payer: Payer,
    remaining: Arc<Vec<Vec<u64>>>,
}

#[derive(Clone)]
enum Payer {
    Here(SmallVec<[Key; 4]>),
    /// What its counts' names begin with.
    Stored(Arc<str>),
}

/// What the answer costs, by limit.
#[derive(Clone)]
struct Costs(Arc<Vec<u64>>);

/// The answer is held back.
#[derive(Clone)]
struct Stopped;

impl ResponseRateLimiting {
    fn who<'a>(&'a self, cx: &'a RequestContext, req: &'a request::Parts) -> Who<'a> {
        self.rules.by.who(cx, req, Prefixes::DEFAULT)
    }

    /// Charges what each limit costs (with costs of nothing: only asks), whatever the limits. What is left then.
    fn charge_here(&self, cx: &RequestContext, keys: &[Key], cost: impl Fn(usize) -> u64) -> Vec<Vec<u64>> {
        let limits = self.rules.limits.iter().zip(keys).enumerate();
        let asked: SmallVec<[Asked<'_>; 4]> = limits.map(|(i, (limit, key))| Asked::new(*key, &limit.rules, cost(i))).collect();
        let outcome = self.counts.meters.charge(self.counts.clock.at(cx.started), &asked, How::Anyway);
        self.by_limit(outcome.readings.iter().map(|r| r.left))
    }

    /// The same in the store, in one step.
    async fn charge_stored(&self, payer: &str, cost: impl Fn(usize) -> u64) -> StoreResult<Vec<Vec<u64>>> {
        let charges: Vec<Charge> = self
            .rules
            .limits
            .iter()
            .enumerate()
            .flat_map(|(i, limit)| {
                let cost = cost(i);
                let rules = limit.rules.iter().zip(&limit.periods);
                rules.map(move |(rule, p)| Charge::new(format!("{payer}:{}:{}", limit.name, p.period), *rule, cost))
            })
            .collect();
        let charged = self.environment.store.counters.charge(&charges, How::Anyway).await?;
        Ok(self.by_limit(charged.readings.iter().map(|r| r.left)))
    }

    fn by_limit(&self, mut left: impl Iterator<Item = u64>) -> Vec<Vec<u64>> {
        self.rules.limits.iter().map(|limit| left.by_ref().take(limit.rules.len()).collect()).collect()
    }

    /// Writes down what is left, or answers if that is nothing.
    fn begin(&self, cx: &mut RequestContext, req: &request::Parts, payer: Payer, remaining: Vec<Vec<u64>>) -> Flow {
        if self.rules.block
            && let Some((limit, _)) = self.rules.limits.iter().zip(&remaining).find(|(_, left)| left.contains(&0))
        {
            self.environment.metrics.plugin(BY, "limited");
            let message = format!("API rate limit exceeded for '{}'", limit.name);
            return Flow::Reply(Reply::error(BY, cx, req.headers.get(header::ACCEPT), StatusCode::TOO_MANY_REQUESTS, &message));
        }
        cx.state.insert(Usage { payer, remaining: Arc::new(remaining) });
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
        let who = self.who(cx, req);
        let keys: SmallVec<[Key; 4]> = self.seeds.iter().map(|seed| self.counts.meters.key((seed, &who))).collect();
        let remaining = self.charge_here(cx, &keys, |_| 0);
        self.begin(cx, req, Payer::Here(keys), remaining)
    }

    async fn request_wait(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let who = self.who(cx, req);
        let payer: Arc<str> = format!("response-limit:{{{}|{}|{}}}", self.scope, who.kind, who.name.shown()).into();
        match self.charge_stored(&payer, |_| 0).await {
            Ok(remaining) => self.begin(cx, req, Payer::Stored(payer), remaining),
            Err(error) => {
                tracing::warn!(plugin = BY, %error, "the store does not tell the counts");
                self.environment.metrics.plugin(BY, "error");
                if self.rules.fault_tolerant {
                    return Flow::Continue;
                }
                let accept = req.headers.get(header::ACCEPT);
                Flow::Reply(Reply::error(BY, cx, accept, StatusCode::INTERNAL_SERVER_ERROR, "An unexpected error occurred"))
            }
        }
    }

    fn to_upstream(&self, cx: &mut RequestContext, req: &mut request::Parts) {
        let Some(usage) = cx.state.get::<Usage>() else { return };
        for (limit, left) in self.rules.limits.iter().zip(usage.remaining.iter()) {
            req.headers.insert(limit.upstream.clone(), number(left.iter().min().copied().unwrap_or(0)));
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
        for ((limit, left), cost) in self.rules.limits.iter().zip(usage.remaining.iter()).zip(costs.iter()) {
            stop |= *cost > 0 && left.contains(&0);
            if !self.rules.hide {
                for (((told_limit, told_left), left), rule) in limit.told.iter().zip(left).zip(&limit.rules) {
                    res.headers.insert(told_limit.clone(), number(rule.limit));
                    res.headers.insert(told_left.clone(), number(left.saturating_sub(*cost)));
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
        } else if let Payer::Here(keys) = &usage.payer
            && costs.iter().any(|cost| *cost > 0)
        {
            self.charge_here(cx, keys, |limit| costs[limit]);
        }
    }

    fn body(&self, cx: &mut RequestContext, chunk: &mut Bytes, _: bool) {
        if cx.state.get::<Stopped>().is_some() {
            chunk.clear();
        }
    }

    /// Before the client sees the last byte: its next request finds this one counted.
    async fn end(&self, cx: &mut RequestContext, _: Ending) {
        let (Some(usage), Some(costs)) = (cx.state.get::<Usage>(), cx.state.get::<Costs>().map(|c| c.0.clone())) else { return };
        let Payer::Stored(payer) = usage.payer.clone() else { return };
        if costs.iter().all(|cost| *cost == 0) {
            return;
        }
        if let Err(error) = self.charge_stored(&payer, |limit| costs[limit]).await {
            tracing::warn!(plugin = BY, %error, "the store did not count an answer");
            self.environment.metrics.plugin(BY, "error");
        }
    }
}

#[cfg(test)]
mod tests;
