//! React Server Component payloads: what the client router fetches in place of pages.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, LOCATION, VARY};
use serde_json::json;
use sha2::{Digest, Sha256};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::body;
use crate::call::{Call, Reply, bare, set, with_body};

/// The request headers that choose a payload, and so go into the `_rsc` hash.
const CHOOSING: [&str; 4] = [
    "next-router-prefetch",
    "next-router-segment-prefetch",
    "next-router-state-tree",
    "next-url",
];

/// The payload for a path. Chunked, like the real one; what the router sent shows in it, so that two requests that
/// differ only in those headers get different bytes.
pub(super) fn payload(call: &Call, build_id: &str, render: u64) -> Reply {
    let path = call.path();
    let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    let parts: Vec<String> = match call.header("next-router-segment-prefetch") {
        Some("/_tree") => vec![
            format!(
                "1:{}\n",
                json!([["children", {"s": segments.last().copied().unwrap_or("__PAGE__"), "h": 160}]])
            ),
            format!(
                "0:{}\n",
                json!({"q": call.request.uri().query().unwrap_or(""), "i": false, "S": false, "r": "$undefined", "b": build_id})
            ),
        ],
        Some(segment) => vec![
            "1:\"$Sreact.fragment\"\n".to_owned(),
            format!(
                "0:{}\n",
                json!({"segment": segment, "path": path, "render": render, "b": build_id})
            ),
        ],
        None => vec![
            format!(
                "1:\"$Sreact.fragment\"\n2:\"/_next/static/chunks/main-{build_id}.js\"\n3:I[77376,[\"$2\"],\"default\"]\n"
            ),
            format!(
                "4:{}\n",
                json!(["$", "main", null, {"children": ["$", "h1", null, {"children": path}], "data-render": render}])
            ),
            format!(
                "0:{}\n",
                json!({
                    "b": build_id,
                    "c": segments,
                    "q": call.request.uri().query().unwrap_or(""),
                    "tree": chosen_by(call),
                    "f": [["children", "$4"]],
                })
            ),
        ],
    };
    component(parts)
}

/// The payload that answers a server action: the action's value and the page that goes with it.
pub(super) fn action(id: &str, sent: &[u8], build_id: &str, render: u64) -> Reply {
    component(vec![
        format!("0:{}\n", json!({"a": "$@1", "f": "", "b": build_id})),
        format!(
            "1:{}\n",
            json!({"action": id, "received": sent.len(), "sha256": crate::service::hex(&Sha256::digest(sent)), "render": render})
        ),
    ])
}

fn component(parts: Vec<String>) -> Reply {
    let parts = parts.into_iter().map(Bytes::from).collect();
    let mut reply = with_body(
        StatusCode::OK,
        body::pieces(parts, std::time::Duration::ZERO),
    );
    set(
        &mut reply,
        VARY,
        &format!("{}, Accept-Encoding", super::ROUTER_VARY),
    );
    set(&mut reply, CONTENT_TYPE, "text/x-component");
    reply
}

/// A short hash over the headers that choose the payload. Not Next.js's own function, but it stands on the same
/// headers, so a proxy that drops or changes one of them ends in the same redirects.
pub(super) fn chosen_by(call: &Call) -> String {
    let mut hash = Sha256::new();
    for name in CHOOSING {
        hash.update(call.headers().get(name).map_or(&b"0"[..], |v| v.as_bytes()));
        hash.update(b",");
    }
    URL_SAFE_NO_PAD.encode(&hash.finalize()[..12])
}

/// 307 to the right `_rsc`, if the request has a wrong one or none: without Vary and without Cache-Control.
pub(super) fn redirect(call: &Call) -> Option<Reply> {
    let right = chosen_by(call);
    if call.query.get("_rsc") == Some(right.as_str()) {
        return None;
    }
    let mut pairs: Vec<&str> = call
        .request
        .uri()
        .query()
        .unwrap_or("")
        .split('&')
        .filter(|p| !p.is_empty() && !p.starts_with("_rsc=") && *p != "_rsc")
        .collect();
    let wanted = format!("_rsc={right}");
    pairs.push(&wanted);
    let mut reply = bare(StatusCode::TEMPORARY_REDIRECT);
    set(
        &mut reply,
        LOCATION,
        &format!("{}?{}", call.path(), pairs.join("&")),
    );
    Some(reply)
}
