use super::*;
use crate::testing::{Ask, Rig, Seen, ask, errors, get};
use proptest::prelude::*;
use serde_json::{Value, json};

mod documents;

const ORDER: &str = "\
body_schema:
  type: object
  required: [sku, quantity]
  additionalProperties: false
  properties:
    sku: {type: string, pattern: '^[A-Z]{2}-[0-9]+$'}
    quantity: {type: integer, minimum: 1}
    tags: {type: array, items: {type: string}}
";

async fn run(config: &str, ask: Ask) -> Seen {
    Rig::new(&[(BY, config)]).run(ask).await
}

fn order(body: &str) -> Ask {
    ask("POST", "/orders").with("content-type", "application/json").body(body)
}

/// Status, and what the answer says is wrong: place, name or pointer, message.
fn told(seen: &Seen) -> (u16, Vec<String>) {
    let list = seen.json();
    let text = |problem: &Value, key: &str| problem[key].as_str().unwrap_or_default().to_owned();
    let one = |p: &Value| format!("{}{}{} {}", text(p, "in"), p["name"].as_str().map(|n| format!(":{n}")).unwrap_or_default(), p["path"].as_str().map(|n| format!("@{n}")).unwrap_or_default(), text(p, "message"));
    (seen.status(), list["errors"].as_array().into_iter().flatten().map(one).collect())
}

