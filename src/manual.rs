//! The manual and the completions, made of the command line's definition: they say what this binary understands.
//!
//! Pages are named as Git names its own: `incoming.1`, `incoming-dead.1`, `incoming-dead-list.1`. What is not in the definition
//! (exit codes, signals, files) is in [`CHAPTERS`], on the first page.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::Cli;
use crate::{FAULT, complain, print};

/// Headings of the first page, and under each what is to be known: a word, and what it means.
const CHAPTERS: [(&str, &[(&str, &str)]); 3] = [
    (
        "EXIT STATUS",
        &[
            ("0", "It did what it was told."),
            ("1", "A fault: of the configuration, of the start, or while it ran. Standard error says which."),
            ("2", "A command line that makes no sense."),
            ("3", "It ended as it was told, but not everything could be finished in the time there was."),
        ],
    ),
    (
        "SIGNALS",
        &[
            (
                "SIGTERM, SIGINT",
                "Drain: sessions finish, then deliveries, then the process ends. A second one ends it at once.",
            ),
            (
                "SIGHUP",
                "The configuration is read anew. If anything is wrong with it, the old one stays, and the log says why.",
            ),
        ],
    ),
    (
        "FILES",
        &[
            ("/etc/incoming/incoming.toml", "The configuration of the service of Debian's package."),
            ("/var/lib/incoming", "Its data: the spool and dead letters."),
            (
                "/usr/share/doc/incoming",
                "Every setting (CONFIGURATION.md), policies, transports, what is promised.",
            ),
        ],
    ),
];

/// Prints what has `shell` complete commands and options.
pub fn print_completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "incoming", &mut script);
    print(&String::from_utf8(script).expect("a script is text"))
}

/// Writes a page for each command to `folder`.
pub fn write_pages(folder: &Path) -> ExitCode {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    match write_pages_of(&root, folder, None) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain(&format_args!("{}: cannot write the manual: {e}", folder.display()));
            ExitCode::from(FAULT)
        }
    }
}

fn write_pages_of(command: &Command, folder: &Path, above: Option<&str>) -> io::Result<()> {
    let man = Man::new(command.clone())
        .source(format!("incoming {}", env!("CARGO_PKG_VERSION")))
        .manual("Incoming Manual");
    let name = man.get_filename();
    let mut page = BufWriter::new(File::create(folder.join(&name))?);
    man.render(&mut page)?;
    let mut more = Roff::new();
    match above {
        None => CHAPTERS.iter().for_each(|(heading, entries)| write_chapter(&mut more, heading, entries)),
        Some(above) => {
            more.control("SH", ["SEE ALSO"]).text([bold(above), roman("(1)")]);
        }
    }
    more.to_writer(&mut page)?;
    page.flush()?;
    let name = name.trim_end_matches(".1");
    let mut commands = command.get_subcommands().filter(|command| !command.is_hide_set());
    commands.try_for_each(|command| write_pages_of(command, folder, Some(name)))
}

fn write_chapter(page: &mut Roff, heading: &str, entries: &[(&str, &str)]) {
    page.control("SH", [heading]);
    for (word, meaning) in entries {
        page.control("TP", []).text([bold(*word)]).text([roman(*meaning)]);
    }
}
