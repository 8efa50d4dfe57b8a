//! What the authentication plugins share: consumers' credentials ready to be looked up, and what becomes of a request once it is known
//! who makes it.
//!
//! Several such plugins on one route: without `anonymous` each of them must let the request pass, and the last one names the caller; with
//! `anonymous` one is enough, and the others step back.

use crate::jwt::Credential;
use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac, rand};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};
use weir_gateway::{BuildEnv, Consumer, Environment, Fields, Flow, Identity, Reply, RequestContext};

const ID: HeaderName = HeaderName::from_static("x-consumer-id");
const CUSTOM_ID: HeaderName = HeaderName::from_static("x-consumer-custom-id");
const USERNAME: HeaderName = HeaderName::from_static("x-consumer-username");
const CREDENTIAL: HeaderName = HeaderName::from_static("x-credential-identifier");
const ANONYMOUS: HeaderName = HeaderName::from_static("x-anonymous-consumer");

type Consumers = Vec<Arc<Consumer>>;

/// The consumers of one configuration with their credentials. Secrets are kept as hashes under a key of this process, so that neither
/// a look-up nor a comparison tells by its time how much of a guess was right.
pub(crate) struct Index {
    hasher: hmac::Key,
    by_id: HashMap<String, Arc<Consumer>>,
    by_username: HashMap<String, Arc<Consumer>>,
    by_custom_id: HashMap<String, Arc<Consumer>>,
    keys: HashMap<Vec<u8>, (Arc<Consumer>, String)>,
    passwords: HashMap<String, (Arc<Consumer>, Vec<u8>)>,
    tokens: HashMap<String, (Arc<Consumer>, Credential)>,
}

impl Index {
    fn new(consumers: &Consumers) -> Index {
        let mut secret = [0; 32];
        // It fails only where the system has no randomness at all; the hashes then still stand for the secrets.
        if rand::fill(&mut secret).is_err() {
            tracing::error!("the system gives no random bytes: credentials are hashed without a secret");
        }
        let mut index = Index {
            hasher: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            by_id: HashMap::new(),
            by_username: HashMap::new(),
            by_custom_id: HashMap::new(),
            keys: HashMap::new(),
            passwords: HashMap::new(),
            tokens: HashMap::new(),
        };
        for consumer in consumers {
            let entity = &consumer.entity;
            index.by_id.insert(entity.id.clone(), consumer.clone());
            if let Some(name) = &entity.username {
                index.by_username.insert(name.clone(), consumer.clone());
            }
            if let Some(custom_id) = &entity.custom_id {
                index.by_custom_id.insert(custom_id.clone(), consumer.clone());
            }
            // An empty secret would let everybody in.
            for credential in entity.keys.iter().filter(|credential| !credential.key.is_empty()) {
                let key = credential.key.expose();
                let id = credential.id.clone().unwrap_or_else(|| credential_id(&entity.id, key));
                index.keys.insert(index.hash(&[key]), (consumer.clone(), id));
            }
            for (user, password) in &entity.basic {
                let hash = index.hash(&[user, password.expose()]);
                index.passwords.insert(user.clone(), (consumer.clone(), hash));
            }
            for jwt in &entity.jwt {
                index.tokens.insert(jwt.key.clone(), (consumer.clone(), Credential::new(jwt)));
            }
        }
        index
    }

    fn hash(&self, parts: &[&str]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.hasher);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        context.sign().as_ref().to_vec()
    }

    /// Whose API key this is, and the name of that key, which does not tell it.
    pub(crate) fn key(&self, key: &str) -> Option<(&Arc<Consumer>, &str)> {
        self.keys.get(&self.hash(&[key])).map(|(consumer, id)| (consumer, id.as_str()))
    }

    /// Whether there is such a user, whatever the password.
    pub(crate) fn has_user(&self, user: &str) -> bool {
        self.passwords.contains_key(user)
    }

    /// Whose user name and password these are.
    pub(crate) fn password(&self, user: &str, password: &str) -> Option<&Arc<Consumer>> {
        // Hashed for unknown users too: the time does not tell which users there are.
        let hash = self.hash(&[user, password]);
        let (consumer, known) = self.passwords.get(user)?;
        verify_slices_are_equal(known, &hash).is_ok().then_some(consumer)
    }

    /// The credential that a token names.
    pub(crate) fn token(&self, key: &str) -> Option<(&Arc<Consumer>, &Credential)> {
        self.tokens.get(key).map(|(consumer, credential)| (consumer, credential))
    }

    /// By id or user name.
    pub(crate) fn consumer(&self, name: &str) -> Option<&Arc<Consumer>> {
        self.by_id.get(name).or_else(|| self.by_username.get(name))
    }

    /// By `custom_id`, id or user name.
    pub(crate) fn claimed(&self, name: &str) -> Option<&Arc<Consumer>> {
        self.by_custom_id.get(name).or_else(|| self.consumer(name))
    }
}

