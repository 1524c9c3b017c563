//! Which level comes next, and how it reaches Criterion.

mod criterion;
mod load_thread;
pub mod plan;
pub mod search;
mod stop;
pub mod sweep;
