//! Drives plugins without sockets: a chain made from YAML snippets, a request, and an upstream that answers what a test tells it.

use crate::{Plugins, register};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, response};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use weir_config::{Diagnostic, Node, PluginCatalog, PluginEntry, Span};
use weir_gateway::{
    BuildEnv, Chain, Chains, ServiceRuntime, Client, Consumer, Environment, Identity, Register, RequestContext, Scheme, chain::Link, client::OwnClient, context::{LogView, SeenBody},
    metrics::Metrics, plugin::Ending, resilience::{Held, Verdict}, upstream::Endpoints,
};
use weir_store::Store;

pub(crate) mod sink;

/// How the upstream ends its answer.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Upstream {
    /// It answers whole.
    Answers,
    /// It takes the request and dies.
    Dies,
    /// No connection.
    Away,
    /// It never answers; the test ends the request.
    Hangs,
}

pub(crate) struct Rig {
    pub environment: Arc<Environment>,
    chains: Arc<Chains>,
    service: Option<Arc<ServiceRuntime>>,
    status: u16,
    fields: Vec<(&'static str, String)>,
    body: Vec<Bytes>,
    pub upstream: Upstream,
    /// Requests that came to the upstream.
    pub calls: Arc<AtomicUsize>,
    /// The upstream waits for this before it answers.
    pub gate: Option<Arc<tokio::sync::Notify>>,
}

pub(crate) fn environment(store: Store) -> Arc<Environment> {
    let cache = weir_cache::Engine::new(store.clone(), weir_cache::EngineOptions::default());
    let endpoints = Endpoints::default();
    Arc::new(Environment { store, cache, client: OwnClient::new(endpoints.dns()), metrics: Arc::new(Metrics::new()), endpoints, resilience: Default::default() })
}

pub(crate) fn entry(name: &str, config: &str) -> PluginEntry {
    let config = Node::parse(config).unwrap_or_else(|e| panic!("{name}: {e}"));
    PluginEntry {
        name: name.into(),
        name_span: Span::default(),
        config,
        enabled: true,
        service: None,
        route: None,
        consumer: None,
        group: None,
        protocols: vec![],
        before: vec![],
        after: vec![],
        instance_name: None,
    }
}

/// A consumer without credentials, whose id is `id-of-` and its name.
pub(crate) fn consumer(username: &str) -> weir_config::Consumer {
    weir_config::Consumer {
        id: format!("id-of-{username}"),
        username: Some(username.into()),
        custom_id: None,
        tags: vec![],
        groups: vec![],
        consumer_groups: vec![],
        keys: vec![],
        basic: vec![],
        jwt: vec![],
        span: Span::default(),
    }
}

/// The mistakes in a configuration.
pub(crate) fn errors(name: &str, config: &str) -> Vec<Diagnostic> {
    let found = register().check(name, &entry(name, config).config);
    assert!(!found.is_empty(), "{name} takes {config}");
    found
}

impl Rig {
    pub fn new(plugins: &[(&str, &str)]) -> Rig {
        Rig::with(environment(Store::memory()), &register(), plugins)
    }

    /// With these consumers.
    pub fn of(consumers: Vec<weir_config::Consumer>, plugins: &[(&str, &str)]) -> Rig {
        Rig::made(environment(Store::memory()), &register(), consumers, plugins)
    }

    pub fn with(environment: Arc<Environment>, register: &Plugins, plugins: &[(&str, &str)]) -> Rig {
        Rig::made(environment, register, vec![], plugins)
    }

    pub fn made(environment: Arc<Environment>, register: &Plugins, consumers: Vec<weir_config::Consumer>, plugins: &[(&str, &str)]) -> Rig {
        let consumers = consumers.into_iter().enumerate().map(|(index, entity)| Arc::new(Consumer { index, entity })).collect();
        let services = ["orders", "spare"].map(|name| (name.to_string(), Arc::new(ServiceRuntime::from_url(name, "http://192.0.2.1", &environment.endpoints).unwrap()))).into();
        let env = BuildEnv { environment: &environment, scope: "route:test".into(), services: &services, consumers: &Arc::new(consumers) };
        let links = plugins
            .iter()
            .map(|(name, config)| {
                let name = register.canonical(name).unwrap_or_else(|| panic!("{name} is unknown"));
                let plugin = register.build(&entry(name, config), &env).unwrap_or_else(|e| panic!("{name}: {e:?}"));
                Link { name, priority: register.priority(name), plugin }
            })
            .collect();
        let chains = Arc::new(Chains { base: Arc::new(Chain::new(links)), ..Chains::default() });
        Rig {
            environment,
            chains,
            service: None,
            status: 200,
            fields: vec![],
            body: vec![Bytes::from_static(b"hello")],
            upstream: Upstream::Answers,
            calls: Arc::default(),
            gate: None,
        }
    }

    pub fn names(&self) -> Vec<&'static str> {
        self.chains.base.names()
    }

