//! Fields of request bodies: forms, JSON objects, forms in several parts (RFC 7578).

use crate::{
    multipart::{self, parts},
    pairs::{self, Pairs},
};
use http::HeaderValue;
use serde_json::{Map, Value};

/// A body's fields.
pub(super) enum Form {
    Pairs(Vec<(String, String)>),
    Json(Map<String, Value>),
}

impl Form {
    /// `None`: the body is of another type, or is not what its type says.
    pub(super) fn read(kind: Option<&HeaderValue>, body: &[u8]) -> Option<Form> {
        match Kind::of(kind?)? {
            Kind::Pairs => {
                let text = std::str::from_utf8(body).ok()?;
                Some(Form::Pairs(pairs::read(text).filter_map(|(name, value)| Some((name, value?))).collect()))
            }
            Kind::Json => match serde_json::from_slice(body) {
                Ok(Value::Object(object)) => Some(Form::Json(object)),
                _ => None,
            },
            Kind::Parts(boundary) => Some(Form::Pairs(
                parts(body, &boundary)
                    .into_iter()
                    .filter_map(|part| Some((part.name?, String::from_utf8(part.content.to_vec()).ok()?)))
                    .collect(),
            )),
        }
    }

    /// The texts of a field; a list has several.
    pub(super) fn values(&self, name: &str) -> Vec<String> {
        match self {
            Form::Pairs(pairs) => pairs.iter().filter(|(n, _)| n == name).map(|(_, value)| value.clone()).collect(),
            Form::Json(object) => match object.get(name) {
                Some(Value::String(text)) => vec![text.clone()],
                Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
                _ => vec![],
            },
        }
    }
}

/// The body without the named fields; `None` if it has none of them.
pub(super) fn without(kind: Option<&HeaderValue>, body: &[u8], names: &[&str]) -> Option<Vec<u8>> {
    let out = match Kind::of(kind?)? {
        Kind::Pairs => {
            let mut pairs = Pairs::parse(std::str::from_utf8(body).ok()?);
            if !names.iter().any(|name| pairs.has(name)) {
                return None;
            }
            names.iter().for_each(|name| pairs.remove(name));
            pairs.text().into_bytes()
        }
        Kind::Json => {
            let Ok(Value::Object(mut object)) = serde_json::from_slice(body) else { return None };
            let before = object.len();
            object.retain(|name, _| !names.contains(&name.as_str()));
            if object.len() == before {
                return None;
            }
            serde_json::to_vec(&object).ok()?
        }
        Kind::Parts(boundary) => {
            let mut out = Vec::with_capacity(body.len());
            let mut from = 0;
            for part in parts(body, &boundary) {
                if part.name.is_some_and(|name| names.contains(&name.as_str())) {
                    out.extend_from_slice(&body[from..part.start]);
                    from = part.end;
                }
            }
            out.extend_from_slice(&body[from..]);
            out
        }
    };
    (out != body).then_some(out)
}

enum Kind {
    Pairs,
    Json,
    Parts(String),
}

impl Kind {
    fn of(value: &HeaderValue) -> Option<Kind> {
        let text = value.to_str().ok()?;
        match text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/x-www-form-urlencoded" => Some(Kind::Pairs),
            "application/json" => Some(Kind::Json),
            "multipart/form-data" => multipart::boundary(value).map(Kind::Parts),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARTS: &str = "multipart/form-data; boundary=\"xx\"";

    fn read(kind: &str, body: &str) -> Option<Vec<String>> {
        Form::read(Some(&HeaderValue::from_str(kind).unwrap()), body.as_bytes()).map(|f| f.values("k"))
    }

    fn cut(kind: &str, body: &str) -> Option<String> {
        without(Some(&HeaderValue::from_str(kind).unwrap()), body.as_bytes(), &["k"]).map(|b| String::from_utf8(b).unwrap())
    }

    #[test]
    fn fields_of_every_type_are_read() {
        let part = |name: &str, value: &str| format!("--xx\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        let two = format!("{}{}--xx--\r\n", part("a", "1"), part("k", "s\r\nt"));
        for (kind, body, values) in [
            ("application/x-www-form-urlencoded", "a=1&k=s+%2F&b", Some(vec!["s /"])),
            ("application/x-www-form-urlencoded; charset=utf-8", "k=1&k=2", Some(vec!["1", "2"])),
            ("application/json", r#"{"k":"s","a":1}"#, Some(vec!["s"])),
            ("application/json", r#"{"k":7}"#, Some(vec![])),
            ("application/json", r#"["k"]"#, None),
            ("text/plain", "k=1", None),
            (PARTS, two.as_str(), Some(vec!["s\r\nt"])),
            ("multipart/form-data", two.as_str(), None),
        ] {
            assert_eq!(read(kind, body), values.map(|v| v.into_iter().map(str::to_owned).collect()), "{kind} {body}");
        }
        assert_eq!(cut(PARTS, &two), Some(format!("{}--xx--\r\n", part("a", "1"))));
    }

    #[test]
    fn fields_are_cut_out() {
        let form = "application/x-www-form-urlencoded";
        assert_eq!(cut(form, "a=%2F&k=s&b=2").as_deref(), Some("a=%2F&b=2"));
        assert_eq!(cut(form, "k=s").as_deref(), Some(""));
        assert_eq!(cut(form, "a=1"), None);
        assert_eq!(cut("application/json", r#"{"b":1,"k":"s","a":2}"#).as_deref(), Some(r#"{"b":1,"a":2}"#));
        assert_eq!(cut("application/json", r#"{ "b" : 1 }"#), None);
    }

    proptest! {
        #[test]
        fn any_body_is_survived(body in proptest::collection::vec(any::<u8>(), 0..200), kind in 0usize..3) {
            let kind = HeaderValue::from_static(["application/json", "application/x-www-form-urlencoded", PARTS][kind]);
            let _ = Form::read(Some(&kind), &body);
            if let Some(rest) = without(Some(&kind), &body, &["k"]) {
                prop_assert!(Form::read(Some(&kind), &rest).is_none_or(|f| f.values("k").is_empty()));
            }
        }

        #[test]
        fn parts_are_cut_whole(body in "(--xx(--)?|\r\n|\r\n\r\n|Content-Disposition: form-data; name=k|[a-k=]){0,20}") {
            let kind = HeaderValue::from_static(PARTS);
            if let Some(rest) = without(Some(&kind), body.as_bytes(), &["k"]) {
                prop_assert!(rest.len() < body.len());
            }
        }
    }
}
