//! `--log`: messages of all crates on standard error, one a line.

use std::io;

use tracing::level_filters::LevelFilter;

use crate::args::LogLevel;

/// Starts logging. Called once.
pub(crate) fn init(level: LogLevel) {
    tracing_subscriber::fmt()
        .with_max_level(filter(level))
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
