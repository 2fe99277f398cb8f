//! The parameters behind the path of MAIL and RCPT (RFC 5321 §4.1.2).

use crate::mail::{Body, EnvelopeId, Notify, OriginalRecipient, Ret, is_xtext};

use super::reply::Reply;

/// The longest AUTH= in octets: a mailbox, each of its octets encoded in three.
const SUBMITTER_SIZE_MAX: usize = 3 * 254;

/// Which parameters a session knows: those of the extensions it offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offered {
    /// BODY=BINARYMIME (RFC 3030).
    pub binary: bool,
    /// RET, ENVID, NOTIFY, ORCPT (RFC 3461).
    pub dsn: bool,
    /// REQUIRETLS (RFC 8689).
    pub require_tls: bool,
    /// AUTH (RFC 4954).
    pub auth: bool,
}

/// What MAIL said beside the reverse-path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MailParams {
    /// SIZE (RFC 1870): the content's size in octets as the peer estimates it.
    pub size: Option<u64>,
    /// BODY (RFC 6152, RFC 3030).
    pub body: Option<Body>,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// REQUIRETLS (RFC 8689).
    pub require_tls: bool,
    /// RET (RFC 3461).
    pub ret: Option<Ret>,
    /// ENVID (RFC 3461).
    pub envelope_id: Option<EnvelopeId>,
}

/// What RCPT said beside the forward-path (RFC 3461).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecipientParams {
    /// NOTIFY.
    pub notify: Option<Notify>,
    /// ORCPT.
    pub original: Option<OriginalRecipient>,
}

/// The parameters of MAIL; `text` is everything behind the path.
pub fn mail(text: &[u8], offered: Offered) -> Result<MailParams, Reply> {
    let mut params = MailParams::default();
    let mut has_auth = false;
    for word in words(text) {
        let (keyword, value) = keyword_and_value(word)?;
        let is = |name: &str| keyword.eq_ignore_ascii_case(name.as_bytes());
        let is_repeated = if is("SIZE") {
            params.size.replace(size(value)?).is_some()
        } else if is("BODY") {
            params.body.replace(body(value, offered)?).is_some()
        } else if is("SMTPUTF8") {
            std::mem::replace(&mut params.smtputf8, flag(value)?)
        } else if is("REQUIRETLS") && offered.require_tls {
            std::mem::replace(&mut params.require_tls, flag(value)?)
        } else if is("RET") && offered.dsn {
            params.ret.replace(parsed(value, Ret::parse)?).is_some()
        } else if is("ENVID") && offered.dsn {
            params.envelope_id.replace(parsed(value, EnvelopeId::parse)?).is_some()
        } else if is("AUTH") && offered.auth {
            std::mem::replace(&mut has_auth, parsed(value, submitter)?)
        } else {
            return Err(Reply::UnknownParameter);
        };
        if is_repeated {
            return Err(Reply::BadParameter);
        }
    }
    Ok(params)
}

/// The parameters of RCPT. `utf8`: SMTPUTF8 was given with MAIL.
pub fn recipient(text: &[u8], utf8: bool, offered: Offered) -> Result<RecipientParams, Reply> {
    let mut params = RecipientParams::default();
    for word in words(text) {
        let (keyword, value) = keyword_and_value(word)?;
        let is = |name: &str| offered.dsn && keyword.eq_ignore_ascii_case(name.as_bytes());
        let is_repeated = if is("NOTIFY") {
            params.notify.replace(parsed(value, Notify::parse)?).is_some()
        } else if is("ORCPT") {
            let original = parsed(value, |text| OriginalRecipient::parse(text, utf8))?;
            params.original.replace(original).is_some()
        } else {
            return Err(Reply::UnknownParameter);
        };
        if is_repeated {
            return Err(Reply::BadParameter);
        }
    }
    Ok(params)
}

fn flag(value: Option<&[u8]>) -> Result<bool, Reply> {
    if value.is_none() { Ok(true) } else { Err(Reply::BadParameter) }
}

fn parsed<T>(value: Option<&[u8]>, parse: impl Fn(&str) -> Option<T>) -> Result<T, Reply> {
    let text = value.and_then(|value| std::str::from_utf8(value).ok());
    text.and_then(parse).ok_or(Reply::BadParameter)
}

