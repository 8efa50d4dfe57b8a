//! Cases as data: what a client asks for, what it gets, and what the service behind sees of it. One YAML file holds the cases of one plugin
//! (`tests/cases/…`), and one real Weir serves them all: each case has a route, a host and a service of its own.
//!
//! ```yaml
//! consumers: […]             # for all cases, in Kong's form; `gateway:` has more keys of that section, `weir:` more sections
//! tokens: { good: { secret: …, claims: { iss: kim, exp: now+600 } } }
//! cases:
//! - about: what this is about
//!   config: {…}              # of the plugin that the file is named after; or `plugins: [{ name, config }, …]`
//!   route: {…}               # more keys of the route, and of the service
//!   service: {…}
//!   upstream: { status: 200, fields: {…}, body: text }     # what the service answers; a list: one after the other, the last for ever
//!   steps:
//!   - ask: GET /a?b=c        # `HTTP/2 GET /a` for HTTP/2
//!     fields: { x-name: value, x-several: [a, b] }
//!     body: text             # with `chunked: true`, without a length
//!     gets: 401              # or { status: 401, fields: {…}, body: … }
//!     service: none          # nothing was forwarded; or what was: { method, target, fields: {…}, body }
//!     logged: {…}            # part of the next entry that a log plugin writes to {sink}, {tcp} or {file}
//!     call: {…}              # the call that brought it to {sink}: { method, target, fields: {…} }
//!     metrics: ['kong_… 1']  # lines of the admin port's metrics
//! ```
//!
//! A text that is expected is meant exactly, but `*` is anything that is there, and `~…` a regular expression; null is what must not be
//! there. A body that is expected as a mapping or list is JSON; of a log entry only the members that are named are compared, and a name
//! that begins with `/` is a JSON Pointer. In texts `{sink}` is the URL of a server that keeps what is sent to it, `{tcp}` the port of one
//! that keeps lines, `{file}` the name of a file, `{service}` the service's URL, `{long}` 4 KB of text, and `{token:good}` the token of that name.

use crate::{Answer, Config, Door, Weir, eventually};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use regex::Regex;
use serde_json::{Map, Value, json};
use std::{
    collections::VecDeque,
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{io::AsyncBufReadExt, net::TcpListener};

/// Runs the cases of `tests/cases/{name}.yaml`. Panics with everything that differs.
pub async fn run(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("cases/{name}.yaml"));
    let file = weir_config::Node::parse_file(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).to_json();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tokens = tokens(&file);
    let mut cases = Vec::new();
    for (index, case) in list(&file, "cases").iter().enumerate() {
        cases.push(Case::new(name, index, case, folder.path(), &tokens).await);
    }
    assert!(!cases.is_empty(), "{name} has no cases");
    let mut gateway = json!({ "_format_version": "3.0", "consumers": file.get("consumers").cloned().unwrap_or(json!([])) });
    gateway["services"] = cases.iter().map(|case| case.entity.clone()).collect();
    merge(&mut gateway, file.get("gateway"));
    let mut config = json!({ "gateway": gateway });
    merge(&mut config, file.get("weir"));
    let weir = Weir::start(&Config(config)).await;
    let mut wrong = Vec::new();
    for case in &mut cases {
        case.run(&weir, &mut wrong).await;
    }
    assert!(wrong.is_empty(), "{} of {name}:\n{}", wrong.len(), wrong.join("\n"));
}

/// One case, with the service and the sinks behind it.
struct Case {
    about: String,
    host: String,
    /// The service with its route, as it stands in the configuration.
    entity: Value,
    steps: Vec<Value>,
    behind: Arc<Mutex<Behind>>,
    file: PathBuf,
    /// Log entries that steps have looked at.
    taken: usize,
}

/// What stands behind Weir for one case.
#[derive(Default)]
struct Behind {
    answers: VecDeque<Value>,
    seen: Vec<Seen>,
    entries: Vec<Entry>,
}

