//! The payload of an Outcomes record, and what a Message record says of its recipients: see the table in [`super`].

use super::{Fields, size_field};

/// What is written of one recipient after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipientOutcome {
    /// Its place in the envelope's forward-paths.
    pub index: u32,
    /// Needs no further attempt.
    pub is_done: bool,
    /// Attempts made so far.
    pub attempts: u32,
    /// When to try again, in seconds since 1970; 0 when done.
    pub next_attempt: u64,
    /// Why the last attempt did not deliver; empty when it did.
    pub reason: Box<str>,
}

/// Reasons are cut at this many octets: a next hop's longest reply line (RFC 5321 §4.5.3.1.5), twice.
const REASON_SIZE_MAX: usize = 1024;

/// Appends an entry of an Outcomes payload. No recipients: the message is done.
pub fn encode_outcome(sequence: u64, recipients: &[RecipientOutcome], out: &mut Vec<u8>) {
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&size_field(recipients.len()));
    recipients.iter().for_each(|recipient| encode_recipient(recipient, out));
}

pub(super) fn encode_recipient(recipient: &RecipientOutcome, out: &mut Vec<u8>) {
    out.extend_from_slice(&recipient.index.to_le_bytes());
    out.push(if recipient.is_done { 1 } else { 2 });
    out.extend_from_slice(&recipient.attempts.to_le_bytes());
    out.extend_from_slice(&recipient.next_attempt.to_le_bytes());
    let reason = recipient.reason.floor_char_boundary(REASON_SIZE_MAX);
    out.extend_from_slice(&(reason as u16).to_le_bytes());
    out.extend_from_slice(&recipient.reason.as_bytes()[..reason]);
}

/// The size [`encode_recipient`] gives it at most.
pub(super) fn recipient_size(recipient: &RecipientOutcome) -> usize {
    19 + recipient.reason.len().min(REASON_SIZE_MAX)
}

/// One entry of an Outcomes payload.
#[derive(Debug, PartialEq, Eq)]
pub struct OutcomeEntry {
    /// Of the message id.
    pub sequence: u64,
    /// Empty: the message is done.
    pub recipients: Vec<RecipientOutcome>,
}

/// Reads an Outcomes payload; `None` if it does not follow the format.
pub fn decode_outcomes(payload: &[u8]) -> Option<Vec<OutcomeEntry>> {
    let mut fields = Fields(payload);
    let mut entries = Vec::new();
    while !fields.0.is_empty() {
        let sequence = fields.u64()?;
        let count = fields.u32()?;
        let mut recipients = Vec::new();
        for _ in 0..count {
            recipients.push(decode_recipient(&mut fields)?);
        }
        entries.push(OutcomeEntry { sequence, recipients });
    }
    Some(entries)
}

/// Reads recipients up to the end; `None` if they do not follow the format.
pub(super) fn decode_recipients(octets: &[u8]) -> Option<Vec<RecipientOutcome>> {
    let mut fields = Fields(octets);
    let mut recipients = Vec::new();
    while !fields.0.is_empty() {
        recipients.push(decode_recipient(&mut fields)?);
    }
    Some(recipients)
}

fn decode_recipient(fields: &mut Fields<'_>) -> Option<RecipientOutcome> {
    let index = fields.u32()?;
    let is_done = fields.u8()? == 1;
    let (attempts, next_attempt) = (fields.u32()?, fields.u64()?);
    let reason_size = fields.u16()?;
    let reason = str::from_utf8(fields.take(reason_size as usize)?).ok()?.into();
    Some(RecipientOutcome { index, is_done, attempts, next_attempt, reason })
}
