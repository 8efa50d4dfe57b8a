//! Warm-up: the listed targets are asked for, again and again, by the same way and under the same keys as visitors' requests.

use crate::{
    downstream::{AnswerBody, ClientError, Downstream, Raw, RequestBody},
    live::Weir,
    server::{Door, DoorKind},
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header, response};
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use futures_util::future::BoxFuture;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::Instant,
};
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

/// News of a round, in order: how many targets there are, then each as it is done.
#[derive(Debug, Clone)]
pub enum Progress {
    /// So many will be asked for.
    Targets(usize),
    /// One is done.
    Done(Warmed),
}

/// Asks for every target once: the listed ones, those of the sitemaps, and the pages asked for most. `progress` hears of each.
pub async fn round(weir: &Arc<Weir>, config: &WarmUp, progress: impl Fn(Progress)) -> Vec<Warmed> {
    let (targets, failed) = targets(weir, config).await;
    progress(Progress::Targets(targets.len() + failed.len()));
    let note = |warmed: &Warmed| progress(Progress::Done(warmed.clone()));
    failed.iter().for_each(note);
    let mut all = ask_all(weir, targets, config.concurrency, config.rate, config.timeout.get(), note).await;
    all.extend(failed);
    all
}

/// Asks for the targets, `concurrency` at once and `rate` a second at most (0: no limit). `note` hears of each when it is done.
pub async fn ask_all(weir: &Arc<Weir>, targets: Vec<String>, concurrency: u32, rate: u32, timeout: Duration, note: impl Fn(&Warmed)) -> Vec<Warmed> {
    let permits = Arc::new(Semaphore::new(concurrency.max(1) as usize));
    let mut all = Vec::new();
    let mut done = |warmed: Warmed| {
        weir.environment.metrics.warm_up(warmed.is_ok());
        if !warmed.is_ok() {
            tracing::warn!(target = %warmed.target, result = ?warmed.result, "warm-up failed");
        }
        note(&warmed);
        all.push(warmed);
    };
    let mut tasks = JoinSet::new();
    let mut pace = (rate > 0).then(|| tokio::time::interval(Duration::from_secs(1) / rate));
    for text in targets {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        // A permit before the task: a list of fifty thousand pages makes no fifty thousand tasks.
        let Ok(permit) = permits.clone().acquire_owned().await else { break };
        tasks.spawn(one(weir.clone(), text, timeout, permit));
        while let Some(Ok(warmed)) = tasks.try_join_next() {
            done(warmed);
        }
    }
    while let Some(finished) = tasks.join_next().await {
        if let Ok(warmed) = finished {
            done(warmed);
        }
    }
    all
}

/// Everything to ask for, each once; and the sitemaps that could not be read.
async fn targets(weir: &Arc<Weir>, config: &WarmUp) -> (Vec<String>, Vec<Warmed>) {
    let mut targets = config.urls.clone();
    let mut failed = Vec::new();
    let mut sitemaps: VecDeque<String> = config.sitemaps.iter().cloned().collect();
    let mut read = 0;
    while let Some(text) = sitemaps.pop_front() {
        read += 1;
        if read > MAX_SITEMAPS {
            break;
        }
        let began = Instant::now();
        match sitemap(weir, &text, config.timeout.get()).await {
            Ok(found) => {
                sitemaps.extend(found.sitemaps);
                targets.extend(found.pages);
            }
            Err(reason) => failed.push(Warmed { target: text, result: Err(reason), verdict: None, took: began.elapsed() }),
        }
    }
    targets.extend(weir.popular.most(config.top as usize).into_iter().map(|(host, target)| format!("edge://{host}{target}")));
    let mut seen = HashSet::new();
    targets.retain(|t| seen.insert(t.clone()));
    (targets, failed)
}

async fn sitemap(weir: &Arc<Weir>, text: &str, timeout: Duration) -> Result<Sitemap, String> {
    let mut sink = Sink { keep: MAX_SITEMAP, ..Sink::default() };
    ask(weir, &Target::parse(text)?, timeout, &mut sink).await?;
    match sink.status {
        Some(200) if sink.kept.len() < MAX_SITEMAP => Sitemap::parse(&sink.kept),
        Some(200) => Err(format!("the sitemap is longer than {MAX_SITEMAP} bytes")),
        Some(status) => Err(format!("the sitemap was answered with {status}")),
        None => Err("no answer".into()),
    }
}

/// Sitemaps read in a round, indexes included.
const MAX_SITEMAPS: usize = 200;
/// The protocol's own limit (sitemaps.org): 50 MiB.
const MAX_SITEMAP: usize = 50 << 20;

/// What a sitemap or a sitemap index names, as targets.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sitemap {
    pages: Vec<String>,
    sitemaps: Vec<String>,
}