/// A request as the service saw it.
struct Seen {
    method: String,
    target: String,
    fields: Vec<(String, String)>,
    body: String,
}

/// What a log plugin wrote, and the call that brought it, if it came by HTTP.
#[derive(Clone)]
struct Entry {
    call: Value,
    entry: Value,
}

impl Case {
    async fn new(plugin: &str, index: usize, case: &Value, folder: &Path, tokens: &Map<String, Value>) -> Case {
        let behind = Arc::new(Mutex::new(Behind::default()));
        let (http, lines) = (listener().await, listener().await);
        let url = format!("http://{}", http.local_addr().expect("an address"));
        let port = lines.local_addr().expect("an address").port();
        let file = folder.join(format!("case-{index}.log"));
        tokio::spawn(serve(http, behind.clone()));
        tokio::spawn(keep_lines(lines, behind.clone()));

        let mut case = case.clone();
        let mut words = vec![("{sink}".into(), format!("{url}/sink")), ("{service}".into(), url.clone()), ("{tcp}".into(), port.to_string()), ("{long}".into(), "all work and no play ".repeat(200)), ("{file}".into(), file.display().to_string())];
        words.extend(tokens.iter().map(|(name, token)| (format!("{{token:{name}}}"), token.as_str().unwrap_or_default().to_owned())));
        replace(&mut case, &words);
        let plugins = match case.get("plugins") {
            Some(plugins) => plugins.clone(),
            None => json!([{ "name": plugin, "config": case.get("config").cloned().unwrap_or(json!({})) }]),
        };
        let name = format!("case-{index}");
        let host = format!("{name}.test");
        let mut route = json!({ "name": name, "hosts": [host], "paths": ["/"], "strip_path": false, "plugins": plugins });
        merge(&mut route, case.get("route"));
        let mut entity = json!({ "name": name, "url": url, "routes": [route] });
        merge(&mut entity, case.get("service"));
        behind.lock().expect("not poisoned").answers = match case.get("upstream") {
            Some(Value::Array(several)) => several.iter().cloned().collect(),
            Some(one) => VecDeque::from([one.clone()]),
            None => VecDeque::from([json!({})]),
        };
        let about = case.get("about").and_then(Value::as_str).unwrap_or(&name).to_owned();
        Case { about, host, entity, steps: list(&case, "steps").to_vec(), behind, file, taken: 0 }
    }

    async fn run(&mut self, weir: &Weir, wrong: &mut Vec<String>) {
        assert!(!self.steps.is_empty(), "{} has no steps", self.about);
        for (index, step) in self.steps.clone().iter().enumerate() {
            let mut found = Vec::new();
            self.step(weir, step, &mut found).await;
            let ask = step.get("ask").and_then(Value::as_str).unwrap_or("?");
            wrong.extend(found.into_iter().map(|what| format!("- {}, step {} ({ask}): {what}", self.about, index + 1)));
        }
    }

    async fn step(&mut self, weir: &Weir, step: &Value, wrong: &mut Vec<String>) {
        let known = ["ask", "fields", "body", "chunked", "gets", "service", "logged", "call", "metrics"];
        if let Some(odd) = step.as_object().and_then(|step| step.keys().find(|key| !known.contains(&key.as_str()))) {
            panic!("a step has no `{odd}`");
        }
        let before = self.behind.lock().expect("not poisoned").seen.len();
        let answer = self.ask(weir.gateway(), step).await;
        compare_answer(step.get("gets").unwrap_or(&Value::Null), &answer, wrong);
        if let Some(wanted) = step.get("service") {
            let behind = self.behind.lock().expect("not poisoned");
            match (wanted.as_str(), &behind.seen[before..]) {
                (Some("none"), []) => {}
                (Some("none"), seen) => wrong.push(format!("the service was asked {} times", seen.len())),
                (_, [seen]) => compare_seen(wanted, seen, wrong),
                (_, seen) => wrong.push(format!("the service was asked {} times and not once; the answer was {} {}", seen.len(), answer.status, answer.text())),
            }
        }
        if step.get("logged").is_some() || step.get("call").is_some() {
            let entry = eventually("the log's entry", async || self.entries().get(self.taken).cloned()).await;
            self.taken += 1;
            differs("the log", step.get("logged").unwrap_or(&json!({})), &entry.entry, true, wrong);
            differs("the call", step.get("call").unwrap_or(&json!({})), &entry.call, true, wrong);
        }
        for line in list(step, "metrics") {
            let line = line.as_str().expect("a line");
            let door = weir.admin();
            let shown = async || {
                let text = door.get("/metrics").send().await.expect(200).text();
                text.lines().any(|have| fits(line, have)).then_some(())
            };
            eventually(&format!("the metric {line}"), shown).await;
        }
    }

