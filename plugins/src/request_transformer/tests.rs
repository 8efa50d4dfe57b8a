use crate::testing::{Ask, Rig, Seen, ask, errors, get};

async fn run(config: &str, ask: Ask) -> Seen {
    Rig::new(&[("request-transformer", config)]).run(ask).await
}

fn body(seen: &Seen) -> Option<String> {
    seen.cx.replace_body.as_ref().map(|b| String::from_utf8_lossy(b).into_owned())
}

#[tokio::test]
async fn without_settings_nothing_changes() {
    let seen = run("{}", get("/a?x=1&x=%20&y").with("x-a", "1")).await;
    assert_eq!((seen.target().as_str(), seen.sent("x-a"), seen.cx.replace_body.is_some()), ("/a?x=1&x=%20&y", "1", false));
}

#[tokio::test]
async fn headers_are_removed_renamed_replaced_added_and_appended() {
    let config = r#"
remove: {headers: [X-Gone, x-absent]}
rename: {headers: ["X-Old:X-New", "x-absent:x-kept"]}
replace: {headers: ["X-Here: there", "x-absent:no", "x-kept:"]}
add: {headers: ["X-Here:not again", "X-Fresh:a:b", "X-Colons::v"]}
append: {headers: ["X-Here:twice", "X-Last:1"]}
"#;
    let ask = get("/").with("X-Gone", "1").with("X-Old", "o").with("X-New", "n").with("X-Here", "1").with("x-kept", "k");
    let seen = run(config, ask).await;
    let all = |name: &str| seen.sent_all(name);
    assert_eq!(all("x-gone"), [""; 0]);
    assert_eq!(all("x-old"), [""; 0]);
    assert_eq!(all("x-new"), ["o"]);
    assert_eq!(all("x-kept"), ["k"], "nothing was there to be renamed, and an entry without a value does nothing");
    assert_eq!(all("x-here"), ["there", "twice"]);
    assert_eq!(all("x-absent"), [""; 0]);
    assert_eq!(all("x-fresh"), ["a:b"]);
    assert_eq!(all("x-colons"), ["v"]);
    assert_eq!(all("x-last"), ["1"]);
}

#[tokio::test]
async fn the_host_can_only_be_replaced() {
    let ask = get("/").with("host", "api.example");
    assert_eq!(run("replace: {headers: ['Host:other.example']}", ask.clone()).await.sent("host"), "other.example");
    for config in ["remove: {headers: [host]}", "add: {headers: ['host:x']}", "append: {headers: ['host:x']}", "rename: {headers: ['host:x']}"] {
        assert_eq!(run(config, ask.clone()).await.sent("host"), "api.example", "{config}");
    }
}

#[tokio::test]
async fn the_query_is_changed_and_what_stays_stays_as_it_was() {
    let config = r#"
remove: {querystring: [secret]}
rename: {querystring: ["page:pageNumber"]}
replace: {querystring: ["sort:asc & more", "none:x"]}
add: {querystring: ["limit:10", "keep:no"]}
append: {querystring: ["keep:2"]}
"#;
    let seen = run(config, get("/a?keep=%20x&secret=1&page=3&sort=desc&sort=desc&flag&secret=2")).await;
    assert_eq!(seen.target(), "/a?keep=%20x&pageNumber=3&sort=asc%20%26%20more&flag&limit=10&keep=2");
    assert_eq!(run("remove: {querystring: [a]}", get("/p?a=1")).await.target(), "/p");
}

