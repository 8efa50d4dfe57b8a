//! Asking a service: is its circuit closed, is there a place, which endpoint; try, and try elsewhere where that can do no harm and the budget
//! allows it.

use crate::{
    dial::{self, PeerKey},
    downstream::{ClientError, Downstream},
    exchange::{self, Answered, CALLERS_DEADLINE, Sent, TryError, TryLimits, Upload},
    grpc,
};
use http::{StatusCode, header, request};
use pingora::connectors::TransportConnector;
use std::{borrow::Cow, sync::Arc};
use tokio::time::Instant;
use weir_cache::FetchError;
use weir_gateway::{
    Reply, RequestContext, ServiceRuntime, Spoken,
    resilience::{Guard, Held, LimitRules, Limiter, Pass, Permit, Priority, Until, Verdict, backoff},
    upstream::{Endpoint, Outcome},
};

/// The kind of an error that means: nothing was sent, for the circuit is open.
pub const CIRCUIT_OPEN: &str = "circuit-open";

/// Why a service gave no answer.
pub enum ForwardError {
    /// It failed; tell the client.
    Upstream(FetchError),
    /// The client failed.
    Client(ClientError),
    /// It was not sent; answer this.
    Refused(Box<Reply>),
}

/// A first try that the fast lane has made, as far as it came.
pub struct Begun {
    /// The endpoint that was picked.
    pub endpoint: Arc<Endpoint>,
    /// The request, if it was sent.
    pub sent: Option<Sent>,
}

