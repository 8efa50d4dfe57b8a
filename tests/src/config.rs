//! A configuration under construction. JSON is YAML, so what is built here is written down as it is.

use serde_json::{Value, json};

/// A configuration without addresses to listen on: those are chosen when Weir is started.
#[derive(Debug, Clone)]
pub struct Config(pub Value);

impl Config {
    /// Sets what a JSON pointer names, making the objects on the way: `/edge/pages`.
    #[track_caller]
    pub fn set(mut self, pointer: &str, value: impl Into<Value>) -> Config {
        let mut at = &mut self.0;
        for part in pointer.split('/').skip(1) {
            at = match at {
                Value::Array(items) => &mut items[part.parse::<usize>().expect("an index")],
                Value::Object(map) => map.entry(part).or_insert_with(|| json!({})),
                other => panic!("{pointer}: {other} has no parts"),
            };
        }
        *at = value.into();
        self
    }

    /// Adds to a list.
    #[track_caller]
    pub fn push(mut self, pointer: &str, value: Value) -> Config {
        let Some(Value::Array(items)) = self.0.pointer_mut(pointer) else { panic!("{pointer} is no list") };
        items.push(value);
        self
    }

    /// Takes a section out.
    pub fn without(mut self, section: &str) -> Config {
        if let Value::Object(map) = &mut self.0 {
            map.remove(section);
        }
        self
    }

    /// Replaces the page rules.
    pub fn pages(self, rules: Value) -> Config {
        self.set("/edge/pages", rules)
    }

    /// Adds a service with one route that keeps its path, and the route's plugins.
    pub fn service(self, name: &str, url: &str, path: &str, plugins: Value) -> Config {
        let route = json!({ "name": name, "paths": [path], "strip_path": false, "plugins": plugins });
        self.push("/gateway/services", json!({ "name": name, "url": url, "routes": [route] }))
    }
}
