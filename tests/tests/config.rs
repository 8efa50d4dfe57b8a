//! What a configuration may say, and what Weir says of one that is wrong: at `check`, at `run`, and when it is read again.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use weir_tests::{Config, Door, Outcome, Shop, Weir, eventually};

/// A file with this text.
fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("weir.yaml");
    std::fs::write(&path, text).expect("written");
    (folder, path)
}

fn check(text: &str, arguments: &[&str]) -> Outcome {
    let (_folder, path) = file(text);
    let path = path.to_string_lossy().into_owned();
    let all: Vec<&str> = ["check", &path].into_iter().chain(arguments.iter().copied()).collect();
    let mut outcome = Outcome::of(&all);
    // The folder's name is nothing that a test could know.
    outcome.out = outcome.out.replace(&path, "weir.yaml");
    outcome
}

const GOOD: &str = "\
edge:
  origin: http://localhost:3000
  pages:
    - path: /categories
      ttl: 60s
gateway:
  _format_version: '3.0'
  services:
    - name: bff
      url: http://localhost:3001
      routes:
        - name: home
          paths: [/api/home]
          plugins:
            - name: response-cache
              config: { ttl: 300s }
";

#[test]
fn a_good_file_is_told_in_one_line() {
    let outcome = check(GOOD, &[]);
    assert_eq!(outcome.code, Some(0), "{}{}", outcome.out, outcome.err);
    assert_eq!(outcome.out.trim(), "weir.yaml: ok: 1 services, 1 routes, 1 plugins, 1 page rules; 0 errors, 0 warnings");
}

/// Replaces a piece of the good file; the mistakes below differ from it in nothing else.
fn with(from: &str, to: &str) -> String {
    assert_eq!(GOOD.matches(from).count(), 1, "{from}");
    GOOD.replace(from, to)
}

#[test]
fn a_mistake_is_shown_where_it_stands() {
    for (text, place, message, under, hint) in [
        (with("      ttl: 60s", "      tll: 60s"), "5:7", "unknown key `tll`", "^^^", "did you mean `ttl`?"),
        (with("  origin: h", "  orgin: h"), "2:3", "unknown key `orgin`", "^^^^^", "did you mean `origin`?"),
        (with("edge:", "egde:"), "1:1", "unknown key `egde`", "^^^^", "did you mean `edge`?"),
        (with("ttl: 60s", "ttl: [60]"), "5:12", "", "^", ""),
        (with("ttl: 60s", "ttl: 60q"), "5:12", "", "^^^", ""),
        (with("http://localhost:3000", "shop"), "2:11", "this is neither a URL nor the name of an upstream", "^^^^", ""),
        (with("name: response-cache", "name: respons-cache"), "15:21", "unknown plugin `respons-cache`", "^^^^^^^^^^^^^", "did you mean `response-cache`?"),
        (with("{ ttl: 300s }", "{ tll: 300s }"), "16:25", "unknown key `tll`", "^^^", "did you mean `ttl`?"),
        (with("{ ttl: 300s }", "{ ttl: 300s, statuses: [206] }"), "16:", "", "^", ""),
        (with("paths: [/api/home]", "path: [/api/home]"), "13:11", "unknown key `path`", "^^^^", "did you mean `paths`?"),
        (with("    - path: /categories\n", "    - path: /categories\n      ttl: 60s\n    - path: /categories\n"), "6:", "the page `/categories` has a rule already", "^", ""),
        (with("gateway:", "store: redis://\ngateway:"), "6:8", "", "^", ""),
        (with("  services:\n", "  consumers:\n    - username: ann\n    - username: ann\n  services:\n"), "10:17", "the consumer `ann` is defined a second time", "^^^", "first at "),
        (with("edge:", "edge: {"), "", "", "", ""),
    ] {
        let outcome = check(&text, &[]);
        let shown = format!("{text}\n=>\n{}{}", outcome.out, outcome.err);
        assert_eq!(outcome.code, Some(1), "{shown}");
        let found = outcome.out.lines().position(|l| l.starts_with(&format!("weir.yaml:{place}")) && l.contains(": error: ") && l.contains(message));
        let at = found.unwrap_or_else(|| panic!("no error at {place} about {message:?}: {shown}"));
        let lines: Vec<&str> = outcome.out.lines().skip(at).take(3).collect();
        let [head, source, caret] = lines[..] else { panic!("place, line and caret: {shown}") };
        let mut numbers = head.split(':').skip(1).map(|n| n.trim().parse::<usize>());
        let (Some(Ok(line)), Some(Ok(column))) = (numbers.next(), numbers.next()) else { panic!("file:line:column: {head}") };
        let (number, quoted) = source.split_once(" | ").unwrap_or_else(|| panic!("the line with its number: {shown}"));
        assert_eq!(number.trim().parse(), Ok(line), "{shown}");
        assert_eq!(Some(quoted), text.lines().nth(line - 1), "{shown}");
        let (_, marks) = caret.split_once(" | ").unwrap_or_else(|| panic!("a caret: {shown}"));
        let start = marks.find('^').unwrap_or_else(|| panic!("a caret: {shown}"));
        assert_eq!(start + 1, column, "the caret stands under the mistake: {shown}");
        assert!(marks[start..].starts_with(under), "{shown}");
        assert!(caret.contains(hint), "{shown}");
        let last = outcome.out.lines().last().unwrap_or_default();
        assert!(last.starts_with("weir.yaml: ") && last.contains(" error"), "a summary on a line of its own: {shown}");
    }
}

