//! Hostile clients: what a server meets besides mail, one named [`Scenario`] at a time or all together.
//!
//! ```text
//! drive::siege      when they begin and end, and on which core
//!   └── play        one hostile connection after another, as its scenario says
//!         ├── slow      little by little, or nothing at all
//!         ├── flood     more than anybody asked for
//!         ├── vanish    gone at the worst moment
//!         ├── secure    handshakes for nothing
//!         └── peer      one connection: octets, replies, and how it ended
//! ```
//!
//! Invariants:
//! - nothing here spins: whatever could, rests between two steps, for a time that is a constant with its reason, so that
//!   the load's own clients on the same core go on being measured and not the harness;
//! - each future may be dropped at any await; a connection that is held then is told of as held.
//!
//! Knows nothing of when a run begins or ends. Waits, as only [`crate::drive`] does besides.

mod figures;
mod flood;
mod peer;
mod secure;
mod slow;
mod vanish;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use glommio::timer::sleep;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::drive::tls::Client;
use crate::plan::Plan;
pub use figures::{Ending, Figures};
use peer::{Manner, Peer};

/// Connections of a scenario where the command line does not say how many: enough to be felt, few enough for the limit on
/// connections from one address that a server may have.
pub const CONNECTIONS_DEFAULT: usize = 4;

/// After a connection that failed, doubled each time until one is made: hostile, not stuck in a loop.
const FAILURE_PAUSE_MIN: Duration = Duration::from_millis(20);
const FAILURE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What a core's hostile connections receive in one call.
const SCRATCH_SIZE: usize = 16 * 1024;
/// Random octets that garbage and the like are cut from: drawn once, because drawing costs more than sending.
const JUNK_SIZE: usize = 64 * 1024;

/// One scenario, and how many connections play it at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Hostile {
    /// What they do.
    pub scenario: Scenario,
    /// How many do it.
    pub connections: usize,
}

/// What a hostile client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// An octet of a command line every so often.
    SlowCommands,
    /// An octet of content every so often.
    SlowContent,
    /// Nothing at all.
    Hold,
    /// Speaks before the greeting.
    EarlyTalk,
    /// A line without end: a command's, or one of content.
    EndlessLine,
    /// RCPT for ever in one transaction.
    EndlessRcpt,
    /// RST in the middle of content.
    Reset,
    /// Random octets, and lines that smuggle.
    Garbage,
    /// A SIZE beyond all bounds, and content to match.
    HugeSize,
    /// One full TLS handshake after another.
    TlsFlood,
    /// Connects and closes.
    Reconnect,
    /// Ends its side of the connection within content.
    HalfClose,
    /// Commands on and on, and never a look at the replies.
    NeverRead,
}

impl Scenario {
    /// Every scenario.
    pub const ALL: [Scenario; 13] = [
        Scenario::SlowCommands,
        Scenario::SlowContent,
        Scenario::Hold,
        Scenario::EarlyTalk,
        Scenario::EndlessLine,
        Scenario::EndlessRcpt,
        Scenario::Reset,
        Scenario::Garbage,
        Scenario::HugeSize,
        Scenario::TlsFlood,
        Scenario::Reconnect,
        Scenario::HalfClose,
        Scenario::NeverRead,
    ];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::SlowCommands => "slow-commands",
            Scenario::SlowContent => "slow-content",
            Scenario::Hold => "hold",
            Scenario::EarlyTalk => "early-talk",
            Scenario::EndlessLine => "endless-line",
            Scenario::EndlessRcpt => "endless-rcpt",
            Scenario::Reset => "reset",
            Scenario::Garbage => "garbage",
            Scenario::HugeSize => "huge-size",
            Scenario::TlsFlood => "tls-flood",
            Scenario::Reconnect => "reconnect",
            Scenario::HalfClose => "half-close",
            Scenario::NeverRead => "never-read",
        }
    }

    /// The rest after a connection that ended, before the next: what bounds the CPU time of those that end soon.
    fn rest(self) -> Duration {
        let milliseconds = match self {
            // As fast as it can without being the harness's main work: a connection costs both sides some 0.1 ms.
            Scenario::Reconnect => 4,
            // A full handshake costs this side some 0.3 ms and a server more.
            Scenario::TlsFlood => 20,
            Scenario::EarlyTalk | Scenario::Reset | Scenario::HalfClose => 20,
            Scenario::Garbage => 50,
            // What a server ends was meant to last.
            _ => 100,
        };
        Duration::from_millis(milliseconds)
    }

    fn manner(self) -> Manner {
        match self {
            // A connection that was reset leaves no TIME_WAIT behind: this side's ports would run out within a minute.
            Scenario::Reset | Scenario::Reconnect | Scenario::TlsFlood => Manner::Resetting,
            Scenario::NeverRead => Manner::Deaf,
            _ => Manner::Plain,
        }
    }
}

/// Scenarios as one word of the command line: `NAME` or `NAME=CONNECTIONS`, where NAME may be `all`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostileArgument(Vec<Hostile>);

impl FromStr for HostileArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, connections) = match text.split_once('=') {
            None => (text, CONNECTIONS_DEFAULT),
            Some((name, count)) => {
                let count = count.parse().ok().filter(|count| *count > 0);
                (name, count.ok_or_else(|| format!("{text:?}: a number of connections above 0 is wanted"))?)
            }
        };
        let chosen: Vec<Hostile> = Scenario::ALL
            .into_iter()
            .filter(|scenario| name == "all" || name == scenario.name())
            .map(|scenario| Hostile { scenario, connections })
            .collect();
        if chosen.is_empty() {
            let known: Vec<&str> = Scenario::ALL.into_iter().map(Scenario::name).collect();
            return Err(format!("there is no scenario {name:?}; there are all, {}", known.join(", ")));
        }
        Ok(HostileArgument(chosen))
    }
}

