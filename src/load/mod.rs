//! Generates load, and monitors this client and the server meanwhile.

pub mod closed_loop;
mod cold;
pub mod open_files;
pub mod open_loop;
pub mod preflight;
pub mod recorder;
pub mod self_check;
pub mod server_load;
pub mod target;
