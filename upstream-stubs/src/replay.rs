//! Recorded answers: an origin that gives what a real one gave, from a file with one exchange a line.
//!
//! The recording holds of each body only its length and its first 80 bytes; [`recorded_body`] makes a whole body
//! from them, always the same for the same record. It is sent without content coding, with the recorded ETag.
//!
//! An exchange is found by method, URL and the request headers by which Next.js chooses its answer. Several records
//! that agree in all of them are given in the order of the recording, the last one again and again. What a cache
//! in front may change is allowed for: a page (no `RSC`) is also found when its tracking parameters were dropped or
//! its query was, and a 304 is given only to a conditional request. For RSC requests nothing is allowed for: one that
//! arrives with other headers than were recorded is answered 404 with a reason, because its headers were lost on the way.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use parking_lot::Mutex;
use serde::Deserialize;

use crate::Options;
use crate::body::{empty, full};
use crate::call::{Call, Reply, problem, with_body};

/// One recorded exchange; fields of the file that are not needed are left out.
#[derive(Debug, Clone, Deserialize)]
pub struct Record {
    /// Its number in the recording.
    pub seq: u64,
    /// What the browser was doing.
    #[serde(default)]
    pub step: String,
    /// The method.
    pub method: String,
    /// Path and query.
    pub url: String,
    /// The request's headers in order.
    pub req: Vec<(String, String)>,
    /// The answer's status; `None` if the browser aborted the request.
    pub status: Option<u16>,
    /// The answer's headers in order.
    #[serde(default)]
    pub res: Vec<(String, String)>,
    /// The length of the body without content coding.
    #[serde(default, rename = "decodedLen")]
    pub decoded_len: usize,
    /// The first 80 bytes of the body without content coding, each byte as the character of that number.
    #[serde(default)]
    pub first80: String,
}

impl Record {
    /// The first request header of that name.
    pub fn request_header(&self, name: &str) -> Option<&str> {
        find(&self.req, name)
    }

    /// The first response header of that name.
    pub fn response_header(&self, name: &str) -> Option<&str> {
        find(&self.res, name)
    }

    /// The response headers that the replay sends: all but those that belong to the recorded connection or to the
    /// recorded body's coding. `Date` is left out too, so that the answer is as old as it truly is: a recorded one
    /// would make every page stale on arrival (RFC 9111 section 4.2.3).
    pub fn sent_headers(&self) -> impl Iterator<Item = (&str, &str)> {
        const LEFT_OUT: [&str; 11] = [
            "connection",
            "keep-alive",
            "transfer-encoding",
            "te",
            "trailer",
            "upgrade",
            "proxy-authenticate",
            "proxy-connection",
            "content-encoding",
            "content-length",
            "date",
        ];
        self.res
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .filter(|(n, _)| !LEFT_OUT.iter().any(|l| n.eq_ignore_ascii_case(l)))
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, v)| v.as_str())
}

/// Reads a recording. Errors name the line.
pub fn load_recording(path: &Path) -> io::Result<Vec<Record>> {
    let bad = |line: usize, why: String| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}:{line}: {why}", path.display()),
        )
    };
    let text = std::fs::read_to_string(path)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| {
            let record: Record =
                serde_json::from_str(line).map_err(|e| bad(i + 1, e.to_string()))?;
            if let Some(status) = record.status
                && !(200..=599).contains(&status)
            {
                return Err(bad(i + 1, format!("status {status} cannot be replayed")));
            }
            Ok(record)
        })
        .collect()
}

