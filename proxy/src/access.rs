//! The access log: one line a finished request, on standard output, written by a thread of its own.

use http::{Method, Uri};
use std::{
    io::Write,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};
use weir_gateway::RequestContext;

/// Lines that may wait for the writer; beyond it lines are dropped, for a slow terminal must not slow requests.
const WAITING: usize = 8192;

/// Where finished requests are written.
pub struct AccessLog {
    form: weir_config::AccessLog,
    lines: Option<SyncSender<String>>,
}

/// What the log says beside the context.
pub struct Logged<'a> {
    /// `edge` or `gateway`.
    pub door: &'a str,
    /// Method.
    pub method: &'a Method,
    /// Target; its query is shown as the client sent it, without values of keys that carry tokens.
    pub uri: &'a Uri,
    /// The class at the edge, or the route's name.
    pub route: &'a str,
}

impl AccessLog {
    /// A log of the given form; `Off` starts no thread.
    pub fn new(form: weir_config::AccessLog) -> AccessLog {
        let lines = (form != weir_config::AccessLog::Off).then(|| {
            let (sender, receiver) = sync_channel(WAITING);
            std::thread::Builder::new().name("access-log".into()).spawn(move || write_lines(&receiver)).ok();
            sender
        });
        AccessLog { form, lines }
    }

    /// Writes a finished request.
    pub fn write(&self, logged: &Logged<'_>, cx: &RequestContext) {
        let Some(lines) = &self.lines else { return };
        let report = cx.report.as_ref();
        let verdict = report.map_or("-", |r| r.verdict.word());
        let reason = cx.failure.or(report.and_then(|r| r.detail)).unwrap_or("-");
        let endpoint = cx.endpoint.as_ref().map_or("-", |e| e.name.as_str());
        let total = cx.started.elapsed().as_secs_f64() * 1000.0;
        let target = without_secrets(logged.uri);
        let line = if self.form == weir_config::AccessLog::Json {
            serde_json::json!({
                "time": httpdate::fmt_http_date(std::time::SystemTime::now()),
                "id": cx.id.as_str(), "door": logged.door, "client": cx.client.ip, "method": logged.method.as_str(),
                "host": cx.client.host, "target": target, "route": logged.route, "status": cx.status,
                "bytes_in": cx.bytes.0, "bytes_out": cx.bytes.1, "ms": (total * 1000.0).round() / 1000.0,
                "answered_by": cx.answered_by, "cache": verdict, "reason": reason, "endpoint": endpoint, "tries": cx.tries,
            })
            .to_string()
        } else {
            format!(
                "{} {} {} {} {target} {} {} {}B {total:.3}ms cache={verdict} by={} reason={reason} endpoint={endpoint} id={}",
                logged.door, cx.client.ip, logged.method, cx.client.host, logged.route, cx.status, cx.bytes.1, cx.answered_by, cx.id,
            )
        };
        let _ = lines.try_send(line);
    }
}

fn write_lines(lines: &Receiver<String>) {
    let mut out = std::io::BufWriter::new(std::io::stdout());
    while let Ok(line) = lines.recv() {
        if writeln!(out, "{line}").is_err() {
            return;
        }
        while let Ok(line) = lines.try_recv() {
            if writeln!(out, "{line}").is_err() {
                return;
            }
        }
        let _ = out.flush();
    }
}

/// The target with the values of token-like query keys masked.
fn without_secrets(uri: &Uri) -> String {
    let Some(query) = uri.query() else { return uri.path().to_string() };
    let masked: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((key, _)) if ["token", "key", "secret", "password", "code", "jwt"].iter().any(|s| key.to_ascii_lowercase().contains(s)) => {
                format!("{key}=***")
            }
            _ => pair.to_string(),
        })
        .collect();
    format!("{}?{}", uri.path(), masked.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_in_queries_are_masked() {
        let uri: Uri = "/a?page=2&access_token=abc&x".parse().unwrap();
        assert_eq!(without_secrets(&uri), "/a?page=2&access_token=***&x");
    }
}