#[tokio::test]
async fn a_body_that_fits_reaches_the_service_as_it_was() {
    let rig = Rig::new(&[(BY, ORDER)]);
    for kind in ["application/json", "application/json; charset=UTF-8", "APPLICATION/JSON"] {
        let seen = rig.run(ask("POST", "/orders").with("content-type", kind).body(r#"{"sku":"AB-1","quantity":2}"#)).await;
        assert_eq!(seen.status(), 200, "{kind}");
        assert!(seen.cx.replace_body.is_none());
    }
    assert_eq!((rig.outcome(BY, "valid"), rig.outcome(BY, "invalid")), (3, 0));
    // Without a body there is nothing to check, except where one is wanted.
    assert_eq!(rig.run(get("/orders")).await.status(), 200);
    assert_eq!(rig.run(ask("DELETE", "/orders")).await.status(), 200);
}

#[tokio::test]
async fn everything_that_is_wrong_is_told_at_once_without_the_clients_values() {
    let seen = run(ORDER, order(r#"{"sku":"hunter2","quantity":0,"tags":["a",{"b":7}],"extra":1}"#)).await;
    assert!(!seen.forwarded() && !seen.body.contains("hunter2"), "{}", seen.body);
    assert_eq!(seen.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(seen.json()["message"], INVALID);
    let (status, mut problems) = told(&seen);
    problems.sort();
    assert_eq!(status, 400);
    assert_eq!(
        problems,
        [
            "body@ Additional properties are not allowed ('extra' was unexpected)",
            "body@/quantity the value is less than the minimum of 1",
            "body@/sku the value does not match \"^[A-Z]{2}-[0-9]+$\"",
            "body@/tags/1 the value is not of type \"string\"",
        ]
    );
    let (_, problems) = told(&run(ORDER, order("{}")).await);
    assert_eq!(problems, ["body@ \"sku\" is a required property", "body@ \"quantity\" is a required property"]);
}

#[tokio::test]
async fn many_problems_are_told_in_part_and_none_where_that_is_wished() {
    let many = format!(r#"{{"sku":"AB-1","quantity":1,"tags":[{}]}}"#, vec!["1"; 100].join(","));
    assert_eq!(told(&run(ORDER, order(&many)).await).1.len(), 20);
    let seen = run(&format!("{ORDER}verbose_response: false\n"), order("{}")).await;
    assert_eq!((seen.status(), seen.json()), (400, json!({ "message": INVALID })));
}

#[tokio::test]
async fn of_several_choices_the_one_that_was_meant_is_explained() {
    let config = "body_schema: {type: object, properties: {page: {anyOf: [{type: integer, maximum: 9}, {type: 'null'}]}}}";
    assert_eq!(run(config, order(r#"{"page":null}"#)).await.status(), 200);
    assert_eq!(told(&run(config, order(r#"{"page":10}"#)).await).1, ["body@/page the value is greater than the maximum of 9"]);
    assert_eq!(told(&run(config, order(r#"{"page":"x"}"#)).await).1, ["body@/page the value is not valid under any of the schemas listed in the 'anyOf' keyword"]);
}

#[tokio::test]
async fn what_two_readers_could_read_in_two_ways_is_refused() {
    for (body, message) in [
        (r#"{"sku":"AB-1","quantity":1,"quantity":2}"#, "an object has a member twice"),
        (r#"{"sku":"AB-1","quantity":1}x"#, "this is not JSON"),
        (r#"{"sku":"#, "this is not JSON"),
        (r#"{"sku":"AB-1",'quantity':1}"#, "this is not JSON"),
        ("\u{feff}{}", "this is not JSON"),
    ] {
        let (status, problems) = told(&run(ORDER, order(body)).await);
        assert_eq!(status, 400, "{body}");
        assert!(problems.len() == 1 && problems[0].contains(message), "{body}: {problems:?}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(run(ORDER, order(&deep)).await.status(), 400);
    let seen = run(ORDER, order(r#"{"sku":"AB-1","quantity":1}"#).with("content-encoding", "gzip")).await;
    assert_eq!((seen.status(), seen.json()["message"].as_str()), (415, Some("a body with a Content-Encoding can not be checked")));
    assert_eq!(run(ORDER, order(r#"{"sku":"AB-1","quantity":1}"#).with("content-encoding", "identity")).await.status(), 200);
}

#[tokio::test]
async fn types_and_sizes_of_bodies() {
    for (kind, accepted) in [("text/plain", "application/json"), ("application/json-seq", "application/json"), ("", "application/json"), ("application/json; charset=utf-16", "application/json")] {
        let seen = run(ORDER, ask("POST", "/").with("content-type", kind).body("{}")).await;
        assert_eq!((seen.status(), seen.header("accept")), (415, Some(accepted)), "{kind}");
    }
    let missing = run(ORDER, ask("POST", "/").body("{}")).await;
    assert_eq!((missing.status(), missing.json()["message"].as_str()), (415, Some("Content-Type is missing; accepted: application/json")));
    let twice = ask("POST", "/").with("content-type", "application/json").with("content-type", "text/plain").body("{}");
    assert_eq!(run(ORDER, twice).await.status(), 415);
    let (status, problems) = told(&run(ORDER, ask("PUT", "/").with("content-type", "application/json")).await);
    assert_eq!((status, problems), (400, vec!["body@ a body is required".into()]));

    let small = "max_body: 10\ncontent_types: ['text/*', 'application/*+xml', image/png]\n";
    for (kind, length, status) in [
        ("text/plain", 10, 200),
        ("text/plain", 11, 413),
        ("text/plain", 12, 413),
        ("text/plain", 0, 200),
        ("application/a+xml", 1, 200),
        ("application/xml", 1, 415),
        ("image/png", 1, 200),
        ("image/gif", 1, 415),
    ] {
        let seen = run(small, ask("POST", "/").with("content-type", kind).body(&"x".repeat(length))).await;
        assert_eq!(seen.status(), status, "{kind} {length}");
        if status == 413 {
            assert_eq!(seen.json()["message"], "Request body larger than 10 bytes");
        }
    }
}

#[tokio::test]
async fn forms_are_read_by_their_schema() {
    let config = "content_types: [application/x-www-form-urlencoded]\nbody_schema: {type: object, required: [n], properties: {n: {type: integer}, on: {type: boolean}, t: {type: array, items: {type: number}}, s: {type: string}}}\n";
    let form = |body: &str| ask("POST", "/").with("content-type", "application/x-www-form-urlencoded").body(body);
    for (body, problems) in [
        ("n=5&on=true&t=1&t=2.5&s=7&unknown=x", vec![]),
        ("n=five", vec!["body@/n the value is not of type \"integer\""]),
        ("n=1&t=1&t=x", vec!["body@/t/1 the value is not of type \"number\""]),
        ("n=1&n=2", vec!["body@ `n` stands there more than once"]),
        ("on=yes", vec!["body@ \"n\" is a required property", "body@/on the value is not of type \"boolean\""]),
    ] {
        let seen = run(config, form(body)).await;
        if problems.is_empty() {
            assert_eq!(seen.status(), 200, "{body}");
        } else {
            let (_, mut found) = told(&seen);
            found.sort();
            assert_eq!(found, problems, "{body}");
        }
    }
}

#[tokio::test]
async fn parameters_are_read_in_every_place_and_style() {
    let lists = "{type: array, items: {type: integer}, maxItems: 2}";
    let object = "{type: object, required: [a], properties: {a: {type: integer}, b: {type: string}}}";
    let ok: &[&str] = &[];
    for (parameter, ask, problems) in [
        ("{name: n, in: query, schema: {type: integer}}".to_owned(), get("/?n=5"), ok),
        ("{name: n, in: query, schema: {type: integer}}".into(), get("/?n=x"), &["query:n the value is not of type \"integer\""]),
        ("{name: n, in: query, schema: {type: integer}}".into(), get("/?n=1&n=2"), &["query:n this stands there more than once"]),
        ("{name: n, in: query, schema: {type: integer}}".into(), get("/"), ok),
        ("{name: n, in: query, required: true}".into(), get("/?m=1"), &["query:n this parameter is required"]),
        ("{name: n, in: query, schema: {enum: [1, 2]}}".into(), get("/?n=2"), ok),
        ("{name: 'a b', in: query, schema: {type: string, minLength: 3}}".into(), get("/?a%20b=%C3%A4%C3%B6"), &["query:a b the value is shorter than 3 characters"]),
        (format!("{{name: n, in: query, schema: {lists}}}"), get("/?n=1&n=2"), ok),
        (format!("{{name: n, in: query, schema: {lists}}}"), get("/?n=1&n=x"), &["query:n@/1 the value is not of type \"integer\""]),
        (format!("{{name: n, in: query, explode: false, schema: {lists}}}"), get("/?n=1,2,3"), &["query:n the value has more than 2 items"]),
        (format!("{{name: n, in: query, style: spaceDelimited, schema: {lists}}}"), get("/?n=1%202"), ok),
        (format!("{{name: n, in: query, style: pipeDelimited, schema: {lists}}}"), get("/?n=1|2|x"), &["query:n@/2 the value is not of type \"integer\"", "query:n the value has more than 2 items"]),
        (format!("{{name: n, in: query, style: deepObject, schema: {object}}}"), get("/?n[a]=1&n[b]=2"), ok),
        (format!("{{name: n, in: query, style: deepObject, schema: {object}}}"), get("/?n%5Bb%5D=2"), &["query:n \"a\" is a required property"]),
        (format!("{{name: n, in: query, schema: {object}}}"), get("/?b=2&c=1"), &["query:n \"a\" is a required property"]),
        (format!("{{name: n, in: query, explode: false, schema: {object}}}"), get("/?n=a,1,b,x"), ok),
        (format!("{{name: n, in: query, explode: false, schema: {object}}}"), get("/?n=a,1,b"), &["query:n names and values are wanted in turn, separated by commas"]),
        ("{name: X-N, in: header, required: true, schema: {type: boolean}}".into(), get("/").with("x-n", "true"), ok),
        ("{name: X-N, in: header, required: true, schema: {type: boolean}}".into(), get("/"), &["header:X-N this parameter is required"]),
        (format!("{{name: X-N, in: header, schema: {lists}}}"), get("/").with("x-n", "1, 2").with("x-n", "3"), &["header:X-N the value has more than 2 items"]),
        (format!("{{name: X-N, in: header, explode: true, schema: {object}}}"), get("/").with("x-n", "a=x,b=2"), &["header:X-N@/a the value is not of type \"integer\""]),
        ("{name: c, in: cookie, schema: {type: integer}}".into(), get("/").with("cookie", "b=1; c=7"), ok),
        ("{name: c, in: cookie, schema: {type: integer}}".into(), get("/").with("cookie", "c=x"), &["cookie:c the value is not of type \"integer\""]),
    ] {
        let seen = run(&format!("parameters: [{parameter}]"), ask).await;
        if problems.is_empty() {
            assert_eq!(seen.status(), 200, "{parameter}: {}", seen.body);
        } else {
            let (status, mut found) = told(&seen);
            let mut wanted = problems.to_vec();
            (found.sort(), wanted.sort_unstable());
            assert_eq!((status, found), (400, wanted.into_iter().map(str::to_owned).collect()), "{parameter}");
        }
    }
}

#[tokio::test]
async fn strict_queries_name_what_is_not_described() {
    let config = "strict_query: true\nparameters: [{name: a, in: query}, {name: o, in: query, style: deepObject, schema: {type: object}}]";
    assert_eq!(run(config, get("/?a=1&o[x]=2")).await.status(), 200);
    assert_eq!(told(&run(config, get("/?b=1&a=2")).await), (400, vec!["query:b this parameter is not described".into()]));
}

#[tokio::test]
async fn preflights_pass_and_reports_refuse_nothing() {
    let config = "parameters: [{name: X-Key, in: header, required: true}]";
    let preflight = ask("OPTIONS", "/").with("origin", "https://a.example").with("access-control-request-method", "POST");
    assert_eq!(run(config, preflight).await.status(), 200);
    assert_eq!(run(config, ask("OPTIONS", "/")).await.status(), 400);
    let rig = Rig::new(&[(BY, &format!("{config}\nmode: report"))]);
    assert!(rig.run(get("/")).await.forwarded());
    assert_eq!(rig.outcome(BY, "invalid"), 1);
}

#[tokio::test]
async fn kongs_own_spelling_is_understood() {
    let config = r#"
version: draft4
body_schema: '{"type":"object","properties":{"n":{"type":"number","minimum":0,"exclusiveMinimum":true}}}'
allowed_content_types: [application/json, application/problem+json]
content_type_parameter_validation: false
verbose_response: true
parameter_schema:
  - {name: page, in: query, required: false, schema: '{"type":"integer"}', style: form, explode: true}
"#;
    let rig = Rig::new(&[("request-validator", config)]);
    assert_eq!(rig.names(), [BY]);
    let seen = rig.run(ask("POST", "/?page=x").with("content-type", "application/problem+json").body(r#"{"n":0}"#)).await;
    assert_eq!(told(&seen).1, ["query:page the value is not of type \"integer\"", "body@/n the value is less than or equal to the minimum of 0"]);
}

#[test]
fn mistakes_are_named_with_their_place() {
    for (config, message, place) in [
        ("{}", "nothing is described", (1, 1)),
        ("strict_query: true", "nothing is described", (1, 1)),
        ("body_schema: {type: objekt}", "this is not a valid schema: \"objekt\" is not valid", (1, 21)),
        ("body_schema: {properties: {a: {minLength: -1}}}", "this is not a valid schema", (1, 43)),
        ("body_schema: {$ref: 'https://schemas.example/a.json'}", "this is not a valid schema", (1, 14)),
        ("body_schema: '[{\"name\": {\"type\": \"string\"}}]'", "this is Kong's own schema language", (1, 14)),
        ("body_schema: 5", "this is not a JSON Schema", (1, 14)),
        ("body_schema: '{a: ['", "this text is not JSON", (1, 14)),
        ("content_types: [json]", "`json` is not a media type", (1, 16)),
        ("parameters: [{name: a, in: body}]", "", (1, 28)),
        ("parameters: [{name: a, in: query}, {name: a, in: query}]", "stands in the list twice", (1, 36)),
        ("parameters: [{name: a, in: header, style: form}]", "this style is not for a parameter in a header", (1, 14)),
        ("parameters: [{name: 'a b', in: header}]", "`a b` is not a header name", (1, 14)),
        ("parameters: [{name: a, in: query, schema: {type: 7}}]", "this is not a valid schema", (1, 50)),
        ("openapi: nowhere.yaml", "there is no such file", (1, 10)),
        ("{openapi: {}, body_schema: {}}", "have no place beside it", (1, 11)),
        ("max_body: big", "size", (1, 11)),
    ] {
        let found = errors(BY, config);
        assert!(found[0].message.contains(message), "{config}: {}", found[0]);
        assert_eq!((found[0].span.line, found[0].span.column), place, "{config}: {}", found[0]);
    }
    let doubts = errors(BY, "{content_types: [text/plain], base_path: /x}");
    assert!(doubts[0].message.contains("only with `openapi`") && doubts[0].severity == weir_config::Severity::Warning);
}

proptest! {
    #[test]
    fn any_request_is_judged(target in "/[a-z{}\\[\\]=&%0-9;,|.]{0,60}", cookie in "[ -~]{0,30}", body in prop::collection::vec(any::<u8>(), 0..60)) {
        let config = format!("{ORDER}parameters:\n{}", ["query", "header", "cookie"].map(|place| format!("- {{name: a, in: {place}, schema: {{type: [array, object, integer], items: {{type: integer}}, properties: {{a: {{type: boolean}}}}}}}}\n")).concat());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        if target.parse::<http::Uri>().is_ok() {
            let asked = ask("POST", &target).with("content-type", "application/json").with("cookie", &cookie).body(&String::from_utf8_lossy(&body));
            let seen = runtime.block_on(run(&config, asked));
            prop_assert!([200, 400].contains(&seen.status()));
        }
    }

    #[test]
    fn whatever_json_is_read_is_what_serde_reads(text in r#"[\[\]{},:"a-c0-9.eE\- ]{0,40}"#) {
        if let Ok(value) = super::body::read_json(text.as_bytes()) {
            prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }
    }
}
