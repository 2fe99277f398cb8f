//! `incoming auth`: what the operator does for the credentials file.
//!
//! Needs no configuration: lines are printed, and where they go is the operator's business.

use std::io::{self, BufRead, IsTerminal};
use std::process::ExitCode;

use clap::Subcommand;
use incoming::policy::{Credentials, check_user};
use zeroize::Zeroizing;

use crate::{FAULT, complain, print};

/// What SASL's PLAIN would carry is far shorter; a file given by mistake is not read to its end.
const PASSWORD_SIZE_MAX: u64 = 4096;

#[derive(Subcommand)]
pub enum AuthCommand {
    /// Reads a password from the terminal, or from the first line of standard input, and prints its hash.
    Hash {
        /// Print the whole line of the credentials file for this user.
        #[arg(value_parser = user)]
        user: Option<String>,
    },
}

/// Does what was asked.
pub fn run(command: AuthCommand) -> ExitCode {
    let AuthCommand::Hash { user } = command;
    match password() {
        Ok(password) => {
            let hash = Credentials::hash(password.as_bytes());
            print(&user.map_or(format!("{hash}\n"), |user| format!("{user}:{hash}\n")))
        }
        Err(fault) => {
            complain(&fault);
            ExitCode::from(FAULT)
        }
    }
}

fn user(name: &str) -> Result<String, &'static str> {
    check_user(name).map(|()| name.to_owned())
}

/// A password that a client can log in with: in UTF-8, without NUL, and not empty (RFC 4616 §2).
fn password() -> Result<Zeroizing<String>, String> {
    let password = if io::stdin().is_terminal() { ask()? } else { read_line(io::stdin().lock())? };
    match &**password {
        "" => Err("the password is empty".into()),
        text if text.contains('\0') => Err("the password has a NUL: no client can send it".into()),
        _ => Ok(password),
    }
}

/// Nothing is shown while it is typed, so it is asked for twice.
fn ask() -> Result<Zeroizing<String>, String> {
    let ask = |prompt| rpassword::prompt_password(prompt).map(Zeroizing::new);
    let typed = ask("Password: ").and_then(|once| Ok((once, ask("Once more: ")?)));
    let (once, again) = typed.map_err(|e| format!("cannot read the password: {e}"))?;
    if *once == *again { Ok(once) } else { Err("these were two different passwords".into()) }
}

fn read_line(input: impl BufRead) -> Result<Zeroizing<String>, String> {
    let mut line = Zeroizing::new(Vec::with_capacity(PASSWORD_SIZE_MAX as usize + 2));
    (input.take(PASSWORD_SIZE_MAX + 2).read_until(b'\n', &mut line))
        .map_err(|e| format!("cannot read the password: {e}"))?;
    let text = line.strip_suffix(b"\n").unwrap_or(&line);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if text.len() as u64 > PASSWORD_SIZE_MAX {
        return Err(format!("the password has more than {PASSWORD_SIZE_MAX} octets"));
    }
    let text =
        std::str::from_utf8(text).map_err(|_| "the password is not in UTF-8: no client can send it")?;
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_the_first_line_without_its_end() {
        let long = "x".repeat(PASSWORD_SIZE_MAX as usize);
        let table: [(&[u8], Result<&str, &str>); 9] = [
            (b"secret\nmore\n", Ok("secret")),
            (b"secret\r\n", Ok("secret")),
            (b"secret", Ok("secret")),
            (b" s e \t\n", Ok(" s e \t")),
            ("p\u{e4}ss\n".as_bytes(), Ok("p\u{e4}ss")),
            (b"\n", Ok("")),
            (&[long.as_bytes(), b"\r\n"].concat(), Ok(&long)),
            (&[long.as_bytes(), b"x\n"].concat(), Err("the password has more than 4096 octets")),
            (b"\xff\n", Err("the password is not in UTF-8: no client can send it")),
        ];
        for (input, expected) in table {
            let password = read_line(input);
            assert_eq!(password.as_ref().map(|p| p.as_str()).map_err(String::as_str), expected);
        }
    }
}
