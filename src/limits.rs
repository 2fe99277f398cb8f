//! The bounds that are not configuration, and the ends of the scales of those that are.
//!
//! Each has its reason; the assertions at the bottom prove how they fit together, so that a change which breaks a
//! neighbour does not compile.

/// One kibioctet.
pub const KIB: u64 = 1 << 10;
/// One mebioctet.
pub const MIB: u64 = 1 << 20;
/// One gibioctet.
pub const GIB: u64 = 1 << 30;

/// The shared receive buffer of a shard, in octets. One `recv` may fill it: large enough that content at line rate is
/// not a system call per packet, small enough to stay in the second-level cache.
pub const SCRATCH_SIZE: usize = 64 << 10;

/// The largest piece of content a session hands on at once, in octets. What a session in DATA costs beyond its state.
pub const PIECE_SIZE_MAX: usize = 64 << 10;

/// The smallest piece a session hands on when its shard is short of memory, in octets. Smaller ones would make the list of a
/// message's pieces longer than a record may be.
pub const PIECE_SIZE_MIN: usize = 16 << 10;

/// A page of the spool, in octets: the largest single write. Full pages are written at once, so that a large message does not
/// wait for the next group commit.
pub const SPOOL_PAGE_SIZE: usize = 256 << 10;
/// Pages of a log between append and completed write: several batches of full sessions, and the largest record.
pub const SPOOL_PAGES_MAX: usize = 21;
/// The ring's own memory, in octets per shard: the pages, twice over because its allocator rounds to powers of two.
pub const RING_MEMORY_SIZE: usize = 2 * SPOOL_PAGE_SIZE * SPOOL_PAGES_MAX;

/// `smtp.message_size_max` at least, in octets: every server takes messages of 64 K octets (RFC 5321 §4.5.3.1.7).
pub const MESSAGE_SIZE_MAX_LOW: u64 = 64 * KIB;
/// `smtp.message_size_max` at most, in octets: a message's record names all of its pieces and must fit a segment.
pub const MESSAGE_SIZE_MAX_HIGH: u64 = GIB;

/// `smtp.recipients_max` at least (RFC 5321 §4.5.3.1.8).
pub const RECIPIENTS_MAX_LOW: u64 = 100;
/// `smtp.recipients_max` at most: an envelope of so many paths of 256 octets is 1.2 MiB, and must fit the pages of the spool.
pub const RECIPIENTS_MAX_HIGH: u64 = 5_000;

/// What RCPT may say of notifications in one transaction, in octets as they are stored: 200 for each of the most recipients there
/// may be, or 500, the longest ORCPT, for each of 2,000.
pub const DSN_SIZE_MAX: usize = MIB as usize;

/// `smtp.command_size_max` at least, in octets with the CRLF: 512 (RFC 5321 §4.5.3.1.4), and what extensions add to it: SIZE 26 (RFC 1870),
/// SMTPUTF8 10 (RFC 6531), of DSN 528 to RCPT (RFC 3461 §4), AUTH= 500 to MAIL (RFC 4954 §3), REQUIRETLS 11.
pub const COMMAND_SIZE_MAX_LOW: u64 = 2 * KIB;
/// `smtp.command_size_max` at most: a command fits the scratch buffer.
pub const COMMAND_SIZE_MAX_HIGH: u64 = SCRATCH_SIZE as u64;

/// `smtp.hops_max` at least (RFC 5321 §6.3).
pub const HOPS_MAX_LOW: u64 = 100;

/// `spool.segment_size` at least, in octets: smaller ones are prepared so often that preparing them is the work.
pub const SEGMENT_SIZE_LOW: u64 = 8 * MIB;
/// `spool.segment_size` at most, in octets: offsets within a segment are 32-bit.
pub const SEGMENT_SIZE_HIGH: u64 = 2 * GIB;
/// A segment is whole pages of this many octets, as O_DIRECT wants.
pub const SEGMENT_SIZE_STEP: u64 = 4 * KIB;

