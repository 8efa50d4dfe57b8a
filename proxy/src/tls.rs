//! TLS towards clients: which certificate for which name. What is made here belongs to one configuration; tickets outlive it, so that a
//! reload costs no client a full handshake.

use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{ClientHello, ProducesTickets, ResolvesServerCert, ServerSessionMemoryCache, StoresServerSessions},
    sign::CertifiedKey,
};
use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};
use weir_config::{Diagnostic, Document, Span};
use weir_gateway::tls::{certificates, private_key, provider};

/// Sessions of TLS 1.2 clients that do not take tickets.
const SESSIONS: usize = 4096;

/// The TLS of one door.
pub struct DoorTls {
    /// For handshakes.
    pub config: Arc<ServerConfig>,
    /// For requests.
    pub names: Arc<ServerNames>,
}

/// A chain with its key, perhaps another of another kind.
type Chains = Arc<Vec<Arc<CertifiedKey>>>;

/// Which certificate for which server name.
#[derive(Debug)]
pub struct ServerNames {
    exact: HashMap<String, Chains>,
    /// `*.example.com`, by what follows the star: `.example.com`.
    leading: HashMap<String, Chains>,
    /// `example.*`, by what is before the star: `example.`; the longest fits first.
    trailing: Vec<(String, Chains)>,
    /// For clients that name nobody, or somebody unknown.
    default: Chains,
}

impl ServerNames {
    /// The chains of a name in lower case; `None`: only the default is left.
    fn find(&self, name: &str) -> Option<&Chains> {
        self.exact
            .get(name)
            .or_else(|| self.leading.get(&name[name.find('.')?..]))
            .or_else(|| self.trailing.iter().find(|(start, _)| name.strip_prefix(start.as_str()).is_some_and(|rest| !rest.is_empty() && !rest.contains('.'))).map(|(_, chains)| chains))
    }

    /// Whether a request came by a connection that was made for somebody else (RFC 9110 section 15.5.20): name and `Host` differ, and
    /// the host has a certificate of its own that the client did not see. Hosts that share a certificate may share a connection (RFC 9113
    /// section 9.1.1), and one that has none can only come this way.
    pub fn misdirected(&self, sni: &str, host: &str) -> bool {
        let host = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(name, _)| name);
        if host.eq_ignore_ascii_case(sni) {
            return false;
        }
        let own = self.find(&host.to_ascii_lowercase());
        own.is_some_and(|own| !Arc::ptr_eq(own, self.find(&sni.to_ascii_lowercase()).unwrap_or(&self.default)))
    }
}

impl ResolvesServerCert for ServerNames {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls gives the name in lower case.
        let chains = hello.server_name().and_then(|name| self.find(name)).unwrap_or(&self.default);
        let fits = chains.iter().find(|chain| chain.key.choose_scheme(hello.signature_schemes()).is_some());
        fits.or(chains.first()).cloned()
    }
}

/// A certificate as a configuration gives it.
struct Given<'a> {
    cert: &'a str,
    key: &'a str,
    alt: Option<(&'a str, &'a str)>,
    names: &'a [String],
    span: &'a Span,
}

/// The TLS of both doors, edge first: each prefers its own certificates and knows the other's.
///
/// Errors: what is wrong with the certificates.
pub fn compile(document: &Document) -> Result<[Option<DoorTls>; 2], Vec<Diagnostic>> {
    let of_edge = document.edge.iter().flat_map(|e| &e.certificates);
    let edge: Vec<Given<'_>> =
        of_edge.map(|c| Given { cert: &c.cert, key: c.key.expose(), alt: None, names: &c.snis, span: &c.cert.span }).collect();
    let mut gateway = Vec::new();
    if let Some(section) = &document.gateway {
        for (index, c) in section.certificates.iter().enumerate() {
            // One without names that is shown to services is not for clients.
            let mut shown = section.services.iter().map(|s| s.client_certificate).chain(section.upstreams.iter().map(|u| u.client_certificate));
            if c.snis.is_empty() && shown.any(|of| of == Some(index)) {
                continue;
            }
            let alt = c.alt.as_ref().map(|(cert, key)| (cert.as_str(), key.expose()));
            gateway.push(Given { cert: &c.cert, key: c.key.expose(), alt, names: &c.snis, span: &c.span });
        }
    }
    let mut errors = Vec::new();
    let edge = load(&edge, &mut errors);
    let gateway = load(&gateway, &mut errors);
    let made = [door(edge.iter().chain(&gateway)), door(gateway.iter().chain(&edge))];
    let listens = [document.edge.as_ref().map(|e| &e.listen), document.gateway.as_ref().map(|g| &g.listen)];
    for (listens, made) in listens.into_iter().zip(&made) {
        if made.is_none() && listens.is_some_and(|l| l.0.iter().any(|l| l.tls)) && errors.is_empty() {
            errors.push(Diagnostic::error("listen", &Span::default(), "there is a TLS address, but no certificate for clients"));
        }
    }
    if errors.is_empty() { Ok(made) } else { Err(errors) }
}

