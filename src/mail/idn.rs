//! Internationalised domain names: when two spellings are one domain (RFC 5890, RFC 5891, RFC 6531 §3.3).
//!
//! `bücher.example`, `BÜCHER.example` and `xn--bcher-kva.example` are one. [`canonical_domain`] gives the spelling by which
//! domains are compared: A-labels in lower case. [`a_labels`] says whether a text in U-labels is a domain at all.
//!
//! Invariants:
//! - a canonical form is its own canonical form;
//! - what is in ASCII already is never decoded: its canonical form is its lower case. That is enough. An A-label is the only one of
//!   its U-label (RFC 5890 §2.3.2.1), and an `xn--` label that no U-label has equals nothing but itself;
//! - of the mappings of UTS 46 only those of case are followed. A dot that is not a dot (U+3002), an octet that is not seen (U+200B,
//!   U+00AD), a ligature, a Kelvin sign: the next program might not map them, or otherwise;
//! - domains that merely look alike are different.
//!
//! What UTS 46 permits and RFC 5892 does not, symbols above all, is taken: such domains exist. What RFC 5892 permits only beside
//! certain neighbours (CONTEXTO) is taken beside any.
//!
//! Local parts are nobody's business but their domain's: they are never mapped.

use std::borrow::Cow;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

/// The spelling by which `domain` is compared: A-labels in lower case. Borrowed where it is that already. What is no valid name is
/// compared as it is, without regard to ASCII case, as are address literals.
pub fn canonical_domain(domain: &str) -> Cow<'_, str> {
    if !domain.is_ascii() {
        return Cow::Owned(a_labels(domain).unwrap_or_else(|| domain.to_ascii_lowercase()));
    }
    match domain.bytes().any(|c| c.is_ascii_uppercase()) {
        true => Cow::Owned(domain.to_ascii_lowercase()),
        false => Cow::Borrowed(domain),
    }
}

/// `domain`, which has octets above ASCII, with an A-label in the place of each U-label; `None` if one of them is none. How long
/// labels and the whole may be is for the caller to check.
pub(super) fn a_labels(domain: &str) -> Option<String> {
    // Hyphens in the third and fourth place are common in ASCII labels that are not A-labels.
    const RULES: (AsciiDenyList, Hyphens) = (AsciiDenyList::STD3, Hyphens::CheckFirstLast);
    let uts46 = Uts46::new();
    let ascii = uts46.to_ascii(domain.as_bytes(), RULES.0, RULES.1, DnsLength::Ignore).ok()?;
    let (unicode, validity) = uts46.to_unicode(ascii.as_bytes(), RULES.0, RULES.1);
    validity.ok()?;
    // A dot that was made of what is none is in the given label, and in no mapped one.
    let is_u_label =
        |given: &str, mapped: &str| !mapped.is_ascii() && lower_case(given).eq(lower_case(mapped));
    let mut labels = domain.split('.').zip(unicode.split('.'));
    labels.all(|(given, mapped)| given.is_ascii() || is_u_label(given, mapped)).then(|| ascii.into_owned())
}

