//! Reads store addresses. No message quotes any part of the address: a password with an unescaped sign in it can end up anywhere.

use crate::StoreError;
use percent_encoding::percent_decode_str;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, io::tcp::TcpSettings};

/// How the servers are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// One server.
    Standalone,
    /// The hosts are sentinels; they know the server that is master under this name.
    Sentinel { master: String },
    /// The hosts are some nodes of a cluster.
    Cluster,
}

/// A name and a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
}

/// An address that was read. No `Debug`: it holds passwords.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) kind: Kind,
    pub(super) tls: bool,
    pub(super) hosts: Vec<(String, u16)>,
    pub(super) db: i64,
    /// For the Redis servers.
    pub(super) redis: Credentials,
    /// For the sentinels themselves (`sentinel_user`, `sentinel_password` in the query).
    pub(super) sentinel: Credentials,
}

fn wrong(message: impl Into<String>) -> StoreError {
    StoreError::Url(message.into())
}

fn decoded(text: &str, what: &str) -> Result<Option<String>, StoreError> {
    if text.is_empty() {
        return Ok(None);
    }
    let text = percent_decode_str(text).decode_utf8().map_err(|_| wrong(format!("{what} is not UTF-8 after percent-decoding")))?;
    Ok(Some(text.into_owned()))
}

fn number(text: &str) -> Option<u16> {
    // `parse` alone would take a sign.
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok().filter(|port| *port > 0) } else { None }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host(text: &str, default_port: u16, place: usize) -> Result<(String, u16), StoreError> {
    let (name, port) = if let Some(rest) = text.strip_prefix('[') {
        let (name, rest) = rest.split_once(']').ok_or_else(|| wrong(format!("host {place}: '[' without ']'")))?;
        if name.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(wrong(format!("host {place}: no IPv6 address between '[' and ']'")));
        }
        match rest.strip_prefix(':') {
            Some(port) => (name, Some(port)),
            None if rest.is_empty() => (name, None),
            None => return Err(wrong(format!("host {place}: only ':port' may follow ']'"))),
        }
    } else {
        match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        }
    };
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '@' | '[' | ']' | '%' | '\\')) {
        return Err(wrong(format!("host {place} is missing or has a sign that no host name has (in a user or password, special signs must be percent-encoded)")));
    }
    let port = match port {
        Some(port) => number(port).ok_or_else(|| wrong(format!("host {place}: the port is not a number from 1 to 65535")))?,
        None => default_port,
    };
    Ok((name.to_owned(), port))
}

