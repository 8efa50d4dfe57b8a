//! Page rules: which documents may be cached, under which key, and what a fill of them asks for.

use http::{HeaderValue, Uri};
use std::{collections::HashMap, sync::Arc, time::Duration};
use weir_cache::{Freshness, Gate, Plan, Policy, keys};
use weir_config::{CacheSwitch, Edge, Encoding, PageRule, SignedIn, Ttl};

/// What browsers are told of a cached page: keep it, but ask before each use. How long Weir keeps it is Weir's business.
const CLIENT_CONTROL: &str = "public, max-age=0, must-revalidate";
/// A page that its own answer makes cacheable is kept at most this long.
const ORIGIN_CAP: Duration = Duration::from_secs(24 * 3600);

/// First part of every page's key.
const CLASS: &str = "html_cache";

/// All page rules, indexed.
pub struct Pages {
    exact: HashMap<String, usize, ahash::RandomState>,
    /// Ordered: longer prefix first, `/*` before `/**`.
    wild: Vec<(Wild, usize)>,
    rules: Vec<Page>,
    epoch: [Arc<str>; 2],
    canonical: Option<String>,
    ignore: Vec<String>,
}

struct Wild {
    prefix: String,
    deep: bool,
}

/// A page rule, compiled.
pub struct Page {
    /// As written.
    pub rule: PageRule,
    policy: Arc<Policy>,
}

/// A document that may be cached: where it is kept and how it is asked for.
pub struct PagePlan<'a> {
    /// The rule that won.
    pub page: &'a Page,
    /// For the engine.
    pub plan: Plan,
    /// Host that the fill asks for.
    pub host: String,
    /// Path and query of the fill: only what is in the key.
    pub target: Uri,
}

/// Where a page is kept, as the fast lane knows it.
pub struct PageKey<'a> {
    /// Place of the rule that won, as in [`Pages::rules`].
    pub rule: usize,
    /// That rule.
    pub page: &'a Page,
    /// First part of the stored key.
    pub epoch: &'a str,
    /// Length of the host in the key.
    host: usize,
}

impl PageKey<'_> {
    /// Host and target that a key names: what a fill of it asks for.
    pub fn parts<'k>(&self, key: &'k str) -> (&'k str, &'k str) {
        key.get(CLASS.len() + 1..).and_then(|rest| rest.split_at_checked(self.host)).unwrap_or_default()
    }
}

impl Pages {
    /// Compiles the rules.
    ///
    /// Errors: in words.
    pub fn new(edge: &Edge) -> Result<Pages, String> {
        let mut pages = Pages {
            exact: HashMap::default(),
            wild: Vec::new(),
            rules: Vec::new(),
            // The scheme is no part of the shown key, but a page may depend on it.
            epoch: ["http", "https"].map(|scheme| Arc::from(format!("{}:{scheme}:", edge.deployment))),
            canonical: edge.canonical_host.as_deref().and_then(keys::canonical_host),
            ignore: edge.ignore_query.clone(),
        };
        for rule in &edge.pages {
            let index = pages.rules.len();
            if let Some(prefix) = rule.path.strip_suffix("/**") {
                pages.wild.push((Wild { prefix: prefix.to_string(), deep: true }, index));
            } else if let Some(prefix) = rule.path.strip_suffix("/*") {
                pages.wild.push((Wild { prefix: prefix.to_string(), deep: false }, index));
            } else if pages.exact.insert(keys::normalize_path(&rule.path).into_owned(), index).is_some() {
                return Err(format!("two rules for {}", rule.path));
            }
            pages.rules.push(compile(rule, &edge.encodings));
        }
        pages.wild.sort_by_key(|(w, _)| (std::cmp::Reverse(w.prefix.len()), w.deep));
        Ok(pages)
    }

    /// The most specific rule for a normalized path.
    pub fn find(&self, path: &str) -> Option<&Page> {
        self.index(path).and_then(|index| self.rules.get(index))
    }

