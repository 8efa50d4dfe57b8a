//! The doors, and the frame around every request.

use crate::{
    downstream::{Downstream, RequestBody},
    edge,
    gateway::{self, Handed},
    grpc,
    live::{Live, Settings, Weir},
    work::{Shown, Work},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request};
use std::{net::IpAddr, sync::Arc};
use weir_config::HeaderNames;
use weir_gateway::{Chain, Client, RequestContext, Scheme, context::SeenBody};

/// Asks for a refresh; counts only beside the warm-up token.
const REFRESH: HeaderName = HeaderName::from_static("x-cache-refresh");
/// The warm-up token.
const WARM_UP_TOKEN: HeaderName = HeaderName::from_static("x-warmup-token");

/// Which door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoorKind {
    /// Pages, and `/api` through the gateway.
    Edge,
    /// Routes and chains.
    Gateway,
}

impl DoorKind {
    /// For metrics and log.
    pub fn name(self) -> &'static str {
        match self {
            DoorKind::Edge => "edge",
            DoorKind::Gateway => "gateway",
        }
    }
}

/// A door.
pub struct Door {
    /// The program.
    pub weir: Arc<Weir>,
    /// Which.
    pub kind: DoorKind,
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub ip: IpAddr,
    /// Our port.
    pub port: u16,
    /// TLS.
    pub tls: bool,
    /// Server name of the handshake.
    pub sni: Option<Arc<str>>,
}

impl Door {
    /// Limits and times in force.
    pub fn settings(&self) -> Settings {
        self.weir.live.load().settings
    }

    /// The configuration in force, or for the last requests of a door that it does not have any more, the one that had it.
    fn live(&self) -> Arc<Live> {
        let live = self.weir.live.load_full();
        if live.has(self.kind) { live } else { self.weir.retired.load_full().filter(|old| old.has(self.kind)).unwrap_or(live) }
    }

    /// Counts a head that could not be read.
    pub fn refused(&self, peer: &Peer, status: StatusCode, reason: &'static str) {
        tracing::debug!(peer = %peer.ip, status = status.as_u16(), reason, "request refused");
        let mut cx = RequestContext::new(Client {
            ip: peer.ip,
            peer: peer.ip,
            scheme: Scheme::Http,
            host: String::new(),
            port: peer.port,
            trusted: false,
            sni: None,
        });
        cx.status = status.as_u16();
        cx.failure = Some("malformed");
        self.weir.environment.metrics.request(self.kind.name(), "refused", &cx);
    }

    /// Serves one request, from its head to its log line.
    pub async fn handle<D: Downstream>(&self, request: request::Parts, peer: &Peer, down: &mut D) {
        let live = self.live();
        let client = who_asks(&live, peer, &request.headers);
        self.run(live, request, client, false, down).await;
    }

    /// Serves a request of Weir's own (warm-up): allowed to refresh.
    pub async fn handle_own<D: Downstream>(&self, request: request::Parts, down: &mut D) {
        let live = self.weir.live.load_full();
        let port = if self.kind == DoorKind::Edge { 9000 } else { 8000 };
        let local = Peer { ip: IpAddr::from([127, 0, 0, 1]), port, tls: false, sni: None };
        let client = who_asks(&live, &local, &request.headers);
        self.run(live, request, client, true, down).await;
    }

    async fn run<D: Downstream>(&self, live: Arc<Live>, mut request: request::Parts, client: Client, own: bool, down: &mut D) {
        let mut cx = RequestContext::new(client);
        cx.refresh = own || may_refresh(&live, &request.headers);
        request.headers.remove(REFRESH);
        request.headers.remove(WARM_UP_TOKEN);
        let (method, uri) = (request.method.clone(), request.uri.clone());
        let mut work = self.work(live, cx, &request, down);
        if let RequestBody::Length(length) = work.down.request_body()
            && length > work.live.settings.max_body
        {
            work.cx.failure = Some("too-large");
            let message = format!("Request body larger than {} bytes", work.live.settings.max_body);
            work.label = "refused".into();
            work.error(&Chain::default(), StatusCode::PAYLOAD_TOO_LARGE, &message).await;
        } else if work.live.is_misdirected(self.kind, &work.cx.client) {
            work.cx.failure = Some("misdirected");
            work.label = "refused".into();
            work.error(&Chain::default(), StatusCode::MISDIRECTED_REQUEST, "this connection was made for another host").await;
        } else {
            match self.kind {
                DoorKind::Edge => edge::handle(&mut work, request).await,
                DoorKind::Gateway => gateway::handle(&mut work, request).await,
            }
        }
        self.record(work, &method, &uri);
    }