#[test]
fn every_mistake_is_told_at_once() {
    let text = with("      ttl: 60s", "      tll: 60s").replace("name: response-cache", "name: respons-cache").replace("name: home", "nam: home");
    let outcome = check(&text, &["--json"]);
    assert_eq!(outcome.code, Some(1));
    let found: Value = serde_json::from_str(&outcome.out).unwrap_or_else(|e| panic!("{e}: {}", outcome.out));
    let list = found.as_array().or_else(|| found["diagnostics"].as_array()).unwrap_or_else(|| panic!("{found}"));
    let errors: Vec<_> = list.iter().filter(|d| d["severity"] == "error").map(|d| (d["line"].as_u64(), d["column"].as_u64())).collect();
    for place in [(Some(5), Some(7)), (Some(12), Some(11)), (Some(15), Some(21))] {
        assert!(errors.contains(&place), "{place:?} is not in {found:#}");
    }
    assert!(list.iter().all(|d| d["message"].is_string() && d["file"].as_str().is_some_and(|f| f.ends_with("weir.yaml"))), "{found:#}");
}

#[test]
fn unknown_plugins_can_be_left_out_by_will() {
    let text = with("name: response-cache", "name: quantum-shield");
    assert_eq!(check(&text, &[]).code, Some(1));
    let outcome = check(&text, &["--ignore-unknown-plugins"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.out);
    assert!(outcome.out.contains("warning: ") && outcome.out.contains("quantum-shield"), "{}", outcome.out);
}

#[test]
fn secrets_are_not_shown() {
    let secret = "s3cret-of-a-config-that-nobody-should-see";
    for text in [
        format!("{GOOD}warm_up:\n  evry: 1m\n  token: {secret}\n"),
        GOOD.replace("edge:\n", &format!("edge:\n  guests: {{ key: {secret}, ttl: never }}\n")),
        format!("{GOOD}store: rediss://user:{secret}@:99999/x\n"),
        format!("{GOOD}admin: {{ token: {secret}, lisen: 1 }}\n"),
    ] {
        let plain = check(&text, &[]);
        let json = check(&text, &["--json"]);
        assert_eq!((plain.code, json.code), (Some(1), Some(1)), "{text}");
        for said in [plain.out, plain.err, json.out, json.err] {
            assert!(!said.contains(secret), "{said}");
        }
    }
}

#[test]
fn what_can_not_be_served_is_not_started() {
    for text in [with("      ttl: 60s", "      tll: 60s"), "store: memory\n".to_owned(), String::new(), "\0\u{1}".to_owned(), "a: [".to_owned()] {
        let (_folder, path) = file(&text);
        let outcome = Outcome::of(&["run", "-c", &path.to_string_lossy()]);
        assert_eq!(outcome.code, Some(1), "{text:?}: {}", outcome.err);
        assert!(outcome.err.contains("weir: "), "{text:?}: {}", outcome.err);
        assert!(!outcome.err.contains("panicked"), "{text:?}: {}", outcome.err);
    }
    let missing = Outcome::of(&["run", "-c", "/nowhere/weir.yaml"]);
    assert_eq!(missing.code, Some(1));
    assert!(missing.err.contains("/nowhere/weir.yaml"), "{}", missing.err);
    assert_eq!(Outcome::of(&["check", "/nowhere/weir.yaml"]).code, Some(1));
    assert_eq!(Outcome::of(&["check"]).code, Some(2), "wrong arguments have a code of their own");
    assert_eq!(Outcome::of(&["rnu"]).code, Some(2));
    assert_eq!(Outcome::of(&["--version"]).code, Some(0));
}

#[test]
fn a_taken_port_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let (_folder, path) = file(&GOOD.replace("edge:\n", &format!("admin: {{ listen: '127.0.0.1:0' }}\nedge:\n  listen: {address}\n")).replace("gateway:\n", "gateway:\n  listen: 127.0.0.1:1\n"));
    let outcome = Outcome::of(&["run", "-c", &path.to_string_lossy()]);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.err.contains(&address.to_string()), "{}", outcome.err);
}

