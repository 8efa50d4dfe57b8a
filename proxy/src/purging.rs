//! Purges, as the admin port and the `PURGE` method ask for them: from a page's address to the engine's terms, and the warm-up after it.

use crate::{
    live::{EdgeRules, Live, Weir},
    warm,
};
use http::{HeaderMap, Method, StatusCode, Uri, header, request};
use std::{net::IpAddr, sync::Arc, time::Duration};
use weir_cache::{Purge, PurgeReport, outdated};
use weir_config::PurgeAccess;
use weir_gateway::{Client, router};

/// Pages that are asked for again after a purge, at most.
const WARMED: usize = 1000;

/// The engine's terms for a page: one for each scheme, for a purge means the page and not the way to it.
///
/// Errors: why there is no such page.
pub fn page(live: &Live, host: &str, uri: &Uri) -> Result<Vec<Purge>, String> {
    let edge = live.edge.as_ref().ok_or("there is no edge section: purge by `key`")?;
    [false, true]
        .into_iter()
        .map(|https| {
            let plan = edge.pages.plan(https, host, uri).ok_or_else(|| format!("no page rule caches {}", uri.path()))?;
            Ok(Purge::Key { epoch: plan.plan.epoch.to_string(), key: plan.plan.key })
        })
        .collect()
}

/// An unsafe request as it came, among the extensions of its context: if it succeeds, what is stored at its address is out of date (RFC 9111
/// section 4.4).
#[derive(Debug, Clone)]
pub struct Unsafe {
    /// Path and query.
    pub uri: Uri,
    /// Its fields.
    pub headers: HeaderMap,
}

impl Unsafe {
    /// Of this request.
    pub fn of(request: &request::Parts) -> Unsafe {
        Unsafe { uri: request.uri.clone(), headers: request.headers.clone() }
    }
}

/// Forgets what a successful unsafe request outdates: what is stored at its own address, and at those that its answer names: the page, if a rule
/// keeps it (rules may say that theirs do not go so), and what the route holds that a GET for it would take. A page's address means both schemes.
/// `fields`: the request's; `answer`: the answer's.
pub fn outdate(weir: &Arc<Weir>, live: &Live, client: &Client, uri: &Uri, fields: &HeaderMap, status: StatusCode, answer: &HeaderMap) {
    if !outdated::may_have_changed(status) {
        return;
    }
    let host = &client.host;
    let named = outdated::named(answer, client.scheme.as_str(), host, uri);
    let mut all = Vec::new();
    for uri in std::iter::once(uri).chain(&named) {
        let pages = live.edge.iter().flat_map(|edge| [false, true].map(|https| edge.pages.plan(https, host, uri))).flatten();
        let pages = pages.filter(|plan| plan.page.rule.invalidate);
        all.extend(pages.map(|plan| Purge::Key { epoch: plan.plan.epoch.to_string(), key: plan.plan.key }));
        if !live.snapshot.may_hold {
            continue;
        }
        let found = live.snapshot.router.find(&router::Query {
            scheme: client.scheme.as_str(),
            method: &Method::GET,
            host,
            port: client.port,
            path: uri.path(),
            headers: fields,
            sni: client.sni.as_deref(),
        });
        if let Some(route) = found.and_then(|found| live.snapshot.routes.get(found.route)) {
            all.extend(route.chains.base.holds(route, host, uri));
        }
    }
    if !all.is_empty() {
        weir.environment.cache.invalidate(&all);
    }
}

/// A page by its address, `https://host/path?query`.
///
/// Errors: why it is none.
pub fn page_by_url(live: &Live, url: &str) -> Result<Vec<Purge>, String> {
    let uri: Uri = url.parse().map_err(|_| format!("`{url}` is not a URL"))?;
    let host = uri.authority().map(|a| a.as_str().to_string()).ok_or("the URL has no host")?;
    page(live, &host, &uri)
}

/// Everything whose address begins so: `host/path`, or `/path` on all hosts.
pub fn prefix(text: &str) -> Purge {
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    let at = text.find('/').unwrap_or(text.len());
    let (host, path) = text.split_at(at);
    let path = if path.is_empty() { "/" } else { path };
    Purge::Prefix { host: (!host.is_empty()).then(|| host.to_string()), path: path.to_string() }
}

/// Carries purges out; the sums. With `warm`, what was purged is asked for again in the background.
pub async fn carry_out(weir: &Arc<Weir>, what: &[Purge], soft: bool, warm: bool) -> PurgeReport {
    let mut sum = PurgeReport { store_reached: true, others_told: true, ..PurgeReport::default() };
    for purge in what {
        let report = weir.environment.cache.purge(purge, soft).await;
        sum.entries += report.entries;
        sum.in_memory += report.in_memory;
        sum.store_reached &= report.store_reached;
        sum.others_told &= report.others_told;
        sum.pages.extend(report.pages);
    }
    sum.pages.sort();
    sum.pages.dedup();
    if warm {
        let pages: Vec<String> = sum.pages.iter().take(WARMED).map(|page| if page.starts_with('/') { page.clone() } else { format!("edge://{page}") }).collect();
        let (weir, settings) = (weir.clone(), weir.live.load().document.warm_up.clone());
        tokio::spawn(async move {
            let (concurrency, rate, timeout) = settings.map_or((4, 0, Duration::from_secs(30)), |s| (s.concurrency, s.rate, s.timeout.get()));
            warm::ask_all(&weir, pages, concurrency, rate, timeout, |_| ()).await;
        });
    }
    sum
}

/// Whether a caller may send `PURGE`: from an allowed address, with the token.
pub fn may_purge(edge: &EdgeRules, ip: IpAddr, headers: &HeaderMap) -> bool {
    let Some(PurgeAccess { from, token }) = &edge.config.purge else { return false };
    let near = from.iter().any(|net| net.parse::<ipnet::IpNet>().is_ok_and(|n| n.contains(&ip)) || net.parse::<IpAddr>().is_ok_and(|a| a == ip));
    let shown = headers.get(header::AUTHORIZATION).and_then(|v| v.as_bytes().strip_prefix(b"Bearer ")).unwrap_or_default();
    near && token.matches(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_name_host_and_path() {
        let of = |host: Option<&str>, path: &str| Purge::Prefix { host: host.map(String::from), path: path.into() };
        assert_eq!(prefix("shop.example.com/categories/"), of(Some("shop.example.com"), "/categories/"));
        assert_eq!(prefix("https://h:81/a"), of(Some("h:81"), "/a"));
        assert_eq!(prefix("/a"), of(None, "/a"));
        assert_eq!(prefix("h"), of(Some("h"), "/"));
    }
}
