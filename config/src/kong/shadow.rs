//! Routes that can never be reached, because an earlier one matches all that they match.

use crate::reader::Context;
use crate::{PathMatcher, Route, Span};
use std::collections::{HashMap, HashSet};

/// Routes with the same path are compared with so many earlier ones at most.
const MOST_COMPARED: usize = 64;

/// Warns of every path (or whole route, without paths) that an earlier route takes away. `unsound`: those whose matchers are not all known.
pub(super) fn warn(cx: &Context<'_>, routes: &[Route], unsound: &HashSet<usize>) {
    let mut earlier: HashMap<Kind<'_>, Vec<&Route>> = HashMap::with_capacity(routes.len());
    for (_, route) in routes.iter().enumerate().filter(|(index, _)| !unsound.contains(index)) {
        if route.paths.is_empty() {
            compare(cx, earlier.entry(Kind::of(route, None)).or_default(), route, &route.span);
            continue;
        }
        for path in &route.paths {
            compare(cx, earlier.entry(Kind::of(route, Some(path))).or_default(), route, &path.span);
        }
    }
}

fn compare<'a>(cx: &Context<'_>, before: &mut Vec<&'a Route>, route: &'a Route, span: &Span) {
    if before.iter().any(|other| std::ptr::eq(*other, route)) {
        cx.warning("shadowed", span, "this path stands in the list twice", None);
        return;
    }
    // Among equals the first in the file is taken, but a higher priority goes before.
    let lost = before.iter().take(MOST_COMPARED).find_map(|other| match route.regex_priority > other.regex_priority {
        true => covers(route, other).then_some((*other, route)),
        false => covers(other, route).then_some((route, *other)),
    });
    before.push(route);
    let Some((lost, wins)) = lost else { return };
    let same = covers(lost, wins);
    let message = match same {
        true => format!("the route `{}` is never reached by this: `{}` matches the same", lost.name, wins.name),
        false => format!("the route `{}` is never reached by this: `{}` matches all of it and more", lost.name, wins.name),
    };
    let other = if std::ptr::eq(wins, route) { lost } else { wins };
    cx.warning("shadowed", span, message, other.span.is_known().then(|| format!("see {}", other.span)));
}

/// What two routes must have in common for one to take the other's place: the path, and the kinds of matchers, for more kinds go first.
#[derive(PartialEq, Eq, Hash)]
struct Kind<'a> {
    path: Option<(&'a str, bool)>,
    hosts: bool,
    methods: bool,
    snis: bool,
    /// A route for WebSocket alone goes before its equals and takes nothing else.
    websocket: bool,
    headers: Vec<&'a str>,
}

impl<'a> Kind<'a> {
    fn of(route: &'a Route, path: Option<&'a PathMatcher>) -> Kind<'a> {
        let mut headers: Vec<&str> = route.headers.iter().map(|(name, _)| name.as_str()).collect();
        headers.sort_unstable();
        Kind {
            path: path.map(|path| (path.text.as_str(), path.regex)),
            hosts: !route.hosts.is_empty(),
            methods: !route.methods.is_empty(),
            snis: !route.snis.is_empty(),
            websocket: route.protocols.iter().all(|protocol| matches!(protocol.as_str(), "ws" | "wss")),
            headers,
        }
    }
}

/// Whether every request for `small` is one for `large` as well, given that their kinds are the same.
fn covers(large: &Route, small: &Route) -> bool {
    let all = |large: &[String], small: &[String]| small.iter().all(|one| large.contains(one));
    let headers = || small.headers.iter().all(|(name, values)| large.headers.iter().any(|(other, accepted)| name == other && all(accepted, values)));
    all(&large.methods, &small.methods) && all(&large.hosts, &small.hosts) && all(&large.snis, &small.snis) && all(&large.protocols, &small.protocols) && headers()
}