    fn index(&self, path: &str) -> Option<usize> {
        if let Some(&index) = self.exact.get(path) {
            return Some(index);
        }
        let fits = |w: &Wild| match path.strip_prefix(w.prefix.as_str()) {
            Some("") => w.deep,
            Some(rest) => rest.starts_with('/') && (w.deep || (rest.len() > 1 && !rest[1..].contains('/'))),
            None => false,
        };
        self.wild.iter().find(|(w, _)| fits(w)).map(|(_, index)| *index)
    }

    /// The plan for a document, if a rule wants it cached. `host` as the client sent it.
    pub fn plan(&self, https: bool, host: &str, uri: &Uri) -> Option<PagePlan<'_>> {
        let path = keys::normalize_path(uri.path());
        let page = self.find(&path)?;
        if page.rule.cache == CacheSwitch::Never {
            return None;
        }
        let host = match &self.canonical {
            Some(canonical) => canonical.clone(),
            None => keys::canonical_host(host)?,
        };
        let rule = keys::QueryRule { allow: Some(&page.rule.query), ignore: &self.ignore };
        let query = keys::reduce_query(uri.query().unwrap_or(""), rule);
        let target = format!("{path}{}", query.key).parse().ok()?;
        let key = keys::page_key(CLASS, &host, &path, &query);
        let plan = Plan { key, epoch: self.epoch[usize::from(https)].clone(), policy: page.policy.clone() };
        Some(PagePlan { page, plan, host, target })
    }

    /// The same key as [`Pages::plan`] makes, written into `key`: for a path and a host that are normalized and canonical as they stand.
    /// Allocates nothing where there is no query.
    pub fn key_of(&self, https: bool, host: &str, path: &str, query: Option<&str>, key: &mut String) -> Option<PageKey<'_>> {
        let rule = self.index(path)?;
        let page = self.rules.get(rule)?;
        if page.rule.cache == CacheSwitch::Never {
            return None;
        }
        let host = self.canonical.as_deref().unwrap_or(host);
        key.clear();
        keys::write_page_key(key, CLASS, host, path);
        if let Some(query) = query {
            key.push_str(&keys::reduce_query(query, keys::QueryRule { allow: Some(&page.rule.query), ignore: &self.ignore }).key);
        }
        Some(PageKey { rule, page, epoch: &self.epoch[usize::from(https)], host: host.len() })
    }

    /// First parts of all stored keys.
    pub fn epochs(&self) -> &[Arc<str>] {
        &self.epoch
    }

    /// Every rule with its path, for the banner.
    pub fn rules(&self) -> impl Iterator<Item = &PageRule> {
        self.rules.iter().map(|p| &p.rule)
    }
}

impl Page {
    /// What the engine is told.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether signed-in visitors get the shared page.
    pub fn shared_by_all(&self) -> bool {
        self.rule.signed_in == SignedIn::Share
    }
}

fn compile(rule: &PageRule, encodings: &[Encoding]) -> Page {
    let stale = |d: Option<weir_config::Millis>| d.map(|d| d.get()).unwrap_or_default();
    let freshness = match rule.ttl {
        Ttl::For(ttl) => Freshness::For { ttl, override_control: rule.override_cache_control },
        Ttl::Origin => Freshness::Origin { heuristic: rule.heuristic.clamp(0.0, 1.0), cap: ORIGIN_CAP, default: None },
    };
    let policy = Policy {
        name: rule.path.clone(),
        freshness,
        gate: Gate::Html,
        statuses: vec![200, 404, 410],
        max_size: rule.max_size.0,
        stale_while_revalidate: stale(rule.stale_while_revalidate),
        stale_if_error: stale(rule.stale_if_error),
        tags: rule.tags.clone(),
        honour_request: rule.honour_request,
        early_refresh_beta: rule.early_refresh.max(0.0),
        hit_for_miss: Duration::from_secs(10),
        lease: Duration::from_secs(5),
        max_wait: Duration::from_secs(30),
        max_fills: rule.max_fills.map(|n| n as usize),
        client_cache_control: Some(HeaderValue::from_static(CLIENT_CONTROL)),
        encodings: weir_gateway::codings(rule.encodings.as_deref().unwrap_or(encodings)),
    };
    Page { policy: Arc::new(policy), rule: rule.clone() }
}
