//! `consumers`, their credentials (nested or flat) and `consumer_groups`.

use super::{Draft, Ref, Scope, plugins, reference, tags};
use crate::{ApiKey, Consumer, Diagnostic, JwtCredential};
use crate::reader::{Context, Fields};
use crate::{Node, Secret};

/// A credential whose consumer may not be known yet.
pub(crate) enum Credential {
    /// Group of the `acl` plugin.
    Acl(String),
    /// Key of `key-auth`.
    Key(ApiKey),
    /// User and password of `basic-auth`.
    Basic(String, Secret),
    /// Key pair of `jwt`.
    Jwt(JwtCredential),
    /// Member of a consumer group.
    Group(Ref),
}

/// Whose a credential is.
pub(crate) enum Owner {
    /// The consumer at this index.
    At(usize),
    /// The consumer of this name or id.
    Named(Ref),
}

const ALGORITHMS: [&str; 13] = ["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "EdDSA"];
/// Lists that stand in a consumer, or flat at the top with `consumer:`.
const LISTS: [&str; 4] = ["acls", "keyauth_credentials", "basicauth_credentials", "jwt_secrets"];
/// Credentials of plugins that Weir lacks.
const FOREIGN: [&str; 4] = ["hmacauth_credentials", "oauth2_credentials", "mtls_auth_credentials", "basicauth_brute_force"];

/// Reads a consumer with what is nested in it.
pub(super) fn read(cx: &Context<'_>, node: &Node, draft: &mut Draft) {
    let Some(mut fields) = Fields::of(cx, node, "consumer") else { return };
    let index = draft.consumers.len();
    let username = fields.filled("username");
    let custom_id = fields.filled("custom_id");
    let id = fields.filled("id");
    if let Some(name) = &username {
        draft.consumer_names.name(cx, "consumer", name, index, true);
    }
    if let Some(name) = &custom_id {
        draft.custom_ids.name(cx, "consumer's custom_id", name, index, true);
    }
    if let Some(id) = &id {
        draft.consumer_names.id(cx, "consumer", id, index);
    }
    if node.get("username").is_none() && node.get("custom_id").is_none() {
        let why = Diagnostic::error("missing-key", fields.span(), "the consumer has neither `username` nor `custom_id`");
        fields.lacks(vec!["username", "custom_id"], why);
    }
    let made_up = || stable_id(username.as_ref().or(custom_id.as_ref()).map_or("", |name| name.value.as_str()));
    draft.consumers.push(Consumer {
        id: id.map_or_else(made_up, |id| id.value),
        span: node.get("username").or(node.get("custom_id")).map_or(node.span(), Node::span).clone(),
        username: username.map(|text| text.value),
        custom_id: custom_id.map(|text| text.value),
        tags: tags(&mut fields),
        groups: vec![],
        consumer_groups: vec![],
        keys: vec![],
        basic: vec![],
        jwt: vec![],
    });
    for list in LISTS {
        for item in fields.list(list) {
            if let Some((_, credential)) = credential(cx, item, list, draft, index, true) {
                give(&mut draft.consumers[index], credential);
            }
        }
    }
    for item in fields.list("groups") {
        if let Some(group) = reference(cx, item) {
            draft.credentials.push((Owner::At(index), Credential::Group(group)));
        }
    }
    for list in FOREIGN {
        if !fields.list(list).is_empty() {
            let span = node.key_span(list).unwrap_or(node.span());
            cx.warning("unsupported", span, format!("Weir has no plugin that reads `{list}`: they are ignored"), None);
        }
    }
    let scope = Scope { consumer: Some(index), ..Scope::default() };
    for item in fields.list("plugins") {
        plugins::read(cx, item, &scope, draft);
    }
    fields.accept(&["created_at", "updated_at", "ws_id", "type"]);
    fields.finish();
}

/// Credentials that stand at the top of the file.
pub(super) fn read_flat(cx: &Context<'_>, fields: &mut Fields<'_, '_>, draft: &mut Draft) {
    for list in LISTS {
        for (place, item) in fields.list(list).iter().enumerate() {
            // Made distinct from the indexes of consumers: only equality within the names matters.
            let owner = usize::MAX - place;
            if let Some((consumer, credential)) = credential(cx, item, list, draft, owner, false) {
                match consumer {
                    Some(consumer) => draft.credentials.push((Owner::Named(consumer), credential)),
                    None if item.get("consumer").is_some() => {}
                    None => cx.error("missing-key", item.span(), format!("this entry of `{list}` has no `consumer`"), None),
                }
            }
        }
    }
    for item in fields.list("consumer_group_consumers") {
        let Some(mut member) = Fields::of(cx, item, "member of a consumer group") else { continue };
        let group = member.get("consumer_group").and_then(|node| reference(cx, node));
        let consumer = member.get("consumer").and_then(|node| reference(cx, node));
        member.accept(&["id", "created_at", "updated_at"]);
        member.finish();
        match (consumer, group) {
            (Some(consumer), Some(group)) => draft.credentials.push((Owner::Named(consumer), Credential::Group(group))),
            _ if item.get("consumer").is_some() && item.get("consumer_group").is_some() => {}
            _ => cx.error("missing-key", item.span(), "a member of a consumer group has `consumer` and `consumer_group`", None),
        }
    }
    for item in fields.list("consumer_group_plugins") {
        plugins::read(cx, item, &Scope::default(), draft);
    }
}

/// Reads one credential, with the consumer it names.
fn credential(cx: &Context<'_>, node: &Node, list: &str, draft: &mut Draft, owner: usize, nested: bool) -> Option<(Option<Ref>, Credential)> {
    let what = match list {
        "acls" => "group membership",
        "keyauth_credentials" => "key",
        "basicauth_credentials" => "basic credential",
        _ => "JWT credential",
    };
    let mut fields = Fields::of(cx, node, what)?;
    let consumer = fields.get("consumer").and_then(|node| Some((reference(cx, node)?, node)));
    if let (Some((_, node)), true) = (&consumer, nested) {
        cx.error("reference", node.span(), "this is nested in its consumer already", Some("remove the key".into()));
    }
    fields.accept(&["id", "tags", "created_at", "updated_at", "ws_id"]);
    let required = |fields: &mut Fields<'_, '_>, key: &'static str| {
        if fields.node().get(key).is_none() {
            fields.missing(&[key], None);
        }
        fields.filled(key)
    };
    let credential = match list {
        "acls" => required(&mut fields, "group").map(|group| Credential::Acl(group.value)),
        "keyauth_credentials" => {
            if let Some(ttl) = fields.get("ttl") {
                cx.warning("unsupported", ttl.span(), "keys do not expire here: remove the entry when it is due", None);
            }
            made_up_by_kong(&fields, "key");
            let id = fields.filled("id").map(|id| id.value);
            fields.filled("key").map(|key| {
                draft.credential_names[0].name(cx, "key", &key, owner, false);
                Credential::Key(ApiKey { id, key: Secret::new(key.value) })
            })
        }
        "basicauth_credentials" => {
            let username = required(&mut fields, "username");
            let password = match fields.node().get("password") {
                Some(_) => fields.text("password"),
                None => required(&mut fields, "password"),
            };
            let (username, password) = (username?, password?);
            draft.credential_names[1].name(cx, "user of basic-auth", &username, owner, true);
            Some(Credential::Basic(username.value, Secret::new(password.value)))
        }
        _ => jwt(&mut fields, draft, owner).map(Credential::Jwt),
    };
    fields.finish();
    Some((consumer.map(|(reference, _)| reference), credential?))
}

