//! `rate-limiting`: so many requests in a second, a minute, … a year.
//!
//! ```text
//! who (one caller for each limit) ─► local:  Meters, a table of this process
//!                                 ├► redis:  Counters::charge, one step for all limits, by the store's clock
//!                                 └► hybrid: Leases, spent here and fetched from Counters
//! ```
//! The arithmetic is `weir_store::limits` everywhere.

mod advanced;
mod leases;
mod settings;
mod told;
mod who;

pub use advanced::Advanced;
pub use settings::{Config, Policy, Redis};
pub(crate) use settings::{Allowed, not_used, periods};
pub(crate) use told::number;
pub(crate) use who::{By, Prefixes, Who};

use crate::{Configured, Live};
use async_trait::async_trait;
use http::{StatusCode, header, request};
use leases::{Leases, Wanted};
use settings::{Checked, Rules};
use smallvec::SmallVec;
use std::sync::Arc;
use prometheus::IntCounter;
use told::seconds;
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Environment, Flow, Phases, Plugin, Reply, RequestContext, Sight};
use weir_store::limits::{Asked, Clock, How, Key, Meters, Method, Outcome};
use weir_store::{Charge, StoreError, StoreResult};

/// What this process has counted. Outlives configurations, so that a reload forgives nobody.
#[derive(Default)]
pub(crate) struct Counts {
    pub meters: Meters,
    pub clock: Clock,
    leases: Leases,
}

impl Configured for Config {
    const NAME: &'static str = "rate-limiting";
    const PRIORITY: i32 = 910;
    const EXAMPLE: &'static str = "second: 50
hour: 10000
limit_by: consumer
policy: redis
limits:
  - {second: 100, limit_by: ip, algorithm: token-bucket, burst: 200}
costs:
  - {methods: [POST], paths: [/api/export*], cost: 10}
";
    type Ready = Ready;

    fn ready(self, at: &Node) -> Result<Ready, Vec<Diagnostic>> {
        self.rules(at).map(Ready)
    }

    fn warnings(at: &Node) -> Vec<Diagnostic> {
        not_used(at)
    }

    fn build(ready: Ready, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin> {
        Arc::new(RateLimiting::new(Config::NAME, ready.0, env, live))
    }
}

/// The configuration, checked.
pub struct Ready(Rules);

struct RateLimiting {
    name: &'static str,
    rules: Rules,
    scope: String,
    limits: Vec<Place>,
    counts: Arc<Counts>,
    environment: Arc<Environment>,
    allowed: IntCounter,
    limited: IntCounter,
}

/// What the store is asked for.
enum Prepared<'a> {
    Exact(Vec<Charge>),
    Leased(Vec<Wanted<'a>>),
}

/// Where a limit is counted.
struct Place {
    /// In this process.
    seed: Key,
    /// In the store: the ends of its rules' names.
    ends: Vec<String>,
}

impl Place {
    fn new(counts: &Counts, scope: &str, limit: &Checked) -> Place {
        let end = |method: Method| match method {
            Method::Fixed => "fixed",
            Method::Sliding => "sliding",
            Method::Bucket { .. } => "bucket",
        };
        let ends = limit.rules.iter().zip(&limit.periods).map(|(rule, period)| format!(":{}:{period}:{}", limit.label, end(rule.method))).collect();
        Place { seed: counts.meters.key((scope, &limit.label)), ends }
    }

    /// Names of a caller's counts in the store. What is in braces is what a cluster places keys by: the counts of one request share
    /// it. So it is the caller, or, if a request has several, the scope.
    fn names(&self, scope: &str, who: &Who<'_>, alone: bool) -> Vec<String> {
        let name = who.name.shown();
        let first = if alone { format!("limit:{{{scope}|{}|{name}}}", who.kind) } else { format!("limit:{{{scope}}}|{}|{name}", who.kind) };
        self.ends.iter().map(|end| format!("{first}{end}")).collect()
    }
}

impl RateLimiting {
    fn new(name: &'static str, rules: Rules, env: &BuildEnv<'_>, live: &Live) -> RateLimiting {
        let scope = rules.namespace.clone().unwrap_or_else(|| env.scope.clone());
        let limits = rules.limits.iter().map(|limit| Place::new(&live.limits, &scope, limit)).collect();
        let outcome = |outcome| env.environment.metrics.plugin_counter(name, outcome);
        let (allowed, limited) = (outcome("allowed"), outcome("limited"));
        RateLimiting { name, rules, scope, limits, counts: live.limits.clone(), environment: env.environment.clone(), allowed, limited }
    }

    /// Each limit's caller.
    fn callers<'a, 'r: 'a>(&'r self, cx: &'a RequestContext, req: &'a request::Parts) -> impl Iterator<Item = (&'r Checked, &'r Place, Who<'a>)> {
        self.rules.limits.iter().zip(&self.limits).map(move |(limit, place)| (limit, place, limit.by.who(cx, req, self.rules.prefixes)))
    }

