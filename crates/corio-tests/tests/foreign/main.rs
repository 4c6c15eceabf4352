//! Beside others' code: contexts in foreign loops, futures in coroutines, coroutines in tokio's
//! tasks.

mod embedded;
mod futures;
mod tokio_runtimes;
