//! The interpreter's own threads.
//!
//! They are not rayon's global pool: a worker of a pool that waits there steals other tasks, and a
//! stolen task that evaluates a tensor would wait for a lock that its own stack holds. A caller from
//! outside simply blocks; a caller that is itself a rayon worker (of any pool) runs the jobs on its
//! own thread, since its surroundings are parallel already.

use rayon::prelude::*;
use std::sync::LazyLock;

static POOL: LazyLock<Option<rayon::ThreadPool>> = LazyLock::new(|| {
    let threads = std::env::var("TL_NUM_THREADS").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("tensorlogic-{i}"));
    builder.build().ok().filter(|pool| pool.current_num_threads() > 1)
});

/// How many threads [`for_each`] uses (`TL_NUM_THREADS`, else the cores).
pub fn count() -> usize {
    POOL.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
}

/// Runs `job(0..jobs)`, in parallel when `parallel` is set; returns when all have run.
pub fn for_each(jobs: usize, parallel: bool, job: &(dyn Fn(usize) + Sync)) {
    match POOL.as_ref() {
        Some(pool) if parallel && jobs > 1 && rayon::current_thread_index().is_none() => {
            pool.install(|| (0..jobs).into_par_iter().with_max_len(1).for_each(job));
        }
        _ => (0..jobs).for_each(job),
    }
}