/// The name of an API key, in the shape of a UUID: the same on all instances and after every restart.
fn credential_id(consumer: &str, key: &str) -> String {
    let digest = Sha256::new().chain_update(b"api key\0").chain_update(consumer).chain_update(b"\0").chain_update(key).finalize();
    let bits = digest.iter().take(16).fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    // Version 8 (RFC 9562): free contents.
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x8 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Indexes, so that the plugins of one configuration share one.
#[derive(Default)]
pub(crate) struct Indexes(Mutex<Option<(Weak<Consumers>, Weak<Index>)>>);

impl Indexes {
    /// The index of these consumers.
    pub(crate) fn of(&self, consumers: &Arc<Consumers>) -> Arc<Index> {
        let mut last = self.0.lock();
        if let Some((whose, index)) = last.as_ref()
            && let (Some(whose), Some(index)) = (whose.upgrade(), index.upgrade())
            && Arc::ptr_eq(&whose, consumers)
        {
            return index;
        }
        let index = Arc::new(Index::new(consumers));
        *last = Some((Arc::downgrade(consumers), Arc::downgrade(&index)));
        index
    }
}

/// Who makes a request.
pub(crate) struct Caller {
    /// `None` for the bearer of a foreign token that is no consumer.
    pub(crate) consumer: Option<Arc<Consumer>>,
    /// `None` for the anonymous consumer.
    pub(crate) identity: Option<Arc<Identity>>,
}

impl Caller {
    /// A consumer and the name of the credential that it showed.
    pub(crate) fn known(consumer: &Arc<Consumer>, credential: &str) -> Caller {
        let entity = &consumer.entity;
        let subject = entity.username.as_ref().or(entity.custom_id.as_ref()).unwrap_or(&entity.id).clone();
        Caller { consumer: Some(consumer.clone()), identity: Some(Arc::new(Identity { subject, credential: Some(credential.into()), claims: None })) }
    }
}

/// Groups that an issuer of tokens says the caller is in, for `acl`.
#[derive(Clone)]
pub(crate) struct Groups(pub(crate) Arc<Vec<String>>);

/// What every authentication plugin does alike.
pub(crate) struct Gate {
    by: &'static str,
    anonymous: Option<(String, Option<Arc<Consumer>>)>,
    run_on_preflight: bool,
    environment: Arc<Environment>,
}

impl Gate {
    pub(crate) fn new(by: &'static str, anonymous: Option<String>, run_on_preflight: bool, index: &Index, env: &BuildEnv<'_>) -> Gate {
        let anonymous = anonymous.filter(|name| !name.is_empty()).map(|name| {
            let consumer = index.consumer(&name).cloned();
            if consumer.is_none() {
                tracing::error!(plugin = by, scope = env.scope, "there is no consumer `{name}` to be the anonymous one: requests without credentials get 500");
            }
            (name, consumer)
        });
        Gate { by, anonymous, run_on_preflight, environment: env.environment.clone() }
    }

    /// Whether this request is not looked at: a preflight that is let through, or one that another plugin vouches for.
    pub(crate) fn steps_back(&self, cx: &RequestContext, method: &Method) -> bool {
        (!self.run_on_preflight && *method == Method::OPTIONS) || (self.anonymous.is_some() && cx.identity.is_some())
    }

    /// Lets the caller pass, or the anonymous consumer, or answers.
    pub(crate) fn decide(&self, cx: &mut RequestContext, found: Result<Caller, Reply>) -> Flow {
        let (outcome, caller) = match (found, &self.anonymous) {
            (Ok(caller), _) => ("passed", caller),
            (Err(_), Some((_, Some(consumer)))) => ("anonymous", Caller { consumer: Some(consumer.clone()), identity: None }),
            (Err(_), Some((name, None))) => {
                self.environment.metrics.plugin(self.by, "error");
                let message = format!("anonymous consumer {name} is configured but doesn't exist");
                return Flow::Reply(Reply::error(self.by, cx, None, StatusCode::INTERNAL_SERVER_ERROR, &message));
            }
            (Err(reply), None) => {
                self.environment.metrics.plugin(self.by, "refused");
                return Flow::Reply(reply);
            }
        };
        self.environment.metrics.plugin(self.by, outcome);
        let entity = caller.consumer.as_ref().map(|c| &c.entity);
        let credential = caller.identity.as_ref().and_then(|i| i.credential.as_deref());
        let fields = &mut cx.caller_fields;
        fields.reserve(4);
        set(fields, ID, entity.map(|e| e.id.as_str()));
        set(fields, CUSTOM_ID, entity.and_then(|e| e.custom_id.as_deref()));
        set(fields, USERNAME, entity.and_then(|e| e.username.as_deref()));
        set(fields, CREDENTIAL, credential);
        set(fields, ANONYMOUS, caller.identity.is_none().then_some("true"));
        cx.consumer = caller.consumer;
        cx.identity = caller.identity;
        Flow::Continue
    }
}

/// Sets a field, or removes it.
fn set(fields: &mut Fields, name: HeaderName, value: Option<&str>) {
    match value.map(|v| HeaderValue::from_bytes(v.as_bytes())) {
        Some(Ok(value)) => fields.set(name, value),
        _ => fields.remove(&name),
    };
}

/// A challenge (RFC 9110 section 11.6.1): the scheme, and a realm if there is one.
pub(crate) fn challenge(scheme: &str, realm: Option<&str>) -> String {
    match realm {
        Some(realm) => format!("{scheme} realm=\"{realm}\""),
        None => scheme.to_owned(),
    }
}

/// Whether a realm can stand between quotes in a header as it is.
pub(crate) fn is_realm(realm: &str) -> bool {
    realm.chars().all(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\'))
}
