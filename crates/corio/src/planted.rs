//! Deliberate mistakes, each of which a model has to find.
//!
//! `planted!("name")` stands where a protocol's code would be wrong if it were true. It is `false`,
//! and costs nothing, in all builds but those of the models: there it is true while the environment
//! names that bug in `CORIO_PLANTED_BUG`, so that one build serves for all of them. `cargo xtask
//! test planted` runs the models with each.

#[cfg(not(all(test, loom)))]
macro_rules! planted {
    ($name:literal) => {
        false
    };
}

#[cfg(all(test, loom))]
macro_rules! planted {
    ($name:literal) => {
        $crate::planted::is_planted($name)
    };
}

/// Whether this bug is asked for.
#[cfg(all(test, loom))]
pub(crate) fn is_planted(name: &str) -> bool {
    static ASKED_FOR: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let asked_for = ASKED_FOR.get_or_init(|| std::env::var("CORIO_PLANTED_BUG").ok());
    asked_for.as_deref() == Some(name)
}
