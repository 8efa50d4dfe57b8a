//! The configuration of `rate-limiting`, and what is checked of it.

use super::told::Fields;
use super::who::{By, Prefixes};
use crate::{doubtful, header_name, template::Template, wrong};
use http::{Method as HttpMethod, StatusCode, request};
use schemars::JsonSchema;
use serde::Deserialize;
use weir_config::{Diagnostic, Node, Secret};
use weir_gateway::RequestContext;
use weir_store::limits::{Method, Rule, Span};

/// Limits how many requests a caller may make in a second, minute, hour, day, month or year; several limits hold at once, also for
/// different callers: so many an address and so many a user. A request over one of the limits is charged to none. Fields, defaults and headers are
/// Kong's; what Kong does not have is beside them.
///
/// **Algorithms.** `fixed-window` counts in windows of the calendar (UTC), as Kong does: twice the limit may pass around the border of two.
/// `sliding-window` never lets more than the limit pass in any stretch of the period, wherever it begins; what was used is free again
/// at most a 16th of the period later than a perfect log would say. `token-bucket` (GCRA) lets `burst` requests pass at once and then an even rate of the
/// limit in each period. For the latter two a month is 30 days and a year 365.
///
/// **Policies.** `local` counts in this process. `redis` (and `cluster`) counts each request in the store, all limits of it in one step and by the
/// store's clock: exact, however many instances there are. `hybrid` takes leases from the budget in the store and spends them here:
/// most requests need no round trip. With windows, all instances together never pass the limit; they may refuse up to `lease` × (instances − 1)
/// requests of a window too early, for what one instance holds the others do not get. With a token bucket up to `lease` × instances more
/// may come at once; the rate over time holds. When the store is away, `redis` and `hybrid` go on with limits of this instance alone, rather than
/// with none (`fault_tolerant`). On a Redis Cluster all limits of an entry with `limits` lie in one slot.
///
/// **Memory.** An instance remembers 262,144 callers, about 40 MB, whatever comes. When there are more, of a few callers the one that has used the
/// smallest part of its limit is forgotten and begins anew: floods of new addresses push out each other, not who is at a limit. In Redis a caller's counts
/// vanish by themselves when nothing of them is left.
///
/// **Answers** tell the limits in `X-RateLimit-Limit-*`, `X-RateLimit-Remaining-*` and `RateLimit-Limit`, `-Remaining`, `-Reset` (seconds; of the
/// tightest limit), and in `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers, all limits by name). Over
/// a limit they are 429 with `Retry-After`: the seconds after which the request would pass.
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
    /// How requests are counted.
    pub algorithm: Algorithm,
    /// With `algorithm: token-bucket`: how many requests may come at once. Of several periods, for the shortest. Default: the limit.
    #[schemars(range(min = 1))]
    pub burst: Option<u64>,
    /// Whose requests are counted together. Where a request has no such thing (no consumer, no such header), the address counts.
    pub limit_by: LimitBy,
    /// With `limit_by: header`: the header.
    pub header_name: Option<String>,
    /// With `limit_by: path`: the path whose requests are counted together.
    pub path: Option<String>,
    /// With `limit_by: claim`: the claim of the caller's token; `realm_access.tenant` reaches inside.
    pub claim: Option<String>,
    /// With `limit_by: template`: what is counted together, with `$(headers.x_tenant)`, `$(query_params.key)`, `$(claims.tenant)`, `$(consumer.username)`, `$(client.ip)`
    /// and the other expressions of `request-transformer`.
    pub template: Option<String>,
    /// Addresses of IPv4 that share so many bits count as one.
    #[schemars(range(min = 1, max = 32))]
    pub ipv4_prefix: u8,
    /// Addresses of IPv6 that share so many bits count as one: most callers own a whole /64.
    #[schemars(range(min = 1, max = 128))]
    pub ipv6_prefix: u8,
    /// More limits that hold at the same time.
    pub limits: Vec<Limit>,
    /// What a request costs. 0: nothing is counted, nothing is refused.
    pub cost: u64,
    /// What other requests cost: the first that fits counts.
    pub costs: Vec<Cost>,
    /// Where requests are counted.
    pub policy: Policy,
    /// With `policy: hybrid`: how many requests a lease takes from the budget. Default: a hundredth of the limit, at least 1.
    #[schemars(range(min = 1))]
    pub lease: Option<u64>,
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
    /// Read for Kong's sake: Weir writes every count at once, as with `-1`. What a higher one saves in Kong, `policy: hybrid` does here.
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