/// Sends the request to an endpoint of the service and waits for the head of an answer. A request is sent once more only if it is
/// known not to have been seen (no connection could be made, or a pooled one was closed under us before an answer) or if it is
/// idempotent (RFC 9110 section 9.2.2) and nothing was answered, or one of the statuses that the configuration names; and in either case only
/// while its whole body is at hand, the retry budget has something left and there is time.
pub async fn forward<D: Downstream>(
    connector: &TransportConnector,
    service: &Arc<ServiceRuntime>,
    cx: &mut RequestContext,
    request: &request::Parts,
    upload: &mut Upload<'_, D>,
    mut begun_before: Option<Begun>,
) -> Result<Answered, ForwardError> {
    // What comes after that is judged as it comes.
    if upload.limit.is_some_and(|limit| upload.seen.len() as u64 > limit) {
        return Err(ForwardError::Client(ClientError::TooLarge));
    }
    let care = &service.care;
    let now = Instant::now();
    let until = care.deadlines.until(&request.headers, cx.client.trusted, now);
    care.budget.request(now);
    let guard = cx.guard.clone().or_else(|| care.guard.clone());
    let route = guard.as_ref().and(cx.route.clone());
    if let Some(guard) = guard.as_ref().filter(|_| !care.limits.is_empty())
        // Nobody waits for a place at a service that gets nothing.
        && guard.turns_away(service, route.as_deref()).is_some()
    {
        return Err(circuit_open(service));
    }
    let mut held = Held::default();
    for (limiter, rules) in &care.limits {
        held.permits.push(place(limiter, rules, cx.priority(), until, upload).await?);
    }
    let mut pass = match &guard {
        Some(guard) => guard.enter(service, route.as_deref()).map_err(|_| circuit_open(service))?,
        None => None,
    };
    let limits = TryLimits {
        write: service.write_timeout,
        read: service.read_timeout,
        first_byte: care.deadlines.first_byte.unwrap_or(service.read_timeout),
        until,
    };
    let mut tries = Tries { service, guard: guard.as_deref(), until, made: 0, tried: vec![], hash: service.upstream.hash(cx, request) };
    // `Host` of the service's is that of the endpoint, if that has a name of its own.
    let by_endpoint = request.headers.get(header::HOST) == Some(&service.host_header);
    let mut request = Cow::Borrowed(request);
    let mut fresh_only = false;
    let failed = loop {
        let begun_before = begun_before.take();
        let (endpoint, mut own) = match &begun_before {
            // The fast lane knows no circuits: there is no pass to ask for.
            Some(begun) => {
                tries.made += 1;
                (begun.endpoint.clone(), None)
            }
            None => tries.next()?,
        };
        if let Some(until) = until {
            care.deadlines.tell(&mut request.to_mut().headers, until, Instant::now());
        }
        let host = endpoint.host_header(service);
        if by_endpoint && request.headers.get(header::HOST) != Some(host) {
            request.to_mut().headers.insert(header::HOST, host.clone());
        }
        cx.tries += 1;
        cx.endpoint = Some(endpoint.clone());
        let sent = begun_before.and_then(|begun| begun.sent);
        let begun = sent.as_ref().map_or_else(Instant::now, |sent| sent.at);
        let answer = if let Some(sent) = sent {
            exchange::resume(sent, &request, upload, limits).await
        } else {
            let key = PeerKey::of(service, &endpoint);
            let kept = key.filter(|_| !fresh_only).and_then(|key| Some((dial::reuse(&key, begun)?, key)));
            let reused = kept.is_some();
            let connected = match kept {
                Some(kept) => Ok(kept),
                None => connect(connector, service, &endpoint, until).await,
            };
            let (wire, key) = match connected {
                Ok(connected) => connected,
                Err(error) if error.kind == CALLERS_DEADLINE => break error,
                Err(error) => {
                    let late = error.status == StatusCode::GATEWAY_TIMEOUT;
                    service.upstream.report(&endpoint, if late { Outcome::TimedOut } else { Outcome::NotConnected });
                    tell(&mut own, Verdict::Failure);
                    tries.tried.push(endpoint);
                    // It was not sent: whatever its method is.
                    if tries.again(&error).await {
                        continue;
                    }
                    break error;
                }
            };
            if let Some(gate) = cx.before_send.take()
                && let Err(reply) = gate.before_send().await
            {
                return Err(ForwardError::Refused(Box::new(reply)));
            }
            cx.sent = true;
            exchange::attempt(wire, reused, &request, upload, &endpoint, key, limits).await
        };
        cx.bytes.0 = upload.seen.len() as u64 + upload.taken;
        let harmless = upload.repeatable() && request.method.is_idempotent();
        match answer {
            Ok(mut answered) => {
                let grpc = if service.spoken == Spoken::Http2 { grpc::judged(&answered.parts.headers) } else { None };
                let status = grpc.unwrap_or(answered.parts.status);
                let after = begun.elapsed();
                service.upstream.report(&endpoint, Outcome::Answered { status, after });
                if harmless && care.retry.statuses.contains(&status.as_u16()) && tries.may_again() {
                    tell(&mut own, Verdict::Failure);
                    tries.tried.push(endpoint);
                    tries.pause().await;
                    fresh_only = false;
                    continue;
                }
                held.answered(guard.as_deref(), own.or_else(|| pass.take()), status, after);
                answered.body.held = held;
                return Ok(answered);
            }
            Err(TryError::Client(error)) => return Err(ForwardError::Client(error)),
            Err(TryError::Upstream { error, .. }) if error.kind == CALLERS_DEADLINE => break error,
            Err(TryError::Upstream { error, unanswered, reused }) => {
                let late = error.status == StatusCode::GATEWAY_TIMEOUT;
                if reused && harmless && unanswered && !late {
                    // The pool's connection was dead: that says nothing of the endpoint. Once more on a fresh one.
                    fresh_only = true;
                    tries.made -= 1;
                    continue;
                }
                service.upstream.report(&endpoint, if late { Outcome::TimedOut } else { Outcome::Broken });
                tell(&mut own, Verdict::Failure);
                tries.tried.push(endpoint);
                if harmless && unanswered && (!late || care.retry.timeouts) && tries.again(&error).await {
                    fresh_only = false;
                    continue;
                }
                break error;
            }
        }
    };
    held.unanswered(failed.status == StatusCode::GATEWAY_TIMEOUT && failed.kind != CALLERS_DEADLINE);
    if failed.kind != CALLERS_DEADLINE {
        tell(&mut pass, Verdict::Failure);
    }
    Err(ForwardError::Upstream(failed))
}

fn tell(pass: &mut Option<Pass>, verdict: Verdict) {
    if let Some(pass) = pass {
        pass.tell(verdict);
    }
}

fn circuit_open(service: &ServiceRuntime) -> ForwardError {
    let reason = format!("{} is failing: nothing is sent to it for now", service.name);
    ForwardError::Upstream(FetchError { kind: CIRCUIT_OPEN, reason, status: StatusCode::SERVICE_UNAVAILABLE })
}