/// Warns of a credential that nobody can use: Kong would invent what is missing, anew at each start.
fn made_up_by_kong(fields: &Fields<'_, '_>, key: &str) {
    if fields.node().get(key).is_none() {
        fields.cx.warning("missing-key", fields.span(), format!("this credential has no `{key}`: nobody can use it, and it is left out"), None);
    }
}

fn jwt(fields: &mut Fields<'_, '_>, draft: &mut Draft, owner: usize) -> Option<JwtCredential> {
    let cx = fields.cx;
    let algorithm = fields.one_of("algorithm", &ALGORITHMS);
    let unknown = algorithm.is_none() && fields.node().get("algorithm").is_some_and(|node| !node.is_null());
    let algorithm = algorithm.unwrap_or("HS256");
    let secret = fields.filled("secret");
    let public = fields.filled("rsa_public_key");
    made_up_by_kong(fields, "key");
    let key = fields.filled("key")?;
    draft.credential_names[2].name(cx, "JWT key", &key, owner, true);
    if unknown {
        return None;
    }
    let hmac = algorithm.starts_with("HS");
    if hmac && fields.node().get("secret").is_none() {
        made_up_by_kong(fields, "secret");
        return None;
    }
    match (&public, hmac) {
        (None, false) if fields.node().get("rsa_public_key").is_none() => fields.missing(&["rsa_public_key"], Some(format!("{algorithm} needs one"))),
        (Some(text), false) if !text.contains("-----BEGIN") => {
            cx.error("value", &text.span, "this is not a public key in PEM", Some("it begins with `-----BEGIN PUBLIC KEY-----`".into()));
        }
        _ => {}
    }
    Some(JwtCredential {
        key: key.value,
        secret: secret.map(|text| Secret::new(text.value)),
        rsa_public_key: public.map(|text| Secret::new(text.value)),
        algorithm: algorithm.into(),
    })
}