/// Kong's address of a Redis. Weir counts in the store that `store:` names instead. Kong Enterprise's further keys are read as well.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
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

/// A further limit. What it does not say is as above it.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limit {
    /// Its name in `RateLimit-Policy` and `RateLimit`, and where it is counted. Default: `limit_by`.
    pub name: Option<String>,
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
    /// How requests are counted.
    pub algorithm: Option<Algorithm>,
    /// With `algorithm: token-bucket`: how many requests may come at once.
    #[schemars(range(min = 1))]
    pub burst: Option<u64>,
    /// Whose requests are counted together.
    pub limit_by: Option<LimitBy>,
    /// With `limit_by: header`: the header.
    pub header_name: Option<String>,
    /// With `limit_by: path`: the path.
    pub path: Option<String>,
    /// With `limit_by: claim`: the claim.
    pub claim: Option<String>,
    /// With `limit_by: template`: what is counted together.
    pub template: Option<String>,
}

/// What some requests cost. All that is said must fit.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cost {
    /// Names of routes.
    pub routes: Vec<String>,
    /// Methods.
    pub methods: Vec<String>,
    /// Paths; with `*` at the end, their beginnings.
    pub paths: Vec<String>,
    /// What a request costs. 0: it is not counted and not refused.
    pub cost: u64,
}

/// How requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// In windows of the calendar.
    #[default]
    FixedWindow,
    /// In a window that moves along.
    SlidingWindow,
    /// In a bucket that drains at an even rate.
    TokenBucket,
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
    /// Those with the same value of `claim`.
    Claim,
    /// Those for which `template` makes the same text.
    Template,
}

impl LimitBy {
    pub(super) fn word(self) -> &'static str {
        match self {
            LimitBy::Consumer => "consumer",
            LimitBy::Credential => "credential",
            LimitBy::Ip => "ip",
            LimitBy::Service => "service",
            LimitBy::Header => "header",
            LimitBy::Path => "path",
            LimitBy::Claim => "claim",
            LimitBy::Template => "template",
        }
    }
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
    /// In leases from a budget in the store.
    Hybrid,
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
            algorithm: Algorithm::default(),
            burst: None,
            limit_by: LimitBy::default(),
            header_name: None,
            path: None,
            claim: None,
            template: None,
            ipv4_prefix: Prefixes::DEFAULT.v4,
            ipv6_prefix: Prefixes::DEFAULT.v6,
            limits: vec![],
            cost: 1,
            costs: vec![],
            policy: Policy::default(),
            lease: None,
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

/// The periods that have a name.
const PERIODS: [(&str, Span); 6] =
    [("second", Span::Seconds(1)), ("minute", Span::MINUTE), ("hour", Span::HOUR), ("day", Span::DAY), ("month", Span::Month), ("year", Span::Year)];

/// A period and what is allowed in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// `second`, `minute`, …
    pub period: String,
    pub span: Span,
    pub limit: u64,
}

