//! Plugins in their order. A chain is compiled when the configuration is loaded: one slice of plugins for each step, so that a step
//! costs nothing where no plugin takes part.

use crate::{Flow, Phases, Plugin, Reply, RequestContext, RouteRuntime, plugin::Ending};
use bytes::Bytes;
use http::{Uri, request, response};
use std::{collections::HashMap, sync::Arc};
use weir_cache::Purge;

/// A plugin in a chain.
#[derive(Clone)]
pub struct Link {
    /// The register's name.
    pub name: &'static str,
    /// Place: higher runs earlier.
    pub priority: i32,
    /// The instance.
    pub plugin: Arc<dyn Plugin>,
}

/// The plugins of one route (and perhaps one consumer), compiled.
#[derive(Default)]
pub struct Chain {
    links: Vec<Link>,
    request: Vec<u16>,
    to_upstream: Vec<u16>,
    from_upstream: Vec<u16>,
    response: Vec<u16>,
    body: Vec<u16>,
    end: Vec<u16>,
    log: Vec<u16>,
    reads_body: Option<usize>,
    changes_bodies: bool,
    wants_log_view: bool,
}

impl Chain {
    /// Orders the plugins by priority (then by name, so that the order is the same after every load).
    pub fn new(mut links: Vec<Link>) -> Chain {
        links.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(b.name)));
        let with = |phase: Phases| -> Vec<u16> {
            (0..links.len() as u16).filter(|&i| links[i as usize].plugin.phases().has(phase)).collect()
        };
        let reversed = |phase: Phases| -> Vec<u16> { with(phase).into_iter().rev().collect() };
        let mut request = with(Phases::REQUEST);
        request.extend(with(Phases::REQUEST_WAIT));
        request.sort_unstable();
        request.dedup();
        Chain {
            request,
            to_upstream: with(Phases::TO_UPSTREAM),
            from_upstream: reversed(Phases::FROM_UPSTREAM),
            response: reversed(Phases::RESPONSE),
            body: reversed(Phases::BODY),
            end: reversed(Phases::END),
            log: reversed(Phases::LOG),
            changes_bodies: links.iter().any(|l| l.plugin.phases().has(Phases::BODY) && l.plugin.changes_body()),
            wants_log_view: links.iter().any(|l| l.plugin.phases().has(Phases::LOG) && l.plugin.wants_log_view()),
            reads_body: links.iter().filter_map(|l| l.plugin.reads_body()).max(),
            links,
        }
    }

    /// What its plugins hold of a GET for this address, see [`Plugin::holds`].
    pub fn holds<'a>(&'a self, route: &'a RouteRuntime, host: &'a str, uri: &'a Uri) -> impl Iterator<Item = Purge> {
        self.links.iter().filter_map(move |link| link.plugin.holds(route, host, uri))
    }

    /// Names in order, for the banner and for `explain`.
    pub fn names(&self) -> Vec<&'static str> {
        self.links.iter().map(|l| l.name).collect()
    }

    /// How much of the request body the plugins want to see.
    pub fn reads_body(&self) -> Option<usize> {
        self.reads_body
    }

    /// Whether a plugin wants [`RequestContext::log_view`].
    pub fn wants_log_view(&self) -> bool {
        self.wants_log_view
    }

    /// Whether a plugin may change the length of answers.
    pub fn changes_bodies(&self) -> bool {
        self.changes_bodies
    }

    /// Last changes towards the upstream.
    pub fn to_upstream(&self, cx: &mut RequestContext, req: &mut request::Parts) {
        for &i in &self.to_upstream {
            self.links[i as usize].plugin.to_upstream(cx, req);
        }
    }

    /// First sight of the upstream's answer.
    pub fn from_upstream(&self, cx: &mut RequestContext, res: &mut response::Parts) {
        for &i in &self.from_upstream {
            self.links[i as usize].plugin.from_upstream(cx, res);
        }
    }

    /// Changes of the answer for this client.
    pub fn response(&self, cx: &mut RequestContext, res: &mut response::Parts) {
        for &i in &self.response {
            self.links[i as usize].plugin.response(cx, res);
        }
    }

    /// A piece of the answer's body.
    pub fn body(&self, cx: &mut RequestContext, chunk: &mut Bytes, last: bool) {
        for &i in &self.body {
            self.links[i as usize].plugin.body(cx, chunk, last);
        }
    }

    /// Whether [`Chain::end`] has anything to do.
    pub fn has_end(&self) -> bool {
        !self.end.is_empty()
    }

    /// The exchange is over.
    pub async fn end(&self, cx: &mut RequestContext, ending: Ending) {
        for &i in &self.end {
            self.links[i as usize].plugin.end(cx, ending).await;
        }
    }

    /// After everything.
    pub fn log(&self, cx: &RequestContext) {
        for &i in &self.log {
            self.links[i as usize].plugin.log(cx);
        }
    }
}

/// A route's chains: the one for everybody, and those of consumers with plugins of their own.
#[derive(Default)]
pub struct Chains {
    /// Without a consumer, or for a consumer without own plugins.
    pub base: Arc<Chain>,
    /// By consumer index.
    pub by_consumer: HashMap<usize, Arc<Chain>>,
}

impl Chains {
    /// The chain for a consumer.
    pub fn of(&self, consumer: Option<usize>) -> &Arc<Chain> {
        consumer.and_then(|c| self.by_consumer.get(&c)).unwrap_or(&self.base)
    }

    /// How much of the request body any of the chains wants to see: which one will run is not known before authentication.
    pub fn reads_body(&self) -> Option<usize> {
        self.by_consumer.values().chain([&self.base]).filter_map(|c| c.reads_body()).max()
    }

    /// Whether any of the chains wants [`RequestContext::log_view`].
    pub fn wants_log_view(&self) -> bool {
        self.by_consumer.values().chain([&self.base]).any(|c| c.wants_log_view())
    }

    /// Runs the request steps. Authentication may name the consumer half-way: from there on the consumer's chain goes on, below the
    /// plugins that already ran. Returns the chain whose response steps are due, and the reply if one was made.
    pub async fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> (Arc<Chain>, Option<Reply>) {
        let mut chain = self.of(cx.consumer.as_ref().map(|c| c.index)).clone();
        let mut known = cx.consumer.as_ref().map(|c| c.index);
        let mut next = 0;
        while let Some(&i) = chain.request.get(next) {
            next += 1;
            let link = &chain.links[i as usize];
            let phases = link.plugin.phases();
            let mut flow = if phases.has(Phases::REQUEST) { link.plugin.request(cx, req) } else { Flow::Wait };
            if matches!(flow, Flow::Wait) && phases.has(Phases::REQUEST_WAIT) {
                flow = link.plugin.request_wait(cx, req).await;
            }
            if let Flow::Reply(reply) = flow {
                return (chain, Some(reply));
            }
            let consumer = cx.consumer.as_ref().map(|c| c.index);
            if consumer != known {
                known = consumer;
                let place = (std::cmp::Reverse(link.priority), link.name);
                let own = self.of(consumer);
                if !Arc::ptr_eq(own, &chain) {
                    let own = own.clone();
                    next = own
                        .request
                        .iter()
                        .position(|&j| {
                            let l = &own.links[j as usize];
                            (std::cmp::Reverse(l.priority), l.name) > place
                        })
                        .unwrap_or(own.request.len());
                    chain = own;
                }
            }
        }
        (chain, None)
    }
}