/// Segments of a log in memory at least: one is appended to, one is prepared, one waits for its messages to be done.
pub const MEMORY_SEGMENTS_MIN: u64 = 3;
/// Room of a log in memory, in sizes of the largest message: a message may begin behind what is not yet freed, and leaves the
/// last segment's reserve alone.
pub const MEMORY_MESSAGES_MIN: u64 = 2;

/// `spool.memory_max` at least, in octets per shard: room for a few sessions in DATA.
pub const MEMORY_MAX_LOW: u64 = MIB;

/// Shards at most: glommio and the message id leave more room, machines do not.
pub const SHARDS_MAX: u64 = 1024;
/// The highest core number that may be named.
pub const CORE_MAX: usize = 4095;

/// Listeners at most: each shard has a socket for each.
pub const LISTENERS_MAX: usize = 64;

/// Sessions at most, whatever is configured: at 1.5 KiB each this is 15 GiB.
pub const SESSIONS_MAX_HIGH: u64 = 10_000_000;
/// Sessions at most where nothing is configured, however many descriptors there are: 150 MiB of idle sessions.
pub const SESSIONS_MAX_DEFAULT: u64 = 100_000;

/// Descriptors of the process that are not sessions: the binary's own, the log, the data directory's lock, dead letters.
const DESCRIPTORS_RESERVED: u64 = 128;
/// Descriptors of a shard that are not sessions: rings, listeners, segments, the reserve for refusing politely.
const DESCRIPTORS_PER_SHARD: u64 = 32;
/// Descriptors of a delivery worker: its runtime's own.
const DESCRIPTORS_PER_WORKER: u64 = 8;
/// Descriptors of an attempt: the content, the connection or the file written, its folder or an idle connection.
const DESCRIPTORS_PER_ATTEMPT: u64 = 3;

/// Lookups of policies at a time at most, where nothing is configured: each may have a socket, and waits for seconds at worst.
pub const LOOKUPS_MAX_DEFAULT: usize = 1000;
/// And at most, whatever is configured.
pub const LOOKUPS_MAX_HIGH: u64 = 100_000;

/// Delivery workers at most: they are threads.
pub const WORKERS_MAX: u64 = 4096;
/// `delivery.channel_size` at most: a window on the queue, not the queue.
pub const CHANNEL_SIZE_MAX: u64 = 1 << 20;

/// Targets of one recipient at most: what became of each is kept with the message.
pub const TARGETS_MAX: usize = 4;

/// A transport's reads of stored content, in octets: one piece.
pub const COPY_SIZE: usize = PIECE_SIZE_MAX;
/// How much of a peer's text a log line shows, in octets of the peer's.
pub const LOGGED_TEXT_SIZE_MAX: usize = 256;
/// What a notification brings back of a message at most, in octets: of a larger one its header section, and of a larger header section
/// its beginning.
pub const RETURNED_SIZE_MAX: usize = 48 << 10;
/// How much of a message's header section is looked at, in octets: twice what sessions accept by default, and our own lines.
pub const HEADER_FIELDS_SIZE_MAX: usize = 2 * MIB as usize;
/// The longest reason kept with an outcome, in octets: a next hop may say more than anybody reads.
pub const REASON_SIZE_MAX: usize = 1024;

/// Log lines waiting in memory are written out when they reach this size, in octets.
pub const LOG_WRITE_SIZE: usize = 64 << 10;
/// Log lines in memory at most, in octets: then whoever logs writes them out himself.
pub const LOG_BUFFER_SIZE_MAX: usize = 1 << 20;

/// The longest name of a file on Linux, in octets.
pub const FILE_NAME_SIZE_MAX: usize = 255;

/// What deliveries need descriptors for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deliveries {
    /// Threads that transports share.
    pub workers: u64,
    /// Attempts at a time, of all transports.
    pub attempts: u64,
}

/// How many sessions the process can hold with `descriptors` open files allowed.
pub fn sessions_max_for(descriptors: u64, shards: u64, deliveries: Deliveries) -> u64 {
    descriptors.saturating_sub(descriptors_for(0, shards, deliveries)).clamp(1, SESSIONS_MAX_DEFAULT)
}

