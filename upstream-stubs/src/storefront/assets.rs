//! Files: build assets, images, the data of the Pages Router, the public folder.

use std::sync::LazyLock;
use std::time::SystemTime;

use bytes::Bytes;
use http::StatusCode;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_RANGE, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, ETAG, HeaderName, LAST_MODIFIED, VARY,
};
use serde_json::json;

use super::answers::{etag, plain_missing};
use crate::body;
use crate::call::{Call, Reply, bare, set, with_body, wrong_method};

const RAW_PNG: &[u8] = include_bytes!("../../assets/raw.png");
const THUMB_PNG: &[u8] = include_bytes!("../../assets/thumb.png");
const THUMB_WEBP: &[u8] = include_bytes!("../../assets/thumb.webp");
const FAVICON: &[u8] = include_bytes!("../../assets/favicon.ico");

/// The widths that `next/image` allows by default.
const WIDTHS: [u64; 16] = [
    16, 32, 48, 64, 96, 128, 256, 384, 640, 750, 828, 1080, 1200, 1920, 2048, 3840,
];

/// When the files were made: the start of this process.
static MADE: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);

pub(super) fn answer(call: &Call, build_id: &str) -> Reply {
    if !call.is_read() {
        return wrong_method("GET, HEAD");
    }
    match call.path() {
        "/raw.png" => file(
            call,
            Bytes::from_static(RAW_PNG),
            "image/png",
            "public, max-age=0",
            false,
        ),
        "/favicon.ico" => file(
            call,
            Bytes::from_static(FAVICON),
            "image/x-icon",
            "public, max-age=0, must-revalidate",
            false,
        ),
        "/_next/image" => image(call),
        path => match path.strip_prefix("/_next/static/") {
            Some(rest) => built(call, rest, build_id),
            None => match path
                .strip_prefix("/_next/data/")
                .and_then(|rest| rest.strip_prefix(build_id))
            {
                Some(rest) => data(call, rest),
                None => plain_missing(),
            },
        },
    }
}

/// `/_next/static/…`: any file that carries the build id in its path or name is there, its content made from its name.
fn built(call: &Call, rest: &str, build_id: &str) -> Reply {
    let kind = match rest.rsplit_once('.') {
        Some((_, "js")) => "application/javascript; charset=UTF-8",
        Some((_, "css")) => "text/css; charset=UTF-8",
        Some((_, "woff2")) => "font/woff2",
        Some((_, "png")) => "image/png",
        _ => return plain_missing(),
    };
    if !rest.contains(build_id) {
        return plain_missing();
    }
    let content: Bytes = if kind == "image/png" {
        Bytes::from_static(THUMB_PNG)
    } else if kind.starts_with("text/css") {
        format!(
            "/* {rest} */\n{}",
            "ul.products{display:grid;gap:1rem}nav a{margin-right:1rem}main{max-width:70rem}\n"
                .repeat(20)
        )
        .into()
    } else {
        format!(
            "/* {rest} */\n{}",
            "(globalThis.TURBOPACK||(globalThis.TURBOPACK=[])).push([0,()=>{}]);\n".repeat(60)
        )
        .into()
    };
    file(
        call,
        content,
        kind,
        "public, max-age=31536000, immutable",
        true,
    )
}

