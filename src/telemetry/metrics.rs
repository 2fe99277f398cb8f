//! Every metric there is, by name: docs/METRICS.md has the same list for people, and a test that compares the two.

use Kind::*;

/// What a metric's samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows, until the process ends.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by how large they are.
    Histogram,
}

/// A metric family.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name: ends in its unit, and in `_total` if it is a counter.
    pub name: &'static str,
    /// What its samples are.
    pub kind: Kind,
    /// The names of its labels, in order. What they are has few values: never a peer's address or words.
    pub labels: &'static [&'static str],
    /// What it says, in one sentence.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($id:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Metric = Metric { name: $name, kind: $kind, labels: &[$($label),*], help: $help };
        )*
        /// All of them, in the order in which they are exposed.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    BUILD_INFO Gauge "incoming_build_info" ["version"]
        "Always 1: which version runs.";
    READY Gauge "incoming_shard_ready" ["shard"]
        "Whether the shard takes mail: 1, or 0 while its medium fails or it ends.";
    SHARD_UP Gauge "incoming_shard_up" ["shard"]
        "Whether the shard has answered this scrape; if not, what it is counted with is of an earlier one.";
    OVERLOAD_LEVEL Gauge "incoming_overload_level" ["shard"]
        "How much is asked of new peers: 0 calm, 1 busy, 2 strained, 3 full.";

    SESSIONS_OPEN Gauge "incoming_sessions_open" ["shard"]
        "Connections there are now.";
    SESSIONS_MAX Gauge "incoming_sessions_max" ["shard"]
        "Connections there may be.";
    SESSIONS Counter "incoming_sessions_total" []
        "Connections that were given a session.";
    GREETED Counter "incoming_sessions_greeted_total" []
        "Sessions that were greeted.";
    GREETING Histogram "incoming_greeting_seconds" []
        "From the connection to the greeting, where no handshake comes before it: policies and the greeting delay.";
    ACCEPT_FAILURES Counter "incoming_accept_failures_total" []
        "Times accepting had to pause: no descriptors, no memory.";
    TLS_SESSIONS Counter "incoming_tls_sessions_total" ["version"]
        "Sessions that TLS protects, by its version.";
    TLS_FAILURES Counter "incoming_tls_failures_total" ["reason"]
        "Handshakes that came to nothing: ended, time, broken; busy: too many at a time.";
    TLS_HANDSHAKE Histogram "incoming_tls_handshake_seconds" []
        "How long handshakes took that succeeded, the peer's part included.";
    AUTHENTICATIONS Counter "incoming_authentications_total" ["outcome"]
        "Passwords that were verified: accepted, refused, unavailable.";

    MESSAGES Counter "incoming_messages_accepted_total" ["tls"]
        "Messages made durable and acknowledged, by the version of TLS they came over, or none.";
    OCTETS Counter "incoming_messages_accepted_bytes_total" []
        "Octets of their content.";
    RECIPIENTS Counter "incoming_recipients_accepted_total" []
        "Recipients of them.";
    NOT_STORED Counter "incoming_messages_not_stored_total" ["reason"]
        "Messages deferred because they could not be made durable: no_room, busy, failed.";
    END_OF_DATA Histogram "incoming_end_of_data_seconds" []
        "From end-of-data, when policies have decided, until the message is durable and 250 can be said.";
    POLICY_WAIT Histogram "incoming_policy_wait_seconds" ["phase"]
        "How long sessions waited for policies that could not decide at once, by phase.";
    REFUSALS Counter "incoming_refusals_total" ["phase", "policy", "reason"]
        "Refusals by policies and by the gateway's admission, by phase; reason is a status code or, of admission, what has run out.";
    NEGATIVE_REPLIES Counter "incoming_negative_replies_total" ["code", "status"]
        "Replies of class 4 and 5 that were sent, of whatever kind, by reply code and enhanced status.";
    POLICY_VERDICTS Counter "incoming_policy_verdicts_total" ["policy", "verdict"]
        "What policies have said beside accepting: rejected, deferred, tagged, unavailable; dry runs included.";

    QUEUE_MESSAGES Gauge "incoming_queue_messages" []
        "Messages that are not done.";
    QUEUE_HELD Gauge "incoming_queue_held_messages" []
        "Messages of them that the operator holds; they are not counted with those that wait for a target.";
    QUEUE_MAX Gauge "incoming_queue_messages_max" []
        "Messages that may be in the queue.";
    QUEUE_DEPTH Gauge "incoming_queue_depth" ["target", "state"]
        "Messages that a target does not have yet: backlog waits for room, deferred for its time, handed_off is with the deliveries.";
    QUEUE_OLDEST Gauge "incoming_queue_oldest_age_seconds" ["target"]
        "How long ago the oldest message was accepted that the target does not have yet; 0 where there is none.";

    SPOOL_LIVE Gauge "incoming_spool_live_bytes" []
        "Octets of records in the spool that are needed.";
    SPOOL_RECLAIMABLE Gauge "incoming_spool_reclaimable_bytes" []
        "Octets of segments in use that nothing needs, and of free segments.";
    SPOOL_SEGMENTS Gauge "incoming_spool_segments" ["state"]
        "Segment files: used, and free to be used again.";
    SPOOL_FREE Gauge "incoming_spool_filesystem_free_bytes" []
        "Octets that the file system of the data directory has left for us.";
    SPOOL_SIZE Gauge "incoming_spool_filesystem_size_bytes" []
        "Octets of that file system.";
    SPOOL_WRITE Histogram "incoming_spool_write_seconds" []
        "How long writes to the spool took.";
    SPOOL_SYNC Histogram "incoming_spool_sync_seconds" []
        "How long syncs of the spool took.";
    SPOOL_COMMIT Histogram "incoming_spool_commit_messages" []
        "Messages that became durable together.";
    SPOOL_WRITTEN Counter "incoming_spool_written_bytes_total" []
        "Octets written to the spool.";
    SPOOL_CARRIED Counter "incoming_spool_carried_messages_total" []
        "Messages written again so that their segment could be used again.";
    SPOOL_FAILURES Counter "incoming_spool_failures_total" ["operation"]
        "Operations of the spool that failed: prepare, write, sync, remove. A failed write or sync has poisoned a segment.";

    MEMORY_USED Gauge "incoming_memory_used_bytes" ["shard", "budget"]
        "Memory in use of a budget: content, envelopes, cache.";
    MEMORY_MAX Gauge "incoming_memory_max_bytes" ["shard", "budget"]
        "What the budget is; more is not kept in memory but handed on, deferred or read back.";

    ATTEMPTS Counter "incoming_delivery_attempts_total" ["target"]
        "Attempts made.";
    DELIVERIES Counter "incoming_deliveries_total" ["target", "outcome"]
        "Recipients by what became of them in an attempt: delivered, deferred, rejected.";
    ATTEMPT_DURATION Histogram "incoming_delivery_attempt_seconds" ["target"]
        "How long attempts took.";
    IN_FLIGHT Gauge "incoming_delivery_attempts_in_flight" ["target"]
        "Attempts being made now.";
    CONCURRENCY Gauge "incoming_delivery_concurrency_max" ["target"]
        "Attempts that may be made at a time.";
    CHANNEL Gauge "incoming_delivery_channel_messages" ["target"]
        "Messages handed to the deliveries that no attempt has begun for.";
    BREAKER_OPEN Gauge "incoming_delivery_breaker_open" ["target"]
        "Whether the target is left alone, but for a probe now and then, because it fails: 1.";
    BREAKER_OPENED Counter "incoming_delivery_breaker_opened_total" ["target"]
        "How often it came to that.";
    DEAD_LETTERS Gauge "incoming_dead_letters" []
        "Dead letters there are.";

    CERTIFICATE_EXPIRY Gauge "incoming_certificate_expiry_timestamp_seconds" ["name"]
        "When the certificate that is shown for this name ends, in seconds since 1970.";
    RELOADS Counter "incoming_reloads_total" ["what", "outcome"]
        "How often files were read anew: ok, or failed and the old ones are used on.";
    RELOAD_GOOD Gauge "incoming_last_reload_good" ["what"]
        "Whether the last time was good, or there was none: 1.";
    RELOAD_TIME Gauge "incoming_last_good_reload_timestamp_seconds" ["what"]
        "When the last good one was, in seconds since 1970; 0: never.";
    LOG_STALLS Counter "incoming_log_stalls_total" []
        "Times whoever logged had to write lines out because nobody took them fast enough: it waited meanwhile.";
    LOG_LOST Counter "incoming_log_lost_bytes_total" []
        "Octets of log lines that standard error did not take.";

    CPU Counter "process_cpu_seconds_total" []
        "Processor time of all threads.";
    RESIDENT Gauge "process_resident_memory_bytes" []
        "Memory in use.";
    OPEN_FDS Gauge "process_open_fds" []
        "Open descriptors.";
    MAX_FDS Gauge "process_max_fds" []
        "Descriptors that may be open.";
    THREADS Gauge "process_threads" []
        "Threads.";
    START_TIME Gauge "process_start_time_seconds" []
        "When the process began, in seconds since 1970.";
}

impl Metric {
    /// The unit that its name ends in, if there is one.
    pub fn unit(&self) -> Option<&'static str> {
        let name = self.name.strip_suffix("_total").unwrap_or(self.name);
        ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(unit))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_say_what_they_are() {
        let mut seen = HashSet::new();
        for metric in ALL {
            let Metric { name, kind, labels, help } = metric;
            assert!(seen.insert(name), "{name} twice");
            assert!(name.starts_with("incoming_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Counter, "{name}");
            assert!(help.ends_with('.') && !help.contains(['\n', '\\', '"']), "{name}: {help}");
            for label in *labels {
                assert!(!["peer", "address", "recipient", "id", "le"].contains(label), "{name}: {label}");
            }
        }
    }
}
