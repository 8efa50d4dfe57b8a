use crate::{Client, Environment, Flow, Phases, Plugin, Register, RequestContext, Scheme, Snapshot, client::OwnClient, metrics::Metrics, plugin::BuildEnv, upstream::Endpoints};
use http::{Request, request};
use std::sync::Arc;
use weir_config::{Diagnostic, Env, LoadOptions, Node, PluginCatalog, PluginEntry, load_str};
use weir_store::Store;

/// Plugins that note their `tag`.
struct Tags;

const NAMES: [(&str, i32); 4] = [("first", 40), ("second", 30), ("third", 20), ("fourth", 10)];

struct Tag(String);

impl Plugin for Tag {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }
    fn request(&self, cx: &mut RequestContext, _: &mut request::Parts) -> Flow {
        let noted = cx.shared.entry("ran").or_insert_with(|| "".into());
        *noted = format!("{} {}", noted.as_str().unwrap(), self.0).trim().into();
        Flow::Continue
    }
}

impl PluginCatalog for Tags {
    fn names(&self) -> Vec<String> {
        NAMES.iter().map(|(name, _)| name.to_string()).collect()
    }
    fn check(&self, _: &str, _: &Node) -> Vec<Diagnostic> {
        vec![]
    }
    fn canonical(&self, name: &str) -> Option<&'static str> {
        NAMES.iter().map(|(known, _)| *known).find(|known| *known == name)
    }
}

impl Register for Tags {
    fn build(&self, entry: &PluginEntry, env: &BuildEnv<'_>) -> Result<Arc<dyn Plugin>, Vec<Diagnostic>> {
        let tag = entry.config.get("tag").and_then(Node::text);
        Ok(Arc::new(Tag(tag.unwrap_or_else(|| match env.scope.as_str() {
            "global" => entry.name.clone(),
            scope => scope.to_owned(),
        }))))
    }
    fn priority(&self, name: &str) -> i32 {
        NAMES.iter().find(|(known, _)| *known == name).map_or(0, |(_, priority)| *priority)
    }
}

