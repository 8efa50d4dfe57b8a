//! The access log: one line a finished request, on standard output. A request appends its line to a buffer of its own thread; a thread
//! of the log's own collects the buffers. So a line costs its bytes: no system call, no lock that another worker waits for.

use http::{Method, Uri};
use parking_lot::Mutex;
use std::{
    borrow::Cow,
    cell::RefCell,
    io::Write,
    net::IpAddr,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::Thread,
    time::Duration,
};
use weir_gateway::{RequestContext, metrics::IntCounter};

/// How long a line waits in its thread's buffer at most.
const COLLECT: Duration = Duration::from_millis(50);
/// From this length on the collector is woken.
const FULL: usize = 64 * 1024;
/// What a buffer may hold; beyond it lines are dropped and counted, for a slow terminal must not slow requests.
const MOST: usize = 4 << 20;

/// Where finished requests are written.
pub struct AccessLog {
    form: weir_config::AccessLog,
    shared: Option<Arc<Shared>>,
}

struct Shared {
    /// Tells the logs of one process apart, for the buffers of its threads.
    id: u64,
    buffers: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    collector: OnceLock<Thread>,
    dropped: IntCounter,
    out: Mutex<()>,
}

/// What a line says.
pub struct Line<'a> {
    /// `edge` or `gateway`.
    pub door: &'a str,
    /// The client's address.
    pub client: IpAddr,
    /// Method.
    pub method: &'a str,
    /// Host as the client sent it, lower-cased.
    pub host: &'a str,
    /// Path and query as the client sent them; values of keys that carry tokens are not written.
    pub target: &'a str,
    /// The class at the edge, or the route's name.
    pub route: &'a str,
    /// Status sent.
    pub status: u16,
    /// Body bytes received and sent.
    pub bytes: (u64, u64),
    /// From the request's head to the answer's last byte.
    pub time: Duration,
    /// `upstream`, `cache`, or who else answered.
    pub answered_by: &'a str,
    /// What the cache did, in its word.
    pub cache: &'a str,
    /// Why it failed, or why it was not from the cache.
    pub reason: &'a str,
    /// Which endpoint answered.
    pub endpoint: &'a str,
    /// Tries made upstream.
    pub tries: u32,
    /// Request id.
    pub id: &'a str,
}

type Buffer = Arc<Mutex<Vec<u8>>>;

thread_local!(static BUFFER: RefCell<Option<(u64, Buffer)>> = const { RefCell::new(None) });

impl AccessLog {
    /// A log of the given form; `Off` starts no thread. `dropped` counts the lines for which there was no room.
    pub fn new(form: weir_config::AccessLog, dropped: IntCounter) -> AccessLog {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let shared = (form != weir_config::AccessLog::Off).then(|| {
            let shared = Arc::new(Shared {
                id: IDS.fetch_add(1, Relaxed),
                buffers: Mutex::default(),
                collector: OnceLock::new(),
                dropped,
                out: Mutex::new(()),
            });
            let weak = Arc::downgrade(&shared);
            if let Ok(thread) = std::thread::Builder::new().name("access-log".into()).spawn(move || collect(&weak)) {
                let _ = shared.collector.set(thread.thread().clone());
            }
            shared
        });
        AccessLog { form, shared }
    }

    /// Writes a finished request.
    pub fn write(&self, door: &str, method: &Method, uri: &Uri, route: &str, cx: &RequestContext) {
        if self.shared.is_none() {
            return;
        }
        let report = cx.report.as_ref();
        let reason = cx.failure.or(report.and_then(|r| r.detail)).unwrap_or("-");
        let because = report.and_then(|r| r.because).filter(|_| cx.failure.is_none());
        self.line(&Line {
            door,
            client: cx.client.ip,
            method: method.as_str(),
            host: &cx.client.host,
            target: uri.path_and_query().map_or("", |target| target.as_str()),
            route,
            status: cx.status,
            bytes: cx.bytes,
            time: cx.times.total.unwrap_or_default(),
            answered_by: cx.answered_by,
            cache: report.map_or("-", |r| r.verdict.word()),
            reason: &because.map_or(Cow::Borrowed(reason), |because| Cow::Owned(format!("{reason}:{because}"))),
            endpoint: cx.endpoint.as_ref().map_or("-", |e| e.name.as_str()),
            tries: cx.tries,
            id: cx.id.as_str(),
        });
    }

