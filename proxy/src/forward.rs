//! Asking a service: choose an endpoint, try, try elsewhere where that can do no harm.

use crate::{
    dial::{self, PeerKey},
    downstream::{ClientError, Downstream},
    exchange::{self, Answered, TryError, TryLimits, Upload},
};
use http::{StatusCode, request};
use pingora::connectors::TransportConnector;
use std::sync::Arc;
use weir_cache::FetchError;
use weir_gateway::{RequestContext, ServiceRuntime};

/// Why a service gave no answer.
pub enum ForwardError {
    /// It failed; tell the client.
    Upstream(FetchError),
    /// The client failed.
    Client(ClientError),
}

/// Sends the request to an endpoint of the service and waits for the head of an answer. A request is sent once more only if it is
/// known not to have been seen (no connection could be made, or a pooled one was closed under us before an answer) or if it is
/// idempotent (RFC 9110 section 9.2.2) and nothing was answered, and in either case only while its whole body is at hand.
pub async fn forward<D: Downstream>(
    connector: &TransportConnector,
    service: &Arc<ServiceRuntime>,
    cx: &mut RequestContext,
    request: &request::Parts,
    mut upload: Upload<'_, D>,
) -> Result<Answered, ForwardError> {
    let limits = TryLimits { write: service.write_timeout, read: service.read_timeout };
    let mut tried = Vec::new();
    let mut last: Option<FetchError> = None;
    let mut fresh_only = false;
    loop {
        if tried.len() > service.retries as usize {
            break;
        }
        // With fewer endpoints than tries, go round again.
        let Some(endpoint) = service.upstream.pick(&tried).or_else(|| service.upstream.pick(&[])) else {
            let reason = format!("upstream {} has no endpoint", service.upstream.name);
            return Err(ForwardError::Upstream(FetchError { kind: "no-endpoint", reason, status: StatusCode::SERVICE_UNAVAILABLE }));
        };
        cx.tries += 1;
        cx.endpoint = Some(endpoint.clone());
        let key = PeerKey::new(service, &endpoint);
        let (wire, reused) = match if fresh_only { None } else { dial::reuse(&key) } {
            Some(wire) => (wire, true),
            None => match dial::connect(connector, service, &endpoint).await {
                Ok(wire) => (wire, false),
                Err(error) => {
                    endpoint.failed();
                    tried.push(endpoint);
                    last = Some(error);
                    continue;
                }
            },
        };
        cx.sent = true;
        let tried_once = exchange::attempt(wire, reused, request, &mut upload, &endpoint, key, limits).await;
        cx.bytes.0 = upload.seen.len() as u64 + upload.taken;
        match tried_once {
            Ok(answered) => {
                endpoint.succeeded();
                return Ok(answered);
            }
            Err(TryError::Client(error)) => return Err(ForwardError::Client(error)),
            Err(TryError::Upstream { error, unanswered, reused }) => {
                let harmless = unanswered && upload.repeatable() && request.method.is_idempotent();
                if reused && harmless && error.kind != "timeout" {
                    // The pool's connection was dead: that says nothing of the endpoint. Once more on a fresh one.
                    fresh_only = true;
                    continue;
                }
                endpoint.failed();
                if !harmless || error.kind == "timeout" {
                    return Err(ForwardError::Upstream(error));
                }
                tried.push(endpoint);
                last = Some(error);
            }
        }
    }
    Err(ForwardError::Upstream(last.unwrap_or_else(|| FetchError {
        kind: "no-endpoint",
        reason: format!("upstream {} has no endpoint", service.upstream.name),
        status: StatusCode::SERVICE_UNAVAILABLE,
    })))
}
