//! One request's way through a stub: count it, find its faults, do the work, spoil the answer.

use std::io;

use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, SET_COOKIE, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::body::{self, Body, Stop, StubError};
use crate::call::{Call, Reply, bare, json_reply, not_found, problem, set, wrong_method};
use crate::faults::{Effect, Fault, FaultRule};
use crate::handle::{Handle, headers, version};
use crate::server::Spawner;
use crate::wire::Switch;
use crate::{Kind, Options};
use crate::{
    auth::Auth, bff::Bff, catalogue::Catalogue, members::Members, orders::Orders, replay::Replay,
    storefront::Storefront,
};

/// A service: what all have in common around the work of one kind.
pub(crate) struct Service {
    kind: Kind,
    pub handle: Handle,
    work: Work,
}

enum Work {
    Storefront(Storefront),
    Bff(Bff),
    Auth(Auth),
    Members(Members),
    Products(Catalogue),
    Deals(Catalogue),
    Orders(Orders),
    Replay(Replay),
}

impl Service {
    pub fn new(kind: Kind, options: Options, spawner: Spawner) -> io::Result<Service> {
        let handle = Handle::new(options.remember, options.healthy);
        let work = match kind {
            Kind::Storefront => Work::Storefront(Storefront::new(&options, spawner)),
            Kind::Bff => Work::Bff(Bff::new(&options)?),
            Kind::Auth => Work::Auth(Auth::new(options.auth)),
            Kind::Members => Work::Members(Members::new()),
            Kind::Products => Work::Products(Catalogue),
            Kind::Deals => Work::Deals(Catalogue),
            Kind::Orders => Work::Orders(Orders::new(handle.clone())),
            Kind::Replay => Work::Replay(Replay::new(&options)?),
        };
        Ok(Service { kind, handle, work })
    }

    /// Answers one request. An error makes hyper drop the connection.
    pub async fn answer(
        &self,
        request: Request<Incoming>,
        switch: &Switch,
    ) -> Result<Response<Body>, StubError> {
        let is_head = request.method() == Method::HEAD;
        if request.uri().path().starts_with("/_stub/") {
            return Ok(finish(self.admin(Call::new(request)).await, is_head));
        }
        let guard = self.handle.arrive(&request);
        let effect = match self.handle.0.faults.effect(
            request.method(),
            request.uri().path(),
            request.headers(),
        ) {
            Ok(effect) => effect,
            Err(why) => {
                return Ok(finish(
                    problem(StatusCode::BAD_REQUEST, "bad_stub_header", &why),
                    is_head,
                ));
            }
        };
        if !effect.latency.is_zero() {
            tokio::time::sleep(effect.latency).await;
        }
        let in_place_of_work = !effect.after_work
            && (effect.status.is_some()
                || matches!(
                    effect.fault,
                    Some(Fault::Close | Fault::Reset | Fault::Hang)
                ));
        let mut reply = if in_place_of_work {
            bare(StatusCode::OK)
        } else {
            self.work(Call::new(request)).await
        };
        if let Some(status) = effect.status {
            reply = problem(status, "stub_fault", "this status was asked for");
        }
        let reply = spoil(reply, effect, switch).await?;
        Ok(finish(reply, is_head).map(|inner| body::holding(inner, guard)))
    }

    async fn work(&self, call: Call) -> Reply {
        match call.path() {
            "/health" => return self.health(),
            path if path == "/echo" || path.starts_with("/echo/") => return echo(call).await,
            _ => {}
        }
        match &self.work {
            Work::Storefront(work) => work.answer(call).await,
            Work::Bff(work) => work.answer(call).await,
            Work::Auth(work) => work.answer(call).await,
            Work::Members(work) => work.answer(call).await,
            Work::Products(work) => work.products(&call),
            Work::Deals(work) => work.deals(&call),
            Work::Orders(work) => work.answer(call).await,
            Work::Replay(work) => work.answer(&call),
        }
    }

