//! Templates in the values of `request-transformer`: text with `$(…)` in it, where `…` is one of the small expressions that real
//! configurations use. Kong runs Lua there; this reads a fixed language, so that a configuration can not run code.
//!
//! ```text
//! or    = and  { "or" and }          path = root { "." name | "[" text or number "]" }
//! and   = equal { "and" equal }      root = headers | query_params | uri_captures | shared | consumer
//! equal = join [ ("==" | "~=") join ]
//! join  = unary { ".." unary }       unary = [ "not" ] ( path | 'text' | number | true | false | nil | "(" or ")" )
//! ```

use http::HeaderMap;
use serde_json::Value;
use std::borrow::Cow;
use weir_gateway::RequestContext;

/// What can be read, for messages.
const READABLE: &str = "`headers`, `query_params`, `uri_captures`, `shared` and `consumer` can be read and combined with `or`, `and`, `not`, `..`, `==` and `~=`";
/// Expressions nest this deep at most.
const DEEPEST: usize = 32;

/// A compiled template.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Expr(Expr),
}

#[derive(Debug, Clone, PartialEq)]
enum Expr {
    Path(Root, Vec<String>),
    Constant(Value),
    Or(Box<Expr>, Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Equal(Box<Expr>, Box<Expr>),
    Join(Box<Expr>, Box<Expr>),
    Not(Box<Expr>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Root {
    Headers,
    Query,
    Captures,
    Shared,
    Consumer,
}

/// What a template reads from.
#[derive(Clone, Copy)]
pub(crate) struct Vars<'a> {
    pub cx: &'a RequestContext,
    pub headers: &'a HeaderMap,
    pub query: Option<&'a str>,
}

impl Template {
    /// Compiles a template.
    ///
    /// Errors: what is wrong, as half a sentence.
    pub fn parse(text: &str) -> Result<Template, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find("$(") {
            if at > 0 {
                parts.push(Part::Text(rest[..at].into()));
            }
            let inner = &rest[at + 2..];
            let end = closing(inner).ok_or("`$(` has no `)`")?;
            parts.push(Part::Expr(Parser::new(&inner[..end])?.whole()?));
            rest = &inner[end + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        Ok(Template(parts))
    }

    /// The text for a request; what is absent is an empty text.
    pub fn render(&self, vars: &Vars<'_>) -> String {
        self.render_with(vars, |text| Cow::Borrowed(text))
    }

    /// The same, with `guard` applied to what comes from the request (not to the text of the configuration).
    pub fn render_with(&self, vars: &Vars<'_>, guard: impl Fn(&str) -> Cow<'_, str>) -> String {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Expr(expr) => out.push_str(&guard(&shown(&expr.value(vars)))),
            }
        }
        out
    }

    /// The text of the configuration in it.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|p| if let Part::Text(text) = p { Some(text.as_str()) } else { None })
    }

    /// Whether it reads something by which one visitor differs from another, other than path and query.
    pub fn is_personal(&self) -> bool {
        self.0.iter().any(|p| matches!(p, Part::Expr(e) if e.is_personal()))
    }
}

impl Expr {
    fn value(&self, vars: &Vars<'_>) -> Value {
        match self {
            Expr::Constant(value) => value.clone(),
            Expr::Path(root, keys) => look_up(*root, keys, vars).unwrap_or(Value::Null),
            Expr::Or(a, b) => Some(a.value(vars)).filter(holds).unwrap_or_else(|| b.value(vars)),
            Expr::And(a, b) => {
                let first = a.value(vars);
                if holds(&first) { b.value(vars) } else { first }
            }
            Expr::Equal(a, b) => Value::Bool(a.value(vars) == b.value(vars)),
            Expr::Join(a, b) => Value::String(shown(&a.value(vars)) + &shown(&b.value(vars))),
            Expr::Not(a) => Value::Bool(!holds(&a.value(vars))),
        }
    }

    fn is_personal(&self) -> bool {
        match self {
            Expr::Path(root, _) => matches!(root, Root::Headers | Root::Shared | Root::Consumer),
            Expr::Constant(_) => false,
            Expr::Or(a, b) | Expr::And(a, b) | Expr::Equal(a, b) | Expr::Join(a, b) => a.is_personal() || b.is_personal(),
            Expr::Not(a) => a.is_personal(),
        }
    }
}

