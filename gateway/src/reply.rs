//! Answers made here. Errors take the form that the client's `Accept` prefers, with Kong's messages.

use crate::{RequestContext, context::BodyHash};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header, response};

/// A whole answer made by a plugin or by the pipeline.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status.
    pub status: StatusCode,
    /// Fields; `Content-Length` is added when it is written.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Who made it.
    pub by: &'static str,
    /// What must hold of the request's body before this is sent.
    pub check: Option<Box<BodyCheck>>,
}

/// An answer that is right only for one request body, which was not read to its end when the answer was made.
#[derive(Debug, Clone)]
pub struct BodyCheck {
    /// The hash of what plugins saw of the body; the rest is added.
    pub so_far: BodyHash,
    /// What it must come to.
    pub expected: [u8; 32],
    /// Sent if it does not.
    pub otherwise: Reply,
}

impl Reply {
    /// Without body.
    pub fn empty(by: &'static str, status: StatusCode) -> Reply {
        Reply { status, headers: HeaderMap::new(), body: Bytes::new(), by, check: None }
    }

    /// With a JSON body.
    pub fn json(by: &'static str, status: StatusCode, body: &serde_json::Value) -> Reply {
        let mut reply = Reply::empty(by, status);
        reply.body = body.to_string().into();
        reply.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        reply
    }

    /// `{"message": …}` as Kong's plugins answer.
    pub fn message(by: &'static str, status: StatusCode, message: &str) -> Reply {
        Reply::json(by, status, &serde_json::json!({ "message": message }))
    }

    /// An error in the form that `Accept` prefers: JSON (also when nothing else fits), HTML, XML or plain text; with the request id.
    pub fn error(by: &'static str, cx: &RequestContext, accept: Option<&HeaderValue>, status: StatusCode, message: &str) -> Reply {
        let id = cx.id.as_str();
        let (kind, body) = match preferred(accept) {
            Form::Json => ("application/json; charset=utf-8", serde_json::json!({ "message": message, "request_id": id }).to_string()),
            Form::Html => (
                "text/html; charset=utf-8",
                format!(
                    "<!doctype html>\n<html>\n<head><meta charset=\"utf-8\"><title>{} {}</title></head>\n<body>\n<h1>{}</h1>\n<p>{}</p>\n<p>request_id: {id}</p>\n</body>\n</html>\n",
                    status.as_u16(),
                    status.canonical_reason().unwrap_or("Error"),
                    status.canonical_reason().unwrap_or("Error"),
                    escape(message),
                ),
            ),
            Form::Xml => (
                "application/xml; charset=utf-8",
                format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<error>\n  <message>{}</message>\n  <requestid>{id}</requestid>\n</error>\n", escape(message)),
            ),
            Form::Plain => ("text/plain; charset=utf-8", format!("{message}\nrequest_id: {id}\n")),
        };
        let mut reply = Reply::empty(by, status);
        reply.body = body.into();
        reply.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        reply.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        reply
    }

    /// Adds a field; an invalid value is left out.
    pub fn with(mut self, name: &'static str, value: &str) -> Reply {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// Status and fields as response parts, and the body.
    pub fn into_parts(self) -> (response::Parts, Bytes) {
        let mut parts = http::Response::new(()).into_parts().0;
        parts.status = self.status;
        parts.headers = self.headers;
        (parts, self.body)
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Form {
    Json,
    Html,
    Xml,
    Plain,
}

/// The form with the highest q-value; the first named wins a tie; `*/*` and nothing mean JSON.
fn preferred(accept: Option<&HeaderValue>) -> Form {
    let Some(accept) = accept.and_then(|v| v.to_str().ok()) else { return Form::Json };
    let mut best = (Form::Json, 0.0f32);
    for item in accept.split(',').take(32) {
        let mut parts = item.split(';').map(str::trim);
        let form = match parts.next().unwrap_or("").to_ascii_lowercase().as_str() {
            "application/json" | "application/*" | "*/*" => Form::Json,
            "text/html" | "application/xhtml+xml" => Form::Html,
            "application/xml" | "text/xml" => Form::Xml,
            "text/plain" | "text/*" => Form::Plain,
            _ => continue,
        };
        let q = parts.find_map(|p| p.strip_prefix("q=")).and_then(|q| q.parse().ok()).unwrap_or(1.0f32).clamp(0.0, 1.0);
        if q > best.1 {
            best = (form, q);
        }
    }
    best.0
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_field_chooses_the_form() {
        for (accept, form) in [
            ("", Form::Json),
            ("*/*", Form::Json),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Form::Html),
            ("application/json;q=0.5, text/plain", Form::Plain),
            ("application/xml", Form::Xml),
            ("text/*, application/json;q=0.5", Form::Plain),
            ("image/png", Form::Json),
            ("text/html;q=0", Form::Json),
            ("text/html;q=nan", Form::Json),
        ] {
            let value = HeaderValue::from_str(accept).unwrap();
            assert_eq!(preferred(Some(&value)), form, "{accept}");
        }
        assert_eq!(preferred(None), Form::Json);
    }
}
