//! Which plugins run for whom, and in which order.

use crate::{Chain, Chains, Consumer, Environment, Register, ServiceRuntime, chain::Link, plugin::BuildEnv};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use weir_config::{Diagnostic, Gateway, PluginEntry};

/// A plugin made for its scope.
pub(crate) struct Scoped<'a> {
    entry: &'a PluginEntry,
    link: Link,
}

/// Makes every plugin of the configuration that is enabled.
pub(crate) fn plugins<'a>(
    gateway: &'a Gateway,
    register: &dyn Register,
    environment: &Arc<Environment>,
    services: &HashMap<String, Arc<ServiceRuntime>>,
    consumers: &Arc<Vec<Arc<Consumer>>>,
    errors: &mut Vec<Diagnostic>,
) -> Vec<Scoped<'a>> {
    let mut made = Vec::new();
    for entry in gateway.plugins.iter().filter(|p| p.enabled && speaks_http(p)) {
        let Some(name) = register.canonical(&entry.name) else {
            errors.push(Diagnostic::error("plugin", &entry.name_span, format!("unknown plugin `{}`", entry.name)));
            continue;
        };
        let env = BuildEnv { environment, scope: scope_name(gateway, entry), services, consumers };
        match register.build(entry, &env) {
            Ok(plugin) => made.push(Scoped { entry, link: Link { name, priority: register.priority(name), plugin } }),
            Err(list) => errors.extend(list),
        }
    }
    match order(&made) {
        Ok(None) => {}
        Ok(Some(places)) => made.iter_mut().for_each(|scoped| scoped.link.priority = places[scoped.link.name]),
        Err(error) => errors.push(error),
    }
    made
}

fn speaks_http(entry: &PluginEntry) -> bool {
    entry.protocols.is_empty() || entry.protocols.iter().any(|p| matches!(p.as_str(), "http" | "https" | "grpc" | "grpcs" | "ws" | "wss"))
}

/// The priorities of all plugins where some have an `ordering` of their own: as near to the register's order as those allow. `None`: none has.
///
/// Errors: plugins that are to go before each other.
fn order(made: &[Scoped<'_>]) -> Result<Option<HashMap<&'static str, i32>>, Diagnostic> {
    if made.iter().all(|s| s.entry.before.is_empty() && s.entry.after.is_empty()) {
        return Ok(None);
    }
    let usual: BTreeSet<(Reverse<i32>, &'static str)> = made.iter().map(|s| (Reverse(s.link.priority), s.link.name)).collect();
    // For each plugin those that must have run.
    let mut waits: BTreeMap<&str, Vec<(&str, &weir_config::Span)>> = BTreeMap::new();
    for Scoped { entry, link } in made {
        for later in &entry.before {
            waits.entry(later.value.as_str()).or_default().push((link.name, &later.span));
        }
        waits.entry(link.name).or_default().extend(entry.after.iter().map(|earlier| (earlier.value.as_str(), &earlier.span)));
    }
    let mut plan = Plan { usual: usual.into_iter().map(|(_, name)| name).collect(), waits, under_way: vec![], order: vec![] };
    for name in plan.usual.clone() {
        plan.place(name)?;
    }
    let count = i32::try_from(plan.order.len()).unwrap_or(i32::MAX);
    Ok(Some(plan.order.into_iter().zip((1..=count).rev()).collect()))
}

/// An order in the making: each plugin in its usual turn, and just before it those that it waits for.
struct Plan<'a> {
    usual: Vec<&'static str>,
    waits: BTreeMap<&'a str, Vec<(&'a str, &'a weir_config::Span)>>,
    under_way: Vec<&'static str>,
    order: Vec<&'static str>,
}

impl Plan<'_> {
    fn place(&mut self, name: &'static str) -> Result<(), Diagnostic> {
        if self.order.contains(&name) {
            return Ok(());
        }
        self.under_way.push(name);
        for (earlier, span) in self.waits.get(name).cloned().unwrap_or_default() {
            // Of plugins that run nowhere there is nothing to wait for.
            let Some(earlier) = self.usual.iter().copied().find(|known| *known == earlier) else { continue };
            if self.under_way.contains(&earlier) {
                let message = format!("this `ordering` can not be kept: `{earlier}` is to go before itself");
                return Err(Diagnostic::error("ordering", span, message));
            }
            self.place(earlier)?;
        }
        self.under_way.pop();
        self.order.push(name);
        Ok(())
    }
}

fn scope_name(gateway: &Gateway, entry: &PluginEntry) -> String {
    let mut parts = Vec::new();
    if let Some(route) = entry.route.and_then(|r| gateway.routes.get(r)) {
        parts.push(format!("route:{}", route.name));
    }
    if let Some(service) = entry.service.and_then(|s| gateway.services.get(s)) {
        parts.push(format!("service:{}", service.name));
    }
    if let Some(consumer) = entry.consumer.and_then(|c| gateway.consumers.get(c)) {
        parts.push(format!("consumer:{}", consumer.id));
    }
    if let Some(group) = entry.group.and_then(|g| gateway.groups.get(g)) {
        parts.push(format!("group:{group}"));
    }
    if parts.is_empty() { "global".into() } else { parts.join("/") }
}

/// Kong's precedence of scopes: more specific is higher; `None` where the plugin does not apply.
fn specificity(entry: &PluginEntry, route: Option<usize>, service: Option<usize>, consumer: Option<usize>, in_group: impl Fn(usize) -> bool) -> Option<u8> {
    let fits = |want: Option<usize>, have: Option<usize>| want.is_none() || want == have;
    if !(fits(entry.route, route) && fits(entry.service, service) && fits(entry.consumer, consumer) && entry.group.is_none_or(in_group)) {
        return None;
    }
    Some(match (entry.route.is_some(), entry.service.is_some(), entry.consumer.is_some(), entry.group.is_some()) {
        (true, true, true, _) => 12,
        (true, true, false, true) => 11,
        (true, false, true, _) => 10,
        (false, true, true, _) => 9,
        (true, false, false, true) => 8,
        (false, true, false, true) => 7,
        (true, true, false, false) => 6,
        (false, false, true, _) => 5,
        (false, false, false, true) => 4,
        (true, false, false, false) => 3,
        (false, true, false, false) => 2,
        (false, false, false, false) => 1,
    })
}

/// All plugins by where they apply, so that a route looks only at those that may be its own.
pub(crate) struct Places<'a> {
    by_route: HashMap<usize, Vec<&'a Scoped<'a>>>,
    /// Of a service, whatever the route.
    by_service: HashMap<usize, Vec<&'a Scoped<'a>>>,
    /// Of neither.
    anywhere: Vec<&'a Scoped<'a>>,
    /// Consumers with plugins of their own, or of a group of theirs.
    with_own: BTreeSet<usize>,
}

