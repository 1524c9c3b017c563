//! Summaries and a recommendation to something to look at. Pure: returns text.

pub mod text;
