//! Create, enter, suspend: the paths that must cost a few nanoseconds.
//!
//! Rules
//! - R1 Nothing here holds a reference into a control block across a switch that may end the
//!   coroutine: what is needed afterwards is copied before.
//! - R2 A running coroutine fetches `ThreadState` anew after a switch.

#![allow(unsafe_code)] // Stack switching; SAFETY comments name control's and stack's invariants.

use core::cell::Cell;
use core::mem::{ManuallyDrop, offset_of};
use core::panic::Location;
use core::ptr::{self, NonNull};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use super::control::{Cancel, Cancelled, ControlBlock, Hot, Phase, Rest, key};
use super::home::Home;
use super::machine::Machine;
use super::wake_queue::WakeQueue;
use super::{CoRef, loose};
use crate::stack::{self, Slot};
use crate::tls;
use crate::track::{self, Kind};

type Panic = Box<dyn Any + Send>;

/// A closure that is larger, or aligned to more, in bytes, is boxed, as the smallest stack must hold
/// it twice. (corosensei copies at most 1024, bookkeeping and padding included.)
const INLINE_MAX: usize = 512;
// The closure is put right below the control block.
const _: () = assert!(stack::CONTROL_SIZE.is_multiple_of(INLINE_MAX));
// What an ended one gives back is no plain suspension.
const _: () = assert!(Machine::ENDED & key::SETTLE != 0);

/// Makes a coroutine in `home`, which is of this thread, or a loose one; on a stack that the caller
/// has acquired for it. It runs nothing.
#[inline]
pub(super) fn create<F: FnOnce() + 'static>(
    thread: &'static tls::ThreadState,
    home: Option<&Home>,
    slot: &'static Slot,
    name: Option<Rc<str>>,
    created_at: &'static Location<'static>,
    body: F,
) -> CoRef {
    if const { size_of::<F>() > INLINE_MAX || align_of::<F>() > INLINE_MAX } {
        let body: Box<dyn FnOnce()> = Box::new(body);
        return create(thread, home, slot, name, created_at, body);
    }
    let at = slot.control_block().cast::<ControlBlock>();
    let block = CoRef(at);
    // SAFETY: `body` is 'static; the slot is ours (stack I1), and its stack is used by this machine
    // only until `finish` or `discard` has taken it back. A home leaks what it cannot end, so the
    // stack is never reused under a frame.
    let body = Body {
        co: block,
        closure: ManuallyDrop::new(body),
    };
    // SAFETY: an address within the control block's space.
    let machine_at = unsafe { NonNull::new_unchecked(&raw mut (*at.as_ptr()).hot.machine) };
    let machine = Machine::new(machine_at, slot, move || run_body(body));
    let generation = slot.word.generation();
    let hot = Hot {
        machine,
        thread: Cell::new(thread),
        suspended_key: Cell::new(key::of(generation) + key::SUSPENDED),
        cancel: Cell::new(Cancel::None),
        cancel_masks: Cell::new(0),
    };
    let rest = Rest {
        woken: WakeQueue::new(),
        locks_held: Cell::new(0),
        generation,
        slot,
        home: Cell::new(home.map_or(ptr::null(), ptr::from_ref)),
        place: Cell::new(loose::NOWHERE),
        newer: Cell::new(ptr::null()),
        older: Cell::new(ptr::null()),
        panic: Cell::new(None),
        departure: Cell::new(None),
        unfinished: Cell::new(None),
        name,
        created_at,
        scheduled_at: Cell::new(None),
    };
    // SAFETY: the control block's space is ours, large enough and aligned (asserted in `control`).
    unsafe { ControlBlock::init(at, hot, rest) };
    match home {
        Some(home) => {
            // Relaxed: published by the park's compare-exchange.
            slot.inbox
                .store(home.inbox().cast_mut(), crate::atomic::Ordering::Relaxed);
            if home.inbox().is_null() {
                slot.word.notify_new(generation); // See `super::try_park`.
            }
            home.link(block.block());
        }
        None => slot.word.share(generation, false), // stack::word I8.
    }
    if track::notice(thread) {
        let by = running().map_or(0, |block| reference(block).id());
        track::emit(Kind::Created, block.id(), by, slot.size() as u64);
    }
    block
}

/// A coroutine's closure on its way to the first entry. No panic of its destructor gets out of a
/// coroutine that never ran (corosensei aborts): it ends here; the panic hook has reported it. A
/// cancellation of the coroutine in which the destructor runs goes on in [`discard`].
struct Body<F> {
    co: CoRef,
    closure: ManuallyDrop<F>,
}

impl<F: FnOnce()> Body<F> {
    #[inline]
    fn run(self) {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is not dropped, so the closure is taken once.
        let body = unsafe { ManuallyDrop::take(&mut this.closure) };
        body();
    }
}

