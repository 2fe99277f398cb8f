//! Tags: what policies have noticed about a message, in one word each.

use std::fmt;
use std::sync::Arc;

/// Tags of one message at most; more are not kept.
pub const TAGS_MAX: usize = 16;
/// Octets of a tag at most.
const TAG_SIZE_MAX: usize = 64;

/// A word of letters and digits in ASCII, `-`, `_`, `.` and `:`, of at most 64 octets. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(Arc<str>);

impl Tag {
    /// What a tag may be, for those who are to write one.
    pub const EXPECTED: &'static str = "a tag of at most 64 letters, digits, \"-\", \"_\", \".\" and \":\"";

    /// `None` where `text` is no tag.
    pub fn parse(text: &str) -> Option<Tag> {
        let is_fit = |c: u8| c.is_ascii_alphanumeric() || b"-_.:".contains(&c);
        let is_tag = (1..=TAG_SIZE_MAX).contains(&text.len()) && text.bytes().all(is_fit);
        is_tag.then(|| Tag(text.into()))
    }

    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_one_short_word() {
        let longest = "x".repeat(64);
        for text in ["a", "spam:high", "list-zen.example_1", &longest] {
            assert_eq!(Tag::parse(text).unwrap().as_str(), text);
        }
        for text in ["", "a b", "a,b", "é", "a\n", &"x".repeat(65)] {
            assert_eq!(Tag::parse(text), None, "{text:?}");
        }
    }
}