    /// Writes a line.
    pub fn line(&self, line: &Line<'_>) {
        let Some(shared) = &self.shared else { return };
        BUFFER.with_borrow_mut(|mine| {
            let (_, buffer) = match mine {
                Some(mine) if mine.0 == shared.id => mine,
                _ => {
                    let buffer = Buffer::default();
                    shared.buffers.lock().push(buffer.clone());
                    mine.insert((shared.id, buffer))
                }
            };
            let mut buffer = buffer.lock();
            if buffer.len() > MOST {
                shared.dropped.inc();
                return;
            }
            let before = buffer.len();
            if self.form == weir_config::AccessLog::Json { line.json(&mut buffer) } else { line.text(&mut buffer) }
            if before < FULL && buffer.len() >= FULL
                && let Some(collector) = shared.collector.get()
            {
                collector.unpark();
            }
        });
    }

    /// Writes out what waits: before the program ends.
    pub fn flush(&self) {
        if let Some(shared) = &self.shared {
            shared.empty(&mut Vec::new());
        }
    }

}

fn collect(shared: &Weak<Shared>) {
    let mut spare = Vec::new();
    loop {
        std::thread::park_timeout(COLLECT);
        let Some(shared) = shared.upgrade() else { return };
        shared.empty(&mut spare);
    }
}

impl Shared {
    /// Writes all buffers out; threads go on with another meanwhile.
    fn empty(&self, spare: &mut Vec<u8>) {
        let _one = self.out.lock();
        let buffers = self.buffers.lock().clone();
        let mut out = std::io::stdout();
        for buffer in buffers {
            let mut held = buffer.lock();
            if held.is_empty() {
                continue;
            }
            std::mem::swap(&mut *held, spare);
            drop(held);
            let _ = out.write_all(spare);
            spare.clear();
        }
        let _ = out.flush();
        // A thread that ended leaves its buffer to us alone.
        self.buffers.lock().retain(|buffer| Arc::strong_count(buffer) > 1 || !buffer.lock().is_empty());
    }
}

fn number(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Milliseconds with three decimals.
fn millis(out: &mut Vec<u8>, time: Duration) {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    number(out, micros / 1000);
    let rest = micros % 1000;
    out.extend_from_slice(&[b'.', b'0' + (rest / 100) as u8, b'0' + (rest / 10 % 10) as u8, b'0' + (rest % 10) as u8]);
}

/// Appends an address.
pub(crate) fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            for (i, octet) in v4.octets().into_iter().enumerate() {
                if i > 0 {
                    out.push(b'.');
                }
                number(out, octet);
            }
        }
        IpAddr::V6(_) => drop(write!(out, "{address}")),
    }
}

/// Appends the time of day, as RFC 9110 section 5.6.7 writes it. Each thread formats it once a second.
pub(crate) fn date(out: &mut Vec<u8>) {
    thread_local!(static SHOWN: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) });
    let now = weir_cache::clock::now();
    SHOWN.with_borrow_mut(|(at, text)| {
        if *at != now {
            *at = now;
            *text = httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(now));
        }
        out.extend_from_slice(text.as_bytes());
    });
}