#[test]
fn the_shipped_files_are_good() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the examples") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let outcome = Outcome::of(&["check", &path.to_string_lossy()]);
            assert_eq!(outcome.code, Some(0), "{}{}", outcome.out, outcome.err);
            assert!(outcome.out.contains(" 0 errors"), "{}", outcome.out);
            count += 1;
        }
    }
    assert!(count >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_banner_tells_what_is_served() {
    let shop = Shop::start().await;
    let weir = Weir::start(&shop.config()).await;
    let said = weir.said();
    let (edge, gateway, admin) = (weir.edge().0.to_string(), weir.gateway().0.to_string(), weir.admin().0.to_string());
    for wanted in [&*edge, &gateway, &admin, "memory", "/categories", "ttl 60s", "/api/home", "response-cache", "/api/members", "token-validator"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_weir_takes_a_good_file_and_keeps_the_old_one_against_a_bad() {
    let shop = Shop::start().await;
    let weir = Weir::start(&shop.config()).await;
    let route = async |path: &str| weir.gateway().get(path).send().await.status;
    assert_eq!((route("/echo").await, route("/api/products").await), (404, 200));

    for bad in [Config(json!({ "edge": { "origin": "nonsense" } })), shop.config().set("/edge/pages/0/tll", "1s")] {
        let refusals = async || weir.metric("weir_reloads_total", &["outcome=\"refused\""]).await;
        let before = refusals().await;
        weir.write(&bad);
        weir.hang_up();
        eventually("the refusal", async || (refusals().await > before).then_some(())).await;
        eventually("it is told", async || weir.said().contains("the old configuration stays in force").then_some(())).await;
        let refused = weir.admin().ask("POST", "/reload").body("").send().await.expect(422);
        assert!(refused.json()["message"].as_str().is_some_and(|m| m.contains("stays in force")));
        assert_eq!((route("/echo").await, route("/api/products").await), (404, 200));
        assert_eq!(weir.edge().get("/categories").send().await.status, 200);
    }

    // Requests under way go on while the configuration changes behind them.
    shop.stubs.products.handle().add_fault(upstream_stubs::FaultRule { latency_ms: Some(500), times: Some(1), ..Default::default() }).expect("a fault");
    let under_way = tokio::spawn(weir.gateway().get("/api/products").send());
    eventually("it is under way", async || (shop.stubs.products.handle().stats().in_flight == 1).then_some(())).await;
    weir.write(&shop.config().service("echo", &shop.stubs.deals.url(), "/echo", json!([])));
    weir.hang_up();
    eventually("the new route", async || (route("/echo").await == 200).then_some(())).await;
    under_way.await.expect("an answer").expect(200);
    assert_eq!(weir.metric("weir_reloads_total", &["outcome=\"ok\""]).await, 1.0);
}

/// One of the collected Kong files, its upstreams replaced by the stub at `to`; `None` where the collection is not at hand.
fn kong(name: &str, to: &str) -> Option<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/kong").join(name);
    let text = std::fs::read_to_string(path).ok()?;
    let replaced = |line: &str| -> String {
        let Some((before, url)) = line.split_once("url: http://") else { return line.to_owned() };
        let path = url.find('/').map_or("", |at| &url[at..]);
        format!("{before}url: http://{to}{path}")
    };
    Some(text.lines().map(replaced).collect::<Vec<_>>().join("\n"))
}

/// Weir before one stub, with a Kong file in a file of its own.
async fn gateway_of(text: &str) -> Weir {
    let weir = Weir::start(&Config(json!({ "gateway": { "services": [] } }))).await;
    std::fs::write(weir.folder().join("kong.yml"), text).expect("written");
    weir.write(&Config(json!({ "gateway": { "file": "kong.yml" } })));
    weir.hang_up();
    eventually("the Kong file", async || (weir.metric("weir_reloads_total", &["outcome=\"ok\""]).await == 1.0).then_some(())).await;
    weir
}

/// What the stub sees of a request with this method and target.
async fn seen(shop: &Shop, door: Door, method: &str, target: &str) -> (u16, Option<(String, Option<String>)>) {
    let stub = shop.stubs.products.handle();
    stub.reset();
    // The stub answers every path alike, for once.
    let answer = door.ask(method, target).host("api.test").header("x-stub-status", "200").header("origin", "https://app.test").send().await;
    let request = stub.requests().pop().map(|r| (r.target.clone(), r.header("host").map(str::to_owned)));
    (answer.status, request)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kong_file_with_stripped_paths_serves_traffic_unchanged() {
    let shop = Shop::start().await;
    let stub = shop.stubs.products.addr().to_string();
    let Some(text) = kong("22.yml", &stub) else { return };
    let weir = gateway_of(&text).await;
    for (target, at_service) in [
        ("/api/auth/login?a=1", "/auth/login?a=1"),
        ("/api/auth", "/auth"),
        ("/api/parser/jobs/7", "/jobs/7"),
        ("/api/balancer", "/"),
        ("/api/anything/else?x=%2F&y", "/api/anything/else?x=%2F&y"),
        ("/", "/"),
        ("/some/page.html", "/some/page.html"),
    ] {
        let (status, request) = seen(&shop, weir.gateway(), "GET", target).await;
        assert_eq!(status, 200, "{target}");
        assert_eq!(request, Some((at_service.to_owned(), Some("api.test".to_owned()))), "{target}: preserve_host");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kong_file_with_plugins_methods_and_a_regex_serves_traffic_unchanged() {
    let shop = Shop::start().await;
    let stub = shop.stubs.products.addr().to_string();
    let Some(text) = kong("50.yml", &stub) else { return };
    let weir = gateway_of(&text).await;
    for (method, target, at_service) in [
        ("GET", "/api/v1/users/42", Some("/users/42")),
        ("GET", "/api/v1/users/42/followers", Some("/api/v1/users/42/followers")),
        ("PATCH", "/api/v1/users/42", Some("/users/42")),
        ("PATCH", "/api/v1/users/42/follow", Some("/users/42/follow")),
        ("DELETE", "/api/v1/posts/9?force=1", Some("/api/v1/posts/9?force=1")),
        ("POST", "/api/v1/otp/send", Some("/otp/send")),
        ("GET", "/api/v1/otp/send", None),
        ("GET", "/socket/1", Some("/socket/1")),
        // The service's path comes before a route's path that is not stripped, as in Kong.
        ("GET", "/telephony/media-stream", Some("/telephony/telephony/media-stream")),
        ("POST", "/api/v1/telephony/webhooks/x", Some("/telephony/webhooks/x")),
        ("PUT", "/api/v1/telephony/webhooks/x", Some("/telephony/webhooks/x")),
        ("GET", "/api/v2/users", None),
    ] {
        let (status, request) = seen(&shop, weir.gateway(), method, target).await;
        assert_eq!(status, if at_service.is_some() { 200 } else { 404 }, "{method} {target}");
        let wanted = at_service.map(|path| (path.to_owned(), Some(stub.clone())));
        assert_eq!(request, wanted, "{method} {target}");
    }
    let answer = weir.gateway().get("/api/v1/users/1").header("origin", "https://app.test").send().await;
    assert!(answer.has("access-control-allow-origin"), "{answer:#?}");
    assert_eq!(answer.must("access-control-allow-credentials"), "true");
    assert_eq!(answer.must("x-ratelimit-limit-minute"), "120");
    assert_eq!(answer.must("x-ratelimit-limit-hour"), "5000");
    assert_eq!(answer.must("x-request-id").len(), 36, "the correlation id, echoed");
    let preflight = weir.gateway().ask("OPTIONS", "/api/v1/users").headers([("origin", "https://app.test"), ("access-control-request-method", "PUT")]).send().await;
    assert_eq!((preflight.status, preflight.must("access-control-max-age")), (200, "3600"));
}
