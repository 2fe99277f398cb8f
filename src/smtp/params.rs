//! The parameters behind the path of MAIL and RCPT (RFC 5321 §4.1.2).

use crate::mail::Body;

use super::reply::Reply;

/// What MAIL said beside the reverse-path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailParams {
    /// SIZE (RFC 1870): the content's size in octets as the peer estimates it.
    pub size: Option<u64>,
    /// BODY (RFC 6152), if given.
    pub body: Body,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
}

/// The parameters of MAIL; `text` is everything behind the path.
pub fn mail(text: &[u8]) -> Result<MailParams, Reply> {
    let mut params = MailParams::default();
    let (mut has_size, mut has_body) = (false, false);
    for word in words(text) {
        let (keyword, value) = keyword_and_value(word)?;
        let is = |name: &str| keyword.eq_ignore_ascii_case(name.as_bytes());
        let is_repeated = if is("SIZE") {
            params.size = Some(size(value)?);
            std::mem::replace(&mut has_size, true)
        } else if is("BODY") {
            params.body = body(value)?;
            std::mem::replace(&mut has_body, true)
        } else if is("SMTPUTF8") {
            if value.is_some() {
                return Err(Reply::BadParameter);
            }
            std::mem::replace(&mut params.smtputf8, true)
        } else {
            return Err(Reply::UnknownParameter);
        };
        if is_repeated {
            return Err(Reply::BadParameter);
        }
    }
    Ok(params)
}

/// The parameters of RCPT, of which none is offered.
pub fn recipient(text: &[u8]) -> Result<(), Reply> {
    match words(text).next() {
        None => Ok(()),
        Some(word) => keyword_and_value(word).and(Err(Reply::UnknownParameter)),
    }
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

fn body(value: Option<&[u8]>) -> Result<Body, Reply> {
    let value = value.ok_or(Reply::BadParameter)?;
    let is = |name: &str| value.eq_ignore_ascii_case(name.as_bytes());
    if is("7BIT") {
        Ok(Body::SevenBit)
    } else if is("8BITMIME") {
        Ok(Body::EightBit)
    } else if is("BINARYMIME") {
        // RFC 3030 §3 goes with CHUNKING, which is not offered.
        Err(Reply::UnknownParameter)
    } else {
        Err(Reply::BadParameter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_taken_or_refused() {
        let ok = |size, body, smtputf8| Ok(MailParams { size, body, smtputf8 });
        let table = [
            ("", ok(None, Body::SevenBit, false)),
            (" ", ok(None, Body::SevenBit, false)),
            (" SIZE=0", ok(Some(0), Body::SevenBit, false)),
            (" size=18446744073709551615", ok(Some(u64::MAX), Body::SevenBit, false)),
            (" BODY=8BITMIME  SMTPUTF8 SIZE=007", ok(Some(7), Body::EightBit, true)),
            (" body=7bit", ok(None, Body::SevenBit, false)),
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
            (" BODY=BINARYMIME", Err(Reply::UnknownParameter)),
            (" RET=HDRS", Err(Reply::UnknownParameter)),
            (" X", Err(Reply::UnknownParameter)),
            (" =x", Err(Reply::BadParameter)),
            (" -x", Err(Reply::BadParameter)),
            (" a=b=c", Err(Reply::BadParameter)),
            (" a_b", Err(Reply::BadParameter)),
            (" <", Err(Reply::BadParameter)),
        ];
        for (text, expected) in table {
            assert_eq!(mail(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn no_parameter_of_rcpt_is_known() {
        for (text, expected) in [
            ("", Ok(())),
            ("  ", Ok(())),
            (" NOTIFY=NEVER", Err(Reply::UnknownParameter)),
            (" ORCPT=rfc822;a+0Ab", Err(Reply::UnknownParameter)),
            (" =", Err(Reply::BadParameter)),
        ] {
            assert_eq!(recipient(text.as_bytes()), expected, "{text}");
        }
    }
}
