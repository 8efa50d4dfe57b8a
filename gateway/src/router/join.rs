//! The path that the upstream sees.

use super::normalize::escape;
use weir_config::PathHandling;

/// Joins a service's path and a request's, as Kong does.
///
/// `service_path` is empty or begins with `/`; `path` is the normalized request path and `prefix_len` the part of it that the
/// route matched, in bytes (both from [`super::Match`]). With `strip_path` that part is cut off first. `V0` puts exactly one
/// slash between the two halves and keeps a trailing one only if the request had it; `V1` appends the request path without
/// its first slash to the service path as it is.
///
/// The result begins with `/`, holds no character that RFC 3986 keeps out of a path, and has no query.
pub fn upstream_path(service_path: &str, strip_path: bool, prefix_len: usize, path: &str, handling: PathHandling) -> String {
    let base = if service_path.is_empty() { "/" } else { service_path };
    // Without a path matcher, the first slash counts as matched.
    let rest = without_dots(path.get(prefix_len.max(1)..).unwrap_or_default());
    let joined = match (handling, strip_path) {
        (PathHandling::V0, true) => replace(base, rest, path),
        (PathHandling::V0, false) => append(base, path),
        (PathHandling::V1, true) => match base.strip_suffix('/') {
            Some(stem) if rest.starts_with('/') => [stem, rest].concat(),
            _ => [base, rest].concat(),
        },
        (PathHandling::V1, false) => [base, path.strip_prefix('/').unwrap_or(path)].concat(),
    };
    escape(joined)
}

/// `V0` with the matched part cut off.
fn replace(base: &str, rest: &str, path: &str) -> String {
    let stem = base.strip_suffix('/').unwrap_or(base);
    if !rest.is_empty() {
        return [stem, "/", rest.strip_prefix('/').unwrap_or(rest)].concat();
    }
    // Nothing is left: a slash at the end is the request's, not the service's. The root's own slash counts only beside another.
    let slash = path.ends_with('/') && (path.len() > 1 || base.ends_with('/'));
    if stem.is_empty() || slash { [stem, "/"].concat() } else { stem.to_owned() }
}

/// `V0` with the whole request path.
fn append(base: &str, path: &str) -> String {
    match base.strip_suffix('/') {
        Some(stem) => [stem, "/", path.strip_prefix('/').unwrap_or(path)].concat(),
        None if path == "/" => base.to_owned(),
        None => [base, path].concat(),
    }
}

/// A prefix that ended inside a segment can leave a new dot segment (`/docs` cut from `/docs../x`), which would climb out of
/// the service's path.
fn without_dots(rest: &str) -> &str {
    match rest {
        "." | ".." => "",
        _ => rest.strip_prefix("./").or_else(|| rest.strip_prefix("../")).unwrap_or(rest),
    }
}
