//! Taking a token apart (RFC 7515 section 7.1) and looking at its times, with Kong's messages.

use super::keys::{Alg, base64_url};
use serde_json::{Map, Value};

pub(crate) type Claims = Map<String, Value>;

/// A token whose signature is not looked at yet.
pub(crate) struct Token<'a> {
    pub(crate) header: Claims,
    pub(crate) claims: Claims,
    pub(crate) alg: Alg,
    /// What is signed.
    pub(crate) message: &'a str,
    pub(crate) signature: Vec<u8>,
}

impl<'a> Token<'a> {
    /// Errors: what is wrong with it.
    pub(crate) fn parse(text: &'a str) -> Result<Token<'a>, &'static str> {
        let json = |part: &str| match base64_url(part).and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            Some(Value::Object(object)) => Ok(object),
            _ => Err("invalid JSON"),
        };
        let (message, signature) = text.rsplit_once('.').ok_or("invalid JSON")?;
        let (header, claims) = message.split_once('.').ok_or("invalid JSON")?;
        let (header, claims) = (json(header)?, json(claims)?);
        let alg = header.get("alg").and_then(Value::as_str).and_then(Alg::named).ok_or("invalid alg")?;
        if header.contains_key("crit") {
            // RFC 7515 section 4.1.11: what is critical and not understood makes the token invalid. No extension is understood here.
            return Err("critical extension");
        }
        let signature = base64_url(signature).filter(|s| !s.is_empty()).ok_or("invalid signature")?;
        Ok(Token { header, claims, alg, message, signature })
    }

    /// The named claim, or else the header parameter of that name.
    pub(crate) fn claim(&self, name: &str) -> Option<&Value> {
        [&self.claims, &self.header].into_iter().filter_map(|part| part.get(name)).find(|v| !matches!(v, Value::Null | Value::Bool(false)))
    }
}

/// What is wrong with the times of a token, by claim; `now` in seconds since 1970.
pub(crate) fn times(claims: &Claims, exp: bool, nbf: bool, maximum: f64, now: u64) -> Claims {
    let mut errors = Claims::new();
    let now = now as f64;
    let number = |name: &str| claims.get(name).and_then(Value::as_f64);
    let mut check = |name: &str, bad: &dyn Fn(f64) -> bool, why: &str| {
        let why = match number(name) {
            None => "must be a number",
            Some(time) if bad(time) => why,
            Some(_) => return,
        };
        errors.insert(name.into(), why.into());
    };
    if exp {
        check("exp", &|exp| exp <= now, "token expired");
    }
    if nbf {
        check("nbf", &|nbf| nbf > now, "token not valid yet");
    }
    if errors.is_empty() && maximum > 0.0 && number("exp").is_none_or(|exp| exp - now > maximum) {
        errors.insert("exp".into(), "exceeds maximum allowed expiration".into());
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,200}") {
            let _ = Token::parse(&text);
        }

        #[test]
        fn any_parts_are_survived(parts in proptest::collection::vec("[A-Za-z0-9_=-]{0,40}", 0..5)) {
            let _ = Token::parse(&parts.join("."));
        }
    }
}
