use super::*;
use crate::testing;
use http::HeaderValue;
use proptest::prelude::*;

fn rendered(template: &str) -> String {
    let mut cx = testing::context();
    cx.shared.insert("tenant".into(), serde_json::json!({"name": "acme", "ids": [7, 8]}));
    let claims = serde_json::json!({"sub": "kim", "realm": {"roles": ["admin"]}});
    cx.identity = Some(std::sync::Arc::new(weir_gateway::Identity { claims: claims.as_object().cloned().map(std::sync::Arc::new), ..Default::default() }));
    let mut headers = HeaderMap::new();
    headers.append("x-user", HeaderValue::from_static("kim"));
    headers.append("x-many", HeaderValue::from_static("one"));
    headers.append("x-many", HeaderValue::from_static("two"));
    let template = Template::parse(template).unwrap_or_else(|e| panic!("{template}: {e}"));
    template.render(&Vars { cx: &cx, headers: &headers, query: Some("id=a%20b&flag&id=c") })
}

#[test]
fn what_can_be_written() {
    for (template, text) in [
        ("plain", "plain"),
        ("", ""),
        ("a$b (c)", "a$b (c)"),
        ("$(headers.x_user)", "kim"),
        ("$(headers[\"X-User\"])!", "kim!"),
        ("$( headers['x-many'][2] )", "two"),
        ("$(headers.x_many)", "one"),
        ("$(headers[\"x-none\"])", ""),
        ("$(headers[\"x-none\"] or \"default\")", "default"),
        ("$(headers.x_user or 'default')", "kim"),
        ("$(headers.x_user and 'in' or 'out')", "in"),
        ("$(headers.x_none and 'in' or 'out')", "out"),
        ("$(query_params.id)", "a b"),
        ("$(query_params.id[2])", "c"),
        ("$(query_params.flag)", "true"),
        ("$(shared.tenant.name)/$(shared.tenant.ids[1])", "acme/7"),
        ("$(shared.nothing.at.all)", ""),
        ("$(uri_captures[1])$(uri_captures.id)", ""),
        ("$(consumer.username or 'nobody')", "nobody"),
        ("$(claims.sub)/$(claims.realm.roles[1])$(claims.none)", "kim/admin"),
        ("$(client.ip)", "192.0.2.7"),
        ("$('a)b' .. \"c\" .. 1)", "a)bc1"),
        ("$(headers.x_user == 'kim')", "true"),
        ("$(headers.x_user ~= 'kim' and 'other' or 'same')", "same"),
        ("$(not headers.x_none)", "true"),
        ("$((headers.x_none or headers.x_user) .. '!')", "kim!"),
        ("$(headers.x_user:sub(2))", "im"),
        ("$(headers.x_user:sub(1, 2))", "ki"),
        ("$(headers.x_user:sub(-2, -1))", "im"),
        ("$(headers.x_user:sub(3, 2))$(headers.x_user:sub(9))", ""),
        ("$(headers.x_user:upper())$('AB':lower())", "KIMab"),
        ("$(headers.x_user:gsub('i', 'o'):upper())", "KOM"),
        ("$('a-b-c':gsub('%-', '_'))", "a_b_c"),
        ("$(headers.x_none:sub(1, 10) or 'none')", "none"),
        ("$((headers.x_user ~= nil and headers.x_user:sub(1, 1) ~= 'z' and headers.x_user) or (query_params.id == 'a b' and 'key') or query_params.id)", "kim"),
        ("$((headers.x_none ~= nil and headers.x_none:sub(1, 1) ~= 'z' and headers.x_none) or (query_params.id == 'a b' and 'key') or query_params.id)", "key"),
    ] {
        assert_eq!(rendered(template), text, "{template}");
    }
}

#[test]
fn what_can_not_be_written_is_named() {
    for (template, message) in [
        ("$(headers.x", "`$(` has no `)`"),
        ("$(string.lower(headers.x))", "`string` is not supported in templates"),
        ("$((function() return 1 end)())", "`function` is not supported in templates"),
        ("$(headers.x:find('a'))", "`:find` is not supported: of calls, `:sub(first, last)`"),
        ("$(headers.x:lower)", "a `(` is missing after `:lower`"),
        ("$(headers.x:lower(1))", "`:lower` has other arguments"),
        ("$(headers.x:sub(headers.y))", "`:sub` takes quoted texts and numbers only"),
        ("$(headers.x:sub(1 2))", "a `)` is missing"),
        ("$(headers.x:gsub('a+', 'b'))", "write `%+` for the sign itself"),
        ("$(headers.x:gsub('%d', 'b'))", "patterns are not supported"),
        ("$(headers.x - 1)", "`-` is not expected here"),
        ("$(headers.get('x'))", "this call is not supported"),
        ("$(headers)", "say which of the headers"),
        ("$()", "an expression is missing"),
        ("$(headers.x or)", "an expression is missing"),
        ("$(headers[x])", "a quoted name or a number is missing"),
        ("$(consumer.groups)", "of a consumer, `id`, `username` and `custom_id` can be read"),
        ("$(headers.a headers.b)", "`headers` is not expected here"),
    ] {
        let error = Template::parse(template).expect_err(template);
        assert!(error.contains(message), "{template}: {error}");
    }
    assert!(Template::parse(&format!("$({}1{})", "(".repeat(500), ")".repeat(500))).unwrap_err().contains("too deep"));
}

#[test]
fn what_differs_from_visitor_to_visitor_is_known() {
    for (template, personal) in [("a", false), ("$(query_params.a or uri_captures.b)", false), ("$(query_params.a or headers.b)", true), ("$(not consumer.id)", true)] {
        assert_eq!(Template::parse(template).unwrap().is_personal(), personal, "{template}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,80}") {
        let _ = Template::parse(&text);
    }

    #[test]
    fn any_expression_is_read_or_refused(words in prop::collection::vec(prop::sample::select(vec!["headers", ".x", "[1]", "(", ")", " or ", " and ", "..", "==", "not ", "'a'", "1", "\"", "shared", ":sub(1)", ":lower()", ":", ",", "-"]), 0..12)) {
        let _ = Template::parse(&format!("$({})", words.concat()));
    }

    #[test]
    fn text_without_expressions_stays_as_it_is(text in "[^$]{0,60}") {
        prop_assert_eq!(rendered(&text), text);
    }
}