impl Target {
    /// Reads `redis[s]://[user[:password]@]host[:port][/db]`, `redis[s]+sentinel://[user[:password]@]host[:port],…/master[?db=N]` and
    /// `redis[s]+cluster://[user[:password]@]host[:port],…`.
    pub(super) fn parse(url: &str) -> Result<Target, StoreError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("not a URL: '://' is missing (known are memory, redis://, rediss://, redis+sentinel://, redis+cluster://)"))?;
        let (base, topology) = scheme.split_once('+').unwrap_or((scheme, ""));
        let tls = match base {
            "redis" => false,
            "rediss" => true,
            _ => return Err(wrong("unknown scheme (known are memory, redis://, rediss://, redis+sentinel://, redis+cluster://)")),
        };
        if rest.contains('#') {
            return Err(wrong("a '#' part is not supported (in a password, write %23)"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (userinfo, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        let redis = Credentials { user: decoded(user, "the user")?, password: decoded(password, "the password")? };
        if redis.user.is_some() && redis.password.is_none() {
            return Err(wrong("a user without a password (for a password alone, write ':' before it)"));
        }

        let mut target = Target { kind: Kind::Standalone, tls, hosts: Vec::new(), db: 0, redis, sentinel: Credentials::default() };
        let mut default_port = 6379;
        match topology {
            "" => target.db = if path.is_empty() { 0 } else { database(path)? },
            "sentinel" => {
                let master = decoded(path, "the master's name")?.filter(|m| !m.contains('/'));
                target.kind = Kind::Sentinel { master: master.ok_or_else(|| wrong("after the sentinels, '/' and the master's name are needed"))? };
                default_port = 26379;
            }
            "cluster" => {
                if !path.is_empty() {
                    return Err(wrong("a cluster has only database 0: nothing may follow its hosts"));
                }
                target.kind = Kind::Cluster;
            }
            _ => return Err(wrong("unknown scheme after '+' (known are sentinel and cluster)")),
        }
        for (place, text) in hosts.split(',').enumerate() {
            target.hosts.push(host(text, default_port, place + 1)?);
        }
        if target.kind == Kind::Standalone && target.hosts.len() > 1 {
            return Err(wrong("several hosts need redis+sentinel:// or redis+cluster://"));
        }
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (name, &target.kind) {
                ("db", Kind::Standalone | Kind::Sentinel { .. }) => target.db = database(value)?,
                ("sentinel_user", Kind::Sentinel { .. }) => target.sentinel.user = decoded(value, "sentinel_user")?,
                ("sentinel_password", Kind::Sentinel { .. }) => target.sentinel.password = decoded(value, "sentinel_password")?,
                _ => return Err(wrong("unknown option after '?' (known are db, and for sentinels sentinel_user and sentinel_password)")),
            }
        }
        Ok(target)
    }

    /// `redis`, `redis+sentinel` or `redis+cluster`.
    pub(super) fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Standalone => "redis",
            Kind::Sentinel { .. } => "redis+sentinel",
            Kind::Cluster => "redis+cluster",
        }
    }

    /// The address without credentials.
    pub(super) fn address(&self) -> String {
        let scheme = if self.tls { self.kind_name().replacen("redis", "rediss", 1) } else { self.kind_name().to_owned() };
        let hosts: Vec<String> = self.hosts.iter().map(|(h, p)| if h.contains(':') { format!("[{h}]:{p}") } else { format!("{h}:{p}") }).collect();
        let hosts = hosts.join(",");
        match &self.kind {
            Kind::Standalone => format!("{scheme}://{hosts}/{}", self.db),
            Kind::Sentinel { master } => format!("{scheme}://{hosts}/{master}?db={}", self.db),
            Kind::Cluster => format!("{scheme}://{hosts}"),
        }
    }

    /// The addresses of the hosts, as the client library wants them.
    pub(super) fn addresses(&self) -> Vec<ConnectionAddr> {
        let address = |(host, port): &(String, u16)| {
            let (host, port) = (host.clone(), *port);
            if self.tls { ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None } } else { ConnectionAddr::Tcp(host, port) }
        };
        self.hosts.iter().map(address).collect()
    }

    /// How to log in at each of the hosts (meaningful for standalone and cluster).
    pub(super) fn connections(&self) -> redis::RedisResult<Vec<ConnectionInfo>> {
        let mut login = RedisConnectionInfo::default().set_db(self.db);
        if let Some(user) = &self.redis.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.redis.password {
            login = login.set_password(password);
        }
        let complete = |address: ConnectionAddr| Ok(address.into_connection_info()?.set_redis_settings(login.clone()).set_tcp_settings(tcp()));
        self.addresses().into_iter().map(complete).collect()
    }
}