/// The periods that are set, of all six in order; `what` names one of them.
pub(crate) fn periods(at: &Node, all: [Option<u64>; 6], what: &str) -> Result<Vec<Allowed>, Vec<Diagnostic>> {
    let set: Vec<Allowed> = PERIODS.iter().zip(all).filter_map(|((name, span), limit)| Some(Allowed { period: (*name).into(), span: *span, limit: limit? })).collect();
    let mut errors = Vec::new();
    if set.is_empty() {
        errors.push(wrong(at, "", format!("at least one {what} is wanted: `second`, `minute`, `hour`, `day`, `month` or `year`")));
    }
    for pair in set.windows(2) {
        if let [short, long] = pair
            && long.limit < short.limit
        {
            let message = format!("the limit for {}({}) cannot be lower than the limit for {}({})", long.period, long.limit, short.period, short.limit);
            errors.push(wrong(at, &long.period, message));
        }
    }
    for zero in set.iter().filter(|a| a.limit == 0) {
        errors.push(wrong(at, &zero.period, "a limit must be 1 or more"));
    }
    if errors.is_empty() { Ok(set) } else { Err(errors) }
}

/// One limit, checked: whose requests, and the rules for them.
pub(crate) struct Checked {
    /// Tells it from the other limits of the entry.
    pub label: String,
    pub by: By,
    pub rules: Vec<Rule>,
    /// Names of the rules' periods.
    pub periods: Vec<String>,
}

/// The configuration, checked.
pub(crate) struct Rules {
    pub limits: Vec<Checked>,
    pub cost: u64,
    pub costs: Vec<Fee>,
    pub prefixes: Prefixes,
    pub policy: Policy,
    /// Of [`Policy::Hybrid`], if not the default of each rule.
    pub lease: Option<u64>,
    pub fault_tolerant: bool,
    /// `None`: the answers tell nothing.
    pub told: Option<Fields>,
    pub status: StatusCode,
    pub message: String,
    /// Counted together with other entries of this name, instead of by scope.
    pub namespace: Option<String>,
}

/// A [`Cost`], checked.
pub(crate) struct Fee {
    routes: Vec<String>,
    methods: Vec<HttpMethod>,
    paths: Vec<String>,
    cost: u64,
}

impl Fee {
    fn fits(&self, cx: &RequestContext, req: &request::Parts) -> bool {
        let path = |wanted: &String| match wanted.strip_suffix('*') {
            Some(beginning) => req.uri.path().starts_with(beginning),
            None => req.uri.path() == wanted,
        };
        (self.routes.is_empty() || cx.route.as_ref().is_some_and(|route| self.routes.contains(&route.name)))
            && (self.methods.is_empty() || self.methods.contains(&req.method))
            && (self.paths.is_empty() || self.paths.iter().any(path))
    }
}

impl Rules {
    /// What a request costs.
    pub fn cost(&self, cx: &RequestContext, req: &request::Parts) -> u64 {
        self.costs.iter().find(|fee| fee.fits(cx, req)).map_or(self.cost, |fee| fee.cost)
    }
}

/// Whose requests are counted together, as it is written.
pub(super) struct Written<'a> {
    /// The field that says it.
    pub field: &'static str,
    pub by: LimitBy,
    pub header_name: Option<&'a String>,
    pub path: Option<&'a String>,
    pub claim: Option<&'a String>,
    pub template: Option<&'a String>,
}

/// Whose requests are counted together.
pub(super) fn by(at: &Node, written: &Written<'_>) -> Result<By, Diagnostic> {
    let needs = |field: &str| wrong(at, written.field, format!("`{}: {}` needs `{field}`", written.field, written.by.word()));
    Ok(match written.by {
        LimitBy::Consumer => By::Consumer,
        LimitBy::Credential => By::Credential,
        LimitBy::Ip => By::Ip,
        LimitBy::Service => By::Service,
        LimitBy::Header => By::Header(header_name(at, "header_name", written.header_name.ok_or_else(|| needs("header_name"))?)?),
        LimitBy::Path => match written.path.ok_or_else(|| needs("path"))? {
            path if path.starts_with('/') => By::Path(path.clone()),
            _ => return Err(wrong(at, "path", "a path begins with `/`")),
        },
        LimitBy::Claim => By::Claim(written.claim.ok_or_else(|| needs("claim"))?.split('.').map(str::to_owned).collect()),
        LimitBy::Template => By::Template(Template::parse(written.template.ok_or_else(|| needs("template"))?).map_err(|e| wrong(at, "template", e))?),
    })
}

