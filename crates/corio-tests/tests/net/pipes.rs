//! Pipes, which are read and written like streams.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use corio::net::{PipeReader, PipeWriter, pipe};
use corio::spawn_local;
use rustix::fs::OFlags;

use super::{on_each_monitor, settle};

// SPEC E6
#[test]
fn what_is_written_is_read_in_order_and_then_ends() {
    on_each_monitor(|| {
        const TOTAL: u64 = 4 << 20;
        let (mut reader, writer) = pipe().unwrap();
        let writing = spawn_local(move || {
            let mut counter = 0u8;
            let mut left = usize::try_from(TOTAL).unwrap();
            // Many times what a pipe holds, in pieces that do not divide it.
            while left > 0 {
                let part: Vec<u8> = (0..left.min(10_007))
                    .map(|_| {
                        counter = counter.wrapping_add(1);
                        counter
                    })
                    .collect();
                (&writer).write_all(&part).unwrap();
                left -= part.len();
            }
        });
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(u64::try_from(all.len()).unwrap(), TOTAL);
        let expected = (1..=u8::MAX).chain([0]).cycle();
        assert!(all.iter().copied().eq(expected.take(all.len())));
        writing.join().unwrap();
    });
}

// SPEC E6
#[test]
fn readers_of_a_pipe_are_served_in_order() {
    on_each_monitor(|| {
        let (reader, mut writer) = pipe().unwrap();
        let reader = Rc::new(reader);
        let readers: Vec<_> = (0..5)
            .map(|_| {
                let reader = Rc::clone(&reader);
                spawn_local(move || {
                    let mut byte = [0];
                    (&*reader).read_exact(&mut byte).unwrap();
                    byte[0]
                })
            })
            .collect();
        settle();
        assert_eq!(reader.try_read(&mut [0]).unwrap(), None);
        writer.write_all(b"abcde").unwrap();
        let got: Vec<u8> = readers.into_iter().map(|it| it.join().unwrap()).collect();
        assert_eq!(got, b"abcde");
    });
}

// SPEC E6
#[test]
fn vectored_calls_on_pipes_take_all_buffers() {
    on_each_monitor(|| {
        let (mut reader, mut writer) = pipe().unwrap();
        let sent = [
            IoSlice::new(b"one"),
            IoSlice::new(b""),
            IoSlice::new(b"two"),
        ];
        assert_eq!(writer.write_vectored(&sent).unwrap(), 6);
        let (mut a, mut b) = ([0; 2], [0; 9]);
        let mut bufs = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
        assert_eq!(reader.read_vectored(&mut bufs).unwrap(), 6);
        assert_eq!((&a[..], &b[..4]), (&b"on"[..], &b"etwo"[..]));
        assert_eq!(reader.read(&mut []).unwrap(), 0);
    });
}

// SPEC E6
#[test]
fn pipes_have_time_outs_in_both_directions() {
    on_each_monitor(|| {
        let (mut reader, mut writer) = pipe().unwrap();
        let limit = Some(Duration::from_millis(5));
        reader.set_timeout(limit).unwrap();
        writer.set_timeout(limit).unwrap();
        assert_eq!((reader.timeout(), writer.timeout()), (limit, limit));
        let late = reader.read(&mut [0]).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::TimedOut);
        let full = io::copy(&mut io::repeat(7), &mut writer).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::TimedOut);
        assert!(reader.read(&mut [0; 4096]).unwrap() > 0, "and goes on");
        let zero = reader.set_timeout(Some(Duration::ZERO)).unwrap_err();
        assert_eq!(zero.kind(), ErrorKind::InvalidInput);
    });
}

// SPEC E6
#[test]
fn the_other_end_that_is_gone_is_the_end_or_an_error() {
    on_each_monitor(|| {
        let (mut reader, writer) = pipe().unwrap();
        let waiting = spawn_local(move || reader.read(&mut [0]).unwrap());
        settle();
        drop(writer);
        assert_eq!(waiting.join().unwrap(), 0);
        let (reader, writer) = pipe().unwrap();
        let waiting = spawn_local(move || io::copy(&mut io::repeat(7), &mut &writer));
        settle();
        drop(reader);
        let error = waiting.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    });
}

// SPEC E6
#[test]
fn a_childs_pipes_are_taken_over_and_given_up() {
    on_each_monitor(|| {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut to = PipeWriter::try_from_fd(child.stdin.take().unwrap()).unwrap();
        let mut from = PipeReader::try_from_fd(child.stdout.take().unwrap()).unwrap();
        let text = spawn_local(move || {
            let mut text = String::new();
            from.read_to_string(&mut text).unwrap();
            text
        });
        settle();
        let mut clone = to.try_clone().unwrap();
        to.write_all(b"one ").unwrap();
        clone.write_all(b"two").unwrap();
        drop(clone);
        let fd = to.into_fd().unwrap();
        let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
        assert!(flags.contains(OFlags::NONBLOCK));
        drop(fd);
        assert_eq!(text.join().unwrap(), "one two");
        assert!(child.wait().unwrap().success());
    });
}

// SPEC E6
#[test]
fn what_is_no_pipe_is_refused() {
    let file = tempfile::tempfile().unwrap();
    let error = PipeReader::try_from_fd(file.try_clone().unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("it is no pipe"), "{error}");
    let error = PipeWriter::try_from_fd(file).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

// SPEC E6
#[test]
fn outside_a_coroutine_a_pipe_blocks_the_thread() {
    let (mut reader, mut writer) = pipe().unwrap();
    let writing = std::thread::spawn(move || {
        writer.write_all(&vec![7; 1 << 20]).unwrap();
    });
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert_eq!(all, vec![7; 1 << 20]);
    writing.join().unwrap();
}