/// Small answers must not wait for more to send.
pub(super) fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn database(text: &str) -> Result<i64, StoreError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse::<u32>().ok().filter(|_| digits).map(i64::from).ok_or_else(|| wrong("the database is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(url: &str) -> Target {
        Target::parse(url).unwrap_or_else(|e| panic!("{url}: {e}"))
    }

    fn refused(url: &str) -> String {
        match Target::parse(url) {
            Err(StoreError::Url(message)) => message,
            _ => panic!("{url} was not refused as a wrong URL"),
        }
    }

    #[test]
    fn standalone() {
        let t = read("redis://localhost");
        assert_eq!((t.address().as_str(), t.kind_name(), t.tls), ("redis://localhost:6379/0", "redis", false));
        assert_eq!(read("rediss://r.example:7000/3").address(), "rediss://r.example:7000/3");
        assert_eq!(read("redis://[::1]:7/?db=4").address(), "redis://[::1]:7/4");
        assert_eq!(read("redis://[::1]").hosts, [("::1".to_owned(), 6379)]);
        let t = read("redis://us%40er:p%3Aa%2Fss%40@h:1/2");
        assert_eq!((t.redis.user.as_deref(), t.redis.password.as_deref()), (Some("us@er"), Some("p:a/ss@")));
        assert_eq!(t.address(), "redis://h:1/2");
        let t = read("redis://:only@h");
        assert_eq!((t.redis.user, t.redis.password.as_deref()), (None, Some("only")));
        assert_eq!(read("redis://:a@b@h").redis.password.as_deref(), Some("a@b"));
    }

    #[test]
    fn sentinel() {
        let t = read("redis+sentinel://u:secret@s1:1,s2,[fe80::1]:3/my%20master?db=5&sentinel_password=hidden");
        assert_eq!(t.kind, Kind::Sentinel { master: "my master".into() });
        assert_eq!(t.hosts, [("s1".to_owned(), 1), ("s2".to_owned(), 26379), ("fe80::1".to_owned(), 3)]);
        assert_eq!((t.db, t.redis.user.as_deref(), t.redis.password.as_deref()), (5, Some("u"), Some("secret")));
        assert_eq!(t.sentinel.password.as_deref(), Some("hidden"));
        assert_eq!(t.address(), "redis+sentinel://s1:1,s2:26379,[fe80::1]:3/my master?db=5");
        assert_eq!(read("rediss+sentinel://s/m").address(), "rediss+sentinel://s:26379/m?db=0");
        refused("redis+sentinel://s1,s2");
        refused("redis+sentinel://s1,s2/");
        refused("redis+sentinel://s1/a/b");
    }

    #[test]
    fn cluster() {
        let t = read("redis+cluster://:pw@n1:7000,n2:7001,n3");
        assert_eq!((t.kind.clone(), t.hosts.len(), t.db), (Kind::Cluster, 3, 0));
        assert_eq!((t.address().as_str(), t.kind_name()), ("redis+cluster://n1:7000,n2:7001,n3:6379", "redis+cluster"));
        refused("redis+cluster://n1/1");
        refused("redis+cluster://n1?db=1");
    }

    #[test]
    fn what_is_wrong_is_said_without_quoting() {
        for url in [
            "", "memory2", "redis:/h", "http://h", "redis+x://h", "redis://", "redis://h:0", "redis://h:65536", "redis://h:+1", "redis://h/x", "redis://h/-1",
            "redis://h/1/2", "redis://a,b", "redis://user@h", "redis://h?x=1", "redis://h#insecure", "redis://[::1", "redis://[zz]", "redis://[::1]x", "redis://h h",
            "redis+sentinel://a,,b/m", "redis+sentinel://a/m?db=", "redis://%ff:x@h",
        ] {
            refused(url);
        }
        for url in ["redis://:se/cret@h", "redis://:se?cret@h", "redis://:se#cret@h", "redis://u:cret@h:port", "redis://secret@h", "redis+cluster://:cret@h/1"] {
            let message = refused(url);
            assert!(!message.contains("cret@") && !message.contains("secret"), "{url}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(url in ".{0,60}") {
            let _ = Target::parse(&url);
        }

        #[test]
        fn a_password_is_never_shown(password in "[!-~]{8,20}", host in "[a-z]{1,3}") {
            for scheme in ["redis", "redis+sentinel", "redis+cluster"] {
                match Target::parse(&format!("{scheme}://user:{password}@{host}:1/1")) {
                    Ok(target) => prop_assert!(!target.address().contains(&password)),
                    Err(error) => prop_assert!(!error.to_string().contains(&password)),
                }
            }
        }
    }
}