/// RFC 4954 §5: who submitted the message somewhere before us, as the peer says. Nothing here would believe it; that it is well
/// formed is all that is asked of it, and that its encoding hides no control character.
fn submitter(text: &str) -> Option<bool> {
    (text == "<>" || is_xtext(text) && text.len() <= SUBMITTER_SIZE_MAX).then_some(true)
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|c| *c == b' ').filter(|word| !word.is_empty())
}

/// `esmtp-keyword ["=" esmtp-value]`.
fn keyword_and_value(word: &[u8]) -> Result<(&[u8], Option<&[u8]>), Reply> {
    let (keyword, value) = match word.iter().position(|c| *c == b'=') {
        Some(at) => (&word[..at], Some(&word[at + 1..])),
        None => (word, None),
    };
    let is_keyword = keyword.first().is_some_and(u8::is_ascii_alphanumeric)
        && keyword.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-');
    let is_value = value.is_none_or(|v| !v.is_empty() && !v.contains(&b'='));
    if is_keyword && is_value { Ok((keyword, value)) } else { Err(Reply::BadParameter) }
}

/// RFC 1870 §3: "size-value ::= 1*20DIGIT". One that does not fit 64 bits is refused with the ill-formed
/// ones.
fn size(value: Option<&[u8]>) -> Result<u64, Reply> {
    let digits = value.filter(|v| v.len() <= 20).ok_or(Reply::BadParameter)?;
    digits
        .iter()
        .try_fold(0u64, |size, c| match c {
            b'0'..=b'9' => size.checked_mul(10)?.checked_add((c - b'0').into()),
            _ => None,
        })
        .ok_or(Reply::BadParameter)
}

