//! Durations, sizes, secrets and the small either-or values of the document.

use crate::document::{ApiTarget, GuestIssue, StoreConfig, Ttl};
use crate::{NameServer, Spanned, de};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error as _, Unexpected, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// A length of time: `250ms`, `60s`, `4m30s`, `1h30m`, `1d`. A number without a unit is refused, except 0.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub Duration);

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
/// A hundred years; more is a slip, and sums of times must not overflow.
const LONGEST: u64 = 100 * 365 * 86_400_000;

impl Millis {
    /// This many seconds.
    pub const fn secs(seconds: u64) -> Millis {
        Millis(Duration::from_secs(seconds))
    }

    /// The length.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// Reads a duration.
    ///
    /// # Errors
    /// What is wrong with it, as half a sentence.
    pub fn parse(text: &str) -> Result<Millis, String> {
        let text = text.trim();
        if text == "0" {
            return Ok(Millis(Duration::ZERO));
        }
        if text.is_empty() {
            return Err("a duration like `60s` is wanted".into());
        }
        let mut total: u64 = 0;
        let mut rest = text;
        let mut last = u64::MAX;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
            let (number, tail) = rest.split_at(digits);
            let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, tail) = tail.split_at(letters);
            if number.is_empty() {
                return Err("this is not a duration like `60s` or `4m30s`".into());
            }
            if unit.is_empty() {
                return Err(format!("`{number}` lacks a unit: write `{number}s` or `{number}ms`"));
            }
            let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
                return Err(format!("`{unit}` is not a unit of time: use d, h, m, s or ms"));
            };
            if *factor >= last {
                return Err("the units of a duration go from large to small, each once: `1h30m`".into());
            }
            last = *factor;
            let part = part_millis(number, *factor).ok_or("this is not a duration like `60s` or `4m30s`")?;
            total = total.saturating_add(part);
            rest = tail;
        }
        if total > LONGEST {
            return Err("this is longer than 100 years".into());
        }
        Ok(Millis(Duration::from_millis(total)))
    }
}

/// `1.5` of a unit: whole numbers exactly, fractions to the millisecond.
fn part_millis(number: &str, factor: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return Some(whole.saturating_mul(factor));
    }
    let (whole, fraction) = number.split_once('.')?;
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') || fraction.len() > 9 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let scale = 10u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let fraction: u64 = fraction.parse().ok()?;
    let small = u128::from(fraction) * u128::from(factor) / u128::from(scale);
    whole.saturating_mul(factor).checked_add(u64::try_from(small).ok()?)
}

/// The shortest spelling that [`Millis::parse`] reads back as the same length (to the millisecond).
impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, factor) in UNITS {
            if rest >= factor {
                write!(f, "{}{unit}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A number of bytes: `512`, `64KB`, `2MB`, `1GiB`. K, M and G are powers of 1024, with or without `i` and `B`, in any case, as
/// in the configuration of nginx and Redis.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

impl Size {
    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Reads a size.
    ///
    /// # Errors
    /// What is wrong with it, as half a sentence.
    pub fn parse(text: &str) -> Result<Size, String> {
        let text = text.trim();
        let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            "t" | "tb" | "tib" => 1 << 40,
            _ if number.is_empty() => return Err("this is not a size like `2MB`".into()),
            _ => return Err("this is not a unit of size: use B, KB, MB, GB or TB".into()),
        };
        let whole = part_millis(number, factor).ok_or("this is not a size like `2MB`")?;
        if whole > i64::MAX as u64 {
            return Err("this is larger than any machine".into());
        }
        Ok(Size(whole))
    }
}

/// In the largest unit that loses nothing.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("TB", 40), ("GB", 30), ("MB", 20), ("KB", 10)] {
            if self.0 >= 1 << shift && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A text that is shown to nobody: `Debug` and `Display` print `***`.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// Whether `shown` is this secret, and the secret not empty. Compared to the end, so that the time tells nothing of where they differ.
    pub fn matches(&self, shown: &[u8]) -> bool {
        let known = self.expose().as_bytes();
        !known.is_empty() && known.len() == shown.len() && known.iter().zip(shown).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Names of the `format`s that the walk over a node checks by itself, with the function that checks.
pub(crate) fn check_format(format: &str, text: &str) -> Option<Result<(), String>> {
    Some(match format {
        "weir-duration" => Millis::parse(text).map(drop),
        "weir-size" => Size::parse(text).map(drop),
        "weir-ttl" => parse_ttl(text).map(drop),
        "weir-url" => check_url(text),
        "weir-name-server" => NameServer::parse(text).map(drop),
        _ => return None,
    })
}

fn parse_ttl(text: &str) -> Result<Ttl, String> {
    if text == "origin" {
        return Ok(Ttl::Origin);
    }
    Millis::parse(text).map(|time| Ttl::For(time.0)).map_err(|why| if text.starts_with(|c: char| c.is_ascii_digit()) { why } else { "a duration like `60s`, or `origin`, is wanted".into() })
}

/// Whether a text is an `http://` or `https://` URL with a host.
pub(crate) fn check_url(text: &str) -> Result<(), String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err("a URL that begins with `http://` or `https://` is wanted".into());
    };
    if !matches!(scheme, "http" | "https") {
        return Err("the URL must begin with `http://` or `https://`".into());
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    let host_port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    crate::net::HostPort::parse(host_port).map(drop).map_err(|why| format!("in the URL, {why}"))
}

struct TextVisitor<T> {
    wanted: &'static str,
    parse: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for TextVisitor<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.wanted)
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }
    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        (self.parse)(&number.to_string()).map_err(E::custom)
    }
    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        (self.parse)(&number.to_string()).map_err(E::custom)
    }
    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<T, E> {
        Err(E::invalid_type(Unexpected::Bool(value), &self.wanted))
    }
}

