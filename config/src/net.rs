//! Hosts, ports and addresses as configs write them.

use std::net::SocketAddr;

/// A host with an optional port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// Port, if given.
    pub port: Option<u16>,
}

impl HostPort {
    /// Reads `host`, `host:port`, `1.2.3.4:port`, `[::1]:port`.
    ///
    /// # Errors
    /// What is wrong, as half a sentence.
    pub fn parse(text: &str) -> Result<HostPort, String> {
        if text.contains("://") {
            return Err("a URL stands where a host is wanted".into());
        }
        let (host, port, v6) = if let Some(rest) = text.strip_prefix('[') {
            let (host, tail) = rest.split_once(']').ok_or("the `]` of the IPv6 address is missing")?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("`{host}` is not an IPv6 address"));
            }
            match tail.strip_prefix(':') {
                Some(port) => (host, Some(port), true),
                None if tail.is_empty() => (host, None, true),
                None => return Err("only a port may follow the `]`".into()),
            }
        } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
            (text, None, true)
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port), false),
                None => (text, None, false),
            }
        };
        if !v6 {
            check_host(host)?;
        }
        let port = match port {
            None => None,
            Some(port) => Some(parse_port(port)?),
        };
        Ok(HostPort { host: host.to_string(), port })
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(format!("`{text}` is not a port from 1 to 65535")),
    }
}

/// Whether a text can be a host name. Underscores are allowed, for container names have them.
///
/// # Errors
/// What is wrong, as half a sentence.
pub fn check_host(host: &str) -> Result<(), String> {
    if host.is_empty() {
        return Err("the host is missing".into());
    }
    if host.len() > 253 {
        return Err("the host name is longer than 253 characters".into());
    }
    if let Some(bad) = host.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))) {
        return Err(format!("`{}` cannot be in a host name", bad.escape_default()));
    }
    if host.trim_end_matches('.').split('.').any(|label| label.is_empty() || label.len() > 63) {
        return Err("a part of the host name is empty or longer than 63 characters".into());
    }
    if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') && host.parse::<std::net::Ipv4Addr>().is_err() {
        return Err(format!("`{host}` is not an IPv4 address"));
    }
    Ok(())
}

/// Reads an address to listen on.
///
/// # Errors
/// What is wrong, as half a sentence, and how to write it.
pub fn parse_listen(text: &str) -> Result<SocketAddr, (String, Option<String>)> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let hint = if let Some(port) = text.strip_prefix(':').or_else(|| text.strip_prefix("*:")).or(Some(text)).filter(|p| p.parse::<u16>().is_ok()) {
        Some(format!("write `0.0.0.0:{port}`"))
    } else if let Some(port) = text.strip_prefix("localhost:").filter(|p| p.parse::<u16>().is_ok()) {
        Some(format!("write `127.0.0.1:{port}`"))
    } else {
        Some("write it like `0.0.0.0:9000` or `[::]:9000`".to_string())
    };
    Err(("this is not an address to listen on".into(), hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        let parsed = |text: &str| HostPort::parse(text).map(|h| (h.host, h.port));
        assert_eq!(parsed("a.example"), Ok(("a.example".into(), None)));
        assert_eq!(parsed("api_service_1:8000"), Ok(("api_service_1".into(), Some(8000))));
        assert_eq!(parsed("[::1]:80"), Ok(("::1".into(), Some(80))));
        assert_eq!(parsed("::1"), Ok(("::1".into(), None)));
        for bad in ["", ":80", "a:0", "a:65536", "a:+1", "a b", "[::1", "[x]:1", "[::1]x", "1.2.3.4.5", "a..b", "a/b"] {
            assert!(HostPort::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn listen_addresses_say_how_to_write_them() {
        assert!(parse_listen("0.0.0.0:9000").is_ok());
        assert_eq!(parse_listen("9000").unwrap_err().1.as_deref(), Some("write `0.0.0.0:9000`"));
        assert_eq!(parse_listen("localhost:90").unwrap_err().1.as_deref(), Some("write `127.0.0.1:90`"));
    }
}
