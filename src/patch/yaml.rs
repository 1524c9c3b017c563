//! YAML, including flow style and thus JSON, located by the source spans of a parser.

use std::collections::HashMap;
use std::ops::Range;

use granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span, StructureStyle};
use serde_yaml::Value;

use super::error::{PatchError, Reason};
use super::format::{Edit, Format, Invalid};
use super::json;
use super::request::{Key, Request};
use super::text::{BYTE_ORDER_MARK, is_null, is_placeholder, line_break, line_end, line_start, position, skip_blanks};

/// Maximum number of values, with the values of an alias counted at each use. Stops an alias bomb in linear time.
const MAX_VALUES: u64 = 1_000_000;

const BLANKS: [char; 2] = [' ', '\t'];

/// Strips a byte order mark, which serde_yaml counts as a column: keys on the first line would seem indented.
pub(super) fn parse(text: &str) -> Result<Value, Invalid> {
    serde_yaml::from_str(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)).map_err(|error| Invalid {
        at: Some(error.location().map_or((1, 1), |at| (at.line(), at.column()))),
        why: error.to_string(),
    })
}

/// The lines of a block that holds the key, starting with the name at `depth`.
pub(super) fn lines(key: &Key, depth: usize, indentation: &str, value: u64) -> String {
    let names = key.parents.iter().skip(depth);
    let level = names.len();
    let open: String =
        names.enumerate().map(|(level, name)| format!("{indentation}{}{name}:\n", "  ".repeat(level))).collect();
    format!("{open}{indentation}{}{}: {value}", "  ".repeat(level), key.last)
}

pub(super) fn find(request: &Request, text: &str) -> Result<Edit, PatchError> {
    Document::read(request, text)?.find()
}

/// The only document of the file. Nodes refer to each other by index, so that no input causes deep recursion.
struct Document<'a> {
    request: &'a Request,
    text: &'a str,
    nodes: Vec<Node>,
    /// Used while reading: the nodes that are not yet complete, and the node of each anchor.
    open: Vec<usize>,
    anchors: HashMap<usize, usize>,
}

struct Node {
    kind: Kind,
    span: Range<usize>,
    anchored: bool,
    tagged: bool,
    /// Child nodes; for a mapping, keys and values in turn.
    children: Vec<usize>,
    /// Number of values with aliases expanded, including itself; 0 until the node is complete.
    weight: u64,
}

enum Kind {
    Scalar { text: String, style: ScalarStyle },
    Alias,
    Mapping { flow: bool },
    Sequence { flow: bool },
}

impl Node {
    fn has_no_text(&self) -> bool {
        self.span.is_empty()
    }

    fn is_flow(&self) -> bool {
        matches!(self.kind, Kind::Mapping { flow: true })
    }

    /// The reason why this value may be shared with other places or may mean something else than its text.
    fn not_plain(&self, what: String) -> Option<Reason> {
        match self.kind {
            Kind::Alias => Some(Reason::Alias(what)),
            _ if self.anchored => Some(Reason::Anchor(what)),
            _ if self.tagged => Some(Reason::Tagged(what)),
            _ => None,
        }
    }

    fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, style: ScalarStyle::Plain } if is_null(text))
    }

    fn describe(&self) -> &'static str {
        match &self.kind {
            Kind::Scalar { .. } if self.is_null() => "empty",
            Kind::Scalar { .. } => "a single value",
            Kind::Alias => "an alias",
            Kind::Mapping { .. } => "a mapping",
            Kind::Sequence { .. } => "a list",
        }
    }
}

/// A mapping on the way to the key, `depth` names below the root.
struct Mapping<'d> {
    node: &'d Node,
    depth: usize,
    entries: Vec<Entry<'d>>,
}

#[derive(Clone, Copy)]
struct Entry<'d> {
    name: &'d str,
    style: ScalarStyle,
    key: &'d Node,
    value: &'d Node,
}

impl<'d> Mapping<'d> {
    fn get(&self, name: &str) -> Option<Entry<'d>> {
        self.entries.iter().find(|entry| entry.name == name).copied()
    }
}