/// The rules of a limit.
pub(super) fn rules_of(at: &Node, allowed: &[Allowed], algorithm: Algorithm, burst: Option<u64>) -> Result<Vec<Rule>, Diagnostic> {
    if burst.is_some() && algorithm != Algorithm::TokenBucket {
        return Err(wrong(at, "burst", "`burst` belongs to `algorithm: token-bucket`"));
    }
    if burst == Some(0) {
        return Err(wrong(at, "burst", "a burst must be 1 or more"));
    }
    let method = |shortest: bool, limit: u64| match algorithm {
        Algorithm::FixedWindow => Method::Fixed,
        Algorithm::SlidingWindow => Method::Sliding,
        Algorithm::TokenBucket => Method::Bucket { burst: burst.filter(|_| shortest).unwrap_or(limit) },
    };
    Ok(allowed.iter().enumerate().map(|(i, a)| Rule { limit: a.limit, span: a.span, method: method(i == 0, a.limit) }).collect())
}

/// A status for refusals.
pub(super) fn status(at: &Node, code: u16) -> Result<StatusCode, Diagnostic> {
    StatusCode::from_u16(code).ok().filter(|s| s.is_client_error() || s.is_server_error()).ok_or_else(|| wrong(at, "error_code", "a status between 400 and 599 is wanted"))
}

fn fee(at: &Node, cost: &Cost) -> Result<Fee, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    if cost.routes.is_empty() && cost.methods.is_empty() && cost.paths.is_empty() {
        errors.push(wrong(at, "", "say which requests: `routes`, `methods` or `paths`"));
    }
    for path in cost.paths.iter().filter(|p| !p.starts_with('/')) {
        errors.push(wrong(at, "paths", format!("`{}`: a path begins with `/`", path.escape_debug())));
    }
    let mut methods = Vec::new();
    for name in &cost.methods {
        match HttpMethod::from_bytes(name.to_ascii_uppercase().as_bytes()) {
            Ok(method) => methods.push(method),
            Err(_) => errors.push(wrong(at, "methods", format!("`{}` is not a method", name.escape_debug()))),
        }
    }
    match errors.is_empty() {
        true => Ok(Fee { routes: cost.routes.clone(), methods, paths: cost.paths.clone(), cost: cost.cost }),
        false => Err(errors),
    }
}

