//! A scripted origin, short ways to make plans and requests, and answers in a form that tests can compare.
#![allow(dead_code, unused_imports)]

mod faulty;
pub use faulty::Faulty;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use weir_cache::{clock::Clock, *};
use weir_store::Store;

/// Sunday, 6 November 1994, 08:49:37 GMT: when tests begin.
pub const T0: u64 = 784_111_777;

pub fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(HeaderName::from_bytes(name.as_bytes()).expect("name"), HeaderValue::from_str(value).expect("value"));
    }
    map
}

/// What the origin says to one fetch.
#[derive(Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<Bytes>,
    /// Interim answers, said at once.
    pub interim: Vec<(u16, HeaderMap)>,
    /// Time before the head.
    pub head_after: Duration,
    /// Time before each piece of the body.
    pub piece_after: Duration,
    /// Ends in the middle after all pieces.
    pub cut: bool,
    /// No answer at all.
    pub refused: bool,
    /// A plugin says that it is not for the cache, and why.
    pub forbidden: Option<&'static str>,
}

impl Reply {
    pub fn new(status: u16, fields: &[(&str, &str)], body: &str) -> Reply {
        Reply {
            status,
            headers: headers(fields),
            body: if body.is_empty() { vec![] } else { vec![Bytes::copy_from_slice(body.as_bytes())] },
            interim: vec![],
            head_after: Duration::ZERO,
            piece_after: Duration::ZERO,
            cut: false,
            refused: false,
            forbidden: None,
        }
    }

    /// A page that may be stored.
    pub fn page(text: &str) -> Reply {
        Reply::new(200, &[("content-type", "text/html; charset=utf-8"), ("cache-control", "s-maxage=60")], &format!("<html>{text}</html>"))
    }

    pub fn with(mut self, name: &str, value: &str) -> Reply {
        self.headers.append(HeaderName::from_bytes(name.as_bytes()).expect("name"), HeaderValue::from_str(value).expect("value"));
        self
    }

    /// Says this before.
    pub fn after(mut self, status: u16, fields: &[(&str, &str)]) -> Reply {
        self.interim.push((status, headers(fields)));
        self
    }

    pub fn slow(mut self, head_after: Duration) -> Reply {
        self.head_after = head_after;
        self
    }

    pub fn pieces(mut self, pieces: &[&str], piece_after: Duration) -> Reply {
        self.body = pieces.iter().map(|piece| Bytes::copy_from_slice(piece.as_bytes())).collect();
        self.piece_after = piece_after;
        self
    }

    pub fn cut(mut self) -> Reply {
        self.cut = true;
        self
    }

    pub fn refused() -> Reply {
        Reply { refused: true, ..Reply::new(200, &[], "") }
    }
}

type Script = dyn Fn(usize, &HeaderMap) -> Reply + Send + Sync;

/// An origin that follows a script and remembers what it was asked.
pub struct Origin {
    script: Box<Script>,
    pub asked: Mutex<Vec<HeaderMap>>,
    pub finished: Arc<AtomicUsize>,
}

impl Origin {
    /// `script`: the number of the fetch, from 0, and its conditions.
    pub fn new(script: impl Fn(usize, &HeaderMap) -> Reply + Send + Sync + 'static) -> Arc<Origin> {
        Arc::new(Origin { script: Box::new(script), asked: Mutex::default(), finished: Arc::default() })
    }

    pub fn always(reply: Reply) -> Arc<Origin> {
        Origin::new(move |_, _| reply.clone())
    }

    pub fn hits(&self) -> usize {
        self.asked.lock().len()
    }
}

#[async_trait]
impl Fetch for Origin {
    async fn fetch(&self, condition: HeaderMap, interim: Interim<'_>) -> Result<Fetched, FetchError> {
        let number = {
            let mut asked = self.asked.lock();
            asked.push(condition.clone());
            asked.len() - 1
        };
        let reply = (self.script)(number, &condition);
        for (status, fields) in &reply.interim {
            interim(head(*status, fields));
        }
        if !reply.head_after.is_zero() {
            tokio::time::sleep(reply.head_after).await;
        }
        if reply.refused {
            return Err(FetchError { kind: "connect", reason: "connection refused".into(), status: StatusCode::BAD_GATEWAY });
        }
        let body = Pieces { left: reply.body.into_iter().collect(), after: reply.piece_after, cut: reply.cut, finished: self.finished.clone() };
        let mut parts = head(reply.status, &reply.headers);
        if let Some(reason) = reply.forbidden {
            parts.extensions.insert(NotForCache(reason));
        }
        Ok(Fetched { parts, body: Box::new(body) })
    }
}

fn head(status: u16, headers: &HeaderMap) -> http::response::Parts {
    let mut parts = Response::new(()).into_parts().0;
    parts.status = StatusCode::from_u16(status).expect("status");
    parts.headers = headers.clone();
    parts
}

struct Pieces {
    left: std::collections::VecDeque<Bytes>,
    after: Duration,
    cut: bool,
    finished: Arc<AtomicUsize>,
}

