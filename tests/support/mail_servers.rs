//! Real mail servers beside the gateway: Dovecot and Postfix, as instances of their own in temporary folders, on loopback ports.
//!
//! Each is ended when it is dropped, can be killed and started again where it was, and says what it has.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::certificates::Issued;
use super::{tools, wait};

/// The password of every user of [`Dovecot`].
pub const PASSWORD: &str = "secret";

/// The user and the group to whom the mail belongs.
const NOBODY: u32 = 65534;

/// How often another port is tried, if somebody else has taken the one that was free.
const PORT_TRIES: usize = 20;

/// A program that runs beside the gateway; dropped, it is ended.
pub struct Beside(Child);

impl Beside {
    /// Starts `command` without input.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).spawn();
        Beside(child.unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("its status").is_none()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Both end their own children when they are told to.
        tools::signal(self.0.id(), "TERM");
        if wait::poll(wait::PATIENCE, || self.0.try_wait().expect("its status")).is_none() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// A port of the loopback that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("its address").port()
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Waits until everybody listens; not if `process` has ended.
fn listens(process: &mut Beside, ports: &[u16]) -> bool {
    let is_up = wait::poll(wait::PATIENCE, || {
        if !process.is_running() {
            return Some(false);
        }
        ports.iter().all(|port| TcpStream::connect(loopback(*port)).is_ok()).then_some(true)
    });
    is_up.expect("it listens or ends")
}

/// Dovecot for the users in a file: LMTP on a socket and a port, IMAP, and a socket where others have passwords verified.
pub struct Dovecot {
    process: Option<Beside>,
    folder: tempfile::TempDir,
    lmtp_port: u16,
    imap_port: u16,
}

impl Dovecot {
    /// For these users.
    #[track_caller]
    pub fn start(users: &[&str]) -> Self {
        Self::start_with(users, None)
    }

    /// For these users; with a certificate that it shows to those who say STARTTLS.
    #[track_caller]
    pub fn start_with(users: &[&str], certificate: Option<&Issued>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // Its processes have users of their own.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        let mail = folder.path().join("mail");
        fs::create_dir(&mail).expect("a folder");
        chown(&mail, Some(NOBODY), Some(NOBODY)).expect("an owner");
        let users: String =
            users.iter().map(|user| format!("{user}:{{PLAIN}}{PASSWORD}::::/nonexistent::\n")).collect();
        fs::write(folder.path().join("users"), users).expect("users");
        let mut dovecot = Dovecot { process: None, folder, lmtp_port: 0, imap_port: 0 };
        for _ in 0..PORT_TRIES {
            (dovecot.lmtp_port, dovecot.imap_port) = (free_port(), free_port());
            dovecot.configure(certificate);
            if dovecot.try_restart() {
                return dovecot;
            }
        }
        panic!("Dovecot does not start: {}", dovecot.log());
    }

    fn configure(&self, certificate: Option<&Issued>) {
        let home = self.folder.path().display();
        let ssl = match certificate {
            None => "ssl = no\n".to_string(),
            Some(Issued { chain, key }) => {
                fs::write(self.folder.path().join("chain.pem"), chain).expect("a chain");
                fs::write(self.folder.path().join("key.pem"), key).expect("a key");
                format!("ssl = yes\nssl_cert = <{home}/chain.pem\nssl_key = <{home}/key.pem\n")
            }
        };
        let (lmtp_port, imap_port) = (self.lmtp_port, self.imap_port);
        let config = format!(
            "base_dir = {home}/run\nstate_dir = {home}/state\nlog_path = {home}/log\nprotocols = lmtp imap\n{ssl}\
             listen = 127.0.0.1\ndisable_plaintext_auth = no\n\
             mail_location = maildir:{home}/mail/%u\nlmtp_save_to_detail_mailbox = no\nrecipient_delimiter = +\n\
             mail_max_userip_connections = 1000\ndefault_vsz_limit = 1G\n\
             passdb {{\n driver = passwd-file\n args = username_format=%u {home}/users\n}}\n\
             userdb {{\n driver = passwd-file\n args = username_format=%u {home}/users\n \
             override_fields = uid=nobody gid=nogroup home={home}/mail/%u\n}}\n\
             service lmtp {{\n unix_listener {home}/lmtp {{\n  mode = 0666\n }}\n \
             inet_listener lmtp {{\n  port = {lmtp_port}\n }}\n}}\n\
             service imap-login {{\n inet_listener imap {{\n  port = {imap_port}\n }}\n \
             inet_listener imaps {{\n  port = 0\n }}\n}}\n\
             service auth {{\n unix_listener {home}/auth {{\n  mode = 0666\n }}\n}}\n"
        );
        fs::write(self.folder.path().join("dovecot.conf"), config).expect("a configuration");
    }

    /// Starts it again where it was.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        assert!(self.try_restart(), "Dovecot does not start: {}", self.log());
    }

    fn try_restart(&mut self) -> bool {
        let mut command = Command::new(tools::program("dovecot"));
        command.arg("-F").arg("-c").arg(self.folder.path().join("dovecot.conf"));
        let mut process = Beside::start(command.stderr(Stdio::null()));
        if !listens(&mut process, &[self.lmtp_port, self.imap_port]) {
            return false;
        }
        self.process = Some(process);
        let socket = self.socket();
        wait::until("Dovecot listens", || UnixStream::connect(&socket).is_ok());
        true
    }

    /// Ends it.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Where it speaks LMTP in the file system.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("lmtp")
    }

