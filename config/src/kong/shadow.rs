//! Routes that can never be reached, because an earlier one matches exactly the same.

use crate::Route;
use crate::reader::Context;
use std::collections::HashMap;

/// Warns of every path (or whole route, without paths) whose matchers an earlier route has as well.
pub(super) fn warn(cx: &Context<'_>, routes: &[Route]) {
    let mut first: HashMap<String, &Route> = HashMap::with_capacity(routes.len());
    for route in routes {
        let rest = others(route);
        let mut seen = |key: String, span| {
            let Some(earlier) = first.get(&key).copied() else {
                first.insert(key, route);
                return;
            };
            if std::ptr::eq(earlier, route) {
                cx.warning("shadowed", span, "this path stands in the list twice", None);
                return;
            }
            // Among equals the first in the file is taken, but a higher priority goes before.
            let (lost, wins) = if route.regex_priority > earlier.regex_priority { (earlier, route) } else { (route, earlier) };
            let message = format!("the route `{}` is never reached by this: `{}` matches the same", lost.name, wins.name);
            cx.warning("shadowed", span, message, earlier.span.is_known().then(|| format!("see {}", earlier.span)));
        };
        if route.paths.is_empty() {
            seen(rest, &route.span);
            continue;
        }
        for path in &route.paths {
            let kind = if path.regex { '~' } else { '=' };
            seen(format!("{rest}\n{kind}{}", path.text), &path.span);
        }
    }
}

/// The matchers beside the path, in an order that does not depend on the file's.
fn others(route: &Route) -> String {
    let sorted = |list: &[String]| {
        let mut list = list.to_vec();
        list.sort();
        list.dedup();
        list.join(",")
    };
    let mut headers: Vec<String> = route.headers.iter().map(|(name, values)| format!("{name}={}", sorted(values))).collect();
    headers.sort();
    format!("{}\n{}\n{}\n{}\n{}", sorted(&route.methods), sorted(&route.hosts), headers.join(";"), sorted(&route.snis), sorted(&route.protocols))
}
