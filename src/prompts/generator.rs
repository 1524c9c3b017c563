//! Generates code snippets from a seed, `templates/` and `words.json`. Only `generate-test-data` runs it.
//!
//! A `.j2` file holds the templates of one language, each below a header (`==== name`). `«word»` is replaced by a word
//! of the snippet's domain in the case of the name (see `Generator::words`), `«pick(a, b)»` by a random argument, and
//! `‹if …›` is a statement. Import lines come first, followed by a blank line; the imports of all templates are merged.
//! No two templates of a language may define the same name.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Rest;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};
use parking_lot::Mutex;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

const WORDS: &str = include_str!("words.json");

const SCHEMA: &str = "llm-concurrency/snippets/v1";

pub(super) struct Language {
    pub name: &'static str,
    /// Name to use in a sentence.
    pub noun: &'static str,
    pub fence: &'static str,
    percent: usize,
    templates: &'static str,
}

pub(super) const LANGUAGES: [Language; 4] = [
    Language::new("javascript", "JavaScript", "js", 30, include_str!("templates/javascript.j2")),
    Language::new("typescript", "TypeScript", "ts", 30, include_str!("templates/typescript.j2")),
    Language::new("python", "Python", "python", 20, include_str!("templates/python.j2")),
    Language::new("react", "React", "tsx", 20, include_str!("templates/react.j2")),
];

type Text = &'static str;

impl Language {
    const fn new(name: Text, noun: Text, fence: Text, percent: usize, templates: Text) -> Self {
        Self { name, noun, fence, percent, templates }
    }

    fn templates(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.templates.split("==== ").filter_map(|template| template.split_once('\n'))
    }

    fn is_python(&self) -> bool {
        self.name == "python"
    }
}

struct Size {
    name: &'static str,
    percent: usize,
    /// Maximum number of lines, and the range from which a snippet's target number of lines is drawn.
    longest: usize,
    target: RangeInclusive<usize>,
}

const SIZES: [Size; 3] = [
    Size { name: "small", percent: 50, longest: 22, target: 8..=17 },
    Size { name: "medium", percent: 35, longest: 60, target: 32..=54 },
    Size { name: "large", percent: 15, longest: 180, target: 95..=165 },
];

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snippet {
    /// Name by position: `snippet-0001`, `snippet-0002` and so on.
    pub id: String,
    pub language: &'static str,
    pub size: &'static str,
    /// The code, with a final newline.
    pub code: String,
}

