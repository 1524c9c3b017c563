//! Reports: a recommendation and its figures as text, as an HTML page, and as exports. Pure: returns text.

pub mod chart;
pub mod export;
pub mod html;
pub mod requests;
pub mod sections;
pub mod text;
pub mod words;
