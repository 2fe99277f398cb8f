//! The token that is asked for where the control plane listens on TCP.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::constant_time::verify_slices_are_equal;

/// The shortest token: what a generator of passwords gives, not what a person thinks of.
const SIZE_MIN: usize = 16;
/// And the longest: it stands in a header field.
const SIZE_MAX: usize = 512;

/// A secret that whoever may do anything knows. Not shown by `Debug`.
#[derive(Clone)]
pub struct Token(Box<[u8]>);

impl Token {
    /// Reads the file at `path`: one line of 16 to 512 visible ASCII characters, which nobody but the file's owner and group can read.
    pub fn read(path: &Path) -> Result<Token, TokenError> {
        let fault = |words: String| TokenError { file: path.into(), words };
        let cannot_read = |e| fault(format!("cannot read it: {e}"));
        let file = File::open(path).map_err(cannot_read)?;
        let mode = file.metadata().map_err(cannot_read)?.permissions().mode();
        if mode & 0o007 != 0 {
            let shown = path.display();
            return Err(fault(format!("every user of this machine has access to it: chmod o-rwx {shown}")));
        }
        let mut octets = Vec::new();
        file.take(SIZE_MAX as u64 + 3).read_to_end(&mut octets).map_err(cannot_read)?;
        let token = octets.strip_suffix(b"\n").unwrap_or(&octets);
        let token = token.strip_suffix(b"\r").unwrap_or(token);
        let is_good = (SIZE_MIN..=SIZE_MAX).contains(&token.len()) && token.iter().all(u8::is_ascii_graphic);
        match is_good {
            true => Ok(Token(token.into())),
            false => Err(fault(format!(
                "expected one line of {SIZE_MIN} to {SIZE_MAX} letters, digits and signs, such as `openssl rand -hex 32` gives"
            ))),
        }
    }

    /// Whether `given` is this token. How long it takes says only how long `given` is.
    pub fn is(&self, given: &[u8]) -> bool {
        verify_slices_are_equal(&self.0, given).is_ok()
    }

    /// The value of the field `Authorization` that shows it.
    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Why there is no token: which file, what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}: {words}", file.display())]
pub struct TokenError {
    file: PathBuf,
    words: String,
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_token_is_a_line_that_only_its_owners_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let good = "0123456789abcdef";
        let table = [
            (format!("{good}\n"), 0o600, Ok(())),
            (format!("{good}\r\n"), 0o640, Ok(())),
            (good.to_string(), 0o600, Ok(())),
            ("x".repeat(512), 0o600, Ok(())),
            ("x".repeat(513), 0o600, Err("16 to 512")),
            ("0123456789abcde\n".into(), 0o600, Err("16 to 512")),
            (format!("{good}\n{good}\n"), 0o600, Err("16 to 512")),
            (format!("{good} {good}\n"), 0o600, Err("16 to 512")),
            (String::new(), 0o600, Err("openssl")),
            (good.to_string(), 0o604, Err("chmod o-rwx")),
            (good.to_string(), 0o602, Err("chmod o-rwx")),
        ];
        for (text, mode, expected) in table {
            fs::write(&path, &text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            match (Token::read(&path), expected) {
                (Ok(token), Ok(())) => assert!(token.is(text.trim_end().as_bytes()), "{text:?}"),
                (Err(e), Err(part)) => assert!(e.to_string().contains(part), "{text:?}: {e}"),
                (other, _) => panic!("{text:?} {mode:o}: {other:?}"),
            }
        }
        assert!(Token::read(&folder.path().join("none")).unwrap_err().to_string().contains("cannot read it"));
    }

    #[test]
    fn only_the_token_is_the_token_and_it_is_not_shown() {
        let token = Token(b"0123456789abcdef"[..].into());
        for (given, is_it) in
            [("0123456789abcdef", true), ("0123456789abcdeF", false), ("0123456789abcde", false), ("", false)]
        {
            assert_eq!(token.is(given.as_bytes()), is_it, "{given}");
        }
        assert_eq!(format!("{token:?}"), "Token");
    }
}
