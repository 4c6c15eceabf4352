//! The event loop from outside: its handlers, bottom halves and waiting, and IoThreads that run it
//! (SPEC A3, A4, B1 to B9, H1 to H5, I1 to I3, W1, W2).

mod bottom_halves;
mod context;
mod handlers;
mod io_thread;
mod notifiers;
mod waiting;