/// A static file with weak ETag and Last-Modified; answers 304 and a single byte range.
fn file(call: &Call, content: Bytes, kind: &str, cache_control: &str, compressible: bool) -> Reply {
    let tag = format!(
        "W/{}",
        etag(&content).replacen('"', &format!("\"{:x}-", content.len()), 1)
    );
    let has_it = match call.header("if-none-match") {
        Some(given) => given.split(',').any(|t| t.trim() == tag || t.trim() == "*"),
        // If-Modified-Since counts only without If-None-Match (RFC 9110 section 13.1.3); whole seconds.
        None => call
            .header("if-modified-since")
            .and_then(|t| httpdate::parse_http_date(t).ok())
            .is_some_and(|since| {
                let seconds = |t: SystemTime| {
                    t.duration_since(SystemTime::UNIX_EPOCH)
                        .unwrap_or_default()
                        .as_secs()
                };
                seconds(*MADE) <= seconds(since)
            }),
    };
    let mut reply = if has_it {
        bare(StatusCode::NOT_MODIFIED)
    } else {
        match call.header("range").and_then(|r| range(r, content.len())) {
            None => with_body(StatusCode::OK, body::full(content.clone())),
            Some(Some((from, to))) => {
                let mut part = with_body(
                    StatusCode::PARTIAL_CONTENT,
                    body::full(content.slice(from..=to)),
                );
                set(
                    &mut part,
                    CONTENT_RANGE,
                    &format!("bytes {from}-{to}/{}", content.len()),
                );
                part
            }
            Some(None) => {
                let mut none = bare(StatusCode::RANGE_NOT_SATISFIABLE);
                set(
                    &mut none,
                    CONTENT_RANGE,
                    &format!("bytes */{}", content.len()),
                );
                return none;
            }
        }
    };
    set(&mut reply, ACCEPT_RANGES, "bytes");
    set(&mut reply, CACHE_CONTROL, cache_control);
    set(&mut reply, LAST_MODIFIED, &httpdate::fmt_http_date(*MADE));
    set(&mut reply, ETAG, &tag);
    if !has_it {
        set(&mut reply, CONTENT_TYPE, kind);
    }
    if compressible {
        set(&mut reply, VARY, "Accept-Encoding");
    }
    reply
}

/// One range of `bytes=a-b`, `bytes=a-`, `bytes=-n` (RFC 9110 section 14.1.2). `None`: to be ignored, because it
/// is no such thing or several; `Some(None)`: it lies outside.
fn range(header: &str, length: usize) -> Option<Option<(usize, usize)>> {
    let (from, to) = header.strip_prefix("bytes=")?.split_once('-')?;
    let last = length.checked_sub(1)?;
    if from.is_empty() {
        let suffix: usize = to.parse().ok()?;
        return Some((suffix > 0).then(|| (length.saturating_sub(suffix), last)));
    }
    let from: usize = from.parse().ok()?;
    let to = if to.is_empty() {
        last
    } else {
        to.parse::<usize>().ok()?.min(last)
    };
    if from > last {
        return Some(None);
    }
    (from <= to).then_some(Some((from, to)))
}

/// `/_next/image?url=&w=&q=`: the format follows `Accept`, the errors are those of Next.js.
fn image(call: &Call) -> Reply {
    let bad = |why: &str| {
        let mut reply = with_body(StatusCode::BAD_REQUEST, body::full(why.to_owned()));
        set(&mut reply, CONTENT_TYPE, "text/plain; charset=utf-8");
        reply
    };
    let Some(url) = call.query.get("url").filter(|u| !u.is_empty()) else {
        return bad("\"url\" parameter is required");
    };
    if !url.starts_with('/') || url.starts_with("//") {
        return bad("\"url\" parameter is not allowed");
    }
    let Some(width) = call.query.number("w").filter(|w| WIDTHS.contains(w)) else {
        return bad("\"w\" parameter (width) is not allowed");
    };
    let Some(quality) = call.query.number("q").filter(|q| (1..=100).contains(q)) else {
        return bad("\"q\" parameter (quality) must be a number between 1 and 100");
    };
    let webp = call
        .header("accept")
        .is_some_and(|a| a.contains("image/webp"));
    let (kind, name, bytes) = if webp {
        ("image/webp", "photo.webp", THUMB_WEBP)
    } else {
        ("image/png", "photo.png", THUMB_PNG)
    };
    let tag = etag(format!("{url} {width} {quality} {kind}").as_bytes());
    let fresh = call
        .header("if-none-match")
        .is_some_and(|given| given.split(',').any(|t| t.trim() == tag));
    let mut reply = if fresh {
        bare(StatusCode::NOT_MODIFIED)
    } else {
        with_body(StatusCode::OK, body::full(bytes))
    };
    let imported = url.starts_with("/_next/static/");
    set(&mut reply, VARY, "Accept");
    set(
        &mut reply,
        CACHE_CONTROL,
        if imported {
            "public, max-age=315360000, immutable"
        } else {
            "public, max-age=14400, must-revalidate"
        },
    );
    set(&mut reply, ETAG, &tag);
    if !fresh {
        set(&mut reply, CONTENT_TYPE, kind);
        set(
            &mut reply,
            CONTENT_DISPOSITION,
            &format!("attachment; filename=\"{name}\""),
        );
        set(
            &mut reply,
            CONTENT_SECURITY_POLICY,
            "script-src 'none'; frame-src 'none'; sandbox;",
        );
        set(&mut reply, HeaderName::from_static("x-nextjs-cache"), "HIT");
    }
    reply
}

