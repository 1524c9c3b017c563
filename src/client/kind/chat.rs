//! `/chat/completions`.

use super::{Shape, Wire, choices};

pub(super) static WIRE: Wire = Wire {
    route: "chat/completions",
    prompt_key: "messages",
    shape: Shape::Messages,
    limit_key: Some("max_tokens"),
    usage_on_request: true,
    read: choices::read,
    ..Wire::PLAIN
};
