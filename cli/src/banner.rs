//! What `weir run` says of itself when it starts.

use std::fmt::Write as _;
use weir_config::{CacheSwitch, Ttl};
use weir_proxy::live::Weir;

/// Listeners, store, routes with their chains, page rules.
pub fn text(weir: &Weir) -> String {
    let live = weir.live.load();
    let document = &live.document;
    let mut out = format!("Weir {}\n", env!("CARGO_PKG_VERSION"));
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "  {name:<9}{text}");
    };
    if let (Some(edge), Some(rules)) = (&document.edge, &live.edge) {
        line("edge", format!("{} → {}", edge.listen, rules.origin.upstream.name));
    }
    if let Some(gateway) = &document.gateway {
        line("gateway", gateway.listen.to_string());
    }
    line("admin", format!("{}  (/metrics /ready /status)", document.admin.listen));
    let health = &weir.environment.store.health;
    let state = health.check().err().map(|e| format!("  (away: {e})")).unwrap_or_default();
    line("store", format!("{} {}{state}", health.kind(), health.address()));
    if let Some(rules) = &live.edge {
        let _ = writeln!(out, "  pages");
        for rule in rules.pages.rules() {
            let how = match (rule.cache, rule.ttl) {
                (CacheSwitch::Never, _) => "never cached".to_string(),
                (CacheSwitch::On, Ttl::For(ttl)) => format!("ttl {ttl:?}"),
                (CacheSwitch::On, Ttl::Origin) => "ttl as the origin says".to_string(),
            };
            let _ = writeln!(out, "    {:<28}{how}", rule.path);
        }
    }
    if !live.snapshot.routes.is_empty() {
        let _ = writeln!(out, "  routes");
    }
    for route in &live.snapshot.routes {
        let methods = if route.methods.is_empty() { String::new() } else { format!("{} ", route.methods.join(",")) };
        let paths = if route.paths.is_empty() { "any path".to_string() } else { route.paths.join(" ") };
        let service = route.service.as_ref().map_or("(no service)".to_string(), |s| format!("{} ({})", s.name, s.upstream.name));
        let chain = route.chains.base.names();
        let chain = if chain.is_empty() { String::new() } else { format!("  [{}]", chain.join(" → ")) };
        let _ = writeln!(out, "    {:<28}{methods}{paths} → {service}{chain}", route.name);
    }
    out
}
