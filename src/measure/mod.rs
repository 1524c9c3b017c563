//! Which level comes next, and how it reaches Criterion.

pub mod plan;
pub mod race;
pub mod search;
pub mod sweep;
