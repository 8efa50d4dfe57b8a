//! `certificates`, `snis` and `ca_certificates`, and what services say of them.

use super::{Draft, Ref, reference};
use crate::node::Kind;
use crate::reader::{Context, Fields};
use crate::{CaCertificate, Certificate, Node, Secret, Span, Spanned, load};
use std::collections::HashMap;

/// A service's references, resolved when all certificates are known.
pub(crate) struct ServiceTls {
    client_certificate: Option<Ref>,
    ca_certificates: Vec<Ref>,
}

/// Reads what a service says.
pub(super) fn of_service(fields: &mut Fields<'_, '_>, index: usize, draft: &mut Draft) {
    let cx = fields.cx;
    let client_certificate = fields.get("client_certificate").and_then(|node| reference(cx, node));
    let ca_certificates: Vec<_> = fields.list("ca_certificates").iter().filter_map(|node| reference(cx, node)).collect();
    if client_certificate.is_some() || !ca_certificates.is_empty() {
        draft.service_tls.push((index, ServiceTls { client_certificate, ca_certificates }));
    }
}

/// Reads what an upstream says.
pub(super) fn of_upstream(cx: &Context<'_>, node: &Node, index: usize, draft: &mut Draft) {
    let certificate = node.get("client_certificate").filter(|node| !matches!(node.kind(), Kind::Null));
    if let Some(reference) = certificate.and_then(|node| reference(cx, node)) {
        draft.upstream_tls.push((index, reference));
    }
}

/// Resolves what services and upstreams say.
pub(super) fn attach(cx: &Context<'_>, draft: &mut Draft) {
    for (service, said) in std::mem::take(&mut draft.service_tls) {
        if let Some(reference) = said.client_certificate {
            draft.services[service].client_certificate = certificate_of(cx, draft, &reference);
        }
        for reference in said.ca_certificates {
            match draft.ca_ids.get(&reference.text) {
                Some(found) => draft.services[service].ca_certificates.push(found),
                None if !draft.ca_ids.are_all_read() => {}
                None => {
                    let message = format!("there is no CA certificate with the id `{}`", reference.text.value);
                    cx.error("missing-reference", &reference.text.span, message, None);
                }
            }
        }
    }
    for (upstream, reference) in std::mem::take(&mut draft.upstream_tls) {
        draft.upstreams[upstream].client_certificate = certificate_of(cx, draft, &reference);
    }
}

fn certificate_of(cx: &Context<'_>, draft: &Draft, reference: &Ref) -> Option<usize> {
    let found = draft.certificate_ids.get(&reference.text);
    if found.is_none() && draft.certificate_ids.are_all_read() {
        let hint = crate::words::did_you_mean(&reference.text.value, draft.certificate_ids.ids());
        cx.error("missing-reference", &reference.text.span, format!("there is no certificate with the id `{}`", reference.text.value), hint);
    }
    found
}

/// Reads all three lists.
pub(super) fn read(cx: &Context<'_>, fields: &mut Fields<'_, '_>, draft: &mut Draft) {
    let mut taken: HashMap<String, Span> = HashMap::new();
    for item in fields.list("certificates") {
        certificate(cx, item, draft, &mut taken);
    }
    for item in fields.list("snis") {
        let Some(mut sni) = Fields::of(cx, item, "SNI") else { continue };
        let name = sni.filled("name");
        let owner = sni.get("certificate").and_then(|node| reference(cx, node));
        sni.accept(&["id", "tags", "created_at", "updated_at"]);
        sni.finish();
        if item.get("name").is_none() || item.get("certificate").is_none() {
            cx.error("missing-key", item.span(), "an SNI has `name` and `certificate`", None);
        }
        let name = name.and_then(|name| checked_name(cx, name, &mut taken));
        let owner = owner.and_then(|owner| certificate_of(cx, draft, &owner));
        if let (Some(name), Some(owner)) = (name, owner) {
            draft.certificates[owner].snis.push(name);
        }
    }
    for item in fields.list("ca_certificates") {
        let Some(mut ca) = Fields::of(cx, item, "CA certificate") else { continue };
        let errors = cx.errors.get();
        let id = ca.filled("id");
        if let Some(id) = &id {
            draft.ca_ids.id(cx, "CA certificate", id, draft.ca_certificates.len());
        }
        if item.get("cert").is_none() {
            ca.missing(&["cert"], None);
        }
        let cert = ca.filled("cert").and_then(|cert| pem(cx, &cert.value, &cert.span, CERTIFICATE)).unwrap_or_default();
        ca.accept(&["cert_digest", "tags", "created_at", "updated_at"]);
        ca.finish();
        cx.is_sound_since(errors, item.span());
        draft.ca_certificates.push(CaCertificate { id: id.map(|id| id.value), cert, span: item.span().clone() });
    }
}

