//! Warm-up: the listed targets are asked for, again and again, by the same way and under the same keys as visitors' requests.

use crate::{
    downstream::{AnswerBody, ClientError, Downstream, Raw, RequestBody},
    live::Weir,
    server::{Door, DoorKind},
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header, response};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::Instant};
use weir_config::WarmUp;

/// One target, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Through which door.
    pub kind: DoorKind,
    /// `Host`, if named.
    pub host: Option<String>,
    /// Path and query.
    pub path: Uri,
}

impl Target {
    /// Reads `/path`, `edge:/path`, `gateway:/path`, each perhaps as `//host/path`.
    ///
    /// Errors: what is wrong with it.
    pub fn parse(text: &str) -> Result<Target, String> {
        let (kind, rest) = match text.split_once(':') {
            Some(("edge", rest)) => (DoorKind::Edge, rest),
            Some(("gateway", rest)) => (DoorKind::Gateway, rest),
            _ => (DoorKind::Gateway, text),
        };
        let (host, path) = match rest.strip_prefix("//") {
            Some(rest) => {
                let at = rest.find('/').unwrap_or(rest.len());
                (Some(rest[..at].to_string()), &rest[at..])
            }
            None => (None, rest),
        };
        if host.is_none() && !path.starts_with('/') {
            return Err(format!("`{text}`: a target begins with `/`, `edge:/`, `gateway:/` or `//host/`"));
        }
        let path = if path.is_empty() { "/" } else { path };
        let path = path.parse().map_err(|_| format!("`{text}`: not a path"))?;
        Ok(Target { kind, host, path })
    }
}

/// What became of one target.
#[derive(Debug, Clone)]
pub struct Warmed {
    /// As configured.
    pub target: String,
    /// Status, or why there was none.
    pub result: Result<u16, String>,
    /// `X-Cache-Status` of the answer.
    pub verdict: Option<String>,
    /// How long it took.
    pub took: Duration,
}

impl Warmed {
    /// Whether the answer was one worth keeping.
    pub fn is_ok(&self) -> bool {
        matches!(self.result, Ok(status) if status < 400)
    }
}

/// Asks for every target once.
pub async fn round(weir: &Arc<Weir>, config: &WarmUp) -> Vec<Warmed> {
    let permits = Arc::new(Semaphore::new(config.concurrency.max(1) as usize));
    let timeout = config.timeout.get();
    let mut tasks = Vec::new();
    for text in &config.urls {
        let (weir, permits, text) = (weir.clone(), permits.clone(), text.clone());
        tasks.push(tokio::spawn(async move {
            let _permit = permits.acquire_owned().await;
            one(&weir, text, timeout).await
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        if let Ok(warmed) = task.await {
            weir.environment.metrics.warm_up(warmed.is_ok());
            if !warmed.is_ok() {
                tracing::warn!(target = %warmed.target, result = ?warmed.result, "warm-up failed");
            }
            all.push(warmed);
        }
    }
    all
}

async fn one(weir: &Arc<Weir>, text: String, timeout: Duration) -> Warmed {
    let began = Instant::now();
    let target = match Target::parse(&text) {
        Ok(target) => target,
        Err(error) => return Warmed { target: text, result: Err(error), verdict: None, took: Duration::ZERO },
    };
    let mut request = Request::new(()).into_parts().0;
    request.method = Method::GET;
    request.uri = target.path;
    let host = target.host.or_else(|| default_host(weir, target.kind)).unwrap_or_else(|| "localhost".into());
    if let Ok(host) = HeaderValue::from_str(&host) {
        request.headers.insert(header::HOST, host);
    }
    request.headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    request.headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("Weir-warm-up/", env!("CARGO_PKG_VERSION"))));
    let door = Door { weir: weir.clone(), kind: target.kind };
    let mut sink = Sink::default();
    let done = tokio::time::timeout(timeout, door.handle_own(request, &mut sink)).await;
    let result = match (done, sink.status, sink.broken) {
        (Err(_), ..) => Err(format!("no answer within {timeout:?}")),
        (Ok(()), Some(_), true) => Err("the answer was cut short".into()),
        (Ok(()), Some(status), false) => Ok(status),
        (Ok(()), None, _) => Err("no answer".into()),
    };
    Warmed { target: text, result, verdict: sink.verdict, took: began.elapsed() }
}

/// The host under which visitors ask: keys are made of it. Where none is configured, this machine's own name for itself.
fn default_host(weir: &Weir, kind: DoorKind) -> Option<String> {
    let live = weir.live.load();
    let (listen, named) = match (kind, &live.edge) {
        (DoorKind::Edge, Some(edge)) => {
            (edge.config.listen.clone(), edge.config.canonical_host.clone().or_else(|| edge.config.hosts.first().cloned()))
        }
        (DoorKind::Gateway, edge) => {
            (live.document.gateway.as_ref()?.listen.clone(), edge.as_ref().and_then(|e| e.config.hosts.first().cloned()))
        }
        (DoorKind::Edge, None) => return None,
    };
    named.or_else(|| listen.rsplit_once(':').map(|(_, port)| format!("localhost:{port}")))
}

/// A client that only counts.
#[derive(Default)]
struct Sink {
    status: Option<u16>,
    verdict: Option<String>,
    broken: bool,
}

impl Downstream for Sink {
    fn request_body(&self) -> RequestBody {
        RequestBody::Empty
    }
    async fn read(&mut self) -> Result<Option<Bytes>, ClientError> {
        Ok(None)
    }
    async fn gone(&mut self) {
        std::future::pending().await
    }
    async fn head(&mut self, parts: &response::Parts, _: AnswerBody) -> Result<(), ClientError> {
        self.status = Some(parts.status.as_u16());
        self.verdict = parts.headers.get("x-cache-status").and_then(|v| v.to_str().ok()).map(String::from);
        Ok(())
    }
    async fn interim(&mut self, _: &response::Parts) -> Result<(), ClientError> {
        Ok(())
    }
    async fn write(&mut self, _: Bytes) -> Result<(), ClientError> {
        Ok(())
    }
    async fn end(&mut self) -> Result<(), ClientError> {
        Ok(())
    }
    fn abort(&mut self) {
        self.broken = true;
    }
    fn upgrade(&mut self) -> Option<Raw<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_name_door_host_and_path() {
        let target = |text| Target::parse(text).map(|t| (t.kind, t.host, t.path.to_string()));
        assert_eq!(target("/api/home?x=1"), Ok((DoorKind::Gateway, None, "/api/home?x=1".into())));
        assert_eq!(target("edge:/"), Ok((DoorKind::Edge, None, "/".into())));
        assert_eq!(target("edge://shop.example.com/a"), Ok((DoorKind::Edge, Some("shop.example.com".into()), "/a".into())));
        assert_eq!(target("gateway://h"), Ok((DoorKind::Gateway, Some("h".into()), "/".into())));
        assert!(target("api/home").is_err() && target("edge:home").is_err());
    }
}