impl Config {
    /// The limit at the top of the entry and those in its list, each with its place.
    fn every_limit<'a>(&'a self, at: &'a Node) -> Vec<(&'a Node, Limit)> {
        let own = Limit {
            name: None,
            second: self.second,
            minute: self.minute,
            hour: self.hour,
            day: self.day,
            month: self.month,
            year: self.year,
            algorithm: None,
            burst: self.burst,
            ..Limit::default()
        };
        let has_own = [own.second, own.minute, own.hour, own.day, own.month, own.year].iter().any(Option::is_some);
        let listed = self.limits.iter().enumerate().map(|(i, limit)| (at.get("limits").and_then(|l| l.items().get(i)).unwrap_or(at), limit.clone()));
        (has_own || self.limits.is_empty()).then_some((at, own)).into_iter().chain(listed).collect()
    }

    fn checked(&self, at: &Node, limit: &Limit) -> Result<Checked, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let mut note = |found: Vec<Diagnostic>| errors.extend(found);
        let allowed = periods(at, [limit.second, limit.minute, limit.hour, limit.day, limit.month, limit.year], "limit").map_err(&mut note).ok();
        let limit_by = limit.limit_by.unwrap_or(self.limit_by);
        let written = Written {
            field: "limit_by",
            by: limit_by,
            header_name: limit.header_name.as_ref().or(self.header_name.as_ref()),
            path: limit.path.as_ref().or(self.path.as_ref()),
            claim: limit.claim.as_ref().or(self.claim.as_ref()),
            template: limit.template.as_ref().or(self.template.as_ref()),
        };
        let by = by(at, &written).map_err(|e| note(vec![e])).ok();
        let rules = rules_of(at, allowed.as_deref().unwrap_or_default(), limit.algorithm.unwrap_or(self.algorithm), limit.burst).map_err(|e| note(vec![e])).ok();
        let label = limit.name.clone().unwrap_or_else(|| limit_by.word().into());
        if label.is_empty() || !label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            note(vec![wrong(at, "name", "a name has letters, digits, `-` and `_`")]);
        }
        match (allowed, by, rules) {
            (Some(allowed), Some(by), Some(rules)) if errors.is_empty() => Ok(Checked { label, by, rules, periods: allowed.into_iter().map(|a| a.period).collect() }),
            _ => Err(errors),
        }
    }

    /// Checks it.
    pub(super) fn rules(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let mut limits: Vec<Checked> = Vec::new();
        for (place, limit) in self.every_limit(at) {
            match self.checked(place, &limit) {
                Ok(checked) if limits.iter().any(|l| l.label == checked.label) => {
                    errors.push(wrong(place, "limit_by", format!("there is another limit `{}`: give this one a `name`", checked.label)));
                }
                Ok(checked) => limits.push(checked),
                Err(found) => errors.extend(found),
            }
        }
        let mut costs = Vec::new();
        for (i, cost) in self.costs.iter().enumerate() {
            let place = at.get("costs").and_then(|l| l.items().get(i)).unwrap_or(at);
            match fee(place, cost) {
                Ok(fee) => costs.push(fee),
                Err(found) => errors.extend(found),
            }
            errors.extend(never_paid(place, cost.cost, &limits));
        }
        errors.extend(never_paid(at, self.cost, &limits));
        if self.lease.is_some() && self.policy != Policy::Hybrid {
            errors.push(wrong(at, "lease", "`lease` belongs to `policy: hybrid`"));
        }
        let status = status(at, self.error_code).map_err(|e| errors.push(e)).ok();
        match status {
            Some(status) if errors.is_empty() => Ok(Rules {
                told: (!self.hide_client_headers).then(|| Fields::new(&limits)),
                limits,
                cost: self.cost,
                costs,
                prefixes: Prefixes { v4: self.ipv4_prefix, v6: self.ipv6_prefix },
                policy: self.policy,
                lease: self.lease,
                fault_tolerant: self.fault_tolerant,
                status,
                message: self.error_message,
                namespace: None,
            }),
            _ => Err(errors),
        }
    }
}

/// A cost over what a limit allows at once could never pass.
fn never_paid(at: &Node, cost: u64, limits: &[Checked]) -> Option<Diagnostic> {
    let mut every = limits.iter().flat_map(|l| l.rules.iter().zip(&l.periods));
    let (rule, period) = every.find(|(rule, _)| rule.most() < cost)?;
    Some(wrong(at, "cost", format!("a cost of {cost} can never be paid: the limit for {period} allows {} at once", rule.most())))
}

/// What is read for Kong's sake, and probably expected to do something.
pub(crate) fn not_used(at: &Node) -> Vec<Diagnostic> {
    let counts = at.get("policy").or(at.get("strategy")).and_then(Node::text).is_some_and(|p| p != "local");
    let old = ["redis", "redis_host"].into_iter().find(|field| at.get(field).is_some());
    let address = old.filter(|_| counts).map(|field| doubtful(at, field, "not used: Weir counts in the store that `store:` names"));
    let rate = at.get("sync_rate").and_then(Node::text).and_then(|r| r.parse::<f64>().ok()).filter(|r| *r > 0.0);
    let sync = rate.map(|_| doubtful(at, "sync_rate", "not used: every request is counted at once; `policy: hybrid` is what saves round trips"));
    address.into_iter().chain(sync).collect()
}
