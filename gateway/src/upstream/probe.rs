//! Active checks: each endpoint of an upstream is asked every so often how it is, as long as its configuration is in force.

use super::{Endpoint, State, Upstream, health::Count};
use crate::tls::UpstreamTls;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::AbortHandle,
};
use tokio_rustls::TlsConnector;
use weir_config::kong::{ActiveCheck, CheckKind};

/// Begins the checks of an upstream, if it wants any.
pub(super) fn begin(upstream: &Arc<Upstream>) -> Option<AbortHandle> {
    let check = &upstream.policy.active;
    if check.healthy.interval <= 0.0 && check.unhealthy.interval <= 0.0 {
        return None;
    }
    // The name is each endpoint's own; a certificate that can not be used was refused with the configuration, or no service shows it.
    let made = matches!(check.kind, CheckKind::Https).then(|| UpstreamTls::nameless(upstream.tls.clone()));
    let tls = match made.transpose() {
        Ok(tls) => tls.map(|tls| TlsConnector::from(tls.config)),
        Err(why) => {
            tracing::warn!(upstream = upstream.name, why, "no probes by TLS can be made");
            return None;
        }
    };
    Some(tokio::spawn(run(upstream.clone(), tls)).abort_handle())
}

async fn run(upstream: Arc<Upstream>, tls: Option<TlsConnector>) {
    let check = &upstream.policy.active;
    let mut due: Vec<(Arc<Endpoint>, Instant)> = Vec::new();
    let interval = |endpoint: &Endpoint| {
        let seconds = if endpoint.health.state() == State::Down { check.unhealthy.interval } else { check.healthy.interval };
        (seconds > 0.0).then(|| Duration::from_secs_f64(seconds))
    };
    loop {
        let now = Instant::now();
        let changed = upstream.members.changed.notified();
        let current: Vec<_> = upstream.endpoints().collect();
        due.retain(|(endpoint, _)| current.iter().any(|e| Arc::ptr_eq(e, endpoint)));
        for endpoint in current {
            if !due.iter().any(|(e, _)| Arc::ptr_eq(e, &endpoint)) {
                due.push((endpoint, now));
            }
        }
        let ready = due.iter().filter(|(endpoint, at)| *at <= now && interval(endpoint).is_some()).map(|(endpoint, _)| endpoint);
        let (upstream_ref, tls_ref) = (&upstream, &tls);
        stream::iter(ready.cloned().collect::<Vec<_>>())
            .for_each_concurrent(check.concurrency.max(1) as usize, async move |endpoint| {
                let found = ask(upstream_ref, tls_ref.as_ref(), &endpoint).await;
                upstream_ref.probed(&endpoint, found);
            })
            .await;
        let done = Instant::now();
        for (endpoint, at) in due.iter_mut().filter(|(_, at)| *at <= now) {
            // An endpoint that is not to be asked in its present state is looked at again soon: its state may change.
            *at = done + interval(endpoint).unwrap_or(Duration::from_secs(1));
        }
        let next = due.iter().map(|(_, at)| *at).min().unwrap_or(done + Duration::from_secs(1));
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            () = changed => {}
        }
    }
}

/// What a probe found.
enum Found {
    Status(StatusCode),
    Connected,
    Refused,
    Late,
}

async fn ask(upstream: &Upstream, tls: Option<&TlsConnector>, endpoint: &Endpoint) -> Found {
    let check = &upstream.policy.active;
    let timeout = if check.timeout > 0.0 { Duration::from_secs_f64(check.timeout) } else { Duration::from_secs(1) };
    match tokio::time::timeout(timeout, ask_now(upstream, tls, endpoint)).await {
        Ok(found) => found.unwrap_or(Found::Refused),
        Err(_) => Found::Late,
    }
}

/// `None`: no connection, or no answer by it.
async fn ask_now(upstream: &Upstream, tls: Option<&TlsConnector>, endpoint: &Endpoint) -> Option<Found> {
    let (check, called) = (&upstream.policy.active, upstream.called.as_ref());
    let stream = TcpStream::connect(endpoint.address().await.ok()?).await.ok()?;
    match (check.kind, tls) {
        (CheckKind::Https, Some(tls)) => {
            let named = check.https_sni.as_ref().or(called).map(|name| ServerName::try_from(bare(name).to_owned()));
            let name = match (named, endpoint.server_name()) {
                (Some(name), _) => name.ok()?,
                (None, Some(own)) => own.clone(),
                (None, None) => ServerName::try_from(bare(&endpoint.host).to_owned()).ok()?,
            };
            let stream = tls.connect(name, stream).await.ok()?;
            status(check, check.https_sni.as_ref().or(called).unwrap_or(&endpoint.target), stream).await
        }
        (CheckKind::Http, _) => status(check, called.unwrap_or(&endpoint.target), stream).await,
        _ => Some(Found::Connected),
    }
}

/// A host without its port or brackets.
fn bare(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None if host.matches(':').count() == 1 => host.split(':').next().unwrap_or(host),
        None => host,
    }
}

async fn status(check: &ActiveCheck, host: &str, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Option<Found> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let mut request = Request::get(&check.http_path).header(header::USER_AGENT, concat!("weir/", env!("CARGO_PKG_VERSION"), " (health check)"));
    let named = |name: &str| check.headers.keys().any(|n| n.eq_ignore_ascii_case(name));
    if !named("host") {
        request = request.header(header::HOST, host);
    }
    request = request.header(header::CONNECTION, "close");
    for (name, values) in &check.headers {
        for value in values {
            request = request.header(name, value);
        }
    }
    let request = request.body(Empty::<Bytes>::new()).ok()?;
    // The connection ends with the probe: its body is not wanted.
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // It may have ended with the answer.
        _ = connection => answer.await,
    };
    Some(Found::Status(answer.ok()?.status()))
}

impl Upstream {
    /// Takes a probe's finding into account.
    fn probed(&self, endpoint: &Endpoint, found: Found) {
        let check = &self.policy.active;
        let health = &endpoint.health;
        let says = |list: &Option<Vec<u16>>, otherwise: &[u16], status: StatusCode| list.as_deref().unwrap_or(otherwise).contains(&status.as_u16());
        let (what, limit, reason) = match found {
            Found::Connected => return self.probed_well(endpoint),
            Found::Status(status) if says(&check.healthy.http_statuses, &[200, 302], status) => return self.probed_well(endpoint),
            Found::Status(status) if says(&check.unhealthy.http_statuses, &[429, 404, 500, 501, 502, 503, 504, 505], status) => {
                (Count::Http, check.unhealthy.http_failures, "probes are answered with failures")
            }
            // Neither good nor bad.
            Found::Status(_) => return,
            Found::Refused => (Count::Tcp, check.unhealthy.tcp_failures, "probes find no connection"),
            Found::Late => (Count::Timeouts, check.unhealthy.timeouts, "probes are not answered in time"),
        };
        health.probed_ill();
        if limit > 0 && health.count(what, None) >= limit {
            self.left_out(endpoint, health.down(reason), reason);
        }
    }

    fn probed_well(&self, endpoint: &Endpoint) {
        if endpoint.health.probed_well(self.policy.active.healthy.successes, self.policy.slow_start) {
            tracing::info!(upstream = self.name, endpoint = endpoint.name, "probes find the endpoint well again");
        }
    }
}
