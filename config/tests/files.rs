//! Whole files: the shipped examples, real Kong files, files that name files.

mod common;

use common::{Register, options};
use std::path::{Path, PathBuf};
use std::time::Duration;
use weir_config::{ApiTarget, Document, Env, GuestIssue, LoadOptions, Loaded, Severity, Ttl, load_file, load_str};

fn load(text: &str) -> Document {
    let loaded = load_str("weir.yaml", text, &Register, &options());
    assert_eq!(loaded.diagnostics.to_string(), "", "of {text}");
    loaded.document.expect("a document")
}

#[test]
fn every_shipped_example_loads_without_a_word() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let loaded = load_file(&path, &Register, &LoadOptions::default().with_env(Env::empty()));
        assert_eq!(loaded.diagnostics.to_string(), "", "{}", path.display());
        assert!(loaded.document.is_some(), "{}", path.display());
        count += 1;
    }
    assert!(count >= 2);
}

#[test]
fn the_demo_says_what_it_means() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo.yaml");
    let document = load_file(path, &Register, &LoadOptions::default().with_env(Env::empty())).document.unwrap();
    let edge = document.edge.unwrap();
    assert_eq!(edge.pages[0].ttl, Ttl::For(Duration::from_secs(60)));
    assert_eq!(edge.api, ApiTarget::Gateway);
    assert_eq!(edge.guests.unwrap().issue, GuestIssue::Local);
    let gateway = document.gateway.unwrap();
    let home = gateway.routes.iter().position(|route| route.name == "home").unwrap();
    assert_eq!(gateway.services[gateway.routes[home].service.unwrap()].port, 3001);
    assert!(!gateway.routes[home].strip_path);
    assert!(gateway.plugins.iter().any(|plugin| plugin.name == "response-cache" && plugin.route == Some(home)));
    assert_eq!(document.warm_up.unwrap().every.unwrap().get(), Duration::from_secs(270));
    assert!(document.admin.token.is_none());
}

/// Folder with public Kong files, where the checkout has one beside it.
fn kong_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/kong");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.extension().is_some_and(|e| e == "yml")).collect();
    files.sort();
    files
}

fn with_secrets(ignore_unknown_plugins: bool) -> LoadOptions {
    let env = [("JWT_SECRET", "s"), ("AI_GATEWAY_SHARED_SECRET", "s")].into_iter().collect();
    LoadOptions { ignore_unknown_plugins, ..LoadOptions::default() }.with_env(env)
}

#[test]
fn real_kong_files_load_or_say_exactly_what_is_not_supported() {
    for path in kong_files() {
        let Loaded { document, diagnostics, .. } = load_file(&path, &Register, &with_secrets(false));
        let errors: Vec<_> = diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
        assert_eq!(document.is_none(), !errors.is_empty(), "{}", path.display());
        for error in errors {
            // Unknown plugins are the only thing in these files that Weir does not take.
            assert!(error.code == "unknown-plugin" && error.span.is_known() && error.hint.is_some(), "{error}");
        }
        let loaded = load_file(&path, &Register, &with_secrets(true));
        assert!(loaded.document.is_some(), "{}\n{}", path.display(), loaded.diagnostics);
    }
}

#[test]
fn a_missing_variable_of_a_real_file_is_named() {
    for path in kong_files().into_iter().filter(|path| path.ends_with("48.yml")) {
        let loaded = load_file(&path, &Register, &LoadOptions::default().with_env(Env::empty()));
        assert!(loaded.diagnostics.to_string().contains("environment variable `AI_GATEWAY_SHARED_SECRET` is not set"));
        assert!(loaded.document.is_none());
    }
}

#[test]
fn a_kong_file_is_named_by_a_weir_file_relative_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let kong = folder.path().join("kong.yml");
    std::fs::write(&kong, "_format_version: '2.1'\nservices: [{name: a, url: http://a:81/x, routes: [{name: r, paths: ['/a/\\d+']}]}]\n").unwrap();
    let weir = folder.path().join("weir.yaml");
    for text in ["gateway: kong.yml\n", "gateway: {listen: 127.0.0.1:8001, file: kong.yml}\n"] {
        std::fs::write(&weir, text).unwrap();
        let loaded = load_file(&weir, &Register, &options());
        assert_eq!(loaded.diagnostics.to_string(), "");
        assert_eq!(loaded.files, [weir.clone(), kong.clone()]);
        let gateway = loaded.document.unwrap().gateway.unwrap();
        assert_eq!(gateway.listen.first(), if text.contains("8001") { "127.0.0.1:8001" } else { "0.0.0.0:8000" });
        assert_eq!(gateway.format, (2, 1));
        assert!(gateway.routes[0].paths[0].regex);
        assert_eq!((gateway.services[0].host.as_str(), gateway.services[0].port, gateway.services[0].path.as_str()), ("a", 81, "/x"));
    }
    std::fs::write(&kong, "services: [{name: a, urll: http://a}]\n").unwrap();
    let found = load_file(&weir, &Register, &options()).diagnostics;
    assert!(found.iter().any(|d| d.code == "unknown-key" && d.span.file().ends_with("kong.yml")), "{found}");
}

