//! How long things took, told to the client, by Weir's names or by Kong's.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::time::Duration;
use weir_config::HeaderNames;
use weir_gateway::RequestContext;

struct Names {
    upstream: HeaderName,
    proxy: HeaderName,
    response: HeaderName,
    id: Option<HeaderName>,
}

static WEIR: Names = Names {
    upstream: HeaderName::from_static("x-weir-upstream-latency"),
    proxy: HeaderName::from_static("x-weir-proxy-latency"),
    response: HeaderName::from_static("x-weir-response-latency"),
    id: None,
};
static KONG: Names = Names {
    upstream: HeaderName::from_static("x-kong-upstream-latency"),
    proxy: HeaderName::from_static("x-kong-proxy-latency"),
    response: HeaderName::from_static("x-kong-response-latency"),
    id: Some(KONG_REQUEST_ID),
};
/// The request's id by Kong's name.
pub const KONG_REQUEST_ID: HeaderName = HeaderName::from_static("x-kong-request-id");

/// Puts the times on an answer, in milliseconds. One from the service: how long the service took, and how long the gateway did before
/// it asked. One made here: how long that took. What a service says under these names goes.
pub fn tell(headers: &mut HeaderMap, cx: &RequestContext, names: HeaderNames) {
    let names = match names {
        HeaderNames::Off => return,
        HeaderNames::Weir => &WEIR,
        HeaderNames::Kong => &KONG,
    };
    let ours = [&names.upstream, &names.proxy, &names.response];
    // Few answers have one of these, and looking at the names costs less than to ask for each of them.
    if headers.keys().any(|name| name.as_str().starts_with("x-") && ours.contains(&name)) {
        for name in ours {
            headers.remove(name);
        }
    }
    match (cx.answered_by, cx.times.forwarded, cx.times.upstream) {
        ("upstream", Some(forwarded), Some(answered)) => {
            headers.insert(&names.upstream, millis(answered.saturating_sub(forwarded)));
            headers.insert(&names.proxy, millis(forwarded));
            headers.append(header::VIA, HeaderValue::from_static("1.1 weir"));
        }
        _ => {
            headers.insert(&names.response, millis(cx.started.elapsed()));
        }
    }
    if let (Some(name), Ok(id)) = (&names.id, HeaderValue::from_str(cx.id.as_str())) {
        headers.insert(name, id);
    }
}

/// Whether [`tell`] would take a service's field of this name away.
pub fn are_ours(names: HeaderNames, name: &[u8]) -> bool {
    let names = match names {
        HeaderNames::Off => return false,
        HeaderNames::Weir => &WEIR,
        HeaderNames::Kong => &KONG,
    };
    let all = [Some(&names.upstream), Some(&names.proxy), Some(&names.response), names.id.as_ref()];
    matches!(name, [b'x' | b'X', b'-', ..]) && all.into_iter().flatten().any(|ours| ours.as_str().as_bytes().eq_ignore_ascii_case(name))
}

/// Writes the lines of [`tell`] for an answer from the service.
pub fn write(out: &mut Vec<u8>, cx: &RequestContext, names: HeaderNames) {
    let names = match names {
        HeaderNames::Off => return,
        HeaderNames::Weir => &WEIR,
        HeaderNames::Kong => &KONG,
    };
    let (forwarded, answered) = (cx.times.forwarded.unwrap_or_default(), cx.times.upstream.unwrap_or_default());
    let mut buffer = itoa::Buffer::new();
    for (name, time) in [(&names.upstream, answered.saturating_sub(forwarded)), (&names.proxy, forwarded)] {
        for part in [name.as_str(), ": ", buffer.format(in_millis(time)), "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    out.extend_from_slice(b"via: 1.1 weir\r\n");
    for part in names.id.iter().flat_map(|name| [name.as_str(), ": ", cx.id.as_str(), "\r\n"]) {
        out.extend_from_slice(part.as_bytes());
    }
}

fn in_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds. Most are few, and those need no text of their own.
fn millis(time: Duration) -> HeaderValue {
    const FEW: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let millis = in_millis(time);
    match usize::try_from(millis).ok().and_then(|millis| FEW.get(millis)) {
        Some(text) => HeaderValue::from_static(text),
        None => HeaderValue::from(millis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_gateway::{Client, Scheme};

    fn told(names: HeaderNames, answered_by: &'static str) -> Vec<(String, String)> {
        let ip = std::net::IpAddr::from([192, 0, 2, 7]);
        let mut cx = RequestContext::new(Client { ip, peer: ip, scheme: Scheme::Http, host: "a".into(), port: 80, trusted: false, sni: None });
        cx.answered_by = answered_by;
        cx.times.forwarded = Some(Duration::from_micros(2900));
        cx.times.upstream = Some(Duration::from_millis(45));
        let mut headers = HeaderMap::new();
        headers.insert("x-kong-proxy-latency", HeaderValue::from_static("made up"));
        headers.insert(header::VIA, HeaderValue::from_static("1.1 site"));
        tell(&mut headers, &cx, names);
        let id = cx.id.as_str().to_owned();
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().replace(&id, "id"))).collect()
    }

    fn all(names: HeaderNames, answered_by: &'static str) -> String {
        let mut list: Vec<String> = told(names, answered_by).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        list.sort();
        list.join(" ")
    }

    #[test]
    fn each_kind_of_answer_has_its_fields() {
        assert_eq!(all(HeaderNames::Kong, "upstream"), "via=1.1 site via=1.1 weir x-kong-proxy-latency=2 x-kong-request-id=id x-kong-upstream-latency=42");
        assert_eq!(all(HeaderNames::Weir, "upstream"), "via=1.1 site via=1.1 weir x-kong-proxy-latency=made up x-weir-proxy-latency=2 x-weir-upstream-latency=42");
        assert_eq!(all(HeaderNames::Off, "upstream"), "via=1.1 site x-kong-proxy-latency=made up");
        let made_here = told(HeaderNames::Kong, "key-auth");
        let name = |wanted: &str| made_here.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
        assert!(name("x-kong-response-latency").is_some_and(|ms| ms.parse::<u64>().is_ok()));
        assert_eq!((name("x-kong-upstream-latency"), name("x-kong-proxy-latency"), name("x-kong-request-id")), (None, None, Some("id".into())));
    }
}