/// Reads a consumer group with what is nested in it.
pub(super) fn read_group(cx: &Context<'_>, node: &Node, draft: &mut Draft) {
    let Some(mut fields) = Fields::of(cx, node, "consumer group") else { return };
    let mut group = None;
    match fields.filled("name") {
        Some(name) => {
            let index = draft.groups.len();
            group = Some(index);
            draft.group_names.name(cx, "consumer group", &name, index, true);
            if let Some(id) = fields.filled("id") {
                draft.group_names.id(cx, "consumer group", &id, index);
            }
            for item in fields.list("consumers") {
                if let Some(consumer) = reference(cx, item) {
                    draft.credentials.push((Owner::Named(consumer), Credential::Group(Ref { text: name.clone() })));
                }
            }
            draft.groups.push(name);
        }
        None if node.get("name").is_none() => fields.missing(&["name"], None),
        None => {}
    }
    let nested = fields.list("plugins");
    if group.is_some() {
        let scope = Scope { group, ..Scope::default() };
        nested.iter().for_each(|item| plugins::read(cx, item, &scope, draft));
    }
    fields.accept(&["id", "tags", "created_at", "updated_at"]);
    fields.finish();
}

/// Gives flat credentials to the consumers that they name.
pub(super) fn attach(cx: &Context<'_>, draft: &mut Draft) {
    for (owner, credential) in std::mem::take(&mut draft.credentials) {
        let index = match owner {
            Owner::At(index) => Some(index),
            Owner::Named(reference) => match draft.consumer_names.get(&reference.text).or_else(|| draft.custom_ids.get(&reference.text)) {
                Some(index) => Some(index),
                None => draft.consumer_names.find(cx, &reference, "consumer"),
            },
        };
        let Some(index) = index else { continue };
        match credential {
            Credential::Group(group) => {
                if let Some(group) = draft.group_names.find(cx, &group, "consumer group") {
                    draft.consumers[index].consumer_groups.push(draft.groups[group].value.clone());
                }
            }
            other => give(&mut draft.consumers[index], other),
        }
    }
}

fn give(consumer: &mut Consumer, credential: Credential) {
    match credential {
        Credential::Acl(group) => consumer.groups.push(group),
        Credential::Key(key) => consumer.keys.push(key),
        Credential::Basic(user, password) => consumer.basic.push((user, password)),
        Credential::Jwt(jwt) => consumer.jwt.push(jwt),
        Credential::Group(_) => {}
    }
}

/// An id made from a name: the same on every machine and after every restart (FNV-1a, twice, in the shape of a UUID).
fn stable_id(name: &str) -> String {
    let hash = |seed: u64| name.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let (high, low) = (hash(0xcbf2_9ce4_8422_2325), hash(0x9ae1_6a3b_2f90_404f));
    // Version 8 (RFC 9562): free contents.
    let high = (high & !0xf000) | 0x8000;
    let low = (low & !(0b11 << 62)) | (0b10 << 62);
    format!("{:08x}-{:04x}-{:04x}-{:04x}-{:012x}", high >> 32, (high >> 16) & 0xffff, high & 0xffff, low >> 48, low & 0xffff_ffff_ffff)
}
