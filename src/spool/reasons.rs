//! Why recipients were deferred, kept in memory without a copy for each of a million messages.
//!
//! Equal reasons are one text. Where different ones are more than [`REASONS_SIZE_MAX`] octets together (a next hop that
//! puts a number of its own into every reply), only their status is kept: the code, and the enhanced code.
//!
//! Invariant: the octets of the texts known here never exceed [`REASONS_SIZE_MAX`] by more than one text.

use std::collections::HashSet;
use std::sync::Arc;

/// Octets of different reasons in memory, per log.
const REASONS_SIZE_MAX: usize = 8 << 20;

/// The reasons in use.
#[derive(Debug, Default)]
pub struct Reasons {
    known: HashSet<Arc<str>>,
    size: usize,
    /// Texts nobody uses any more are looked for when this size is reached.
    sweep_size: usize,
}

impl Reasons {
    /// The text, shared with whoever has the same.
    pub fn intern(&mut self, reason: &str) -> Arc<str> {
        if let Some(known) = self.known.get(reason) {
            return known.clone();
        }
        if self.size + reason.len() > self.sweep_size {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.size = self.known.iter().map(|known| known.len()).sum();
            // Twice what is in use: each sweep is paid for by as many new texts.
            self.sweep_size = (2 * self.size).clamp(64 << 10, REASONS_SIZE_MAX);
        }
        let reason = match self.size + reason.len() > REASONS_SIZE_MAX {
            true => status(reason),
            false => reason,
        };
        let reason = self.known.get(reason).cloned().unwrap_or_else(|| Arc::from(reason));
        if self.known.insert(reason.clone()) {
            self.size += reason.len();
        }
        reason
    }
}

/// The status a reason begins with: digits and dots, a space between code and enhanced code.
pub fn status(reason: &str) -> &str {
    const STATUS_SIZE_MAX: usize = 16;
    let is_status = |c: char| c.is_ascii_digit() || matches!(c, '.' | ' ' | '-');
    let end = reason.find(|c| !is_status(c)).unwrap_or(reason.len()).min(STATUS_SIZE_MAX);
    match reason[..end].trim_end() {
        "" => "deferred",
        status => status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_reasons_are_one_text_and_what_nobody_uses_is_forgotten() {
        let mut reasons = Reasons::default();
        let first = reasons.intern("451 4.3.0 busy");
        assert!(Arc::ptr_eq(&first, &reasons.intern("451 4.3.0 busy")));
        for n in 0..100_000 {
            reasons.intern(&format!("451 4.3.0 try {n} later"));
        }
        assert!(reasons.size < 1 << 20, "{}", reasons.size);
        assert!(Arc::ptr_eq(&first, &reasons.intern("451 4.3.0 busy")));
    }

    #[test]
    fn too_many_different_reasons_keep_their_status_only() {
        let mut reasons = Reasons::default();
        let text = |n: usize| format!("450 4.7.1 greylisted, {n:0>4000}");
        let kept: Vec<_> = (0..3000).map(|n| reasons.intern(&text(n))).collect();
        assert_eq!(&*kept[0], text(0));
        assert_eq!(&*kept[2999], "450 4.7.1");
        let size: usize = reasons.known.iter().map(|known| known.len()).sum();
        assert!(size == reasons.size && size <= REASONS_SIZE_MAX + 4100, "{size}");
    }

    #[test]
    fn a_status_is_what_a_reason_begins_with() {
        let table = [
            ("451 4.3.0 busy", "451 4.3.0"),
            ("421-4.4.2 bye", "421-4.4.2"),
            ("connection refused", "deferred"),
            ("", "deferred"),
            ("4", "4"),
            ("\u{e9}", "deferred"),
        ];
        table.into_iter().for_each(|(reason, expected)| assert_eq!(status(reason), expected, "{reason:?}"));
    }
}