/// `/_next/data/{build}/{page}.json`: a page with `getStaticProps`, or, under `ssr`, one with `getServerSideProps`,
/// whose prefetch is answered by an empty object.
fn data(call: &Call, rest: &str) -> Reply {
    let Some(page) = rest.strip_suffix(".json").filter(|p| p.starts_with('/')) else {
        return plain_missing();
    };
    let dynamic = page.contains("ssr");
    if dynamic && call.headers().contains_key("x-middleware-prefetch") {
        let mut reply = with_body(
            StatusCode::OK,
            body::pieces(vec![Bytes::from_static(b"{}")], std::time::Duration::ZERO),
        );
        set(&mut reply, HeaderName::from_static("x-matched-path"), page);
        set(
            &mut reply,
            HeaderName::from_static("x-middleware-skip"),
            "1",
        );
        set(&mut reply, CACHE_CONTROL, super::PRIVATE);
        return reply;
    }
    let mark = if dynamic { "__N_SSP" } else { "__N_SSG" };
    let query: serde_json::Map<String, serde_json::Value> = call
        .query
        .pairs()
        .map(|(k, v)| (k.to_owned(), v.into()))
        .collect();
    let content = json!({"pageProps": {"page": page, "query": if dynamic { query } else { Default::default() }}, (mark): true}).to_string();
    let tag = etag(content.as_bytes());
    let fresh = call
        .header("if-none-match")
        .is_some_and(|given| given == tag);
    let mut reply = if fresh {
        bare(StatusCode::NOT_MODIFIED)
    } else {
        with_body(StatusCode::OK, body::full(content))
    };
    set(
        &mut reply,
        HeaderName::from_static("x-nextjs-matched-path"),
        page,
    );
    if !dynamic {
        set(&mut reply, HeaderName::from_static("x-nextjs-cache"), "HIT");
    }
    set(
        &mut reply,
        CACHE_CONTROL,
        if dynamic {
            super::PRIVATE
        } else {
            "s-maxage=30, stale-while-revalidate=31535970"
        },
    );
    set(&mut reply, ETAG, &tag);
    if !fresh {
        set(&mut reply, CONTENT_TYPE, "application/json; charset=utf-8");
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(range("bytes=0-9", 100), Some(Some((0, 9))));
        assert_eq!(range("bytes=90-", 100), Some(Some((90, 99))));
        assert_eq!(range("bytes=-5", 100), Some(Some((95, 99))));
        assert_eq!(range("bytes=50-500", 100), Some(Some((50, 99))));
        assert_eq!(range("bytes=100-", 100), Some(None));
        assert_eq!(range("bytes=9-1", 100), None);
        assert_eq!(range("bytes=0-1,4-5", 100), None);
        assert_eq!(range("lines=1-2", 100), None);
    }

    proptest! {
        #[test]
        fn a_range_never_leaves_the_file(header in "(bytes=)?[0-9,-]{0,24}|.{0,24}", length in 0usize..1000) {
            if let Some(Some((from, to))) = range(&header, length) {
                prop_assert!(from <= to && to < length);
            }
        }
    }
}
