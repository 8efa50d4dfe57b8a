//! Runs `router_cases.yaml`. Every row is tried, and all rows that fail are reported together.

use crate::support::{Request, path, route, service};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use weir_config::{Node, PathHandling, Route};
use weir_gateway::router::{Match, Router, normalize, upstream_path};

const FILE: &str = include_str!("../router_cases.yaml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    matching: Vec<Group>,
    normalize: Vec<(String, String)>,
    joining: Vec<Join>,
    mistakes: Vec<Mistake>,
    shadows: Vec<Shadows>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    about: String,
    routes: Vec<RouteRow>,
    requests: Vec<RequestRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteRow {
    name: String,
    #[serde(default)]
    protocols: Vec<String>,
    #[serde(default)]
    methods: Vec<String>,
    #[serde(default)]
    hosts: Vec<String>,
    #[serde(default)]
    paths: Vec<String>,
    #[serde(default)]
    headers: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    snis: Vec<String>,
    #[serde(default)]
    regex_priority: i64,
    #[serde(default)]
    disabled: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestRow {
    /// `METHOD host[:port] path`; a host of `-` is none.
    ask: String,
    #[serde(default)]
    scheme: Option<String>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    headers: Vec<(String, String)>,
    #[serde(default)]
    sni: Option<String>,
    /// Name of the route; none: 404.
    goes: Option<String>,
    /// The part of the normalized path that the route matched.
    #[serde(default)]
    prefix: Option<String>,
    /// The normalized path.
    #[serde(default)]
    path: Option<String>,
    /// Groups by name or number, all of them but group 0. `{}`: there are captures, but no group took part.
    #[serde(default)]
    captures: Option<BTreeMap<String, String>>,
}

/// One row of the path-joining table. `path` is what the route matches; none: the route has no paths.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Join {
    service: String,
    path: Option<String>,
    ask: String,
    strip_v0: String,
    keep_v0: String,
    strip_v1: String,
    keep_v1: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mistake {
    routes: Vec<RouteRow>,
    /// By error: index of the route and a part of the message.
    says: Vec<(usize, String)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shadows {
    about: String,
    routes: Vec<RouteRow>,
    shadowed: Vec<(String, String)>,
}

fn file() -> File {
    let node = Node::parse(FILE).unwrap_or_else(|e| panic!("router_cases.yaml is not YAML: {e:?}"));
    serde_json::from_value(node.to_json()).unwrap_or_else(|e| panic!("router_cases.yaml: {e}"))
}

impl RouteRow {
    /// The service with index 1 is disabled.
    fn route(&self) -> Route {
        let mut made = route(&self.name);
        if !self.protocols.is_empty() {
            made.protocols = self.protocols.clone();
        }
        made.service = Some(usize::from(self.disabled));
        made.methods = self.methods.clone();
        made.hosts = self.hosts.clone();
        made.paths = self.paths.iter().map(|text| path(text)).collect();
        for (line, path) in made.paths.iter_mut().enumerate() {
            path.span.line = line as u32 + 1;
        }
        made.headers = self.headers.clone().into_iter().collect();
        made.snis = self.snis.clone();
        made.regex_priority = self.regex_priority;
        made
    }
}

fn routes(rows: &[RouteRow]) -> Vec<Route> {
    rows.iter().map(RouteRow::route).collect()
}

fn build(routes: &[Route]) -> Router {
    Router::build(routes, &[service(true), service(false)]).unwrap_or_else(|e| panic!("{e:?}"))
}

fn captured(found: &Match<'_>) -> Option<BTreeMap<String, String>> {
    let captures = found.captures.as_ref()?;
    let mut all = BTreeMap::new();
    for (number, name, text) in captures.iter().filter(|(number, ..)| *number > 0) {
        all.insert(number.to_string(), text.to_owned());
        if let Some(name) = name {
            assert_eq!(captures.name(name), Some(text));
            all.insert(name.to_owned(), text.to_owned());
        }
        assert_eq!(captures.get(number), Some(text));
    }
    Some(all)
}

impl RequestRow {
    /// What is wrong with the router's answer.
    fn run(&self, rows: &[RouteRow], router: &Router) -> Result<(), String> {
        let words: Vec<_> = self.ask.splitn(3, ' ').collect();
        let [method, host, path] = words[..] else { return Err("`ask` has not three words".into()) };
        let mut request = Request::new(method, if host == "-" { "" } else { host }, path);
        if let Some(scheme) = &self.scheme {
            request.scheme = scheme.clone();
        }
        request.port = self.port.unwrap_or(request.port);
        self.headers.iter().for_each(|(name, value)| request.header(name, value));
        request.sni = self.sni.clone();

        let found = router.find(&request.query());
        let name = found.as_ref().map(|found| rows[found.route].name.as_str());
        if name != self.goes.as_deref() {
            return Err(format!("goes to {name:?}, not to {:?}", self.goes));
        }
        let Some(found) = found else { return Ok(()) };
        let prefix = &found.path[..found.prefix_len];
        if self.prefix.as_deref().is_some_and(|expected| expected != prefix) {
            return Err(format!("the prefix is `{prefix}`"));
        }
        if self.path.as_deref().is_some_and(|expected| expected != found.path) {
            return Err(format!("the path is `{}`", found.path));
        }
        let captures = captured(&found);
        if self.captures.is_some() && captures != self.captures {
            return Err(format!("the captures are {captures:?}"));
        }
        let grouped = rows[found.route].paths.iter().any(|path| path.contains('('));
        if captures.is_some() && !grouped {
            return Err("there are captures without a group".into());
        }
        Ok(())
    }
}

#[test]
fn requests_go_to_the_right_routes() {
    let mut failures = Vec::new();
    let mut count = 0;
    for group in file().matching {
        let router = build(&routes(&group.routes));
        for row in &group.requests {
            count += 1;
            if let Err(error) = row.run(&group.routes, &router) {
                failures.push(format!("{}: {}: {error}", group.about, row.ask));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {count} rows fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn paths_are_normalized() {
    for (given, expected) in file().normalize {
        let normal = normalize(&given);
        assert_eq!(normal, expected, "`{given}`");
        assert_eq!(matches!(normal, Cow::Borrowed(_)), given == expected, "`{given}` is borrowed if and only if it does not change");
        assert_eq!(normalize(&expected), expected, "twice");
    }
}

#[test]
fn paths_are_joined() {
    let mut failures = Vec::new();
    for row in file().joining {
        let mut made = route("joined");
        match &row.path {
            Some(text) => made.paths.push(path(text)),
            None => made.methods.push("GET".into()),
        }
        let router = build(&[made]);
        let request = Request::new("GET", "a.test", &row.ask);
        let Some(found) = router.find(&request.query()) else {
            failures.push(format!("{:?} does not match {}", row.path, row.ask));
            continue;
        };
        let expected = [
            (true, PathHandling::V0, &row.strip_v0),
            (false, PathHandling::V0, &row.keep_v0),
            (true, PathHandling::V1, &row.strip_v1),
            (false, PathHandling::V1, &row.keep_v1),
        ];
        for (strip, handling, expected) in expected {
            let joined = upstream_path(&row.service, strip, found.prefix_len, &found.path, handling);
            if joined != *expected {
                failures.push(format!(
                    "`{}` + `{}` matched by {:?}, strip {strip}, {handling:?}: `{joined}`, not `{expected}`",
                    row.service, row.ask, row.path
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn all_mistakes_are_named_at_once() {
    for mistake in file().mistakes {
        let made = routes(&mistake.routes);
        let errors = Router::build(&made, &[service(true), service(false)]).err().unwrap_or_default();
        assert_eq!(errors.len(), mistake.says.len(), "{errors:?}");
        for (error, (index, says)) in errors.iter().zip(&mistake.says) {
            assert_eq!(error.route, *index, "{error:?}");
            assert!(error.message.contains(says.as_str()), "{} does not say {says}", error.message);
        }
    }
}

#[test]
fn a_bad_regex_is_reported_where_it_stands() {
    let mut made = route("bad");
    made.paths = vec![path("/fine"), path("~/(")];
    made.paths[1].span.line = 7;
    let errors = Router::build(&[made], &[]).expect_err("an error");
    assert_eq!((errors.len(), errors[0].span.line), (1, 7), "{errors:?}");
}

#[test]
fn routes_that_never_win_are_named() {
    for case in file().shadows {
        let made = routes(&case.routes);
        let router = build(&made);
        let found: Vec<_> =
            router.shadowed().iter().map(|shadow| (made[shadow.route].name.clone(), made[shadow.by].name.clone())).collect();
        assert_eq!(found, case.shadowed, "{}", case.about);
    }
}
