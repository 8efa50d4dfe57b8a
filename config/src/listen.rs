//! `listen`: one address or several, with what is spoken there.

use crate::words::{did_you_mean, listed};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// Words that may follow an address. Kong writes `ssl` and `http2`.
const WORDS: [&str; 4] = ["tls", "ssl", "http2", "proxy_protocol"];

/// One address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listen {
    /// `0.0.0.0:9443`, not yet checked.
    pub address: String,
    /// TLS, with HTTP/2 for clients that offer it.
    pub tls: bool,
    /// Connections begin with a PROXY protocol header, version 1 or 2.
    pub proxy_protocol: bool,
}

impl Listen {
    /// Reads `ADDRESS [tls|ssl] [http2] [proxy_protocol]`.
    ///
    /// # Errors
    /// What is wrong, as half a sentence.
    pub fn parse(text: &str) -> Result<Listen, String> {
        let mut words = text.split_whitespace();
        let mut listen = Listen { address: words.next().unwrap_or_default().into(), tls: false, proxy_protocol: false };
        for word in words {
            match word {
                "tls" | "ssl" => listen.tls = true,
                // Spoken at every address anyway: after TLS by ALPN, in cleartext by its preface.
                "http2" => {}
                "proxy_protocol" => listen.proxy_protocol = true,
                _ => {
                    let hint = did_you_mean(word, WORDS).unwrap_or_else(|| format!("known are {}", listed(WORDS.into_iter(), WORDS.len())));
                    return Err(format!("`{word}` can not follow an address to listen on: {hint}"));
                }
            }
        }
        Ok(listen)
    }
}

/// As [`Listen::parse`] reads it.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)?;
        f.write_str(if self.tls { " tls" } else { "" })?;
        f.write_str(if self.proxy_protocol { " proxy_protocol" } else { "" })
    }
}

/// The addresses of a door.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listens(pub Vec<Listen>);

impl Listens {
    /// One address in cleartext.
    pub fn plain(address: impl Into<String>) -> Listens {
        Listens(vec![Listen { address: address.into(), tls: false, proxy_protocol: false }])
    }

    /// The first address, by which the door is known to Weir itself.
    pub fn first(&self) -> &str {
        self.0.first().map_or("", |listen| &listen.address)
    }
}

impl fmt::Display for Listens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, listen) in self.0.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { ", " })?;
            listen.fmt(f)?;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Listens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Listens;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address like `0.0.0.0:9000`, or a list of them")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Listens, E> {
                Listen::parse(text).map(|listen| Listens(vec![listen])).map_err(E::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Listens, A::Error> {
                let mut all = Vec::new();
                while let Some(Listens(one)) = items.next_element()? {
                    all.extend(one);
                }
                match all.is_empty() {
                    true => Err(A::Error::custom("there is no address in this list")),
                    false => Ok(Listens(all)),
                }
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

impl serde::Serialize for Listens {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.collect_str(one),
            several => serializer.collect_seq(several.iter().map(ToString::to_string)),
        }
    }
}

impl JsonSchema for Listens {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Listens".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" }, "minItems": 1 }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_follow_the_address() {
        let read = |text: &str| Listen::parse(text).map(|l| (l.address.clone(), l.tls, l.proxy_protocol));
        assert_eq!(read("0.0.0.0:80"), Ok(("0.0.0.0:80".into(), false, false)));
        assert_eq!(read("[::]:443 http2 ssl proxy_protocol"), Ok(("[::]:443".into(), true, true)));
        assert_eq!(Listen::parse("1.2.3.4:5 ssl").unwrap().to_string(), "1.2.3.4:5 tls");
        let wrong = Listen::parse("0.0.0.0:80 proxy_protokol").unwrap_err();
        assert!(wrong.contains("did you mean `proxy_protocol`?"), "{wrong}");
    }
}