fn certificate(cx: &Context<'_>, node: &Node, draft: &mut Draft, taken: &mut HashMap<String, Span>) {
    let Some(mut fields) = Fields::of(cx, node, "certificate") else { return };
    let errors = cx.errors.get();
    for key in ["cert", "key"] {
        if node.get(key).is_none() {
            fields.missing(&[key], None);
        }
    }
    let mut part = |key, label| fields.filled(key).and_then(|text| pem(cx, &text.value, &text.span, label));
    let cert = part("cert", CERTIFICATE);
    let key = part("key", PRIVATE_KEY);
    let alt = (part("cert_alt", CERTIFICATE), part("key_alt", PRIVATE_KEY));
    if let Some(id) = fields.filled("id") {
        draft.certificate_ids.id(cx, "certificate", &id, draft.certificates.len());
    }
    let mut snis = Vec::new();
    for item in fields.list("snis") {
        let name = match item.kind() {
            Kind::Map(_) => item.get("name").and_then(|name| cx.text(name)),
            _ => cx.text(item),
        };
        if let Some(name) = name.and_then(|name| checked_name(cx, name, taken)) {
            snis.push(name);
        }
    }
    if fields.get("passphrase").is_some() {
        let span = node.key_span("passphrase").unwrap_or(node.span());
        cx.warning("unsupported", span, "`passphrase` is ignored: the key must be in the clear", None);
    }
    fields.accept(&["tags", "created_at", "updated_at"]);
    fields.finish();
    let alt = match alt {
        (Some(cert), Some(key)) => Some((cert, Secret::new(key))),
        _ => None,
    };
    cx.is_sound_since(errors, node.span());
    // Kept with its errors: references to it are right.
    draft.certificates.push(Certificate { cert: cert.unwrap_or_default(), key: Secret::new(key.unwrap_or_default()), alt, snis, span: node.span().clone() });
}

/// A server name in lower case, each for one certificate only.
pub(crate) fn checked_name(cx: &Context<'_>, name: Spanned<String>, taken: &mut HashMap<String, Span>) -> Option<String> {
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

/// In the first line of a certificate.
pub(crate) const CERTIFICATE: &str = "CERTIFICATE";
/// In the first line of a private key.
pub(crate) const PRIVATE_KEY: &str = "PRIVATE KEY";

/// PEM that stands here, or in a file that is named here (relative to the file that names it).
pub(crate) fn pem(cx: &Context<'_>, text: &str, span: &Span, label: &str) -> Option<String> {
    if text.contains("-----BEGIN ") {
        if text.contains(label) {
            return Some(text.to_string());
        }
        cx.error("value", span, "this is PEM of another kind", Some(format!("it begins with `-----BEGIN {label}-----`")));
        return None;
    }
    // A name never has line breaks, and a key that lost its first line must not be shown in an error about a file.
    let is_name = text.len() < 1024 && !text.contains(['\n', '\r']) && text.contains(['/', '.']);
    if !is_name {
        cx.error("value", span, "this is neither PEM nor the name of a file", Some(format!("PEM begins with `-----BEGIN {label}-----`")));
        return None;
    }
    let folder = span.source.as_ref().map(|source| source.folder().to_path_buf()).unwrap_or_default();
    let path = folder.join(text);
    match load::read_source(cx, &path) {
        Ok(file) if file.text().contains("-----BEGIN ") && file.text().contains(label) => Some(file.text().to_string()),
        Ok(_) => {
            cx.error("value", span, "this file is not PEM of the right kind", Some(format!("it begins with `-----BEGIN {label}-----`")));
            None
        }
        Err(why) => {
            cx.error("file", span, why, None);
            None
        }
    }
}
