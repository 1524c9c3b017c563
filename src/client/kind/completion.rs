//! `/completions`.

use super::{Wire, choices};

pub(super) static WIRE: Wire = Wire {
    route: "completions",
    prompt_key: "prompt",
    around_prompt: ["", ""],
    generates: true,
    read: choices::read,
    content: "content",
};