#[async_trait]
impl BodyReader for Pieces {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        if !self.after.is_zero() {
            tokio::time::sleep(self.after).await;
        }
        match self.left.pop_front() {
            Some(piece) => Ok(Some(piece)),
            None if self.cut => Err(FetchError { kind: "truncated", reason: "origin hung up".into(), status: StatusCode::BAD_GATEWAY }),
            None => {
                self.finished.fetch_add(1, SeqCst);
                Ok(None)
            }
        }
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        Some(headers(&[("x-trailer", "1"), ("cache-control", "max-age=9999"), ("set-cookie", "a=b")]))
    }
}

pub fn html() -> Policy {
    Policy {
        name: "/**".into(),
        freshness: Freshness::Origin { heuristic: 0.0, cap: Duration::from_secs(86_400), default: None },
        gate: Gate::Html,
        statuses: vec![200, 301, 308, 404, 410],
        max_size: 1 << 20,
        stale_while_revalidate: Duration::from_secs(3600),
        stale_if_error: Duration::from_secs(3600),
        tags: vec!["catalogue".into()],
        honour_request: false,
        early_refresh_beta: 0.0,
        hit_for_miss: Duration::from_secs(30),
        lease: Duration::from_secs(3),
        max_wait: Duration::from_secs(10),
        max_fills: None,
        client_cache_control: Some(HeaderValue::from_static("public, max-age=0, must-revalidate")),
        encodings: Codings::ALL,
    }
}

pub fn plain() -> Policy {
    Policy { gate: Gate::Plain, statuses: vec![200, 203, 204, 300, 301, 302, 308, 404, 410], honour_request: true, client_cache_control: None, ..html() }
}

pub fn plan(policy: Policy) -> Plan {
    Plan { key: "html_cache:shop.example.com/".into(), epoch: "v1".into(), policy: Arc::new(policy) }
}

pub fn get(fields: &[(&str, &str)]) -> CacheRequest {
    CacheRequest { method: Method::GET, headers: headers(fields), refresh: false, fill_is_own: true }
}

/// One process.
pub struct Machine {
    pub engine: Arc<Engine>,
    pub clock: Clock,
}

impl Machine {
    pub fn new() -> Machine {
        Machine::on(Store::memory())
    }

    pub fn on(store: Store) -> Machine {
        let clock = Clock::manual(T0);
        Machine::with(store, clock)
    }

    pub fn with(store: Store, clock: Clock) -> Machine {
        let engine = Engine::new(store, EngineOptions { memory_bytes: 64 << 20, clock: clock.clone(), ..EngineOptions::default() });
        Machine { engine, clock }
    }

    pub fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    pub fn ask(&self, plan: &Plan, request: &CacheRequest, origin: &Arc<Origin>) -> impl Future<Output = Got> + use<> {
        let (engine, plan, request, origin) = (self.engine.clone(), plan.clone(), request.clone(), origin.clone());
        async move { read(engine.serve(&plan, &request, origin, &mut ()).await).await }
    }
}

/// A client that remembers the interim answers that it got.
#[derive(Default)]
pub struct Listener(pub Vec<(u16, HeaderMap)>);

#[async_trait]
impl Waiting for Listener {
    async fn interim(&mut self, parts: &http::response::Parts) {
        self.0.push((parts.status.as_u16(), parts.headers.clone()));
    }
}

/// An outcome, read to its end.
#[derive(Debug, Clone)]
pub struct Got {
    /// `stored`, `filling`, `pass` or `failed`.
    pub kind: &'static str,
    pub status: u16,
    pub headers: HeaderMap,
    /// `Err`: broken off, with the error's kind.
    pub body: Result<String, &'static str>,
    pub report: Report,
}

impl Got {
    pub fn verdict(&self) -> Verdict {
        self.report.verdict
    }

    pub fn text(&self) -> &str {
        self.body.as_deref().unwrap_or("(broken off)")
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

pub async fn read(outcome: Outcome) -> Got {
    match outcome {
        Outcome::Stored(answer) => Got {
            kind: "stored",
            status: answer.parts.status.as_u16(),
            headers: answer.parts.headers,
            body: Ok(String::from_utf8_lossy(&answer.body).into_owned()),
            report: answer.report,
        },
        Outcome::Filling(mut stream) => {
            let mut all = Vec::new();
            let body = loop {
                match stream.body.chunk().await {
                    Ok(Some(piece)) => all.extend_from_slice(&piece),
                    Ok(None) => break Ok(String::from_utf8_lossy(&all).into_owned()),
                    Err(error) => break Err(error.kind),
                }
            };
            Got { kind: "filling", status: stream.parts.status.as_u16(), headers: stream.parts.headers, body, report: stream.report }
        }
        Outcome::Pass(report) => Got { kind: "pass", status: 0, headers: HeaderMap::new(), body: Ok(String::new()), report },
        Outcome::Failed(error, report) => {
            Got { kind: "failed", status: error.status.as_u16(), headers: HeaderMap::new(), body: Err(error.kind), report }
        }
    }
}

/// Lets other tasks run until nothing moves any more (paused time: without letting time pass).
pub async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}
