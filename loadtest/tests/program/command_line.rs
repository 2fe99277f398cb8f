//! A command line that makes no sense is refused with exit code 2, and what it names that is not there with 1.

use crate::support::harness::{self, program};
use crate::support::target::{Behaviour, Target};

#[test]
fn a_command_line_that_makes_no_sense_is_refused() {
    for words in [
        &[][..],
        &["run"],
        &["run", "--target", "127.0.0.1"],
        &["run", "--target", "127.0.0.1:2525", "--size", "much"],
        &["run", "--target", "127.0.0.1:2525", "--messages", "5", "--duration", "1s"],
        &["run", "--target", "127.0.0.1:2525", "--rate", "0"],
        &["run", "--target", "127.0.0.1:2525", "--connections", "0"],
        &["run", "--target", "127.0.0.1:2525", "--arrivals", "poisson"],
        &["run", "--target", "127.0.0.1:2525", "--tls-resumption", "off"],
        &["run", "--target", "127.0.0.1:2525", "--cores", "4096"],
        &["run", "--target", "127.0.0.1:2525", "--source", "127.0.0.5-127.0.0.2"],
        &["verify", "--maildir", "/"],
        &["verify", "--ledger", "run.ledger"],
        &["verify", "--ledger", "run.ledger", "--maildir", "/", "--list", "some"],
        &["unheard-of"],
    ] {
        let ran = program(words);
        assert_eq!(ran.code, Some(2), "{words:?}: {ran:?}");
        assert!(!ran.stderr.is_empty() && ran.stdout.is_empty(), "{words:?}: {ran:?}");
    }
}

#[test]
fn files_that_cannot_be_used_are_said_to_be_so_before_anything_is_sent() {
    let target = Target::start(Behaviour::default());
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone/gone");
    let (gone, folder) = (gone.to_str().unwrap(), folder.path().to_str().unwrap());
    for (words, told) in [
        (&["--corpus", gone][..], "gone/gone: "),
        (&["--corpus", folder], "no message in"),
        (&["--ledger", gone], "gone/gone: "),
        (&["--ledger", gone, "--size", "37"], "must name its message"),
        (&["--starttls", "--tls-ca", gone], "the authorities: "),
    ] {
        let ran = harness::load(target.address, words);
        assert_eq!(ran.code, Some(1), "{words:?}: {ran:?}");
        assert!(ran.stderr.contains(told), "{words:?}: {ran:?}");
    }
    assert_eq!(target.seen.messages.load(std::sync::atomic::Ordering::SeqCst), 0);
}
