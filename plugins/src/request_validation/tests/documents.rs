//! OpenAPI documents.

use super::*;

const SHOP: &str = "\
openapi:
  openapi: 3.0.3
  info: {title: Shop, version: '1'}
  servers: [{url: 'https://shop.example/api/v1/'}]
  paths:
    /items:
      get:
        parameters:
        - {$ref: '#/components/parameters/Page'}
        - {name: filter, in: query, style: deepObject, schema: {type: object, properties: {max: {type: number}}}}
        responses: {'200': {description: ok}}
      post:
        requestBody: {$ref: '#/components/requestBodies/Item'}
    /items/{id}:
      parameters:
      - {name: id, in: path, required: true, schema: {type: integer, format: int32}}
      - {name: X-Trace, in: header, schema: {type: string, format: uuid}}
      get: {}
      patch:
        parameters:
        - {name: X-Trace, in: header, required: true, schema: {type: string}}
        requestBody:
          content:
            application/json: {schema: {$ref: '#/components/schemas/Item'}}
            'text/*': {}
    /items/mine: {get: {}}
    /files/{name}.{ext}: {get: {parameters: [{name: ext, in: path, required: true, schema: {enum: [png, jpg]}}]}}
  components:
    securitySchemes: {key: {type: apiKey, in: query, name: api_key}}
    parameters:
      Page: {name: page, in: query, schema: {type: integer, minimum: 1, exclusiveMinimum: true}}
    requestBodies:
      Item: {required: true, content: {application/json: {schema: {$ref: '#/components/schemas/Item'}}}}
    schemas:
      Item:
        type: object
        required: [id, name]
        properties:
          id: {type: integer, readOnly: true}
          name: {type: string}
          note: {type: string, nullable: true}
          kind: {type: string, nullable: true, enum: [a, b]}
          parts: {type: array, items: {$ref: '#/components/schemas/Item'}}
";

