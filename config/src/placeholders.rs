//! Warns of `$NAME`, which other tools replace and Weir takes as it stands.

use crate::Node;
use crate::node::Kind;
use crate::reader::Context;

/// One file gets this many warnings of the kind; more say nothing new.
const MOST: usize = 3;

pub(crate) fn warn(cx: &Context<'_>, root: &Node) {
    let mut found = Vec::new();
    walk(root, &mut found);
    let more = found.len().saturating_sub(MOST);
    for (index, (node, name)) in found.into_iter().take(MOST).enumerate() {
        let rest = if index + 1 == MOST && more > 0 { format!("; {more} more in this file") } else { String::new() };
        cx.warning("env-syntax", node.span(), format!("`${name}` is taken as it stands{rest}"), Some(format!("write `${{{name}}}` for the variable")));
    }
}

fn walk<'a>(node: &'a Node, found: &mut Vec<(&'a Node, &'a str)>) {
    node.items().iter().for_each(|item| walk(item, found));
    node.entries().iter().for_each(|(_, value)| walk(value, found));
    if let Kind::String(text) = node.kind()
        && !node.source().expanded
        && let Some(name) = placeholder(text)
    {
        found.push((node, name));
    }
}

/// The name of a variable that is the whole text, or what follows its last colon or blank.
fn placeholder(text: &str) -> Option<&str> {
    let name = text.rsplit([':', ' ']).next()?.strip_prefix('$')?;
    let fits = name.len() >= 2 && name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_') && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    fits.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::placeholder;

    #[test]
    fn only_whole_names_are_variables() {
        for (text, name) in [
            ("$API_KEY", Some("API_KEY")),
            ("Authorization: $LUA_AUTH_EXPR", Some("LUA_AUTH_EXPR")),
            ("Bearer $TOKEN", Some("TOKEN")),
            ("${API_KEY}", None),
            ("/price/$", None),
            ("~/a$B", None),
            ("$lower", None),
            ("costs $5", None),
            ("$1", None),
            ("", None),
        ] {
            assert_eq!(placeholder(text), name, "{text}");
        }
    }
}
