//! `key-auth`: only callers with an API key pass.

mod form;

use crate::{
    Configured, Live,
    auth::{Caller, Gate, Index, challenge, is_realm},
    header_name, query, wrong,
};
use form::Form;
use http::{HeaderName, StatusCode, header, request};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Flow, Phases, Plugin, Reply, RequestContext, Sight};

const BY: &str = "key-auth";
/// So much of a body is searched for a key.
const MOST_BODY: usize = 64 * 1024;

/// Lets only requests with the API key of a consumer (`keyauth_credentials`) pass. The key is looked for in headers, then in the query, then, if asked,
/// in the body, by each of the names in turn; the first that is there counts. Without one, with several of the same name, or with one that nobody has, the
/// answer is 401 with `WWW-Authenticate: Key`. The upstream gets `X-Consumer-ID`, `-Custom-ID`, `-Username` and `X-Credential-Identifier`: the key's `id`, or a
/// name made of it that does not tell it. Fields, defaults and messages are Kong's.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Names of the header, query parameter or field of the body that holds the key.
    #[schemars(length(min = 1))]
    pub key_names: Vec<String>,
    /// Look in the headers.
    pub key_in_header: bool,
    /// Look in the query.
    pub key_in_query: bool,
    /// Look in the first 64 KB of the body: a form, a JSON object, or a form in several parts.
    pub key_in_body: bool,
    /// Do not forward the key. In a body it can only be taken out of those that are searched whole; the others are then refused with 413.
    pub hide_credentials: bool,
    /// Consumer (id or username) as whom requests without a good key pass. Also means that a request which another authentication plugin
    /// let pass needs no key.
    pub anonymous: Option<String>,
    /// Look at `OPTIONS` requests too. `false` lets them all pass.
    pub run_on_preflight: bool,
    /// `realm` of `WWW-Authenticate`.
    pub realm: Option<String>,
    /// Of Kong's cloud. Read for Kong's sake: consumers are those of the file.
    pub identity_realms: Option<serde_json::Value>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            key_names: vec!["apikey".into()],
            key_in_header: true,
            key_in_query: true,
            key_in_body: false,
            hide_credentials: false,
            anonymous: None,
            run_on_preflight: true,
            realm: None,
            identity_realms: None,
        }
    }
}

impl Configured for Config {
    const NAME: &'static str = BY;
    const PRIORITY: i32 = 1250;
    const EXAMPLE: &'static str = "key_names: [X-API-Key, apikey]\nkey_in_query: false\nhide_credentials: true\nrealm: shop\n";
    type Ready = Rules;