/// How many open files so many sessions need to be allowed.
pub fn descriptors_for(sessions: u64, shards: u64, deliveries: Deliveries) -> u64 {
    let Deliveries { workers, attempts } = deliveries;
    let deliveries = workers * DESCRIPTORS_PER_WORKER + attempts * DESCRIPTORS_PER_ATTEMPT;
    sessions + DESCRIPTORS_RESERVED + shards * DESCRIPTORS_PER_SHARD + deliveries
}

/// The largest Message record, in octets: each recipient's path, what is asked about them, each piece's place, one piece of content,
/// and the rest.
const MESSAGE_RECORD_SIZE_MAX: u64 = RECIPIENTS_MAX_HIGH * 260
    + DSN_SIZE_MAX as u64
    + MESSAGE_SIZE_MAX_HIGH / PIECE_SIZE_MIN as u64 * 24
    + PIECE_SIZE_MAX as u64
    + 16 * KIB;

/// What a message's record grows by when it is moved: of each recipient what became of it at each of its targets, their names, and 64 KiB of
/// reasons.
const PROGRESS_SIZE_MAX: u64 = RECIPIENTS_MAX_HIGH * TARGETS_MAX as u64 * 35 + 72 * KIB;

const _: () = assert!(
    MESSAGE_RECORD_SIZE_MAX + PROGRESS_SIZE_MAX <= SEGMENT_SIZE_LOW - 128 * KIB,
    "any record fits any segment, with its Open record, its index and its seal"
);
const _: () = assert!(
    MESSAGE_RECORD_SIZE_MAX + PROGRESS_SIZE_MAX + 32 * KIB
        <= (SPOOL_PAGE_SIZE * (SPOOL_PAGES_MAX - 2)) as u64,
    "any record fits the pages, though one of them is being filled and another takes an index"
);
const _: () = assert!(COMMAND_SIZE_MAX_LOW <= COMMAND_SIZE_MAX_HIGH);
const _: () = assert!(PIECE_SIZE_MAX <= SCRATCH_SIZE, "a piece is cut from what one receive brought");
const _: () =
    assert!(PIECE_SIZE_MAX as u64 <= MEMORY_MAX_LOW / 4, "the smallest budget holds several pieces");
const _: () =
    assert!(PIECE_SIZE_MAX as u64 * 2 <= SEGMENT_SIZE_LOW, "a piece and its header fit any segment");
const _: () = assert!(SEGMENT_SIZE_LOW.is_multiple_of(SEGMENT_SIZE_STEP));
const _: () = assert!(
    MEMORY_MESSAGES_MIN < MEMORY_SEGMENTS_MIN,
    "a largest message fits a log in memory though one of its segments is not free"
);
const _: () = assert!(SEGMENT_SIZE_HIGH <= u32::MAX as u64);
const _: () = assert!(MESSAGE_SIZE_MAX_LOW <= MESSAGE_SIZE_MAX_HIGH);
const _: () = assert!(SESSIONS_MAX_DEFAULT <= SESSIONS_MAX_HIGH);
const _: () = assert!(
    RETURNED_SIZE_MAX as u64 + 16 * KIB <= MESSAGE_SIZE_MAX_LOW,
    "a notification about a few recipients is no more than any server takes"
);
const _: () = assert!(LOG_WRITE_SIZE <= LOG_BUFFER_SIZE_MAX);
const _: () =
    assert!(LOGGED_TEXT_SIZE_MAX * 4 < LOG_WRITE_SIZE, "an escaped text is a small part of a write");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_leave_descriptors_for_the_rest() {
        let table = [
            // (descriptors, shards, workers, attempts, sessions)
            (1024, 2, 2, 8, 1024 - 128 - 64 - 16 - 24),
            (20_000, 2, 2, 40, 20_000 - 128 - 64 - 16 - 120),
            (40, 8, 8, 8, 1),
            (u64::MAX, 1, 2, 8, SESSIONS_MAX_DEFAULT),
        ];
        for (descriptors, shards, workers, attempts, sessions) in table {
            let deliveries = Deliveries { workers, attempts };
            let max = sessions_max_for(descriptors, shards, deliveries);
            assert_eq!(max, sessions, "{descriptors} {shards} {workers} {attempts}");
        }
    }
}