fn compile(plugins: &str) -> Result<Snapshot, String> {
    let text = format!(
        "_format_version: '3.0'\nservices:\n- {{name: s, url: 'http://h', routes: [{{name: r, paths: [/]}}]}}\nconsumer_groups: [{{name: g}}, {{name: other}}]\nconsumers: [{{username: c, id: c, groups: [{{name: g}}]}}, {{username: d, id: d}}]\nplugins:\n{plugins}\n"
    );
    let loaded = load_str("kong.yml", &text, &Tags, &LoadOptions::default().with_env(Env::empty()));
    let document = loaded.document.ok_or_else(|| loaded.diagnostics.to_string())?;
    let store = Store::memory();
    let cache = weir_cache::Engine::new(store.clone(), weir_cache::EngineOptions::default());
    let endpoints = Endpoints::default();
    let environment = Arc::new(Environment { store, cache, client: OwnClient::new(endpoints.dns()), metrics: Arc::new(Metrics::new()), endpoints, resilience: Default::default() });
    Snapshot::compile(&document, &Tags, &environment).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// What ran for a request of a consumer.
async fn ran(snapshot: &Snapshot, consumer: Option<usize>) -> String {
    let ip = std::net::IpAddr::from([192, 0, 2, 7]);
    let mut cx = RequestContext::new(Client { ip, peer: ip, scheme: Scheme::Http, host: "a".into(), port: 80, trusted: false, sni: None });
    cx.consumer = consumer.map(|c| snapshot.consumers[c].clone());
    let (mut parts, ()) = Request::new(()).into_parts();
    let chains = &snapshot.routes[0].chains;
    let begun = chains.begin(&cx);
    chains.request(&mut cx, &mut parts, begun).await;
    cx.shared.get("ran").and_then(|ran| ran.as_str()).unwrap_or_default().to_owned()
}

/// Scopes from the most specific on, as they are written, and as [`BuildEnv::scope`] names them.
const SCOPES: [(&str, &str); 12] = [
    ("consumer: c, route: r, service: s", "route:r/service:s/consumer:c"),
    ("consumer_group: g, route: r, service: s", "route:r/service:s/group:g"),
    ("consumer: c, route: r", "route:r/consumer:c"),
    ("consumer: c, service: s", "service:s/consumer:c"),
    ("consumer_group: g, route: r", "route:r/group:g"),
    ("consumer_group: g, service: s", "service:s/group:g"),
    ("route: r, service: s", "route:r/service:s"),
    ("consumer: c", "consumer:c"),
    ("consumer_group: g", "group:g"),
    ("route: r", "route:r"),
    ("service: s", "service:s"),
    ("enabled: true", "first"),
];

#[tokio::test]
async fn of_one_name_the_most_specific_scope_runs_whatever_the_order_in_the_file() {
    for from in 0..SCOPES.len() {
        for reversed in [false, true] {
            let mut lines: Vec<String> = SCOPES[from..].iter().map(|(scope, _)| format!("- {{name: first, {scope}}}")).collect();
            if reversed {
                lines.reverse();
            }
            let snapshot = compile(&lines.join("\n")).unwrap();
            assert_eq!(ran(&snapshot, Some(0)).await, SCOPES[from].1);
            // Neither a stranger nor a consumer outside of the group gets what is not theirs.
            let others = SCOPES[from..].iter().find(|(scope, _)| !scope.contains("consumer")).unwrap().1;
            assert_eq!([ran(&snapshot, Some(1)).await, ran(&snapshot, None).await], [others, others], "{from}");
        }
    }
}

#[tokio::test]
async fn the_registers_order_holds_unless_an_ordering_says_otherwise() {
    for (ordering, order) in [
        ("", "first second third fourth"),
        ("before: {access: [first]}", "third first second fourth"),
        ("after: {access: [fourth]}", "first second fourth third"),
        ("before: {access: [second]}, after: {access: [fourth]}", "first fourth third second"),
        ("after: {access: [first, first]}", "first second third fourth"),
    ] {
        let extra = if ordering.is_empty() { String::new() } else { format!(", ordering: {{{ordering}}}") };
        let plugins = format!("- {{name: fourth}}\n- {{name: third{extra}}}\n- {{name: second}}\n- {{name: first}}");
        assert_eq!(ran(&compile(&plugins).unwrap(), None).await, order, "{ordering}");
    }
}

#[test]
fn an_ordering_that_can_not_be_kept_is_named() {
    let plugins = "- {name: fourth, ordering: {before: {access: [third]}}}\n- {name: third, ordering: {before: {access: [fourth]}}}\n- {name: second, ordering: {after: {access: [third]}}}";
    let error = compile(plugins).err().unwrap();
    assert!(error.contains("kong.yml:") && error.contains("this `ordering` can not be kept"), "{error}");
    for (plugin, message) in [
        ("- {name: first, ordering: {before: {access: [secnd]}}}", "did you mean `second`?"),
        ("- {name: first, ordering: {before: {acces: [second]}}}", "unknown key `acces`"),
        ("- {name: first, ordering: {befor: {access: [second]}}}", "did you mean `before`?"),
        ("- {name: first, consumer: c, consumer_group: g}", "for a consumer or for a group, not for both"),
        ("- {name: first, consumer_group: gg}", "there is no consumer group `gg`"),
    ] {
        let error = compile(plugin).err().unwrap_or_else(|| panic!("{plugin} is taken"));
        assert!(error.contains(message), "{plugin}: {error}");
    }
}

#[tokio::test]
async fn what_is_switched_off_or_not_for_http_does_not_run() {
    let snapshot = compile("- {name: first, enabled: false}\n- {name: second, protocols: [tcp]}\n- {name: third, protocols: [https]}").unwrap();
    assert_eq!(ran(&snapshot, None).await, "third");
}