    fn here(&self, cx: &RequestContext, req: &request::Parts, cost: u64) -> Outcome {
        let asked: SmallVec<[Asked<'_>; 2]> =
            self.callers(cx, req).map(|(limit, place, who)| Asked::new(self.counts.meters.key((place.seed, &who)), &limit.rules, cost)).collect();
        self.counts.meters.charge(self.counts.clock.at(cx.started), &asked, How::AllOrNone)
    }

    fn prepare<'a>(&'a self, cx: &RequestContext, req: &request::Parts, cost: u64) -> Prepared<'a> {
        let alone = self.limits.len() == 1;
        if self.rules.policy == Policy::Hybrid {
            let wanted = |(limit, place, who): (&'a Checked, &'a Place, Who<'_>)| Wanted {
                // Under changed rules what was leased or refused before does not count.
                key: self.counts.meters.key((place.seed, &place.ends, &limit.rules, &who)),
                rules: &limit.rules,
                names: place.names(&self.scope, &who, alone),
            };
            return Prepared::Leased(self.callers(cx, req).map(wanted).collect());
        }
        let charges = |(limit, place, who): (&'a Checked, &'a Place, Who<'_>)| {
            let names = place.names(&self.scope, &who, alone);
            limit.rules.iter().zip(names).map(move |(rule, key)| Charge::new(key, *rule, cost))
        };
        Prepared::Exact(self.callers(cx, req).flat_map(charges).collect())
    }

    async fn in_store(&self, prepared: Prepared<'_>, cost: u64) -> StoreResult<Outcome> {
        let store = &*self.environment.store.counters;
        match prepared {
            Prepared::Leased(wanted) => self.counts.leases.take(store, || self.counts.clock.now(), &wanted, cost, self.rules.lease).await,
            Prepared::Exact(charges) => {
                let charged = store.charge(&charges, How::AllOrNone).await?;
                Ok(Outcome { allowed: charged.allowed, readings: charged.readings.into() })
            }
        }
    }

    /// Writes down what the answer will tell, and answers if a limit is passed.
    fn decide(&self, cx: &mut RequestContext, req: &request::Parts, outcome: &Outcome) -> Flow {
        if outcome.allowed { &self.allowed } else { &self.limited }.inc();
        if let Some(fields) = &self.rules.told {
            fields.tell(&outcome.readings, &mut cx.answer_fields);
        }
        if outcome.allowed {
            return Flow::Continue;
        }
        let mut reply = Reply::error(self.name, cx, req.headers.get(header::ACCEPT), self.rules.status, &self.rules.message);
        if self.rules.told.is_some() {
            let wait = outcome.readings.iter().map(|r| r.wait).filter(|wait| *wait < u64::MAX).max().unwrap_or(0);
            reply.headers.insert(header::RETRY_AFTER, number(seconds(wait).max(1)));
        }
        Flow::Reply(reply)
    }

    fn away(&self, cx: &mut RequestContext, req: &request::Parts, cost: u64, error: &StoreError) -> Flow {
        tracing::warn!(plugin = self.name, scope = self.scope, %error, "the store did not count");
        if !self.rules.fault_tolerant {
            self.environment.metrics.plugin(self.name, "error");
            let accept = req.headers.get(header::ACCEPT);
            return Flow::Reply(Reply::error(self.name, cx, accept, StatusCode::INTERNAL_SERVER_ERROR, "An unexpected error occurred"));
        }
        self.environment.metrics.plugin(self.name, "fallback");
        let outcome = self.here(cx, req, cost);
        self.decide(cx, req, &outcome)
    }
}

#[async_trait]
impl Plugin for RateLimiting {
    fn phases(&self) -> Phases {
        if self.rules.policy == Policy::Local { Phases::REQUEST } else { Phases::REQUEST_WAIT }
    }

    fn sees_of_request(&self) -> Sight {
        // An error is written in the form that the client accepts.
        let mut names = vec![header::ACCEPT];
        for limit in &self.rules.limits {
            match &limit.by {
                By::Header(name) => names.push(name.clone()),
                By::Template(_) => return Sight::All,
                By::Consumer | By::Credential | By::Ip | By::Service | By::Path(_) | By::Claim(_) => {}
            }
        }
        Sight::Only(names)
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        match self.rules.cost(cx, req) {
            0 => Flow::Continue,
            cost => {
                let outcome = self.here(cx, req, cost);
                self.decide(cx, req, &outcome)
            }
        }
    }

    async fn request_wait(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let cost = self.rules.cost(cx, req);
        if cost == 0 {
            return Flow::Continue;
        }
        let prepared = self.prepare(cx, req, cost);
        match self.in_store(prepared, cost).await {
            Ok(outcome) => self.decide(cx, req, &outcome),
            Err(error) => self.away(cx, req, cost, &error),
        }
    }
}

#[cfg(test)]
mod tests;
