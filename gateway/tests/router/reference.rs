//! A router that is slow and obvious: it tries every host and every path of every route and sorts what matches by the rules.

use crate::support::Request;
use regex::Regex;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::HashMap;
use weir_config::Route;

/// Index of the route that a request goes to, and the length of what its path matched.
pub fn find(routes: &[Route], request: &Request) -> Option<(usize, usize)> {
    let path = normalize(&request.path);
    let (host, port) = host_and_port(&request.host);
    let port = port.unwrap_or(request.port);
    let mut matches = Vec::new();
    for (index, route) in routes.iter().enumerate() {
        let others = [
            route.methods.is_empty() || route.methods.contains(&request.method.to_string()),
            route.headers.iter().all(|(name, values)| header_matches(request, name, values)),
            !for_websocket(route) || is_handshake(request),
            route.snis.is_empty() || request.scheme != "https" || route.snis.iter().any(|sni| sni_matches(sni, request)),
        ];
        if others.contains(&false) {
            continue;
        }
        let kinds = [route.methods.len(), route.hosts.len(), route.headers.len(), route.snis.len(), route.paths.len()];
        let kinds = kinds.iter().filter(|n| **n > 0).count();
        let plain = !route.hosts.is_empty() && route.hosts.iter().all(|host| !host.contains('*'));
        let ports: Vec<bool> = match route.hosts.is_empty() {
            true => vec![false],
            false => route.hosts.iter().filter_map(|pattern| host_matches(pattern, &host, port)).collect(),
        };
        let paths: Vec<(bool, usize, usize)> = match route.paths.is_empty() {
            true => vec![(false, 0, 0)],
            false => route
                .paths
                .iter()
                .enumerate()
                .filter_map(|(nth, matcher)| {
                    if matcher.regex {
                        let regex = compile(&format!("^(?:{})", matcher.text));
                        regex.find(&path).map(|found| (true, found.end(), nth))
                    } else {
                        path.starts_with(&matcher.text).then_some((false, matcher.text.len(), nth))
                    }
                })
                .collect(),
        };
        for port in ports {
            for &(regex, len, nth) in &paths {
                let order = (
                    Reverse(kinds),
                    Reverse(plain),
                    Reverse(route.headers.len()),
                    Reverse(regex),
                    Reverse(if regex { route.regex_priority } else { 0 }),
                    Reverse(if regex { 0 } else { len }),
                    Reverse(port),
                    Reverse(for_websocket(route)),
                    index,
                    nth,
                );
                matches.push((order, len));
            }
        }
    }
    matches.sort();
    matches.first().map(|(order, len)| (order.8, *len))
}

fn for_websocket(route: &Route) -> bool {
    route.protocols == ["ws"] || route.protocols == ["ws", "wss"]
}

fn is_handshake(request: &Request) -> bool {
    let is = |name: &str, word: &str| request.headers.get(name).is_some_and(|value| value.to_str().expect("ASCII").to_lowercase().contains(word));
    request.method == "GET" && is("upgrade", "websocket") && is("connection", "upgrade")
}

/// Compiling takes far longer than matching, so each text is compiled once.
fn compile(text: &str) -> Regex {
    thread_local! {
        static KNOWN: RefCell<HashMap<String, Regex>> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| known.entry(text.to_owned()).or_insert_with(|| Regex::new(text).expect("a regex")).clone())
}

fn host_and_port(host: &str) -> (String, Option<u16>) {
    match host.split_once(':') {
        Some((name, port)) => (name.to_lowercase(), port.parse().ok()),
        None => (host.to_lowercase(), None),
    }
}

/// Whether a route's host covers a request's, and then whether it names the port.
fn host_matches(pattern: &str, host: &str, port: u16) -> Option<bool> {
    let (name, wanted) = host_and_port(pattern);
    let fits = wildcard_matches(&name, host) && wanted.is_none_or(|wanted| wanted == port);
    fits.then_some(wanted.is_some())
}

fn wildcard_matches(pattern: &str, name: &str) -> bool {
    let regex = format!("^{}$", regex::escape(pattern).replace(r"\*", ".+"));
    !name.is_empty() && compile(&regex).is_match(name)
}

fn sni_matches(pattern: &str, request: &Request) -> bool {
    request.sni.as_deref().is_some_and(|sni| wildcard_matches(pattern, &sni.to_lowercase()))
}

fn header_matches(request: &Request, name: &str, values: &[String]) -> bool {
    request.headers.get_all(name).iter().any(|given| {
        let given = given.to_str().expect("ASCII");
        values.iter().any(|value| match value.strip_prefix("~*") {
            Some(regex) => compile(&format!("(?i:{regex})")).is_match(given),
            None => value.eq_ignore_ascii_case(given),
        })
    })
}

/// Only what the generated paths need: merged slashes, dot segments, `%2e` and `%61`.
fn normalize(path: &str) -> String {
    let path = path.replace("%2e", ".").replace("%61", "a");
    let mut stack: Vec<&str> = Vec::new();
    let segments: Vec<_> = path.split('/').collect();
    for segment in &segments {
        match *segment {
            "" | "." => {}
            ".." => {
                stack.pop();
            }
            other => stack.push(other),
        }
    }
    let mut normal: String = stack.iter().map(|segment| format!("/{segment}")).collect();
    if normal.is_empty() || matches!(segments.last(), Some(&("" | "." | ".."))) {
        normal.push('/');
    }
    normal
}
