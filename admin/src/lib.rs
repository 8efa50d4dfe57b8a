//! The admin port: metrics, health, and the few calls that an operator needs. Everything that shows or changes state wants the
//! admin token, or, when none is configured, a caller on this machine.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::mpsc};
use weir_gateway::Environment;

/// Largest body of an admin call.
const MAX_BODY: usize = 1024 * 1024;

/// What the admin port can ask of the program.
#[async_trait::async_trait]
pub trait Control: Send + Sync + 'static {
    /// Shared state.
    fn environment(&self) -> &Arc<Environment>;
    /// Whether `shown` is the admin token in force; `None`: none is configured.
    fn token_fits(&self, shown: &[u8]) -> Option<bool>;
    /// Listeners, routes with their chains, page rules.
    fn describe(&self) -> Value;
    /// Removes from the cache of every instance, or marks stale; a report with the number of entries.
    ///
    /// Errors: why the order can not be carried out.
    async fn purge(&self, order: PurgeOrder) -> Result<Value, String>;
    /// Warms all configured targets up now. The receiver hears of each as it is done, and at last of the sums.
    ///
    /// Errors: nothing is configured, or another round is under way.
    async fn warm_up(&self) -> Result<mpsc::Receiver<Value>, String>;
    /// Ends a token on all instances.
    ///
    /// Errors: why the order can not be carried out, or that the store did not take it: then it is ended on this instance only.
    async fn log_out(&self, order: LogOutOrder) -> Result<(), (StatusCode, String)>;
    /// Reads the configuration again.
    ///
    /// Errors: what is wrong with it; the old one stays in force.
    async fn reload(&self) -> Result<(), String>;
    /// Why the last reload was refused; `None`: it was not, or there was none.
    fn refused_reload(&self) -> Option<String>;
}

/// Serves the admin port until `stop` resolves.
///
/// Errors: the address can not be listened on.
pub async fn serve(listener: TcpListener, control: Arc<dyn Control>, stop: impl Future<Output = ()> + Send) -> std::io::Result<()> {
    tokio::pin!(stop);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "admin: accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut stop => return Ok(()),
        };
        let control = control.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request| {
                let control = control.clone();
                async move { Ok::<_, Infallible>(answer(&*control, peer, request).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "admin connection");
            }
        });
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

async fn answer(control: &dyn Control, peer: SocketAddr, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().trim_end_matches('/').to_string();
    match (parts.method.as_str(), path.as_str()) {
        ("GET" | "HEAD", "/health" | "/health/live") => return as_json(StatusCode::OK, &json!({ "status": "ok" })),
        ("GET" | "HEAD", "/ready" | "/health/ready") => return readiness(control),
        _ => {}
    }
    if let Err(refusal) = allowed(control, peer, &parts.headers) {
        return refusal;
    }
    let get = matches!(parts.method, Method::GET | Method::HEAD);
    match path.as_str() {
        "/metrics" if get => plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", control.environment().metrics.text(control.environment())),
        "" if get => as_json(StatusCode::OK, &json!({
            "name": "weir", "version": env!("CARGO_PKG_VERSION"),
            "calls": ["GET /metrics", "GET /health", "GET /ready", "GET /status", "GET /upstreams", "PUT /upstreams/{upstream}/targets/{host:port}/{healthy|unhealthy|draining}", "POST /purge {\"url\"|\"key\"|\"prefix\"|\"host\"|\"tag\"|\"all\": …, \"soft\", \"warm\"}", "POST /warm-up", "POST /logout {\"token\"|\"jti\"|\"sha256\": …, \"channel\"}", "POST /reload"],
        })),
        "/upstreams" if get => as_json(StatusCode::OK, &json!({ "upstreams": control.environment().endpoints.view() })),
        target if target.starts_with("/upstreams/") => set_health(control.environment(), &parts.method, target),
        "/status" if get => as_json(StatusCode::OK, &status(control)),
        "/purge" if parts.method == Method::POST => purge(control, body).await,
        "/warm-up" if parts.method == Method::POST => match control.warm_up().await {
            Ok(lines) => as_lines(lines),
            Err(reason) => as_json(StatusCode::CONFLICT, &json!({ "message": reason })),
        },
        "/logout" if parts.method == Method::POST => log_out(control, body).await,
        "/reload" if parts.method == Method::POST => match control.reload().await {
            Ok(()) => as_json(StatusCode::OK, &json!({ "message": "the new configuration is in force" })),
            Err(reason) => as_json(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "message": "the old configuration stays in force", "errors": reason })),
        },
        "" | "/metrics" | "/status" | "/upstreams" | "/purge" | "/warm-up" | "/logout" | "/reload" => as_json(StatusCode::METHOD_NOT_ALLOWED, &json!({ "message": "method not allowed" })),
        _ => as_json(StatusCode::NOT_FOUND, &json!({ "message": "no such call; GET / lists them" })),
    }
}

/// `PUT /upstreams/{upstream}/targets/{target}/{state}`, as in Kong; `draining` is Weir's own.
fn set_health(environment: &Environment, method: &Method, path: &str) -> Answer {
    let parts: Vec<&str> = path.split('/').skip(2).collect();
    let [upstream, "targets", target, state @ ("healthy" | "unhealthy" | "draining")] = parts[..] else {
        return as_json(StatusCode::NOT_FOUND, &json!({ "message": "no such call; GET / lists them" }));
    };
    if method != Method::PUT {
        return as_json(StatusCode::METHOD_NOT_ALLOWED, &json!({ "message": "method not allowed" }));
    }
    match environment.endpoints.set(upstream, target, state) {
        Ok(()) => plain(StatusCode::NO_CONTENT, "application/json; charset=utf-8", Bytes::new()),
        Err(reason) => as_json(StatusCode::NOT_FOUND, &json!({ "message": reason })),
    }
}

