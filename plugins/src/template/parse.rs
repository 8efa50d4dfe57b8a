//! The language of templates, read.

use super::{Call, Expr, Root};
use serde_json::Value;

/// What can be written, for messages.
const READABLE: &str = "`headers`, `query_params`, `uri_captures`, `shared`, `consumer`, `claims` and `client` can be read and combined with `or`, `and`, `not`, `..`, `==` and `~=`";
/// The calls, for messages.
const CALLS: &str = "of calls, `:sub(first, last)`, `:lower()`, `:upper()` and `:gsub('old', 'new')` are";
/// Expressions nest this deep at most.
const DEEPEST: usize = 32;

/// Where the parenthesis closes that was open before `text`; parentheses in quoted texts do not count.
pub(super) fn closing(text: &str) -> Option<usize> {
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

pub(super) struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    pub fn new(text: &str) -> Result<Parser, String> {
        let mut tokens = Vec::new();
        let mut rest = text.trim_start();
        'next: while let Some(c) = rest.chars().next() {
            for sign in ["..", "==", "~=", ".", "[", "]", "(", ")", ":", ",", "-"] {
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

    pub fn whole(mut self) -> Result<Expr, String> {
        let expr = self.or()?;
        match self.tokens.get(self.at) {
            None => Ok(expr),
            Some(Token::Sign("(")) => Err(format!("this call is not supported: {CALLS}")),
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
        let mut expr = self.primary()?;
        while self.sign(":") {
            expr = Expr::Call(Box::new(expr), self.call()?);
        }
        Ok(if negated { Expr::Not(Box::new(expr)) } else { expr })
    }

    /// What stands after a `:`.
    fn call(&mut self) -> Result<Call, String> {
        let name = match self.tokens.get(self.at) {
            Some(Token::Name(name)) => name.clone(),
            _ => return Err(format!("the name of a call is missing after `:`; {CALLS}")),
        };
        self.at += 1;
        if !["sub", "lower", "upper", "gsub"].contains(&name.as_str()) {
            return Err(format!("`:{name}` is not supported: {CALLS}"));
        }
        let arguments = self.arguments(&name)?;
        match (name.as_str(), arguments.as_slice()) {
            ("lower", []) => Ok(Call::Lower),
            ("upper", []) => Ok(Call::Upper),
            ("sub", [Argument::Number(first)]) => Ok(Call::Sub(*first, -1)),
            ("sub", [Argument::Number(first), Argument::Number(last)]) => Ok(Call::Sub(*first, *last)),
            ("gsub", [Argument::Text(old), Argument::Text(new)]) => Ok(Call::Replace(plain(old)?, plain(new)?)),
            _ => Err(format!("`:{name}` has other arguments: {CALLS}")),
        }
    }

    fn arguments(&mut self, call: &str) -> Result<Vec<Argument>, String> {
        if !self.sign("(") {
            return Err(format!("a `(` is missing after `:{call}`"));
        }
        let mut arguments = Vec::new();
        if self.sign(")") {
            return Ok(arguments);
        }
        loop {
            let negative = self.sign("-");
            match self.tokens.get(self.at) {
                Some(Token::Text(text)) if !negative => arguments.push(Argument::Text(text.clone())),
                Some(Token::Number(digits)) => {
                    let number: i64 = digits.parse().map_err(|_| "this number is too large")?;
                    arguments.push(Argument::Number(if negative { -number } else { number }));
                }
                _ => return Err(format!("`:{call}` takes quoted texts and numbers only")),
            }
            self.at += 1;
            if self.sign(")") {
                return Ok(arguments);
            }
            if !self.sign(",") {
                return Err("a `)` is missing".into());
            }
        }
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
            "claims" => Root::Claims,
            "client" => Root::Client,
            other => return Err(format!("`{other}` is not supported in templates: {READABLE}")),
        };
        let keys = self.keys(&name)?;
        if root == Root::Consumer && !(keys.len() == 1 && ["id", "username", "custom_id"].contains(&keys[0].as_str())) {
            return Err("of a consumer, `id`, `username` and `custom_id` can be read".into());
        }
        if root == Root::Client && keys != ["ip"] {
            return Err("of a client, `ip` can be read".into());
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

enum Argument {
    Text(String),
    Number(i64),
}

/// A text in which Lua sees no pattern; `%-` and the like stand for the sign itself.
fn plain(pattern: &str) -> Result<String, String> {
    let mut text = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '%' => match chars.next() {
                Some(sign) if !sign.is_alphanumeric() => text.push(sign),
                _ => return Err("patterns are not supported in `:gsub`: a text is replaced by another".into()),
            },
            '^' | '$' | '(' | ')' | '.' | '[' | ']' | '*' | '+' | '-' | '?' => {
                return Err(format!("patterns are not supported in `:gsub`: write `%{c}` for the sign itself"));
            }
            c => text.push(c),
        }
    }
    Ok(text)
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
