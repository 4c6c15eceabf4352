//! What SPEC C10, L8 and E5 forbid does not compile.
//!
//! Each file of `compile_fail` is a program that breaks one rule, and beside it stands what the
//! compiler says of it. After a change of wording, `TRYBUILD=overwrite cargo test -p corio --test
//! compile_fail` writes that anew: read it before you commit it, as a program may fail to compile
//! for another reason than the one it is about.

use std::process::Command;

/// The compiler whose words the files hold.
const COMPILER: &str = "rustc 1.95.";
/// How many programs there are at least.
const PROGRAMS_MIN: usize = 18;

// SPEC C10, L8, E5
#[test]
fn what_would_leave_its_thread_or_outlive_what_it_borrows_does_not_compile() {
    let compiler = Command::new("rustc").arg("--version").output().unwrap();
    let compiler = String::from_utf8(compiler.stdout).unwrap();
    if !compiler.starts_with(COMPILER) {
        println!(
            "SKIPPED: compile_fail: the wording is that of {COMPILER}x, this is {}",
            compiler.trim()
        );
        return;
    }
    let programs = std::fs::read_dir("tests/compile_fail").unwrap();
    let programs = programs.filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        path.extension().is_some_and(|extension| extension == "rs")
    });
    assert!(programs.count() >= PROGRAMS_MIN);
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