impl Line<'_> {
    fn text(&self, out: &mut Vec<u8>) {
        for part in [self.door, " "] {
            out.extend_from_slice(part.as_bytes());
        }
        address(out, self.client);
        for part in [" ", self.method, " ", self.host, " "] {
            out.extend_from_slice(part.as_bytes());
        }
        target(out, self.target);
        for part in [" ", self.route, " "] {
            out.extend_from_slice(part.as_bytes());
        }
        number(out, self.status);
        out.push(b' ');
        number(out, self.bytes.1);
        out.extend_from_slice(b"B ");
        millis(out, self.time);
        for part in ["ms cache=", self.cache, " by=", self.answered_by, " reason=", self.reason, " endpoint=", self.endpoint, " id=", self.id, " ["] {
            out.extend_from_slice(part.as_bytes());
        }
        date(out);
        out.extend_from_slice(b"]\n");
    }

    fn json(&self, out: &mut Vec<u8>) {
        let text = |out: &mut Vec<u8>, name: &str, value: &str| {
            out.extend_from_slice(name.as_bytes());
            // Writing JSON text into a Vec can not fail.
            let _ = serde_json::to_writer(&mut *out, value);
        };
        out.extend_from_slice(b"{\"time\":\"");
        date(out);
        out.extend_from_slice(b"\",\"client\":\"");
        address(out, self.client);
        out.push(b'"');
        text(out, ",\"id\":", self.id);
        text(out, ",\"door\":", self.door);
        text(out, ",\"method\":", self.method);
        text(out, ",\"host\":", self.host);
        let mut shown = Vec::with_capacity(self.target.len());
        target(&mut shown, self.target);
        text(out, ",\"target\":", &String::from_utf8_lossy(&shown));
        text(out, ",\"route\":", self.route);
        out.extend_from_slice(b",\"status\":");
        number(out, self.status);
        out.extend_from_slice(b",\"bytes_in\":");
        number(out, self.bytes.0);
        out.extend_from_slice(b",\"bytes_out\":");
        number(out, self.bytes.1);
        out.extend_from_slice(b",\"ms\":");
        millis(out, self.time);
        text(out, ",\"answered_by\":", self.answered_by);
        text(out, ",\"cache\":", self.cache);
        text(out, ",\"reason\":", self.reason);
        text(out, ",\"endpoint\":", self.endpoint);
        out.extend_from_slice(b",\"tries\":");
        number(out, self.tries);
        out.extend_from_slice(b"}\n");
    }
}

/// Appends a target with the values of token-like query keys masked.
fn target(out: &mut Vec<u8>, target: &str) {
    let Some((path, query)) = target.split_once('?') else { return out.extend_from_slice(target.as_bytes()) };
    out.extend_from_slice(path.as_bytes());
    let mut separator = b'?';
    for pair in query.split('&') {
        out.push(separator);
        separator = b'&';
        match pair.split_once('=') {
            Some((key, _)) if ["token", "key", "secret", "password", "code", "jwt"].iter().any(|s| key.to_ascii_lowercase().contains(s)) => {
                out.extend_from_slice(key.as_bytes());
                out.extend_from_slice(b"=***");
            }
            _ => out.extend_from_slice(pair.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line<'static> {
        Line {
            door: "edge",
            client: "10.1.2.3".parse().expect("address"),
            method: "GET",
            host: "shop.example",
            target: "/a?page=2&access_token=abc&x",
            route: "document",
            status: 200,
            bytes: (0, 10_240),
            time: Duration::from_micros(1_042),
            answered_by: "cache",
            cache: "HIT",
            reason: "-",
            endpoint: "-",
            tries: 0,
            id: "00ff",
        }
    }

    #[test]
    fn a_line_of_text() {
        let mut out = Vec::new();
        line().text(&mut out);
        let text = String::from_utf8(out).expect("text");
        let (text, date) = text.split_once('[').expect("a date");
        assert_eq!(
            text,
            "edge 10.1.2.3 GET shop.example /a?page=2&access_token=***&x document 200 10240B 1.042ms cache=HIT by=cache reason=- endpoint=- id=00ff "
        );
        assert!(httpdate::parse_http_date(date.trim_end().trim_end_matches(']')).is_ok(), "{date}");
    }

    #[test]
    fn a_line_of_json() {
        let mut out = Vec::new();
        Line { target: "/\"x", client: "2001:db8::1".parse().expect("address"), ..line() }.json(&mut out);
        let json: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(json["target"], "/\"x");
        assert_eq!(json["client"], "2001:db8::1");
        assert_eq!((&json["status"], &json["ms"], &json["bytes_out"]), (&200.into(), &1.042.into(), &10_240.into()));
    }
}
