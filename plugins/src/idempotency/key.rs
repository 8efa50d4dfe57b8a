//! The client's key: what it may look like, and what it is worth.

use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

/// Longest key, in characters.
pub(super) const LONGEST: usize = 255;

const NAMES: [HeaderName; 2] = [HeaderName::from_static("idempotency-key"), HeaderName::from_static("x-idempotency-key")];

/// The key of a request, if it has one. Both headers are looked at.
///
/// Errors: what is wrong with it, as a sentence for the client.
pub(super) fn of(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    let mut found: Option<String> = None;
    for value in NAMES.iter().flat_map(|name| headers.get_all(name)) {
        let key = value.to_str().ok().and_then(parse).ok_or("Idempotency-Key must be 1 to 255 printable characters, quoted or bare")?;
        match &found {
            Some(first) if *first != key => return Err("Idempotency-Key and X-Idempotency-Key differ, or one of them is there twice"),
            _ => found = Some(key),
        }
    }
    Ok(found)
}

/// A string of RFC 8941 section 3.3.3 (parameters are not accepted), or the bare characters that most clients send.
fn parse(text: &str) -> Option<String> {
    let text = text.trim_matches([' ', '\t']);
    let key = match text.strip_prefix('"') {
        Some(rest) => unquoted(rest)?,
        None => text.chars().all(|c| matches!(c, '!'..='~') && !matches!(c, '"' | ',' | ';' | '\\')).then(|| text.to_owned())?,
    };
    (1..=LONGEST).contains(&key.len()).then_some(key)
}

/// The rest of a string, after its first quote.
fn unquoted(rest: &str) -> Option<String> {
    let mut key = String::new();
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '"' => return chars.next().is_none().then_some(key),
            '\\' => match chars.next()? {
                c @ ('"' | '\\') => key.push(c),
                _ => return None,
            },
            c @ ' '..='~' => key.push(c),
            _ => return None,
        }
    }
}

/// A hash over parts, in hex; each part counts with its length, so that no two lists of parts meet.
pub(super) fn hash(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms_of_keys() {
        for (text, key) in [
            ("\"8e03978e-40d5-43dd-bc93-6894a57f9324\"", Some("8e03978e-40d5-43dd-bc93-6894a57f9324")),
            ("8e03978e-40d5-43dd-bc93-6894a57f9324", Some("8e03978e-40d5-43dd-bc93-6894a57f9324")),
            (" abc\t", Some("abc")),
            (r#""a \" b \\ c, d""#, Some(r#"a " b \ c, d"#)),
            ("", None),
            ("\"\"", None),
            ("\"abc", None),
            ("abc\"", None),
            ("\"abc\";p=1", None),
            ("\"a\" \"b\"", None),
            (r#""a\n""#, None),
            ("a b", None),
            ("a, a", None),
            ("ä", None),
        ] {
            assert_eq!(parse(text).as_deref(), key, "{text}");
        }
        assert!(parse(&"a".repeat(255)).is_some());
        assert!(parse(&"a".repeat(256)).is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,300}") {
            if let Some(key) = parse(&text) {
                prop_assert!(!key.is_empty() && key.len() <= LONGEST);
                let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
                prop_assert_eq!(parse(&quoted), Some(key));
            }
        }
    }
}
