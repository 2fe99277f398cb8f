//! What the operator ordered of a message: see the table in [`super`].

use super::Fields;

/// Who gives an order is named in this many octets at most.
pub const ORDER_BY_SIZE_MAX: usize = 64;
/// Why an order is given is said in this many octets at most.
pub const ORDER_NOTE_SIZE_MAX: usize = 512;

const _: () = assert!(ORDER_BY_SIZE_MAX <= u8::MAX as usize && ORDER_NOTE_SIZE_MAX <= u16::MAX as usize);

/// What is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OrderKind {
    /// No delivery is to have it until it is released.
    Hold = 1,
    /// Deliveries may have it again.
    Release = 2,
    /// It is done, for everybody who is left.
    Drop = 3,
    /// What waits for its time is due.
    Retry = 4,
}

impl OrderKind {
    fn from_octet(octet: u8) -> Option<Self> {
        use OrderKind::*;
        [Hold, Release, Drop, Retry].into_iter().find(|kind| *kind as u8 == octet)
    }

    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            OrderKind::Hold => "hold",
            OrderKind::Release => "release",
            OrderKind::Drop => "drop",
            OrderKind::Retry => "retry",
        }
    }
}

/// An order of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What is ordered.
    pub kind: OrderKind,
    /// When, in milliseconds since 1970.
    pub unix_millis: u64,
    /// Who gave it. Of [`ORDER_BY_SIZE_MAX`] octets no more is kept.
    pub by: Box<str>,
    /// Why; empty: nothing was said. Of [`ORDER_NOTE_SIZE_MAX`] octets no more is kept.
    pub note: Box<str>,
}

impl Order {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let by = self.by.floor_char_boundary(ORDER_BY_SIZE_MAX);
        let note = self.note.floor_char_boundary(ORDER_NOTE_SIZE_MAX);
        out.push(self.kind as u8);
        out.extend_from_slice(&self.unix_millis.to_le_bytes());
        out.push(by as u8);
        out.extend_from_slice(&self.by.as_bytes()[..by]);
        out.extend_from_slice(&(note as u16).to_le_bytes());
        out.extend_from_slice(&self.note.as_bytes()[..note]);
    }

    /// The size [`Order::encode`] gives it at most.
    pub(super) fn size(&self) -> usize {
        12 + self.by.len().min(ORDER_BY_SIZE_MAX) + self.note.len().min(ORDER_NOTE_SIZE_MAX)
    }

    pub(super) fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let kind = OrderKind::from_octet(fields.u8()?)?;
        let unix_millis = fields.u64()?;
        let by_size = fields.u8()?;
        let by = str::from_utf8(fields.take(by_size.into())?).ok()?.into();
        let note_size = fields.u16()?;
        let note = str::from_utf8(fields.take(note_size.into())?).ok()?.into();
        Some(Order { kind, unix_millis, by, note })
    }
}
