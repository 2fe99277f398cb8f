//! `at`: when a policy is asked.

use crate::config::value::Word;
use crate::mail::Phase;

/// When a policy is asked. Each has a first moment, before which it would know too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At<const FIRST: u8>(pub Phase);

const WORDS: [(&str, Phase); 4] = [
    ("connect", Phase::Connect),
    ("hello", Phase::Hello),
    ("mail", Phase::Mail),
    ("recipient", Phase::Recipient),
];

/// From the connection on.
pub type FromConnect = At<0>;
/// From HELO on.
pub type FromHello = At<1>;

const fn words<const FIRST: u8, const COUNT: usize>() -> [(&'static str, At<FIRST>); COUNT] {
    let mut words = [("", At(Phase::Connect)); COUNT];
    let mut n = 0;
    while n < COUNT {
        let (word, phase) = WORDS[FIRST as usize + n];
        words[n] = (word, At(phase));
        n += 1;
    }
    words
}

impl Word for FromConnect {
    const WORDS: &'static [(&'static str, Self)] = &words::<0, 4>();
}

impl Word for FromHello {
    const WORDS: &'static [(&'static str, Self)] = &words::<1, 3>();
}

impl<const FIRST: u8> Default for At<FIRST> {
    /// Then the log says whose mail was refused, and those who log in are not asked about.
    fn default() -> Self {
        At(Phase::Recipient)
    }
}
