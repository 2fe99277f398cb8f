//! Delivers into Maildirs: write in `tmp`, sync, rename into `new`, sync `new`.
//!
//! What is written: one line `Return-Path: <reverse-path>` (RFC 5321 §4.4, unless switched off), then the content octet for octet,
//! trace lines first and with CRLF as line ends.
//!
//! The name follows the Maildir convention, `<seconds>.M<µs>P<pid>Q<count>_<message id>.<host>,S=<octets>`: unique in all the
//! world, and a message delivered a second time because the process ended before it could note the first is recognised by its
//! message id.
//!
//! The steps, and what breaks if two are swapped:
//! 1. the folder's entries are durable in all its parents: without it, a power cut takes the folder and every message in it;
//! 2. the file in `tmp` is written whole and synced: renamed before, a power cut leaves an empty message in `new`;
//! 3. rename into `new`: readers see it whole or not at all;
//! 4. `new` is synced: reported as delivered before, the spool lets go of a message whose rename a power cut undoes.
//!
//! One sync of the file and one of `new` per delivery; on a journaling file system those of concurrent workers share a journal
//! commit, so more workers mean more messages a second on one disk.
//!
//! What is left in `tmp` by a process that ended is for the Maildir's readers to clear away, as they always do.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::template::{PathTemplate, TooLong};
use crate::delivery::{Attempt, BlockingDelivery, CopyError, Outcome, folder};
use crate::limits::COPY_SIZE;
use crate::mail::{Capabilities, Domain};

/// How many folders are remembered as durable. Forgetting costs a few syncs; 64 Ki names of 100 octets are 6 MiB.
const DURABLE_FOLDERS_MAX: usize = 64 << 10;

/// A Maildir, or one for each recipient.
pub struct Maildir {
    path: PathTemplate,
    return_path: bool,
    host: Domain,
    count: AtomicU64,
    /// Folders of which this process knows that step 1 was done.
    durable: Mutex<HashSet<PathBuf>>,
}

impl Maildir {
    /// Delivers into the folder that `path` gives for a recipient; `host` is the gateway's
    /// name. The Maildirs are made when they are needed.
    pub fn new(path: PathTemplate, return_path: bool, host: Domain) -> Self {
        Maildir { path, return_path, host, count: AtomicU64::new(0), durable: Mutex::new(HashSet::new()) }
    }

    fn deliver_into(&self, maildir: &Path, attempt: &Attempt) -> io::Result<()> {
        self.make_durable(maildir)?;
        let return_path = match self.return_path {
            true => format!("Return-Path: <{}>\r\n", attempt.envelope.reverse_path),
            false => String::new(),
        };
        let name = self.unique_name(attempt, return_path.len() as u64 + attempt.content_size())?;
        let (tmp, new) = (maildir.join("tmp").join(&name), maildir.join("new").join(&name));
        let file = match create_file(&tmp) {
            // Somebody removed the folder since we made it.
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.durable.lock().unwrap_or_else(|e| e.into_inner()).remove(maildir);
                self.make_durable(maildir)?;
                create_file(&tmp)?
            }
            file => file?,
        };
        write_whole(file, &return_path, attempt)
            .and_then(|()| fs::rename(&tmp, &new))
            .inspect_err(|_| drop(fs::remove_file(&tmp)))?;
        // Without a proof that it is durable it will be delivered again: better not twice, where that can still be helped.
        folder::sync(&maildir.join("new")).inspect_err(|_| drop(fs::remove_file(&new)))
    }

    /// Step 1, once in the life of the process for each folder. Workers that need the same folder wait for the one that makes it:
    /// that they can see it does not mean that it is durable.
    fn make_durable(&self, maildir: &Path) -> io::Result<()> {
        let mut durable = self.durable.lock().unwrap_or_else(|e| e.into_inner());
        if durable.contains(maildir) {
            return Ok(());
        }
        ["tmp", "new", "cur"].iter().try_for_each(|part| folder::create(&maildir.join(part)))?;
        if durable.len() >= DURABLE_FOLDERS_MAX {
            durable.clear();
        }
        durable.insert(maildir.to_owned());
        Ok(())
    }

    fn unique_name(&self, attempt: &Attempt, size: u64) -> io::Result<String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(io::Error::other)?;
        let (seconds, micros) = (now.as_secs(), now.subsec_micros());
        let (pid, count) = (process::id(), self.count.fetch_add(1, Ordering::Relaxed));
        Ok(format!("{seconds}.M{micros}P{pid}Q{count}_{}.{},S={size}", attempt.id, self.file_host()))
    }

    /// The host name as it may stand in a file name: `:` begins the flags there. (Neither it nor `/` is in a name, but `:` is in an
    /// IPv6 literal.)
    fn file_host(&self) -> String {
        let mut host = self.host.as_str().replace(':', "\\072").replace('/', "\\057");
        // Time, counters and id take less than 100 of a name's 255 octets; what names the host beyond the rest names nobody else.
        host.truncate(host.floor_char_boundary(128));
        host
    }
}