impl<'a> Places<'a> {
    /// Sorts the plugins.
    pub(crate) fn new(gateway: &Gateway, plugins: &'a [Scoped<'a>]) -> Places<'a> {
        let mut places = Places { by_route: HashMap::new(), by_service: HashMap::new(), anywhere: vec![], with_own: BTreeSet::new() };
        for scoped in plugins {
            match (scoped.entry.route, scoped.entry.service) {
                (Some(route), _) => places.by_route.entry(route).or_default().push(scoped),
                (None, Some(service)) => places.by_service.entry(service).or_default().push(scoped),
                (None, None) => places.anywhere.push(scoped),
            }
        }
        places.with_own.extend(plugins.iter().filter_map(|p| p.entry.consumer).filter(|c| *c < gateway.consumers.len()));
        if plugins.iter().any(|p| p.entry.group.is_some()) {
            places.with_own.extend((0..gateway.consumers.len()).filter(|c| !gateway.consumers[*c].consumer_groups.is_empty()));
        }
        places
    }

    fn of(&self, route: Option<usize>, service: Option<usize>) -> impl Iterator<Item = &'a Scoped<'a>> {
        let own = route.and_then(|route| self.by_route.get(&route)).into_iter().flatten();
        let service = service.and_then(|service| self.by_service.get(&service)).into_iter().flatten();
        own.chain(service).chain(&self.anywhere).copied()
    }
}

/// The chains of a route: of each plugin the most specific configuration, never a merge.
pub(crate) fn chains(gateway: &Gateway, places: &Places<'_>, route: Option<usize>, service: Option<usize>) -> Chains {
    let chain_for = |consumer: Option<usize>| {
        let in_group = |group: usize| consumer.and_then(|c| gateway.consumers.get(c)).is_some_and(|c| c.consumer_groups.contains(&gateway.groups[group]));
        let mut best: HashMap<&str, (u8, &Scoped<'_>)> = HashMap::new();
        for scoped in places.of(route, service) {
            if let Some(rank) = specificity(scoped.entry, route, service, consumer, in_group) {
                let slot = best.entry(scoped.link.name).or_insert((rank, scoped));
                if rank > slot.0 {
                    *slot = (rank, scoped);
                }
            }
        }
        Arc::new(Chain::new(best.into_values().map(|(_, s)| s.link.clone()).collect()))
    };
    Chains { base: chain_for(None), by_consumer: places.with_own.iter().map(|c| (*c, chain_for(Some(*c)))).collect() }
}

#[cfg(test)]
mod tests;
