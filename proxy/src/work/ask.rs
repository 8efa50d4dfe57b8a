//! Where an answer comes from: the service, the cache, or what stands in for a service that gives none.

use super::{Room, Work, takes_trailers, wants_upgrade};
use crate::{
    dial,
    downstream::{AnswerBody, Downstream, RequestBody},
    exchange::{Answered, Upload, UpstreamBody},
    forward::{self, ForwardError},
    h1,
    origin::OriginFetch,
};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header, request, response};
use std::sync::Arc;
use weir_cache::{CacheRequest, FetchError, Outcome, Plan, Report, Verdict, Waiting};
use weir_gateway::{Chain, Reply, ServiceRuntime, plugin::Ending};

/// Passes the interim answers to a fill on to a client that waits for it.
struct Hints<'a, D>(&'a mut D);

#[async_trait]
impl<D: Downstream> Waiting for Hints<'_, D> {
    async fn interim(&mut self, parts: &response::Parts) {
        // A client that takes no hints shows that again when it is answered.
        let _ = self.0.interim(parts).await;
    }
}

impl<D: Downstream> Work<'_, D> {
    /// Asks the service and passes its answer on.
    pub async fn forward(&mut self, chain: &Chain, service: &Arc<ServiceRuntime>, mut request: request::Parts) {
        let upgrade = wants_upgrade(&request.headers);
        let trailers = takes_trailers(&request.headers);
        h1::strip_hop_by_hop(&mut request.headers);
        if trailers {
            request.headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        if let Some(protocol) = upgrade {
            request.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            request.headers.insert(header::UPGRADE, protocol);
        }
        request.headers.remove(header::EXPECT);
        let seen = std::mem::take(&mut self.seen);
        let mut hash = self.cx.body_hash.take();
        if let Some(hash) = &mut hash {
            hash.read_ahead(&seen.bytes);
            hash.complete = seen.whole;
        }
        let (bytes, whole, length) = match self.cx.replace_body.take() {
            Some(body) => {
                let length = body.len() as u64;
                (body, true, RequestBody::Length(length))
            }
            None if self.cx.body.is_some() => (seen.bytes, seen.whole, self.down.request_body()),
            None => (Bytes::new(), false, self.down.request_body()),
        };
        let begun = self.begun.take();
        if !begun.as_ref().is_some_and(|begun| begun.sent.is_some()) {
            self.cx.times.forwarded = Some(self.cx.started.elapsed());
        }
        if let Some(view) = &mut self.cx.log_view {
            view.upstream_uri = request.uri.path_and_query().map(ToString::to_string);
        }
        let whole = whole || length == RequestBody::Empty;
        let mut upload = Upload {
            seen: bytes,
            whole,
            client: Some(&mut *self.down),
            length,
            taken: 0,
            limit: self.cx.max_body,
            abandon: !self.cx.must_complete,
            hash,
        };
        let answered = forward::forward(&self.weir.connector, service, &mut self.cx, &request, &mut upload, begun).await;
        self.cx.body_hash = upload.hash.take();
        self.cx.times.upstream = Some(self.cx.started.elapsed());
        match answered {
            Ok(answered) if answered.upgraded => self.tunnel(chain, answered).await,
            Ok(answered) => {
                let Answered { mut parts, mut body, .. } = answered;
                h1::strip_hop_by_hop(&mut parts.headers);
                if let Some(view) = &mut self.cx.log_view {
                    view.upstream_status = Some(parts.status.as_u16());
                }
                chain.from_upstream(&mut self.cx, &mut parts);
                let (length, empty) = (body.length, body.empty);
                let buffers = self.cx.route.as_ref().is_some_and(|route| route.response_buffering);
                let (own, all) = self.live.settings.waiting;
                let room = Room { own: if buffers { own } else { 0 }, all, waiting: &self.weir.waiting };
                self.streamed(chain, parts, &mut body, length, empty, room).await;
            }
            Err(ForwardError::Refused(reply)) => self.reply(chain, *reply).await,
            Err(ForwardError::Client(error)) => self.body_refused(chain, error, Ending::Broken).await,
            Err(ForwardError::Upstream(error)) => self.upstream_failed(chain, &error).await,
        }
    }

    /// Answers for an upstream that did not, with Kong's messages.
    pub async fn upstream_failed(&mut self, chain: &Chain, error: &FetchError) {
        self.cx.failure = Some(error.kind);
        if error.kind == forward::CIRCUIT_OPEN {
            return self.circuit_open(chain).await;
        }
        tracing::warn!(id = %self.cx.id, kind = error.kind, reason = %error.reason, "upstream failed");
        let shed = weir_gateway::resilience::Shed::ALL.iter().any(|shed| shed.word() == error.kind);
        let message = match error.status {
            StatusCode::GATEWAY_TIMEOUT => "The upstream server is timing out",
            StatusCode::SERVICE_UNAVAILABLE if shed => "The service is overloaded, try again later",
            StatusCode::SERVICE_UNAVAILABLE if error.kind == dial::UNRESOLVED => "name resolution failed",
            StatusCode::SERVICE_UNAVAILABLE => "failure to get a peer from the ring-balancer",
            _ => "An invalid response was received from the upstream server",
        };
        let ending = if self.cx.sent { Ending::Broken } else { Ending::NotSent };
        let mut reply = Reply::error("weir", &self.cx, self.accept.as_ref(), error.status, message);
        if let Ok(reason) = HeaderValue::from_str(error.kind) {
            reply.headers.insert(HeaderName::from_static("x-weir-reason"), reason);
        }
        if shed {
            let service = self.cx.service.as_ref().or(self.live.edge.as_ref().map(|edge| &edge.origin));
            let wait = service.and_then(|service| service.care.limits.iter().map(|(limiter, _)| limiter.come_again()).max());
            reply = reply.with("retry-after", itoa::Buffer::new().format(wait.map_or(1, |wait| wait.as_secs_f64().ceil() as u64)));
        }
        self.cx.answered_by = "weir";
        let (parts, body) = reply.into_parts();
        self.whole(chain, parts, body, ending).await;
    }

    /// Answers in place of a service that gets nothing for now: with what the cache holds, else as its breaker says.
    async fn circuit_open(&mut self, chain: &Chain) {
        let service = self.cx.service.clone();
        let guard = self.cx.guard.clone().or_else(|| service.as_ref()?.care.guard.clone());
        let (Some(service), Some(guard)) = (service, guard) else {
            return self.error(chain, StatusCode::SERVICE_UNAVAILABLE, "The service is failing, try again later").await;
        };
        let now = weir_cache::clock::now();
        let held = self.cx.plan.as_ref().filter(|_| guard.stale).and_then(|plan| self.weir.environment.cache.peek(&plan.epoch, &plan.key));
        if let Some(entry) = held.filter(|entry| entry.may_stand_in(now)) {
            self.cx.report = Some(Report { detail: Some(forward::CIRCUIT_OPEN), ttl: Some(entry.ttl(now)), age: Some(entry.age(now)), ..Report::new(Verdict::Stale) });
            self.cx.answered_by = "cache";
            let mut parts = http::Response::new(()).into_parts().0;
            parts.status = entry.status();
            parts.headers = entry.headers();
            return self.whole(chain, parts, entry.body().clone(), Ending::NotSent).await;
        }
        let left = guard.closed_to(&service, self.cx.route.as_deref()).unwrap_or(std::time::Duration::from_secs(1));
        let reply = guard.reply(left).with("x-weir-reason", forward::CIRCUIT_OPEN);
        self.reply(chain, reply).await;
    }

    /// Passes an upgraded connection's bytes in both directions until one side ends.
    async fn tunnel(&mut self, chain: &Chain, answered: Answered) {
        let Answered { mut parts, mut body, .. } = answered;
        // The tunnel keeps its place as long as it lasts.
        let _held = std::mem::take(&mut body.held);
        let protocol = parts.headers.get(header::UPGRADE).cloned();
        h1::strip_hop_by_hop(&mut parts.headers);
        if let Some(protocol) = protocol {
            parts.headers.insert(header::UPGRADE, protocol);
        }
        chain.response(&mut self.cx, &mut parts);
        self.finish_head(&mut parts);
        if let Err(error) = self.down.head(&parts, AnswerBody::Empty).await {
            return self.client_failed(error);
        }
        let (Some(mut upstream), Some(raw)) = (UpstreamBody::into_wire(body), self.down.upgrade()) else { return };
        let early = upstream.received.split().freeze();
        upstream.deadline.set(std::time::Duration::from_secs(30));
        let begun = async {
            upstream.write_all([&raw.received, &[], &[]]).await?;
            tokio::io::AsyncWriteExt::write_all(raw.stream, &early).await?;
            tokio::io::AsyncWriteExt::flush(raw.stream).await
        };
        if begun.await.is_ok()
            && let Ok((up, down)) = tokio::io::copy_bidirectional(raw.stream, &mut upstream.stream).await
        {
            self.cx.bytes = (up, down);
        }
    }

    /// Carries a plan out. `Some(report)`: not for the cache, forward it; else the client was answered.
    pub async fn through_cache(&mut self, chain: &Arc<Chain>, plan: &Plan, request: &request::Parts, fetch: OriginFetch, own: bool) -> Option<Report> {
        let asked = CacheRequest { method: request.method.clone(), headers: request.headers.clone(), refresh: self.cx.refresh, fill_is_own: own };
        let outcome = self.weir.environment.cache.serve(plan, &asked, Arc::new(fetch), &mut Hints(&mut *self.down)).await;
        let report = match &outcome {
            Outcome::Stored(answer) => &answer.report,
            Outcome::Filling(stream) => &stream.report,
            Outcome::Pass(report) | Outcome::Failed(_, report) => report,
        };
        self.weir.environment.metrics.cache(&plan.policy.name, report);
        match outcome {
            Outcome::Pass(report) => return Some(report),
            Outcome::Stored(answer) => {
                self.cx.answered_by = "cache";
                self.cx.report = Some(answer.report);
                self.whole(chain, answer.parts, answer.body, Ending::NotSent).await;
            }
            Outcome::Filling(stream) => {
                self.cx.report = Some(stream.report);
                self.cx.times.upstream = Some(self.cx.started.elapsed());
                let mut body = stream.body;
                let length = stream.parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
                let empty = matches!(stream.parts.status.as_u16(), 204 | 304);
                // The cache has what its client has not taken.
                let room = Room { own: 0, all: 0, waiting: &self.weir.waiting };
                self.streamed(chain, stream.parts, &mut *body, length, empty, room).await;
                if let Some(report) = &mut self.cx.report {
                    // The head went out before this was known; the log can still tell.
                    match body.refused() {
                        Some(reason) if report.detail != Some(reason) => {
                            (report.stored, report.detail) = (false, Some(reason));
                            self.weir.environment.metrics.cache_reason(&plan.policy.name, reason);
                        }
                        None if report.detail == Some(weir_cache::reasons::UNDECIDED) && self.cx.failure.is_none() => {
                            (report.stored, report.detail) = (true, None);
                        }
                        _ => {}
                    }
                }
            }
            Outcome::Failed(error, report) => {
                self.cx.report = Some(report);
                self.cx.plan.get_or_insert_with(|| plan.clone());
                self.upstream_failed(chain, &error).await;
            }
        }
        None
    }
}