    /// Requests belong to a service of this name, at 192.0.2.1.
    pub fn serving(mut self, name: &str) -> Rig {
        self.service = ServiceRuntime::from_url(name, "http://192.0.2.1", &self.environment.endpoints).map(Arc::new);
        self
    }

    pub fn upstream_status(mut self, status: u16) -> Rig {
        self.status = status;
        self
    }

    pub fn upstream_field(mut self, name: &'static str, value: &str) -> Rig {
        self.fields.push((name, value.into()));
        self
    }

    pub fn upstream_body(mut self, pieces: &[&'static str]) -> Rig {
        self.body = pieces.iter().map(|p| Bytes::from_static(p.as_bytes())).collect();
        self
    }

    pub fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    /// Counts of [`Metrics::plugin`].
    pub fn outcome(&self, plugin: &str, outcome: &str) -> u64 {
        let text = self.environment.metrics.text(&self.environment);
        let line = format!("weir_plugin_outcomes_total{{outcome=\"{outcome}\",plugin=\"{plugin}\"}} ");
        text.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |n| n.parse().unwrap())
    }

    /// The request that a fetch for the cache, begun by `ask`, sends.
    pub async fn fill(&self, ask: Ask) -> http::request::Parts {
        let mut cx = RequestContext::new(ask.client);
        cx.identity = ask.identity;
        let (mut req, ()) = ask.request.into_parts();
        let begun = self.chains.begin(&cx);
        let (chain, _) = self.chains.request(&mut cx, &mut req, begun).await;
        chain.to_upstream(&mut cx.for_fill(), &mut req);
        req
    }

    /// One request through the chain, as the pipeline does it.
    pub async fn run(&self, ask: Ask) -> Seen {
        let mut cx = RequestContext::new(ask.client);
        cx.identity = ask.identity;
        let (mut req, ()) = ask.request.into_parts();
        if let Some(most) = self.chains.base.reads_body() {
            let whole = ask.body.len() <= most;
            cx.body = Some(SeenBody { bytes: ask.body.slice(..ask.body.len().min(most)), whole, announced: Some(ask.body.len() as u64) });
        }
        cx.service.clone_from(&self.service);
        cx.consumer = ask.consumer;
        if self.chains.wants_log_view() {
            cx.log_view = Some(LogView::new(&req));
        }
        let begun = self.chains.begin(&cx);
        let (chain, mut reply) = self.chains.request(&mut cx, &mut req, begun).await;
        if let Some(check) = reply.as_mut().and_then(|reply| reply.check.take()) {
            let mut hash = check.so_far;
            hash.read_ahead(&ask.body);
            if hash.finish() != check.expected {
                reply = Some(check.otherwise);
            }
        }
        if reply.is_none() && self.upstream != Upstream::Away {
            if let Some(hash) = &mut cx.body_hash {
                hash.read_ahead(&ask.body);
                hash.complete = true;
            }
            if let Some(gate) = cx.before_send.take() {
                reply = gate.before_send().await.err();
            }
        }
        let mut sent = None;
        let mut ending = Ending::NotSent;
        let (mut parts, body): (response::Parts, Vec<Bytes>) = match reply {
            Some(reply) => {
                cx.answered_by = reply.by;
                let (parts, body) = reply.into_parts();
                (parts, vec![body])
            }
            None => {
                cx.times.forwarded = Some(cx.started.elapsed());
                chain.to_upstream(&mut cx, &mut req);
                if let Some(view) = &mut cx.log_view {
                    view.upstream_uri = Some(req.uri.to_string());
                }
                sent = Some(req);
                let guard = cx.guard.clone();
                let mut pass = match (&guard, &cx.service) {
                    (Some(guard), Some(service)) => guard.enter(service, None).unwrap_or_else(|_| panic!("the circuit is open")),
                    _ => None,
                };
                if self.upstream == Upstream::Away {
                    pass.iter_mut().for_each(|pass| pass.tell(Verdict::Failure));
                    (status_only(502), vec![])
                } else {
                    self.calls.fetch_add(1, SeqCst);
                    if let Some(gate) = &self.gate {
                        gate.notified().await;
                    }
                    if self.upstream == Upstream::Hangs {
                        std::future::pending::<()>().await;
                    }
                    cx.times.upstream = Some(cx.started.elapsed());
                    cx.endpoint = self.service.as_ref().and_then(|s| s.upstream.pick(&[]));
                    cx.tries = 1;
                    if let Some(view) = &mut cx.log_view {
                        view.upstream_status = Some(self.status);
                    }
                    let mut parts = status_only(self.status);
                    let mut held = Held::default();
                    held.answered(guard.as_deref(), pass, parts.status, cx.times.upstream.unwrap_or_default());
                    held.over(self.upstream != Upstream::Dies);
                    for (name, value) in &self.fields {
                        parts.headers.append(*name, HeaderValue::from_str(value).unwrap());
                    }
                    chain.from_upstream(&mut cx, &mut parts);
                    ending = if self.upstream == Upstream::Dies { Ending::Broken } else { Ending::Complete };
                    (parts, self.body.clone())
                }
            }
        };
        cx.status = parts.status.as_u16();
        chain.response(&mut cx, &mut parts);
        for name in std::mem::take(&mut cx.hidden) {
            parts.headers.remove(name);
        }
        if let Some(view) = &mut cx.log_view {
            view.response_headers.clone_from(&parts.headers);
        }
        let mut got = Vec::new();
        for (i, piece) in body.iter().enumerate() {
            let mut piece = piece.clone();
            if self.upstream == Upstream::Dies && i > 0 {
                break;
            }
            chain.body(&mut cx, &mut piece, false);
            got.extend_from_slice(&piece);
        }
        if self.upstream != Upstream::Dies {
            let mut last = Bytes::new();
            chain.body(&mut cx, &mut last, true);
            got.extend_from_slice(&last);
        }
        cx.bytes.1 = got.len() as u64;
        cx.times.total = Some(cx.started.elapsed());
        chain.end(&mut cx, ending).await;
        chain.log(&cx);
        Seen { parts, body: String::from_utf8_lossy(&got).into_owned(), bytes: got, sent, cx }
    }
}

