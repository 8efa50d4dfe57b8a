//! `${NAME}`, `${NAME:-default}` and `{vault://env/name}` in values.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Where variables come from.
#[derive(Clone)]
pub struct Env {
    lookup: Arc<Lookup>,
    /// Prefixes of the file's `vaults` that are environments, each with what its variables begin with.
    vaults: HashMap<String, String>,
}

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

impl Env {
    /// The process's environment.
    pub fn process() -> Env {
        Env::of(|name| std::env::var(name).ok())
    }

    /// A function from name to value.
    pub fn of(lookup: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Env {
        Env { lookup: Arc::new(lookup), vaults: HashMap::new() }
    }

    /// No variables at all.
    pub fn empty() -> Env {
        Env::of(|_| None)
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<String> {
        (self.lookup)(name)
    }

    /// The same variables, and vaults by their prefixes.
    pub(crate) fn with_vaults(&self, vaults: HashMap<String, String>) -> Env {
        Env { lookup: self.lookup.clone(), vaults }
    }
}

impl Default for Env {
    fn default() -> Self {
        Env::process()
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Env")
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let map: HashMap<String, String> = pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Env::of(move |name| map.get(name).cloned())
    }
}

/// What became of a value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Expanded {
    /// Nothing in it to expand.
    Unchanged,
    /// The text after expansion.
    To(String),
}

/// Why a value cannot be expanded. `at` and `len` (characters) mark the culprit in the value's text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub code: &'static str,
    pub message: String,
    pub hint: Option<String>,
    pub at: usize,
    pub len: usize,
}

/// Defaults inside defaults go this deep.
const DEEPEST: usize = 8;

/// Expands all references of one value. A `$` that does not begin `${NAME` stays as it is.
pub(crate) fn expand(text: &str, env: &Env) -> Result<Expanded, Vec<Problem>> {
    if let Some(reference) = text.strip_prefix("{vault://").and_then(|rest| rest.strip_suffix('}')) {
        return vault(reference, text, env).map(Expanded::To).map_err(|problem| vec![problem]);
    }
    if !text.contains("${") {
        return Ok(Expanded::Unchanged);
    }
    let chars: Vec<char> = text.chars().collect();
    let mut problems = Vec::new();
    let mut changed = false;
    let out = expand_chars(&chars, 0, env, DEEPEST, &mut changed, &mut problems);
    match (problems.is_empty(), changed) {
        (false, _) => Err(problems),
        (true, true) => Ok(Expanded::To(out)),
        (true, false) => Ok(Expanded::Unchanged),
    }
}

fn expand_chars(chars: &[char], offset: usize, env: &Env, deeper: usize, changed: &mut bool, problems: &mut Vec<Problem>) -> String {
    let mut out = String::with_capacity(chars.len());
    let mut at = 0;
    while at < chars.len() {
        if chars[at] != '$' || chars.get(at + 1) != Some(&'{') {
            out.push(chars[at]);
            at += 1;
            continue;
        }
        let name_from = at + 2;
        let mut name_to = name_from;
        while chars.get(name_to).is_some_and(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name_to += 1;
        }
        let named = name_to > name_from && !chars[name_from].is_ascii_digit();
        if !named {
            // `${` of some other language (a template, a regex): not ours.
            out.push(chars[at]);
            at += 1;
            continue;
        }
        let name: String = chars[name_from..name_to].iter().collect();
        let Some(close) = closing_brace(chars, name_to) else {
            problems.push(Problem {
                code: "env-syntax",
                message: format!("`${{{name}` is not closed"),
                hint: Some("a `}` is missing".into()),
                at: offset + at,
                len: name_to - at,
            });
            return out;
        };
        let default = match &chars[name_to..close] {
            [] => None,
            [':', '-', default @ ..] => Some(default),
            _ => {
                problems.push(Problem {
                    code: "env-syntax",
                    message: format!("`${{{name}…}}` is neither `${{NAME}}` nor `${{NAME:-default}}`"),
                    hint: None,
                    at: offset + at,
                    len: close + 1 - at,
                });
                at = close + 1;
                continue;
            }
        };
        *changed = true;
        let value = env.get(&name);
        match (value, default) {
            (Some(value), None) => out.push_str(&value),
            (Some(value), Some(_)) if !value.is_empty() => out.push_str(&value),
            (_, Some(default)) if deeper > 0 => {
                out.push_str(&expand_chars(default, offset + name_to + 2, env, deeper - 1, changed, problems));
            }
            (_, Some(default)) => out.extend(default),
            (None, None) => problems.push(Problem {
                code: "env-missing",
                message: format!("environment variable `{name}` is not set"),
                hint: Some(format!("set it, or write `${{{name}:-default}}`")),
                at: offset + at,
                len: close + 1 - at,
            }),
        }
        at = close + 1;
    }
    out
}