impl<F> Drop for Body<F> {
    fn drop(&mut self) {
        // SAFETY: dropped once, here; `run` forgets the wrapper.
        let drop_it = || unsafe { ManuallyDrop::drop(&mut self.closure) };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(drop_it)) {
            if payload.is::<Cancelled>() {
                self.co.block().panic.set(Some(payload));
            } else {
                core::mem::forget(payload); // Its destructor could panic again.
            }
        }
    }
}

/// The outermost frame of every coroutine.
#[inline]
fn run_body<F: FnOnce()>(body: Body<F>) {
    let co = body.co;
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| body.run())) {
        keep_panic(co, payload);
    }
    co.block().set_state(key::ENDED);
}

#[cold]
fn keep_panic(co: CoRef, payload: Panic) {
    if !payload.is::<Cancelled>() {
        co.block().panic.set(Some(payload));
    }
}

/// Switches into a coroutine that is Created or Suspended, and back when it suspends or ends.
/// Returns what it left: its key, which has SETTLE in it if [`after_run`] must follow, and itself
/// again, as the machine keeps it in a register.
///
/// `base` is the key of its generation.
#[inline(always)]
pub(super) fn switch_into(block: &ControlBlock, base: u64) -> (u64, CoRef) {
    let thread = tls::thread();
    if thread.traced.get() != 0 {
        return traced_switch(block, base);
    }
    switch(thread, block, base)
}

/// As [`switch_into`]; `thread` is this one.
#[inline(always)]
fn switch(thread: &tls::ThreadState, block: &ControlBlock, base: u64) -> (u64, CoRef) {
    block.set_key(base + key::ENTERED);
    // SAFETY: control I3: it was not Entered, so nobody else is in here, and the block outlives the
    // call: only `finish` and `discard` end it, after it and never from inside.
    let (key, machine) = unsafe { block.hot.machine.resume(thread) };
    (key, of_machine(machine))
}

/// The coroutine of a machine, which is its first part.
#[inline(always)]
fn of_machine(machine: NonNull<Machine>) -> CoRef {
    const { assert!(offset_of!(ControlBlock, hot) == 0 && offset_of!(Hot, machine) == 0) }
    CoRef(machine.cast())
}

/// All that is told of a run is told here, on the side of whoever enters, so that a suspension
/// need not ask whether to tell. The end is told by `finish`.
#[cold]
#[inline(never)]
fn traced_switch(block: &ControlBlock, base: u64) -> (u64, CoRef) {
    let co = reference(block);
    let caller = running().map_or(0, |caller| reference(caller).id());
    track::emit(Kind::Entered, caller, co.id(), 0);
    let left = switch(tls::thread(), block, base);
    if block.key() != base + key::ENDED {
        track::emit(Kind::Yielded, co.id(), caller, 0);
    }
    left
}

/// Runs a coroutine that is Created or Suspended, then what it woke, and so on (SPEC C4).
#[inline(always)]
pub(crate) fn enter(co: CoRef) {
    enter_as(co, key::of(co.generation()));
}

/// As [`enter`], for who has `base`, the key of the coroutine's generation, at hand.
#[inline(always)]
pub(super) fn enter_as(co: CoRef, base: u64) {
    let (left, co) = switch_into(co.block(), base);
    if left & key::SETTLE != 0 {
        after_run(co);
    }
}

/// As [`enter_as`], for who knows that no coroutine runs and nothing is traced. `thread` is this
/// one.
#[inline(always)]
pub(super) fn enter_first(thread: &tls::ThreadState, co: CoRef, base: u64) {
    let block = co.block();
    block.set_key(base + key::ENTERED);
    // SAFETY: as in `switch`; no coroutine runs.
    let (left, machine) = unsafe { block.hot.machine.resume_first(thread) };
    if left & key::SETTLE != 0 {
        after_run(of_machine(machine));
    }
}

/// What is seldom to be done after a run: end the coroutine, run what it woke, pass its panic on.
#[inline(never)]
pub(super) fn after_run(co: CoRef) {
    if !end_plainly(co) {
        after_run_of_note(co);
    }
}

/// As [`finish`], if the coroutine has ended and left nothing else to be done; false, and nothing
/// done, if not. It calls nothing, so that it needs no frame: there is one for each coroutine that
/// ends.
#[inline(always)]
fn end_plainly(co: CoRef) -> bool {
    let block = co.block();
    let (slot, generation, thread) = (block.slot, block.generation, block.hot.thread.get());
    let ended = block.woken.is_empty()
        && block.key() == key::of(generation) + key::ENDED
        && !block.has_queued_itself()
        && !block.is_loose()
        && block.locks_held.get() == 0
        && block.name.is_none()
        && !track::is_enabled()
        && !slot.is_watched()
        // SAFETY: the coroutine is over, and gives its slot up below, or where this is asked again.
        && unsafe { stack::is_settled(co.0.cast()) }
        && stack::has_room(thread, slot, generation);
    if !ended {
        return false;
    }
    if let Some(panic) = block.panic.take() {
        block.panic.set(Some(panic));
        return false;
    }
    unlink(co);
    if slot.word.retire(generation) {
        // SAFETY: as in `give_up`; there is room.
        unsafe { stack::release_into_room(thread, slot) };
    }
    true
}