/// As in Lua, all but nil and false hold.
fn holds(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn look_up(root: Root, keys: &[String], vars: &Vars<'_>) -> Option<Value> {
    let (first, more) = keys.split_first()?;
    let many = |values: Vec<String>| -> Option<Value> {
        // Lua counts from 1.
        let index = match more.first() {
            Some(n) => n.parse::<usize>().ok()?.checked_sub(1)?,
            None => 0,
        };
        values.into_iter().nth(index).map(Value::String)
    };
    match root {
        Root::Headers => {
            let name = first.to_ascii_lowercase().replace('_', "-");
            many(vars.headers.get_all(&name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect())
        }
        Root::Query => many(crate::pairs::read(vars.query.unwrap_or("")).filter(|(name, _)| name == first).map(|(_, v)| v.unwrap_or_else(|| "true".into())).collect()),
        Root::Captures => {
            let captures = vars.cx.captures.as_ref()?;
            let text = match first.parse::<usize>() {
                Ok(group) => captures.get(group),
                Err(_) => captures.name(first),
            };
            text.map(|t| Value::String(t.into()))
        }
        Root::Shared => {
            let mut value = vars.cx.shared.get(first)?;
            for key in more {
                value = match value {
                    Value::Array(items) => items.get(key.parse::<usize>().ok()?.checked_sub(1)?)?,
                    other => other.get(key)?,
                };
            }
            Some(value.clone())
        }
        Root::Consumer => {
            let consumer = &vars.cx.consumer.as_ref()?.entity;
            match first.as_str() {
                "id" => Some(consumer.id.clone()),
                "username" => consumer.username.clone(),
                _ => consumer.custom_id.clone(),
            }
            .map(Value::String)
        }
    }
}

/// Where the parenthesis closes that was open before `text`; parentheses in quoted texts do not count.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (1usize, None, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            (None, _) => {}
        }
    }
    None
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    Number(String),
    Sign(&'static str),
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn new(text: &str) -> Result<Parser, String> {
        let mut tokens = Vec::new();
        let mut rest = text.trim_start();
        'next: while let Some(c) = rest.chars().next() {
            for sign in ["..", "==", "~=", ".", "[", "]", "(", ")"] {
                if let Some(after) = rest.strip_prefix(sign) {
                    tokens.push(Token::Sign(sign));
                    rest = after.trim_start();
                    continue 'next;
                }
            }
            let run = |fits: fn(char) -> bool| rest.find(|c| !fits(c)).unwrap_or(rest.len());
            let end = if c == '"' || c == '\'' {
                let (value, length) = quoted(rest, c).ok_or("a quoted text is not closed")?;
                tokens.push(Token::Text(value));
                length
            } else if c.is_ascii_digit() {
                let end = run(|c| c.is_ascii_digit());
                tokens.push(Token::Number(rest[..end].into()));
                end
            } else if c.is_ascii_alphabetic() || c == '_' {
                let end = run(|c| c.is_ascii_alphanumeric() || c == '_');
                tokens.push(Token::Name(rest[..end].into()));
                end
            } else {
                return Err(format!("`{c}` is not supported here: {READABLE}"));
            };
            rest = rest[end..].trim_start();
        }
        Ok(Parser { tokens, at: 0, depth: 0 })
    }

    fn whole(mut self) -> Result<Expr, String> {
        let expr = self.or()?;
        match self.tokens.get(self.at) {
            None => Ok(expr),
            Some(Token::Sign("(")) => Err(format!("calls are not supported: {READABLE}")),
            Some(token) => Err(format!("{} is not expected here: {READABLE}", described(token))),
        }
    }

    fn sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Sign(s)) if *s == sign);
        self.at += usize::from(found);
        found
    }

    fn word(&mut self, word: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Name(n)) if n == word);
        self.at += usize::from(found);
        found
    }

    fn or(&mut self) -> Result<Expr, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("this is nested too deep".into());
        }
        let mut left = self.and()?;
        while self.word("or") {
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        self.depth -= 1;
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr, String> {
        let mut left = self.equal()?;
        while self.word("and") {
            left = Expr::And(Box::new(left), Box::new(self.equal()?));
        }
        Ok(left)
    }

    fn equal(&mut self) -> Result<Expr, String> {
        let left = self.join()?;
        if self.sign("==") {
            return Ok(Expr::Equal(Box::new(left), Box::new(self.join()?)));
        }
        if self.sign("~=") {
            return Ok(Expr::Not(Box::new(Expr::Equal(Box::new(left), Box::new(self.join()?)))));
        }
        Ok(left)
    }

    fn join(&mut self) -> Result<Expr, String> {
        let mut left = self.unary()?;
        while self.sign("..") {
            left = Expr::Join(Box::new(left), Box::new(self.unary()?));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expr, String> {
        let mut negated = false;
        while self.word("not") {
            negated = !negated;
        }
        let expr = self.primary()?;
        Ok(if negated { Expr::Not(Box::new(expr)) } else { expr })
    }

    fn primary(&mut self) -> Result<Expr, String> {
        if self.sign("(") {
            let inner = self.or()?;
            return if self.sign(")") { Ok(inner) } else { Err("a `)` is missing".into()) };
        }
        let Some(token) = self.tokens.get(self.at).cloned() else {
            return Err(format!("an expression is missing: {READABLE}"));
        };
        self.at += 1;
        let name = match token {
            Token::Text(text) => return Ok(Expr::Constant(Value::String(text))),
            Token::Number(digits) => return digits.parse::<u64>().map(|n| Expr::Constant(n.into())).map_err(|_| "this number is too large".into()),
            Token::Sign(sign) => return Err(format!("`{sign}` is not expected here: {READABLE}")),
            Token::Name(name) => name,
        };
        let root = match name.as_str() {
            "true" | "false" => return Ok(Expr::Constant(Value::Bool(name == "true"))),
            "nil" => return Ok(Expr::Constant(Value::Null)),
            "headers" => Root::Headers,
            "query_params" => Root::Query,
            "uri_captures" => Root::Captures,
            "shared" => Root::Shared,
            "consumer" => Root::Consumer,
            other => return Err(format!("`{other}` is not supported in templates: {READABLE}")),
        };
        let keys = self.keys(&name)?;
        if root == Root::Consumer && !(keys.len() == 1 && ["id", "username", "custom_id"].contains(&keys[0].as_str())) {
            return Err("of a consumer, `id`, `username` and `custom_id` can be read".into());
        }
        Ok(Expr::Path(root, keys))
    }

    fn keys(&mut self, root: &str) -> Result<Vec<String>, String> {
        let mut keys = Vec::new();
        loop {
            if self.sign(".") {
                match self.tokens.get(self.at) {
                    Some(Token::Name(name)) => keys.push(name.clone()),
                    _ => return Err(format!("a name is missing after `{root}.`")),
                }
                self.at += 1;
            } else if self.sign("[") {
                match self.tokens.get(self.at) {
                    Some(Token::Text(key) | Token::Number(key)) => keys.push(key.clone()),
                    _ => return Err(format!("a quoted name or a number is missing in `{root}[…]`")),
                }
                self.at += 1;
                if !self.sign("]") {
                    return Err("a `]` is missing".into());
                }
            } else if keys.is_empty() {
                return Err(format!("say which of the {root}: `{root}.name` or `{root}[\"name\"]`"));
            } else {
                return Ok(keys);
            }
        }
    }
}

fn described(token: &Token) -> String {
    match token {
        Token::Name(name) => format!("`{name}`"),
        Token::Text(_) => "a text".into(),
        Token::Number(n) => format!("`{n}`"),
        Token::Sign(sign) => format!("`{sign}`"),
    }
}

/// The text between quotes at the start of `rest`, and the length of it all.
fn quoted(rest: &str, quote: char) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            c if escaped => {
                value.push(match c {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                });
                escaped = false;
            }
            '\\' => escaped = true,
            c if c == quote => return Some((value, at + c.len_utf8())),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn rendered(template: &str) -> String {
        let mut cx = testing::context();
        cx.shared.insert("tenant".into(), serde_json::json!({"name": "acme", "ids": [7, 8]}));
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
            ("$('a)b' .. \"c\" .. 1)", "a)bc1"),
            ("$(headers.x_user == 'kim')", "true"),
            ("$(headers.x_user ~= 'kim' and 'other' or 'same')", "same"),
            ("$(not headers.x_none)", "true"),
            ("$((headers.x_none or headers.x_user) .. '!')", "kim!"),
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
            ("$(headers.x:lower())", "`:` is not supported here"),
            ("$(headers.get('x'))", "calls are not supported"),
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
        fn any_expression_is_read_or_refused(words in prop::collection::vec(prop::sample::select(vec!["headers", ".x", "[1]", "(", ")", " or ", " and ", "..", "==", "not ", "'a'", "1", "\"", "shared"]), 0..12)) {
            let _ = Template::parse(&format!("$({})", words.concat()));
        }

        #[test]
        fn text_without_expressions_stays_as_it_is(text in "[^$]{0,60}") {
            prop_assert_eq!(rendered(&text), text);
        }
    }
}
