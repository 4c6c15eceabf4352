//! What of the engines can be changed while they work (SPEC I1): how many requests gather, and how
//! many worker threads there are. Any thread may change them; a request, or a job, that begins later
//! goes by the new ones.

use core::sync::atomic::Ordering;

use super::{BATCH_LIMIT, Setting};
use crate::context::AioContext;
use crate::error::Error;

impl AioContext {
    /// Changes how many disk requests gather at most before they are handed to the kernel together,
    /// by io_uring or Linux AIO; the loop hands over fewer when it turns. 0, as at first: the engine
    /// chooses. Any thread, at any time. Worker threads take requests one by one.
    ///
    /// # Errors
    /// `max` is more than 256, as many as fit in the ring: nothing is changed.
    ///
    /// ```
    /// let context = corio::AioContext::new()?;
    /// context.set_request_batch_max(16)?;
    /// assert_eq!(context.request_batch_max(), 16);
    /// let error = context.set_request_batch_max(1000).unwrap_err();
    /// assert_eq!(error.to_string(), "aio_max_batch is 1000, which is not 0 to 256");
    /// # Ok::<(), corio::Error>(())
    /// ```
    #[doc(alias = "aio_context_set_aio_params")]
    pub fn set_request_batch_max(&self, max: usize) -> Result<(), Error> {
        if max > BATCH_LIMIT {
            return Err(Error::Parameter {
                name: "aio_max_batch",
                value: max.to_string(),
                expected: "0 to 256",
            });
        }
        let setting = self.attachment(Setting::default);
        setting.batch_max.store(max, Ordering::Relaxed); // A number, which orders nothing.
        Ok(())
    }

    /// How many disk requests gather at most; 0: as many as the engine likes.
    #[must_use]
    pub fn request_batch_max(&self) -> usize {
        let setting = self.attachment(Setting::default);
        setting.batch_max.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::OwnedFd;

    use crate::context::{AioContext, Local};
    use crate::engine::EngineKind;
    use crate::fs::File;

    /// Requests that one turn leaves for the next submission, if `count` are made in it.
    fn left_after(context: &AioContext, count: usize) -> usize {
        let local = context.local().expect("this thread is its home");
        let children: Vec<_> = (0..count)
            .map(|_| {
                local.spawn(|| {
                    let file = File::from(OwnedFd::from(tempfile::tempfile().unwrap()));
                    file.write_all_at(&[1; 512], 0).unwrap();
                })
            })
            .collect();
        context.poll(false).unwrap();
        let ring = Local::current().unwrap().ring_if_made();
        let left = ring.map_or(0, |ring| ring.pending());
        while children.iter().any(|child| !child.is_finished()) {
            context.poll(true).unwrap();
        }
        left
    }

    // SPEC I1, E1
    #[test]
    fn requests_gather_up_to_the_limit_that_is_set_meanwhile() {
        let context = AioContext::new().unwrap();
        let test = || {
            left_after(&context, 1);
            if context.engine().unwrap().kind != EngineKind::IoUring {
                println!("SKIPPED: requests gather: no io_uring here");
                return;
            }
            assert_eq!(left_after(&context, 5), 1, "two by two");
            context.set_request_batch_max(4).unwrap();
            assert_eq!(left_after(&context, 7), 3);
            std::thread::scope(|scope| {
                let set = || context.set_request_batch_max(1);
                scope.spawn(set).join().unwrap().unwrap();
            });
            assert_eq!(left_after(&context, 3), 0);
            context.set_request_batch_max(256).unwrap();
            assert_eq!(left_after(&context, 100), 100);
            context.set_request_batch_max(257).unwrap_err();
            assert_eq!(context.request_batch_max(), 256);
            context.set_request_batch_max(0).unwrap();
            assert_eq!(left_after(&context, 5), 1);
        };
        context.enter_home(test).unwrap();
    }
}
