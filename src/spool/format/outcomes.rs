//! The payload of an Outcomes record, and what a Message record says of its recipients: see the table in [`super`].

use super::orders::Order;
use super::{Fields, size_field};

/// What is written of one recipient after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipientOutcome {
    /// Its place in the envelope's forward-paths.
    pub index: u32,
    /// Needs no further attempt.
    pub is_done: bool,
    /// It needs none because it was given up: a dead letter has it.
    pub is_given_up: bool,
    /// Attempts made so far.
    pub attempts: u32,
    /// When to try again, in seconds since 1970; 0 when done.
    pub next_attempt: u64,
    /// Why the last attempt did not deliver; empty when it did.
    pub reason: Box<str>,
}

/// Reasons are cut at this many octets: a next hop's longest reply line (RFC 5321 §4.5.3.1.5), twice.
const REASON_SIZE_MAX: usize = 1024;

/// What became of some recipients of a message at one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetOutcomes {
    /// The target's name; empty: none in particular.
    pub target: Box<str>,
    /// They are left at other targets, too.
    pub here_only: bool,
    /// Those of whom there is something to say.
    pub recipients: Vec<RecipientOutcome>,
    /// What was ordered instead; then there are no recipients.
    pub order: Option<Box<Order>>,
}

/// When an attempt was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// When it began, in milliseconds since 1970; 0: none was made.
    pub unix_millis: u64,
    /// How long it took, in milliseconds; 2^32-1: that long or longer.
    pub duration_millis: u32,
}

const DONE: u8 = 1;
const DEFERRED: u8 = 2;
const GIVEN_UP: u8 = 3;
const HERE_ONLY: u8 = 1;
const MESSAGE_DONE: u8 = 2;
const ORDER: u8 = 4;
/// Names of targets at most, octets.
const TARGET_SIZE_MAX: usize = 255;

/// What an entry of an Outcomes payload says of all its recipients.
#[derive(Clone, Copy, Debug)]
pub struct OutcomeHead<'a> {
    /// Of the message id.
    pub sequence: u64,
    /// Nobody is left, at any target.
    pub is_message_done: bool,
    /// When the attempt was made.
    pub made: Made,
    /// The target's name; empty: none in particular.
    pub target: &'a str,
    /// They are left at other targets, too.
    pub here_only: bool,
}

/// Appends an entry of an Outcomes payload.
pub fn encode_outcome(head: OutcomeHead<'_>, recipients: &[RecipientOutcome], out: &mut Vec<u8>) {
    out.extend_from_slice(&head.sequence.to_le_bytes());
    out.extend_from_slice(&head.made.unix_millis.to_le_bytes());
    out.extend_from_slice(&head.made.duration_millis.to_le_bytes());
    let done = if head.is_message_done { MESSAGE_DONE } else { 0 };
    encode_target(done, head.here_only, head.target, recipients, out);
}

/// Appends an order to an Outcomes payload. `target`: where, if not everywhere; `is_message_done`: nobody is left.
pub fn encode_order(
    (sequence, is_message_done): (u64, bool),
    target: &str,
    order: &Order,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&[0; 12]);
    let done = if is_message_done { MESSAGE_DONE } else { 0 };
    encode_target(done | ORDER, false, target, &[], out);
    order.encode(out);
}

/// Appends what became of recipients at one target.
pub(super) fn encode_target_outcomes(outcomes: &TargetOutcomes, out: &mut Vec<u8>) {
    let flags = if outcomes.order.is_some() { ORDER } else { 0 };
    encode_target(flags, outcomes.here_only, &outcomes.target, &outcomes.recipients, out);
    if let Some(order) = &outcomes.order {
        order.encode(out);
    }
}

fn encode_target(
    flags: u8,
    here_only: bool,
    target: &str,
    recipients: &[RecipientOutcome],
    out: &mut Vec<u8>,
) {
    assert!(target.len() <= TARGET_SIZE_MAX, "names are short");
    out.push(flags | if here_only { HERE_ONLY } else { 0 });
    out.push(target.len() as u8);
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(&size_field(recipients.len()));
    recipients.iter().for_each(|recipient| encode_recipient(recipient, out));
}

