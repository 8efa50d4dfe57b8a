//! serde over a [`Node`]. Errors carry the place of the innermost value they are about.

use crate::mask::is_secret_key;
use crate::node::Kind;
use crate::{Node, Span};
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use std::cell::RefCell;
use std::fmt;

/// Name of the newtype by which [`crate::Spanned`] asks for its place.
pub(crate) const SPANNED: &str = "$weir::Spanned";

thread_local! {
    static SPAN: RefCell<Option<Span>> = const { RefCell::new(None) };
}

/// The place left by the deserializer for the [`crate::Spanned`] that is being made.
pub(crate) fn take_span() -> Span {
    SPAN.with(|span| span.borrow_mut().take()).unwrap_or_default()
}

/// An error with the place of the value it is about.
#[derive(Debug)]
pub(crate) struct DeError {
    pub message: String,
    pub span: Option<Span>,
    /// The message may quote a value that is not to be shown.
    pub secret: bool,
}

impl DeError {
    fn at(mut self, node: &Node) -> Self {
        if self.span.is_none() {
            self.span = Some(node.span().clone());
            self.secret |= node.source().expanded;
        }
        self
    }
}

impl fmt::Display for DeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DeError {}

impl de::Error for DeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        DeError { message: message.to_string(), span: None, secret: false }
    }
}

/// Deserializer over one node.
#[derive(Clone, Copy)]
pub(crate) struct NodeDe<'a>(pub &'a Node);

/// `true`/`false`, and what a plain `yes` or an expanded `"true"` mean where a boolean is wanted.
pub(crate) fn lenient_bool(node: &Node) -> Option<bool> {
    match node.kind() {
        Kind::Bool(value) => Some(*value),
        Kind::String(text) if node.source().expanded || node.source().plain => match text.as_str() {
            "true" | "True" | "TRUE" if node.source().expanded => Some(true),
            "false" | "False" | "FALSE" if node.source().expanded => Some(false),
            "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
            "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// A number, also one that a variable brought.
pub(crate) fn lenient_number(node: &Node) -> Option<Kind> {
    match node.kind() {
        Kind::Int(value) => Some(Kind::Int(*value)),
        Kind::Float(value) => Some(whole(*value).map_or(Kind::Float(*value), Kind::Int)),
        Kind::String(text) if node.source().expanded => match crate::parse::number(text.trim())? {
            Kind::Float(value) => Some(whole(value).map_or(Kind::Float(value), Kind::Int)),
            other => Some(other),
        },
        _ => None,
    }
}

/// `1.2096e+06` is a whole number that some writer spelled as a float.
fn whole(value: f64) -> Option<i128> {
    (value.fract() == 0.0 && value.abs() < 9.0e15).then_some(value as i128)
}

fn visit_number<'de, V: Visitor<'de>>(kind: &Kind, visitor: V) -> Result<V::Value, DeError> {
    match kind {
        Kind::Int(value) => match (i64::try_from(*value), u64::try_from(*value)) {
            (_, Ok(value)) => visitor.visit_u64(value),
            (Ok(value), _) => visitor.visit_i64(value),
            _ => Err(de::Error::custom("this number is too large")),
        },
        Kind::Float(value) => visitor.visit_f64(*value),
        _ => Err(de::Error::custom("a number is wanted")),
    }
}

impl<'a> NodeDe<'a> {
    fn any<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        let node = self.0;
        match node.kind() {
            Kind::Null => visitor.visit_unit(),
            Kind::Bool(value) => visitor.visit_bool(*value),
            Kind::Int(_) | Kind::Float(_) => match lenient_number(node) {
                Some(kind) => visit_number(&kind, visitor),
                None => visitor.visit_unit(),
            },
            Kind::String(text) => visitor.visit_str(text),
            Kind::Seq(items) => visitor.visit_seq(SeqAccess { items: items.iter() }),
            Kind::Map(entries) => visitor.visit_map(MapAccess { entries: entries.iter(), entry: None }),
        }
        .map_err(|error| error.at(node))
    }

    fn number<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match lenient_number(self.0) {
            Some(kind) => visit_number(&kind, visitor).map_err(|error| error.at(self.0)),
            None => self.any(visitor),
        }
    }

    fn string<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match self.0.kind() {
            Kind::Int(_) | Kind::Float(_) => visitor.visit_str(&self.0.scalar_text()).map_err(|error: DeError| error.at(self.0)),
            _ => self.any(visitor),
        }
    }
}

