//! Models of the channel's protocol.

use super::*;
use crate::model;
use crate::sync::record::LoomWaker;
// Not loom's Arc: its destructor would panic again when a model has found a deadlock.
use std::sync::Arc;

type LoomState = State<LoomWaker, u32>;

/// Sends, and waits while it is full. False: nobody will receive it.
fn send(channel: &LoomState, message: u32) -> bool {
    let record = sending(LoomWaker::new(), message);
    // SAFETY: waits until the record is granted.
    match unsafe { channel.place_or_queue(&record) } {
        Attempt::Done => true,
        Attempt::Closed => false,
        Attempt::Waits => {
            LoomWaker::wait(&record);
            record.granted() == Some(Grant::Turn)
        }
    }
}

/// The next message, or None at the end.
fn receive(channel: &LoomState) -> Option<u32> {
    let mut message = None;
    let record = receiving(LoomWaker::new());
    // SAFETY: waits until the record is granted.
    if unsafe { channel.receive_or_queue(&record, &mut message) } == Attempt::Waits {
        LoomWaker::wait(&record);
        // SAFETY: granted, so ours.
        message = unsafe { record.payload().take() };
    }
    message
}

/// Like a receiver that is cancelled as soon as it waits.
fn receive_and_cancel(channel: &LoomState) -> Option<u32> {
    let mut message = None;
    let record = receiving(LoomWaker::new());
    // SAFETY: abandoned below if it is queued.
    unsafe {
        if channel.receive_or_queue(&record, &mut message) == Attempt::Waits {
            channel.abandon_receive(&record);
        }
    }
    message
}

/// Like one that reserves and is cancelled as soon as it waits.
fn reserve_and_cancel(channel: &LoomState) {
    let record = reserving(LoomWaker::new());
    // SAFETY: abandoned below if it is queued.
    unsafe {
        match channel.place_or_queue(&record) {
            Attempt::Done => channel.unreserve(),
            Attempt::Waits => channel.abandon_place(&record),
            Attempt::Closed => {}
        }
    }
}

/// SPEC L5, L7. Planted bugs: `channel_no_second_look`, `channel_end_untold`.
#[test]
fn loom_every_message_arrives_and_then_the_end() {
    model::check(3, || {
        let channel = Arc::new(LoomState::new(1));
        let sender = {
            let channel = Arc::clone(&channel);
            loom::thread::spawn(move || {
                assert!(send(&channel, 1) && send(&channel, 2));
                channel.remove_sender();
            })
        };
        assert_eq!(receive(&channel), Some(1));
        assert_eq!(receive(&channel), Some(2));
        assert_eq!(receive(&channel), None);
        sender.join().unwrap();
    });
}

/// SPEC L5, L7.
#[test]
fn loom_two_that_send_into_one_place_are_both_served() {
    model::check(3, || {
        let channel = Arc::new(LoomState::new(1));
        let senders = [1, 2].map(|message| {
            let channel = Arc::clone(&channel);
            loom::thread::spawn(move || assert!(send(&channel, message)))
        });
        let mut all = [receive(&channel), receive(&channel)];
        all.sort_unstable();
        assert_eq!(all, [Some(1), Some(2)]);
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

/// SPEC L5, L7, C12. Planted bug: `channel_message_dropped`.
#[test]
fn loom_cancelled_receiver_leaves_its_message_as_the_oldest() {
    model::check(3, || {
        let channel = Arc::new(LoomState::new(1));
        let sender = {
            let channel = Arc::clone(&channel);
            loom::thread::spawn(move || {
                assert!(send(&channel, 1) && send(&channel, 2));
            })
        };
        let first = receive_and_cancel(&channel).or_else(|| receive(&channel));
        assert_eq!(first, Some(1));
        assert_eq!(receive(&channel), Some(2));
        sender.join().unwrap();
    });
}

/// SPEC L5, L7, C12. Planted bug: `channel_place_dropped`.
#[test]
fn loom_cancelled_waiter_passes_its_place_on() {
    model::check(3, || {
        let channel = Arc::new(LoomState::new(1));
        assert!(send(&channel, 1));
        let cancelled = {
            let channel = Arc::clone(&channel);
            loom::thread::spawn(move || reserve_and_cancel(&channel))
        };
        let sender = {
            let channel = Arc::clone(&channel);
            loom::thread::spawn(move || assert!(send(&channel, 2)))
        };
        assert_eq!(receive(&channel), Some(1));
        assert_eq!(receive(&channel), Some(2));
        cancelled.join().unwrap();
        sender.join().unwrap();
        assert_eq!(channel.try_reserve(), Attempt::Done);
    });
}

/// SPEC L5, L7.
#[test]
fn loom_senders_learn_that_the_receiver_goes() {
    model::check(3, || {
        let channel = Arc::new(LoomState::new(1));
        assert!(send(&channel, 1));
        let sender = {
            let channel = Arc::clone(&channel);
            loom::thread::spawn(move || send(&channel, 2))
        };
        channel.close();
        assert!(!sender.join().unwrap(), "nobody will receive it");
        assert!(!send(&channel, 3));
    });
}

/// SPEC L5, L7: a place that is given back is whose turn it is, whoever comes at that moment.
#[test]
fn loom_a_place_given_back_is_taken_from_nobody_in_line() {
    model::check(3, || {
        let channel = Arc::new(LoomState::new(1));
        assert_eq!(channel.try_reserve(), Attempt::Done);
        let first = sending(LoomWaker::new(), 1);
        // SAFETY: granted below, and asserted to be.
        assert_eq!(unsafe { channel.place_or_queue(&first) }, Attempt::Waits);
        let late = {
            let channel = Arc::clone(&channel);
            loom::thread::spawn(move || channel.try_send(&mut Some(2)))
        };
        channel.unreserve();
        assert!(first.is_granted());
        assert_eq!(late.join().unwrap(), Attempt::Waits);
        assert_eq!(receive(&channel), Some(1));
    });
}

/// SPEC L5, L7: what is not received does not stay once the receiver has gone.
#[test]
fn loom_a_place_given_back_as_the_receiver_goes_takes_no_message_in() {
    model::check(3, || {
        let channel = Arc::new(LoomState::new(1));
        assert_eq!(channel.try_reserve(), Attempt::Done);
        let sender = {
            let channel = Arc::clone(&channel);
            loom::thread::spawn(move || send(&channel, 1))
        };
        let room = {
            let channel = Arc::clone(&channel);
            loom::thread::spawn(move || channel.unreserve())
        };
        channel.close();
        sender.join().unwrap();
        room.join().unwrap();
        assert!(channel.inner.with(|inner| inner.ring.is_empty()));
    });
}