/// The body that stands for a recorded one: its first bytes as recorded, its length as recorded, the middle made
/// from the address, and `</html>` at the end if it is HTML. Empty for 304 and 204, and for what was empty.
pub fn recorded_body(record: &Record) -> Bytes {
    if matches!(record.status, Some(204 | 304)) || record.decoded_len == 0 {
        return Bytes::new();
    }
    let length = record.decoded_len;
    let mut body = BytesMut::with_capacity(length);
    body.extend(
        record
            .first80
            .chars()
            .map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')),
    );
    body.truncate(length);
    let is_html = record
        .response_header("content-type")
        .is_some_and(|t| t.starts_with("text/html"));
    let end: &[u8] = if is_html { b"</html>" } else { b"" };
    // The line break ends whatever the recorded beginning left open in a line-based payload. The ETag keeps two
    // versions of one page apart; the other headers do not change the bytes.
    let filler = format!(
        "\n/* {} {} */",
        record.url.replace("*/", "* /"),
        record.response_header("etag").unwrap_or("-")
    );
    let middle = length.saturating_sub(body.len() + end.len());
    body.extend(filler.bytes().cycle().take(middle));
    if length - body.len() == end.len() {
        body.extend_from_slice(end);
    } else {
        body.extend(std::iter::repeat_n(b' ', length - body.len()));
    }
    body.freeze()
}

/// The request headers by which Next.js chooses an answer.
const CHOOSING: [&str; 9] = [
    "rsc",
    "next-router-state-tree",
    "next-router-prefetch",
    "next-router-segment-prefetch",
    "next-url",
    "next-action",
    "x-nextjs-data",
    "x-middleware-prefetch",
    "x-deployment-id",
];

/// Query parameters that a cache drops before it asks for a page.
fn is_tracking(name: &str) -> bool {
    const NAMES: [&str; 17] = [
        "gclid",
        "gbraid",
        "wbraid",
        "dclid",
        "fbclid",
        "msclkid",
        "ttclid",
        "twclid",
        "li_fat_id",
        "mc_cid",
        "mc_eid",
        "_ga",
        "_gl",
        "igshid",
        "yclid",
        "srsltid",
        "_rsc",
    ];
    name.starts_with("utm_") || NAMES.contains(&name)
}

/// Path and query without tracking parameters, the rest sorted.
fn reduced(url: &str) -> String {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let mut pairs: Vec<&str> = query
        .split('&')
        .filter(|p| !p.is_empty() && !is_tracking(p.split('=').next().unwrap_or("")))
        .collect();
    pairs.sort_unstable();
    if pairs.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", pairs.join("&"))
    }
}

#[derive(Debug)]
struct Group {
    /// Indexes of records, in the order of the recording.
    records: Vec<usize>,
    next: Mutex<usize>,
}

/// The recording, ready to be asked.
pub(crate) struct Replay {
    records: Vec<Record>,
    groups: Vec<Group>,
    exact: HashMap<String, usize>,
    /// Pages by reduced URL and by path: the first group that has it.
    pages: HashMap<String, usize>,
}