macro_rules! forward {
    ($to:ident: $($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
            self.$to(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for NodeDe<'_> {
    type Error = DeError;

    forward!(any: deserialize_any deserialize_unit deserialize_seq deserialize_map deserialize_bytes deserialize_byte_buf);
    forward!(number: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64);
    forward!(string: deserialize_str deserialize_string deserialize_char deserialize_identifier);

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match lenient_bool(self.0) {
            Some(value) => visitor.visit_bool(value).map_err(|error: DeError| error.at(self.0)),
            None => self.any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match self.0.is_null() {
            true => visitor.visit_none(),
            false => visitor.visit_some(self),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, DeError> {
        self.any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, DeError> {
        if name == SPANNED {
            SPAN.with(|span| *span.borrow_mut() = Some(self.0.span().clone()));
        }
        visitor.visit_newtype_struct(self).map_err(|error| error.at(self.0))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, DeError> {
        self.any(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, _: &'static str, _: usize, visitor: V) -> Result<V::Value, DeError> {
        self.any(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, DeError> {
        self.any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, DeError> {
        let node = self.0;
        let (variant, content) = match node.kind() {
            Kind::Map(entries) => match entries.as_slice() {
                [(key, value)] => (key.name.clone(), Some(value)),
                _ => return Err(<DeError as de::Error>::custom("a mapping with exactly one key is wanted").at(node)),
            },
            Kind::String(_) | Kind::Int(_) | Kind::Float(_) | Kind::Bool(_) => (node.scalar_text(), None),
            _ => return Err(<DeError as de::Error>::custom("a word is wanted").at(node)),
        };
        visitor.visit_enum(EnumAccess { variant, content }).map_err(|error| error.at(node))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        visitor.visit_unit()
    }
}

struct SeqAccess<'a> {
    items: std::slice::Iter<'a, Node>,
}

impl<'de> de::SeqAccess<'de> for SeqAccess<'_> {
    type Error = DeError;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DeError> {
        self.items.next().map(|node| seed.deserialize(NodeDe(node)).map_err(|error| error.at(node))).transpose()
    }
    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct MapAccess<'a> {
    entries: std::slice::Iter<'a, (crate::node::Key, Node)>,
    /// The entry whose key was handed out and whose value is due.
    entry: Option<&'a (crate::node::Key, Node)>,
}

impl<'de> de::MapAccess<'de> for MapAccess<'_> {
    type Error = DeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DeError> {
        // A null value is as good as no entry, as in Kong.
        self.entry = self.entries.by_ref().find(|(_, value)| !value.is_null());
        let Some((key, _)) = self.entry else { return Ok(None) };
        let name: de::value::StrDeserializer<'_, DeError> = key.name.as_str().into_deserializer();
        seed.deserialize(name).map(Some).map_err(|mut error| {
            error.span.get_or_insert_with(|| key.span.clone());
            error
        })
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, DeError> {
        let Some((key, node)) = self.entry.take() else { return Err(de::Error::custom("a value without a key")) };
        seed.deserialize(NodeDe(node)).map_err(|error| {
            let mut error = error.at(node);
            error.secret |= is_secret_key(&key.name);
            error
        })
    }
}

struct EnumAccess<'a> {
    variant: String,
    content: Option<&'a Node>,
}

impl<'de, 'a> de::EnumAccess<'de> for EnumAccess<'a> {
    type Error = DeError;
    type Variant = VariantAccess<'a>;
    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, VariantAccess<'a>), DeError> {
        let name: de::value::StringDeserializer<DeError> = self.variant.into_deserializer();
        seed.deserialize(name).map(|value| (value, VariantAccess { content: self.content }))
    }
}

struct VariantAccess<'a> {
    content: Option<&'a Node>,
}

impl<'a> VariantAccess<'a> {
    fn content(self) -> Result<NodeDe<'a>, DeError> {
        self.content.map(NodeDe).ok_or_else(|| de::Error::custom("this word needs settings of its own: write it as a mapping"))
    }
}

impl<'de> de::VariantAccess<'de> for VariantAccess<'_> {
    type Error = DeError;
    fn unit_variant(self) -> Result<(), DeError> {
        match self.content {
            None => Ok(()),
            Some(node) if node.is_null() => Ok(()),
            Some(node) => Err(<DeError as de::Error>::custom("this word takes no settings").at(node)),
        }
    }
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, DeError> {
        seed.deserialize(self.content()?)
    }
    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, DeError> {
        self.content()?.any(visitor)
    }
    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, DeError> {
        self.content()?.any(visitor)
    }
}
