//! `rate-limiting-advanced`: the spelling of Kong Enterprise for the same plugin.

use super::settings::{Algorithm, Allowed, Checked, LimitBy, Policy, Redis, Rules, Written, by, rules_of, status};
use super::told::Fields;
use super::who::Prefixes;
use super::{RateLimiting, Ready, not_used};
use crate::{Configured, Live, wrong};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Plugin};
use weir_store::limits::Span;

/// `rate-limiting` in the spelling of Kong Enterprise: limits beside the lengths of their windows, in seconds, for windows that slide (the
/// default) or are fixed. Everything else is as in `rate-limiting`, where all of it is told; sliding windows are Weir's, which never let
/// more than the limit pass.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Advanced {
    /// How many requests, for each of `window_size`.
    pub limit: Vec<u64>,
    /// Lengths of the windows, in seconds.
    pub window_size: Vec<u64>,
    /// Whether windows move along or begin at multiples of their length.
    pub window_type: WindowType,
    /// Whose requests are counted together. Where a request has no such thing, the address counts.
    pub identifier: Identifier,
    /// With `identifier: header`: the header.
    pub header_name: Option<String>,
    /// With `identifier: path`: the path whose requests are counted together.
    pub path: Option<String>,
    /// Entries with the same name here count together. Default: each for itself.
    pub namespace: Option<String>,
    /// Where requests are counted.
    pub strategy: Strategy,
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
    /// Read for Kong's sake: Weir writes every count at once.
    pub sync_rate: Option<f64>,
    /// Read for Kong's sake: counts lie in no dictionary here.
    pub dictionary_name: Option<String>,
    /// Read for Kong's sake: a request over a limit is charged to none.
    pub disable_penalty: Option<bool>,
    /// Read for Kong's sake: there are no locks here.
    pub lock_dictionary_name: Option<String>,
    /// Read for Kong's sake: `Retry-After` is exact.
    pub retry_after_jitter_max: Option<f64>,
    /// Of Kong Enterprise: only null is understood. `limits` of `rate-limiting` has templates of several parts.
    pub compound_identifier: Option<serde_json::Value>,
    /// Of Kong Enterprise: only null is understood. Attach the plugin to the groups.
    pub consumer_groups: Option<serde_json::Value>,
    /// Of Kong Enterprise, for `consumer_groups`: only `false` is understood.
    pub enforce_consumer_groups: Option<bool>,
    /// Of Kong Enterprise: only null is understood. `costs` of `rate-limiting` weighs requests.
    pub counter_key: Option<serde_json::Value>,
    /// Of Kong Enterprise: only null, or `enabled: false`, is understood.
    pub throttling: Option<serde_json::Value>,
}

/// How windows lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WindowType {
    /// They move along.
    #[default]
    Sliding,
    /// They begin at multiples of their length.
    Fixed,
}

/// Whose requests are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Identifier {
    /// The consumer's, or the subject's of a verified token.
    #[default]
    Consumer,
    /// The credential's.
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

impl Identifier {
    fn limit_by(self) -> LimitBy {
        match self {
            Identifier::Consumer => LimitBy::Consumer,
            Identifier::Credential => LimitBy::Credential,
            Identifier::Ip => LimitBy::Ip,
            Identifier::Service => LimitBy::Service,
            Identifier::Header => LimitBy::Header,
            Identifier::Path => LimitBy::Path,
        }
    }
}

/// Where requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// In this process.
    #[default]
    Local,
    /// In the store, exactly, over all instances.
    Redis,
    /// The same as `redis`.
    Cluster,
}

impl Default for Advanced {
    fn default() -> Self {
        Advanced {
            limit: vec![],
            window_size: vec![],
            window_type: WindowType::default(),
            identifier: Identifier::default(),
            header_name: None,
            path: None,
            namespace: None,
            strategy: Strategy::default(),
            fault_tolerant: true,
            hide_client_headers: false,
            error_code: 429,
            error_message: "API rate limit exceeded".into(),
            redis: None,
            sync_rate: None,
            dictionary_name: None,
            disable_penalty: None,
            lock_dictionary_name: None,
            retry_after_jitter_max: None,
            compound_identifier: None,
            consumer_groups: None,
            enforce_consumer_groups: None,
            counter_key: None,
            throttling: None,
        }
    }
}