impl BlockingDelivery for Maildir {
    /// A file holds any octets, and the message goes no further. Nobody here tells a sender that it was delivered.
    fn capabilities(&self) -> Capabilities {
        Capabilities { binary: true, dsn: false, require_tls: true }
    }

    /// One copy for each folder: recipients whose folder is the same share it.
    fn deliver(&self, attempt: &Attempt) -> Vec<Outcome> {
        let mut seen: Vec<(PathBuf, Outcome)> = Vec::new();
        let deliver_to = |path| match self.path.expand(path, &self.host) {
            Err(TooLong) => {
                Outcome::rejected("the recipient's folder would have a name of more than 255 octets")
            }
            Ok(maildir) => match seen.iter().find(|(done, _)| *done == maildir) {
                Some((_, outcome)) => outcome.clone(),
                None => {
                    let outcome = match self.deliver_into(&maildir, attempt) {
                        Ok(()) => Outcome::delivered(),
                        Err(e) => Outcome::deferred(format!("{}: {e}", maildir.display())),
                    };
                    seen.push((maildir, outcome.clone()));
                    outcome
                }
            },
        };
        attempt.paths().map(deliver_to).collect()
    }
}

fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Step 2.
fn write_whole(file: File, return_path: &str, attempt: &Attempt) -> io::Result<()> {
    let size = return_path.len() as u64 + attempt.content_size();
    let mut sink = BufWriter::with_capacity(size.min(COPY_SIZE as u64) as usize, file);
    sink.write_all(return_path.as_bytes())?;
    attempt.copy_content(&mut sink).map_err(|e| match e {
        CopyError::Read(e) => io::Error::new(e.kind(), CopyError::Read(e)),
        CopyError::Write(e) => e,
    })?;
    sink.into_inner().map_err(|e| e.into_error())?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::delivery::tests::attempt_for;
    use crate::delivery::{Content, StoredContent};
    use crate::mail::ReversePath;

    fn maildir(path: &Path, return_path: bool) -> Maildir {
        let path = PathTemplate::parse(path.to_str().unwrap()).unwrap();
        Maildir::new(path, return_path, Domain::parse("mx.example.com", false).unwrap())
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).map(|entries| entries.map(|e| e.unwrap().path()).collect());
        let mut files: Vec<PathBuf> = entries.unwrap_or_default();
        files.sort();
        files
    }

    #[test]
    fn content_is_kept_octet_for_octet_below_one_line() {
        let every_octet: Vec<u8> = (0..=255).collect();
        let contents: [&[&[u8]]; 5] = [
            &[],
            &[b"Received: x\r\n", b"\r\n.\r\n..\r\nFrom x\r\n"],
            &[&every_octet, b"no line end"],
            &[b"bare\n.\nlf\r"],
            &[&[b'x'; 998], b"\r\n", &[b'y'; 3 << 20]],
        ];
        for pieces in contents {
            for return_path in [true, false] {
                let root = tempfile::tempdir().unwrap();
                let mut attempt = attempt_for(&["a@e.org"]);
                let parts = pieces.iter().map(|p| Bytes::copy_from_slice(p)).collect();
                attempt.content = Arc::new(Content::Memory(parts));
                let outcomes = maildir(root.path(), return_path).deliver(&attempt);
                assert_eq!(outcomes, [Outcome::delivered()]);
                let [file] = &files(&root.path().join("new"))[..] else { panic!("one file") };
                let head: &[u8] = if return_path { b"Return-Path: <s@e.net>\r\n" } else { b"" };
                let expected = [head, &pieces.concat()].concat();
                assert!(fs::read(file).unwrap() == expected);
                let name = file.file_name().unwrap().to_str().unwrap();
                assert!(name.ends_with(&format!("_000000111.mx.example.com,S={}", expected.len())), "{name}");
                assert!(files(&root.path().join("tmp")).is_empty() && root.path().join("cur").is_dir());
            }
        }
    }

    #[test]
    fn the_null_reverse_path_is_written_as_such() {
        let root = tempfile::tempdir().unwrap();
        let mut attempt = attempt_for(&["a@e.org"]);
        Arc::make_mut(&mut attempt.envelope).reverse_path = ReversePath::Null;
        maildir(root.path(), true).deliver(&attempt);
        let content = fs::read(&files(&root.path().join("new"))[0]).unwrap();
        assert!(content.starts_with(b"Return-Path: <>\r\nReceived: x\r\n"));
    }

    #[test]
    fn each_folder_gets_one_copy() {
        let recipients = ["a@e.org", "b@E.org", "A@e.org", "postmaster", "a@e.net"];
        let table: [(&str, &[&str]); 4] = [
            ("all", &["all"]),
            ("{domain}", &["e.net", "e.org", "mx.example.com"]),
            ("{domain}/{local}", &["e.net/a", "e.org/A", "e.org/a", "e.org/b", "mx.example.com/postmaster"]),
            (
                "u/{recipient}",
                &["u/A@e.org", "u/a@e.net", "u/a@e.org", "u/b@e.org", "u/postmaster@mx.example.com"],
            ),
        ];
        for (template, folders) in table {
            let root = tempfile::tempdir().unwrap();
            let transport = maildir(&root.path().join(template), true);
            let outcomes = transport.deliver(&attempt_for(&recipients));
            assert_eq!(outcomes, vec![Outcome::delivered(); recipients.len()], "{template}");
            for folder in folders {
                assert_eq!(files(&root.path().join(folder).join("new")).len(), 1, "{template}: {folder}");
            }
        }
    }

    struct Stored(io::Result<&'static [u8]>, u64);

    impl StoredContent for Stored {
        fn size(&self) -> u64 {
            self.1
        }

        fn parts_count(&self) -> usize {
            1
        }

        fn part(&self, _: usize) -> io::Result<Bytes> {
            self.0.as_ref().map(|octets| Bytes::from_static(octets)).map_err(|e| e.kind().into())
        }

        fn is_at_hand(&self, _: usize) -> bool {
            false
        }
    }

    #[test]
    fn content_that_cannot_be_read_whole_is_deferred_and_leaves_nothing() {
        let table = [
            (Stored(Err(ErrorKind::InvalidData.into()), 4), "damaged"),
            (Stored(Ok(b"part"), 5), "cannot be read"),
            (Stored(Ok(b"more"), 3), "damaged"),
        ];
        for (content, words) in table {
            let root = tempfile::tempdir().unwrap();
            let mut attempt = attempt_for(&["a@e.org", "b@e.org"]);
            attempt.content = Arc::new(Content::Stored(Box::new(content)));
            let outcomes = maildir(root.path(), true).deliver(&attempt);
            for outcome in outcomes {
                assert!(
                    matches!(&outcome, Outcome::Deferred { reason, .. } if reason.contains(words)),
                    "{outcome:?}"
                );
            }
            for part in ["tmp", "new", "cur"] {
                assert!(files(&root.path().join(part)).is_empty());
            }
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_defers_only_its_recipients() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("e.org"), "in the way").unwrap();
        let transport = maildir(&root.path().join("{domain}"), true);
        let outcomes = transport.deliver(&attempt_for(&["a@e.org", "a@e.net"]));
        assert!(matches!(outcomes[0], Outcome::Deferred { .. }));
        assert_eq!(outcomes[1], Outcome::delivered());
        fs::remove_file(root.path().join("e.org")).unwrap();
        assert_eq!(transport.deliver(&attempt_for(&["a@e.org"])), [Outcome::delivered()]);
    }

    #[test]
    fn a_folder_that_was_removed_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        let transport = maildir(&root.path().join("m"), true);
        for _ in 0..2 {
            assert_eq!(transport.deliver(&attempt_for(&["a@e.org"])), [Outcome::delivered()]);
            fs::remove_dir_all(root.path().join("m")).unwrap();
        }
    }

    #[test]
    fn a_name_too_long_for_a_file_is_rejected() {
        let root = tempfile::tempdir().unwrap();
        // The local part takes 62 × 3 + 2 × 3 = 192 octets, with the `@` 193; the domain has the rest.
        for (domain_size, is_delivered) in [(62, true), (63, false)] {
            let recipient = format!("\"{}\"@{}", " ".repeat(62), "d".repeat(domain_size));
            let outcomes =
                maildir(&root.path().join("{recipient}"), true).deliver(&attempt_for(&[&recipient]));
            assert_eq!(outcomes[0] == Outcome::delivered(), is_delivered, "{outcomes:?}");
            assert_eq!(matches!(outcomes[0], Outcome::Rejected { .. }), !is_delivered, "{outcomes:?}");
        }
    }

    #[test]
    fn names_are_unique_among_workers_and_tell_a_redelivery() {
        let root = tempfile::tempdir().unwrap();
        let transport = maildir(root.path(), true);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..25).for_each(|_| drop(transport.deliver(&attempt_for(&["a@e.org"])))));
            }
        });
        let files = files(&root.path().join("new"));
        assert_eq!(files.len(), 100);
        assert!(files.iter().all(|file| file.to_str().unwrap().contains("_000000111.")));
    }

    #[test]
    fn the_host_fits_a_file_name() {
        for host in ["[IPv6:2001:db8::1]".to_string(), format!("{}example", "d.".repeat(120))] {
            let root = tempfile::tempdir().unwrap();
            let path = PathTemplate::parse(root.path().to_str().unwrap()).unwrap();
            let transport = Maildir::new(path, true, Domain::parse(&host, false).unwrap());
            assert_eq!(transport.deliver(&attempt_for(&["a@e.org"])), [Outcome::delivered()], "{host}");
            assert!(!files(&root.path().join("new"))[0].file_name().unwrap().to_str().unwrap().contains(':'));
        }
    }
}
