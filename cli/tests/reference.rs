//! `docs/reference/` is made from the structs that read the configuration; this test fails when the two differ.
//! `UPDATE_DOCS=1 cargo test -p weir --test reference` writes it anew.

use serde_json::{Map, Value};
use std::{fmt::Write as _, fs, path::{Path, PathBuf}};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference")
}

#[test]
fn the_reference_says_what_the_structs_say() {
    let mut pages = vec![("configuration.md".to_string(), configuration())];
    let mut index = String::from("# Plugins\n\nIn the order in which they run. Made from the code; every example is run by a test.\n\n| plugin | place | |\n|---|---|---|\n");
    for page in weir_plugins::manual() {
        let first = page.about.split_terminator(". ").next().unwrap_or_default().trim_end_matches('.').replace('\n', " ");
        let _ = writeln!(index, "| [`{0}`](plugins/{0}.md) | {1} | {first} |", page.name, page.priority);
        let mut text = format!("# {}\n\n{}\n", page.name, page.about.trim());
        if !page.aliases.is_empty() {
            let _ = writeln!(text, "\nAlso under the name{} `{}`.", if page.aliases.len() > 1 { "s" } else { "" }, page.aliases.join("`, `"));
        }
        let _ = write!(text, "\nPlace in the chain: {} (higher runs earlier).\n\n## Example\n\n```yaml\nplugins:\n  - name: {}\n    config:\n", page.priority, page.name);
        for line in page.example.trim_end().lines() {
            let _ = writeln!(text, "      {line}");
        }
        text.push_str("```\n\n## Fields\n\n");
        fields(&mut text, &page.schema, &page.schema);
        pages.push((format!("plugins/{}.md", page.name), text));
    }
    pages.push(("plugins.md".into(), index));
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let mut differ = Vec::new();
    for (name, text) in pages {
        let path = folder().join(&name);
        if update {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &text).unwrap();
        } else if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            differ.push(name);
        }
    }
    assert!(differ.is_empty(), "docs/reference is behind the code in {differ:?}; run UPDATE_DOCS=1 cargo test -p weir --test reference");
}

fn configuration() -> String {
    let mut text = String::from(
        "# Configuration\n\nThe sections of Weir's own file, made from the structs that read it. The `gateway` section holds `listen`, `headers` and Kong's declarative format \
         (`gateway: kong.yml` and `{ listen, headers, file }` work too). `headers` says by whose names answers tell how long things took: `weir` \
         (`X-Weir-Upstream-Latency`, `-Proxy-Latency`, `-Response-Latency`; the default), `kong` (`X-Kong-…` and `X-Kong-Request-Id`; the default where \
         Weir is given a Kong file itself) or `off`. `${NAME}` and `${NAME:-default}` are replaced everywhere.\n",
    );
    let sections = [
        ("store", weir_config::schema::<weir_config::StoreConfig>()),
        ("edge", weir_config::schema::<weir_config::Edge>()),
        ("warm_up", weir_config::schema::<weir_config::WarmUp>()),
        ("admin", weir_config::schema::<weir_config::Admin>()),
        ("server", weir_config::schema::<weir_config::Server>()),
        ("resolver", weir_config::schema::<weir_config::Resolver>()),
    ];
    for (name, schema) in sections {
        let _ = write!(text, "\n## {name}\n\n");
        fields(&mut text, &schema, &schema);
    }
    text.push_str("\n## Services and upstreams\n\nBeside Kong's fields, `services` and `upstreams` of the gateway section take `retry`, `deadline` and `concurrency`; what a service does not say is its upstream's.\n");
    for (name, schema) in [
        ("retry", weir_config::schema::<weir_config::Retry>()),
        ("deadline", weir_config::schema::<weir_config::Deadlines>()),
        ("concurrency", weir_config::schema::<weir_config::Concurrency>()),
    ] {
        let about = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        let _ = write!(text, "\n### {name} of services and upstreams\n\n{about}\n\n");
        fields(&mut text, &schema, &schema);
    }
    text
}

/// A table of an object's fields, then one for every object inside it.
fn fields(out: &mut String, root: &Value, schema: &Value) {
    let schema = resolve(root, schema);
    // A value that may be a text or an object is described by its object.
    let object = ["oneOf", "anyOf"].iter().filter_map(|k| schema.get(k)).filter_map(Value::as_array).flatten().map(|s| resolve(root, s)).find(|s| s.get("properties").is_some());
    let Some(properties) = schema.get("properties").or_else(|| object?.get("properties")).and_then(Value::as_object) else {
        out.push_str("None.\n");
        return;
    };
    let required: Vec<&str> = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    out.push_str("| field | type | default | |\n|---|---|---|---|\n");
    let mut inner = Vec::new();
    for (name, field) in properties {
        let default = match field.get("default") {
            Some(Value::Null) | None if required.contains(&name.as_str()) => "**required**".to_string(),
            Some(Value::Null) | None => String::new(),
            Some(value) => format!("`{}`", value.to_string().replace('|', "\\|")),
        };
        let about = field.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ").replace('|', "\\|");
        let _ = writeln!(out, "| `{name}` | {} | {default} | {about} |", kind(root, field));
        if let Some(object) = object_in(root, field) {
            inner.push((name, object));
        }
    }
    for (name, object) in inner {
        let _ = write!(out, "\n### {name}\n\n");
        fields(out, root, object);
    }
}

fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let target = schema.get("$ref").and_then(Value::as_str).and_then(|path| root.pointer(path.trim_start_matches('#')));
    target.unwrap_or(schema)
}

/// The object that a field is, may be, or is a list of.
fn object_in<'a>(root: &'a Value, field: &'a Value) -> Option<&'a Value> {
    let field = resolve(root, field);
    if field.get("properties").is_some() {
        return Some(field);
    }
    if let Some(items) = field.get("items") {
        return object_in(root, items);
    }
    ["anyOf", "oneOf"].iter().filter_map(|k| field.get(k)).filter_map(Value::as_array).flatten().find_map(|s| object_in(root, s))
}

fn kind(root: &Value, field: &Value) -> String {
    let empty = Map::new();
    let field = resolve(root, field).as_object().unwrap_or(&empty);
    if let Some(values) = field.get("enum").and_then(Value::as_array) {
        return values.iter().map(|v| format!("`{}`", v.as_str().map_or_else(|| v.to_string(), String::from))).collect::<Vec<_>>().join(" ");
    }
    if let Some(value) = field.get("const") {
        return format!("`{}`", value.as_str().map_or_else(|| value.to_string(), String::from));
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(list) = field.get(key).and_then(Value::as_array) {
            let mut kinds: Vec<String> = list.iter().map(|s| kind(root, s)).filter(|k| k != "null").collect();
            kinds.dedup();
            return kinds.join(" or ");
        }
    }
    let one = |name: &str| match name {
        "array" => format!("list of {}", field.get("items").map_or("anything".into(), |i| kind(root, i))),
        "string" => match field.get("format").and_then(Value::as_str) {
            Some(format) if format.starts_with("weir-") => format.trim_start_matches("weir-").to_string(),
            _ => "text".into(),
        },
        "object" => "mapping".into(),
        "integer" => "whole number".into(),
        "boolean" => "yes or no".into(),
        other => other.to_string(),
    };
    match field.get("type") {
        Some(Value::String(name)) => one(name),
        Some(Value::Array(names)) => {
            let mut kinds: Vec<String> = names.iter().filter_map(Value::as_str).filter(|n| *n != "null").map(one).collect();
            kinds.dedup();
            kinds.join(" or ")
        }
        _ => "anything".into(),
    }
}
