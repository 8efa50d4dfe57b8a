use super::*;
use crate::testing::{Rig, Seen, ask};
use proptest::prelude::*;

async fn seen() -> Seen {
    // A plugin that asks for the view; nothing listens there.
    let rig = Rig::new(&[("http-log", "http_endpoint: 'http://127.0.0.1:9/'")]).serving("orders").upstream_status(201).upstream_field("x-b", "1").upstream_field("x-b", "2").upstream_field("set-cookie", "sid=hidden");
    let ask = ask("POST", "/a/b?x=1&x=2&flag&access_token=hidden").with("x-a", "1").with("authorization", "Bearer hidden").with("cookie", "sid=hidden");
    rig.run(ask.as_consumer("kim")).await
}

#[tokio::test]
async fn the_entry_has_kongs_form() {
    let seen = seen().await;
    let mut entry = Value::Object(entry(&seen.cx, &[]));
    assert!(entry["started_at"].as_i64().unwrap() > 1_600_000_000_000);
    for time in ["request", "kong", "proxy", "receive"] {
        assert!(entry["latencies"][time].as_i64().unwrap() >= 0, "{time}");
    }
    for changing in ["started_at", "latencies"] {
        entry.as_object_mut().unwrap().remove(changing);
    }
    let expected = json!({
        "request": {
            "id": seen.cx.id.as_str(), "method": "POST", "uri": "/a/b?x=1&x=2&flag&access_token=REDACTED",
            "url": "http://api.example:8000/a/b?x=1&x=2&flag&access_token=REDACTED", "size": 0,
            "querystring": {"x": ["1", "2"], "flag": true, "access_token": "REDACTED"},
            "headers": {"x-a": "1", "authorization": "REDACTED", "cookie": "REDACTED"},
        },
        "upstream_uri": "/a/b?x=1&x=2&flag&access_token=REDACTED", "upstream_status": "201",
        "response": {"status": 201, "size": 5, "headers": {"x-b": ["1", "2"], "set-cookie": "REDACTED"}},
        "tries": [{"ip": "192.0.2.1", "port": 80}],
        "client_ip": "192.0.2.7", "source": "upstream", "workspace_name": "default",
        "service": {
            "name": "orders", "host": "192.0.2.1", "port": 80, "protocol": "http", "path": null, "retries": 1,
            "connect_timeout": 5000, "write_timeout": 60000, "read_timeout": 60000,
        },
        "consumer": {"id": "id-of-kim", "username": "kim"},
        "weir": {"answered_by": "upstream"},
    });
    assert_eq!(entry, expected);
    assert!(!entry.to_string().contains("hidden"));
}

#[tokio::test]
async fn constant_fields_replace_add_and_remove() {
    let node = Node::parse("custom_fields_by_lua: {request: return nil, a.b: 'return \"x\"', client_ip: 'return 7;', response.status: return true, c.d: return nil}").unwrap();
    let fields = node.get("custom_fields_by_lua").unwrap().entries().iter().map(|(k, v)| (k.name.clone(), v.text().unwrap())).collect();
    let entry = entry(&seen().await.cx, &custom_fields(&node, &fields).unwrap());
    assert_eq!((entry.get("request"), &entry["a"]["b"], &entry["client_ip"], &entry["response"]["status"], entry.get("c")), (None, &json!("x"), &json!(7), &json!(true), None));
}

#[test]
fn constants() {
    for (code, value) in [
        ("return nil", Some(None)),
        ("return 'a b'", Some(Some(json!("a b")))),
        ("return\"x\"", Some(Some(json!("x")))),
        (" return -1.5 ", Some(Some(json!(-1.5)))),
        ("return false", Some(Some(json!(false)))),
        ("return kong.request.get_header('x')", None),
        ("return 'a' .. 'b'", None),
        ("returnnil", None),
        ("return", None),
        ("x = 1", None),
    ] {
        assert_eq!(constant(code), value, "{code}");
    }
}

proptest! {
    #[test]
    fn no_secret_parameter_leaves_a_target(value in "[a-z0-9]{8,12}") {
        let target = format!("/a?b=1&api_key={value}&c");
        prop_assert!(!masked_target(&target).contains(&value));
    }
}
