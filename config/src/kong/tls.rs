//! `certificates`, `snis` and `ca_certificates`.

use super::{Draft, reference};
use crate::Certificate;
use crate::node::Kind;
use crate::reader::{Context, Fields};
use crate::{Node, Secret, Spanned};
use std::collections::HashMap;

/// Reads all three lists.
pub(super) fn read(cx: &Context<'_>, fields: &mut Fields<'_, '_>, draft: &mut Draft) {
    let mut taken: HashMap<String, crate::Span> = HashMap::new();
    for item in fields.list("certificates") {
        certificate(cx, item, draft, &mut taken);
    }
    for item in fields.list("snis") {
        let Some(mut sni) = Fields::of(cx, item, "SNI") else { continue };
        let name = sni.filled("name");
        let owner = sni.get("certificate").and_then(|node| reference(cx, node));
        sni.accept(&["id", "tags", "created_at", "updated_at"]);
        sni.finish();
        let (Some(name), Some(owner)) = (name, owner) else {
            cx.error("missing-key", item.span(), "an SNI has `name` and `certificate`", None);
            continue;
        };
        match draft.certificate_ids.iter().position(|id| id.as_deref() == Some(owner.text.as_str())) {
            Some(index) => {
                if let Some(name) = checked(cx, name, &mut taken) {
                    draft.certificates[index].snis.push(name);
                }
            }
            None => cx.error("missing-reference", &owner.text.span, format!("there is no certificate with the id `{}`", owner.text.value), None),
        }
    }
    for item in fields.list("ca_certificates") {
        let Some(mut ca) = Fields::of(cx, item, "CA certificate") else { continue };
        if let Some(cert) = ca.filled("cert") {
            pem(cx, &cert, "CERTIFICATE");
        }
        ca.accept(&["id", "cert_digest", "tags", "created_at", "updated_at"]);
        ca.finish();
    }
}

fn certificate(cx: &Context<'_>, node: &Node, draft: &mut Draft, taken: &mut HashMap<String, crate::Span>) {
    let Some(mut fields) = Fields::of(cx, node, "certificate") else { return };
    for key in ["cert", "key"] {
        if node.get(key).is_none() {
            fields.missing(key, None);
        }
    }
    let cert = fields.filled("cert");
    let key = fields.filled("key");
    for (text, label) in [(&cert, "CERTIFICATE"), (&key, "PRIVATE KEY")] {
        if let Some(text) = text {
            pem(cx, text, label);
        }
    }
    let id = fields.filled("id");
    let mut snis = Vec::new();
    for item in fields.list("snis") {
        let name = match item.kind() {
            Kind::Map(_) => item.get("name").and_then(|name| cx.text(name)),
            _ => cx.text(item),
        };
        if let Some(name) = name.and_then(|name| checked(cx, name, taken)) {
            snis.push(name);
        }
    }
    for key in ["cert_alt", "key_alt", "passphrase"] {
        if fields.get(key).is_some() {
            let span = node.key_span(key).unwrap_or(node.span());
            cx.warning("unsupported", span, format!("`{key}` is ignored: one certificate with a key in the clear is used"), None);
        }
    }
    fields.accept(&["tags", "created_at", "updated_at"]);
    fields.finish();
    if let (Some(cert), Some(key)) = (cert, key) {
        draft.certificates.push(Certificate { cert: cert.value, key: Secret::new(key.value), snis, span: node.span().clone() });
        draft.certificate_ids.push(id.map(|id| id.value));
    }
}

/// A server name, each for one certificate only.
fn checked(cx: &Context<'_>, name: Spanned<String>, taken: &mut HashMap<String, crate::Span>) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let bare = lower.strip_prefix("*.").or_else(|| lower.strip_suffix(".*")).unwrap_or(&lower);
    if let Err(why) = crate::net::check_host(bare).or_else(|why| if lower == "*" { Ok(()) } else { Err(why) }) {
        cx.error("value", &name.span, why, None);
        return None;
    }
    if let Some(first) = taken.get(&lower) {
        cx.error("duplicate-name", &name.span, format!("the server name `{lower}` has a certificate already"), Some(format!("first at {first}")));
        return None;
    }
    taken.insert(lower.clone(), name.span);
    Some(lower)
}

fn pem(cx: &Context<'_>, text: &Spanned<String>, label: &str) {
    if !text.contains("-----BEGIN ") || !text.contains(label) {
        cx.error("value", &text.span, "this is not PEM", Some(format!("it begins with `-----BEGIN {label}-----`")));
    }
}
