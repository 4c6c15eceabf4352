//! The guard against re-entrancy (SPEC B9): a device that is in the middle of an access, and whose
//! own bottom half runs before that is over, is most likely not ready for it. It happens when the
//! access makes the loop turn, by a guest that has pointed the device at its own registers.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use super::{AioContext, BottomHalf};

/// A device, and whether it is in the middle of an access. Clones name the same one.
///
/// The device engages it for each access, and makes its bottom halves with it
/// ([`AioContext::guarded_bottom_half`]); each of them engages it, too. What runs while it is
/// engaged runs all the same: it is reported, in the log at level warning and by
/// [`reports`](Self::reports).
///
/// ```
/// use corio::context::ReentrancyGuard;
/// let context = corio::AioContext::new()?;
/// context.enter_home(|| {
///     let disk = ReentrancyGuard::new("disk0");
///     let complete = context.guarded_bottom_half("complete", &disk, || ());
///     complete.schedule();
///     context.poll(true)?;
///     assert_eq!(disk.reports(), 0);
///     complete.schedule();
///     let access = disk.engage();
///     context.poll(true)?; // In the middle of an access.
///     drop(access);
///     assert_eq!(disk.reports(), 1);
///     Ok::<_, std::io::Error>(())
/// })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "MemReentrancyGuard")]
#[derive(Clone, Debug)]
pub struct ReentrancyGuard(Arc<Device>);

#[derive(Debug)]
struct Device {
    name: String,
    // Both are looked at by whoever runs the device, one after another; nothing is ordered by them.
    engaged: AtomicBool,
    reports: AtomicU64,
}

impl ReentrancyGuard {
    /// For one device, by the name that reports shall have.
    #[must_use]
    pub fn new(device: impl Into<String>) -> Self {
        Self(Arc::new(Device {
            name: device.into(),
            engaged: AtomicBool::new(false),
            reports: AtomicU64::new(0),
        }))
    }

    /// The device is in the middle of an access until what this returns is dropped. Engaging what is
    /// engaged already is no report: the device has called itself.
    #[must_use = "the access is over when this is dropped"]
    pub fn engage(&self) -> Engaged<'_> {
        Engaged {
            guard: self,
            before: self.0.engaged.swap(true, Ordering::Relaxed),
        }
    }

    /// Whether the device is in the middle of an access.
    #[must_use]
    pub fn is_engaged(&self) -> bool {
        self.0.engaged.load(Ordering::Relaxed)
    }

    /// How many of its bottom halves have run while it was engaged.
    #[must_use]
    pub fn reports(&self) -> u64 {
        self.0.reports.load(Ordering::Relaxed)
    }

    /// Runs a bottom half of the device.
    fn run(&self, context: &str, bottom_half: &str, callback: &dyn Fn()) {
        let engaged = self.engage();
        if engaged.before {
            self.0.reports.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                context,
                bottom_half,
                device = self.0.name,
                "a device's bottom half runs while the device is in the middle of an access"
            );
        }
        callback();
    }
}

/// An access of a device, from [`ReentrancyGuard::engage`], until it is dropped.
///
/// ```
/// let disk = corio::context::ReentrancyGuard::new("disk0");
/// let access = disk.engage();
/// assert!(disk.is_engaged());
/// drop(access);
/// assert!(!disk.is_engaged());
/// ```
#[derive(Debug)]
pub struct Engaged<'a> {
    guard: &'a ReentrancyGuard,
    before: bool,
}

impl Drop for Engaged<'_> {
    fn drop(&mut self) {
        self.guard.0.engaged.store(self.before, Ordering::Relaxed);
    }
}

impl AioContext {
    /// Makes a bottom half of a device, which is reported if it runs while the device is engaged;
    /// else as [`bottom_half`](Self::bottom_half). Any thread.
    #[doc(alias = "aio_bh_new_guarded")]
    pub fn guarded_bottom_half(
        &self,
        name: &'static str,
        device: &ReentrancyGuard,
        callback: impl Fn() + Send + Sync + 'static,
    ) -> BottomHalf {
        let device = device.clone();
        // Not the context: it keeps what is scheduled on it, and would keep itself.
        let context = self.name().to_owned();
        self.bottom_half(name, move || device.run(&context, name, &callback))
    }
}