/// The window of so many seconds. Those that have a name are told by it.
fn window(seconds: u64) -> (String, Span) {
    let named = match seconds {
        1 => "second",
        60 => "minute",
        3600 => "hour",
        86_400 => "day",
        2_592_000 => "month",
        31_536_000 => "year",
        _ => "",
    };
    (if named.is_empty() { seconds.to_string() } else { named.into() }, Span::Seconds(seconds))
}

impl Advanced {
    fn allowed(&self, at: &Node) -> Result<Vec<Allowed>, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        if self.limit.is_empty() {
            errors.push(wrong(at, "limit", "at least one limit is wanted"));
        }
        if self.limit.len() != self.window_size.len() {
            errors.push(wrong(at, "window_size", format!("{} limits need as many windows, not {}", self.limit.len(), self.window_size.len())));
        }
        for (field, numbers) in [("limit", &self.limit), ("window_size", &self.window_size)] {
            if numbers.contains(&0) {
                errors.push(wrong(at, field, "numbers of 1 or more are wanted"));
            }
        }
        let mut pairs: Vec<(u64, u64)> = self.window_size.iter().copied().zip(self.limit.iter().copied()).collect();
        pairs.sort_unstable();
        for pair in pairs.windows(2) {
            match pair {
                [(short, _), (long, _)] if short == long => errors.push(wrong(at, "window_size", format!("there are two windows of {short} s"))),
                [(short, few), (long, many)] if many < few => {
                    errors.push(wrong(at, "limit", format!("the limit for {long} s ({many}) cannot be lower than the limit for {short} s ({few})")));
                }
                _ => {}
            }
        }
        let allowed = |(seconds, limit)| {
            let (period, span) = window(seconds);
            Allowed { period, span, limit }
        };
        if errors.is_empty() { Ok(pairs.into_iter().map(allowed).collect()) } else { Err(errors) }
    }
}

impl Configured for Advanced {
    const NAME: &'static str = "rate-limiting-advanced";
    const PRIORITY: i32 = 910;
    const EXAMPLE: &'static str = "limit: [10, 300]\nwindow_size: [1, 60]\nidentifier: ip\nstrategy: redis\n";
    type Ready = Ready;

    fn ready(self, at: &Node) -> Result<Ready, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let allowed = self.allowed(at).map_err(|found| errors.extend(found)).ok();
        let throttles = self.throttling.as_ref().is_some_and(|value| value.get("enabled") != Some(&serde_json::Value::Bool(false)));
        for (field, used) in [
            ("compound_identifier", self.compound_identifier.is_some()),
            ("consumer_groups", self.consumer_groups.is_some()),
            ("enforce_consumer_groups", self.enforce_consumer_groups == Some(true)),
            ("counter_key", self.counter_key.is_some()),
            ("throttling", throttles),
        ] {
            if used {
                errors.push(wrong(at, field, format!("`{field}` of Kong Enterprise is not supported")));
            }
        }
        let limit_by = self.identifier.limit_by();
        let written = Written { field: "identifier", by: limit_by, header_name: self.header_name.as_ref(), path: self.path.as_ref(), claim: None, template: None };
        let by = by(at, &written).map_err(|e| errors.push(e)).ok();
        let status = status(at, self.error_code).map_err(|e| errors.push(e)).ok();
        let (Some(allowed), Some(by), Some(status)) = (allowed, by, status) else { return Err(errors) };
        if !errors.is_empty() {
            return Err(errors);
        }
        let algorithm = match self.window_type {
            WindowType::Sliding => Algorithm::SlidingWindow,
            WindowType::Fixed => Algorithm::FixedWindow,
        };
        let rules = rules_of(at, &allowed, algorithm, None).map_err(|e| vec![e])?;
        let limits = vec![Checked { label: limit_by.word().into(), by, rules, periods: allowed.into_iter().map(|a| a.period).collect() }];
        Ok(Ready(Rules {
            told: (!self.hide_client_headers).then(|| Fields::new(&limits)),
            limits,
            cost: 1,
            costs: vec![],
            prefixes: Prefixes::DEFAULT,
            policy: if self.strategy == Strategy::Local { Policy::Local } else { Policy::Redis },
            lease: None,
            fault_tolerant: self.fault_tolerant,
            status,
            message: self.error_message,
            namespace: self.namespace,
        }))
    }

    fn warnings(at: &Node) -> Vec<Diagnostic> {
        not_used(at)
    }

    fn build(ready: Ready, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin> {
        Arc::new(RateLimiting::new(Advanced::NAME, ready.0, env, live))
    }
}