    /// Where others have passwords verified.
    pub fn auth_socket(&self) -> PathBuf {
        self.folder.path().join("auth")
    }

    /// Where it speaks LMTP on the network.
    pub fn lmtp(&self) -> SocketAddr {
        loopback(self.lmtp_port)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Every message of this user's inbox, read over IMAP.
    #[track_caller]
    pub fn inbox(&self, user: &str) -> Vec<Vec<u8>> {
        let read = || -> io::Result<Vec<Vec<u8>>> {
            let mut imap = Imap::connect(loopback(self.imap_port))?;
            imap.say(&format!("LOGIN {user} {PASSWORD}"))?;
            imap.say("EXAMINE INBOX")?;
            imap.say("FETCH 1:* BODY.PEEK[]")
        };
        read().unwrap_or_else(|e| panic!("IMAP for {user}: {e}\n{}", self.log()))
    }

    /// How many messages this user's inbox has.
    pub fn count(&self, user: &str) -> usize {
        let folder = self.folder.path().join("mail").join(user);
        let files = |name| fs::read_dir(folder.join(name)).map_or(0, Iterator::count);
        files("new") + files("cur")
    }
}

/// A session of IMAP (RFC 3501), as far as reading an inbox needs one.
struct Imap(BufReader<TcpStream>);

impl Imap {
    fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut imap = Imap(BufReader::new(stream));
        imap.0.read_line(&mut String::new())?;
        Ok(imap)
    }

    /// Says a command that must be taken; the literals that came before it was.
    fn say(&mut self, command: &str) -> io::Result<Vec<Vec<u8>>> {
        self.0.get_mut().write_all(format!("x {command}\r\n").as_bytes())?;
        let mut literals = Vec::new();
        loop {
            let mut line = Vec::new();
            if self.0.read_until(b'\n', &mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end();
            if let Some(size) = line.strip_suffix('}').and_then(|rest| rest.rsplit_once('{')) {
                let mut literal = vec![0; size.1.parse().map_err(io::Error::other)?];
                self.0.read_exact(&mut literal)?;
                literals.push(literal);
            } else if let Some(said) = line.strip_prefix("x ") {
                // An empty inbox has no messages to be fetched.
                let is_done = said.starts_with("OK") || said.contains("Invalid messageset");
                return if is_done { Ok(literals) } else { Err(io::Error::other(line.to_string())) };
            }
        }
    }
}

/// Postfix that takes mail by SMTP and puts it into one Maildir.
pub struct Postfix {
    process: Option<Beside>,
    folder: tempfile::TempDir,
    port: u16,
}

impl Postfix {
    /// With these lines of `main.cf` beside those that any instance has. It takes mail for every address in `mx.test` but `nobody`.
    #[track_caller]
    pub fn start(settings: &str, certificate: Option<&Issued>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut postfix = Postfix { process: None, folder, port: 0 };
        postfix.lay_out(certificate);
        for _ in 0..PORT_TRIES {
            postfix.port = free_port();
            postfix.configure(settings);
            if postfix.try_restart() {
                return postfix;
            }
        }
        panic!("Postfix does not start: {}", postfix.log());
    }

    /// The folders, whose owners `postfix check` would ask for.
    fn lay_out(&self, certificate: Option<&Issued>) {
        let id = |what: &str, name: &str| -> u32 {
            let said = tools::run("getent", [what, name]).stdout;
            let line = String::from_utf8(said).expect("text");
            line.split(':').nth(2).expect("an id").trim().parse().expect("a number")
        };
        let (user, group) = (id("passwd", "postfix"), id("group", "postdrop"));
        let home = self.folder.path();
        let folder = |name: &str, owner: Option<u32>, group: Option<u32>, mode: u32| {
            let path = home.join(name);
            fs::create_dir_all(&path).expect("a folder");
            chown(&path, owner, group).expect("an owner");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("permissions");
        };
        fs::set_permissions(home, fs::Permissions::from_mode(0o755)).expect("permissions");
        for name in ["etc", "queue", "queue/pid"] {
            folder(name, None, None, 0o755);
        }
        for name in [
            "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private",
            "saved", "trace",
        ] {
            folder(&format!("queue/{name}"), Some(user), None, 0o700);
        }
        folder("queue/maildrop", Some(user), Some(group), 0o1730);
        folder("queue/public", Some(user), Some(group), 0o2710);
        folder("data", Some(user), None, 0o700);
        folder("mail", Some(NOBODY), None, 0o755);
        if let Some(Issued { chain, key }) = certificate {
            fs::write(home.join("etc/pair.pem"), format!("{key}{chain}")).expect("a certificate");
        }
        fs::write(home.join("etc/recipients"), "@mx.test inbox/\n").expect("a map");
    }