#[tokio::test]
async fn requests_are_checked_against_their_operation() {
    let json = |method: &str, uri: &str, body: &str| ask(method, uri).with("content-type", "application/json").body(body);
    let rig = Rig::new(&[(BY, SHOP)]);
    let ok: &[&str] = &[];
    for (ask, status, problems) in [
        (get("/api/v1/items?page=2"), 200, ok),
        (get("/api/v1/items?page=1"), 400, &["query:page the value is less than or equal to the minimum of 1"]),
        (get("/api/v1/items?filter[max]=x&page=y"), 400, &["query:filter@/max the value is not of type \"number\"", "query:page the value is not of type \"integer\""]),
        (get("/api/v1//items/./mine"), 200, ok),
        (get("/api/v1/items/7"), 200, ok),
        (ask("HEAD", "/api/v1/items/7"), 200, ok),
        (get("/api/v1/items/x"), 400, &["path:id the value is not of type \"integer\""]),
        (get("/api/v1/items/9999999999"), 400, &["path:id the value is greater than the maximum of 2147483647"]),
        (get("/api/v1/items/7").with("x-trace", "no"), 400, &["header:X-Trace the value is not a \"uuid\""]),
        (get("/api/v1/files/a.b.png"), 400, &["path:ext the value is not one of \"png\" or \"jpg\""]),
        (get("/api/v1/files/a.png"), 200, ok),
        (json("POST", "/api/v1/items", r#"{"name":"a","note":null,"kind":null,"parts":[{"name":"b"}]}"#), 200, ok),
        (json("POST", "/api/v1/items", r#"{"name":null,"parts":[{"name":"b","parts":[{}]}]}"#), 400, &["body@/name the value is not of type \"string\"", "body@/parts/0/parts/0 \"name\" is a required property"]),
        (ask("POST", "/api/v1/items"), 400, &["body@ a body is required"]),
        (json("PATCH", "/api/v1/items/7", r#"{"name":"a"}"#), 400, &["header:X-Trace this parameter is required"]),
        (json("PATCH", "/api/v1/items/7", r#"{"name":"a"}"#).with("x-trace", "t"), 200, ok),
        (ask("PATCH", "/api/v1/items/7").with("x-trace", "t"), 200, ok),
        (ask("PATCH", "/api/v1/items/7").with("x-trace", "t").with("content-type", "text/plain").body("x"), 200, ok),
    ] {
        let shown = format!("{ask:?}");
        let seen = rig.run(ask).await;
        assert_eq!(seen.status(), status, "{shown}: {}", seen.body);
        if !problems.is_empty() {
            let (_, mut found) = told(&seen);
            found.sort();
            assert_eq!(found, problems, "{shown}");
        }
    }
    let seen = rig.run(ask("POST", "/api/v1/items").with("content-type", "text/plain").body("x")).await;
    assert_eq!((seen.status(), seen.header("accept")), (415, Some("application/json")));
}

#[tokio::test]
async fn paths_and_methods_that_are_not_described_are_refused() {
    let rig = Rig::new(&[(BY, SHOP)]);
    for path in ["/api/v1/nothing", "/api/v1/items/", "/items", "/api/v12/items", "/api/v1"] {
        let seen = rig.run(get(path)).await;
        assert_eq!((seen.status(), seen.json()), (404, json!({ "message": "The path is not described" })), "{path}");
    }
    let seen = rig.run(ask("DELETE", "/api/v1/items/7")).await;
    assert_eq!((seen.status(), seen.header("allow")), (405, Some("GET, PATCH, HEAD")));
    assert_eq!(seen.json()["message"], "The method is not described for this path");
    assert!(run(&format!("{SHOP}unknown_paths: pass\n"), get("/other?x")).await.forwarded());
    let based = format!("{SHOP}base_path: /shop\n");
    assert!(run(&based, get("/shop/items")).await.forwarded());
    assert_eq!(run(&based, get("/api/v1/items")).await.status(), 404);
}

#[tokio::test]
async fn a_strict_query_knows_credentials_too() {
    let strict = format!("{SHOP}strict_query: true\n");
    assert!(run(&strict, get("/api/v1/items?page=2&filter[max]=1&api_key=k")).await.forwarded());
    assert_eq!(told(&run(&strict, get("/api/v1/items?pge=2")).await).1, ["query:pge this parameter is not described"]);
}

#[tokio::test]
async fn version_3_1_is_json_schema_of_2020() {
    let config = "openapi: {openapi: 3.1.0, servers: [{url: /}], paths: {/p: {post: {requestBody: {content: {application/json: {schema: {type: [object, 'null'], properties: {n: {type: integer, exclusiveMinimum: 3}, t: {type: array, prefixItems: [{const: 1}]}}}}}}}}, '/{p}': {get: {parameters: [{name: p, in: path, required: true, style: matrix, explode: true, schema: {type: array, items: {type: integer}}}]}}, '/l/{q}': {get: {parameters: [{name: q, in: path, required: true, style: label, schema: {type: integer}}, {name: j, in: query, content: {application/json: {schema: {type: object, required: [a]}}}}]}}}}";
    let post = |body: &str| ask("POST", "/p").with("content-type", "application/json").body(body);
    assert_eq!(run(config, post("null")).await.status(), 200);
    assert_eq!(told(&run(config, post(r#"{"n":3,"t":[2]}"#)).await).1, ["body@/n the value is less than or equal to the minimum of 3", "body@/t/0 1 was expected"]);
    assert_eq!(run(config, get("/;p=1;p=2")).await.status(), 200);
    assert_eq!(told(&run(config, get("/;p=1;p=x")).await).1, ["path:p@/1 the value is not of type \"integer\""]);
    assert_eq!(told(&run(config, get("/;q=1")).await).1, ["path:p `;p=` is wanted"]);
    assert_eq!(run(config, get("/l/.5?j=%7B%22a%22:1%7D")).await.status(), 200);
    assert_eq!(told(&run(config, get("/l/5?j=%7B%7D")).await).1, ["path:q a `.` is missing at the beginning", "query:j \"a\" is a required property"]);
}

#[tokio::test]
async fn a_document_in_a_file_is_found_beside_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.yaml");
    let text = SHOP.replacen("openapi:\n", "", 1).lines().map(|l| l.strip_prefix("  ").unwrap_or(l)).collect::<Vec<_>>().join("\n");
    std::fs::write(&file, &text).unwrap();
    let config = format!("openapi: {}", file.display());
    assert_eq!(told(&run(&config, get("/api/v1/items?page=0")).await).0, 400);
    assert!(run(&config, get("/api/v1/items?page=2")).await.forwarded());
    std::fs::write(&file, text.replace("#/components/schemas/Item", "#/components/schemas/Itm")).unwrap();
    let found = errors(BY, &config);
    assert!(found[0].message.contains("there is no `#/components/schemas/Itm`"), "{}", found[0]);
    assert_eq!(found[0].span.file(), file.to_string_lossy());
    std::fs::write(&file, "openapi: [").unwrap();
    assert!(errors(BY, &config)[0].message.contains("this is not YAML"));
}

#[test]
fn mistakes_of_a_document_are_named_with_their_place() {
    let paths = |inner: &str| format!("openapi: {{openapi: 3.1.0, paths: {inner}}}");
    for (config, message) in [
        ("openapi: {swagger: '2.0'}".to_owned(), "this is Swagger 2"),
        ("openapi: {info: {}}".into(), "this is not an OpenAPI document"),
        ("openapi: {openapi: 3.1.0}".into(), "the document has no paths"),
        (paths("{pets: {get: {}}}"), "a path begins with `/`"),
        (paths("{'/{a}': {get: {}}, '/{b}': {get: {}}}"), "in the names of its parameters only"),
        (paths("{/a: {get: {parameters: [{name: x}]}}}"), "a parameter has `name` and `in`"),
        (paths("{/a: {get: {parameters: [{name: x, in: body}]}}}"), "`body` is not `path`, `query`, `header` or `cookie`"),
        (paths("{/a: {get: {parameters: [{name: x, in: query, style: wild}]}}}"), "this is not a style"),
        (paths("{/a: {get: {parameters: [{name: x, in: query, schema: {type: 1}}]}}}"), "is not valid"),
        (paths("{/a: {$ref: 'other.yaml#/x'}}"), "leads out of the document"),
        (paths("{/a: {get: {parameters: [{$ref: '#/a'}]}}, /b: {get: {requestBody: {$ref: '#/paths/~1b/get/requestBody'}}}}"), "there is no `#/a`"),
        (paths("{/b: {get: {requestBody: {$ref: '#/paths/~1b/get/requestBody'}}}}"), "these references lead nowhere"),
        (paths("{/b: {get: {requestBody: {content: {json: {}}}}}}"), "this is not a media type"),
    ] {
        let found = errors(BY, &config);
        assert!(found[0].message.contains(message), "{config}: {}", found[0]);
        assert!(found[0].span.is_known(), "{config}");
    }
}