    fn health(&self) -> Reply {
        let (status, text) = if self.handle.healthy() {
            (StatusCode::OK, "ok")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "failing")
        };
        let mut reply = json_reply(
            status,
            &json!({"status": text, "service": self.kind.name()}),
        );
        set(&mut reply, CACHE_CONTROL, "no-store");
        reply
    }

    async fn admin(&self, call: Call) -> Reply {
        let handle = &self.handle;
        let path = call.path().trim_start_matches("/_stub/").to_owned();
        let method = call.method().clone();
        let mut reply = match (path.as_str(), &method) {
            ("stats", &Method::GET) => json_reply(StatusCode::OK, &handle.stats()),
            ("requests", &Method::GET) => json_reply(StatusCode::OK, &handle.requests()),
            ("ledger", &Method::GET) => {
                let effects = handle.ledger();
                json_reply(
                    StatusCode::OK,
                    &json!({"count": effects.len(), "effects": effects}),
                )
            }
            ("reset", &Method::POST) => {
                handle.reset();
                bare(StatusCode::NO_CONTENT)
            }
            ("faults", &Method::GET) => {
                json_reply(StatusCode::OK, &json!({"faults": handle.faults()}))
            }
            ("faults", &Method::POST) => match call.json::<FaultRule>().await {
                Ok(rule) => match handle.add_fault(rule) {
                    Ok(()) => json_reply(StatusCode::CREATED, &json!({"faults": handle.faults()})),
                    Err(why) => problem(StatusCode::UNPROCESSABLE_ENTITY, "bad_rule", &why),
                },
                Err(reply) => reply,
            },
            ("faults", &Method::DELETE) => {
                handle.clear_faults();
                bare(StatusCode::NO_CONTENT)
            }
            ("health", &Method::POST) => match call.json::<HealthOrder>().await {
                Ok(order) => {
                    handle.set_healthy(order.healthy);
                    json_reply(StatusCode::OK, &json!({"healthy": order.healthy}))
                }
                Err(reply) => reply,
            },
            ("stats" | "requests" | "ledger", _) => wrong_method("GET"),
            ("reset" | "health", _) => wrong_method("POST"),
            ("faults", _) => wrong_method("GET, POST, DELETE"),
            _ => not_found("such stub command"),
        };
        set(&mut reply, CACHE_CONTROL, "no-store");
        reply
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthOrder {
    healthy: bool,
}

/// The request as JSON: what a proxy in front really sent. The body is hashed as it comes, so its size has no limit.
async fn echo(call: Call) -> Reply {
    let (parts, mut incoming) = call.request.into_parts();
    let (mut length, mut hash) = (0u64, Sha256::new());
    while let Some(frame) = incoming.frame().await {
        match frame.map(|f| f.into_data()) {
            Ok(Ok(data)) => {
                length += data.len() as u64;
                hash.update(&data);
            }
            Ok(Err(_trailers)) => {}
            Err(_) => {
                return problem(
                    StatusCode::BAD_REQUEST,
                    "body_broken",
                    "the body could not be read",
                );
            }
        }
    }
    let mut reply = json_reply(
        StatusCode::OK,
        &json!({
            "method": parts.method.as_str(),
            "url": parts.uri.path_and_query().map_or_else(|| parts.uri.to_string(), |pq| pq.to_string()),
            "authority": parts.uri.authority().map(|a| a.as_str()),
            "version": version(parts.version),
            "headers": headers(&parts.headers),
            "body_length": length,
            "body_sha256": hex(&hash.finalize()),
        }),
    );
    set(&mut reply, CACHE_CONTROL, "no-store");
    reply
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Does to an answer what the effect says.
async fn spoil(mut reply: Reply, effect: Effect, switch: &Switch) -> Result<Reply, StubError> {
    if let Some(size) = effect.body_size {
        let html = reply
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|t| t.as_bytes().starts_with(b"text/html"));
        *reply.body_mut() = body::filler(size, html);
        reply.headers_mut().insert(CONTENT_LENGTH, size.into());
    }
    for (name, value) in effect.headers {
        if name == SET_COOKIE {
            reply.headers_mut().append(name, value)
        } else {
            reply.headers_mut().insert(name, value).is_some()
        };
    }
    match effect.fault {
        None => Ok(reply),
        Some(Fault::Close) => Err(StubError::Closed),
        Some(Fault::Reset) => {
            switch.reset();
            Err(StubError::Closed)
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Garbage) => {
            switch.garbage();
            Ok(reply)
        }
        Some(Fault::Truncate) => Ok(halve(reply, Stop::Break)),
        Some(Fault::Stall) => Ok(halve(reply, Stop::Stall)),
    }
}

/// Half of a body whose length is declared; of a body of unknown length, as much as is worth a first piece.
fn halve(reply: Reply, stop: Stop) -> Reply {
    const OF_UNKNOWN: u64 = 512;
    const OF_NOTHING: u64 = 64; // an empty answer cannot be cut, so one that never comes is declared
    let declared = reply
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let length = declared.or(reply.body().size_hint().exact());
    let (mut parts, inner) = reply.into_parts();
    let keep = match length {
        None => OF_UNKNOWN,
        Some(0) => {
            parts.headers.insert(CONTENT_LENGTH, OF_NOTHING.into());
            0
        }
        Some(n) => {
            parts.headers.insert(CONTENT_LENGTH, n.into());
            n / 2
        }
    };
    Response::from_parts(parts, body::cut(inner, keep, stop))
}

/// The last step for every answer: HEAD keeps the length but not the body; 204 and 304 have neither.
fn finish(mut reply: Reply, is_head: bool) -> Reply {
    let bodiless = matches!(
        reply.status(),
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    );
    if is_head || bodiless {
        let length = reply.body().size_hint().exact();
        *reply.body_mut() = body::empty();
        let headers = reply.headers_mut();
        headers.remove(TRANSFER_ENCODING);
        if bodiless {
            headers.remove(CONTENT_LENGTH);
        } else if let (Some(n), false) = (length, headers.contains_key(CONTENT_LENGTH)) {
            headers.insert(CONTENT_LENGTH, n.into());
        }
    }
    reply
}
