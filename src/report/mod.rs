//! Summaries and a recommendation as text, page and exports. Pure: returns text.

pub mod chart;
pub mod export;
pub mod html;
pub mod requests;
pub mod sections;
pub mod text;
pub mod words;
