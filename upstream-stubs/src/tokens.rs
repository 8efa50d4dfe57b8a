//! Bearer tokens as the services that do not verify them read them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::call::Call;

/// The `sub` of a JWT without verifying it: behind the gateway, that has been done already.
pub(crate) fn subject(token: &str) -> Option<String> {
    let payload = token.split('.').nth(1)?;
    let bytes = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    Some(claims.get("sub")?.as_str()?.to_owned())
}

/// The subject of the request's bearer token.
pub(crate) fn caller(call: &Call) -> Option<String> {
    subject(call.bearer()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_token_is_survived(token in ".*") {
            let _ = subject(&token);
        }
    }

    #[test]
    fn the_subject_is_read() {
        let payload = URL_SAFE_NO_PAD.encode(r#"{"sub":"alice"}"#);
        assert_eq!(
            subject(&format!("e30.{payload}.x")),
            Some("alice".to_owned())
        );
        assert_eq!(subject("a.b.c"), None);
    }
}
