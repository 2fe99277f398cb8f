//! What a server offers in its answer to EHLO or LHLO (RFC 5321 §4.1.1.1).

/// The extensions of a server. None, where it was said HELO.
#[derive(Clone, Debug, Default)]
pub struct Offers {
    /// The lines of the answer, the server's name first.
    text: String,
}

impl Offers {
    /// Of the answer's text, a line each.
    pub fn new(text: String) -> Self {
        Offers { text }
    }

    /// Whether this extension is offered, by its keyword.
    pub fn has(&self, keyword: &str) -> bool {
        self.parameters(keyword).is_some()
    }

    /// The words behind the keyword, if it is offered.
    pub fn parameters(&self, keyword: &str) -> Option<impl Iterator<Item = &str>> {
        self.text.lines().skip(1).find_map(|line| {
            let mut words = line.split(' ').filter(|word| !word.is_empty());
            words.next().is_some_and(|word| word.eq_ignore_ascii_case(keyword)).then_some(words)
        })
    }

    /// Whether the words behind the keyword have this one.
    pub fn names(&self, keyword: &str, word: &str) -> bool {
        self.parameters(keyword)
            .is_some_and(|mut words| words.any(|offered| offered.eq_ignore_ascii_case(word)))
    }

    /// The largest message it takes, in octets, where it says (RFC 1870 §4: no number, and 0, say nothing).
    pub fn size_max(&self) -> Option<u64> {
        self.parameters("SIZE")?.next()?.parse().ok().filter(|size| *size > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_found_by_their_keyword() {
        let offers = |text: &str| Offers::new(text.into());
        let one = offers("SIZE 1\nPipelining\nsize 1000\nAUTH plain LOGIN\nXFORWARD NAME  ADDR \n8BITMIME");
        assert!(one.has("PIPELINING") && one.has("8bitmime") && !one.has("DSN"));
        assert_eq!(one.size_max(), Some(1000), "the first line is the server's name");
        assert!(one.names("AUTH", "PLAIN") && !one.names("AUTH", "AUTH") && !one.names("DSN", "x"));
        assert_eq!(one.parameters("XFORWARD").unwrap().collect::<Vec<_>>(), ["NAME", "ADDR"]);
        for text in ["", "mx", "mx\nSIZE", "mx\nSIZE 0", "mx\nSIZE x", "mx\nSIZE -1"] {
            assert_eq!(offers(text).size_max(), None, "{text}");
        }
    }
}
