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

    use rustix::fs::OFlags;

    use crate::context::{AioContext, Local};
    use crate::engine::{EngineChoice, EngineKind, of_home};
    use crate::fs::{AlignedBuf, File};

    /// Requests that one turn leaves for the next submission, if `count` are made in it.
    fn left_after(
        context: &AioContext,
        count: usize,
        write: fn(),
        queued: fn(&Local) -> usize,
    ) -> usize {
        let local = context.local().expect("this thread is its home");
        let children: Vec<_> = (0..count).map(|_| local.spawn(write)).collect();
        context.poll(false).unwrap();
        let left = queued(Local::current().unwrap());
        while children.iter().any(|child| !child.is_finished()) {
            context.poll(true).unwrap();
        }
        children.into_iter().for_each(|child| child.join().unwrap());
        left
    }

    fn write_cached() {
        let file = File::from(OwnedFd::from(tempfile::tempfile().unwrap()));
        file.write_all_at(&[1; 512], 0).unwrap();
    }

    fn queued_on_ring(local: &Local) -> usize {
        local.ring_if_made().map_or(0, |ring| ring.pending())
    }

    /// Without a worker, who would open it later.
    fn direct_file() -> rustix::io::Result<File> {
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        rustix::fs::fcntl_setfl(&file, OFlags::DIRECT)?;
        Ok(File::from(file))
    }

    fn write_direct() {
        let block = AlignedBuf::zeroed(4096, 4096).unwrap();
        direct_file().unwrap().write_all_at(&block, 0).unwrap();
    }

    fn queued_on_aio(local: &Local) -> usize {
        of_home(local).aio().map_or(0, |aio| aio.queued())
    }

    // SPEC I1, E1
    #[test]
    fn requests_gather_up_to_the_limit_that_is_set_meanwhile() {
        let context = AioContext::new().unwrap();
        let left_after = |count| left_after(&context, count, write_cached, queued_on_ring);
        let test = || {
            left_after(1);
            if context.engine().unwrap().kind != EngineKind::IoUring {
                println!("SKIPPED: requests gather: no io_uring here");
                return;
            }
            assert_eq!(left_after(5), 1, "two by two");
            context.set_request_batch_max(4).unwrap();
            assert_eq!(left_after(7), 3);
            std::thread::scope(|scope| {
                let set = || context.set_request_batch_max(1);
                scope.spawn(set).join().unwrap().unwrap();
            });
            assert_eq!(left_after(3), 0);
            context.set_request_batch_max(256).unwrap();
            assert_eq!(left_after(100), 100);
            context.set_request_batch_max(257).unwrap_err();
            assert_eq!(context.request_batch_max(), 256);
            context.set_request_batch_max(0).unwrap();
            assert_eq!(left_after(5), 1);
        };
        context.enter_home(test).unwrap();
    }

    // SPEC I1, E2
    #[test]
    fn requests_of_linux_aio_gather_up_to_32_or_the_limit_that_is_set_meanwhile() {
        if let Err(error) = direct_file() {
            return println!("SKIPPED: requests of Linux AIO gather: O_DIRECT: {error}");
        }
        let context = AioContext::new().unwrap();
        context.set_engine(EngineChoice::LinuxAio);
        let left_after = |count| left_after(&context, count, write_direct, queued_on_aio);
        let test = || {
            left_after(1);
            let used = context.direct_engine().unwrap();
            if used.kind != EngineKind::LinuxAio {
                return println!("SKIPPED: requests of Linux AIO gather: {}", used.reason);
            }
            assert_eq!(left_after(31), 31);
            assert_eq!(left_after(32), 0);
            assert_eq!(left_after(33), 1);
            context.set_request_batch_max(4).unwrap();
            assert_eq!(left_after(7), 3);
            context.set_request_batch_max(1).unwrap();
            assert_eq!(left_after(3), 0);
            context.set_request_batch_max(256).unwrap();
            assert_eq!(left_after(100), 100);
            context.set_request_batch_max(0).unwrap();
            assert_eq!(left_after(31), 31);
        };
        context.enter_home(test).unwrap();
    }
}
