//! The answers of the storefront by kind: which headers each of them carries.

use std::hash::{DefaultHasher, Hasher};

use bytes::Bytes;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName, LOCATION, REFRESH, VARY};

use super::pages::Rendered;
use super::{PRIVATE, ROUTER_VARY};
use crate::body;
use crate::call::{Call, Reply, bare, set, with_body};

const HTML: &str = "text/html; charset=utf-8";

/// Redirects that come before any page: they carry neither Vary nor Cache-Control.
pub(super) fn moved(call: &Call) -> Option<Reply> {
    let path = call.path();
    let (status, to) = match path {
        "/redirect" => {
            let mut reply = bare(StatusCode::TEMPORARY_REDIRECT);
            set(&mut reply, LOCATION, "/categories");
            set(&mut reply, CACHE_CONTROL, PRIVATE);
            set(&mut reply, VARY, ROUTER_VARY);
            return Some(reply);
        }
        "/legacy-redirect" => (StatusCode::PERMANENT_REDIRECT, "/categories".to_owned()),
        _ if path.contains("//") || (path.len() > 1 && path.ends_with('/')) => {
            let joined: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
            let query = call
                .request
                .uri()
                .query()
                .map_or_else(String::new, |q| format!("?{q}"));
            (
                StatusCode::PERMANENT_REDIRECT,
                format!("/{}{query}", joined.join("/")),
            )
        }
        _ => return None,
    };
    let mut reply = with_body(status, body::full(to.clone()));
    set(&mut reply, LOCATION, &to);
    set(&mut reply, REFRESH, &format!("0;url={to}"));
    Some(reply)
}

/// An HTML answer with ETag; 304 if the client has this very page.
pub(super) fn html(call: &Call, page: &Rendered, state: &str, cache_control: &str) -> Reply {
    let fresh = call.header("if-none-match").is_some_and(|given| {
        given
            .split(',')
            .any(|tag| tag.trim().trim_start_matches("W/") == page.etag)
    });
    let mut reply = if fresh {
        bare(StatusCode::NOT_MODIFIED)
    } else {
        with_body(StatusCode::OK, body::full(page.html.clone()))
    };
    if page.status != StatusCode::OK && !fresh {
        *reply.status_mut() = page.status;
    }
    let vary = if fresh {
        ROUTER_VARY.to_owned()
    } else {
        format!("{ROUTER_VARY}, Accept-Encoding")
    };
    set(&mut reply, VARY, &vary);
    prerendered(&mut reply, state);
    set(
        &mut reply,
        HeaderName::from_static("x-powered-by"),
        "Next.js",
    );
    set(&mut reply, CACHE_CONTROL, cache_control);
    set(&mut reply, ETAG, &page.etag);
    if !fresh {
        set(&mut reply, CONTENT_TYPE, HTML);
    }
    reply
}

pub(super) fn prerendered(reply: &mut Reply, state: &str) {
    set(reply, HeaderName::from_static("x-nextjs-cache"), state);
    set(reply, HeaderName::from_static("x-nextjs-prerender"), "1");
    set(reply, HeaderName::from_static("x-nextjs-stale-time"), "300");
}

pub(super) fn prerendered_component(reply: &mut Reply, call: &Call, cache_control: &str) {
    prerendered(reply, "HIT");
    if call.headers().contains_key("next-router-segment-prefetch") {
        reply.headers_mut().remove("x-nextjs-stale-time");
        set(reply, HeaderName::from_static("x-nextjs-postponed"), "2");
    }
    set(reply, CACHE_CONTROL, cache_control);
}

/// A dynamic page: never to be stored, no ETag.
pub(super) fn dynamic(body: body::Body) -> Reply {
    let mut reply = with_body(StatusCode::OK, body);
    set(&mut reply, VARY, &format!("{ROUTER_VARY}, Accept-Encoding"));
    set(
        &mut reply,
        HeaderName::from_static("x-powered-by"),
        "Next.js",
    );
    set(&mut reply, CACHE_CONTROL, PRIVATE);
    set(&mut reply, CONTENT_TYPE, HTML);
    reply
}

pub(super) fn plain_missing() -> Reply {
    let mut reply = with_body(StatusCode::NOT_FOUND, body::full("Not Found"));
    set(&mut reply, CACHE_CONTROL, PRIVATE);
    set(&mut reply, CONTENT_TYPE, "text/plain; charset=utf-8");
    set(&mut reply, VARY, "Accept-Encoding");
    reply
}

/// A page in two pieces, as a server that flushes the head early sends it.
pub(super) fn halves(html: &Bytes) -> Vec<Bytes> {
    let middle = html.len() / 2;
    vec![html.slice(..middle), html.slice(middle..)]
}

/// A strong ETag over the content: a fast hash, because it is made at every render.
pub(super) fn etag(content: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    format!("\"{:016x}\"", hasher.finish())
}