macro_rules! from_text {
    ($type:ty, $name:literal, $wanted:literal, $parse:expr, $schema:tt) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(TextVisitor { wanted: $wanted, parse: $parse })
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

from_text!(Millis, "Duration", "a duration like `60s`", Millis::parse, {
    "type": ["string", "integer"], "format": "weir-duration", "examples": ["60s", "4m30s", "250ms"]
});
from_text!(Size, "Size", "a size like `2MB`", Size::parse, {
    "type": ["string", "integer"], "format": "weir-size", "examples": ["512KB", "2MB"]
});
from_text!(NameServer, "NameServer", "an address like `10.0.0.2` or `10.0.0.2:5353`", NameServer::parse, {
    "type": "string", "format": "weir-name-server", "examples": ["10.0.0.2", "10.0.0.2:5353"]
});
from_text!(Ttl, "Ttl", "a duration like `60s`, or `origin`", parse_ttl, {
    "type": ["string", "integer"], "format": "weir-ttl", "examples": ["60s", "origin"]
});

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "password", "writeOnly": true })
    }
}

fn parse_api(text: &str) -> Result<ApiTarget, String> {
    match text {
        "gateway" => Ok(ApiTarget::Gateway),
        "origin" => Ok(ApiTarget::Origin),
        url => check_url(url).map(|()| ApiTarget::Url(url.trim_end_matches('/').to_string())),
    }
}

from_text!(ApiTarget, "ApiTarget", "`gateway`, `origin` or a URL", parse_api, {
    "anyOf": [
        { "enum": ["gateway", "origin"], "type": "string" },
        { "type": "string", "format": "weir-url", "description": "URL of a gateway elsewhere" }
    ]
});

/// `{ url, timeout }`.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RemoteIssue {
    /// Where guest tokens are asked for.
    #[schemars(extend("format" = "weir-url"))]
    url: String,
    /// Longest wait.
    #[serde(default = "five_seconds")]
    timeout: Millis,
}

fn five_seconds() -> Millis {
    Millis::secs(5)
}

impl<'de> Deserialize<'de> for GuestIssue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Either {
            Word(String),
            Remote(RemoteIssue),
        }
        match Either::deserialize(deserializer) {
            Ok(Either::Word(word)) if word == "local" => Ok(GuestIssue::Local),
            Ok(Either::Remote(remote)) => Ok(GuestIssue::Remote { url: remote.url, timeout: remote.timeout.0 }),
            _ => Err(D::Error::custom("`local`, or a mapping with `url` and `timeout`, is wanted")),
        }
    }
}

impl JsonSchema for GuestIssue {
    fn schema_name() -> Cow<'static, str> {
        "GuestIssue".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let remote = generator.subschema_for::<RemoteIssue>();
        json_schema!({ "anyOf": [{ "enum": ["local"], "type": "string" }, remote] })
    }
}

/// The mapping form of `store:`.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct StoreMapping {
    /// `memory`, `redis://host:6379/0`, `rediss://…`, `redis+sentinel://host:port,host:port/master` or `redis+cluster://host:port,…`.
    url: Secret,
    /// First part of every key in Redis.
    prefix: Option<String>,
    /// The longest that one call may take before Weir goes on without the store.
    deadline: Option<Millis>,
    /// Replicas of a standalone Redis that values are read from: URLs like `url`. What a replica does not have is asked of the primary.
    replicas: Option<Vec<Secret>>,
    /// How long pages in memory are trusted while messages of purges may be getting lost: Redis is away, a connection is dead, this process slept.
    /// After that, what is older is looked up in Redis or fetched anew, until it is certain that no purge was missed. Shorter bounds how long a
    /// purged page can live on; longer spares the origin while Redis is away. One second at least. Default: 5s.
    trust_memory: Option<Millis>,
    /// Whether bodies lie packed (zstd) in Redis. Default: true.
    compress: Option<bool>,
}

impl<'de> Deserialize<'de> for StoreConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Either {
            Url(Secret),
            Mapping(StoreMapping),
        }
        let default = StoreConfig::default();
        match Either::deserialize(deserializer) {
            Ok(Either::Url(url)) => Ok(StoreConfig { url, ..default }),
            Ok(Either::Mapping(mapping)) => Ok(StoreConfig {
                url: mapping.url,
                prefix: mapping.prefix.unwrap_or(default.prefix),
                deadline: mapping.deadline.unwrap_or(default.deadline),
                replicas: mapping.replicas.unwrap_or_default(),
                trust_memory: mapping.trust_memory.unwrap_or(default.trust_memory),
                compress: mapping.compress.unwrap_or(default.compress),
            }),
            Err(_) => Err(D::Error::custom("`memory`, a Redis URL, or a mapping with `url`, is wanted")),
        }
    }
}

impl JsonSchema for StoreConfig {
    fn schema_name() -> Cow<'static, str> {
        "StoreConfig".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let url = generator.subschema_for::<Secret>();
        let mapping = generator.subschema_for::<StoreMapping>();
        json_schema!({ "anyOf": [url, mapping] })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Spanned<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SpannedVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for SpannedVisitor<T> {
            type Value = Spanned<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
                let span = de::take_span();
                T::deserialize(deserializer).map(|value| Spanned { value, span })
            }
        }
        deserializer.deserialize_newtype_struct(de::SPANNED, SpannedVisitor(std::marker::PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Spanned<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}
