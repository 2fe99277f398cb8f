//! The event of a refusal, and of whatever else a policy has said: one line for each.

use super::Escaped;
use crate::mail::{Phase, Refusal};
use crate::policy::{Facts, Report, Verdict};
use crate::smtp;

/// A policy has said something beyond acceptance.
pub fn reported(report: &Report<'_>, facts: &Facts<'_>) {
    let Report { phase, policy, found, is_dry, refusal } = *report;
    match (found, refusal) {
        (Err(why), _) => {
            let outcome = refusal.map_or("ignore", |_| "defer");
            let session = facts.session;
            let why = Escaped(why.0.as_bytes());
            tracing::warn!(peer = %facts.peer, session, ?phase, policy, verdict = outcome, %why, dry_run = is_dry, "policy could not decide");
        }
        (Ok(verdict), Some(refusal)) => refused(phase, facts, policy, verdict.word(), refusal, is_dry),
        (Ok(verdict), None) => {
            let what = match verdict {
                Verdict::Tag(tag) => tag.as_str(),
                Verdict::Name(name) => name,
                _ => "",
            };
            tracing::debug!(peer = %facts.peer, session = facts.session, ?phase, policy, verdict = verdict.word(), what, dry_run = is_dry, "policy");
        }
    }
}

/// Something was refused, or would have been if it were not for a dry run.
pub fn refused(
    phase: Phase,
    facts: &Facts<'_>,
    policy: &str,
    verdict: &str,
    refusal: &Refusal,
    is_dry: bool,
) {
    if !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    let reply = smtp::refusal_line(refusal, phase);
    let key = Escaped(refusal.key.as_deref().unwrap_or_default().as_bytes());
    let hello = Escaped(facts.hello.as_bytes());
    let from = Escaped(facts.reverse_path.map_or("", |path| path.as_str()).as_bytes());
    let to = Escaped(facts.recipient.map_or("", |path| path.as_str()).as_bytes());
    tracing::info!(name: "session.rejected", peer = %facts.peer, session = facts.session, ?phase, policy, %key, verdict, reply, dry_run = is_dry, %hello, %from, %to, "refused");
}