    async fn ask(&self, door: Door, step: &Value) -> Answer {
        let words: Vec<&str> = step.get("ask").and_then(Value::as_str).expect("`ask: METHOD target`").split(' ').collect();
        let (h2, method, target) = match words[..] {
            ["HTTP/2", method, target] => (true, method, target),
            [method, target] => (false, method, target),
            _ => panic!("`ask` is a method and a target: {words:?}"),
        };
        let mut ask = door.ask(method, target).host(&self.host);
        for (name, value) in step.get("fields").and_then(Value::as_object).into_iter().flatten() {
            for value in value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice) {
                ask = ask.header(name, &text_of(value));
            }
        }
        if let Some(body) = step.get("body").map(text_of) {
            if step.get("chunked").is_some_and(|chunked| chunked == true) {
                let mut connection = door.connect().await;
                connection.send(ask.header("transfer-encoding", "chunked").bytes()).await;
                connection.send(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())).await;
                return connection.answer(method).await.expect("a whole answer");
            }
            ask = ask.body(body);
        }
        if h2 { ask.send_h2().await } else { ask.send().await }
    }

    /// What log plugins wrote, in order. A case uses one kind of sink.
    fn entries(&self) -> Vec<Entry> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let whole = text.lines().take(text.matches('\n').count());
        let lines = whole.map(|line| Entry { call: Value::Null, entry: serde_json::from_str(line).unwrap_or(Value::Null) });
        self.behind.lock().expect("not poisoned").entries.iter().cloned().chain(lines).collect()
    }
}

fn compare_answer(wanted: &Value, answer: &Answer, wrong: &mut Vec<String>) {
    let before = wrong.len();
    let wanted = match wanted {
        Value::Number(_) => json!({ "status": wanted }),
        other => other.clone(),
    };
    if let Some(odd) = wanted.as_object().and_then(|w| w.keys().find(|key| !["status", "fields", "body"].contains(&key.as_str()))) {
        panic!("an answer has no `{odd}`");
    }
    differs("status", wanted.get("status").unwrap_or(&json!(200)), &json!(answer.status), false, wrong);
    compare_fields(wanted.get("fields"), &answer.headers, wrong);
    if let Some(body) = wanted.get("body") {
        compare_body(body, &answer.text(), wrong);
    }
    if wrong.len() > before {
        wrong.push(format!("  the answer was {} {:?} {}", answer.status, answer.headers, answer.text()));
    }
}

fn compare_seen(wanted: &Value, seen: &Seen, wrong: &mut Vec<String>) {
    let before = wrong.len();
    for (name, wanted) in wanted.as_object().expect("`service` is `none` or a mapping") {
        match name.as_str() {
            "method" => differs("the service's method", wanted, &json!(seen.method), false, wrong),
            "target" => differs("the service's target", wanted, &json!(seen.target), false, wrong),
            "fields" => compare_fields(Some(wanted), &seen.fields, wrong),
            "body" => compare_body(wanted, &seen.body, wrong),
            odd => panic!("a request has no `{odd}`"),
        }
    }
    if wrong.len() > before {
        wrong.push(format!("  the service saw {} {} {:?} {}", seen.method, seen.target, seen.fields, seen.body));
    }
}

