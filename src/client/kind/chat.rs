//! `/chat/completions`.

use super::{Wire, choices};

pub(super) static WIRE: Wire = Wire {
    route: "chat/completions",
    prompt_key: "messages",
    around_prompt: [r#"[{"role":"user","content":"#, "}]"],
    generates: true,
    read: choices::read,
    content: "content",
};