/// As [`after_run`], where there is something to be noted.
#[cold]
#[inline(never)]
fn after_run_of_note(co: CoRef) {
    let queue = WakeQueue::new();
    let panic = settle(co, &queue);
    if panic.is_some() || !queue.is_empty() {
        run_queue(&queue, panic);
    }
}

/// Puts what a coroutine woke at the front of the queue; and ends it, if it has ended.
#[inline(always)] // A level of calls less for each coroutine that ends.
fn settle(co: CoRef, queue: &WakeQueue) -> Option<Panic> {
    let block = co.block();
    queue.prepend(&block.woken);
    let state = block.state(block.generation);
    if state == key::ENDED {
        if block.has_queued_itself() {
            return ended_queued(co);
        }
        return finish(co);
    }
    if state != key::DEPARTING {
        debug_assert!(state & !key::QUEUES == key::WOKE);
        block.set_state(state - key::WOKE);
        block.suspend_plainly();
    }
    None
}

/// Runs the queue empty. Each slot's coroutine is scheduled; the first panic is raised once all
/// have run.
#[cold]
pub(crate) fn run_queue(queue: &WakeQueue, mut panic: Option<Panic>) {
    while let Some(slot) = queue.pop() {
        let co = super::of_slot(slot);
        let block = co.block();
        let state = block.state(block.generation);
        if state >= key::DEPARTING {
            leaves(co, state);
            continue;
        }
        if state == key::QUEUED || state == key::CREATED_QUEUED {
            block.suspend_plainly(); // stack::word I6.
        } else {
            slot.word.claim(block.generation);
        }
        if block.is_loose() {
            loose::taken_off_queue(block, state);
        }
        co.accept_cancel();
        let raised = if co.is_cancelled() && block.phase() == Phase::Created {
            discard_caught(co)
        } else if switch_into(block, key::of(block.generation)).0 & key::SETTLE == 0 {
            continue;
        } else {
            settle(co, queue)
        };
        match (&panic, raised) {
            (Some(_), later) => core::mem::forget(later), // Its destructor could panic, and lose what is queued.
            (None, later) => panic = later,
        }
    }
    if let Some(payload) = panic {
        resume_unwind(payload);
    }
}

/// Takes one off a queue that is not to be run from it.
#[cold]
#[inline(never)]
fn leaves(co: CoRef, state: u64) {
    if state == key::ENDED {
        give_up(co); // `ended_queued` has done the rest.
    } else if let Some(departure) = co.block().departure.take() {
        departure(co);
    }
}

/// Takes an ended coroutine apart and gives its stack back.
#[inline(always)] // A level of calls less for each coroutine that ends.
fn finish(co: CoRef) -> Option<Panic> {
    let block = co.block();
    if track::is_enabled() {
        // Who has entered it goes on now.
        let to = running().map_or(0, |caller| reference(caller).id());
        track::emit(Kind::Ended, co.id(), to, 0);
    }
    let mut panic = block.panic.take();
    if block.is_loose() {
        loose::check_end(block);
    } else {
        if block.locks_held.get() != 0 && panic.is_none() {
            panic = Some(ended_with_locks(block));
        }
        unlink(co);
    }
    co.slot().clear();
    give_up(co);
    panic
}

/// As [`finish`] for one that is in a queue still, and so keeps its slot until it is taken off. If
/// it was cancelled before it could yield, that is nobody's fault.
#[cold]
fn ended_queued(co: CoRef) -> Option<Panic> {
    let block = co.block();
    unlink(co);
    let panic = block.panic.take();
    if panic.is_some() || co.is_unwinding() {
        return panic;
    }
    Some(misuse(&format!(
        "{} ended while it was scheduled: a coroutine that schedules itself must yield before it \
         ends",
        block.describe()
    )))
}

#[cold]
fn ended_with_locks(block: &ControlBlock) -> Panic {
    misuse(&format!(
        "{} ended while holding {} coroutine lock(s): drop the guards, do not forget them",
        block.describe(),
        block.locks_held.get()
    ))
}

/// A panic on its way to whoever entered the coroutine, which the panic hook has reported as any
/// other.
fn misuse(text: &str) -> Panic {
    match catch_unwind(|| panic!("{text}")) {
        Ok(never) => never,
        Err(payload) => payload,
    }
}