/// A certificate, ready.
struct Loaded {
    chains: Chains,
    names: Vec<String>,
    /// The names stand in the configuration.
    named: bool,
}

fn load(given: &[Given<'_>], errors: &mut Vec<Diagnostic>) -> Vec<Loaded> {
    let mut all = Vec::new();
    for given in given {
        let mut chains = Vec::new();
        for (cert, key) in std::iter::once((given.cert, given.key)).chain(given.alt) {
            match chain(&provider(), cert, key) {
                Ok(chain) => chains.push(Arc::new(chain)),
                Err(why) => errors.push(Diagnostic::error("certificate", given.span, why)),
            }
        }
        let named = !given.names.is_empty();
        let names = if named { given.names.to_vec() } else { chains.iter().flat_map(|chain| names_in(chain)).collect() };
        all.push(Loaded { chains: Arc::new(chains), names, named });
    }
    all
}

fn chain(provider: &CryptoProvider, cert: &str, key: &str) -> Result<CertifiedKey, String> {
    let key = provider.key_provider.load_private_key(private_key(key)?).map_err(|_| "this private key is not supported: RSA of 2048 bits or more, ECDSA with P-256 or P-384, and Ed25519 are".to_string())?;
    let certified = CertifiedKey::new(certificates(cert)?, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
        // Of the first version of X.509, as `openssl x509 -req` makes it: it can not be read here, and its clients judge it.
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(why))) if matches!(why.0.downcast_ref(), Some(webpki::Error::UnsupportedCertVersion)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err("certificate and private key do not belong together".into()),
        Err(error) => Err(format!("the certificate can not be used: {error}")),
    }
}

/// The DNS names that stand in a certificate.
fn names_in(chain: &CertifiedKey) -> Vec<String> {
    let leaf = chain.cert.first().and_then(|der| webpki::EndEntityCert::try_from(der).ok());
    leaf.iter().flat_map(|leaf| leaf.valid_dns_names()).map(str::to_ascii_lowercase).collect()
}

/// What is first wins.
fn door<'a>(all: impl Iterator<Item = &'a Loaded> + Clone) -> Option<DoorTls> {
    let first = all.clone().next()?;
    let any = all.clone().find(|loaded| loaded.names.iter().any(|name| name == "*"));
    let mut names = ServerNames { exact: HashMap::new(), leading: HashMap::new(), trailing: vec![], default: any.unwrap_or(first).chains.clone() };
    // Names that somebody wrote down count more than those that merely stand in a certificate.
    for loaded in all.clone().filter(|l| l.named).chain(all.filter(|l| !l.named)) {
        for name in loaded.names.iter().filter(|name| *name != "*") {
            if let Some(rest) = name.strip_prefix('*') {
                names.leading.entry(rest.to_string()).or_insert_with(|| loaded.chains.clone());
            } else if let Some(start) = name.strip_suffix('*') {
                names.trailing.push((start.to_string(), loaded.chains.clone()));
            } else {
                names.exact.entry(name.clone()).or_insert_with(|| loaded.chains.clone());
            }
        }
    }
    names.trailing.sort_by_key(|(start, _)| std::cmp::Reverse(start.len()));
    let names = Arc::new(names);
    let (tickets, sessions) = memory();
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(rustls::ALL_VERSIONS).ok()?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(names.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = sessions;
    if let Some(tickets) = tickets {
        config.ticketer = tickets;
    }
    Some(DoorTls { config: Arc::new(config), names })
}

/// What lets clients come back without a full handshake. The keys of tickets change by themselves every few hours.
fn memory() -> (Option<Arc<dyn ProducesTickets>>, Arc<dyn StoresServerSessions>) {
    type Memory = (Option<Arc<dyn ProducesTickets>>, Arc<dyn StoresServerSessions>);
    static MEMORY: OnceLock<Memory> = OnceLock::new();
    let make = || -> Memory {
        let sessions: Arc<dyn StoresServerSessions> = ServerSessionMemoryCache::new(SESSIONS);
        (rustls::crypto::ring::Ticketer::new().ok(), sessions)
    };
    MEMORY.get_or_init(make).clone()
}
