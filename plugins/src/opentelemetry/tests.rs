use crate::testing::{Rig, errors, get, sink::HttpSink};
use serde_json::{Value, json};
use weir_config::PluginCatalog;

const T: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const S: &str = "00f067aa0ba902b7";

fn rig(config: &str) -> Rig {
    Rig::new(&[("opentelemetry", config)]).serving("orders")
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    span["attributes"].as_array().unwrap().iter().find(|a| a["key"] == key).map_or(&Value::Null, |a| &a["value"])
}

#[tokio::test]
async fn spans_arrive_in_otlp_json() {
    let mut sink = HttpSink::answering(&[200]).await;
    let config = format!("{{traces_endpoint: '{}/v1/traces', headers: {{X-Key: k}}, resource_attributes: {{deployment: test}}, queue: {{max_batch_size: 2}}}}", sink.url);
    let rig = rig(&config).upstream_status(503);
    let seen = rig.run(get("/a?token=hidden&b=1").with("traceparent", &format!("00-{T}-{S}-01"))).await;
    rig.run(get("/b")).await;
    let call = sink.next().await;
    assert_eq!((call.target.as_str(), call.header("content-type"), call.header("x-key")), ("/v1/traces", "application/json", "k"));
    assert!(!call.body.contains("hidden"));
    let body: Value = serde_json::from_str(&call.body).unwrap();
    let resource = body["resourceSpans"][0]["resource"]["attributes"].as_array().unwrap();
    for (key, value) in [("service.name", "kong"), ("deployment", "test")] {
        assert!(resource.contains(&json!({"key": key, "value": {"stringValue": value}})), "{key}");
    }
    let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
    assert_eq!(spans.len(), 4, "two requests with two spans each");
    let (request, upstream) = (&spans[0], &spans[1]);
    assert_eq!((&request["traceId"], &request["parentSpanId"], &request["kind"], &request["status"]["code"]), (&json!(T), &json!(S), &json!(2), &json!(2)));
    assert_eq!((&upstream["traceId"], &upstream["parentSpanId"], &upstream["kind"]), (&json!(T), &request["spanId"], &json!(3)));
    assert_eq!(seen.sent("traceparent"), format!("00-{T}-{}-01", upstream["spanId"].as_str().unwrap()));
    assert_eq!(attribute(request, "http.status_code"), &json!({"intValue": "503"}));
    assert_eq!(attribute(request, "http.method"), &json!({"stringValue": "GET"}));
    assert_eq!(attribute(request, "http.url"), &json!({"stringValue": "http://api.example/a?token=REDACTED&b=1"}));
    assert_eq!(attribute(upstream, "peer.service"), &json!({"stringValue": "orders"}));
    let nanos = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u128>().unwrap();
    assert!(nanos(request, "startTimeUnixNano") <= nanos(upstream, "startTimeUnixNano"));
    assert!(nanos(upstream, "endTimeUnixNano") <= nanos(request, "endTimeUnixNano"));
    assert!(spans[2].get("parentSpanId").is_none() && spans[2]["traceId"] != T, "a trace of its own");
}

#[tokio::test]
async fn a_request_that_another_plugin_refused_has_a_span_too() {
    let mut sink = HttpSink::answering(&[200]).await;
    let config = format!("{{endpoint: '{}', queue: {{max_batch_size: 1}}}}", sink.url);
    let rig = Rig::new(&[("opentelemetry", &config), ("token-validator", "secret: a-secret-of-thirty-two-bytes-long")]);
    rig.run(get("/").with("traceparent", &format!("00-{T}-{S}-01"))).await;
    let body: Value = serde_json::from_str(&sink.next().await.body).unwrap();
    let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
    assert_eq!((spans.len(), &spans[0]["traceId"], attribute(&spans[0], "http.status_code")), (1, &json!(T), &json!({"intValue": "401"})));
}