fn body(value: Option<&[u8]>, offered: Offered) -> Result<Body, Reply> {
    let value = value.ok_or(Reply::BadParameter)?;
    let is = |name: &str| value.eq_ignore_ascii_case(name.as_bytes());
    if is("7BIT") {
        Ok(Body::SevenBit)
    } else if is("8BITMIME") {
        Ok(Body::EightBit)
    } else if is("BINARYMIME") {
        if offered.binary { Ok(Body::Binary) } else { Err(Reply::UnknownParameter) }
    } else {
        Err(Reply::BadParameter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Offered = Offered { binary: false, dsn: false, require_tls: false, auth: false };
    const ALL: Offered = Offered { binary: true, dsn: true, require_tls: true, auth: true };

    #[test]
    fn parameters_are_taken_or_refused() {
        let ok = |size, body, smtputf8| Ok(MailParams { size, body, smtputf8, ..MailParams::default() });
        let (seven, eight) = (Some(Body::SevenBit), Some(Body::EightBit));
        let table = [
            ("", ok(None, None, false)),
            (" ", ok(None, None, false)),
            (" SIZE=0", ok(Some(0), None, false)),
            (" size=18446744073709551615", ok(Some(u64::MAX), None, false)),
            (" BODY=8BITMIME  SMTPUTF8 SIZE=007", ok(Some(7), eight, true)),
            (" body=7bit", ok(None, seven, false)),
            (" SIZE=18446744073709551616", Err(Reply::BadParameter)),
            (" SIZE=000000000000000000001", Err(Reply::BadParameter)),
            (" SIZE=-1", Err(Reply::BadParameter)),
            (" SIZE=+1", Err(Reply::BadParameter)),
            (" SIZE=ABC", Err(Reply::BadParameter)),
            (" SIZE=", Err(Reply::BadParameter)),
            (" SIZE", Err(Reply::BadParameter)),
            (" SIZE=1 SIZE=1", Err(Reply::BadParameter)),
            (" BODY=7BIT BODY=7BIT", Err(Reply::BadParameter)),
            (" SMTPUTF8 SMTPUTF8", Err(Reply::BadParameter)),
            (" SMTPUTF8=1", Err(Reply::BadParameter)),
            (" BODY=FOO", Err(Reply::BadParameter)),
            (" BODY", Err(Reply::BadParameter)),
            (" X", Err(Reply::UnknownParameter)),
            (" =x", Err(Reply::BadParameter)),
            (" -x", Err(Reply::BadParameter)),
            (" a=b=c", Err(Reply::BadParameter)),
            (" a_b", Err(Reply::BadParameter)),
            (" <", Err(Reply::BadParameter)),
        ];
        for (text, expected) in table {
            for offered in [NONE, ALL] {
                assert_eq!(mail(text.as_bytes(), offered), expected, "{text}");
            }
        }
    }

    #[test]
    fn what_is_not_offered_is_not_known() {
        let all = MailParams {
            body: Some(Body::Binary),
            require_tls: true,
            ret: Some(Ret::Full),
            envelope_id: EnvelopeId::parse("a+2B"),
            ..MailParams::default()
        };
        let alone = MailParams::default;
        let table = [
            (" BODY=BINARYMIME", Ok(MailParams { body: all.body, ..alone() })),
            (" REQUIRETLS", Ok(MailParams { require_tls: true, ..alone() })),
            (" RET=full", Ok(MailParams { ret: all.ret, ..alone() })),
            (" ENVID=a+2B", Ok(MailParams { envelope_id: all.envelope_id.clone(), ..alone() })),
            (" AUTH=<>", Ok(alone())),
            (" AUTH=a+40e.org", Ok(alone())),
            (" RET=FULL ENVID=a+2B REQUIRETLS BODY=BINARYMIME", Ok(all)),
            (" REQUIRETLS=1", Err(Reply::BadParameter)),
            (" REQUIRETLS REQUIRETLS", Err(Reply::BadParameter)),
            (" RET", Err(Reply::BadParameter)),
            (" RET=ALL", Err(Reply::BadParameter)),
            (" RET=FULL RET=FULL", Err(Reply::BadParameter)),
            (" ENVID=", Err(Reply::BadParameter)),
            (" ENVID=a+0A", Err(Reply::BadParameter)),
            (" ENVID=a ENVID=a", Err(Reply::BadParameter)),
            (" AUTH", Err(Reply::BadParameter)),
            (" AUTH=a+0D", Err(Reply::BadParameter)),
            (" AUTH=<> AUTH=<>", Err(Reply::BadParameter)),
        ];
        for (text, expected) in table {
            assert_eq!(mail(text.as_bytes(), ALL), expected, "{text}");
            let unknown = match text {
                " ENVID=" => Reply::BadParameter,
                _ => Reply::UnknownParameter,
            };
            assert_eq!(mail(text.as_bytes(), NONE), Err(unknown), "{text}");
        }
    }

    #[test]
    fn parameters_of_recipients_are_taken_or_refused() {
        let ok = |notify, original: Option<&str>| {
            let original = original.and_then(|text| OriginalRecipient::parse(text, true));
            Ok(RecipientParams { notify, original })
        };
        let table = [
            ("", ok(None, None)),
            ("  ", ok(None, None)),
            (" NOTIFY=NEVER", ok(Some(Notify::NEVER), None)),
            (" ORCPT=rfc822;a notify=delay", ok(Notify::parse("DELAY"), Some("rfc822;a"))),
            (" NOTIFY=NEVER,DELAY", Err(Reply::BadParameter)),
            (" NOTIFY=NEVER NOTIFY=NEVER", Err(Reply::BadParameter)),
            (" ORCPT=rfc822;a+0Ab", Err(Reply::BadParameter)),
            (" ORCPT=rfc822;a+00", Err(Reply::BadParameter)),
            (" ORCPT", Err(Reply::BadParameter)),
            (" SIZE=1", Err(Reply::UnknownParameter)),
            (" =", Err(Reply::BadParameter)),
        ];
        for (text, expected) in table {
            assert_eq!(recipient(text.as_bytes(), true, ALL), expected, "{text}");
        }
        for text in [" NOTIFY=NEVER", " ORCPT=rfc822;a+0Ab", " ORCPT"] {
            assert_eq!(recipient(text.as_bytes(), true, NONE), Err(Reply::UnknownParameter), "{text}");
        }
        assert!(recipient("ORCPT=utf-8;é".as_bytes(), true, ALL).is_ok());
        assert_eq!(recipient("ORCPT=utf-8;é".as_bytes(), false, ALL), Err(Reply::BadParameter));
    }
}