/// Fields by name; several of a name are one with commas.
fn compare_fields(wanted: Option<&Value>, have: &[(String, String)], wrong: &mut Vec<String>) {
    for (name, wanted) in wanted.and_then(Value::as_object).into_iter().flatten() {
        let values: Vec<&str> = have.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect();
        let have = if values.is_empty() { Value::Null } else { json!(values.join(", ")) };
        differs(name, &json!(if wanted.is_null() { None } else { Some(text_of(wanted)) }), &have, false, wrong);
    }
}

fn compare_body(wanted: &Value, text: &str, wrong: &mut Vec<String>) {
    match wanted {
        Value::Null if text.is_empty() => {}
        Value::Null => wrong.push(format!("a body came: {text}")),
        Value::Object(_) | Value::Array(_) => match serde_json::from_str(text) {
            Ok(have) => differs("body", wanted, &have, false, wrong),
            Err(_) => wrong.push(format!("the body is not JSON: {text}")),
        },
        _ => differs("body", &json!(text_of(wanted)), &json!(text), false, wrong),
    }
}

/// Notes where `have` is not what is wanted. `part`: members that are not named do not matter.
fn differs(place: &str, wanted: &Value, have: &Value, part: bool, wrong: &mut Vec<String>) {
    match (wanted, have) {
        (Value::Object(wanted), _) => {
            for (name, wanted) in wanted {
                let have = if name.starts_with('/') { have.pointer(name) } else { have.get(name) };
                differs(&format!("{place}.{name}"), wanted, have.unwrap_or(&Value::Null), part, wrong);
            }
            match have {
                Value::Object(have) if !part => {
                    for name in have.keys().filter(|name| !wanted.contains_key(*name)) {
                        wrong.push(format!("{place} has `{name}`"));
                    }
                }
                Value::Object(_) | Value::Array(_) => {}
                _ if wanted.is_empty() => {}
                _ => wrong.push(format!("{place} is {have}")),
            }
        }
        (Value::Array(wanted), Value::Array(have)) if wanted.len() == have.len() => {
            for (index, (wanted, have)) in wanted.iter().zip(have).enumerate() {
                differs(&format!("{place}[{index}]"), wanted, have, part, wrong);
            }
        }
        (Value::String(wanted), have) if !have.is_null() && fits(wanted, &text_of(have)) => {}
        (wanted, have) if wanted == have => {}
        _ => wrong.push(format!("{place} is {have} and not {wanted}")),
    }
}

/// Whether a text is what is expected: exactly, or anything (`*`), or by a regular expression (`~…`).
fn fits(wanted: &str, have: &str) -> bool {
    match (wanted, wanted.strip_prefix('~')) {
        ("*", _) => true,
        (_, Some(pattern)) => Regex::new(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}")).is_match(have),
        (exact, None) => exact == have,
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Puts the members of `more` over those of `into`.
fn merge(into: &mut Value, more: Option<&Value>) {
    for (name, value) in more.and_then(Value::as_object).into_iter().flatten() {
        match (into.get_mut(name), value) {
            (Some(old @ Value::Object(_)), Value::Object(_)) => merge(old, Some(value)),
            _ => into[name] = value.clone(),
        }
    }
}

/// Puts words in the place of names, in all texts. One that is nothing but a port is a number then.
fn replace(value: &mut Value, words: &[(String, String)]) {
    match value {
        Value::String(text) if text == "{tcp}" => {
            let port = words.iter().find(|(name, _)| name == "{tcp}").and_then(|(_, port)| port.parse::<u16>().ok());
            *value = json!(port);
        }
        Value::String(text) => words.iter().filter(|(name, _)| text.contains(name.as_str())).cloned().collect::<Vec<_>>().iter().for_each(|(name, word)| *text = text.replace(name, word)),
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, words)),
        Value::Object(members) => members.values_mut().for_each(|member| replace(member, words)),
        _ => {}
    }
}

