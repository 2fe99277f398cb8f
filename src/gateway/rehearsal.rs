//! What the policies of a configuration would say about a session that does not take place.
//!
//! They are asked as a gateway would ask them, phase by phase, with one difference: nothing is counted or remembered. What a running gateway has
//! counted is not seen.

use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::{Error, policies};
use crate::config::Config;
use crate::mail::{ForwardPath, Phase, Refusal, ReversePath, Tls, TlsVersion};
use crate::policy::{Facts, Found, Notes, Policies, Report, Round, Step, Unavailable, Verdict};
use crate::smtp;

/// The facts of the session.
#[derive(Clone, Debug)]
pub struct Rehearsal {
    /// Whose it is.
    pub ip: IpAddr,
    /// Where it has connected to; `None`: the first listener.
    pub listener: Option<SocketAddr>,
    /// What it says with EHLO.
    pub hello: String,
    /// MAIL FROM.
    pub reverse_path: ReversePath,
    /// RCPT TO, one after the other.
    pub recipients: Vec<ForwardPath>,
    /// Octets, as declared and as they come.
    pub size: Option<u64>,
    /// Whether there is TLS.
    pub tls: Option<TlsVersion>,
    /// As whom it has logged in.
    pub user: Option<String>,
    /// Later phases are asked even if the session would not get there.
    pub goes_on: bool,
}

/// What was said by one policy, or what that came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsed {
    /// When.
    pub phase: Phase,
    /// The recipient in question.
    pub recipient: Option<String>,
    /// Who; `None`: the whole of the phase.
    pub policy: Option<String>,
    /// The word for the verdict; `unavailable`: it could not decide.
    pub verdict: &'static str,
    /// The tag, the name, the recipients in place, why it could not decide.
    pub what: String,
    /// What decided a refusal.
    pub key: String,
    /// The reply, if the peer is refused.
    pub reply: Option<String>,
    /// It changes nothing.
    pub is_dry: bool,
}

/// Asks the policies of `config`.
pub fn rehearse(config: &Config, rehearsal: &Rehearsal) -> Result<Vec<Rehearsed>, Error> {
    let asked = policies::load(config, &[], None)?;
    let listener = match rehearsal.listener {
        None => &config.listeners[0],
        Some(address) => config
            .listeners
            .iter()
            .find(|listener| listener.address == address)
            .ok_or_else(|| Error(format!("no [[listener]] has the address {address}")))?,
    };
    let tls = rehearsal.tls.map(|version| Tls {
        version,
        cipher: "TLS13_AES_128_GCM_SHA256".into(),
        server_name: None,
        client: None,
    });
    let unix_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let facts = Facts {
        listener: listener.address,
        tls: tls.as_ref(),
        authenticated: rehearsal.user.as_deref(),
        is_trusted: listener.trusted,
        is_rehearsal: true,
        ..Facts::of_peer(SocketAddr::new(rehearsal.ip, 0), Instant::now(), unix_time)
    };
    let mut stage =
        Stage { policies: &asked.policies, asked: &asked, notes: Notes::default(), said: Vec::new() };
    stage.play(facts, rehearsal, config.smtp.message_size_max);
    Ok(stage.said)
}

struct Stage<'a> {
    policies: &'a Policies,
    asked: &'a policies::Asked,
    notes: Notes,
    said: Vec<Rehearsed>,
}