/// The `}` that closes a reference whose name ends at `from`; references may nest in the default.
fn closing_brace(chars: &[char], from: usize) -> Option<usize> {
    let mut depth = 0;
    let mut at = from;
    while at < chars.len() {
        match chars[at] {
            '$' if chars.get(at + 1) == Some(&'{') => {
                depth += 1;
                at += 1;
            }
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}

/// Kong's `{vault://env/my-name}` is the variable `MY_NAME`; `{vault://env/my-name/part}` is a field of a JSON object in it.
fn vault(reference: &str, whole: &str, env: &Env) -> Result<String, Problem> {
    let problem = |code, message, hint: Option<String>| Problem { code, message, hint, at: 0, len: whole.chars().count() };
    let path = reference.split(['?', '#']).next().unwrap_or(reference);
    let mut parts = path.split('/');
    let (vault, name, field) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next());
    let begins = match (vault, env.vaults.get(vault)) {
        (_, Some(begins)) => begins.as_str(),
        ("env", None) => "",
        _ => return Err(problem("vault", format!("there is no vault `{vault}`"), Some("Weir reads `{vault://env/NAME}`, and `vaults` whose name is `env`".into()))),
    };
    if name.is_empty() || parts.next().is_some() {
        return Err(problem("vault", "this is not `{vault://env/NAME}`".into(), None));
    }
    let variable = format!("{begins}{name}").to_ascii_uppercase().replace('-', "_");
    let Some(value) = env.get(&variable) else {
        return Err(problem("env-missing", format!("environment variable `{variable}` is not set"), None));
    };
    let Some(field) = field.filter(|field| !field.is_empty()) else { return Ok(value) };
    let json: Option<serde_json::Value> = serde_json::from_str(&value).ok();
    match json.as_ref().and_then(|json| json.get(field)) {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(other) if other.is_number() || other.is_boolean() => Ok(other.to_string()),
        _ => Err(problem("vault", format!("environment variable `{variable}` holds no JSON object with a field `{field}`"), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Env {
        [("A", "1"), ("EMPTY", ""), ("MY_KEY", "k"), ("CREDS", r#"{"user":"u","n":5}"#)].into_iter().collect()
    }

    fn to(text: &str) -> String {
        match expand(text, &env()) {
            Ok(Expanded::To(text)) => text,
            Ok(Expanded::Unchanged) => text.to_string(),
            Err(problems) => format!("! {}", problems.into_iter().map(|p| format!("{} [{}+{}]", p.message, p.at, p.len)).collect::<Vec<_>>().join("; ")),
        }
    }

    #[test]
    fn variables_defaults_and_vault_references() {
        assert_eq!(to("x${A}y${A}"), "x1y1");
        assert_eq!(to("${B:-two}"), "two");
        assert_eq!(to("${EMPTY:-two}"), "two");
        assert_eq!(to("${EMPTY}"), "");
        assert_eq!(to("${B:-${A:-x}}${C:-}"), "1");
        assert_eq!(to("{vault://env/my-key}"), "k");
        assert_eq!(to("{vault://env/creds/user}/"), "{vault://env/creds/user}/");
        assert_eq!(to("{vault://env/creds/user}"), "u");
        assert_eq!(to("{vault://env/creds/n}"), "5");
        let vaults = [("mine".to_string(), "my-".to_string())].into_iter().collect();
        assert_eq!(expand("{vault://mine/key}", &env().with_vaults(vaults)), Ok(Expanded::To("k".into())));
    }

    #[test]
    fn other_dollars_stay() {
        for text in ["$A", "$$", "$${}", "~/a$", "$(headers.x)", "${}", "${1}", "${ A }"] {
            assert_eq!(to(text), text);
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_place() {
        assert_eq!(to("ab${B}${C}"), "! environment variable `B` is not set [2+4]; environment variable `C` is not set [6+4]");
        assert_eq!(to("a${A"), "! `${A` is not closed [1+3]");
        assert_eq!(to("${A?x}"), "! `${A…}` is neither `${NAME}` nor `${NAME:-default}` [0+6]");
        assert_eq!(to("{vault://hcv/a}"), "! there is no vault `hcv` [0+15]");
        assert_eq!(to("{vault://env/none}"), "! environment variable `NONE` is not set [0+18]");
    }
}
