//! Warns of `$NAME` and of decK's `${{ env "NAME" }}`, which other tools replace and Weir takes as they stand.

use crate::Node;
use crate::node::Kind;
use crate::reader::Context;

/// One file gets this many warnings of the kind; more say nothing new.
const MOST: usize = 3;

pub(crate) fn warn(cx: &Context<'_>, root: &Node) {
    let mut found = Vec::new();
    walk(root, &mut found);
    let more = found.len().saturating_sub(MOST);
    for (index, (node, written, name)) in found.into_iter().take(MOST).enumerate() {
        let rest = if index + 1 == MOST && more > 0 { format!("; {more} more in this file") } else { String::new() };
        cx.warning("env-syntax", node.span(), format!("`{written}` is taken as it stands{rest}"), Some(format!("write `${{{name}}}` for the variable")));
    }
}

fn walk<'a>(node: &'a Node, found: &mut Vec<(&'a Node, String, &'a str)>) {
    node.items().iter().for_each(|item| walk(item, found));
    node.entries().iter().for_each(|(_, value)| walk(value, found));
    if let Kind::String(text) = node.kind()
        && !node.source().expanded
    {
        if let Some(name) = placeholder(text) {
            found.push((node, format!("${name}"), name));
        } else if let Some(name) = of_deck(text) {
            found.push((node, "${{ env … }}".into(), name));
        }
    }
}

/// The name of a variable that is the whole text, or what follows its last colon or blank.
fn placeholder(text: &str) -> Option<&str> {
    let name = text.rsplit([':', ' ']).next()?.strip_prefix('$')?;
    let fits = name.len() >= 2 && name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_') && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    fits.then_some(name)
}

/// The name in decK's `${{ env "NAME" }}`.
pub(crate) fn of_deck(text: &str) -> Option<&str> {
    let rest = text.split_once("${{")?.1.trim_start().strip_prefix("env")?.trim_start();
    let (name, _) = rest.strip_prefix(['"', '\''])?.split_once(['"', '\''])?;
    (!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')).then_some(name)
}

/// The name of a variable that stands anywhere in a text as `$NAME`.
pub(crate) fn variable_in(text: &str) -> Option<&str> {
    text.split('$').skip(1).find_map(|rest| {
        let end = rest.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')).unwrap_or(rest.len());
        let name = &rest[..end];
        (name.len() >= 2 && !name.starts_with(|c: char| c.is_ascii_digit())).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::{of_deck, placeholder, variable_in};

    #[test]
    fn decks_templates_name_variables() {
        for (text, name) in [("${{ env \"DECK_URL\" }}", Some("DECK_URL")), ("Bearer ${{env 'A'}}", Some("A")), ("${{ other }}", None), ("${{ env \"a b\" }}", None), ("${{", None)] {
            assert_eq!(of_deck(text), name, "{text}");
        }
    }

    #[test]
    fn variables_within_a_text() {
        for (text, name) in [("http://$AUTH_HOST:9999/x", Some("AUTH_HOST")), ("$A$BC", Some("BC")), ("${NAME}", None), ("a$5", None), ("", None)] {
            assert_eq!(variable_in(text), name, "{text}");
        }
    }

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