// ---- Reading ------------------------------------------------------------------------------------------------

impl<'a> Document<'a> {
    fn read(request: &'a Request, text: &'a str) -> Result<Self, PatchError> {
        let mut options = Options::default();
        // Comments stay because the edit does not touch them. As events they would only count towards a limit.
        options.set_emit_comments(false);
        let mut document = Document { request, text, nodes: Vec::new(), open: Vec::new(), anchors: HashMap::new() };
        for next in Parser::new_from_str_with_options(text, options) {
            let (event, span) = next.map_err(|error| document.scan_error(&error))?;
            document.take(event, span)?;
        }
        // Unquoted, `key: {{ name }}` is valid YAML (a mapping with a mapping as its key), but is never intended.
        match document.nodes.iter().find(|node| node.is_flow() && text[node.span.start..].starts_with("{{")) {
            Some(node) => {
                let at = Some(position(text, node.span.start));
                Err(request.refuse(at, Reason::Placeholder("`{{ … }}`".to_owned())))
            }
            None => Ok(document),
        }
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), PatchError> {
        let span = span.byte_range().unwrap_or_default();
        let is_flow = |style| style == StructureStyle::Flow;
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(..) if self.nodes.is_empty() => Ok(()),
            Event::DocumentStart(..) => Err(self.refuse(span.start, Reason::Documents)),
            Event::Scalar(text, style, anchor, tag) => {
                let kind = Kind::Scalar { text: text.into_owned(), style };
                self.add_node(kind, span, anchor, tag.is_some())?;
                self.close()
            }
            Event::Alias(anchor) => {
                let weight = self.anchors.get(&anchor).map_or(0, |node| self.nodes[*node].weight);
                self.add_node(Kind::Alias, span, 0, false)?;
                if let Some(alias) = self.nodes.last_mut() {
                    // An alias within the node that it refers to would expand forever.
                    alias.weight = if weight == 0 { MAX_VALUES } else { weight };
                }
                self.close()
            }
            Event::MappingStart(style, anchor, tag) => {
                self.add_node(Kind::Mapping { flow: is_flow(style) }, span, anchor, tag.is_some())
            }
            Event::SequenceStart(style, anchor, tag) => {
                self.add_node(Kind::Sequence { flow: is_flow(style) }, span, anchor, tag.is_some())
            }
            Event::MappingEnd | Event::SequenceEnd => {
                if let Some(node) = self.open.last() {
                    self.nodes[*node].span.end = span.end;
                }
                self.close()
            }
            _ => Err(self.refuse(span.start, Reason::Unclear)),
        }
    }

    fn add_node(&mut self, kind: Kind, span: Range<usize>, anchor: usize, tagged: bool) -> Result<(), PatchError> {
        let index = self.nodes.len();
        if index as u64 >= MAX_VALUES {
            return Err(self.too_many_values());
        }
        if let Some(parent) = self.open.last() {
            self.nodes[*parent].children.push(index);
        }
        if anchor != 0 {
            self.anchors.insert(anchor, index);
        }
        self.open.push(index);
        self.nodes.push(Node { kind, span, anchored: anchor != 0, tagged, children: Vec::new(), weight: 0 });
        Ok(())
    }

    fn close(&mut self) -> Result<(), PatchError> {
        let Some(index) = self.open.pop() else { return Ok(()) };
        let node = &self.nodes[index];
        let inner: u64 = node.children.iter().map(|child| self.nodes[*child].weight).sum();
        self.nodes[index].weight = node.weight + inner + 1;
        if self.nodes[index].weight > MAX_VALUES { Err(self.too_many_values()) } else { Ok(()) }
    }

    fn too_many_values(&self) -> PatchError {
        self.request.refuse(None, Reason::TooManyValues(MAX_VALUES))
    }

    fn scan_error(&self, error: &ScanError) -> PatchError {
        let at = error.marker().byte_offset().filter(|at| self.text.is_char_boundary(*at)).unwrap_or(self.text.len());
        let start = line_start(self.text, at);
        let line = &self.text[start..line_end(self.text, at)];
        if line[..skip_blanks(line, 0)].contains('\t') {
            return self.refuse(start, Reason::Tab);
        }
        let (at, why) = (Some(position(self.text, at)), error.info().to_owned());
        if is_placeholder(line) {
            let by_hand = lines(self.key(), 0, "", self.request.value);
            let hint = format!("the line has a placeholder: change the template, or set it by hand:\n\n{by_hand}");
            return self.request.refuse_with(at, Reason::Invalid { format: "YAML", why }, hint);
        }
        self.request.invalid(Invalid { at, why })
    }

    // ---- Finding the place --------------------------------------------------------------------------------------

    fn find(&self) -> Result<Edit, PatchError> {
        let root = self.nodes.first().filter(|root| !root.is_null() || root.anchored || root.tagged);
        let root = root.ok_or_else(|| self.request.refuse(None, Reason::Empty))?;
        let mut mapping = self.mapping(root, 0)?;
        let mut parent = None;
        for name in &self.key().parents {
            let Some(entry) = mapping.get(name) else { return Err(self.no_parent(&mapping)) };
            self.check_key(&mapping, entry)?;
            mapping = self.mapping(entry.value, mapping.depth + 1)?;
            parent = Some(entry);
        }
        match mapping.get(&self.key().last) {
            Some(entry) => self.replace(&mapping, entry),
            None => self.add(&mapping, parent),
        }
    }

    /// The entries of a mapping on the way to the key. Refuses a mapping unless its keys are all scalars and unique.
    fn mapping<'d>(&'d self, node: &'d Node, depth: usize) -> Result<Mapping<'d>, PatchError> {
        let mut mapping = Mapping { node, depth, entries: Vec::with_capacity(node.children.len() / 2) };
        let what = self.key().parent_name(depth);
        let reason = node.not_plain(what.clone()).or_else(|| match &node.kind {
            Kind::Scalar { text, .. } if is_placeholder(text) => Some(Reason::Placeholder(what)),
            Kind::Mapping { .. } => None,
            _ => Some(Reason::NotAMapping { what, found: node.describe() }),
        });
        if let Some(reason) = reason {
            return Err(self.refuse_with(node.span.start, reason, self.under(&mapping)));
        }
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for pair in node.children.chunks_exact(2) {
            let (key, value) = (&self.nodes[pair[0]], &self.nodes[pair[1]]);
            let (Kind::Scalar { text, style }, false) = (&key.kind, key.has_no_text()) else {
                return Err(self.refuse_with(key.span.start, Reason::ComplexKey, self.under(&mapping)));
            };
            if let Some(first) = seen.insert(text, key.span.start) {
                let first_line = position(self.text, first).0;
                let reason = Reason::Duplicate { name: text.clone(), first_line };
                let hint = format!("keep one of the two, and {}", self.under(&mapping));
                return Err(self.refuse_with(key.span.start, reason, hint));
            }
            mapping.entries.push(Entry { name: text, style: *style, key, value });
        }
        Ok(mapping)
    }

    fn no_parent(&self, mapping: &Mapping<'_>) -> PatchError {
        if let Some(merge) = self.merge_of(mapping) {
            return merge;
        }
        let place = match mapping.depth {
            0 => "at the top level".to_owned(),
            depth => format!("under {}", self.key().parent_name(depth)),
        };
        let hint = format!("add by hand, {place}:\n\n{}", self.lines_under(mapping));
        let parent = self.key().parents[..=mapping.depth].join(".");
        self.request.refuse_with(None, Reason::NoParent(parent), hint)
    }

    /// A merge matters only if the key is missing, since an explicit key overrides it.
    fn merge_of(&self, mapping: &Mapping<'_>) -> Option<PatchError> {
        let merge = mapping.get("<<").filter(|entry| entry.style == ScalarStyle::Plain)?;
        let reason = Reason::Merge(self.key().parent_name(mapping.depth));
        Some(self.refuse_with(merge.key.span.start, reason, self.under(mapping)))
    }

    /// The key must be written the usual way: `name:` on one line and, in a block, first on its line.
    fn check_key(&self, mapping: &Mapping<'_>, entry: Entry<'_>) -> Result<(), PatchError> {
        let refuse = |reason| Err(self.refuse(entry.key.span.start, reason));
        if let Some(reason) = entry.key.not_plain(format!("the key `{}`", entry.name)) {
            return refuse(reason);
        }
        if mapping.node.is_flow() {
            if self.has_question_mark(mapping, entry) {
                return refuse(Reason::ComplexKey);
            }
        } else if self.indentation(entry.key).is_none() {
            return refuse(self.why_not_indented(entry.key));
        }
        if self.colon(entry).is_none() { refuse(Reason::ComplexKey) } else { Ok(()) }
    }

    /// The text before a key on its line, if that is only spaces.
    fn indentation(&self, key: &Node) -> Option<&str> {
        Some(self.before_on_line(key)).filter(|prefix| prefix.bytes().all(|byte| byte == b' '))
    }

    fn before_on_line(&self, node: &Node) -> &str {
        &self.text[line_start(self.text, node.span.start)..node.span.start]
    }

    fn why_not_indented(&self, key: &Node) -> Reason {
        match self.before_on_line(key).trim_start().chars().next() {
            None => Reason::Tab,
            Some('?') => Reason::ComplexKey,
            Some(_) => Reason::Unclear,
        }
    }

    fn shown_from(&self, entry: Entry<'_>) -> usize {
        let before = self.before_on_line(entry.key);
        entry.key.span.start - (before.len() - before.trim_end_matches(BLANKS).len())
    }

    /// Whether a key in braces is introduced by `?`. Otherwise only blanks, a comma and comments separate two members.
    fn has_question_mark(&self, mapping: &Mapping<'_>, entry: Entry<'_>) -> bool {
        let before = mapping.entries.iter().take_while(|other| other.name != entry.name).last();
        let start = before.map_or(mapping.node.span.start + 1, |before| before.value.span.end);
        let gap = self.text.get(start..entry.key.span.start).unwrap_or("?");
        gap.split(['\n', '\r']).any(|line| line.split('#').next().is_some_and(|code| code.contains('?')))
    }

    /// Offset of the colon after a key. Only blanks may come between, in JSON also line breaks; otherwise `None`.
    fn colon(&self, entry: Entry<'_>) -> Option<usize> {
        let at = match self.request.format {
            Format::Json => self.text.len() - self.text[entry.key.span.end..].trim_start().len(),
            _ => skip_blanks(self.text, entry.key.span.end),
        };
        self.text[at..].starts_with(':').then_some(at)
    }

    /// Whether the rest of the line is only blanks and a comment.
    fn only_comment_follows(&self, offset: usize) -> bool {
        let rest = &self.text[offset..line_end(self.text, offset)];
        let content = rest.trim_start_matches(BLANKS);
        content.is_empty() || (content.starts_with('#') && content.len() < rest.len())
    }

    fn replace(&self, mapping: &Mapping<'_>, entry: Entry<'_>) -> Result<Edit, PatchError> {
        self.check_key(mapping, entry)?;
        let value = entry.value;
        let refuse = |reason| self.refuse_with(value.span.start, reason, self.line_by_hand(mapping, entry));
        if let Some(reason) = value.not_plain("its value".to_owned()) {
            return Err(refuse(reason));
        }
        let (text, style) = match &value.kind {
            Kind::Scalar { style: ScalarStyle::Literal | ScalarStyle::Folded, .. } => {
                return Err(refuse(Reason::BlockScalar));
            }
            Kind::Scalar { text, style } => (text, *style),
            _ => return Err(refuse(Reason::Collection(value.describe()))),
        };
        let quoted = style != ScalarStyle::Plain;
        if !quoted && value.has_no_text() {
            return self.fill(mapping, entry);
        }
        let edit =
            Edit::replace(self.text, value.span.clone(), text, quoted, self.shown_from(entry)).map_err(refuse)?;
        let before = self.before_on_line(value);
        if before.trim_start().is_empty() && before.contains('\t') && !mapping.node.is_flow() {
            return Err(refuse(Reason::Tab));
        }
        Ok(edit)
    }

    /// Fills in a `key:` without a value: the value goes right after the colon, before any blanks and comment.
    fn fill(&self, mapping: &Mapping<'_>, entry: Entry<'_>) -> Result<Edit, PatchError> {
        let ends = |at| {
            let ends_member = self.text[skip_blanks(self.text, at)..].starts_with([',', '}']);
            (ends_member && mapping.node.is_flow()) || self.only_comment_follows(at)
        };
        match self.colon(entry).map(|colon| colon + 1).filter(|at| ends(*at)) {
            Some(at) => Ok(Edit { shown: self.shown_from(entry), ..Edit::insert(at, " ".to_owned()) }),
            None => Err(self.refuse_with(entry.key.span.start, Reason::Unclear, self.line_by_hand(mapping, entry))),
        }
    }

    fn add(&self, mapping: &Mapping<'_>, parent: Option<Entry<'_>>) -> Result<Edit, PatchError> {
        if let Some(merge) = self.merge_of(mapping) {
            return Err(merge);
        }
        if mapping.node.is_flow() { self.add_in_braces(mapping, parent) } else { self.add_in_block(mapping, parent) }
    }

    /// Adds the key after the last entry that certainly ends on a line, which nested blocks and block scalars do not.
    /// If there is no such entry, adds it as the first one.
    fn add_in_block(&self, mapping: &Mapping<'_>, parent: Option<Entry<'_>>) -> Result<Edit, PatchError> {
        // The line break comes first, so that a file without a final line break stays that way.
        let line_after = |at, indentation, style| {
            let name = quoted_like(&self.key().last, style);
            Edit::insert(at, format!("{}{indentation}{name}: ", line_break(self.text, at)))
        };
        let last = mapping.entries.iter().rev().find_map(|entry| {
            let indentation = self.indentation(entry.key).filter(|_| self.colon(*entry).is_some())?;
            Some(line_after(self.last_line_end(*entry)?, indentation, entry.style))
        });
        if let Some(edit) = last {
            return Ok(edit);
        }
        let refuse = |node: &Node, reason| Err(self.refuse_with(node.span.start, reason, self.under(mapping)));
        let Some(first) = mapping.entries.first() else { return refuse(mapping.node, Reason::Unclear) };
        let Some(indentation) = self.indentation(first.key) else {
            return refuse(first.key, self.why_not_indented(first.key));
        };
        // A `?` may stand on a line above its key.
        if self.colon(*first).is_none() {
            return refuse(first.key, Reason::ComplexKey);
        }
        let Some(parent) = parent else {
            let at = first.key.span.start - indentation.len();
            let lead = format!("{indentation}{}: ", quoted_like(&self.key().last, first.style));
            let tail = line_break(self.text, line_end(self.text, at));
            return Ok(Edit { tail, ..Edit::insert(at, lead) });
        };
        match self.colon(parent).map(|colon| colon + 1).filter(|at| self.only_comment_follows(*at)) {
            Some(at) => Ok(line_after(line_end(self.text, at), indentation, first.style)),
            None => refuse(mapping.node, Reason::Unclear),
        }
    }

    /// End of the line on which an entry ends, if it is certain that the entry ends there.
    fn last_line_end(&self, entry: Entry<'_>) -> Option<usize> {
        let on_a_line = match &entry.value.kind {
            Kind::Scalar { style, .. } => !matches!(style, ScalarStyle::Literal | ScalarStyle::Folded),
            Kind::Alias => true,
            Kind::Mapping { flow } | Kind::Sequence { flow } => *flow,
        };
        let end = if entry.value.has_no_text() { self.colon(entry)? + 1 } else { entry.value.span.end };
        (on_a_line && self.only_comment_follows(end)).then(|| line_end(self.text, end))
    }

    /// Adds the key after the last member, in the style of that member.
    fn add_in_braces(&self, mapping: &Mapping<'_>, parent: Option<Entry<'_>>) -> Result<Edit, PatchError> {
        let unclear = |node: &Node| Err(self.refuse_with(node.span.start, Reason::Unclear, self.under(mapping)));
        let braces = self.text.get(mapping.node.span.clone()).unwrap_or_default();
        let Some(inside) = braces.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
            return unclear(mapping.node);
        };
        let Some(last) = mapping.entries.last() else {
            if !inside.trim_matches([' ', '\t', '\n', '\r']).is_empty() {
                return unclear(mapping.node);
            }
            let style = parent.map_or(ScalarStyle::DoubleQuoted, |entry| entry.style);
            let name = quoted_like(&self.key().last, style);
            return Ok(Edit::insert(mapping.node.span.start + 1, format!("{name}: ")));
        };
        if last.value.has_no_text() {
            return unclear(last.key);
        }
        let at = last.value.span.end;
        let end = line_end(self.text, at);
        let name = quoted_like(&self.key().last, last.style);
        let colon = self.text.get(last.key.span.end..last.value.span.start).unwrap_or_default();
        let colon = if last.style == ScalarStyle::Plain || colon.contains(['\n', '\r']) { ": " } else { colon };
        let prefix = self.before_on_line(last.key);
        let own_line = prefix.trim_start_matches(BLANKS).is_empty()
            && self.text[at..end].trim_matches([' ', '\t', ',', '}']).is_empty();
        let separator = match colon {
            _ if own_line => format!(",{}{prefix}", line_break(self.text, end)),
            ":" => ",".to_owned(),
            _ => ", ".to_owned(),
        };
        Ok(Edit::insert(at, format!("{separator}{name}{colon}")))
    }

    // ---- Refusals -----------------------------------------------------------------------------------------------

    fn key(&self) -> &Key {
        &self.request.key
    }

    fn refuse(&self, offset: usize, reason: Reason) -> PatchError {
        self.request.refuse(Some(position(self.text, offset)), reason)
    }

    fn refuse_with(&self, offset: usize, reason: Reason, hint: String) -> PatchError {
        self.request.refuse_with(Some(position(self.text, offset)), reason, hint)
    }

    /// Hint for a problem with a mapping: what to write in it, in its own style.
    fn under(&self, mapping: &Mapping<'_>) -> String {
        let place = match mapping.depth {
            0 => String::new(),
            depth => format!(" under {}", self.key().parent_name(depth)),
        };
        format!("set it by hand{place}:\n\n{}", self.lines_under(mapping))
    }

    fn lines_under(&self, Mapping { node, depth, .. }: &Mapping<'_>) -> String {
        if node.is_flow() {
            return json::members(self.key(), *depth, self.request.value);
        }
        let first = node.children.first().filter(|_| matches!(node.kind, Kind::Mapping { .. }));
        let indentation = first.and_then(|key| self.indentation(&self.nodes[*key]));
        let usual = "  ".repeat(*depth);
        lines(self.key(), *depth, indentation.unwrap_or(&usual), self.request.value)
    }

    /// Hint for a problem with the value: the line as it should read. In braces, only the member is shown, because
    /// the rest of the line may hold secrets.
    fn line_by_hand(&self, mapping: &Mapping<'_>, entry: Entry<'_>) -> String {
        let line = position(self.text, entry.key.span.start).0;
        let member = format!("{}: {}", &self.text[entry.key.span.clone()], self.request.value);
        if mapping.node.is_flow() {
            return format!("change it by hand on line {line} to:\n\n{member}");
        }
        format!("change line {line} by hand to:\n\n{}{member}", self.before_on_line(entry.key))
    }
}

fn quoted_like(name: &str, style: ScalarStyle) -> String {
    match style {
        ScalarStyle::DoubleQuoted => format!("\"{name}\""),
        ScalarStyle::SingleQuoted => format!("'{name}'"),
        _ => name.to_owned(),
    }
}