fn status_only(status: u16) -> response::Parts {
    let mut parts = http::Response::new(()).into_parts().0;
    parts.status = StatusCode::from_u16(status).unwrap();
    parts
}

/// A context of the test client.
pub(crate) fn context() -> RequestContext {
    RequestContext::new(get("/").client)
}

/// A request of the test client, 192.0.2.7.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    request: Request<()>,
    body: Bytes,
    client: Client,
    identity: Option<Arc<Identity>>,
    consumer: Option<Arc<weir_gateway::Consumer>>,
}

pub(crate) fn ask(method: &str, uri: &str) -> Ask {
    let ip = std::net::IpAddr::from([192, 0, 2, 7]);
    let client = Client { ip, peer: ip, scheme: Scheme::Http, host: "api.example".into(), port: 8000, trusted: false, sni: None };
    Ask { request: Request::builder().method(method).uri(uri).body(()).unwrap(), body: Bytes::new(), client, identity: None, consumer: None }
}

pub(crate) fn get(uri: &str) -> Ask {
    ask("GET", uri)
}

impl Ask {
    pub fn with(mut self, name: &str, value: &str) -> Ask {
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        self.request.headers_mut().append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        self
    }

    pub fn body(mut self, body: &str) -> Ask {
        self.body = Bytes::copy_from_slice(body.as_bytes());
        self
    }

    /// Asked by a consumer that something before the chain knows.
    pub fn as_consumer(mut self, username: &str) -> Ask {
        let entity = weir_config::Consumer {
            id: format!("id-of-{username}"),
            username: Some(username.into()),
            custom_id: None,
            tags: vec![],
            groups: vec![],
            consumer_groups: vec![],
            keys: vec![],
            basic: vec![],
            jwt: vec![],
            span: Span::default(),
        };
        self.consumer = Some(Arc::new(weir_gateway::Consumer { index: 0, entity }));
        self
    }

    pub fn from(mut self, ip: &str) -> Ask {
        self.client.ip = ip.parse().unwrap();
        self
    }

    /// With a verified token that has these claims.
    pub fn claiming(mut self, claims: serde_json::Value) -> Ask {
        self.identity = Some(Arc::new(Identity { claims: claims.as_object().cloned().map(Arc::new), ..Identity::default() }));
        self
    }

    pub fn known_as(mut self, subject: &str, credential: Option<&str>) -> Ask {
        self.identity = Some(Arc::new(Identity { subject: subject.into(), credential: credential.map(Into::into), claims: None }));
        self
    }
}

/// What came of a request.
pub(crate) struct Seen {
    parts: response::Parts,
    pub body: String,
    pub bytes: Vec<u8>,
    sent: Option<http::request::Parts>,
    pub cx: RequestContext,
}

impl Seen {
    pub fn status(&self) -> u16 {
        self.parts.status.as_u16()
    }

    pub fn forwarded(&self) -> bool {
        self.sent.is_some()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name).map(|v| v.to_str().unwrap())
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.parts.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect()
    }

    /// A header that the upstream got.
    pub fn sent(&self, name: &str) -> &str {
        self.sent_maybe(name).unwrap_or_else(|| panic!("{name} was not sent"))
    }

    pub fn sent_maybe(&self, name: &str) -> Option<&str> {
        self.sent.as_ref().expect("forwarded").headers.get(name).map(|v| v.to_str().unwrap())
    }

    /// What a plugin put among the answer's extensions.
    pub fn extension<T: Clone + Send + Sync + 'static>(&self) -> Option<T> {
        self.parts.extensions.get().cloned()
    }

    /// All values of a header that the upstream got.
    pub fn sent_all(&self, name: &str) -> Vec<&str> {
        self.sent.as_ref().expect("forwarded").headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect()
    }

    pub fn sent_method(&self) -> &str {
        self.sent.as_ref().expect("forwarded").method.as_str()
    }

    /// Path and query that the upstream got.
    pub fn target(&self) -> String {
        self.sent.as_ref().expect("forwarded").uri.to_string()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}