/// Each character by itself: `str::to_lowercase` looks at the neighbours of a sigma.
fn lower_case(label: &str) -> impl Iterator<Item = char> {
    label.chars().flat_map(char::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_domain_have_one_canonical_form() {
        let table: &[(&[&str], &str)] = &[
            (&["example.com", "Example.COM"], "example.com"),
            (
                &[
                    "bücher.example",
                    "BÜCHER.example",
                    "Bücher.EXAMPLE",
                    "xn--bcher-kva.example",
                    "XN--BCHER-KVA.Example",
                ],
                "xn--bcher-kva.example",
            ),
            (&["bücher.xn--bcher-kva.example"], "xn--bcher-kva.xn--bcher-kva.example"),
            // The eszett is a letter of its own since IDNA2008, and so is the final sigma.
            (&["straße.example"], "xn--strae-oqa.example"),
            (&["strasse.example"], "strasse.example"),
            (&["βόλος.example"], "xn--nxasmm1c.example"),
            (&["βόλοσ.example", "ΒΌΛΟΣ.example"], "xn--nxasmq6b.example"),
            (&["例え.テスト"], "xn--r8jz45g.xn--zckzah"),
            (&["правда.рф", "ПРАВДА.РФ"], "xn--80aafi6cg.xn--p1ai"),
            (&["مثال.إختبار"], "xn--mgbh0fb.xn--kgbechtv"),
            (&["r3---sn-x.bücher.example"], "r3---sn-x.xn--bcher-kva.example"),
            // A joiner where the script calls for it (RFC 5892, A.1).
            (&["\u{dc1}\u{dca}\u{200d}\u{dbb}\u{dd3}.example"], "xn--10cl1a0b660p.example"),
            (&["[192.0.2.1]"], "[192.0.2.1]"),
            (&["[IPv6:2001:DB8::1]"], "[ipv6:2001:db8::1]"),
        ];
        for (spellings, canonical) in table {
            for spelling in *spellings {
                assert_eq!(canonical_domain(spelling), *canonical, "{spelling}");
            }
            assert!(matches!(canonical_domain(canonical), Cow::Borrowed(text) if text == *canonical));
        }
    }

    #[test]
    fn look_alikes_are_different_domains() {
        let table = [
            ("еxample.com", "example.com"), // Cyrillic е
            ("exampIe.com", "example.com"),
            ("bucher.example", "bücher.example"),
            ("bu\u{308}cher.example", "bücher.example"),
            ("boo\u{212a}.example", "book.example"), // Kelvin sign
        ];
        for (one, other) in table {
            assert_ne!(canonical_domain(one), canonical_domain(other), "{one}");
        }
    }

    #[test]
    fn only_what_is_made_of_u_labels_has_a_labels() {
        let table = [
            ("a\u{200b}b.example", "an invisible space that would be dropped"),
            ("a\u{ad}b.example", "a soft hyphen, likewise"),
            ("ü\u{200b}.example", "likewise, beside a letter that stays"),
            ("bücher。example", "an ideographic full stop"),
            ("bücher．example", "a fullwidth full stop"),
            ("bücher｡example", "a halfwidth full stop"),
            ("a.。b.example", "an empty label by such a stop"),
            ("bücher。", "such a stop at the end"),
            ("。bücher", "such a stop at the beginning"),
            ("ü.a。b", "such a stop beside a label that is one"),
            ("\u{ad}.ü", "a label of nothing that is seen"),
            ("ｅxample.com", "a fullwidth letter"),
            ("ﬁsch.example", "a ligature"),
            ("boo\u{212a}.example", "a Kelvin sign"),
            ("a\u{2100}b.example", "a sign that maps to a/c"),
            ("bu\u{308}cher.example", "not in normalisation form C"),
            ("\u{308}bc.example", "begins with a combining mark"),
            ("אa.example", "right to left and left to right in one label"),
            ("1א.example", "a right to left label that begins with a digit"),
            ("א.1b-.example", "a hyphen at the end"),
            ("-ü.example", "a hyphen at the beginning"),
            ("a\u{200d}b.example", "a joiner where no script calls for it"),
            ("\u{202e}ü.example", "a control of direction"),
            ("ü\u{fffd}.example", "a replacement character"),
            ("ü\u{e000}.example", "private use"),
            ("ü_.example", "an underscore"),
            ("ü b.example", "a space"),
            ("ü.xn--a", "beside a label that claims to be an A-label"),
            ("xn--ü.example", "an A-label that is none"),
        ];
        for (domain, why) in table {
            assert_eq!(a_labels(domain), None, "{why}");
            assert_eq!(canonical_domain(domain), domain, "{why}");
        }
    }

    #[test]
    fn a_labels_that_do_not_decode_equal_only_themselves() {
        let labels =
            ["xn--", "xn--a", "xn--a-", "xn--abc-", "xn--99999999999", "xn--bcher-kv", "xn--zzzzzzzzzzz-zzz"];
        for label in labels {
            let domain = format!("{label}.example");
            assert!(matches!(canonical_domain(&domain), Cow::Borrowed(text) if text == domain));
            assert_eq!(canonical_domain(&domain.to_uppercase()), domain);
        }
    }
}