/// The tokens of a file: JWTs with HS256 (or `alg`) and a `secret`, whose times may be written `now+60`.
fn tokens(file: &Value) -> Map<String, Value> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs();
    let mut made = Map::new();
    for (name, token) in file.get("tokens").and_then(Value::as_object).into_iter().flatten() {
        let mut claims = token.get("claims").cloned().unwrap_or(json!({}));
        for claim in claims.as_object_mut().into_iter().flatten().map(|(_, value)| value) {
            let moved = claim.as_str().and_then(|text| text.strip_prefix("now")).and_then(|by| if by.is_empty() { Some(0) } else { by.parse::<i64>().ok() });
            if let Some(by) = moved {
                *claim = json!(now.saturating_add_signed(by));
            }
        }
        let alg = token.get("alg").and_then(Value::as_str).unwrap_or("HS256");
        let mut header = jsonwebtoken::Header::new(alg.parse().expect("an algorithm"));
        header.kid = token.get("kid").and_then(Value::as_str).map(str::to_owned);
        let secret = token.get("secret").and_then(Value::as_str).unwrap_or_default();
        let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
        made.insert(name.clone(), json!(jsonwebtoken::encode(&header, &claims, &key).expect("a token")));
    }
    made
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a free port")
}

/// The service of a case, and under `/sink` the server that logs are sent to.
async fn serve(listener: TcpListener, behind: Arc<Mutex<Behind>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let behind = behind.clone();
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let behind = behind.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map(|whole| whole.to_bytes()).unwrap_or_default();
                Ok::<_, Infallible>(behind.lock().expect("not poisoned").answer(&parts, &body))
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

impl Behind {
    fn answer(&mut self, parts: &http::request::Parts, body: &[u8]) -> http::Response<Full<Bytes>> {
        let fields: Vec<(String, String)> = parts.headers.iter().map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned())).collect();
        let (method, target) = (parts.method.to_string(), parts.uri.to_string());
        let body = String::from_utf8_lossy(body).into_owned();
        if target.starts_with("/sink") {
            let call = json!({ "method": method, "target": target, "fields": fields.iter().map(|(n, v)| (n.clone(), json!(v))).collect::<Map<_, _>>() });
            match serde_json::from_str(&body).unwrap_or(Value::Null) {
                Value::Array(batch) => self.entries.extend(batch.into_iter().map(|entry| Entry { call: call.clone(), entry })),
                entry => self.entries.push(Entry { call, entry }),
            }
            return http::Response::new(Full::default());
        }
        self.seen.push(Seen { method, target, fields, body });
        let answer = if self.answers.len() > 1 { self.answers.pop_front() } else { self.answers.front().cloned() }.unwrap_or_default();
        let status = answer.get("status").and_then(Value::as_u64).and_then(|s| u16::try_from(s).ok()).unwrap_or(200);
        let mut response = http::Response::builder().status(status);
        for (name, value) in answer.get("fields").and_then(Value::as_object).into_iter().flatten() {
            for value in value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice) {
                response = response.header(name, text_of(value));
            }
        }
        let body = match answer.get("body") {
            None => "hello".into(),
            Some(body) => text_of(body),
        };
        response.body(Full::new(Bytes::from(body))).expect("an answer")
    }
}

/// Keeps the lines that are sent, each a JSON entry.
async fn keep_lines(listener: TcpListener, behind: Arc<Mutex<Behind>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let behind = behind.clone();
        tokio::spawn(async move {
            let mut lines = tokio::io::BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let entry = serde_json::from_str(&line).unwrap_or(Value::Null);
                behind.lock().expect("not poisoned").entries.push(Entry { call: Value::Null, entry });
            }
        });
    }
}
