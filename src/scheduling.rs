//! How the kernel is to schedule threads that are no shards. Knows nobody.

/// Makes this thread one that is not run before a shard that has just become ready. Failing costs speed only.
pub fn yield_to_shards() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads `parameters` and changes nothing but how this thread is scheduled.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters) };
}