impl Snippet {
    /// The text to send, the same that [`load`](super::load) makes of the snippet.
    pub fn prompt(&self) -> String {
        super::ask_about(&self.code, self.language)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnippetFile {
    schema: &'static str,
    seed: u64,
    /// The snippets in the order in which they are sent.
    pub snippets: Vec<Snippet>,
}

/// Generates `count` distinct snippets: 30 % JavaScript, 30 % TypeScript, 20 % Python and 20 % React; of each language,
/// 50 % are small, 35 % medium and 15 % large. Shares are rounded by largest remainder, so that they always add up.
/// The order is shuffled, so that a short run sees a mix of languages and sizes.
///
/// The same seed gives the same bytes on every platform: xoshiro256++ is one of rand's *named portable generators*,
/// and rand changes the values that its functions derive from the stream in breaking releases only.
pub fn generate(seed: u64, count: usize) -> SnippetFile {
    let mut generator = Generator::new(seed);
    let mut plan = plan(count);
    plan.shuffle(&mut *generator.dice.lock());
    let snippet = |((language, size), index): ((&'static Language, &'static Size), usize)| Snippet {
        id: format!("snippet-{index:04}"),
        language: language.name,
        size: size.name,
        code: generator.unseen(language, size),
    };
    SnippetFile { schema: SCHEMA, seed, snippets: plan.into_iter().zip(1..).map(snippet).collect() }
}

fn plan(count: usize) -> Vec<(&'static Language, &'static Size)> {
    let mut plan = Vec::with_capacity(count);
    for (language, share) in LANGUAGES.iter().zip(largest_remainder(count, LANGUAGES.each_ref().map(|l| l.percent))) {
        for (size, n) in SIZES.iter().zip(largest_remainder(share, SIZES.each_ref().map(|s| s.percent))) {
            plan.extend(std::iter::repeat_n((language, size), n));
        }
    }
    plan
}

/// Splits `total` by percentages that add up to 100 (Hare quota; on equal remainders, the earlier part wins).
fn largest_remainder<const N: usize>(total: usize, percent: [usize; N]) -> [usize; N] {
    let mut parts = percent.map(|p| total / 100 * p + total % 100 * p / 100);
    let mut order: Vec<usize> = (0..N).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(total % 100 * percent[i] % 100));
    let missing = total - parts.iter().sum::<usize>();
    order[..missing].iter().for_each(|&i| parts[i] += 1);
    parts
}

/// The vocabulary of a subject area. Each entry is one or more words.
#[derive(Deserialize)]
struct Domain {
    entity: &'static str,
    entities: &'static str,
    numbers: [&'static str; 3],
    texts: [&'static str; 3],
    date: &'static str,
    states: [&'static str; 3],
}

/// The generator's state, which carries over from one snippet to the next.
struct Generator {
    dice: Arc<Mutex<Xoshiro256PlusPlus>>,
    domains: Vec<Domain>,
    environment: Environment<'static>,
    /// Number of times that each template has been used for each size, keyed by both names.
    uses: HashMap<(&'static str, &'static str), usize>,
    seen: HashSet<String>,
}

impl Generator {
    fn new(seed: u64) -> Self {
        let dice = Arc::new(Mutex::new(Xoshiro256PlusPlus::seed_from_u64(seed)));
        let environment = environment(Arc::clone(&dice)).expect("the templates are tested");
        let domains = serde_json::from_str(WORDS).expect("the words are tested");
        Self { dice, domains, environment, uses: HashMap::new(), seen: HashSet::new() }
    }

    /// A snippet that differs from all previous ones. The templates have far more outcomes than anyone needs; the
    /// numbered comment at the top is a safeguard that makes any count terminate.
    fn unseen(&mut self, language: &'static Language, size: &'static Size) -> String {
        let mut attempts = 0;
        loop {
            let mut code = self.compose(language, size);
            if attempts >= 50 {
                let mark = if language.is_python() { "#" } else { "//" };
                code = format!("{mark} Revision {}.\n{code}", self.seen.len() + 1);
            }
            if self.seen.insert(code.clone()) {
                return code;
            }
            attempts += 1;
        }
    }

    /// Combines templates of one domain until the snippet is long enough. The order is random, but the least used
    /// templates come first, so that even a short list of snippets contains them all.
    fn compose(&mut self, language: &'static Language, size: &'static Size) -> String {
        let target = self.dice.lock().random_range(size.target.clone());
        let words = self.words(language);
        let mut order: Vec<_> = language.templates().map(|(name, _)| name).collect();
        order.shuffle(&mut *self.dice.lock());
        order.sort_by_key(|&name| self.uses.get(&(name, size.name)).copied().unwrap_or(0));
        let mut parts = Vec::new();
        for name in order {
            let template = self.environment.get_template(name).expect("listed above");
            parts.push(template.render(&words).expect("the templates are tested"));
            if assemble(&parts, language).lines().count() <= size.longest {
                *self.uses.entry((name, size.name)).or_default() += 1;
            } else {
                parts.pop();
            }
            if assemble(&parts, language).lines().count() >= target {
                break;
            }
        }
        assemble(&parts, language)
    }

    /// The words of one snippet: a domain, and the fields and states that it uses. The case of a name selects the
    /// case of its word: `unitPrice`, `UnitPrice` or `UNIT_PRICE`. The suffixes `_words` (`unit price`, `Unit price`),
    /// `_column` (`unit_price`) and `_path` (`unit-price`) select other forms.
    fn words(&self, language: &Language) -> BTreeMap<String, String> {
        let mut dice = self.dice.lock();
        let domain = self.domains.choose(&mut *dice).expect("there are words");
        let [mut numbers, mut texts, mut states] = [domain.numbers, domain.texts, domain.states];
        [&mut numbers, &mut texts, &mut states].into_iter().for_each(|list| list.shuffle(&mut *dice));
        let names = ["entity", "entities", "date", "num", "num2", "text", "text2", "s1", "s2", "s3"];
        let phrases = [domain.entity, domain.entities, domain.date, numbers[0], numbers[1], texts[0], texts[1]];
        let mut words = BTreeMap::new();
        for (name, phrase) in names.into_iter().zip(phrases.into_iter().chain(states)) {
            let snake = phrase.replace(' ', "_");
            let pascal: String = phrase.split(' ').map(capitalised).collect();
            let camel = format!("{}{}", &phrase[..1], &pascal[1..]);
            words.insert(name.to_owned(), if language.is_python() { snake.clone() } else { camel });
            words.insert(capitalised(name), pascal);
            words.insert(name.to_uppercase(), snake.to_uppercase());
            words.insert(format!("{name}_words"), phrase.to_owned());
            words.insert(format!("{}_words", capitalised(name)), capitalised(phrase));
            words.insert(format!("{name}_column"), snake);
            words.insert(format!("{name}_path"), phrase.replace(' ', "-"));
        }
        words
    }
}

fn capitalised(phrase: &str) -> String {
    format!("{}{}", phrase[..1].to_uppercase(), &phrase[1..])
}

fn environment(dice: Arc<Mutex<Xoshiro256PlusPlus>>) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .variable_delimiters("«", "»")
            .block_delimiters("‹", "›")
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.add_function("pick", move |options: Rest<Value>| options.choose(&mut *dice.lock()).cloned());
    for (name, source) in LANGUAGES.iter().flat_map(Language::templates) {
        environment.add_template(name, source)?;
    }
    Ok(environment)
}

/// Assembles one file from rendered templates: their imports, merged and sorted, then the rest.
fn assemble(rendered: &[String], language: &Language) -> String {
    let is_import = |line: &str| line.starts_with("import ") || line.starts_with("from ");
    // The imported names, keyed by the text before and after them; empty if a whole module is imported.
    let mut imports: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
    let mut parts = vec![String::new()];
    for text in rendered {
        let (head, block) = text.split_once("\n\n").filter(|(head, _)| is_import(head)).unwrap_or(("", text));
        for line in head.lines() {
            // The forms are `import { a, b } from "m";`, `from m import a, b` and `import m`.
            let (before, rest) = line.split_once(" { ").or(line.split_once(" import ")).unwrap_or((line, ""));
            let (names, after) = rest.split_once(" } ").unwrap_or((rest, ""));
            // The key sorts whole modules before imports of names, and each group by module, as isort does.
            let names = names.split(", ").filter(|name| !name.is_empty());
            imports.entry((line.starts_with("from "), after, before)).or_default().extend(names);
        }
        parts.push(block.trim_end().to_owned());
    }
    let lines = imports.into_iter().map(|((_, after, before), names)| {
        let names = Vec::from_iter(names).join(", ");
        match (names.is_empty(), after.is_empty()) {
            (true, _) => before.to_owned(),
            (false, true) => format!("{before} import {names}"),
            (false, false) => format!("{before} {{ {names} }} {after}"),
        }
    });
    parts[0] = lines.collect::<Vec<_>>().join("\n");
    parts.retain(|part| !part.is_empty());
    parts.join(if language.is_python() { "\n\n\n" } else { "\n\n" }) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_within_one_at_any_count() {
        for total in 0..=250 {
            let plan = plan(total);
            assert_eq!(plan.len(), total);
            for (names, percent) in [(&["javascript", "typescript"][..], 60), (&["python"], 20), (&["react"], 20)] {
                let got = plan.iter().filter(|(language, _)| names.contains(&language.name)).count();
                assert!((got * 100).abs_diff(percent * total) < 100, "{got} of {total} for {percent} %");
            }
        }
    }
}