/// The size [`encode_target_outcomes`] gives them at most.
pub(super) fn target_outcomes_size(outcomes: &TargetOutcomes) -> usize {
    let recipients_size = outcomes.recipients.iter().map(recipient_size).sum::<usize>();
    6 + outcomes.target.len() + recipients_size + outcomes.order.as_ref().map_or(0, |order| order.size())
}

fn encode_recipient(recipient: &RecipientOutcome, out: &mut Vec<u8>) {
    out.extend_from_slice(&recipient.index.to_le_bytes());
    out.push(match recipient {
        RecipientOutcome { is_given_up: true, .. } => GIVEN_UP,
        RecipientOutcome { is_done: true, .. } => DONE,
        _ => DEFERRED,
    });
    out.extend_from_slice(&recipient.attempts.to_le_bytes());
    out.extend_from_slice(&recipient.next_attempt.to_le_bytes());
    let reason = recipient.reason.floor_char_boundary(REASON_SIZE_MAX);
    out.extend_from_slice(&(reason as u16).to_le_bytes());
    out.extend_from_slice(&recipient.reason.as_bytes()[..reason]);
}

/// The size [`encode_recipient`] gives it at most.
fn recipient_size(recipient: &RecipientOutcome) -> usize {
    19 + recipient.reason.len().min(REASON_SIZE_MAX)
}

/// One entry of an Outcomes payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutcomeEntry {
    /// Of the message id.
    pub sequence: u64,
    /// Nobody is left, at any target.
    pub is_message_done: bool,
    /// When the attempt was made.
    pub made: Made,
    /// What became of whom.
    pub outcomes: TargetOutcomes,
}

/// Reads an Outcomes payload; `None` if it does not follow the format.
pub fn decode_outcomes(payload: &[u8]) -> Option<Vec<OutcomeEntry>> {
    let mut fields = Fields(payload);
    let mut entries = Vec::new();
    while !fields.0.is_empty() {
        let sequence = fields.u64()?;
        let made = Made { unix_millis: fields.u64()?, duration_millis: fields.u32()? };
        let (flags, outcomes) = decode_target(&mut fields)?;
        entries.push(OutcomeEntry { sequence, is_message_done: flags & MESSAGE_DONE != 0, made, outcomes });
    }
    Some(entries)
}

/// Reads what became of recipients, target by target, up to the end; `None` if that does not follow the format.
pub(super) fn decode_progress(octets: &[u8]) -> Option<Vec<TargetOutcomes>> {
    let mut fields = Fields(octets);
    let mut progress = Vec::new();
    while !fields.0.is_empty() {
        progress.push(decode_target(&mut fields)?.1);
    }
    Some(progress)
}

fn decode_target(fields: &mut Fields<'_>) -> Option<(u8, TargetOutcomes)> {
    let flags = fields.u8()?;
    let target_size = fields.u8()?;
    let target = str::from_utf8(fields.take(target_size.into())?).ok()?.into();
    let count = fields.u32()?;
    let mut recipients = Vec::new();
    for _ in 0..count {
        recipients.push(decode_recipient(fields)?);
    }
    let order = if flags & ORDER != 0 { Some(Box::new(Order::decode(fields)?)) } else { None };
    Some((flags, TargetOutcomes { target, here_only: flags & HERE_ONLY != 0, recipients, order }))
}

fn decode_recipient(fields: &mut Fields<'_>) -> Option<RecipientOutcome> {
    let index = fields.u32()?;
    let state = fields.u8()?;
    let (is_done, is_given_up) = (matches!(state, DONE | GIVEN_UP), state == GIVEN_UP);
    let (attempts, next_attempt) = (fields.u32()?, fields.u64()?);
    let reason_size = fields.u16()?;
    let reason = str::from_utf8(fields.take(reason_size as usize)?).ok()?.into();
    Some(RecipientOutcome { index, is_done, is_given_up, attempts, next_attempt, reason })
}
