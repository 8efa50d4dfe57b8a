//! What plugins look at. Most look at a field or two of a request and set a few of the answer; a chain of such plugins can be walked with
//! nothing but those fields at hand, while the others pass as the bytes that they are.

use crate::{Phases, Plugin};
use http::HeaderName;

/// Which fields of a message's head a plugin looks at, sets or removes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Perhaps any, or more than fields.
    All,
    /// These alone, and underscored spellings of them (`x_user_id` for `x-user-id`).
    Only(Vec<HeaderName>),
}

impl Sight {
    /// No field at all.
    pub const NONE: Sight = Sight::Only(Vec::new());
}

/// What all plugins of a chain look at.
#[derive(Debug, Default)]
pub struct Sights {
    /// Of requests.
    pub request: Names,
    /// Of answers.
    pub answer: Names,
}

/// Fields that the gateway itself writes for a service: a plugin that wants to have a say in them needs the whole request.
const OURS: [&str; 6] = ["host", "via", "forwarded", "x-real-ip", "x-request-id", "x-kong-request-id"];

/// Whether a field belongs to one connection or says where a message ends: the gateway writes it anew on each side, and no plugin may set it.
pub fn frames(name: &HeaderName) -> bool {
    let name = name.as_str();
    match name.len() {
        2 => name == "te",
        6 => name == "expect",
        7 => name == "trailer" || name == "upgrade",
        10 => name == "connection" || name == "keep-alive",
        14 => name == "content-length",
        16 => name == "proxy-connection",
        17 => name == "transfer-encoding",
        _ => false,
    }
}

impl Sights {
    /// `None`: one of the plugins needs more than a few fields.
    pub(crate) fn of<'p>(plugins: impl Iterator<Item = &'p dyn Plugin>) -> Option<Sights> {
        let mut all = Sights::default();
        for plugin in plugins {
            let phases = plugin.phases();
            let takes_part = |some: &[Phases]| some.iter().any(|phase| phases.has(*phase));
            if takes_part(&[Phases::BODY, Phases::END]) || plugin.reads_body().is_some() || (phases.has(Phases::LOG) && plugin.wants_log_view()) {
                return None;
            }
            if takes_part(&[Phases::REQUEST, Phases::REQUEST_WAIT, Phases::TO_UPSTREAM]) {
                all.request.add(plugin.sees_of_request())?;
            }
            if takes_part(&[Phases::FROM_UPSTREAM, Phases::RESPONSE]) {
                all.answer.add(plugin.sees_of_answer())?;
            }
        }
        let ours = |name: &HeaderName| OURS.contains(&name.as_str()) || name.as_str().starts_with("x-forwarded-") || frames(name);
        let wanted = all.request.iter().any(ours) || all.answer.iter().any(frames);
        (!wanted).then_some(all)
    }
}

/// A few names.
#[derive(Debug, Default)]
pub struct Names {
    all: Vec<HeaderName>,
    /// A bit for each length that one of them has: most names of a message differ from all of them in that.
    lengths: u64,
}

pub(crate) fn length_bit(length: usize) -> u64 {
    1 << length.min(63)
}

impl Names {
    fn add(&mut self, sight: Sight) -> Option<()> {
        let Sight::Only(names) = sight else { return None };
        for name in names {
            if !self.all.contains(&name) {
                self.lengths |= length_bit(name.as_str().len());
                self.all.push(name);
            }
        }
        Some(())
    }

    /// The names themselves.
    pub fn iter(&self) -> impl Iterator<Item = &HeaderName> {
        self.all.iter()
    }

    /// Whether a name is among them, however it is spelled.
    pub fn have(&self, name: &[u8]) -> bool {
        let same = |a: u8, b: u8| a == b.to_ascii_lowercase() || (a == b'-' && b == b'_');
        self.lengths & length_bit(name.len()) != 0 && self.all.iter().any(|known| {
            let known = known.as_str().as_bytes();
            known.len() == name.len() && known.iter().zip(name).all(|(a, b)| same(*a, *b))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_however_they_are_spelled() {
        let mut names = Names::default();
        assert_eq!(names.add(Sight::Only(vec![HeaderName::from_static("x-user-id"), HeaderName::from_static("cookie")])), Some(()));
        for (spelled, found) in [("X-User-Id", true), ("x_user_id", true), ("cookie", true), ("cookies", false), ("x-user-ip", false), ("", false)] {
            assert_eq!(names.have(spelled.as_bytes()), found, "{spelled}");
        }
        assert_eq!(names.add(Sight::All), None);
    }
}