#[test]
fn flat_and_nested_entities_mean_the_same() {
    let nested = load(
        "gateway:\n  services:\n  - {name: s, id: i-1, host: h, protocol: https, routes: [{name: r, paths: [/a], plugins: [{name: cors}]}], plugins: [{name: jwt}]}\n  consumers:\n  - {username: u, plugins: [{name: rate-limiting, config: {minute: 5}}], jwt_secrets: [{key: k, secret: '${WORD}'}], keyauth_credentials: [{key: '${WORD}'}], acls: [{group: g}], basicauth_credentials: [{username: b, password: '${WORD}'}]}\n  upstreams:\n  - {name: h, targets: [{target: 'a:1', weight: 5}]}\n",
    );
    let flat = load(
        "gateway:\n  services: [{name: s, id: i-1, url: 'https://h'}]\n  routes: [{name: r, service: {id: i-1}, paths: [/a]}]\n  plugins:\n  - {name: cors, route: r}\n  - {name: jwt, service: {name: s}}\n  - {name: rate-limiting, consumer: u, config: {minute: 5}}\n  consumers: [{username: u}]\n  jwt_secrets: [{consumer: u, key: k, secret: '${WORD}'}]\n  keyauth_credentials: [{consumer: {username: u}, key: '${WORD}'}]\n  acls: [{consumer: u, group: g}]\n  basicauth_credentials: [{consumer: u, username: b, password: '${WORD}'}]\n  upstreams: [{name: h}]\n  targets: [{target: 'a:1', upstream: h, weight: 5}]\n",
    );
    for document in [nested, flat] {
        let gateway = document.gateway.unwrap();
        let service = &gateway.services[0];
        assert_eq!((service.protocol.as_str(), service.port, service.retries), ("https", 443, 5));
        assert_eq!(service.connect_timeout, Duration::from_secs(60));
        assert_eq!(gateway.routes[0].service, Some(0));
        assert!(gateway.routes[0].strip_path && !gateway.routes[0].preserve_host);
        let scope = |name: &str| gateway.plugins.iter().find(|p| p.name == name).map(|p| (p.service, p.route, p.consumer)).unwrap();
        assert_eq!(scope("cors"), (None, Some(0), None));
        assert_eq!(scope("jwt"), (Some(0), None, None));
        assert_eq!(scope("rate-limiting"), (None, None, Some(0)));
        let consumer = &gateway.consumers[0];
        assert_eq!((consumer.groups.join(","), consumer.keys[0].key.expose(), consumer.basic[0].1.expose()), ("g".into(), "word", "word"));
        assert_eq!((consumer.jwt[0].key.as_str(), consumer.jwt[0].algorithm.as_str()), ("k", "HS256"));
        assert_eq!((gateway.upstreams[0].targets[0].host.as_str(), gateway.upstreams[0].targets[0].weight), ("a", 5));
    }
}

#[test]
fn paths_mean_what_their_format_says() {
    let paths = |format: &str, path: &str| {
        let text = format!("_format_version: \"{format}\"\nservices: [{{name: s, url: http://h, routes: [{{name: r, paths: ['{path}']}}]}}]\n");
        let loaded = load_str("kong.yml", &text, &Register, &options());
        let gateway = loaded.document.unwrap().gateway.unwrap();
        (gateway.routes[0].paths[0].text.clone(), gateway.routes[0].paths[0].regex, loaded.diagnostics.len())
    };
    assert_eq!(paths("3.0", "/a/(b)"), ("/a/(b)".into(), false, 1));
    assert_eq!(paths("3.0", "~/a/(b)"), ("/a/(b)".into(), true, 0));
    assert_eq!(paths("3.0", "~/a(?=b)"), ("/a(?=b)".into(), true, 0));
    assert_eq!(paths("2.1", "/a/(b)"), ("/a/(b)".into(), true, 0));
    assert_eq!(paths("1.1", "/a-b_c.d~/%20"), ("/a-b_c.d~/%20".into(), false, 0));
    assert_eq!(paths("2.1", "/a b"), ("/a b".into(), true, 0));
}