/// Drops a coroutine that has never started, closure and all. Its home thread.
pub(crate) fn discard(co: CoRef) {
    debug_assert_eq!(co.phase(), Phase::Created);
    // Ended from here on: the closure's destructor may look at its own handle. Off the list, too:
    // the destructor may suspend the coroutine that it runs in, and the home may be gone when it
    // goes on.
    co.block().set_state(key::ENDED);
    unlink(co);
    // SAFETY: never resumed. This drops the closure where it lies, and panics with nothing (`Body`).
    unsafe { co.block().hot.machine.discard() };
    let cancelled = co.block().panic.take();
    give_up(co);
    // One that was kept from elsewhere and thrown again where no coroutine runs cancels nobody: it
    // would end the home that is dropping its coroutines (home I1).
    if let Some(payload) = cancelled
        && running().is_some()
    {
        resume_unwind(payload);
    }
}

/// As [`discard`], in a queue that must be run first: what is returned is the cancellation of the
/// coroutine on whose stack the queue is run.
#[cold]
fn discard_caught(co: CoRef) -> Option<Panic> {
    catch_unwind(AssertUnwindSafe(|| discard(co))).err()
}

#[inline]
fn unlink(co: CoRef) {
    home_of(co.block()).unlink(co.block());
}

/// Takes a coroutine that is not running off its home's list, for good or to be attached elsewhere.
pub(super) fn detach(co: CoRef) {
    let block = co.block();
    home_of(block).let_go(block);
    block.home.set(ptr::null());
}

/// The home of a coroutine that is in its list.
#[inline]
fn home_of(block: &ControlBlock) -> &Home {
    // SAFETY: home I1: the list is not empty, so the home is there.
    unsafe { &*block.home.get() }
}

/// Ends the slot's use, once the coroutine is off its home's list: tokens stale, stack back to the
/// pool.
#[inline(always)] // As `finish`.
fn give_up(co: CoRef) {
    let block = co.block();
    let (slot, generation, thread) = (block.slot, block.generation, block.hot.thread.get());
    // SAFETY: the coroutine is over, and gives its slot up below.
    if !unsafe { stack::is_settled(co.0.cast()) } {
        // SAFETY: as above; the block lies above what is trimmed.
        unsafe { stack::settle(slot, block.created_at, block.name.as_deref()) };
    }
    // Of all that is in the block only the name is left to be dropped: whoever ends a coroutine has
    // taken its panic, and whoever it has departed for its departure.
    // SAFETY: the block is initialised (control I1), and given up here, once.
    drop(unsafe { (&raw const (*co.0.as_ptr()).rest.name).read() });
    if slot.word.retire(generation) {
        // SAFETY: the coroutine is over, nobody refers to its stack, and its tokens have just gone
        // stale.
        unsafe { stack::release(thread, slot, generation) };
    }
}

/// Gives control back to whoever entered the running coroutine; returns it when it is entered
/// again, as the machine keeps it in a register.
///
/// `block` is the running coroutine's; `key` is what it shows meanwhile.
#[inline(always)]
pub(super) fn switch_out(block: &ControlBlock, key: u64) -> &ControlBlock {
    block.set_key(key);
    // SAFETY: the caller is inside the coroutine; its block is where it was.
    unsafe { &*of_machine(block.hot.machine.suspend(key)).0.as_ptr() }
}

/// The running coroutine's block.
#[inline(always)]
pub(super) fn running<'a>() -> Option<&'a ControlBlock> {
    // SAFETY: `current` is null or the running coroutine's block, which lives at least as long as
    // the coroutine runs; callers run inside it.
    unsafe { tls::current().cast::<ControlBlock>().as_ref() }
}

/// Unwinds the running coroutine (SPEC C12), which has been asked to end. The panic hook is not
/// run.
///
/// Returns, and leaves it asked, while the thread unwinds, unless the coroutine is known not to be
/// the one that does: if its own destructor waits here, a second panic would abort the process. The
/// home asks it again afterwards.
#[cold]
pub(super) fn raise_cancel(block: &ControlBlock, may_unwind: bool) {
    if may_unwind && std::thread::panicking() {
        // SAFETY: home I1: it runs, so it is in its home's list, and the home is there.
        let home: &Home = unsafe { &*block.home.get() };
        home.note_refusal();
        return;
    }
    block.hot.cancel.set(Cancel::Raised);
    resume_unwind(Box::new(Cancelled))
}

#[cold]
pub(super) fn no_home(at: &'static Location<'static>) -> ! {
    panic!(
        "a coroutine was created at {at} outside of any home: wrap the code in `corio::home(|| ..)`, or run it on an IoThread"
    )
}

/// Keeps `NonNull` in the signature of what other files build.
pub(super) fn reference(block: &ControlBlock) -> CoRef {
    CoRef(NonNull::from(block))
}
