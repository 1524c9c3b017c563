//! `/completions`.

use super::{Wire, choices};

pub(super) static WIRE: Wire = Wire {
    route: "completions",
    prompt_key: "prompt",
    limit_key: Some("max_tokens"),
    usage_on_request: true,
    read: choices::read,
    ..Wire::PLAIN
};
