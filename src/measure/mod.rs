//! Which level comes next, and how it reaches Criterion.

pub mod afterwards;
mod criterion;
pub mod duet;
pub mod evidence;
mod load_thread;
pub mod plan;
pub mod race;
mod stop;
pub mod sweep;
