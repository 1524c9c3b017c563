//! `/chat/completions`.

use super::{Wire, choices};

pub(super) static WIRE: Wire = Wire {
    route: "chat/completions",
    prompt_key: "messages",
    around_prompt: [r#"[{"role":"user","content":"#, "}]"],
    limit_key: Some("max_tokens"),
    usage_on_request: true,
    read: choices::read,
    ..Wire::PLAIN
};