/// Waits for a place, as long as the request's time lasts and its client is there.
async fn place<D: Downstream>(
    limiter: &Arc<Limiter>,
    rules: &LimitRules,
    priority: Priority,
    until: Option<Until>,
    upload: &mut Upload<'_, D>,
) -> Result<Permit, ForwardError> {
    let enter = async {
        match until {
            Some(until) => tokio::time::timeout_at(until.at, limiter.enter(rules, priority)).await.map_err(|_| exchange::over(until)),
            None => Ok(limiter.enter(rules, priority).await),
        }
    };
    let entered = match upload.client.as_deref_mut() {
        Some(client) if upload.abandon => tokio::select! {
            biased;
            entered = enter => entered,
            () = client.gone() => return Err(ForwardError::Client(ClientError::Gone)),
        },
        _ => enter.await,
    };
    let shed = match entered.map_err(ForwardError::Upstream)? {
        Ok(permit) => return Ok(permit),
        Err(shed) => shed,
    };
    let reason = format!("{} has no place for more requests", limiter.name);
    Err(ForwardError::Upstream(FetchError { kind: shed.word(), reason, status: StatusCode::SERVICE_UNAVAILABLE }))
}

/// Opens a connection while there is time.
async fn connect(
    connector: &TransportConnector,
    service: &Arc<ServiceRuntime>,
    endpoint: &Arc<Endpoint>,
    until: Option<Until>,
) -> Result<(dial::Connection, Arc<PeerKey>), FetchError> {
    let connect = dial::connect(connector, service, endpoint);
    match until {
        Some(until) => tokio::time::timeout_at(until.at, connect).await.unwrap_or_else(|_| Err(exchange::over(until))),
        None => connect.await,
    }
}

/// Where a request was, and whether it goes on.
struct Tries<'a> {
    service: &'a ServiceRuntime,
    guard: Option<&'a Guard>,
    until: Option<Until>,
    made: u32,
    tried: Vec<Arc<Endpoint>>,
    /// Of what consistent hashing hashes.
    hash: Option<u64>,
}

impl Tries<'_> {
    /// The next endpoint, with the pass of its own circuit if it has one.
    fn next(&mut self) -> Result<(Arc<Endpoint>, Option<Pass>), ForwardError> {
        let upstream = &self.service.upstream;
        let mut barred = self.guard.map(|guard| guard.barred(upstream)).unwrap_or_default();
        loop {
            let untried = if barred.is_empty() {
                upstream.pick_for(self.hash, &self.tried)
            } else {
                upstream.pick_for(self.hash, &[&barred[..], &self.tried].concat())
            };
            // With fewer endpoints than tries, go round again.
            let Some(endpoint) = untried.or_else(|| upstream.pick_for(self.hash, &barred)) else {
                if let Some(guard) = self.guard.filter(|_| !barred.is_empty()) {
                    guard.turns_away(self.service, None);
                    return Err(circuit_open(self.service));
                }
                let reason = format!("upstream {} has no endpoint", upstream.name);
                return Err(ForwardError::Upstream(FetchError { kind: "no-endpoint", reason, status: StatusCode::SERVICE_UNAVAILABLE }));
            };
            match self.guard.map_or(Ok(None), |guard| guard.enter_endpoint(&endpoint)) {
                Ok(pass) => {
                    self.made += 1;
                    return Ok((endpoint, pass));
                }
                // Its circuit opened, or took its last probe, in this moment.
                Err(_) => barred.push(endpoint),
            }
        }
    }

    /// Whether one more try is left, in number, in time and in the budget, of which it takes its part.
    fn may_again(&self) -> bool {
        let retry = &self.service.care.retry;
        self.made <= retry.attempts
            && self.until.is_none_or(|until| !until.left(Instant::now()).is_zero())
            && self.service.care.budget.take(retry.budget, retry.least, Instant::now())
    }

    async fn pause(&self) {
        let retry = &self.service.care.retry;
        let pause = backoff(retry.backoff, retry.max_backoff, self.made.saturating_sub(1));
        let pause = self.until.map_or(pause, |until| pause.min(until.left(Instant::now())));
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether to go on after this error; if so, a pause is over.
    async fn again(&self, error: &FetchError) -> bool {
        if error.kind == "deadline" || !self.may_again() {
            return false;
        }
        self.pause().await;
        true
    }
}
