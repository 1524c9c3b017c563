//! `config_patch` on awkward files: either exactly the expected bytes, or refused and not touched.

#![cfg(feature = "suite")]

use std::fs;
use std::path::{Path, PathBuf};

use llm_concurrency::patch::{self, Patch, PatchError};
use proptest::prelude::*;
use tempfile::TempDir;

const KEY: &str = "llm.max_concurrent_requests";

enum Expected {
    /// The file reads so afterwards.
    Exact(&'static str),
    /// The message holds this, and the file is as it was.
    Refused(&'static str),
}
use Expected::{Exact, Refused};

struct Case(&'static str, &'static str, &'static str, Expected);

/// Name, content, key, and what comes of setting it to 20.
const CASES: &[Case] = &[
    // ---- Replaced ----
    Case("plain", "llm:\n  max_concurrent_requests: 10\n", KEY, Exact("llm:\n  max_concurrent_requests: 20\n")),
    Case(
        "comments, order and blanks",
        "# top\n\nb: 1   # b\na:   [ 1,2 ]\nllm:   # the model\n    # above\n    max_concurrent_requests:   10   # tuned by hand\n    model: x\n# end\n",
        KEY,
        Exact(
            "# top\n\nb: 1   # b\na:   [ 1,2 ]\nllm:   # the model\n    # above\n    max_concurrent_requests:   20   # tuned by hand\n    model: x\n# end\n",
        ),
    ),
    Case(
        "double quotes",
        "llm:\n  max_concurrent_requests: \"10\"\n",
        KEY,
        Exact("llm:\n  max_concurrent_requests: \"20\"\n"),
    ),
    Case(
        "single quotes",
        "llm:\n  max_concurrent_requests: '10' # x\n",
        KEY,
        Exact("llm:\n  max_concurrent_requests: '20' # x\n"),
    ),
    Case(
        "quoted keys",
        "\"llm\":\n  'max_concurrent_requests': 10\n",
        KEY,
        Exact("\"llm\":\n  'max_concurrent_requests': 20\n"),
    ),
    Case("flow", "llm: {max_concurrent_requests: 10}\n", KEY, Exact("llm: {max_concurrent_requests: 20}\n")),
    Case(
        "flow over lines",
        "llm: {\n  model: x, # a ? here\n  max_concurrent_requests: 10, # n\n}\n",
        KEY,
        Exact("llm: {\n  model: x, # a ? here\n  max_concurrent_requests: 20, # n\n}\n"),
    ),
    Case(
        "JSON",
        "{\n  \"llm\": {\n    \"max_concurrent_requests\" : 10,\n    \"model\": \"x\"\n  }\n}\n",
        KEY,
        Exact("{\n  \"llm\": {\n    \"max_concurrent_requests\" : 20,\n    \"model\": \"x\"\n  }\n}\n"),
    ),
    Case(
        "JSON without spaces",
        r#"{"llm":{"max_concurrent_requests":10}}"#,
        KEY,
        Exact(r#"{"llm":{"max_concurrent_requests":20}}"#),
    ),
    Case(
        "JSON indented with tabs",
        "{\n\t\"llm\": {\n\t\t\"max_concurrent_requests\": 10\n\t}\n}",
        KEY,
        Exact("{\n\t\"llm\": {\n\t\t\"max_concurrent_requests\": 20\n\t}\n}"),
    ),
    Case(
        "CRLF",
        "llm:\r\n  max_concurrent_requests: 10\r\n  m: x\r\n",
        KEY,
        Exact("llm:\r\n  max_concurrent_requests: 20\r\n  m: x\r\n"),
    ),
    Case(
        "CR alone",
        "llm:\r  max_concurrent_requests: 10\r  m: x\r",
        KEY,
        Exact("llm:\r  max_concurrent_requests: 20\r  m: x\r"),
    ),
    Case(
        "mixed line ends",
        "a: 1\r\nllm:\n  max_concurrent_requests: 10\r\n",
        KEY,
        Exact("a: 1\r\nllm:\n  max_concurrent_requests: 20\r\n"),
    ),
    Case(
        "byte order mark",
        "\u{feff}llm:\n  max_concurrent_requests: 10\n",
        KEY,
        Exact("\u{feff}llm:\n  max_concurrent_requests: 20\n"),
    ),
    Case("no final newline", "llm:\n  max_concurrent_requests: 10", KEY, Exact("llm:\n  max_concurrent_requests: 20")),
    Case(
        "trailing spaces",
        "llm:  \n  max_concurrent_requests: 10  \n  \n",
        KEY,
        Exact("llm:  \n  max_concurrent_requests: 20  \n  \n"),
    ),
    Case(
        "non-ASCII before it",
        "naïve: 日本語 🦀\nllm:\n  model: é\n  max_concurrent_requests: 10\n",
        KEY,
        Exact("naïve: 日本語 🦀\nllm:\n  model: é\n  max_concurrent_requests: 20\n"),
    ),
    Case(
        "value on the next line",
        "llm:\n  max_concurrent_requests:\n    10\n",
        KEY,
        Exact("llm:\n  max_concurrent_requests:\n    20\n"),
    ),
    Case(
        "document markers",
        "%YAML 1.2\n---\nllm:\n  max_concurrent_requests: 10\n...\n",
        KEY,
        Exact("%YAML 1.2\n---\nllm:\n  max_concurrent_requests: 20\n...\n"),
    ),
    Case("plus sign", "llm:\n  max_concurrent_requests: +10\n", KEY, Exact("llm:\n  max_concurrent_requests: 20\n")),
    Case("zero", "llm:\n  max_concurrent_requests: 0\n", KEY, Exact("llm:\n  max_concurrent_requests: 20\n")),
    Case("top level", "parallel: 10\nb: 2\n", "parallel", Exact("parallel: 20\nb: 2\n")),
    Case(
        "three deep",
        "app:\n  llm:\n    parallel: 10\n  llm2:\n    parallel: 10\n",
        "app.llm.parallel",
        Exact("app:\n  llm:\n    parallel: 20\n  llm2:\n    parallel: 10\n"),
    ),
    Case(
        "the same key elsewhere",
        "max_concurrent_requests: 10\nother: {max_concurrent_requests: 10}\nllm:\n  note: 'max_concurrent_requests: 10'\n  # max_concurrent_requests: 10\n  max_concurrent_requests: 10\n  sub:\n    max_concurrent_requests: 10\n",
        KEY,
        Exact(
            "max_concurrent_requests: 10\nother: {max_concurrent_requests: 10}\nllm:\n  note: 'max_concurrent_requests: 10'\n  # max_concurrent_requests: 10\n  max_concurrent_requests: 20\n  sub:\n    max_concurrent_requests: 10\n",
        ),
    ),
    Case(
        "the key inside a block of text",
        "doc: |\n  llm:\n    max_concurrent_requests: 10\nllm:\n  max_concurrent_requests: 10\n",
        KEY,
        Exact("doc: |\n  llm:\n    max_concurrent_requests: 10\nllm:\n  max_concurrent_requests: 20\n"),
    ),
    Case(
        "anchors, aliases, tags and odd values elsewhere",
        "a: &a {x: .nan, y: !!str 1}\nb: *a\nc: !mine 3\nt: 2020-01-01\nllm:\n  key: ${API_KEY}\n  prompt: \"{{ question }}\"\n  max_concurrent_requests: 10\n",
        KEY,
        Exact(
            "a: &a {x: .nan, y: !!str 1}\nb: *a\nc: !mine 3\nt: 2020-01-01\nllm:\n  key: ${API_KEY}\n  prompt: \"{{ question }}\"\n  max_concurrent_requests: 20\n",
        ),
    ),
    Case(
        "a merge key beside it, which it wins over",
        "d: &d {max_concurrent_requests: 5}\nllm:\n  <<: *d\n  max_concurrent_requests: 10\n",
        KEY,
        Exact("d: &d {max_concurrent_requests: 5}\nllm:\n  <<: *d\n  max_concurrent_requests: 20\n"),
    ),
    Case(
        "block in a list elsewhere",
        "l:\n- a: 1\n  b:\n  - c\nllm:\n    max_concurrent_requests: 10\n",
        KEY,
        Exact("l:\n- a: 1\n  b:\n  - c\nllm:\n    max_concurrent_requests: 20\n"),
    ),
    Case(
        "a line separator that does not matter",
        "llm:\n  m: \"a\u{2028}b\" # \u{85}\n  max_concurrent_requests: 10\n",
        KEY,
        Exact("llm:\n  m: \"a\u{2028}b\" # \u{85}\n  max_concurrent_requests: 20\n"),
    ),
    // ---- Filled in ----
    Case(
        "null",
        "llm:\n  max_concurrent_requests: null # none\n",
        KEY,
        Exact("llm:\n  max_concurrent_requests: 20 # none\n"),
    ),
    Case("tilde", "llm:\n  max_concurrent_requests: ~\n", KEY, Exact("llm:\n  max_concurrent_requests: 20\n")),
    Case(
        "empty",
        "llm:\n  max_concurrent_requests:\n  model: x\n",
        KEY,
        Exact("llm:\n  max_concurrent_requests: 20\n  model: x\n"),
    ),
    Case(
        "empty with a comment",
        "llm:\n  max_concurrent_requests:   # later\n",
        KEY,
        Exact("llm:\n  max_concurrent_requests: 20   # later\n"),
    ),
    Case("empty at the end", "llm:\n  max_concurrent_requests:", KEY, Exact("llm:\n  max_concurrent_requests: 20")),
    Case(
        "empty with CRLF",
        "llm:\r\n  max_concurrent_requests:\r\n",
        KEY,
        Exact("llm:\r\n  max_concurrent_requests: 20\r\n"),
    ),
    Case(
        "empty in braces",
        "llm: {max_concurrent_requests: , m: x}\n",
        KEY,
        Exact("llm: {max_concurrent_requests: 20 , m: x}\n"),
    ),
    Case(
        "null in JSON",
        r#"{"llm": {"max_concurrent_requests": null}}"#,
        KEY,
        Exact(r#"{"llm": {"max_concurrent_requests": 20}}"#),
    ),
    // ---- Added ----
    Case("missing", "llm:\n  model: x\nb: 1\n", KEY, Exact("llm:\n  model: x\n  max_concurrent_requests: 20\nb: 1\n")),
    Case(
        "missing, four spaces, comments",
        "llm:\n    # m\n    model: x   # y\n    # tail\n\nb: 1\n",
        KEY,
        Exact("llm:\n    # m\n    model: x   # y\n    max_concurrent_requests: 20\n    # tail\n\nb: 1\n"),
    ),
    Case(
        "missing, CRLF",
        "llm:\r\n  model: x\r\nb: 1\r\n",
        KEY,
        Exact("llm:\r\n  model: x\r\n  max_concurrent_requests: 20\r\nb: 1\r\n"),
    ),
    Case(
        "missing, no final newline",
        "llm:\n  model: x",
        KEY,
        Exact("llm:\n  model: x\n  max_concurrent_requests: 20"),
    ),
    Case(
        "missing, no final newline, CRLF",
        "llm:\r\n  model: x",
        KEY,
        Exact("llm:\r\n  model: x\r\n  max_concurrent_requests: 20"),
    ),
    Case("missing, byte order mark", "\u{feff}a: 1\n", "parallel", Exact("\u{feff}a: 1\nparallel: 20\n")),
    Case(
        "missing, last is a block",
        "llm:\n  model: x\n  extra:\n    a: 1\n  text: |\n    model: y\n\nb: 1\n",
        KEY,
        Exact("llm:\n  model: x\n  max_concurrent_requests: 20\n  extra:\n    a: 1\n  text: |\n    model: y\n\nb: 1\n"),
    ),
    Case(
        "missing, only blocks",
        "llm:  # c\n  # d\n  extra:\n    a: 1\n",
        KEY,
        Exact("llm:  # c\n  max_concurrent_requests: 20\n  # d\n  extra:\n    a: 1\n"),
    ),
    Case(
        "missing at the top, only blocks",
        "# licence\n\nllm:\r\n  a: 1\r\n",
        "parallel",
        Exact("# licence\n\nparallel: 20\r\nllm:\r\n  a: 1\r\n"),
    ),
    Case(
        "missing at the top, only blocks, byte order mark",
        "\u{feff}llm:\n  - 1\n",
        "parallel",
        Exact("\u{feff}parallel: 20\nllm:\n  - 1\n"),
    ),
    Case("missing at the top, document end", "a: 1\n...\n", "parallel", Exact("a: 1\nparallel: 20\n...\n")),
    Case("missing, sibling empty", "llm:\n  model:\n", KEY, Exact("llm:\n  model:\n  max_concurrent_requests: 20\n")),
    Case(
        "missing, sibling over lines",
        "llm:\n  model: one\n    two\n  # c\n",
        KEY,
        Exact("llm:\n  model: one\n    two\n  max_concurrent_requests: 20\n  # c\n"),
    ),
    Case(
        "missing, sibling is a text over lines",
        "llm:\n  model: \"one\n\n    two\" # c\n",
        KEY,
        Exact("llm:\n  model: \"one\n\n    two\" # c\n  max_concurrent_requests: 20\n"),
    ),
    Case(
        "missing, sibling in braces over lines",
        "llm:\n  m: {a: 1,\n  b: 2}\n",
        KEY,
        Exact("llm:\n  m: {a: 1,\n  b: 2}\n  max_concurrent_requests: 20\n"),
    ),
    Case(
        "missing, quoted siblings",
        "\"llm\":\n  \"model\": x\n",
        KEY,
        Exact("\"llm\":\n  \"model\": x\n  \"max_concurrent_requests\": 20\n"),
    ),
    Case("missing in braces", "llm: {model: x}\n", KEY, Exact("llm: {model: x, max_concurrent_requests: 20}\n")),
    Case(
        "missing in braces, trailing comma",
        "llm: { model: x, } # c\n",
        KEY,
        Exact("llm: { model: x, max_concurrent_requests: 20, } # c\n"),
    ),
    Case("missing in empty braces", "llm: {}\n", KEY, Exact("llm: {max_concurrent_requests: 20}\n")),
    Case(
        "missing in braces with a comment",
        "llm: {\n  model: x # a, b\n}\n",
        KEY,
        Exact("llm: {\n  model: x, max_concurrent_requests: 20 # a, b\n}\n"),
    ),
    Case(
        "missing in JSON",
        "{\n  \"llm\": {\n    \"model\": \"x\"\n  }\n}\n",
        KEY,
        Exact("{\n  \"llm\": {\n    \"model\": \"x\",\n    \"max_concurrent_requests\": 20\n  }\n}\n"),
    ),
    Case(
        "missing in JSON without spaces",
        r#"{"llm":{"m":"x"}}"#,
        KEY,
        Exact(r#"{"llm":{"m":"x","max_concurrent_requests":20}}"#),
    ),
    Case("missing in an empty JSON file", "{}\n", "parallel", Exact("{\"parallel\": 20}\n")),
    // ---- Refused ----
    Case("alias", "n: &n 10\nllm:\n  max_concurrent_requests: *n\n", KEY, Refused("its value is an alias")),
    Case("anchor", "llm:\n  max_concurrent_requests: &n 10\nm: *n\n", KEY, Refused("its value has an anchor")),
    Case("anchor on nothing", "llm:\n  max_concurrent_requests: &n\n", KEY, Refused("its value has an anchor")),
    Case(
        "anchor on the parent",
        "llm: &l\n  max_concurrent_requests: 10\nm: *l\n",
        KEY,
        Refused("`llm` has an anchor"),
    ),
    Case(
        "anchor on the root",
        "&r\nllm:\n  max_concurrent_requests: 10\n",
        KEY,
        Refused("the top level has an anchor"),
    ),
    Case("anchor on the key", "&k llm:\n  max_concurrent_requests: 10\n", KEY, Refused("the key `llm` has an anchor")),
    Case("alias as the parent", "d: &d {max_concurrent_requests: 10}\nllm: *d\n", KEY, Refused("`llm` is an alias")),
    Case("alias as a key", "d: &d llm\n*d : {max_concurrent_requests: 10}\n", KEY, Refused("not a plain `name:`")),
    Case("merge", "d: &d {max_concurrent_requests: 10}\nllm:\n  <<: *d\n  m: x\n", KEY, Refused("merge key `<<`")),
    Case("merge of the parent", "d: &d {llm: {max_concurrent_requests: 10}}\n<<: *d\n", KEY, Refused("merge key `<<`")),
    Case(
        "duplicate",
        "llm:\n  max_concurrent_requests: 10\n  max_concurrent_requests: 12\n",
        KEY,
        Refused("the first is on line 2"),
    ),
    Case(
        "duplicate, quoted",
        "llm:\n  max_concurrent_requests: 10\n  \"max_concurrent_requests\": 12\n",
        KEY,
        Refused("a second time"),
    ),
    Case(
        "duplicate parent",
        "llm:\n  max_concurrent_requests: 10\nllm:\n  m: x\n",
        KEY,
        Refused("`llm` appears here a second time"),
    ),
    Case(
        "duplicate neighbour",
        "llm:\n  m: x\n  m: y\n  max_concurrent_requests: 10\n",
        KEY,
        Refused("`m` appears here a second time"),
    ),
    Case(
        "duplicate elsewhere",
        "a:\n  m: x\n  m: y\nllm:\n  max_concurrent_requests: 10\n",
        KEY,
        Refused("not valid YAML: a: duplicate entry"),
    ),
    Case(
        "two documents",
        "llm:\n  max_concurrent_requests: 10\n---\nllm:\n  max_concurrent_requests: 10\n",
        KEY,
        Refused("a second YAML document"),
    ),
    Case(
        "an empty second document",
        "llm:\n  max_concurrent_requests: 10\n---\n",
        KEY,
        Refused("a second YAML document"),
    ),
    Case(
        "an empty first document",
        "---\n---\nllm:\n  max_concurrent_requests: 10\n",
        KEY,
        Refused("a second YAML document"),
    ),
    Case("tab", "llm:\n\tmax_concurrent_requests: 10\n", KEY, Refused("indented with a tab")),
    Case("tab after spaces", "llm:\n  \tmax_concurrent_requests: 10\n", KEY, Refused("indented with a tab")),
    Case("tab before the value", "llm:\n  max_concurrent_requests:\n\t\t10\n", KEY, Refused("tab")),
    Case("jinja", "llm:\n  max_concurrent_requests: {{ n }}\n", KEY, Refused("placeholder")),
    Case("jinja, quoted", "llm:\n  max_concurrent_requests: \"{{ n }}\"\n", KEY, Refused("its value is a placeholder")),
    Case("jinja elsewhere", "m: {{ m }}\nllm:\n  max_concurrent_requests: 10\n", KEY, Refused("placeholder")),
    Case(
        "jinja block",
        "{% if a %}\nllm:\n  max_concurrent_requests: 10\n{% endif %}\n",
        KEY,
        Refused("the line has a placeholder"),
    ),
    Case("shell", "llm:\n  max_concurrent_requests: ${N}\n", KEY, Refused("its value is a placeholder")),
    Case("shell, default", "llm:\n  max_concurrent_requests: ${N:-10}\n", KEY, Refused("its value is a placeholder")),
    Case("shell, bare", "llm:\n  max_concurrent_requests: $N\n", KEY, Refused("its value is a placeholder")),
    Case("shell in braces", "llm: {max_concurrent_requests: ${N}}\n", KEY, Refused("placeholder")),
    Case("erb", "llm:\n  max_concurrent_requests: <%= n %>\n", KEY, Refused("its value is a placeholder")),
    Case("placeholder as the parent", "llm: ${LLM}\n", KEY, Refused("`llm` is a placeholder")),
    Case("tagged", "llm:\n  max_concurrent_requests: !!int 10\n", KEY, Refused("its value has a tag")),
    Case("tagged text", "llm:\n  max_concurrent_requests: !!int \"10\"\n", KEY, Refused("its value has a tag")),
    Case("tagged parent", "llm: !!map\n  max_concurrent_requests: 10\n", KEY, Refused("`llm` has a tag")),
    Case("tagged key", "!!str llm:\n  max_concurrent_requests: 10\n", KEY, Refused("the key `llm` has a tag")),
    Case("literal", "llm:\n  max_concurrent_requests: |\n    10\n", KEY, Refused("block of text")),
    Case("folded", "llm:\n  max_concurrent_requests: >-\n    10\n", KEY, Refused("block of text")),
    Case("mapping", "llm:\n  max_concurrent_requests:\n    fast: 10\n", KEY, Refused("its value is a mapping")),
    Case("list", "llm:\n  max_concurrent_requests: [10]\n", KEY, Refused("its value is a list")),
    Case("list without indentation", "llm:\n  max_concurrent_requests:\n  - 10\n", KEY, Refused("its value is a list")),
    Case("fraction", "llm:\n  max_concurrent_requests: 10.0\n", KEY, Refused("its value is `10.0`")),
    Case("hexadecimal", "llm:\n  max_concurrent_requests: 0x10\n", KEY, Refused("its value is `0x10`")),
    Case("octal", "llm:\n  max_concurrent_requests: 0o10\n", KEY, Refused("its value is `0o10`")),
    Case("leading zero", "llm:\n  max_concurrent_requests: 010\n", KEY, Refused("its value is `010`")),
    Case("underscore", "llm:\n  max_concurrent_requests: 1_0\n", KEY, Refused("its value is `1_0`")),
    Case("exponent", "llm:\n  max_concurrent_requests: 1e1\n", KEY, Refused("its value is `1e1`")),
    Case("negative", "llm:\n  max_concurrent_requests: -1\n", KEY, Refused("its value is `-1`")),
    Case(
        "too large a number",
        "llm:\n  max_concurrent_requests: 18446744073709551616\n",
        KEY,
        Refused("not a whole number"),
    ),
    Case("base sixty", "llm:\n  max_concurrent_requests: 1:30\n", KEY, Refused("not a whole number")),
    Case("word", "llm:\n  max_concurrent_requests: auto\n", KEY, Refused("its value is a string")),
    Case("bool", "llm:\n  max_concurrent_requests: true\n", KEY, Refused("its value is a string")),
    Case("two numbers", "llm:\n  max_concurrent_requests: 10 12\n", KEY, Refused("its value is a string")),
    Case(
        "comment without a blank",
        "llm:\n  max_concurrent_requests: 10# ten\n",
        KEY,
        Refused("its value is a string"),
    ),
    Case(
        "number over two lines",
        "llm:\n  max_concurrent_requests: 10\n    12\n",
        KEY,
        Refused("its value is a string"),
    ),
    Case("empty text", "llm:\n  max_concurrent_requests: \"\"\n", KEY, Refused("its value is a string")),
    Case("escaped digits", "llm:\n  max_concurrent_requests: \"\\x31\\x30\"\n", KEY, Refused("exact place")),
    Case("blanks in quotes", "llm:\n  max_concurrent_requests: \" 10 \"\n", KEY, Refused("its value is a string")),
    Case("explicit key", "llm:\n  ? max_concurrent_requests\n  : 10\n", KEY, Refused("not a plain `name:`")),
    Case("explicit parent", "? llm\n: max_concurrent_requests: 10\n", KEY, Refused("not a plain `name:`")),
    Case(
        "explicit key in braces",
        "llm: {m: x, # ,\n ? max_concurrent_requests : 10}\n",
        KEY,
        Refused("not a plain `name:`"),
    ),
    Case(
        "explicit key, first in braces",
        "llm: {? max_concurrent_requests : 10}\n",
        KEY,
        Refused("not a plain `name:`"),
    ),
    Case("key without a colon in braces", "llm: {max_concurrent_requests}\n", KEY, Refused("not a plain `name:`")),
    Case(
        "colon on the next line",
        "{\"llm\"\n: {\"max_concurrent_requests\": 10}}\n",
        KEY,
        Refused("not a plain `name:`"),
    ),
    Case("`?` on the line above", "? # c\n llm{", "llm", Refused("not a plain `name:`")),
    Case("`?` above, and a value", "?\n a\n: b\n", "llm", Refused("not a plain `name:`")),
    Case("list as a key", "? [a, b]\n: 1\nllm:\n  max_concurrent_requests: 10\n", KEY, Refused("not a plain `name:`")),
    Case("no key", "llm:\n  : 1\n  max_concurrent_requests: 10\n", KEY, Refused("not a plain `name:`")),
    Case("mapping as a key", "llm:\n  {a: b}: 1\n  max_concurrent_requests: 10\n", KEY, Refused("not a plain `name:`")),
    Case("parent is a list", "llm:\n  - max_concurrent_requests: 10\n", KEY, Refused("`llm` is a list")),
    Case("parent is a value", "llm: 10\n", KEY, Refused("`llm` is a single value")),
    Case("parent is empty", "llm:\nb: 1\n", KEY, Refused("`llm` is empty")),
    Case("root is a list", "- llm\n", KEY, Refused("the top level is a list")),
    Case("root is a value", "llm\n", KEY, Refused("the top level is a single value")),
    Case("no parent", "a: 1\n", KEY, Refused("its parent `llm` is missing")),
    Case("no inner parent", "app:\n  a: 1\n", "app.llm.parallel", Refused("its parent `app.llm` is missing")),
    Case("dotted key as one name", "llm.max_concurrent_requests: 10\n", KEY, Refused("its parent `llm` is missing")),
    Case("another case", "LLM:\n  max_concurrent_requests: 10\n", KEY, Refused("its parent `llm` is missing")),
    Case("empty file", "", KEY, Refused("the file is empty")),
    Case("only a byte order mark", "\u{feff}", KEY, Refused("the file is empty")),
    Case("only comments", "# llm:\n#   max_concurrent_requests: 10\n", KEY, Refused("the file is empty")),
    Case("only a marker", "---\n", KEY, Refused("the file is empty")),
    Case("null file", "null\n", KEY, Refused("the file is empty")),
    Case("unclosed brace", "llm: {max_concurrent_requests: 10\n", KEY, Refused("not valid YAML")),
    Case("unclosed quote", "llm:\n  m: \"x\n  max_concurrent_requests: 10\n", KEY, Refused("not valid YAML")),
    Case("wrong indentation", "llm:\n    m: x\n  max_concurrent_requests: 10\n", KEY, Refused("not valid YAML")),
    Case("unknown alias", "a: *b\nllm:\n  max_concurrent_requests: 10\n", KEY, Refused("not valid YAML")),
    Case("a line separator that matters", "\u{85}  b:\n    c: 1\n", "parallel", Refused("Unicode line separator")),
    Case("UTF-16 without a mark", "l\0l\0m\0:\0\n\0", KEY, Refused("not UTF-8 text")),
    Case("a comment in empty braces", "llm: { # none\n}\n", KEY, Refused("exact place")),
    Case("empty last value in braces", "llm: {m: }\n", KEY, Refused("exact place")),
];

const TOML: &[Case] = &[
    Case("table", "[llm]\nmax_concurrent_requests = 10\n", KEY, Exact("[llm]\nmax_concurrent_requests = 20\n")),
    Case(
        "comments, blanks, CRLF",
        "# top\r\n[ llm ] # m\r\n  max_concurrent_requests   =10   # by hand\r\nmodel = 'x'\r\n",
        KEY,
        Exact("# top\r\n[ llm ] # m\r\n  max_concurrent_requests   =20   # by hand\r\nmodel = 'x'\r\n"),
    ),
    Case("dotted", "llm.max_concurrent_requests = 10", KEY, Exact("llm.max_concurrent_requests = 20")),
    Case(
        "dotted and quoted",
        "\"llm\" . 'max_concurrent_requests'=10\n",
        KEY,
        Exact("\"llm\" . 'max_concurrent_requests'=20\n"),
    ),
    Case(
        "inline",
        "llm = {max_concurrent_requests=10, m=\"}\"}\n",
        KEY,
        Exact("llm = {max_concurrent_requests=20, m=\"}\"}\n"),
    ),
    Case(
        "double quotes",
        "[llm]\nmax_concurrent_requests = \"10\"\n",
        KEY,
        Exact("[llm]\nmax_concurrent_requests = \"20\"\n"),
    ),
    Case(
        "single quotes",
        "[llm]\nmax_concurrent_requests = '10'\n",
        KEY,
        Exact("[llm]\nmax_concurrent_requests = '20'\n"),
    ),
    Case(
        "top level",
        "parallel = 10\n[llm]\nparallel = 10\n",
        "parallel",
        Exact("parallel = 20\n[llm]\nparallel = 10\n"),
    ),
    Case(
        "the key in a text, a comment and another table",
        "s = \"\"\"\n[llm]\nmax_concurrent_requests = 10\"\"\"\n[other]\nmax_concurrent_requests = 10\n[llm] # é 🦀\nmax_concurrent_requests = 10\n[llm.sub]\nmax_concurrent_requests = 10\n",
        KEY,
        Exact(
            "s = \"\"\"\n[llm]\nmax_concurrent_requests = 10\"\"\"\n[other]\nmax_concurrent_requests = 10\n[llm] # é 🦀\nmax_concurrent_requests = 20\n[llm.sub]\nmax_concurrent_requests = 10\n",
        ),
    ),
    Case(
        "odd values elsewhere",
        "a = nan\nb = 1979-05-27T07:32:00Z\nc = 0xff\n[[d]]\n[[d]]\ne = [1, # ]\n]\n[llm]\nmax_concurrent_requests = 10\n",
        KEY,
        Exact(
            "a = nan\nb = 1979-05-27T07:32:00Z\nc = 0xff\n[[d]]\n[[d]]\ne = [1, # ]\n]\n[llm]\nmax_concurrent_requests = 20\n",
        ),
    ),
    Case(
        "byte order mark",
        "\u{feff}llm.max_concurrent_requests = 10\n",
        KEY,
        Exact("\u{feff}llm.max_concurrent_requests = 20\n"),
    ),
    Case("three deep", "[app.llm]\nparallel = 1\n", "app.llm.parallel", Exact("[app.llm]\nparallel = 20\n")),
    Case("plus sign", "[llm]\nmax_concurrent_requests = +10\n", KEY, Exact("[llm]\nmax_concurrent_requests = 20\n")),
    Case(
        "missing",
        "[llm]\n  model=\"x\" # m\n# tail\n\n[b]\n",
        KEY,
        Exact("[llm]\n  model=\"x\" # m\n  max_concurrent_requests=20\n# tail\n\n[b]\n"),
    ),
    Case(
        "missing, the last value has lines",
        "[llm]\r\nmodels = [\r\n  'x', # ]\r\n] # c\r\n[llm.b]\r\nc = 1",
        KEY,
        Exact("[llm]\r\nmodels = [\r\n  'x', # ]\r\n] # c\r\nmax_concurrent_requests = 20\r\n[llm.b]\r\nc = 1"),
    ),
    Case("missing, no values", "[llm]  # c\n\n[b]\n", KEY, Exact("[llm]  # c\nmax_concurrent_requests = 20\n\n[b]\n")),
    Case("missing, no final newline", "[llm]\nm = 'x'", KEY, Exact("[llm]\nm = 'x'\nmax_concurrent_requests = 20")),
    Case(
        "missing, dotted",
        "llm.m = 'x'\nb = 1\n",
        KEY,
        Exact("llm.m = 'x'\nllm.max_concurrent_requests = 20\nb = 1\n"),
    ),
    Case(
        "missing, dotted values in it",
        "[llm]\nr.a = 1\n",
        KEY,
        Exact("[llm]\nmax_concurrent_requests = 20\nr.a = 1\n"),
    ),
    Case(
        "missing, inline",
        "llm = { m = 'x' } # c\n",
        KEY,
        Exact("llm = { m = 'x', max_concurrent_requests = 20 } # c\n"),
    ),
    Case("missing, inline and empty", "llm = {}\n", KEY, Exact("llm = { max_concurrent_requests = 20 }\n")),
    Case("missing, inline and blank", "llm = {\n}\n", KEY, Exact("llm = { max_concurrent_requests = 20\n}\n")),
    Case("missing at the top", "a = 1\n\n[b]\nc = 1\n", "parallel", Exact("a = 1\nparallel = 20\n\n[b]\nc = 1\n")),
    Case(
        "missing at the top, only tables",
        "\u{feff}# c\r\n[b]\r\nc = 1",
        "parallel",
        Exact("\u{feff}# c\r\nparallel = 20\r\n[b]\r\nc = 1"),
    ),
    Case(
        "missing at the top, a table first",
        "\u{feff}[[b]]\nc = 1",
        "parallel",
        Exact("\u{feff}parallel = 20\n[[b]]\nc = 1"),
    ),
    Case(
        "duplicate",
        "[llm]\nmax_concurrent_requests = 10\nmax_concurrent_requests = 12\n",
        KEY,
        Refused("duplicate key"),
    ),
    Case("duplicate table", "[llm]\nmax_concurrent_requests = 10\n[llm]\n", KEY, Refused("not valid TOML")),
    Case("hexadecimal", "[llm]\nmax_concurrent_requests = 0x10\n", KEY, Refused("its value is `0x10`")),
    Case("underscore", "[llm]\nmax_concurrent_requests = 1_0\n", KEY, Refused("its value is `1_0`")),
    Case("fraction", "llm = {max_concurrent_requests = 10.0}\n", KEY, Refused("its value is `10.0`")),
    Case("negative", "[llm]\nmax_concurrent_requests = -1\n", KEY, Refused("its value is `-1`")),
    Case("word", "[llm]\nmax_concurrent_requests = 'auto'\n", KEY, Refused("its value is a string")),
    Case("bool", "[llm]\nmax_concurrent_requests = true\n", KEY, Refused("its value is a string")),
    Case("list", "[llm]\nmax_concurrent_requests = [10]\n", KEY, Refused("its value is a list")),
    Case("table as the value", "[llm.max_concurrent_requests]\na = 10\n", KEY, Refused("its value is a mapping")),
    Case("tables as the value", "[[llm.max_concurrent_requests]]\na = 10\n", KEY, Refused("its value is a list")),
    Case("three quotes", "[llm]\nmax_concurrent_requests = \"\"\"10\"\"\"\n", KEY, Refused("exact place")),
    Case("escaped digits", "[llm]\nmax_concurrent_requests = \"\\u0031\"\n", KEY, Refused("exact place")),
    Case("placeholder", "[llm]\nmax_concurrent_requests = \"${N}\"\n", KEY, Refused("its value is a placeholder")),
    Case("jinja", "[llm]\nmax_concurrent_requests = {{ n }}\n", KEY, Refused("not valid TOML")),
    Case("list of tables as the parent", "[[llm]]\nmax_concurrent_requests = 10\n", KEY, Refused("`llm` is a list")),
    Case("parent is a value", "llm = 10\n", KEY, Refused("`llm` is a single value")),
    Case("no parent", "a = 1\n", KEY, Refused("its parent `llm` is missing")),
    Case("only a table below it", "[llm.a]\nb = 1\n", KEY, Refused("its parent `llm` is missing")),
    Case("empty file", "# llm\n", KEY, Refused("the file is empty")),
    Case("YAML", "llm:\n  max_concurrent_requests: 10\n", KEY, Refused("not valid TOML")),
    Case("dotted, in braces", "a = {llm.m = 1}\n", "a.llm.parallel", Refused("exact place")),
    Case("a comment in braces", "llm = { # c\n}\n", KEY, Refused("not changed")),
];

const JSON: &[Case] = &[
    Case(
        "pretty",
        "{\n  \"llm\": {\n    \"max_concurrent_requests\" : 10\n  }\n}\n",
        KEY,
        Exact("{\n  \"llm\": {\n    \"max_concurrent_requests\" : 20\n  }\n}\n"),
    ),
    Case("tight", r#"{"llm":{"max_concurrent_requests":10}}"#, KEY, Exact(r#"{"llm":{"max_concurrent_requests":20}}"#)),
    Case(
        "quoted",
        r#"{"llm": {"max_concurrent_requests": "10"}}"#,
        KEY,
        Exact(r#"{"llm": {"max_concurrent_requests": "20"}}"#),
    ),
    Case(
        "null",
        r#"{"llm": {"max_concurrent_requests": null, "b": 1}}"#,
        KEY,
        Exact(r#"{"llm": {"max_concurrent_requests": 20, "b": 1}}"#),
    ),
    Case(
        "tabs and CRLF",
        "{\r\n\t\"llm\": {\r\n\t\t\"max_concurrent_requests\": 10\r\n\t}\r\n}",
        KEY,
        Exact("{\r\n\t\"llm\": {\r\n\t\t\"max_concurrent_requests\": 20\r\n\t}\r\n}"),
    ),
    Case(
        "byte order mark",
        "\u{feff}{\"llm\":\n{\"max_concurrent_requests\"\n:\n10}}",
        KEY,
        Exact("\u{feff}{\"llm\":\n{\"max_concurrent_requests\"\n:\n20}}"),
    ),
    Case(
        "the key elsewhere, braces and escapes in texts",
        r#"{"max_concurrent_requests": 10, "a": "{\"llm\": {\"max_concurrent_requests\": 10}}", "\ud83e\udd80": "\u007b\/", "llm": {"a": {"max_concurrent_requests": 10}, "max_concurrent_requests": 10}}"#,
        KEY,
        Exact(
            r#"{"max_concurrent_requests": 10, "a": "{\"llm\": {\"max_concurrent_requests\": 10}}", "\ud83e\udd80": "\u007b\/", "llm": {"a": {"max_concurrent_requests": 10}, "max_concurrent_requests": 20}}"#,
        ),
    ),
    Case(
        "an escaped key",
        r#"{"l\u006cm": {"max_concurrent_requests": 10}}"#,
        KEY,
        Exact(r#"{"l\u006cm": {"max_concurrent_requests": 20}}"#),
    ),
    Case("long lines and large numbers", "{\"n\": 1e400, \"llm\": {}}", KEY, Refused("not valid JSON")),
    Case(
        "numbers elsewhere",
        "{\"n\": [-0.0, 1e3, 18446744073709551616], \"llm\": {\"max_concurrent_requests\": 0}}",
        KEY,
        Exact("{\"n\": [-0.0, 1e3, 18446744073709551616], \"llm\": {\"max_concurrent_requests\": 20}}"),
    ),
    Case(
        "missing",
        "{\n  \"llm\": {\n    \"m\": \"x\"\n  }\n}\n",
        KEY,
        Exact("{\n  \"llm\": {\n    \"m\": \"x\",\n    \"max_concurrent_requests\": 20\n  }\n}\n"),
    ),
    Case("missing, tight", r#"{"llm":{"m":"x"}}"#, KEY, Exact(r#"{"llm":{"m":"x","max_concurrent_requests":20}}"#)),
    Case(
        "missing, one line",
        r#"{"llm": {"m": "x"}, "b": 1}"#,
        KEY,
        Exact(r#"{"llm": {"m": "x", "max_concurrent_requests": 20}, "b": 1}"#),
    ),
    Case(
        "missing, blanks in braces",
        r#"{"llm": { "m": [] }}"#,
        KEY,
        Exact(r#"{"llm": { "m": [], "max_concurrent_requests": 20 }}"#),
    ),
    Case(
        "missing, two lines",
        "{\"llm\": {\"a\" : 1,\r\n         \"b\" : {}}}",
        KEY,
        Exact("{\"llm\": {\"a\" : 1,\r\n         \"b\" : {},\r\n         \"max_concurrent_requests\" : 20}}"),
    ),
    Case("missing, nothing there", "{\"llm\": { }}", KEY, Exact("{\"llm\": {\"max_concurrent_requests\": 20 }}")),
    Case("missing at the top", "{}\n", "parallel", Exact("{\"parallel\": 20}\n")),
    Case(
        "duplicate",
        r#"{"llm": {"max_concurrent_requests": 1, "max_concurrent_requests": 2}}"#,
        KEY,
        Refused("duplicate entry"),
    ),
    Case(
        "duplicate, escaped",
        r#"{"llm": {}, "\u006clm": {"max_concurrent_requests": 2}}"#,
        KEY,
        Refused("duplicate entry"),
    ),
    Case(
        "duplicate elsewhere",
        r#"{"a": {"b": 1, "b": 2}, "llm": {"max_concurrent_requests": 2}}"#,
        KEY,
        Refused("duplicate entry"),
    ),
    Case("fraction", r#"{"llm": {"max_concurrent_requests": 10.0}}"#, KEY, Refused("its value is `10.0`")),
    Case("exponent", r#"{"llm": {"max_concurrent_requests": 1e1}}"#, KEY, Refused("its value is `1e1`")),
    Case("negative", r#"{"llm": {"max_concurrent_requests": -1}}"#, KEY, Refused("its value is `-1`")),
    Case("escaped digits", r#"{"llm": {"max_concurrent_requests": "\u0031"}}"#, KEY, Refused("exact place")),
    Case("placeholder", r#"{"llm": {"max_concurrent_requests": "${N}"}}"#, KEY, Refused("its value is a placeholder")),
    Case("bool", r#"{"llm": {"max_concurrent_requests": true}}"#, KEY, Refused("its value is a string")),
    Case("list", r#"{"llm": {"max_concurrent_requests": [10]}}"#, KEY, Refused("its value is a list")),
    Case("object", r#"{"llm": {"max_concurrent_requests": {}}}"#, KEY, Refused("its value is a mapping")),
    Case("comment", "{\"llm\": {\"max_concurrent_requests\": 10} // c\n}", KEY, Refused("not valid JSON")),
    Case("trailing comma", r#"{"llm": {"max_concurrent_requests": 10,}}"#, KEY, Refused("not valid JSON")),
    Case("single quotes", "{'llm': {'max_concurrent_requests': 10}}", KEY, Refused("not valid JSON")),
    Case("two documents", "{\"llm\": {\"max_concurrent_requests\": 10}}\n{}", KEY, Refused("trailing characters")),
    Case("not closed", r#"{"llm": {"max_concurrent_requests": 10}"#, KEY, Refused("not valid JSON: EOF")),
    Case("no parent", r#"{"a": 1}"#, KEY, Refused("its parent `llm` is missing")),
    Case("parent is null", r#"{"llm": null}"#, KEY, Refused("`llm` is empty")),
    Case("parent is a list", r#"{"llm": [{"max_concurrent_requests": 10}]}"#, KEY, Refused("`llm` is a list")),
    Case("root is a list", "[]", KEY, Refused("the top level is a list")),
    Case("root is a value", "\"llm\"", KEY, Refused("the top level is a single value")),
    Case("empty file", " \n", KEY, Refused("the file is empty")),
];

const ENV: &[Case] = &[
    Case(
        "plain",
        "A=1\nLLM_MAX_CONCURRENT_REQUESTS=10\nB=2\n",
        KEY,
        Exact("A=1\nLLM_MAX_CONCURRENT_REQUESTS=20\nB=2\n"),
    ),
    Case("a name of its own", "A=1\nPARALLEL=10", "PARALLEL", Exact("A=1\nPARALLEL=20")),
    Case("a small name", "parallel=10\nPARALLEL=10\n", "parallel", Exact("parallel=20\nPARALLEL=10\n")),
    Case(
        "exported, CRLF",
        "export LLM_MAX_CONCURRENT_REQUESTS=10\r\nA=\r\n",
        KEY,
        Exact("export LLM_MAX_CONCURRENT_REQUESTS=20\r\nA=\r\n"),
    ),
    Case(
        "blanks and a comment",
        " LLM_MAX_CONCURRENT_REQUESTS = 10  # c\n",
        KEY,
        Exact(" LLM_MAX_CONCURRENT_REQUESTS = 20  # c\n"),
    ),
    Case(
        "double quotes",
        "LLM_MAX_CONCURRENT_REQUESTS=\"10\" # c\n",
        KEY,
        Exact("LLM_MAX_CONCURRENT_REQUESTS=\"20\" # c\n"),
    ),
    Case("single quotes", "LLM_MAX_CONCURRENT_REQUESTS='10'", KEY, Exact("LLM_MAX_CONCURRENT_REQUESTS='20'")),
    Case(
        "byte order mark",
        "\u{feff}LLM_MAX_CONCURRENT_REQUESTS=10\n",
        KEY,
        Exact("\u{feff}LLM_MAX_CONCURRENT_REQUESTS=20\n"),
    ),
    Case("empty", "LLM_MAX_CONCURRENT_REQUESTS=\nA=1\n", KEY, Exact("LLM_MAX_CONCURRENT_REQUESTS=20\nA=1\n")),
    Case(
        "empty with a comment",
        "LLM_MAX_CONCURRENT_REQUESTS=  # c\nA=1\n",
        KEY,
        Exact("LLM_MAX_CONCURRENT_REQUESTS=20  # c\nA=1\n"),
    ),
    Case(
        "the name in a comment, a text of lines and a longer name",
        "# LLM_MAX_CONCURRENT_REQUESTS=10\nA=\"x # \\\" \nLLM_MAX_CONCURRENT_REQUESTS=10\n\"\nMY_LLM_MAX_CONCURRENT_REQUESTS=10\nLLM_MAX_CONCURRENT_REQUESTS=10\n",
        KEY,
        Exact(
            "# LLM_MAX_CONCURRENT_REQUESTS=10\nA=\"x # \\\" \nLLM_MAX_CONCURRENT_REQUESTS=10\n\"\nMY_LLM_MAX_CONCURRENT_REQUESTS=10\nLLM_MAX_CONCURRENT_REQUESTS=20\n",
        ),
    ),
    Case(
        "substitution elsewhere",
        "A=a$B\nB=${LLM_MAX}x\nLLM_MAX_CONCURRENT_REQUESTS=10\n",
        KEY,
        Exact("A=a$B\nB=${LLM_MAX}x\nLLM_MAX_CONCURRENT_REQUESTS=20\n"),
    ),
    Case(
        "duplicate elsewhere",
        "A=1\nA=2\nLLM_MAX_CONCURRENT_REQUESTS=10\n",
        KEY,
        Exact("A=1\nA=2\nLLM_MAX_CONCURRENT_REQUESTS=20\n"),
    ),
    Case("missing", "A=1 # a\n\n# tail\n", KEY, Exact("A=1 # a\nLLM_MAX_CONCURRENT_REQUESTS=20\n\n# tail\n")),
    Case(
        "missing, exported",
        "export A='1\n2'\r\n",
        KEY,
        Exact("export A='1\n2'\r\nexport LLM_MAX_CONCURRENT_REQUESTS=20\r\n"),
    ),
    Case("missing, no final newline", "export=1\nA=1", KEY, Exact("export=1\nA=1\nLLM_MAX_CONCURRENT_REQUESTS=20")),
    Case("missing, last is empty", "A=\n", KEY, Exact("A=\nLLM_MAX_CONCURRENT_REQUESTS=20\n")),
    Case("duplicate", "PARALLEL=1\nPARALLEL=2\n", "PARALLEL", Refused("the first is on line 1")),
    Case(
        "used elsewhere",
        "LLM_MAX_CONCURRENT_REQUESTS=10\nPOOL=\"${LLM_MAX_CONCURRENT_REQUESTS}0\"\n",
        KEY,
        Refused("another value would change"),
    ),
    Case("placeholder", "LLM_MAX_CONCURRENT_REQUESTS=${N}\n", KEY, Refused("its value is a placeholder")),
    Case("bare placeholder", "LLM_MAX_CONCURRENT_REQUESTS=$N\n", KEY, Refused("its value is a placeholder")),
    Case("word", "LLM_MAX_CONCURRENT_REQUESTS=auto\n", KEY, Refused("its value is a string")),
    Case("quotes in the middle", "LLM_MAX_CONCURRENT_REQUESTS=1\"0\"\n", KEY, Refused("its value is `1\"0\"`")),
    Case("quotes twice", "LLM_MAX_CONCURRENT_REQUESTS='1''0'\n", KEY, Refused("not a whole number")),
    Case(
        "used, but not there",
        "export A=$LLM_MAX_CONCURRENT_REQUESTS!\n",
        KEY,
        Refused("another value would change too"),
    ),
    Case("comment without a blank", "LLM_MAX_CONCURRENT_REQUESTS=10#c\n", KEY, Refused("its value is `10#c`")),
    Case("leading zero", "LLM_MAX_CONCURRENT_REQUESTS=010\n", KEY, Refused("its value is `010`")),
    Case("fraction", "LLM_MAX_CONCURRENT_REQUESTS=10.5\n", KEY, Refused("its value is `10.5`")),
    Case("empty text", "LLM_MAX_CONCURRENT_REQUESTS=\"\"\n", KEY, Refused("its value is a string")),
    Case(
        "two words",
        "LLM_MAX_CONCURRENT_REQUESTS=10 12\n",
        KEY,
        Refused("not valid as a .env file: a line is not NAME=value"),
    ),
    Case("not closed", "A=\"x\nLLM_MAX_CONCURRENT_REQUESTS=10\n", KEY, Refused("not valid as a .env file")),
    Case("YAML", "llm:\n  max_concurrent_requests: 10\n", KEY, Refused("not valid as a .env file")),
    Case("no equals sign", "export LLM_MAX_CONCURRENT_REQUESTS\n", KEY, Refused("not valid as a .env file")),
    Case("CR alone", "A=1\rLLM_MAX_CONCURRENT_REQUESTS=10\r", KEY, Refused("exact place")),
    Case("empty file", "# A=1\n", KEY, Refused("the file is empty")),
];

/// By the names that tell a format.
const FORMATS: [(&str, &[Case]); 4] =
    [("config.yaml", CASES), ("app.toml", TOML), ("app.json", JSON), ("prod.env", ENV)];

/// A folder with one file.
struct Fixture {
    folder: TempDir,
    path: PathBuf,
}

impl Fixture {
    fn new(content: impl AsRef<[u8]>) -> Self {
        Self::named("config.yaml", content)
    }

    fn named(name: &str, content: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        Self { folder, path }
    }

    fn plan(&self) -> Result<Patch, PatchError> {
        patch::plan(&self.path, KEY, 20)
    }

    fn read(&self) -> String {
        fs::read_to_string(&self.path).unwrap()
    }

    /// The message of a refusal, with the folder left out; the file must be as it was.
    fn refusal(&self) -> String {
        let before = State::of(&self.path);
        let error = self.plan().and_then(|patch| patch.apply()).unwrap_err();
        assert_eq!(State::of(&self.path), before);
        self.short(&error)
    }

    fn short(&self, error: &PatchError) -> String {
        let folder = self.folder.path().canonicalize().unwrap();
        error
            .to_string()
            .replace(&format!("{}/", folder.display()), "")
            .replace(&folder.display().to_string(), "FOLDER")
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// All of a file that a refusal must not touch.
#[derive(Debug, PartialEq)]
struct State {
    bytes: Vec<u8>,
    modified: std::time::SystemTime,
    #[cfg(unix)]
    inode_mode_links: (u64, u32, u64),
}

impl State {
    fn of(path: &Path) -> Self {
        let metadata = fs::metadata(path).unwrap();
        Self {
            bytes: fs::read(path).unwrap(),
            modified: metadata.modified().unwrap(),
            #[cfg(unix)]
            inode_mode_links: {
                use std::os::unix::fs::MetadataExt;
                (metadata.ino(), metadata.mode(), metadata.nlink())
            },
        }
    }
}

#[test]
fn awkward_files() {
    let mut failures = Vec::new();
    for (file, cases) in FORMATS {
        assert!(cases.len() >= 20, "{file}");
        for case in cases {
            if let Err(wrong) = check_case(file, case) {
                failures.push(format!("{file}, {}\n  {:?}\n  {wrong}", case.0, case.1));
            }
        }
    }
    assert!(failures.is_empty(), "{}:\n{}", failures.len(), failures.join("\n"));
}

fn check_case(file: &str, Case(_, content, key, expected): &Case) -> Result<(), String> {
    let fixture = Fixture::named(file, content);
    let before = State::of(&fixture.path);
    let result = patch::plan(&fixture.path, key, 20).and_then(|patch| patch.apply());
    match (expected, &result) {
        (Exact(after), Ok(())) if fixture.read() == *after => {}
        (_, Ok(())) => return Err(format!("wrote {:?}", fixture.read())),
        (Exact(_), Err(error)) => return Err(format!("refused: {error}")),
        (Refused(_), Err(_)) if State::of(&fixture.path) != before => return Err("refused, but touched".to_owned()),
        (Refused(part), Err(error)) => {
            let message = error.to_string();
            // A line to write by hand comes with every one of them.
            let is_explained =
                message.contains(part) && message.contains("20") && !message.contains("a check of the result");
            return if is_explained { Ok(()) } else { Err(format!("refused: {message}")) };
        }
    }
    // Applying again changes nothing, and no other file is left in the folder.
    let before = State::of(&fixture.path);
    let again = patch::plan(&fixture.path, key, 20).map_err(|error| format!("again: {error}"))?;
    again.apply().unwrap();
    let unchanged = again.is_noop() && again.previous() == Some(20) && again.diff().is_empty();
    if unchanged && State::of(&fixture.path) == before && fixture.names() == [file] {
        Ok(())
    } else {
        Err(format!("a second time is no noop: {again:?}, {:?}", fixture.names()))
    }
}

#[test]
fn what_the_patch_says() {
    let fixture = Fixture::new("llm:\n  model: x\n  max_concurrent_requests: '10' # n\n  a: 1\n  b: 2\n  c: 3\n");
    let patch = fixture.plan().unwrap();
    assert_eq!((patch.path(), patch.previous(), patch.is_noop()), (fixture.path.as_path(), Some(10), false));
    let diff = patch.diff().replace(&fixture.path.display().to_string(), "config.yaml");
    assert_eq!(
        diff,
        "--- config.yaml\n+++ config.yaml\n@@ line 3 @@\n-  max_concurrent_requests: '10'\n\
         +  max_concurrent_requests: '20'\n"
    );
    assert!(!format!("{patch:?}").contains("model"));
    assert_eq!(Fixture::new("llm: {max_concurrent_requests: }").plan().unwrap().previous(), None);
    assert_eq!(Fixture::new("llm: {a: 1}").plan().unwrap().previous(), None);
    let plus = Fixture::new("llm: {max_concurrent_requests: +20}").plan().unwrap();
    assert!(plus.is_noop() && plus.previous() == Some(20));
}

#[test]
fn the_diff_shows_the_key_its_number_and_nothing_else_that_may_be_secret() {
    let (ten, twenty) = ("max_concurrent_requests: 10", "max_concurrent_requests: 20");
    for (text, line, old, new) in [
        (
            "llm:\n  token: sk-one\n  max_concurrent_requests: 10 # sk-two\n",
            3,
            format!("-  {ten}\n"),
            format!("  {twenty}"),
        ),
        ("llm: {key: sk-one, max_concurrent_requests: 10, token: two}", 1, format!("- {ten}\n"), format!(" {twenty}")),
        (
            "llm:\n  max_concurrent_requests: # sk-two\n",
            2,
            "-  max_concurrent_requests:\n".into(),
            format!("  {twenty}"),
        ),
        ("llm:\n  token: sk-one # two\n", 3, String::new(), format!("  {twenty}")),
        ("llm: {token: sk-one}", 1, String::new(), format!(" {twenty}")),
        ("llm: {token: sk-one, max_concurrent_requests:\n  10}", 2, "-  10\n".into(), "  20".into()),
    ] {
        let fixture = Fixture::new(text);
        let diff = fixture.plan().unwrap().diff().replace(&fixture.path.display().to_string(), "c");
        assert_eq!(diff, format!("--- c\n+++ c\n@@ line {line} @@\n{old}+{new}\n"), "{text}");
    }
    // A key that sounds like one is shown, since it is what changes.
    let fixture = Fixture::new("llm:\n  key: 1000\n");
    let patch = patch::plan(&fixture.path, "llm.key", 5).unwrap();
    assert!(patch.diff().contains("-  key: 1000\n+  key: 5\n"), "{}", patch.diff());
    // Nor does a message.
    let fixture = Fixture::new("llm:\n  max_concurrent_requests: hunter2\n");
    assert!(!fixture.refusal().contains("hunter2"));
}

// ---- Messages, in full ----

#[test]
fn messages_in_full() {
    let cases = [
        (
            "llm:\n  max_concurrent_requests: *n\n",
            "config.yaml:2:28: `llm.max_concurrent_requests` was not changed: the file is not valid YAML: while parsing \
             node, found unknown anchor\n\nhint: fix the file and run the command again, or set it by hand:\n\n\
             llm:\n  max_concurrent_requests: 20",
        ),
        (
            "n: &n 10\nllm:\n    max_concurrent_requests: *n # n\n",
            "config.yaml:3:30: `llm.max_concurrent_requests` was not changed: its value is an alias of a \
             value elsewhere, which other keys may share\n\nhint: change line 3 by hand to:\n\n    \
             max_concurrent_requests: 20",
        ),
        (
            "llm: &defaults\n  max_concurrent_requests: 10\n",
            "config.yaml:2:3: `llm.max_concurrent_requests` was not changed: `llm` has an anchor, so other places may use \
             it too\n\nhint: set it by hand under `llm`:\n\n  max_concurrent_requests: 20",
        ),
        (
            "llm:\n   model: x\n   max_concurrent_requests: 1\n   max_concurrent_requests: 2\n",
            "config.yaml:4:4: `llm.max_concurrent_requests` was not changed: `max_concurrent_requests` appears here a second time; \
             the first is on line 3\n\nhint: keep one of the two, and set it by hand under `llm`:\n\n   \
             max_concurrent_requests: 20",
        ),
        (
            "llm: {max_concurrent_requests: 0x10, api_key: sk-1}\n",
            "config.yaml:1:32: `llm.max_concurrent_requests` was not changed: its value is `0x10`, not a whole number in \
             plain digits such as 10\n\nhint: change it by hand on line 1 to:\n\nmax_concurrent_requests: 20",
        ),
        (
            "benchmark:\n  seed: 1\n",
            "config.yaml: `llm.max_concurrent_requests` was not changed: its parent `llm` is missing\n\n\
             hint: add by hand, at the top level:\n\nllm:\n  max_concurrent_requests: 20",
        ),
        (
            "{\"a\": 1}",
            "config.yaml: `llm.max_concurrent_requests` was not changed: its parent `llm` is missing\n\n\
             hint: add by hand, at the top level:\n\n\"llm\": {\"max_concurrent_requests\": 20}",
        ),
        (
            "# nothing\n",
            "config.yaml: `llm.max_concurrent_requests` was not changed: the file is empty\n\n\
             hint: set it by hand:\n\nllm:\n  max_concurrent_requests: 20",
        ),
        (
            "llm:\n\tmodel: x\n",
            "config.yaml:2:1: `llm.max_concurrent_requests` was not changed: this line is indented with a tab, which YAML \
             forbids and programs read differently\n\nhint: indent with spaces, and set it by hand:\n\n\
             llm:\n  max_concurrent_requests: 20",
        ),
        (
            "a: 1\n---\nb: 2\n",
            "config.yaml:2:1: `llm.max_concurrent_requests` was not changed: a second YAML document begins here, and \
             either could be meant\n\nhint: in the document that is meant, set it by hand:\n\n\
             llm:\n  max_concurrent_requests: 20",
        ),
        (
            "llm:\n  max_concurrent_requests: ${PARALLEL}\n",
            "config.yaml:2:28: `llm.max_concurrent_requests` was not changed: its value is a placeholder that another \
             program fills in\n\nhint: change line 2 by hand to:\n\n  max_concurrent_requests: 20",
        ),
    ];
    for (content, message) in cases {
        assert_eq!(Fixture::new(content).refusal(), message);
    }
}

#[test]
fn keys_that_are_none() {
    let fixture = Fixture::new("llm: 1\n");
    let message = |key: &str| patch::plan(&fixture.path, key, 20).unwrap_err().to_string();
    assert_eq!(
        message("llm..x"),
        "`llm..x` is not a key that can be looked up: a name between the dots is empty\n\n\
         hint: join plain names with dots, such as `llm.max_concurrent_requests`"
    );
    for key in ["", ".", "llm.", ".llm"] {
        assert!(message(key).contains("is empty"), "{key}");
    }
    for key in ["llm.a b", "llm.a:", "llm[0]", "-a", "llm.\"a\"", "a\n", "#"] {
        assert!(message(key).contains("characters other than"), "{key}");
    }
    for key in ["null", "llm.true", "1", "llm.0x1"] {
        assert!(message(key).contains("that YAML reads as"), "{key}");
    }
}

// ---- Files that are not what they should be ----

#[test]
fn not_a_file() {
    let fixture = Fixture::new("");
    let message = |name: &str| fixture.short(&patch::plan(&fixture.folder.path().join(name), KEY, 20).unwrap_err());
    assert_eq!(
        message("other.yaml"),
        "other.yaml: `llm.max_concurrent_requests` was not changed: there is no such file\n\n\
         hint: check the path, or create the file and set it by hand:\n\nllm:\n  max_concurrent_requests: 20"
    );
    assert!(message("").contains("this is a directory, not a file"));
}

#[test]
fn encodings() {
    let utf16: Vec<u8> =
        "\u{feff}llm: {max_concurrent_requests: 10}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let message = Fixture::new(utf16).refusal();
    assert!(message.starts_with("config.yaml:1:1: ") && message.contains("not UTF-8"), "{message}");
    let message = Fixture::new(b"a: 1\nb: caf\xe9\nllm: {max_concurrent_requests: 10}\n").refusal();
    assert!(message.starts_with("config.yaml:2:7: ") && message.contains("not UTF-8"), "{message}");
}

#[test]
fn sizes_and_bombs_are_bounded() {
    let start = std::time::Instant::now();
    let refused = |content: String, part: &str| {
        let message = Fixture::new(content).refusal();
        assert!(message.contains(part), "{part} not in {message}");
    };
    let llm = "llm:\n  max_concurrent_requests: 10\n";
    refused(format!("{llm}# {}\n", "x".repeat(10 << 20)), "larger than 10 MiB");
    refused(format!("{llm}deep: {}\n", "[".repeat(1 << 20)), "not valid YAML");
    refused(format!("{llm}deep: {}{}\n", "[".repeat(200), "]".repeat(200)), "not valid YAML");
    refused(format!("{llm}deep: {}\n", "{a: ".repeat(1 << 18)), "not valid YAML");
    refused(
        format!("{llm}deep:\n{}\n", (1..400).map(|n| format!("{}a:\n", " ".repeat(n))).collect::<String>()),
        "not valid YAML",
    );
    refused(format!("{llm}deep: {}\n", "- ".repeat(1 << 18)), "not valid YAML");
    let bomb: String =
        (1..30).map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 9].join(", "))).collect();
    refused(format!("a0: &a0 x\n{bomb}{llm}"), "1000000 values");
    refused(format!("a: &a [*a]\n{llm}"), "1000000 values");
    refused(format!("{llm}many: [{}]\n", "1, ".repeat(1 << 20)), "1000000 values");
    refused("? a\n".repeat(100) + &"? b\n".repeat(1 << 17), "a second time");
    // Large, but a configuration.
    let large =
        format!("# {}\n{}{llm}", "x".repeat(4 << 20), (0..20_000).map(|n| format!("k{n}: v\n")).collect::<String>());
    let fixture = Fixture::new(&large);
    fixture.plan().unwrap().apply().unwrap();
    assert_eq!(fixture.read(), large.replace("requests: 10", "requests: 20"));
    assert!(start.elapsed().as_secs() < 120, "{:?}", start.elapsed());
}

// ---- On disk ----

#[test]
fn changed_since_it_was_read() {
    let fixture = Fixture::new("llm: {max_concurrent_requests: 10}\n");
    let patch = fixture.plan().unwrap();
    fs::write(&fixture.path, "llm: {max_concurrent_requests: 10}\n# mine\n").unwrap();
    assert_eq!(
        fixture.short(&patch.apply().unwrap_err()),
        "config.yaml: `llm.max_concurrent_requests` was not changed: the file has changed since it was read\n\n\
         hint: run the command again"
    );
    assert_eq!(fixture.read(), "llm: {max_concurrent_requests: 10}\n# mine\n");
    fs::remove_file(&fixture.path).unwrap();
    assert!(patch.apply().unwrap_err().to_string().contains("no such file"));
    assert!(fixture.names().is_empty());
}

#[test]
fn applied_twice_says_changed() {
    let fixture = Fixture::new("llm: {max_concurrent_requests: 10}\n");
    let patch = fixture.plan().unwrap();
    patch.apply().unwrap();
    assert!(patch.apply().unwrap_err().to_string().contains("has changed"));
    assert_eq!(fixture.read(), "llm: {max_concurrent_requests: 20}\n");
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    const BEFORE: &str = "llm: {max_concurrent_requests: 10}\n";
    const AFTER: &str = "llm: {max_concurrent_requests: 20}\n";

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn permissions_stay() {
        for mode in [0o640, 0o600, 0o644, 0o664, 0o755, 0o666] {
            let fixture = Fixture::new(BEFORE);
            set_mode(&fixture.path, mode);
            fixture.plan().unwrap().apply().unwrap();
            assert_eq!(fs::metadata(&fixture.path).unwrap().mode() & 0o7777, mode);
            assert_eq!(fixture.read(), AFTER);
        }
    }

    #[test]
    fn owner_and_group_stay() {
        let fixture = Fixture::new(BEFORE);
        // Only root may give a file away; for others there is nothing to test.
        if std::os::unix::fs::chown(&fixture.path, Some(12345), Some(23456)).is_err() {
            return;
        }
        set_mode(&fixture.path, 0o640);
        fixture.plan().unwrap().apply().unwrap();
        let metadata = fs::metadata(&fixture.path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (12345, 23456, 0o640));
        assert_eq!(fixture.read(), AFTER);
    }

    #[test]
    fn symlinks_stay() {
        let fixture = Fixture::new(BEFORE);
        let folder = fixture.folder.path();
        fs::create_dir(folder.join("links")).unwrap();
        symlink("../config.yaml", folder.join("links/relative")).unwrap();
        symlink("relative", folder.join("links/chain")).unwrap();
        symlink(&fixture.path, folder.join("absolute")).unwrap();
        symlink("links", folder.join("folder")).unwrap();
        for (value, name) in [(1, "links/relative"), (2, "links/chain"), (3, "absolute"), (4, "folder/chain")] {
            let link = folder.join(name);
            let leads_to = fs::read_link(&link).unwrap();
            let patch = patch::plan(&link, KEY, value).unwrap();
            assert_eq!(patch.path(), link);
            patch.apply().unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), leads_to);
            assert_eq!(fixture.read(), format!("llm: {{max_concurrent_requests: {value}}}\n"));
            assert!(!fs::symlink_metadata(&fixture.path).unwrap().is_symlink());
        }
        assert_eq!(fixture.names(), ["absolute", "config.yaml", "folder", "links"]);
    }

    #[test]
    fn symlinks_that_lead_nowhere_or_elsewhere() {
        let fixture = Fixture::new(BEFORE);
        let link = fixture.folder.path().join("link");
        symlink("gone", &link).unwrap();
        assert!(patch::plan(&link, KEY, 20).unwrap_err().to_string().contains("no such file"));
        fs::remove_file(&link).unwrap();
        symlink("link", &link).unwrap();
        assert!(patch::plan(&link, KEY, 20).unwrap_err().to_string().contains("cannot find the file"));
        // Turned to another file, of the same content, between plan and apply.
        fs::remove_file(&link).unwrap();
        symlink("config.yaml", &link).unwrap();
        let patch = patch::plan(&link, KEY, 20).unwrap();
        fs::write(fixture.folder.path().join("other"), BEFORE).unwrap();
        fs::remove_file(&link).unwrap();
        symlink("other", &link).unwrap();
        assert!(patch.apply().unwrap_err().to_string().contains("has changed"));
        assert_eq!(fixture.read(), BEFORE);
    }

    #[test]
    fn read_only_file() {
        let fixture = Fixture::new(BEFORE);
        set_mode(&fixture.path, 0o444);
        assert_eq!(
            fixture.refusal(),
            "config.yaml: `llm.max_concurrent_requests` was not changed: the file is read-only\n\n\
             hint: make the file writable and run the command again, or set it by hand:\n\n\
             llm:\n  max_concurrent_requests: 20"
        );
        // Looking at what would change is no offence, nor is finding that nothing would.
        assert!(!fixture.plan().unwrap().diff().is_empty());
        patch::plan(&fixture.path, KEY, 10).unwrap().apply().unwrap();
        assert_eq!(fixture.names(), ["config.yaml"]);
    }

    #[test]
    fn read_only_folder() {
        let fixture = Fixture::new(BEFORE);
        set_mode(fixture.folder.path(), 0o555);
        let message = fixture.refusal();
        set_mode(fixture.folder.path(), 0o755);
        assert_eq!(
            message,
            "config.yaml: `llm.max_concurrent_requests` was not changed: its folder FOLDER is read-only, and the new file \
             must be created there before it replaces the old one\n\nhint: make the folder writable and run the command \
             again, or set it by hand:\n\nllm:\n  max_concurrent_requests: 20"
        );
    }

    #[test]
    fn hard_links_are_not_parted() {
        let fixture = Fixture::new(BEFORE);
        fs::hard_link(&fixture.path, fixture.folder.path().join("second")).unwrap();
        assert!(fixture.refusal().contains("the file has 2 names (hard links)"));
    }

    #[test]
    fn a_device_is_not_a_file() {
        let message = patch::plan(Path::new("/dev/null"), KEY, 20).unwrap_err().to_string();
        assert!(message.contains("not a regular file"), "{message}");
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let fixture = Fixture::new(BEFORE);
        let pipe = fixture.folder.path().join("pipe");
        // Made by the system's own tool; where there is none, the device above has to do.
        if std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()) {
            assert!(patch::plan(&pipe, KEY, 20).unwrap_err().to_string().contains("not a regular file"));
        }
    }
}

// ---- Anything at all ----

fn value(text: &str) -> serde_yaml::Value {
    serde_yaml::from_str(text.trim_start_matches('\u{feff}')).unwrap()
}

/// What must hold of every patch, checked independently of its own guard.
fn check(content: &str, key: &str, number: u64, patch: &Patch) {
    let fixture_after = fs::read_to_string(patch.path()).unwrap();
    let (mut before, after) = (value(content), value(&fixture_after));
    let (parents, last) = key.rsplit_once('.').map_or((None, key), |(parents, last)| (Some(parents), last));
    let mut parent = &mut before;
    for name in parents.into_iter().flat_map(|parents| parents.split('.')) {
        parent = &mut parent[name];
    }
    let quoted = parent.get(last).is_some_and(serde_yaml::Value::is_string);
    parent[last] = if quoted { number.to_string().into() } else { number.into() };
    assert_eq!(before, after);
    let count = |mark: &str, header: &str| {
        patch.diff().split(['\n', '\r']).filter(|line| line.starts_with(mark) && !line.starts_with(header)).count()
    };
    let (removed, added) = (count("-", "---"), count("+", "+++"));
    assert!(removed <= 1 && added == 1 || patch.is_noop(), "{}", patch.diff());
}

fn patch_anything(content: &str, key: &str, number: u64) -> Result<(), String> {
    let fixture = Fixture::new(content);
    match patch::plan(&fixture.path, key, number) {
        Ok(patch) => {
            patch.apply().unwrap();
            check(content, key, number, &patch);
            Ok(())
        }
        Err(error) => {
            assert_eq!(fixture.read(), content);
            assert!(!error.to_string().contains("a check of the result failed"), "{error}\n{content:?}");
            Err(error.to_string())
        }
    }
}

/// Comments, blank lines, and entries of many kinds, none of which is the key.
fn entry() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("# max_concurrent_requests: 3 # {".to_owned()),
        Just(String::new()),
        ("[a-z]{1,6}", 0..1000u32).prop_map(|(name, number)| format!("k_{name}: {number}   # c: 'd'")),
        "[a-z]{1,6}".prop_map(|name| format!("q_{name}: \"a # b: \\\"{{ c\"")),
        "[a-z]{1,6}".prop_map(|name| format!("'s_{name}' :  'it''s: [3'")),
        "[a-z]{1,6}".prop_map(|name| format!("f_{name}: {{a: [1, {{b: 2}}], c: }} # e")),
        "[a-z]{1,6}".prop_map(|name| format!("m_{name}:\n  n:\n    max_concurrent_requests: 4\n  # o")),
        "[a-z]{1,6}".prop_map(|name| format!("b_{name}: |\n  max_concurrent_requests: 5\n\n  llm:")),
        "[a-z]{1,6}".prop_map(|name| format!("l_{name}:\n- max_concurrent_requests: 6\n- 7")),
        "[a-z]{1,6}".prop_map(|name| format!("p_{name}: one\n  two\n\n  three")),
        "[a-z]{1,6}".prop_map(|name| format!("e_{name}:")),
        "[a-z]{1,6}".prop_map(|name| format!("ü_{name}: 日本語 🦀")),
    ]
}

/// The entries of one mapping, without those whose key is there already.
fn without_duplicates(entries: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    let name = |entry: &String| entry.split(':').next().unwrap_or_default().trim().trim_matches('\'').to_owned();
    entries.into_iter().filter(|entry| entry.is_empty() || entry.starts_with('#') || seen.insert(name(entry))).collect()
}

fn indent(entries: &[String], indentation: usize) -> Vec<String> {
    let blanks = " ".repeat(indentation);
    let lines = entries.iter().flat_map(|entry| entry.split('\n'));
    lines.map(|line| if line.is_empty() { String::new() } else { format!("{blanks}{line}") }).collect()
}

prop_compose! {
    fn mapping()(
        before in prop::collection::vec(entry(), 0..5),
        inner in prop::collection::vec(entry(), 1..6),
        after in prop::collection::vec(entry(), 0..4),
        own in prop_oneof![
            Just(None),
            prop::sample::select(vec!["10", "\"10\"", "'7'", "0", "~", "null", "", "+3"]).prop_map(Some),
        ],
        position in 0..6usize,
        indentation in 1..6usize,
        eol in prop::sample::select(vec!["\n", "\r\n"]),
        last_eol in any::<bool>(),
        mark in any::<bool>(),
        comment in prop::sample::select(vec!["", "  # tail", " "]),
    ) -> String {
        let mut inner = without_duplicates(inner);
        let key = own.map(|own| format!("max_concurrent_requests: {own}{comment}"));
        if let Some(key) = key {
            inner.insert(position.min(inner.len()), key);
        } else if inner.iter().all(|entry| entry.is_empty() || entry.starts_with('#')) {
            inner.push("k_last: 1".to_owned());
        }
        let mut outer = before;
        outer.push(format!("llm:{comment}"));
        let split = outer.len();
        outer.extend(after);
        let kept = without_duplicates(outer[..split].to_vec());
        let mut rest = without_duplicates([&kept[..], &outer[split..]].concat());
        let rest = rest.split_off(kept.len());
        let lines = [indent(&kept, 0), indent(&inner, indentation), indent(&rest, 0)].concat();
        let mut text = lines.join(eol);
        if last_eol { text.push_str(eol) }
        if mark { format!("\u{feff}{text}") } else { text }
    }
}

/// Pieces of YAML in any order: hardly ever a good file, always a good question.
fn soup() -> impl Strategy<Value = String> {
    let pieces = vec![
        "llm",
        ":",
        " ",
        "\n",
        "  ",
        "max_concurrent_requests",
        "10",
        "llm:\n",
        "  max_concurrent_requests: 10\n",
        "{",
        "}",
        "[",
        "]",
        ",",
        "\"",
        "'",
        "#",
        "# c\n",
        "&a",
        "*a",
        "!!int ",
        "? ",
        "- ",
        "|\n",
        ">-\n",
        "<<: ",
        "---\n",
        "...\n",
        "\t",
        "\r\n",
        "\r",
        "\u{feff}",
        "\u{85}",
        "\u{2028}",
        "{{ x }}",
        "${X}",
        "é",
        "🦀",
        "%YAML 1.1\n",
        "null",
        "~",
        "\\",
        "0x1",
        "a: 1\n",
        "  b: 2\n",
        "llm: {",
        "max_concurrent_requests: ",
        "[llm]\n",
        "max_concurrent_requests = 10\n",
        "llm.max_concurrent_requests = 10\n",
        "llm = { a = 'b' }\n",
        "LLM_MAX_CONCURRENT_REQUESTS=10\n",
        "export A=",
        "$LLM_MAX_CONCURRENT_REQUESTS",
        "\"llm\": {",
        "\"max_concurrent_requests\": 10",
        "=",
        ": ",
        "@",
        "`",
        "\0",
    ];
    prop::collection::vec(prop::sample::select(pieces), 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_mapping_is_patched(content in mapping(), number in 0..100_000u64) {
        let result = patch_anything(&content, KEY, number);
        prop_assert!(result.is_ok(), "{:?}\n{content:?}", result);
    }

    #[test]
    fn any_text_is_patched_or_refused(content in soup(), number in any::<u64>()) {
        let _ = patch_anything(&content, KEY, number);
        let _ = patch_anything(&content, "llm", number);
    }

    /// One stretch of a few bytes has changed, or nothing has.
    #[test]
    fn any_text_of_any_format_is_patched_or_refused(
        content in soup(),
        file in prop::sample::select(vec!["a.json", "a.toml", "a.env"]),
    ) {
        let content = if file == "a.json" { format!("{{{content}}}") } else { content };
        let fixture = Fixture::named(file, &content);
        match patch::plan(&fixture.path, KEY, 20) {
            Err(error) => {
                prop_assert!(!error.to_string().contains("a check of the result failed"), "{error}\n{content:?}");
            }
            Ok(patch) => {
                patch.apply().unwrap();
                let (before, after) = (content.as_bytes(), fixture.read().into_bytes());
                let left = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
                let room = before.len().min(after.len()) - left;
                let right = before.iter().rev().zip(after.iter().rev()).take_while(|(a, b)| a == b).count().min(room);
                prop_assert!(before.len() - left - right <= 3, "{}", patch.diff());
                prop_assert!(patch::plan(&fixture.path, KEY, 20).unwrap().is_noop());
            }
        }
    }

    #[test]
    fn any_mapping_with_a_hole_is_patched_or_refused(content in mapping(), at in 0..400usize, piece in soup()) {
        let at = (0..=at.min(content.len())).rev().find(|at| content.is_char_boundary(*at)).unwrap_or(0);
        let _ = patch_anything(&format!("{}{piece}{}", &content[..at], &content[at..]), KEY, 20);
    }
}
