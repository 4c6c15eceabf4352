//! What a raw round of enter and suspend executes, instruction by instruction (SPEC S8).
//!
//! A child process stops at a breakpoint before and after the rounds; its parent has it make one
//! step after the other in between and looks at each instruction.

#![allow(unsafe_code)] // ptrace, and breakpoints.

use std::arch::asm;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::ptr::null_mut;

use corio::{AioContext, CoWaker, Coroutine};

use super::again;

const TEST: &str = "raw_switch::a_raw_round_executes_no_locked_instruction";
/// Rounds between two breakpoints.
const ROUNDS: u32 = 3;
/// An `int3`.
const BREAKPOINT: u8 = 0xcc;
/// More steps than a round could take in any build, the sanitizers' hooks included.
const STEPS_MAX: usize = 1_000_000;

/// Stops the traced thread.
#[inline(always)]
fn breakpoint() {
    // SAFETY: the parent takes the signal and goes on behind it.
    unsafe { asm!("int3") };
}

/// The traced process: rounds of a raw coroutine, of one that parks and of which nobody has a token,
/// and of one of which somebody could have.
fn child() {
    // SAFETY: asks to be traced by the parent; touches no memory.
    let (traced, thread) = unsafe {
        let traced = libc::ptrace(libc::PTRACE_TRACEME, 0, null_mut::<u8>(), null_mut::<u8>());
        (traced, libc::gettid())
    };
    if traced != 0 {
        println!("REFUSED {}", std::io::Error::last_os_error());
        return;
    }
    println!("TRACED {thread}");
    corio::home(|| {
        let co = Coroutine::new(|| {
            loop {
                corio::suspend();
            }
        });
        co.enter();
        breakpoint();
        for _ in 0..ROUNDS {
            co.enter();
        }
        breakpoint();
    });
    let context = AioContext::new().unwrap();
    for has_token in [false, true] {
        let exercise = || {
            let co = Coroutine::new(move || {
                let _token = has_token.then(CoWaker::current);
                loop {
                    corio::park();
                }
            });
            co.enter();
            breakpoint();
            for _ in 0..ROUNDS {
                co.wake();
            }
            breakpoint();
        };
        context.enter_home(exercise).unwrap();
    }
}

/// Whether an instruction locks the bus: by the prefix, or because it exchanges with memory.
fn is_locked(code: &[u8]) -> bool {
    const LOCK: u8 = 0xf0;
    let is_prefix = |byte: &u8| {
        matches!(
            byte,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf2 | 0xf3 | &LOCK
        )
    };
    let prefixes = code.iter().take_while(|byte| is_prefix(byte)).count();
    if code[..prefixes].contains(&LOCK) {
        return true;
    }
    let mut rest = code[prefixes..]
        .iter()
        .skip_while(|byte| **byte & 0xf0 == 0x40); // REX
    let (opcode, modrm) = (rest.next(), rest.next());
    matches!((opcode, modrm), (Some(0x86 | 0x87), Some(modrm)) if modrm >> 6 != 3)
}

/// The traced thread.
struct Traced(libc::pid_t);

impl Traced {
    fn ptrace(&self, request: libc::c_uint, data: *mut u8) {
        // SAFETY: the thread is ours and stopped; `data` is what the request takes.
        let result = unsafe { libc::ptrace(request, self.0, null_mut::<u8>(), data) };
        assert_eq!(
            result,
            0,
            "ptrace {request}: {}",
            std::io::Error::last_os_error()
        );
    }