#[tokio::test]
async fn what_the_service_is_told() {
    let w3c = ("traceparent", format!("00-{T}-{S}-01"));
    let b3 = ("b3", format!("{T}-{S}-1"));
    for (config, sent, told) in [
        ("{}", None, "traceparent"),
        ("{}", Some(&w3c), "traceparent"),
        ("{}", Some(&b3), "b3"),
        ("header_type: w3c", Some(&b3), "traceparent"),
        ("header_type: b3", Some(&w3c), "x-b3-traceid"),
        ("header_type: b3-single", None, "b3"),
        ("propagation: {inject: [w3c, b3-single]}", None, "traceparent b3"),
        ("propagation: {default_format: b3}", None, "x-b3-traceid"),
        ("propagation: {inject: []}", Some(&w3c), "traceparent"),
    ] {
        let mut ask = get("/");
        if let Some((name, value)) = sent {
            ask = ask.with(name, value);
        }
        let seen = rig(config).run(ask).await;
        let found: Vec<&str> = ["traceparent", "b3", "x-b3-traceid"].into_iter().filter(|n| seen.sent_maybe(n).is_some()).collect();
        assert_eq!(found.join(" "), told, "{config} {sent:?}");
        if sent.is_some() {
            assert!(seen.sent(found[0]).contains(T), "{config}: the trace goes on");
        }
    }
    let seen = rig("propagation: {extract: [b3]}").run(get("/").with("traceparent", &w3c.1)).await;
    assert!(!seen.sent("traceparent").contains(T), "not read");
    let seen = rig("header_type: ignore").run(get("/").with("traceparent", &w3c.1)).await;
    assert_eq!(seen.sent("traceparent"), w3c.1);
    let seen = rig("propagation: {clear: [x-old]}").run(get("/").with("x-old", "1").with("tracestate", "a=1").with("traceparent", &w3c.1)).await;
    assert_eq!((seen.sent_maybe("x-old"), seen.sent("tracestate")), (None, "a=1"));
}

#[tokio::test]
async fn sampling() {
    for (config, flag, sampled) in [
        ("sampling_rate: 0", None, "00"),
        ("sampling_rate: 1", None, "01"),
        ("sampling_rate: 1", Some("00"), "00"),
        ("sampling_rate: 0", Some("01"), "00"),
        ("{sampling_rate: 0, sampling_strategy: parent_probability_fallback}", Some("01"), "01"),
        ("{sampling_rate: 1, sampling_strategy: parent_probability_fallback}", Some("00"), "00"),
    ] {
        let mut ask = get("/");
        if let Some(flag) = flag {
            ask = ask.with("traceparent", &format!("00-{T}-{S}-{flag}"));
        }
        let seen = rig(config).run(ask).await;
        assert!(seen.sent("traceparent").ends_with(sampled), "{config} {flag:?}");
    }
}

#[tokio::test]
async fn the_client_may_be_told_the_trace() {
    let seen = rig("http_response_header_for_traceid: X-Trace-Id").run(get("/").with("traceparent", &format!("00-{T}-{S}-01"))).await;
    assert_eq!(seen.header("x-trace-id"), Some(T));
}

#[test]
fn mistakes_and_doubts() {
    for (config, message) in [
        ("traces_endpoint: collector", "a URL like"),
        ("endpoint: 'ftp://x'", "must be `http` or `https`"),
        ("sampling_rate: 2", "sampling_rate"),
        ("header_type: datadog", "datadog"),
        ("headers: {'a b': x}", "not a header name"),
        ("http_response_header_for_traceid: 'a b'", "not a header name"),
        ("propagation: {clear: ['a b']}", "not a header name"),
    ] {
        let found = errors("opentelemetry", config);
        assert!(found.iter().any(|e| e.to_string().contains(message)), "{config}: {found:?}");
    }
    let entry = crate::testing::entry("opentelemetry", "{endpoint: 'http://x/v1/traces', logs_endpoint: 'http://x/v1/logs', batch_span_count: 10, batch_flush_delay: 3}");
    let found = crate::register().check("opentelemetry", &entry.config);
    assert_eq!(found.len(), 4, "{found:?}");
}
