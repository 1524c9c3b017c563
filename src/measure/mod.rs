//! Chooses the next level, puts load on the server, and passes the samples to Criterion.

pub mod afterwards;
mod criterion;
pub mod duet;
pub mod evidence;
mod load_thread;
pub mod plan;
pub mod race;
mod stop;
pub mod sweep;