    fn ready(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let names: Vec<(HeaderName, String)> = self
            .key_names
            .into_iter()
            .filter_map(|name| header_name(at, "key_names", &name).map(|header| (header, name)).map_err(|e| errors.push(e)).ok())
            .collect();
        if names.is_empty() && errors.is_empty() {
            errors.push(wrong(at, "key_names", "at least one name is wanted"));
        }
        if !(self.key_in_header || self.key_in_query || self.key_in_body) {
            errors.push(wrong(at, "key_in_header", "a place for the key is wanted: `key_in_header`, `key_in_query` or `key_in_body`"));
        }
        if self.realm.as_deref().is_some_and(|realm| !is_realm(realm)) {
            errors.push(wrong(at, "realm", "a realm has no quotes, backslashes or characters beyond ASCII"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Rules {
            names,
            header: self.key_in_header,
            query: self.key_in_query,
            body: self.key_in_body,
            hide: self.hide_credentials,
            anonymous: self.anonymous,
            run_on_preflight: self.run_on_preflight,
            challenge: challenge("Key", self.realm.as_deref()),
        })
    }

    fn build(mut ready: Rules, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin> {
        let index = live.credentials.of(env.consumers);
        let gate = Gate::new(BY, ready.anonymous.take(), ready.run_on_preflight, &index, env);
        Arc::new(KeyAuth { rules: ready, index, gate })
    }
}

/// The configuration, checked.
pub struct Rules {
    names: Vec<(HeaderName, String)>,
    header: bool,
    query: bool,
    body: bool,
    hide: bool,
    anonymous: Option<String>,
    run_on_preflight: bool,
    challenge: String,
}

struct KeyAuth {
    rules: Rules,
    index: Arc<Index>,
    gate: Gate,
}

impl KeyAuth {
    fn refuse(&self, cx: &RequestContext, req: &request::Parts, message: &str) -> Reply {
        let reply = Reply::error(BY, cx, req.headers.get(header::ACCEPT), StatusCode::UNAUTHORIZED, message);
        reply.with("www-authenticate", &self.rules.challenge)
    }

    /// The values of the first place that has any, for one name.
    fn values(&self, header: &HeaderName, name: &str, req: &request::Parts, form: Option<&Form>) -> Vec<String> {
        let mut found = Vec::new();
        if self.rules.header {
            found.extend(req.headers.get_all(header).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()));
        }
        if found.is_empty() && self.rules.query {
            found.extend(query::values(req.uri.query().unwrap_or_default(), name));
        }
        if let (true, Some(form)) = (found.is_empty(), form) {
            found = form.values(name);
        }
        found
    }

    /// Errors: the message of the 401.
    fn check(&self, cx: &RequestContext, req: &request::Parts) -> Result<Caller, &'static str> {
        let form = match (&cx.body, self.rules.body) {
            (Some(seen), true) => Form::read(req.headers.get(header::CONTENT_TYPE), &seen.bytes[..seen.bytes.len().min(MOST_BODY)]),
            _ => None,
        };
        let mut key = None;
        for (header, name) in &self.rules.names {
            let mut values = self.values(header, name, req, form.as_ref());
            match values.len() {
                0 => {}
                1 => {
                    key = values.pop();
                    break;
                }
                _ => return Err("Duplicate API key found"),
            }
        }
        let key = key.filter(|key| !key.is_empty()).ok_or("No API key found in request")?;
        let (consumer, id) = self.index.key(&key).ok_or("Unauthorized")?;
        Ok(Caller::known(consumer, id))
    }

    /// Takes the key out of what is forwarded, wherever it may stand. `false`: it stands in a body that is too large for that.
    fn hide(&self, cx: &mut RequestContext, req: &mut request::Parts) -> bool {
        for (header, name) in &self.rules.names {
            req.headers.remove(header);
            query::remove(req, name);
        }
        let Some(seen) = cx.body.as_mut().filter(|seen| self.rules.body && !seen.bytes.is_empty()) else { return true };
        let names: Vec<&str> = self.rules.names.iter().map(|(_, name)| name.as_str()).collect();
        let kind = req.headers.get(header::CONTENT_TYPE);
        if !seen.whole {
            return Form::read(kind, &seen.bytes).is_none_or(|form| names.iter().all(|name| form.values(name).is_empty()));
        }
        if let Some(rest) = form::without(kind, &seen.bytes, &names) {
            seen.bytes = rest.into();
            cx.replace_body = Some(seen.bytes.clone());
        }
        true
    }
}

impl Plugin for KeyAuth {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn sees_of_request(&self) -> Sight {
        // A key is also taken out of the target.
        if self.rules.hide {
            return Sight::All;
        }
        Sight::Only(self.rules.names.iter().map(|(header, _)| header.clone()).chain([header::ACCEPT]).collect())
    }

    fn reads_body(&self) -> Option<usize> {
        self.rules.body.then_some(MOST_BODY)
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        if self.gate.steps_back(cx, &req.method) {
            return Flow::Continue;
        }
        let found = self.check(cx, req).map_err(|message| self.refuse(cx, req, message));
        if self.rules.hide && found.is_ok() && !self.hide(cx, req) {
            let message = "Request body too large to take the API key out of it";
            return Flow::Reply(Reply::error(BY, cx, req.headers.get(header::ACCEPT), StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        self.gate.decide(cx, found)
    }
}

#[cfg(test)]
mod tests;
