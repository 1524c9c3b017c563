//! Which level comes next, and how it reaches Criterion.

pub mod afterwards;
mod criterion;
pub mod evidence;
mod load_thread;
pub mod plan;
pub mod race;
pub mod search;
mod stop;
pub mod sweep;