impl Sitemap {
    /// Reads `<loc>` of `<url>` and `<sitemap>` elements (sitemaps.org protocol). The scheme of a location does not matter here: its host and
    /// path are asked for at the edge.
    fn parse(xml: &[u8]) -> Result<Sitemap, String> {
        use quick_xml::events::Event;
        let xml = std::str::from_utf8(xml).map_err(|_| "the sitemap is not UTF-8")?;
        let mut reader = quick_xml::Reader::from_str(xml);
        let mut found = Sitemap::default();
        let (mut in_loc, mut of_sitemap) = (false, false);
        let mut text = String::new();
        loop {
            match reader.read_event().map_err(|e| format!("the sitemap is not XML: {e}"))? {
                Event::Start(tag) => match tag.local_name().as_ref() {
                    "sitemap" => of_sitemap = true,
                    "url" => of_sitemap = false,
                    "loc" => (in_loc, text) = (true, String::new()),
                    _ => {}
                },
                Event::Text(part) if in_loc => text.push_str(&part),
                Event::GeneralRef(entity) if in_loc => match &*entity {
                    "amp" => text.push('&'),
                    "apos" => text.push('\''),
                    "quot" => text.push('"'),
                    "lt" => text.push('<'),
                    "gt" => text.push('>'),
                    _ => {}
                },
                Event::CData(part) if in_loc => text.push_str(&part),
                Event::End(tag) if tag.local_name().as_ref() == "loc" => {
                    in_loc = false;
                    let list = if of_sitemap { &mut found.sitemaps } else { &mut found.pages };
                    if let Some((_, rest)) = text.trim().split_once("://") {
                        list.push(format!("edge://{rest}"));
                    }
                }
                Event::Eof => return Ok(found),
                _ => {}
            }
        }
    }
}

/// Boxed, since a request of a visitor (a purge) may lead to requests of Weir's own: the type of such a chain would have no end.
fn one(weir: Arc<Weir>, text: String, timeout: Duration, permit: OwnedSemaphorePermit) -> BoxFuture<'static, Warmed> {
    Box::pin(async move {
        let _permit = permit;
        let began = Instant::now();
        let mut sink = Sink::default();
        let asked = match Target::parse(&text) {
            Ok(target) => ask(&weir, &target, timeout, &mut sink).await,
            Err(error) => Err(error),
        };
        let result = match (asked, sink.status, sink.broken) {
            (Err(reason), ..) => Err(reason),
            (Ok(()), Some(_), true) => Err("the answer was cut short".into()),
            (Ok(()), Some(status), false) => Ok(status),
            (Ok(()), None, _) => Err("no answer".into()),
        };
        Warmed { target: text, result, verdict: sink.verdict, took: began.elapsed() }
    })
}

async fn ask(weir: &Arc<Weir>, target: &Target, timeout: Duration, sink: &mut Sink) -> Result<(), String> {
    let mut request = Request::new(()).into_parts().0;
    request.method = Method::GET;
    request.uri = target.path.clone();
    let host = target.host.clone().or_else(|| default_host(weir, target.kind)).unwrap_or_else(|| "localhost".into());
    request.headers.insert(header::HOST, HeaderValue::from_str(&host).map_err(|_| format!("`{host}` is not a host"))?);
    request.headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    request.headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("Weir-warm-up/", env!("CARGO_PKG_VERSION"))));
    let door = Door { weir: weir.clone(), kind: target.kind };
    tokio::time::timeout(timeout, door.handle_own(request, sink)).await.map_err(|_| format!("no answer within {timeout:?}"))
}

/// The host under which visitors ask: keys are made of it. Where none is configured, this machine's own name for itself.
fn default_host(weir: &Weir, kind: DoorKind) -> Option<String> {
    let live = weir.live.load();
    let (listen, named) = match (kind, &live.edge) {
        (DoorKind::Edge, Some(edge)) => {
            (edge.config.listen.first().to_string(), edge.config.canonical_host.clone().or_else(|| edge.config.hosts.first().cloned()))
        }
        (DoorKind::Gateway, edge) => {
            (live.document.gateway.as_ref()?.listen.first().to_string(), edge.as_ref().and_then(|e| e.config.hosts.first().cloned()))
        }
        (DoorKind::Edge, None) => return None,
    };
    named.or_else(|| listen.rsplit_once(':').map(|(_, port)| format!("localhost:{port}")))
}

/// A client that needs little more than the status.
#[derive(Default)]
struct Sink {
    status: Option<u16>,
    verdict: Option<String>,
    broken: bool,
    /// Keep this much of the body.
    keep: usize,
    kept: Vec<u8>,
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
    async fn write(&mut self, piece: Bytes) -> Result<(), ClientError> {
        let room = self.keep - self.kept.len();
        self.kept.extend_from_slice(&piece[..piece.len().min(room)]);
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

    #[test]
    fn sitemaps_and_their_indexes_are_read() {
        let xml = br#"<?xml version="1.0"?><urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">
            <url><loc> https://shop.example.com/a?x=1&amp;y=2 </loc><lastmod>2026-01-01</lastmod></url><url><loc><![CDATA[http://h:81/b]]></loc></url></urlset>"#;
        let pages = vec!["edge://shop.example.com/a?x=1&y=2".to_string(), "edge://h:81/b".into()];
        assert_eq!(Sitemap::parse(xml), Ok(Sitemap { pages, sitemaps: vec![] }));
        let index = b"<sitemapindex><sitemap><loc>https://h/s1.xml</loc></sitemap></sitemapindex>";
        assert_eq!(Sitemap::parse(index), Ok(Sitemap { pages: vec![], sitemaps: vec!["edge://h/s1.xml".into()] }));
        assert!(Sitemap::parse(b"<urlset><url></loc>").is_err());
        assert_eq!(Sitemap::parse(b"not xml at all"), Ok(Sitemap::default()));
    }
}
