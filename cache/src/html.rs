//! The gate for whole pages, beyond RFC 9111: what a page of a Next.js-like site must be before every visitor gets the same copy.

use crate::{Freshness, Policy, control::ResponseControl, fields};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use memchr::memmem;

/// What a stream says when it failed, redirected or found nothing after its head had gone out with 200.
const ERROR_MARKS: [&[u8]; 4] = [b"NEXT_REDIRECT;", b"id=\"__next-page-redirect\"", b"NEXT_HTTP_ERROR_FALLBACK;", b"$RX(\"B:"];
/// The page that stands for an error; all right where the status says so too.
const ERROR_PAGE: &[u8] = b"<html id=\"__next_error__\"";

/// What the head already forbids.
pub(crate) fn head_refusal(policy: &Policy, status: StatusCode, headers: &HeaderMap, control: &ResponseControl) -> Result<(), &'static str> {
    let explicit = control.s_maxage.or(if control.targeted { control.max_age } else { None });
    match status.as_u16() {
        200 => {}
        // A missing page is kept only where the origin says so by name.
        404 | 410 if explicit.is_some_and(|time| !time.is_zero()) => {}
        301 | 308 => {}
        _ => return Err("status"),
    }
    if !status.is_redirection() && !is_html(headers) {
        return Err("content-type");
    }
    if headers.contains_key("x-nextjs-postponed") {
        return Err("postponed");
    }
    let policies = [header::CONTENT_SECURITY_POLICY, header::CONTENT_SECURITY_POLICY_REPORT_ONLY];
    if policies.iter().any(|name| headers.get_all(name).iter().any(|value| memmem::find(value.as_bytes(), b"'nonce-").is_some())) {
        return Err("nonce");
    }
    if matches!(policy.freshness, Freshness::Origin { .. }) {
        match explicit {
            None => return Err("no-s-maxage"),
            Some(time) if time.is_zero() => return Err("expired"),
            Some(_) => {}
        }
    }
    Ok(())
}

fn is_html(headers: &HeaderMap) -> bool {
    fields::single(headers, &header::CONTENT_TYPE)
        .and_then(|text| text.split(';').next())
        .is_some_and(|media| media.trim().eq_ignore_ascii_case("text/html"))
}

/// What the whole body forbids; looked at once, before it is stored.
pub fn body_refusal(status: StatusCode, pieces: &[Bytes]) -> Option<&'static str> {
    if status.is_redirection() {
        return None;
    }
    let joined;
    let body: &[u8] = match pieces {
        [one] => one,
        many => {
            joined = many.concat();
            &joined
        }
    };
    if !contains_tag_end(body) {
        return Some("incomplete");
    }
    if ERROR_MARKS.iter().any(|mark| memmem::find(body, mark).is_some()) {
        return Some("error-stream");
    }
    if !matches!(status.as_u16(), 404 | 410) && memmem::find(body, ERROR_PAGE).is_some() {
        return Some("error-stream");
    }
    if has_nonce(body) {
        return Some("nonce");
    }
    None
}

fn contains_tag_end(body: &[u8]) -> bool {
    // Near the end in every sane page, so look there first.
    memmem::rfind(body, b"</html>").is_some()
        || memchr::memmem::find_iter(body, b"</").any(|at| body[at + 2..].get(..4).is_some_and(|name| name.eq_ignore_ascii_case(b"html")))
}

/// A script or style nonce (`nonce="…"` as an attribute, or `'nonce-…'` in a policy inside the page) is good for one answer only.
fn has_nonce(body: &[u8]) -> bool {
    memmem::find_iter(body, b"nonce").any(|at| {
        let before = at.checked_sub(1).map(|index| body[index]);
        let after = &body[at + 5..];
        match after.first() {
            Some(b'-') => before == Some(b'\''),
            // `nonce=""` is what React leaves behind when there is none.
            Some(b'=') => {
                before.is_some_and(|b| b.is_ascii_whitespace())
                    && match after.get(1) {
                        Some(&quote @ (b'"' | b'\'')) => after.get(2).is_some_and(|next| *next != quote),
                        Some(next) => !next.is_ascii_whitespace() && *next != b'>',
                        None => false,
                    }
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, body: &str) -> Option<&'static str> {
        let (a, b) = body.split_at(body.len() / 2);
        let status = StatusCode::from_u16(status).expect("status");
        let whole = body_refusal(status, &[Bytes::copy_from_slice(body.as_bytes())]);
        let pieces = [a, b].map(|part| Bytes::copy_from_slice(part.as_bytes()));
        assert_eq!(whole, body_refusal(status, &pieces), "a mark that is split between two pieces is still a mark");
        whole
    }

    #[test]
    fn a_page_must_be_whole_free_of_error_marks_and_of_nonces() {
        for (status, body, expected) in [
            (200, "<html><body>shoes</body></html>", None),
            (200, "<html><body>shoes</body></HTML >", None),
            (200, "<html><body>shoes</body>", Some("incomplete")),
            (200, "", Some("incomplete")),
            (200, "{}", Some("incomplete")),
            (200, "<html><template data-dgst=\"NEXT_REDIRECT;replace;/login;307;\"></template></html>", Some("error-stream")),
            (200, "<html><meta id=\"__next-page-redirect\"></html>", Some("error-stream")),
            (200, "<html><template data-dgst=\"NEXT_HTTP_ERROR_FALLBACK;404\"></template></html>", Some("error-stream")),
            (200, "<html><script>$RX(\"B:0\",\"123\")</script></html>", Some("error-stream")),
            (200, "<html id=\"__next_error__\"></html>", Some("error-stream")),
            (404, "<html id=\"__next_error__\"></html>", None),
            (200, "<html><script nonce=\"r4nd0m\"></script></html>", Some("nonce")),
            (200, "<html><script nonce=abc></script></html>", Some("nonce")),
            (200, "<html><script nonce=\"\"></script></html>", None),
            (200, "<html><meta content=\"script-src 'nonce-abc'\"></html>", Some("nonce")),
            (200, "<html>The nonce-based scheme: nonce words</html>", None),
            (301, "", None),
        ] {
            assert_eq!(refusal(status, body), expected, "{status} {body}");
        }
    }
}
