//! Plugins in their order. A chain is compiled when the configuration is loaded: one slice of plugins for each step, so that a step
//! costs nothing where no plugin takes part.

use crate::{Flow, Phases, Plugin, Reply, RequestContext, RouteRuntime, plugin::Ending, sight::Sights};
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
    holds: Vec<u16>,
    reads_body: Option<usize>,
    changes_bodies: bool,
    wants_log_view: bool,
    sights: Option<Sights>,
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
            holds: with(Phases::HOLDS),
            changes_bodies: links.iter().any(|l| l.plugin.phases().has(Phases::BODY) && l.plugin.changes_body()),
            wants_log_view: links.iter().any(|l| l.plugin.phases().has(Phases::LOG) && l.plugin.wants_log_view()),
            reads_body: links.iter().filter_map(|l| l.plugin.reads_body()).max(),
            sights: Sights::of(links.iter().map(|l| &*l.plugin)),
            links,
        }
    }

    /// What its plugins hold of a GET for this address, see [`Plugin::holds`].
    pub fn holds<'a>(&'a self, route: &'a RouteRuntime, host: &'a str, uri: &'a Uri) -> impl Iterator<Item = Purge> {
        self.holds.iter().filter_map(move |&at| self.links[usize::from(at)].plugin.holds(route, host, uri))
    }

    /// Whether one of its plugins may hold answers.
    pub fn may_hold(&self) -> bool {
        !self.holds.is_empty()
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

    /// All that its plugins look at or change, where that is a few fields of the heads and nothing else.
    pub fn sights(&self) -> Option<&Sights> {
        self.sights.as_ref()
    }

    /// Whether the request is nothing to its plugins.
    pub fn ignores_requests(&self) -> bool {
        self.request.is_empty() && self.to_upstream.is_empty()
    }

    /// Whether the request is nothing to them once its own steps are done.
    pub fn ignores_upstream(&self) -> bool {
        self.to_upstream.is_empty()
    }

    /// Whether the answer is nothing to its plugins, but for the log.
    pub fn ignores_answers(&self) -> bool {
        self.from_upstream.is_empty() && self.response.is_empty() && self.body.is_empty() && self.end.is_empty()
    }

    /// Whether a plugin may change the length of answers.
    pub fn changes_bodies(&self) -> bool {
        self.changes_bodies
    }

    /// What the service is told of the caller, then last changes towards the upstream.
    pub fn to_upstream(&self, cx: &mut RequestContext, req: &mut request::Parts) {
        cx.caller_fields.put_on(&mut req.headers);
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

    /// Changes of the answer for this client, then what it is told besides: a plugin that keeps the answer does not keep that.
    pub fn response(&self, cx: &mut RequestContext, res: &mut response::Parts) {
        for &i in &self.response {
            self.links[i as usize].plugin.response(cx, res);
        }
        cx.answer_fields.put_on(&mut res.headers);
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

    /// Before the first request step.
    pub fn begin(&self, cx: &RequestContext) -> Progress {
        let known = cx.consumer.as_ref().map(|c| c.index);
        Progress { chain: self.of(known).clone(), known, next: 0, waits: false }
    }

    /// Runs the request steps from where they stand to the next one that must wait.
    pub fn walk(&self, cx: &mut RequestContext, req: &mut request::Parts, at: &mut Progress) -> Walked {
        while let Some(link) = at.link() {
            let phases = link.plugin.phases();
            match if phases.has(Phases::REQUEST) { link.plugin.request(cx, req) } else { Flow::Wait } {
                Flow::Reply(reply) => return Walked::Reply(Box::new(reply)),
                Flow::Wait if phases.has(Phases::REQUEST_WAIT) => {
                    at.waits = true;
                    return Walked::Waits;
                }
                Flow::Continue | Flow::Wait => self.passed(cx, at),
            }
        }
        Walked::Through
    }

    /// Runs the request steps to their end. Returns the chain whose response steps are due, and the reply if one was made.
    pub async fn request(&self, cx: &mut RequestContext, req: &mut request::Parts, mut at: Progress) -> (Arc<Chain>, Option<Reply>) {
        loop {
            if !at.waits {
                match self.walk(cx, req, &mut at) {
                    Walked::Through => return (at.chain, None),
                    Walked::Reply(reply) => return (at.chain, Some(*reply)),
                    Walked::Waits => {}
                }
            }
            at.waits = false;
            let Some(plugin) = at.link().map(|link| link.plugin.clone()) else { continue };
            if let Flow::Reply(reply) = plugin.request_wait(cx, req).await {
                return (at.chain, Some(reply));
            }
            self.passed(cx, &mut at);
        }
    }

    /// A step is done. Authentication may name the consumer half-way: from there on the consumer's chain goes on, below the plugins that
    /// already ran.
    fn passed(&self, cx: &RequestContext, at: &mut Progress) {
        let Some(done) = at.link().map(|link| (std::cmp::Reverse(link.priority), link.name)) else { return };
        at.next += 1;
        let consumer = cx.consumer.as_ref().map(|c| c.index);
        if consumer == at.known {
            return;
        }
        at.known = consumer;
        let own = self.of(consumer);
        if !Arc::ptr_eq(own, &at.chain) {
            let after = |j: &u16| {
                let link = &own.links[usize::from(*j)];
                (std::cmp::Reverse(link.priority), link.name) > done
            };
            at.next = own.request.iter().position(after).unwrap_or(own.request.len());
            at.chain = own.clone();
        }
    }
}

/// How far a request came on its way through the request steps.
pub struct Progress {
    /// The chain that it is in.
    pub chain: Arc<Chain>,
    known: Option<usize>,
    next: usize,
    /// Its next step is [`Plugin::request_wait`].
    waits: bool,
}

impl Progress {
    fn link(&self) -> Option<&Link> {
        self.chain.request.get(self.next).map(|i| &self.chain.links[usize::from(*i)])
    }
}

/// Where the request steps stopped.
pub enum Walked {
    /// At their end.
    Through,
    /// A plugin answers.
    Reply(Box<Reply>),
    /// A plugin has to wait.
    Waits,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, Scheme};
    use http::{HeaderName, HeaderValue, Request, Response};
    use std::net::{IpAddr, Ipv4Addr};

    const CALLER: HeaderName = HeaderName::from_static("x-caller");
    const LIMIT: HeaderName = HeaderName::from_static("x-limit");

    /// Looks at what is on the messages in its later steps.
    struct Looks;

    impl Plugin for Looks {
        fn phases(&self) -> Phases {
            Phases::REQUEST | Phases::TO_UPSTREAM | Phases::RESPONSE
        }

        fn request(&self, cx: &mut RequestContext, _: &mut request::Parts) -> Flow {
            cx.caller_fields.set(CALLER, HeaderValue::from_static("kim"));
            cx.answer_fields.set(LIMIT, HeaderValue::from_static("5"));
            Flow::Continue
        }

        fn to_upstream(&self, _: &mut RequestContext, req: &mut request::Parts) {
            assert_eq!(req.headers[CALLER], "kim", "it is there to be changed");
        }

        fn response(&self, _: &mut RequestContext, res: &mut response::Parts) {
            assert!(!res.headers.contains_key(LIMIT), "it is not there to be kept");
        }
    }

    #[test]
    fn what_request_steps_leave_goes_on_the_messages() {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut cx = RequestContext::new(Client { ip, peer: ip, scheme: Scheme::Http, host: "a".into(), port: 80, trusted: false, sni: None });
        let chains = Chains { base: Arc::new(Chain::new(vec![Link { name: "looks", priority: 1, plugin: Arc::new(Looks) }])), ..Chains::default() };
        let mut req = Request::get("/").header(CALLER, "mallory").body(()).expect("a request").into_parts().0;
        let mut res = Response::new(()).into_parts().0;
        let mut at = chains.begin(&cx);
        assert!(matches!(chains.walk(&mut cx, &mut req, &mut at), Walked::Through));
        at.chain.to_upstream(&mut cx, &mut req);
        at.chain.response(&mut cx, &mut res);
        assert_eq!((&req.headers[CALLER], &res.headers[LIMIT]), (&HeaderValue::from_static("kim"), &HeaderValue::from_static("5")));
        // A fetch for a cache is for everyone.
        let mut fill = Request::get("/").body(()).expect("a request").into_parts().0;
        Chain::default().to_upstream(&mut cx.for_fill(), &mut fill);
        assert!(fill.headers.is_empty());
    }
}
