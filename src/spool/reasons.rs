//! Why recipients were deferred, kept in memory without a copy for each of a million messages.
//!
//! Equal reasons are one text. Where different ones are more than [`REASONS_SIZE_MAX`] octets together (a next hop that
//! puts a number of its own into every reply), only their status is kept: the code, and the enhanced code.
//!
//! Invariants: what is known here never exceeds [`REASONS_SIZE_MAX`] by more than one text; a text costs the same however many
//! are known (texts that nobody uses are looked for as often as new texts have come as there are known ones).

use std::collections::HashSet;
use std::sync::Arc;

/// Octets of different reasons in memory, per log.
const REASONS_SIZE_MAX: usize = 8 << 20;
/// What a text costs beside its octets: its counts, its place in the set and in the heap.
const TEXT_COST: usize = 64;
/// A sweep is not worth its while for fewer new texts.
const SWEEP_COUNT_MIN: usize = 1024;

/// The reasons in use.
#[derive(Debug, Default)]
pub struct Reasons {
    known: HashSet<Arc<str>>,
    /// What they cost, octets.
    size: usize,
    /// New texts that came since those that nobody uses were looked for.
    new_count: usize,
    #[cfg(test)]
    looked_at: usize,
}

impl Reasons {
    /// The text, shared with whoever has the same.
    pub fn intern(&mut self, reason: &str) -> Arc<str> {
        if let Some(known) = self.known.get(reason) {
            return known.clone();
        }
        self.new_count += 1;
        // Each sweep is paid for by as many new texts, those of which the status alone was kept among them.
        if self.new_count > self.known.len().max(SWEEP_COUNT_MIN) {
            self.sweep();
        }
        let reason = match self.size + cost(reason) > REASONS_SIZE_MAX {
            true => status(reason),
            false => reason,
        };
        let reason = self.known.get(reason).cloned().unwrap_or_else(|| Arc::from(reason));
        if self.known.insert(reason.clone()) {
            self.size += cost(&reason);
        }
        reason
    }

    /// Forgets what nobody uses.
    fn sweep(&mut self) {
        #[cfg(test)]
        {
            self.looked_at += self.known.len();
        }
        let size = &mut self.size;
        self.known.retain(|known| {
            let is_used = Arc::strong_count(known) > 1;
            *size -= if is_used { 0 } else { cost(known) };
            is_used
        });
        self.new_count = 0;
    }
}

fn cost(text: &str) -> usize {
    text.len() + TEXT_COST
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
        let size: usize = reasons.known.iter().map(|known| cost(known)).sum();
        assert!(size == reasons.size && size <= REASONS_SIZE_MAX + 4100, "{size}");
    }

    #[test]
    fn a_new_text_costs_the_same_however_many_are_known() {
        let mut reasons = Reasons::default();
        let count = 400_000;
        let _kept: Vec<_> =
            (0..count).map(|n| reasons.intern(&format!("450 4.7.1 greylisted {n}"))).collect();
        assert!(reasons.size > REASONS_SIZE_MAX / 2, "more than are kept: {}", reasons.size);
        assert!(reasons.looked_at <= 2 * count, "{} looked at for {count} texts", reasons.looked_at);
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