async fn purge(control: &dyn Control, body: Incoming) -> Answer {
    let bad = |message: &str| as_json(StatusCode::BAD_REQUEST, &json!({ "message": message }));
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else { return bad("the body could not be read") };
    let order: PurgeOrder = match serde_json::from_slice(&body.to_bytes()) {
        Ok(order) => order,
        Err(error) => return bad(&format!("the body is not a purge: {error}")),
    };
    match control.purge(order).await {
        Ok(report) => as_json(StatusCode::OK, &report),
        Err(reason) => bad(&reason),
    }
}

async fn log_out(control: &dyn Control, body: Incoming) -> Answer {
    let bad = |message: &str| as_json(StatusCode::BAD_REQUEST, &json!({ "message": message }));
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else { return bad("the body could not be read") };
    // What is wrong with it is not shown: it may hold a token.
    let Ok(order) = serde_json::from_slice::<LogOutOrder>(&body.to_bytes()) else { return bad("the body is not a logout: one of `token`, `jti` and `sha256` is wanted") };
    match control.log_out(order).await {
        Ok(()) => as_json(StatusCode::OK, &json!({ "message": "the token is logged out on all instances" })),
        Err((status, reason)) => as_json(status, &json!({ "message": reason })),
    }
}

/// Which token to end: one of `token`, `jti` and `sha256`.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogOutOrder {
    /// The token itself.
    pub token: Option<String>,
    /// Its `jti`.
    pub jti: Option<String>,
    /// The SHA-256 of the token in hex.
    pub sha256: Option<String>,
    /// The channel that `token-validator` listens on; `logout` if not given.
    pub channel: Option<String>,
}

/// What to purge: one of `url`, `key`, `prefix`, `host`, `tag` and `all`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PurgeOrder {
    /// A page: `https://host/path?query`, with all its variants.
    pub url: Option<String>,
    /// A key as `X-Cache-Key` shows it.
    pub key: Option<String>,
    /// Every page whose `host/path` begins so.
    pub prefix: Option<String>,
    /// Every page of a host.
    pub host: Option<String>,
    /// Everything with this tag.
    pub tag: Option<String>,
    /// Everything.
    pub all: bool,
    /// Mark stale instead of removing: still good while a new one is fetched, or when the origin fails.
    pub soft: bool,
    /// Ask for the purged pages again at once.
    pub warm: bool,
}

/// The token, compared in constant time; without a configured one, callers from this machine that do not come by a browser's page.
fn allowed(control: &dyn Control, peer: SocketAddr, headers: &HeaderMap) -> Result<(), Answer> {
    let shown = headers.get(header::AUTHORIZATION).and_then(|v| v.as_bytes().strip_prefix(b"Bearer ")).unwrap_or_default();
    match control.token_fits(shown) {
        Some(true) => Ok(()),
        Some(false) => {
            let mut answer = as_json(StatusCode::UNAUTHORIZED, &json!({ "message": "the admin token is missing or wrong" }));
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer realm=\"weir admin\""));
            Err(answer)
        }
        None if peer.ip().to_canonical().is_loopback() && !headers.contains_key(header::ORIGIN) => Ok(()),
        None => Err(as_json(StatusCode::FORBIDDEN, &json!({ "message": "without an admin token, only callers on this machine are answered" }))),
    }
}

/// Ready, or degraded when the store is away: Weir serves from memory and origin then, so that it must not be taken out.
fn readiness(control: &dyn Control) -> Answer {
    let environment = control.environment();
    let (status, store) = match environment.store.health.check() {
        Ok(()) => ("ready", "ok".to_string()),
        Err(reason) => ("degraded", reason),
    };
    // The reason may quote the file: it is for /status and the log.
    let configuration = if control.refused_reload().is_some() { "the last reload was refused; the configuration before it is in force" } else { "ok" };
    as_json(
        StatusCode::OK,
        &json!({ "status": status, "configuration": configuration, "store": { "kind": environment.store.health.kind(), "state": store } }),
    )
}

fn status(control: &dyn Control) -> Value {
    let environment = control.environment();
    let totals = environment.store.health.totals();
    let endpoints: Vec<Value> = environment
        .endpoints
        .view()
        .iter()
        .flat_map(|u| &u.endpoints)
        .map(|e| json!({ "endpoint": e.address, "up": e.is_in_use(), "in_flight": e.in_flight }))
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "store": {
            "kind": environment.store.health.kind(), "address": environment.store.health.address(),
            "error": environment.store.health.check().err(),
            "calls": totals.calls, "failures": totals.failures, "breaker_opened": totals.breaker_opened,
        },
        "cache": environment.cache.stats(),
        "endpoints": endpoints,
        "resilience": environment.resilience.describe(),
        "configuration": control.describe(),
        "refused_reload": control.refused_reload(),
    })
}

fn plain(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    answer.headers_mut().insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    answer
}

fn as_json(status: StatusCode, body: &Value) -> Answer {
    plain(status, "application/json; charset=utf-8", format!("{body:#}\n"))
}

/// One JSON object a line, each as soon as it is there.
fn as_lines(mut values: mpsc::Receiver<Value>) -> Answer {
    let frames = futures_util::stream::poll_fn(move |cx| {
        values.poll_recv(cx).map(|value| value.map(|value| Ok(Frame::data(Bytes::from(format!("{value}\n"))))))
    });
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/x-ndjson"));
    answer.headers_mut().insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    answer
}