#[tokio::test]
async fn json_bodies() {
    let config = r#"
remove: {body: [gone]}
rename: {body: ["old:new"]}
replace: {body: ["here:there", "none:x"]}
add: {body: ["fresh:1", "here:again"]}
append: {body: ["list:c", "text:b", "first:a"]}
"#;
    let sent = r#"{"gone":1,"old":{"deep":true},"here":"x","list":["a"],"text":"a","kept":1.50}"#;
    let seen = run(config, ask("POST", "/").with("content-type", "application/json; charset=utf-8").body(sent)).await;
    let expected = serde_json::json!({"here": "there", "list": ["a", "c"], "text": ["a", "b"], "kept": 1.5, "new": {"deep": true}, "fresh": "1", "first": ["a"]});
    assert_eq!(serde_json::from_str::<serde_json::Value>(&body(&seen).unwrap()).unwrap(), expected);
    for unchanged in ["[1,2]", "{broken", "\"text\""] {
        let seen = run(config, ask("POST", "/").with("content-type", "application/json").body(unchanged)).await;
        assert_eq!((seen.status(), body(&seen)), (200, None), "{unchanged}");
    }
    let seen = run("add: {body: ['a:b']}", ask("POST", "/").with("content-type", "application/json")).await;
    assert_eq!(body(&seen).as_deref(), Some(r#"{"a":"b"}"#), "an empty body becomes an object");
}

#[tokio::test]
async fn forms() {
    let config = "{remove: {body: [gone]}, rename: {body: ['user:username']}, add: {body: ['grant_type:password', 'client_id:api']}}";
    let sent = "gone=1&user=a%40b&client_id=mine&x=+y";
    let seen = run(config, ask("POST", "/").with("content-type", "application/x-www-form-urlencoded").body(sent)).await;
    assert_eq!(body(&seen).as_deref(), Some("username=a%40b&client_id=mine&x=+y&grant_type=password"));
}

#[tokio::test]
async fn the_kind_of_body_may_be_set_by_the_plugin_itself() {
    let config = "add: {headers: ['Content-Type:application/x-www-form-urlencoded'], body: ['grant_type:password']}";
    assert_eq!(body(&run(config, ask("POST", "/").body("a=b")).await).as_deref(), Some("a=b&grant_type=password"));
}

#[tokio::test]
async fn other_bodies_pass_unchanged_and_large_ones_are_refused() {
    let config = "remove: {body: [a]}";
    let seen = run(config, ask("POST", "/").with("content-type", "multipart/form-data; boundary=x").body("--x--")).await;
    assert_eq!((seen.status(), body(&seen)), (200, None));
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(10 << 20));
    let seen = run(config, ask("POST", "/").with("content-type", "application/json").body(&large)).await;
    assert_eq!((seen.status(), seen.body.as_str()), (413, r#"{"message":"Request body too large to be transformed"}"#));
    assert!(!seen.forwarded());
}

#[tokio::test]
async fn the_method_is_changed_and_a_form_moves_into_the_query() {
    let form = ask("POST", "/a?x=1").with("content-type", "application/x-www-form-urlencoded").body("y=2&x=3");
    let seen = run("http_method: get", form.clone()).await;
    assert_eq!((seen.sent_method(), seen.target().as_str()), ("GET", "/a?x=1&y=2&x=3"));
    let seen = run("http_method: PUT", form).await;
    assert_eq!((seen.sent_method(), seen.target().as_str()), ("PUT", "/a?x=1"));
}

#[tokio::test]
async fn the_path_is_replaced_and_can_not_be_climbed_out_of() {
    let config = "replace: {uri: '/users/$(query_params.id)/items'}";
    for (asked, sent) in [
        ("/x?id=7&y=1", "/users/7/items?id=7&y=1"),
        ("/x?id=a%20b%3Fc", "/users/a%20b%3Fc/items?id=a%20b%3Fc"),
        ("/x?id=%2e%2e/admin", "/admin/items?id=%2e%2e/admin"),
        ("/x", "/users/items"),
    ] {
        assert_eq!(run(config, get(asked)).await.target(), sent, "{asked}");
    }
}

#[tokio::test]
async fn a_fetch_for_the_cache_goes_to_the_same_place() {
    let rig = Rig::new(&[("request-transformer", "replace: {uri: '/v2$(query_params.p)', headers: ['host:other']}")]);
    let req = rig.fill(get("/x?p=/a").with("host", "api.example")).await;
    assert_eq!((req.uri.to_string().as_str(), req.headers["host"].to_str().unwrap()), ("/v2/a?p=/a", "other"));
}

#[tokio::test]
async fn templates_see_the_request_as_it_came() {
    let config = r#"
remove: {headers: [x-login]}
add: {headers: ['X-User:$(headers["x-login"] or "guest")', 'X-Both:$(headers.x_login)-$(query_params.q)'], querystring: ["user:$(headers.x_login)"]}
"#;
    let seen = run(config, get("/a?q=1").with("X-Login", "kim")).await;
    assert_eq!((seen.sent("x-user"), seen.sent("x-both"), seen.sent_maybe("x-login")), ("kim", "kim-1", None));
    assert_eq!(seen.target(), "/a?q=1&user=kim");
    assert_eq!(run(config, get("/a")).await.sent("x-user"), "guest");
}

#[tokio::test]
async fn what_no_header_can_hold_is_not_sent() {
    let config = "{replace: {headers: ['x-a:$(query_params.q)']}, add: {headers: ['x-b:$(query_params.q)']}}";
    let seen = run(config, get("/?q=a%0d%0aset-cookie:%20x").with("x-a", "mine")).await;
    assert_eq!((seen.sent_maybe("x-a"), seen.sent_maybe("x-b")), (None, None));
}

#[tokio::test]
async fn what_is_shaped_for_one_visitor_passes_by_the_cache() {
    for (config, cached) in [("add: {headers: ['x-u:$(headers.x_login)']}", false), ("add: {headers: ['x-u:$(query_params.u)']}", true)] {
        let seen = Rig::new(&[("request-transformer", config), ("response-cache", "{}")]).run(get("/")).await;
        assert_eq!(seen.cx.plan.is_some(), cached, "{config}");
    }
}

#[test]
fn mistakes() {
    for (config, message) in [
        ("http_method: 'a b'", "`a b` is not a method"),
        ("add: {headers: [novalue]}", "`novalue` has no value"),
        ("add: {headers: ['a b:c']}", "`a b` is not a header name"),
        ("rename: {querystring: ['a:']}", "`a` has no new name"),
        ("append: {body: [':x']}", "the name is missing"),
        ("replace: {uri: 'x'}", "a path begins with `/`"),
        ("replace: {uri: '/x?y=1'}", "a path has no query"),
        ("replace: {querystring: ['a:$(ngx.var.x)']}", "`ngx` is not supported in templates"),
        ("add: {uri: /x}", "uri"),
    ] {
        let found = errors("request-transformer", config);
        assert!(found.iter().any(|e| e.to_string().contains(message)), "{config}: {found:?}");
    }
}
