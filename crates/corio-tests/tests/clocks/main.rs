//! Timers, sleeping and time-outs on all clocks, from outside.
//!
//! The clocks are the process's, and tests run beside one another: whoever stops, steps or disables
//! one holds `CLOCKS` alone.

mod time;
mod timers;

use std::sync::RwLock;

static CLOCKS: RwLock<()> = RwLock::new(());