#[test]
fn unknown_plugins_stop_the_load_unless_told_otherwise() {
    let text = "services: [{name: s, url: http://h, routes: [{name: r, paths: [/]}]}]\n_format_version: '3.0'\nplugins: [{name: rate-limitng}, {name: cors}]\n";
    let refused = load_str("kong.yml", text, &Register, &options());
    assert!(refused.document.is_none());
    let told = LoadOptions { ignore_unknown_plugins: true, ..options() };
    let loaded = load_str("kong.yml", text, &Register, &told);
    assert_eq!(loaded.diagnostics.count(Severity::Warning), 1);
    let plugins: Vec<String> = loaded.document.unwrap().gateway.unwrap().plugins.into_iter().map(|p| p.name).collect();
    assert_eq!(plugins, ["cors"]);
}

#[test]
fn aliases_merge_keys_and_older_plugin_names() {
    let document = load(
        "gateway:\n  services:\n  - &a {name: a, url: 'http://h:1', retries: 2, routes: &r [{paths: [/a]}]}\n  - {<<: *a, name: b, routes: [{paths: [/b]}]}\n  plugins: [{name: simple-redis-cache}]\n",
    );
    let gateway = document.gateway.unwrap();
    assert_eq!((gateway.services[1].retries, gateway.services[1].port), (2, 1));
    assert_eq!(gateway.routes[1].name, "b#1");
    assert_eq!(gateway.plugins[0].name, "response-cache");
}

#[test]
fn members_of_groups_are_found_by_any_name() {
    let document = load(
        "gateway:\n  consumer_groups: [{name: gold, consumers: [{username: u}]}, {name: tin}]\n  consumers: [{custom_id: c, groups: [{name: tin}]}, {username: u, id: i-1}]\n  consumer_group_consumers: [{consumer: i-1, consumer_group: tin}]\n",
    );
    let consumers = document.gateway.unwrap().consumers;
    assert_eq!(consumers[0].consumer_groups, ["tin"]);
    assert_eq!(consumers[1].consumer_groups, ["gold", "tin"]);
    // An id that is made is the same every time, and has the shape of one.
    assert_eq!(consumers[0].id.len(), 36);
    assert_eq!(consumers[1].id, "i-1");
}

#[test]
fn spellings_of_the_edge_are_settled() {
    let edge = load("edge: {origin: 'http://O.example/', hosts: [Shop.Example]}").edge.unwrap();
    assert_eq!((edge.origin.as_str(), edge.hosts), ("http://O.example", vec!["shop.example".to_string()]));
}

#[test]
fn guests_may_be_asked_of_the_auth_service() {
    let document = load("edge: {origin: 'http://o', guests: {key: '${WORD}${WORD}${WORD}${WORD}${WORD}${WORD}${WORD}${WORD}', issue: {url: 'http://auth:4000/g'}}}");
    let issue = document.edge.unwrap().guests.unwrap().issue;
    assert_eq!(issue, GuestIssue::Remote { url: "http://auth:4000/g".into(), timeout: Duration::from_secs(5) });
}

#[test]
fn an_edge_without_a_gateway_sends_the_api_to_the_site() {
    let document = load("edge: {origin: 'http://localhost:3000', pages: [{path: /}]}");
    assert_eq!(document.edge.unwrap().api, ApiTarget::Origin);
}

#[test]
fn the_debug_form_of_a_document_holds_no_secret() {
    let text = "store: 'redis://u:hunter2@h'\nedge: {origin: 'http://o', guests: {key: hunter2hunter2hunter2hunter2hunter2}}\ngateway:\n  consumers: [{username: u, keyauth_credentials: [{key: hunter2}]}]\n  plugins: [{name: token-validator, config: {secret: hunter2}}]\n";
    let loaded = load_str("weir.yaml", text, &Register, &options());
    assert!(!format!("{:?}", loaded.document.as_ref().unwrap()).contains("hunter2"));
    assert!(!loaded.diagnostics.to_string().contains("hunter2"), "{}", loaded.diagnostics);
    assert!(!loaded.diagnostics.to_json().to_string().contains("hunter2"));
}