    fn configure(&self, settings: &str) {
        let home = self.folder.path().display();
        let tls = match self.folder.path().join("etc/pair.pem").exists() {
            true => format!(
                "smtpd_tls_chain_files = {home}/etc/pair.pem\nsmtpd_tls_security_level = may\nsmtpd_tls_received_header = yes\n"
            ),
            false => String::new(),
        };
        // What is said last counts.
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {home}/queue\ndata_directory = {home}/data\n\
             command_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\nmail_owner = postfix\n\
             setgid_group = postdrop\nmyhostname = store.test\nmydestination =\nalias_maps =\nlocal_recipient_maps =\n\
             mynetworks = 127.0.0.0/8\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n\
             message_size_limit = 104857600\nmaillog_file = {home}/maillog\nmaillog_file_prefixes = {home}\n\
             virtual_mailbox_domains = mx.test\nvirtual_mailbox_base = {home}/mail\nvirtual_mailbox_limit = 0\n\
             virtual_mailbox_maps = texthash:{home}/etc/recipients\n\
             virtual_uid_maps = static:65534\nvirtual_gid_maps = static:65534\n\
             smtpd_recipient_restrictions = check_recipient_access inline:{{nobody@mx.test=REJECT}}, reject_unauth_destination\n\
             smtpd_client_connection_count_limit = 0\nsmtpd_client_connection_rate_limit = 0\n\
             smtpd_peername_lookup = no\ndisable_dns_lookups = yes\nlocal_header_rewrite_clients =\n\
             smtpd_tls_loglevel = 1\n{tls}{settings}\n"
        );
        fs::write(self.folder.path().join("etc/main.cf"), main).expect("a configuration");
        let master = format!(
            "127.0.0.1:{} inet n - n - 100 smtpd\npostlog unix-dgram n - n - 1 postlogd\n\
             cleanup unix n - n - 0 cleanup\nqmgr unix n - n 1 1 qmgr\nrewrite unix - - n - - trivial-rewrite\n\
             bounce unix - - n - 0 bounce\ndefer unix - - n - 0 bounce\ntrace unix - - n - 0 bounce\n\
             error unix - - n - - error\nretry unix - - n - - error\nvirtual unix - n n - - virtual\nsmtp unix - - n - - smtp\nlmtp unix - - n - - lmtp\n\
             tlsmgr unix - - n 1000? 1 tlsmgr\nanvil unix - - n - 1 anvil\nproxymap unix - - n - - proxymap\n",
            self.port
        );
        fs::write(self.folder.path().join("etc/master.cf"), master).expect("its services");
    }

    /// Starts it again where it was.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        assert!(self.try_restart(), "Postfix does not start: {}", self.log());
    }

    fn try_restart(&mut self) -> bool {
        let mut command = Command::new("/usr/lib/postfix/sbin/master");
        command.arg("-c").arg(self.folder.path().join("etc")).current_dir("/");
        let mut process = Beside::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        let is_up = listens(&mut process, &[self.port]);
        self.process = Some(process).filter(|_| is_up);
        is_up
    }

    /// Ends it.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        loopback(self.port)
    }

    /// The process that starts all others.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").pid()
    }

    /// Its Maildir.
    pub fn inbox(&self) -> PathBuf {
        self.folder.path().join("mail/inbox")
    }

    /// Every message in its Maildir, with CRLF for its line ends.
    pub fn messages(&self) -> Vec<Vec<u8>> {
        read_maildir(&self.inbox())
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("maillog")).unwrap_or_default()
    }
}

/// The messages in `new` of a Maildir whose lines end with LF, with CRLF.
fn read_maildir(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(files) = fs::read_dir(folder.join("new")) else { return Vec::new() };
    let read = |path: PathBuf| {
        let octets = fs::read(path).expect("a message");
        let mut content = Vec::with_capacity(octets.len() + octets.len() / 32);
        for line in octets.split_inclusive(|c| *c == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(text) => {
                    content.extend_from_slice(text);
                    content.extend_from_slice(b"\r\n");
                }
                None => content.extend_from_slice(line),
            }
        }
        content
    };
    files.flatten().map(|file| read(file.path())).collect()
}
