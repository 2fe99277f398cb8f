//! Who gets what: routes by recipient, several targets for one message, each with its own progress, and a configuration that changes
//! while mail waits.

mod support;

use std::fs;
use std::path::PathBuf;

use support::client::Client;
use support::setup::Setup;
use support::{maildir, wait};

/// Three Maildirs beside each other. The archive gets a copy of everything.
struct Rig {
    setup: Setup,
    archive: PathBuf,
    vip: PathBuf,
}

impl Rig {
    fn new() -> Self {
        let mut setup = Setup::new();
        let (archive, vip) = (setup.home().join("archive"), setup.home().join("vip"));
        setup
            .retry_soon()
            .set("transport.archive.path", format!("{archive:?}"))
            .set("transport.vip.path", format!("{vip:?}"))
            .set(
                "route",
                "[{ also = true, to = [\"archive\"] }, \
                 { recipients = [\"VIP@mx.test\", \"*.branch.test\"], to = [\"vip\"] }]",
            );
        Rig { setup, archive, vip }
    }

    /// How many messages are in the store, the archive, and with the important.
    fn counts(&self) -> [usize; 3] {
        [self.setup.maildir(), &self.archive, &self.vip].map(maildir::count)
    }
}

const CONTENT: &[u8] = b"Subject: to some\r\n\r\nhello\r\n";

#[test]
fn each_recipient_goes_where_routes_say_and_each_target_makes_its_own_progress() {
    let rig = Rig::new();
    fs::write(&rig.archive, "in the way of a Maildir").unwrap();
    let mut server = rig.setup.start();
    let mut client = Client::greet(server.address());
    client.deliver("a@e.org", &["a@mx.test", "vip@mx.test", "b@mx.test"], CONTENT);
    client.deliver("a@e.org", &["x@deep.sub.branch.test"], CONTENT);
    client.deliver("a@e.org", &["x@branch.test"], CONTENT);
    wait::until("all but the archive have theirs", || rig.counts() == [2, 0, 2]);
    drop(client);
    assert!(server.stop().success());

    let mut server = rig.setup.start();
    wait::until("the archive is tried again", || server.log().matches("transport=\"archive\"").count() >= 3);
    assert!(!server.log().contains("transport=\"store\""), "{}", server.log());
    fs::remove_file(&rig.archive).unwrap();
    wait::until("the archive has its copies", || rig.counts() == [2, 3, 2]);
    assert!(server.stop().success());
    assert_eq!(rig.counts(), [2, 3, 2]);
    let contents = [&rig.archive, &rig.vip].map(|folder| maildir::read(folder.as_path()));
    assert!(contents.iter().flatten().all(|stored| stored.content == CONTENT));

    let mut server = rig.setup.start();
    assert!(server.stop().success());
    assert_eq!(rig.counts(), [2, 3, 2], "nothing is left that could be delivered again");
}

#[test]
fn what_waits_follows_a_changed_configuration() {
    let mut rig = Rig::new();
    for folder in [&rig.archive, &rig.vip] {
        fs::write(folder, "in the way of a Maildir").unwrap();
    }
    let mut server = rig.setup.start();
    let mut client = Client::greet(server.address());
    client.deliver("a@e.org", &["a@mx.test", "vip@mx.test"], CONTENT);
    wait::until("both were tried", || {
        ["archive", "vip"].iter().all(|name| server.log().contains(&format!("transport={name:?}")))
    });
    wait::until("the store has it", || rig.counts() == [1, 0, 0]);
    drop(client);
    assert!(server.stop().success());

    // The archive is not wanted any more, and the important go to the store as others do.
    rig.setup.set("route", "[{ recipients = [\"nobody@mx.test\"], to = [\"vip\"] }]");
    let mut server = rig.setup.start();
    wait::until("the other recipient's copy came to the store", || rig.counts() == [2, 0, 0]);
    assert!(server.stop().success());
    let mut server = rig.setup.start();
    assert!(server.stop().success());
    let log = server.log();
    assert!(log.contains("depth=0"), "{log}");
    assert_eq!(rig.counts(), [2, 0, 0]);
}
