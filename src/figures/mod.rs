//! Turns the outcomes of a level's requests into its [`LevelSummary`]. All figures are computed here. Pure.

mod arrivals;
mod goodput;
mod measurement;
mod outages;
mod quantiles;
pub mod reasons;
mod requests;
mod summary;
pub mod usl;

pub use arrivals::{ArrivalsEnd, OpenLoad};
pub use goodput::{Cost, Goodput, Prices, Slo};
pub use measurement::{ClientLoad, LeftOut, LevelState, Measurement, Sample, ServerLoad, Stage, Step};
pub use outages::{Outage, Reach};
pub use quantiles::{Distribution, Estimate, histogram, quantile, student_t, wilson};
pub use reasons::EarlyEnd;
pub use requests::Requests;
pub use summary::{BLOCKS, LevelSummary, Limits, Measured, SizeSummary, summarize};

pub(crate) use requests::Request;
pub(crate) use summary::null_as_default;