    /// Serves a request that the fast lane began, from where it was left to its log line.
    pub async fn go_on<D: Downstream>(&self, request: request::Parts, handed: Handed, down: &mut D) {
        let (method, uri) = (request.method.clone(), request.uri.clone());
        let mut work = self.work(handed.live, handed.cx, &request, down);
        gateway::go_on(&mut work, request, handed.stage).await;
        self.record(work, &method, &uri);
    }

    fn work<'a, D: Downstream>(&'a self, live: Arc<Live>, cx: RequestContext, request: &request::Parts, down: &'a mut D) -> Work<'a, D> {
        Work {
            weir: &self.weir,
            accept: request.headers.get(header::ACCEPT).cloned(),
            method: request.method.clone(),
            cx,
            shown: Shown { status: true, key: true, cache_status: true, strip_site: false, times: HeaderNames::Off },
            guest_cookie: None,
            private: false,
            label: String::new(),
            seen: SeenBody::default(),
            grpc: grpc::is_grpc(&request.headers),
            begun: None,
            live,
            down,
        }
    }

    fn record<D: Downstream>(&self, work: Work<'_, D>, method: &Method, uri: &Uri) {
        let (mut cx, label, live) = (work.cx, work.label, work.live);
        cx.times.total = Some(cx.started.elapsed());
        if let Some(route) = &cx.route {
            route.chains.of(cx.consumer.as_ref().map(|c| c.index)).log(&cx);
        } else if cx.failure == Some("no-route") {
            live.snapshot.no_route.log(&cx);
        }
        self.weir.environment.metrics.request(self.kind.name(), &label, &cx);
        self.weir.access.write(self.kind.name(), method, uri, &label, &cx);
    }
}

fn read(value: Option<&HeaderValue>) -> Option<&str> {
    value.and_then(|v| v.to_str().ok()).map(str::trim).filter(|v| !v.is_empty())
}

/// Reads who asks. `X-Forwarded-*` counts only from trusted proxies: the address is the last one in the list that is not a
/// trusted proxy's.
fn who_asks(live: &Live, peer: &Peer, headers: &HeaderMap) -> Client {
    let trusted = live.trusts(&peer.ip);
    let host = read(headers.get(header::HOST)).unwrap_or("").to_ascii_lowercase();
    let own = Client {
        ip: peer.ip,
        peer: peer.ip,
        scheme: if peer.tls { Scheme::Https } else { Scheme::Http },
        host,
        port: peer.port,
        trusted,
        sni: peer.sni.clone(),
    };
    if !trusted {
        return own;
    }
    let text = |name: &str| read(headers.get(name));
    let mut ip = peer.ip;
    let hops: Vec<&str> = headers.get_all("x-forwarded-for").iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim).collect();
    for hop in hops.iter().rev() {
        let Ok(said) = hop.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() else { break };
        ip = said;
        if !live.trusts(&said) {
            break;
        }
    }
    let scheme = match text("x-forwarded-proto") {
        Some("https") => Scheme::Https,
        Some("http") => Scheme::Http,
        _ => own.scheme,
    };
    let port = text("x-forwarded-port").and_then(|p| p.parse().ok()).unwrap_or(own.port);
    let host = text("x-forwarded-host").map_or(own.host.clone(), str::to_ascii_lowercase);
    Client { ip, scheme, port, host, ..own }
}

/// Whether the caller asked for a refresh and holds the warm-up token.
fn may_refresh(live: &Live, headers: &HeaderMap) -> bool {
    let asked = headers.get(&REFRESH).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"true") || v.as_bytes() == b"1");
    let (true, Some(known), Some(shown)) = (asked, &live.warm_up_token, headers.get(&WARM_UP_TOKEN)) else { return false };
    known.matches(shown.as_bytes())
}
