//! Programs that try to run off their stacks, or to have more of them than there is room for. Each
//! runs in a process of its own, with both kinds of guards where that matters.

use std::panic::catch_unwind;

use corio::{Builder, Coroutine};

use super::{again, run};

/// Runs one test of this file, which asks [`is_child`], in a process of its own.
fn child(test: &str, envs: &[(&str, &str)]) -> std::process::Output {
    let mut command = again(&format!("attacks_stack::{test}"));
    command
        .env("CORIO_ATTACK_CHILD", test)
        .envs(envs.iter().copied());
    run(&mut command)
}

fn is_child(test: &str) -> bool {
    std::env::var("CORIO_ATTACK_CHILD").is_ok_and(|name| name == test)
}

// SPEC C7: running off a stack ends the process before it writes to anyone's memory.
#[test]
fn a_stack_overflow_hits_the_guard() {
    #[allow(unconditional_recursion)] // That is the point.
    fn deeper(depth: u64) -> u64 {
        let frame = std::hint::black_box([depth; 64]);
        deeper(depth + 1) + std::hint::black_box(frame)[0]
    }
    const NAME: &str = "a_stack_overflow_hits_the_guard";
    if is_child(NAME) {
        corio::home(|| {
            let below = Coroutine::new(corio::suspend);
            below.enter();
            let co = Builder::new().name("deep").create(|| {
                deeper(0);
            });
            co.unwrap().enter();
        });
        return;
    }
    for envs in [&[][..], &[("CORIO_STACK_GUARD", "mprotect")][..]] {
        let output = child(NAME, envs);
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        // AddressSanitizer says so and exits; all else dies of the signal.
        let said =
            String::from_utf8_lossy(&output.stderr).contains("AddressSanitizer: stack-overflow");
        assert!(
            said || matches!(signal, Some(6 | 11)),
            "{:?}",
            output.status
        );
    }
}

// SPEC C6: with guards made by mprotect, creation stops in time, says so, and goes on once stacks
// are free.
#[test]
fn mprotect_guards_stop_before_malloc_starves() {
    const NAME: &str = "mprotect_guards_stop_before_malloc_starves";
    let limit: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    if limit > 200_000 {
        let why = format!("vm.max_map_count is {limit}, to reach it would take gigabytes");
        return println!("SKIPPED: the limit of mprotect guards: {why}");
    }
    if !is_child(NAME) {
        let output = child(NAME, &[("CORIO_STACK_GUARD", "mprotect")]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    corio::home(|| {
        let mut all = Vec::new();
        let error = loop {
            match Builder::new().create(corio::suspend) {
                Ok(co) => all.push(co),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, corio::Error::StackLimit { .. }), "{error}");
        assert_eq!(all.len(), (limit - 5000) / 2);
        assert!(Builder::new().stack_size(1 << 20).create(|| ()).is_err());
        let memory: Vec<_> = (0..100).map(|_| vec![1_u8; 1 << 20]).collect();
        assert_eq!(memory.len(), 100);
        assert!(
            catch_unwind(|| drop(Coroutine::new(|| ()))).is_err(),
            "`new` panics"
        );
        all.truncate(all.len() / 2);
        for _ in 0..1000 {
            all.push(Builder::new().create(corio::suspend).unwrap());
        }
        all.iter().for_each(Coroutine::enter);
    });
}