impl Stage<'_> {
    fn play(&mut self, facts: Facts<'_>, rehearsal: &Rehearsal, message_size_max: u64) {
        let goes_on = |passes: bool| passes || rehearsal.goes_on;
        if !goes_on(self.ask(Phase::Connect, &facts)) {
            return;
        }
        let facts = Facts { hello: &rehearsal.hello, ..facts };
        if !goes_on(self.ask(Phase::Hello, &facts)) {
            return;
        }
        self.notes.begin_transaction();
        let facts =
            Facts { reverse_path: Some(&rehearsal.reverse_path), declared_size: rehearsal.size, ..facts };
        if rehearsal.size.is_some_and(|size| size > message_size_max) {
            self.say(Rehearsed {
                policy: Some("smtp.message_size_max".into()),
                verdict: "reject",
                reply: Some("552 5.3.4".into()),
                ..Rehearsed::of(Phase::Mail)
            });
            if !rehearsal.goes_on {
                return;
            }
        }
        if !goes_on(self.ask(Phase::Mail, &facts)) {
            return;
        }
        let mut accepted = Vec::new();
        for recipient in &rehearsal.recipients {
            let facts = Facts { recipient: Some(recipient), recipients: &accepted, ..facts };
            if goes_on(self.ask(Phase::Recipient, &facts)) {
                let instead = self.notes.take_replacement();
                accepted.extend(instead.unwrap_or_else(|| vec![recipient.clone()]));
            }
        }
        if accepted.is_empty() {
            return;
        }
        let facts = Facts { recipients: &accepted, ..facts };
        if goes_on(self.ask(Phase::Data, &facts)) {
            self.ask(Phase::Message, &Facts { size: rehearsal.size.unwrap_or(0), ..facts });
        }
    }

    /// Whether the session gets through the phase.
    fn ask(&mut self, phase: Phase, facts: &Facts<'_>) -> bool {
        let recipient = facts.recipient.map(|path| path.as_str().to_string());
        let mut round = Round::new(phase);
        loop {
            let said = &mut self.said;
            let step = self.policies.advance(&mut round, facts, &mut self.notes, |report| {
                said.push(Rehearsed { recipient: recipient.clone(), ..Rehearsed::from(&report) });
            });
            match step {
                Step::Wait(later, timeout) => {
                    let (told, found) = mpsc::channel();
                    self.asked.lookups.submit(later, None, timeout, move |found| drop(told.send(found)));
                    round.resume(
                        found.recv().unwrap_or_else(|_| Err(Unavailable::new("nobody has answered"))),
                    );
                }
                Step::Decided(outcome) => {
                    let verdict = if outcome.is_ok() { "accept" } else { "refuse" };
                    let reply = outcome.as_ref().err().map(|refusal| smtp::refusal_line(refusal, phase));
                    self.say(Rehearsed { recipient, verdict, reply, ..Rehearsed::of(phase) });
                    return outcome.is_ok();
                }
            }
        }
    }

    fn say(&mut self, what: Rehearsed) {
        self.said.push(what);
    }
}

impl Rehearsed {
    fn of(phase: Phase) -> Self {
        Rehearsed {
            phase,
            recipient: None,
            policy: None,
            verdict: "",
            what: String::new(),
            key: String::new(),
            reply: None,
            is_dry: false,
        }
    }
}

impl From<&Report<'_>> for Rehearsed {
    fn from(report: &Report<'_>) -> Self {
        let found: &Found = report.found;
        let what = match found {
            Ok(Verdict::Tag(tag)) => tag.to_string(),
            Ok(Verdict::Name(name)) => name.to_string(),
            Ok(Verdict::Replace(paths)) => {
                paths.iter().map(|path| path.as_str()).collect::<Vec<_>>().join(" ")
            }
            Ok(_) => String::new(),
            Err(Unavailable(why)) => why.clone(),
        };
        let refusal: Option<&Refusal> = report.refusal;
        let key = match found {
            Ok(_) => refusal.and_then(|refusal| refusal.key.as_deref()).unwrap_or_default().into(),
            Err(_) => String::new(),
        };
        Rehearsed {
            policy: Some(report.policy.into()),
            verdict: found.as_ref().map_or("unavailable", Verdict::word),
            what,
            key,
            reply: refusal.map(|refusal| smtp::refusal_line(refusal, report.phase)),
            is_dry: report.is_dry,
            ..Rehearsed::of(report.phase)
        }
    }
}