impl HostileArgument {
    /// All that was named, each scenario once: what was said last of it holds, so that `all` may be varied.
    pub fn merge(arguments: &[HostileArgument]) -> Vec<Hostile> {
        let all = arguments.iter().flat_map(|argument| &argument.0);
        let merged: BTreeMap<Scenario, usize> =
            all.map(|hostile| (hostile.scenario, hostile.connections)).collect();
        merged.into_iter().map(|(scenario, connections)| Hostile { scenario, connections }).collect()
    }
}

/// What the hostile connections of one core share.
pub struct Ground {
    plan: Arc<Plan>,
    tls: Arc<Client>,
    scratch: RefCell<Vec<u8>>,
    junk: Vec<u8>,
    figures: RefCell<BTreeMap<Scenario, Figures>>,
}

impl Ground {
    /// Ground for the scenarios of `plan`.
    pub fn new(plan: Arc<Plan>, tls: Arc<Client>) -> Self {
        let mut junk = vec![0; JUNK_SIZE];
        SmallRng::seed_from_u64(plan.seed).fill_bytes(&mut junk);
        let figures = plan.hostile.iter().map(|hostile| (hostile.scenario, Figures::default()));
        Ground {
            figures: RefCell::new(figures.collect()),
            scratch: RefCell::new(vec![0; SCRATCH_SIZE]),
            junk,
            tls,
            plan,
        }
    }

    /// What came of all of it so far; nothing is left here.
    pub fn take_figures(&self) -> BTreeMap<Scenario, Figures> {
        std::mem::take(&mut *self.figures.borrow_mut())
    }

    fn note(&self, scenario: Scenario, with: impl FnOnce(&mut Figures)) {
        with(self.figures.borrow_mut().entry(scenario).or_default());
    }
}

/// Plays `scenario` with one connection after another, for ever. `n` is the connection's number: scenarios with two faces
/// show one by even and the other by odd numbers.
pub async fn play(ground: Rc<Ground>, scenario: Scenario, n: usize, source: Option<IpAddr>) {
    let mut random = SmallRng::seed_from_u64(ground.plan.seed ^ (n as u64).wrapping_mul(0x9E37_79B9));
    let mut failure_pause = FAILURE_PAUSE_MIN;
    loop {
        match Peer::connect(&ground, scenario, scenario.manner(), source).await {
            Ok(mut peer) => {
                failure_pause = FAILURE_PAUSE_MIN;
                let gone = visit(&mut peer, scenario, n, &mut random).await.err();
                peer.end(gone);
                sleep(scenario.rest()).await;
            }
            Err(_) => {
                sleep(failure_pause).await;
                failure_pause = (failure_pause * 2).min(FAILURE_PAUSE_MAX);
            }
        }
    }
}

/// One connection from its beginning. In order: this side has done what it wanted.
async fn visit(
    peer: &mut Peer<'_>,
    scenario: Scenario,
    n: usize,
    random: &mut SmallRng,
) -> Result<(), peer::Gone> {
    match scenario {
        Scenario::SlowCommands => slow::commands(peer).await,
        Scenario::SlowContent => slow::content(peer).await,
        Scenario::Hold => slow::hold(peer).await,
        Scenario::EarlyTalk => flood::early_talk(peer).await,
        Scenario::EndlessLine if n.is_multiple_of(2) => flood::endless_command_line(peer).await,
        Scenario::EndlessLine => flood::endless_content_line(peer).await,
        Scenario::EndlessRcpt => flood::endless_recipients(peer).await,
        Scenario::Garbage => flood::garbage(peer, random).await,
        Scenario::HugeSize => flood::huge_size(peer).await,
        Scenario::NeverRead => flood::never_read(peer).await,
        Scenario::Reset => vanish::reset(peer).await,
        // To have been connected is all.
        Scenario::Reconnect => Ok(()),
        Scenario::HalfClose => vanish::half_close(peer).await,
        Scenario::TlsFlood => secure::flood(peer).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Vec<Hostile> {
        let arguments: Vec<HostileArgument> = words.iter().map(|word| word.parse().unwrap()).collect();
        HostileArgument::merge(&arguments)
    }

    #[test]
    fn each_scenario_is_chosen_by_the_name_that_reports_give_it() {
        for scenario in Scenario::ALL {
            let expected = Hostile { scenario, connections: 7 };
            assert_eq!(parsed(&[&format!("{}=7", scenario.name())]), [expected]);
            assert_eq!(serde_json::to_value(scenario).unwrap(), scenario.name());
        }
    }

    #[test]
    fn all_may_be_varied_by_what_follows() {
        let hostile = parsed(&["all=8", "hold=50", "reset"]);
        assert_eq!(hostile.len(), Scenario::ALL.len());
        for Hostile { scenario, connections } in hostile {
            let expected = match scenario {
                Scenario::Hold => 50,
                Scenario::Reset => CONNECTIONS_DEFAULT,
                _ => 8,
            };
            assert_eq!(connections, expected, "{}", scenario.name());
        }
    }

    #[test]
    fn a_name_that_is_not_known_is_answered_with_those_that_are() {
        let fault = "slow".parse::<HostileArgument>().unwrap_err();
        assert!(Scenario::ALL.iter().all(|scenario| fault.contains(scenario.name())), "{fault}");
        for fault in ["", "hold=0", "hold=many", "all="] {
            assert!(fault.parse::<HostileArgument>().is_err(), "{fault:?}");
        }
    }
}
