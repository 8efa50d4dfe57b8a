//! Warns of secrets that are written in the file instead of coming from the environment.

use crate::mask::names_a_secret;
use crate::node::Kind;
use crate::reader::Context;
use crate::Node;

/// One file gets this many warnings of the kind; more say nothing new.
const MOST: usize = 3;

pub(crate) fn warn(cx: &Context<'_>, root: &Node) {
    let mut found = Vec::new();
    walk(root, "", &mut found);
    let more = found.len().saturating_sub(MOST);
    for (index, node) in found.into_iter().take(MOST).enumerate() {
        let rest = if index + 1 == MOST && more > 0 { format!("; {more} more in this file") } else { String::new() };
        cx.warning("secret", node.span(), format!("a secret is written in the file{rest}"), Some("write `${NAME}` and set the variable".into()));
    }
}

fn walk<'a>(node: &'a Node, parent: &str, found: &mut Vec<&'a Node>) {
    for item in node.items() {
        walk(item, parent, found);
    }
    for (key, value) in node.entries() {
        if let Kind::String(text) = value.kind()
            && !value.source().expanded
            && !text.trim().is_empty()
            && holds_secret(&key.name, parent, text)
        {
            found.push(value);
        }
        walk(value, &key.name, found);
    }
}

/// Narrower than what is hidden from messages: a warning must be right.
fn holds_secret(key: &str, parent: &str, text: &str) -> bool {
    match key {
        // Mostly the name of a file.
        "key" | "key_alt" if matches!(parent, "certificates" | "origin_tls") => text.contains("-----BEGIN "),
        "key" => matches!(parent, "guests" | "keyauth_credentials"),
        "token" => matches!(parent, "admin" | "warm_up"),
        "authorization" => false,
        _ => names_a_secret(key) && !key.ends_with("public_key") && !key.ends_with("_key") || matches!(key, "api_key" | "private_key" | "secret_key" | "access_key"),
    }
}