    /// Waits until it stops by a trap; false if it has ended well.
    fn stops(&self) -> bool {
        let mut status = 0;
        // SAFETY: writes the status.
        let waited = unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL) };
        assert_eq!(waited, self.0, "{}", std::io::Error::last_os_error());
        if libc::WIFEXITED(status) {
            assert_eq!(libc::WEXITSTATUS(status), 0);
            return false;
        }
        assert!(libc::WIFSTOPPED(status), "status {status:#x}");
        assert_eq!(libc::WSTOPSIG(status), libc::SIGTRAP);
        true
    }

    /// The bytes at which it goes on.
    fn code(&self) -> [u8; 16] {
        // SAFETY: numbers only, so that zeroes are registers, too.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        self.ptrace(libc::PTRACE_GETREGS, (&raw mut registers).cast());
        let mut code = [0; 16];
        for (at, word) in (registers.rip..).step_by(8).zip(code.chunks_mut(8)) {
            // SAFETY: reads the other process's memory; where there is none it is an error, and the
            // bytes are not part of the instruction.
            let bytes =
                unsafe { libc::ptrace(libc::PTRACE_PEEKTEXT, self.0, at, null_mut::<u8>()) };
            word.copy_from_slice(&bytes.to_le_bytes());
        }
        code
    }

    /// Goes on to its next breakpoint, and through it.
    fn go_on(&self) {
        self.ptrace(libc::PTRACE_CONT, null_mut());
        assert!(self.stops(), "the child ended before its breakpoint");
    }

    /// From one breakpoint to the next: how many instructions, and how many of them are locked.
    fn steps(&self) -> (usize, usize) {
        let (mut all, mut locked) = (0, 0);
        loop {
            let code = self.code();
            if code[0] == BREAKPOINT {
                break;
            }
            all += 1;
            locked += usize::from(is_locked(&code));
            assert!(all < STEPS_MAX, "no breakpoint is reached");
            self.ptrace(libc::PTRACE_SINGLESTEP, null_mut());
            assert!(self.stops(), "the child ended between its breakpoints");
        }
        self.go_on();
        (all, locked)
    }
}

/// Ends the child if the test fails.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

// SPEC S8: no locked instruction in a raw round; one that parks makes itself wakeable by one, once
// there is anybody who could.
#[test]
fn a_raw_round_executes_no_locked_instruction() {
    if std::env::var_os("CORIO_RAW_SWITCH_CHILD").is_some() {
        return child();
    }
    if cfg!(feature = "asan") {
        println!("SKIPPED: raw_switch: AddressSanitizer is told of every switch, by locked means");
        return;
    }
    let mut process = Reaped(
        again(TEST)
            .env("CORIO_RAW_SWITCH_CHILD", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut said = BufReader::new(process.0.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let answer = said.find_map(|line| {
        let at = line.find("TRACED ").or_else(|| line.find("REFUSED "))?;
        Some(line[at..].to_owned())
    });
    let answer = answer.expect("the child says whether it may be traced");
    let Some(thread) = answer.strip_prefix("TRACED ") else {
        println!("SKIPPED: raw_switch: may not trace a child: {answer}");
        return;
    };
    let traced = Traced(thread.parse().unwrap());
    assert!(traced.stops());
    let raw = traced.steps();
    let [alone, parked] = [(); 2].map(|()| {
        traced.go_on();
        traced.steps()
    });
    traced.ptrace(libc::PTRACE_DETACH, null_mut());
    said.for_each(drop);
    assert!(process.0.wait().unwrap().success());

    println!(
        "{ROUNDS} raw rounds, parks and wakes without a token and with one: {raw:?}, {alone:?}, \
         {parked:?} (instructions, locked)"
    );
    let rounds = usize::try_from(ROUNDS).unwrap();
    assert!(raw.0 > 10 * rounds, "something was looked at");
    assert_eq!(raw.1, 0);
    assert_eq!(alone.1, 0);
    // To park, and to win the wake; were none seen here, nothing would be proven above.
    assert_eq!(parked.1, 2 * rounds);
}

#[test]
fn locked_instructions_are_known_from_others() {
    let locked: [&[u8]; 4] = [
        &[0xf0, 0x48, 0x0f, 0xb1, 0x0b], // lock cmpxchg [rbx], rcx
        &[0x66, 0xf0, 0x0f, 0xc1, 0x03], // lock xadd [rbx], ax
        &[0x48, 0x87, 0x03],             // xchg [rbx], rax
        &[0x86, 0x44, 0x24, 0x08],       // xchg [rsp + 8], al
    ];
    let others: [&[u8]; 4] = [
        &[0x48, 0x87, 0xc3],                         // xchg rbx, rax
        &[0x48, 0x0f, 0xb1, 0x0b],                   // cmpxchg [rbx], rcx
        &[0x48, 0x89, 0xf0],                         // mov rax, rsi
        &[0x48, 0xb8, 0xf0, 0xf0, 0, 0, 0, 0, 0, 0], // movabs rax
    ];
    assert!(locked.iter().all(|code| is_locked(code)));
    assert!(!others.iter().any(|code| is_locked(code)));
}
