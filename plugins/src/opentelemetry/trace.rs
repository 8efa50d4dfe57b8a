//! Trace context: what comes in (W3C Trace Context, B3), and what goes on to the service.

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// A way to write trace context into headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `traceparent`.
    W3c,
    /// `X-B3-TraceId`, …
    B3,
    /// `b3`.
    B3Single,
}

/// Trace context of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parent {
    pub trace: u128,
    pub span: u64,
    /// `None`: the caller leaves it to us.
    pub sampled: Option<bool>,
    pub form: Form,
}

/// The context that a request came with; the first form that is there and well-formed.
pub(crate) fn extract(headers: &HeaderMap) -> Option<Parent> {
    let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
    text(&TRACEPARENT)
        .and_then(w3c)
        .or_else(|| text(&B3).and_then(b3_single))
        .or_else(|| {
            let debug = text(&B3_FLAGS) == Some("1");
            let sampled = if debug { Some(true) } else { text(&B3_SAMPLED).and_then(sampled) };
            Some(Parent { trace: trace_id(text(&B3_TRACE)?)?, span: span_id(text(&B3_SPAN)?)?, sampled, form: Form::B3 })
        })
}

/// W3C Trace Context, section 3.2: `version-traceid-parentid-flags`. A later version may have more after the flags.
fn w3c(text: &str) -> Option<Parent> {
    let mut parts = text.split('-');
    let [version, trace, span, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let well_formed = is_hex(version, 2) && version != "ff" && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2);
    if !well_formed || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    Some(Parent { trace: trace_id(trace)?, span: span_id(span)?, sampled: Some(sampled), form: Form::W3c })
}

/// `traceid-spanid[-sampled[-parentspanid]]`.
fn b3_single(text: &str) -> Option<Parent> {
    let mut parts = text.split('-');
    let (trace, span) = (parts.next()?, parts.next()?);
    Some(Parent { trace: trace_id(trace)?, span: span_id(span)?, sampled: parts.next().and_then(sampled), form: Form::B3Single })
}

fn sampled(text: &str) -> Option<bool> {
    match text {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// Lower-case hex only, as the specification wants it.
fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn trace_id(text: &str) -> Option<u128> {
    let text = text.to_ascii_lowercase();
    let id = (is_hex(&text, 32) || is_hex(&text, 16)).then(|| u128::from_str_radix(&text, 16).ok())??;
    (id != 0).then_some(id)
}

fn span_id(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let id = is_hex(&text, 16).then(|| u64::from_str_radix(&text, 16).ok())??;
    (id != 0).then_some(id)
}

/// An id that is not zero.
pub(crate) fn new_span() -> u64 {
    fastrand::u64(1..)
}

/// An id that is not zero.
pub(crate) fn new_trace() -> u128 {
    fastrand::u128(1..)
}

/// Removes the trace context of a caller, except what other vendors put into `tracestate`.
pub(crate) fn clear(headers: &mut HeaderMap) {
    for name in [TRACEPARENT, B3, B3_TRACE, B3_SPAN, B3_PARENT, B3_SAMPLED, B3_FLAGS] {
        headers.remove(name);
    }
}

/// Writes the context for the service. `tracestate` of a caller goes on only beside its `traceparent`.
pub(crate) fn inject(headers: &mut HeaderMap, form: Form, trace: u128, span: u64, sampled: bool) {
    let mut set = |name: HeaderName, text: String| {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(name, value);
        }
    };
    let flag = u8::from(sampled);
    match form {
        Form::W3c => set(TRACEPARENT, format!("00-{trace:032x}-{span:016x}-{flag:02x}")),
        Form::B3Single => set(B3, format!("{trace:032x}-{span:016x}-{flag}")),
        Form::B3 => {
            set(B3_TRACE, format!("{trace:032x}"));
            set(B3_SPAN, format!("{span:016x}"));
            set(B3_SAMPLED, flag.to_string());
        }
    }
    if form != Form::W3c {
        headers.remove(TRACESTATE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(fields: &[(&str, &str)]) -> Option<Parent> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        extract(&headers)
    }

    const T: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const S: &str = "00f067aa0ba902b7";

    #[test]
    fn forms_that_are_read() {
        let parent = |sampled, form| Some(Parent { trace: u128::from_str_radix(T, 16).unwrap(), span: u64::from_str_radix(S, 16).unwrap(), sampled, form });
        assert_eq!(of(&[("traceparent", &format!("00-{T}-{S}-01"))]), parent(Some(true), Form::W3c));
        assert_eq!(of(&[("traceparent", &format!("00-{T}-{S}-00"))]), parent(Some(false), Form::W3c));
        assert_eq!(of(&[("traceparent", &format!("cc-{T}-{S}-03-more"))]), parent(Some(true), Form::W3c));
        assert_eq!(of(&[("b3", &format!("{T}-{S}"))]), parent(None, Form::B3Single));
        assert_eq!(of(&[("b3", &format!("{T}-{S}-d-{S}"))]), parent(Some(true), Form::B3Single));
        assert_eq!(of(&[("x-b3-traceid", T), ("x-b3-spanid", S), ("x-b3-sampled", "0")]), parent(Some(false), Form::B3));
        assert_eq!(of(&[("x-b3-traceid", T), ("x-b3-spanid", S), ("x-b3-flags", "1")]), parent(Some(true), Form::B3));
        assert_eq!(of(&[("traceparent", "broken"), ("b3", &format!("{T}-{S}-1"))]), parent(Some(true), Form::B3Single));
    }

    #[test]
    fn what_is_malformed_is_not_read() {
        let zero = "0".repeat(32);
        for value in [
            format!("00-{T}-{S}"),
            format!("00-{T}-{S}-01-more"),
            format!("ff-{T}-{S}-01"),
            format!("00-{}-{S}-01", T.to_uppercase()),
            format!("00-{zero}-{S}-01"),
            format!("00-{T}-{}-01", "0".repeat(16)),
            format!("00-{T}-{S}-0g"),
            format!("0-{T}-{S}-01"),
        ] {
            assert_eq!(of(&[("traceparent", &value)]), None, "{value}");
        }
        assert_eq!(of(&[("b3", "0")]), None);
        assert_eq!(of(&[("x-b3-traceid", T)]), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(trace in 1u128.., span in 1u64.., sampled: bool, which in 0usize..3) {
            let form = [Form::W3c, Form::B3, Form::B3Single][which];
            let mut headers = HeaderMap::new();
            inject(&mut headers, form, trace, span, sampled);
            prop_assert_eq!(extract(&headers), Some(Parent { trace, span, sampled: Some(sampled), form }));
            clear(&mut headers);
            prop_assert!(headers.is_empty());
        }

        #[test]
        fn any_text_is_read_or_left(text in "[ -~]{0,70}") {
            let _ = of(&[("traceparent", &text), ("b3", &text), ("x-b3-traceid", &text), ("x-b3-spanid", &text)]);
        }
    }
}