impl Replay {
    pub fn new(options: &Options) -> io::Result<Replay> {
        let Some(path) = &options.recording else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the replay needs a recording",
            ));
        };
        Ok(Replay::of(load_recording(path)?))
    }

    fn of(records: Vec<Record>) -> Replay {
        let mut replay = Replay {
            records,
            groups: Vec::new(),
            exact: HashMap::new(),
            pages: HashMap::new(),
        };
        for (index, record) in replay.records.iter().enumerate() {
            if record.status.is_none() {
                continue; // aborted by the browser: there is no answer to give
            }
            let key = exact_key(&record.method, &record.url, |name| {
                record.request_header(name).map(str::as_bytes)
            });
            let group = *replay.exact.entry(key).or_insert_with(|| {
                replay.groups.push(Group {
                    records: Vec::new(),
                    next: Mutex::new(0),
                });
                replay.groups.len() - 1
            });
            replay.groups[group].records.push(index);
            if !is_router(|name| record.request_header(name).is_some()) {
                let path = record.url.split('?').next().unwrap_or("/").to_owned();
                replay
                    .pages
                    .entry(page_key(&record.method, &reduced(&record.url)))
                    .or_insert(group);
                replay
                    .pages
                    .entry(page_key(&record.method, &path))
                    .or_insert(group);
            }
        }
        replay
    }

    pub fn answer(&self, call: &Call) -> Reply {
        let method = call.method();
        let url = call
            .request
            .uri()
            .path_and_query()
            .map_or("/", |pq| pq.as_str());
        let Some(group) = self.find(method, call.request.uri(), url, call.headers()) else {
            return problem(
                StatusCode::NOT_FOUND,
                "not_recorded",
                &format!("no recorded exchange has {method} {url} with these router headers"),
            );
        };
        let conditional = call.headers().contains_key("if-none-match")
            || call.headers().contains_key("if-modified-since");
        let record = self.choose(&self.groups[group], conditional);
        let status = record
            .status
            .and_then(|s| StatusCode::from_u16(s).ok())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let bytes = recorded_body(record);
        let mut reply = with_body(
            status,
            if bytes.is_empty() {
                empty()
            } else {
                full(bytes)
            },
        );
        for (name, value) in record.sent_headers() {
            if let (Ok(name), Ok(value)) = (
                HeaderName::from_bytes(name.as_bytes()),
                HeaderValue::from_str(value),
            ) {
                reply.headers_mut().append(name, value);
            }
        }
        reply
    }

    fn find(&self, method: &Method, uri: &Uri, url: &str, headers: &HeaderMap) -> Option<usize> {
        let exact = exact_key(method.as_str(), url, |name| {
            headers.get(name).map(HeaderValue::as_bytes)
        });
        if let Some(group) = self.exact.get(&exact) {
            return Some(*group);
        }
        if is_router(|name| headers.contains_key(name)) {
            return None;
        }
        let page = |url: &str| self.pages.get(&page_key(method.as_str(), url)).copied();
        // A HEAD that was not recorded is answered like the GET: the body is dropped later.
        let as_get = |url: &str| {
            (method == Method::HEAD)
                .then(|| self.pages.get(&page_key("GET", url)).copied())
                .flatten()
        };
        let reduced = reduced(url);
        page(&reduced)
            .or_else(|| page(uri.path()))
            .or_else(|| as_get(&reduced))
            .or_else(|| as_get(uri.path()))
    }

    /// The next record of a group. A 304 for a request without a condition is replaced by the whole answer before it
    /// (or behind it, or, for HEAD, by that of the GET).
    fn choose(&self, group: &Group, conditional: bool) -> &Record {
        let at = {
            let mut next = group.next.lock();
            let at = *next;
            *next = (at + 1).min(group.records.len() - 1);
            at
        };
        let record = &self.records[group.records[at]];
        if conditional || record.status != Some(304) {
            return record;
        }
        let whole = |i: &&usize| self.records[**i].status != Some(304);
        let (before, behind) = group.records.split_at(at);
        let other = before
            .iter()
            .rev()
            .find(whole)
            .or_else(|| behind.iter().find(whole))
            .map(|i| &self.records[*i]);
        other
            .or_else(|| {
                self.records
                    .iter()
                    .find(|r| r.url == record.url && r.status == Some(200))
            })
            .unwrap_or(record)
    }
}

fn is_router(has: impl Fn(&str) -> bool) -> bool {
    [
        "rsc",
        "next-router-state-tree",
        "next-router-prefetch",
        "next-router-segment-prefetch",
        "next-action",
    ]
    .iter()
    .any(|name| has(name))
}

fn page_key(method: &str, url: &str) -> String {
    format!("{method} {url}")
}

fn exact_key<'a>(method: &str, url: &str, header: impl Fn(&str) -> Option<&'a [u8]>) -> String {
    let mut key = page_key(method, url);
    for name in CHOOSING {
        if let Some(value) = header(name) {
            key.push('\n');
            key.push_str(name);
            key.push('=');
            key.push_str(&String::from_utf8_lossy(value));
        }
    }
    key
}
