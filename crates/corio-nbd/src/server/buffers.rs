//! Buffers that outlive the request they were made for.
//!
//! One pool for the whole server: what a burst on one connection needed, the next one elsewhere
//! finds. The fast path never comes here. Sizes are powers of two from 4 KiB to 32 MiB, starts are
//! aligned to 4 KiB, so that a disk opened with O_DIRECT takes them as they are.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

const ALIGNMENT: usize = 4096;
const CLASS_BYTES_MIN: usize = 4096;
/// 4 KiB, 8 KiB, .. 32 MiB.
const CLASSES: usize = 14;
/// Up to here a failed allocation is as fatal as any other; beyond it was a client who chose the
/// size.
const PLAIN_BYTES_MAX: usize = 1 << 20;

/// Idle buffers, by size.
#[derive(Debug)]
pub(super) struct BufferPool {
    idle: [Mutex<Vec<Vec<u8>>>; CLASSES],
    idle_bytes: AtomicUsize,
    idle_bytes_max: usize,
}

impl BufferPool {
    pub(super) fn new(idle_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            idle: std::array::from_fn(|_| Mutex::default()),
            idle_bytes: AtomicUsize::new(0),
            idle_bytes_max,
        })
    }

    /// A buffer of `len` bytes with whatever was in it before.
    ///
    /// # Errors
    /// There is no memory for a large one.
    pub(super) fn get(self: &Arc<Self>, len: usize) -> io::Result<Buffer> {
        let class = class_of(len);
        if let Some(class) = class
            && let Some(memory) = self.idle[class].lock().pop()
        {
            // Relaxed: a count, which orders nothing.
            self.idle_bytes.fetch_sub(memory.len(), Ordering::Relaxed);
            return Ok(Buffer::new(memory, len, Arc::clone(self)));
        }
        let size = class.map_or(len, |class| CLASS_BYTES_MIN << class) + ALIGNMENT;
        let memory = if size <= PLAIN_BYTES_MAX {
            // Zeroed by the kernel page by page as it is touched, where the allocator can.
            vec![0; size]
        } else {
            let mut memory = Vec::new();
            memory
                .try_reserve_exact(size)
                .map_err(|_| io::ErrorKind::OutOfMemory)?;
            memory.resize(size, 0);
            memory
        };
        Ok(Buffer::new(memory, len, Arc::clone(self)))
    }

    fn put(&self, memory: Vec<u8>) {
        let Some(class) = class_of(memory.len().saturating_sub(ALIGNMENT)) else {
            return;
        };
        let before = self.idle_bytes.fetch_add(memory.len(), Ordering::Relaxed);
        if before + memory.len() > self.idle_bytes_max {
            self.idle_bytes.fetch_sub(memory.len(), Ordering::Relaxed);
            return;
        }
        self.idle[class].lock().push(memory);
    }

    #[cfg(test)]
    pub(super) fn idle_bytes(&self) -> usize {
        self.idle_bytes.load(Ordering::Relaxed)
    }
}

/// The smallest size that holds `len`; `None` if none does.
fn class_of(len: usize) -> Option<usize> {
    (0..CLASSES).find(|class| CLASS_BYTES_MIN << class >= len)
}

/// Bytes from the pool, and back to it when dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
    pool: Arc<BufferPool>,
}

impl Buffer {
    fn new(memory: Vec<u8>, len: usize, pool: Arc<BufferPool>) -> Self {
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self {
            memory,
            start,
            len,
            pool,
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.put(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_as_long_as_asked_for() {
        let pool = BufferPool::new(1 << 20);
        for len in [0, 1, 4096, 4097, 100_000, 40 << 20] {
            let mut buffer = pool.get(len).unwrap();
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().align_offset(ALIGNMENT), 0);
            buffer.fill(7);
        }
    }

    #[test]
    fn a_buffer_comes_back_until_enough_are_idle() {
        let pool = BufferPool::new(3 * 4096);
        let first = pool.get(4000).unwrap();
        let address = first.as_ptr();
        drop(first);
        assert_eq!(pool.idle_bytes(), 2 * 4096);
        let again = pool.get(2000).unwrap();
        assert_eq!(again.as_ptr(), address);
        assert_eq!(pool.idle_bytes(), 0);
        drop((again, pool.get(100).unwrap()));
        assert_eq!(
            pool.idle_bytes(),
            2 * 4096,
            "the second would be over the limit"
        );
    }

    #[test]
    fn classes_cover_what_a_client_may_send() {
        assert_eq!(class_of(1), Some(0));
        assert_eq!(class_of(4096), Some(0));
        assert_eq!(class_of(4097), Some(1));
        assert_eq!(class_of(32 << 20), Some(13));
        assert_eq!(class_of((32 << 20) + 1), None);
    }
}
