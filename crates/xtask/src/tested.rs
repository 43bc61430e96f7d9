//! Which tests call which endpoint, read from the tests' sources.
//!
//! A path is found where it is written: as a text, or as a list of its parts. What stands in braces is anything. Names
//! that stand for a text (`const`, `let`), and helpers that add the beginning of a path, are followed within a file and
//! to the helpers that tests share. The method is that of the call around the path, of the helper, or of the call that
//! a name is handed to. Where none is found, a path counts only if the server knows a single method of it.
//! Not here: what the server answers (endpoints.rs). Not a compiler: it may miss a test, and then says too little.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use crate::source;

/// A file with tests in it.
pub(crate) struct TestFile {
    pub(crate) path: String,
    pub(crate) text: String,
    /// Where the tests begin. Constants before them are known to them.
    pub(crate) from: usize,
}

/// A test asks for a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call {
    /// Empty if it is not known.
    pub(crate) method: String,
    /// Segments; what is in braces is anything.
    pub(crate) path: Vec<String>,
    pub(crate) test: String,
    /// It stands in the test itself.
    pub(crate) direct: bool,
}

const METHODS: [(&str, &str); 4] = [("get", "GET"), ("put", "PUT"), ("post", "POST"), ("delete", "DELETE")];
/// Helpers that make a path of its parts, below this.
const LISTS: [&str; 2] = ["v3", "path_of"];
const LIST_START: &str = "/_matrix/client/v3";
/// So far from a test helpers are followed.
const DEPTH: usize = 6;
/// So many helpers may each put something before a path.
const NESTED: usize = 3;
/// So many texts come of one whose names stand for several.
const MANY: usize = 40;

struct File<'a> {
    path: &'a str,
    code: String,
    /// Where the tests begin.
    from: usize,
    strings: Vec<(usize, String)>,
    /// The texts that a name stands for, with where they are.
    names: Vec<(usize, String, String)>,
    functions: Vec<Function>,
}

/// A function, or a closure with a name.
#[derive(Clone, Debug)]
struct Function {
    name: String,
    is_test: bool,
    is_closure: bool,
    /// To the end of the body, in the file's text.
    span: Range<usize>,
}

/// A function, by file and place in it.
type At = (usize, usize);

/// All calls of all tests.
pub(crate) fn calls(files: &[TestFile]) -> Calls {
    let sources = Sources::new(files.iter().map(File::read).collect());
    let mut calls = Calls::default();
    for (index, file) in sources.files.iter().enumerate() {
        for (place, function) in file.functions.iter().enumerate().filter(|(_, function)| function.is_test) {
            let test = format!("{}::{}", file.module(), function.name);
            for (helper, depth) in sources.reach((index, place)) {
                let known = sources.known(helper);
                let found = known.paths.iter().cloned();
                let call = |(method, path)| Call { method, path, test: test.clone(), direct: depth == 0 };
                calls.paths.extend(found.map(call));
                let handed = sources.files[helper.0].handed(&sources.function(helper).span);
                calls.handlers.extend(handed.map(|name| (file.module(), name.to_owned(), test.clone())));
            }
        }
        if file.is_driver() {
            let call = |(method, path)| Call { method, path, test: file.module(), direct: true };
            calls.paths.extend(file.lists().into_iter().map(call));
        }
    }
    calls
}

/// What tests ask for.
#[derive(Default)]
pub(crate) struct Calls {
    pub(crate) paths: BTreeSet<Call>,
    /// Names that tests hand to helpers, with the module they are in: a handler may be among them.
    pub(crate) handlers: BTreeSet<(String, String, String)>,
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_constant(name: &str) -> bool {
    !name.chars().any(char::is_lowercase)
}

/// The word that a text ends with.
fn last_word(text: &str) -> &str {
    &text[text.rfind(|c| !is_word(c)).map_or(0, |at| at + text[at..].chars().next().map_or(1, char::len_utf8))..]
}

impl<'a> File<'a> {
    fn read(file: &'a TestFile) -> Self {
        let rust = file.path.ends_with(".rs");
        let code = if rust { source::code_only(&file.text) } else { file.text.clone() };
        // What is in lists of parts is read from the text itself.
        let strings = source::strings(&file.text);
        let mut read =
            File { path: &file.path, code, from: file.from, strings, names: Vec::new(), functions: Vec::new() };
        if rust {
            read.functions = read.all_functions();
            let strings = std::mem::take(&mut read.strings);
            for (at, text) in &strings {
                read.names.extend(read.bound_to(*at).into_iter().map(|name| (*at, name, text.clone())));
            }
            read.strings = strings;
        }
        read
    }

    /// A simulation or a client's scenarios: no tests of their own, but what they do is judged.
    fn is_driver(&self) -> bool {
        self.path.starts_with("crates/sim/src/") || self.path.starts_with("tests/clients/")
    }

    /// How a test is named: by where it stands.
    fn module(&self) -> String {
        let path = self.path.trim_start_matches("crates/").trim_end_matches(".rs").replace("/src/", "/");
        path.trim_start_matches("homeserver/").replace('/', "::")
    }

    fn all_functions(&self) -> Vec<Function> {
        let mut found = Vec::new();
        for (name, span) in source::function_spans(&self.code) {
            let before = self.code[..span.start].rfind(['}', ';']).map_or(0, |at| at + 1);
            let head = &self.code[before..span.start];
            let is_test = head.contains("test]") || head.contains("::test(") || self.in_proptest(span.start);
            if span.start >= self.from {
                found.push(Function { name, is_test, is_closure: false, span });
            }
        }
        for (at, _) in self.code.match_indices("let ").filter(|(at, _)| *at >= self.from) {
            found.extend(self.closure(at + 4));
        }
        found
    }

    fn in_proptest(&self, at: usize) -> bool {
        let head = &self.code[..at];
        let open = |start: usize| self.code[start..at].matches('{').count() > self.code[start..at].matches('}').count();
        head.rfind("proptest! {").is_some_and(open)
    }

    /// The closure that a name is given to, if it is one.
    fn closure(&self, at: usize) -> Option<Function> {
        let rest = &self.code[at..];
        let name: String = rest.trim_start_matches("mut ").chars().take_while(|c| is_word(*c)).collect();
        let head = &rest[..rest.find(['|', ';', '{', '('])?];
        let start = at + head.len();
        let (_, value) = head.split_once('=')?;
        let opens = value.split_whitespace().all(|word| ["async", "move"].contains(&word));
        let mut depth = 0i32;
        let end = self.code[start..].char_indices().find(|(_, c)| {
            depth += i32::from(matches!(c, '(' | '[' | '{')) - i32::from(matches!(c, ')' | ']' | '}'));
            depth < 0 || (depth == 0 && *c == ';')
        });
        let span = start..start + end?.0;
        (opens && !name.is_empty()).then_some(Function { name, is_test: false, is_closure: true, span })
    }

    /// The names that a text at this place is given to: by `const X ... = "..."`, `let x = ... "..."`, or `for x in [...]`.
    fn bound_to(&self, at: usize) -> Vec<String> {
        let head = self.code[..at].rfind([';', '{', '}']).map_or(&self.code[..at], |start| &self.code[start + 1..at]);
        let head = head.trim_start();
        let head = head.strip_prefix("pub").map_or(head, |rest| rest.trim_start_matches(|c| c != ' ').trim_start());
        let rest = ["let mut ", "let ", "const ", "static "].iter().find_map(|word| head.strip_prefix(word));
        let given = rest.and_then(|rest| {
            let (_, value) = rest.split_once('=')?;
            // What is handed to something else on the way is not what the name stands for.
            let value = value.replace("format!(", "");
            let plain = value.chars().all(|c| " \n&[,".contains(c));
            plain.then(|| rest.chars().take_while(|c| is_word(*c)).collect())
        });
        given.into_iter().chain(self.loop_names(at)).collect()
    }

    /// The names of the loop that goes through the list in which a text stands.
    fn loop_names(&self, at: usize) -> Vec<String> {
        let bytes = self.code.as_bytes();
        let mut depth = 0;
        for index in (0..at).rev() {
            match bytes[index] {
                b')' | b']' | b'}' => depth += 1,
                b'(' | b'[' | b'{' if depth > 0 => depth -= 1,
                b'(' if self.code[..index].ends_with(is_word) && !self.code[..index].ends_with(" in") => {
                    return Vec::new();
                }
                b'(' => {}
                b'[' => {
                    let head = self.code[..index].trim_end_matches(|c: char| c == '&' || c.is_whitespace());
                    let Some(head) = head.strip_suffix(" in") else { return Vec::new() };
                    let Some(start) = head.rfind("for ") else { return Vec::new() };
                    let pattern = head[start + 4..].split(|c| !is_word(c));
                    return pattern.filter(|name| !name.is_empty()).map(str::to_owned).collect();
                }
                b'{' | b';' => return Vec::new(),
                _ => {}
            }
        }
        Vec::new()
    }

    /// The function around a place, the innermost that is no closure.
    fn around(&self, at: usize) -> Range<usize> {
        let around = self.functions.iter().filter(|function| !function.is_closure && function.span.contains(&at));
        around.map(|function| function.span.clone()).min_by_key(ExactSizeIterator::len).unwrap_or(0..0)
    }

    /// The texts with names in braces replaced by what they stand for: names of the same function, and constants.
    fn filled(&self, text: &str, at: usize) -> Vec<String> {
        let mut texts = vec![text.to_owned()];
        let own = self.around(at);
        for (name, values) in self.known_names(&own) {
            let hole = format!("{{{name}}}");
            if !texts.iter().any(|text| text.contains(&hole)) || values.contains(&text) {
                continue;
            }
            let with = |text: &String| values.iter().map(|value| text.replace(&hole, value)).collect::<Vec<_>>();
            texts = texts
                .iter()
                .flat_map(|text| if text.contains(&hole) { with(text) } else { vec![text.clone()] })
                .collect();
            texts.truncate(MANY);
        }
        texts
    }

    /// Names by all that they stand for; those that came last first, since they may be made of others.
    fn known_names(&self, own: &Range<usize>) -> Vec<(&str, Vec<&str>)> {
        let mut known: Vec<(&str, Vec<&str>)> = Vec::new();
        for (at, name, value) in self.names.iter().rev() {
            if own.contains(at) || is_constant(name) {
                match known.iter_mut().find(|(other, _)| other == name) {
                    Some((_, values)) => values.push(value),
                    None => known.push((name, vec![value])),
                }
            }
        }
        known
    }

    /// The names before the brackets that are open at a place, innermost first, within the statement.
    fn callees(&self, at: usize) -> Vec<(&str, usize)> {
        let bytes = self.code.as_bytes();
        let mut found = Vec::new();
        let mut depth = 0;
        for index in (0..at.min(bytes.len())).rev() {
            match bytes[index] {
                b')' | b']' | b'}' => depth += 1,
                b'(' | b'[' | b'{' if depth > 0 => depth -= 1,
                b'(' => found.push((last_word(self.code[..index].trim_end_matches('!')), index)),
                b'{' | b';' => break,
                _ => {}
            }
        }
        found
    }

    /// The method that is said in the brackets that open at a place, or by who is called.
    fn method_of(&self, callee: &str, open: usize) -> Option<&'static str> {
        let arguments: String = self.code[open..].chars().take(60).collect();
        let said = arguments.split_once("Method::").map(|(_, rest)| rest);
        let said = said.and_then(|said| METHODS.iter().find(|(_, method)| said.starts_with(method)));
        said.or_else(|| METHODS.iter().find(|(name, _)| *name == callee)).map(|(_, method)| *method)
    }

    /// Names that are handed on first: `f(name, ...)`.
    fn handed(&self, span: &Range<usize>) -> impl Iterator<Item = &str> {
        let code = &self.code[span.clone()];
        code.match_indices('(').filter_map(|(at, _)| {
            let end = code[at + 1..].find(|c| !is_word(c))?;
            let name = &code[at + 1..at + 1 + end];
            (!name.is_empty() && code[at + 1 + end..].starts_with(',')).then_some(name)
        })
    }

    /// Paths that are written as lists of their parts.
    fn lists(&self) -> Vec<(String, Vec<String>)> {
        let mut found = Vec::new();
        for list in LISTS {
            for (at, _) in self.code.match_indices(&format!("{list}(")) {
                let start = at + list.len() + 1;
                let Some(end) = self.code[start..].find(')').map(|end| start + end) else { continue };
                let mut path = segments(LIST_START);
                let parts = self.code[start..end].trim_start_matches("&[").trim_end_matches(']');
                let mut offset = end - self.code[start..end].trim_start_matches("&[").len();
                for part in parts.split(',') {
                    let text = self.strings.iter().find(|(at, _)| (offset..offset + part.len()).contains(at));
                    offset += part.len() + 1;
                    match text {
                        Some((_, text)) => path.push(text.clone()),
                        None if part.trim().is_empty() => {}
                        None => path.push("{}".to_owned()),
                    }
                }
                let around = self.callees(at);
                let method = around.iter().find_map(|(callee, open)| self.method_of(callee, *open));
                found.push((method.unwrap_or_default().to_owned(), path));
            }
        }
        found
    }

    /// Where a name is used.
    fn uses<'s>(&'s self, name: &'s str, span: &Range<usize>) -> impl Iterator<Item = usize> + 's {
        let (start, code) = (span.start, &self.code[span.clone()]);
        code.match_indices(name).map(|(at, _)| at).filter_map(move |at| {
            let whole = !code[..at].ends_with(is_word) && !code[at + name.len()..].starts_with(is_word);
            whole.then_some(start + at)
        })
    }
}

struct Sources<'a> {
    files: Vec<File<'a>>,
    /// Helpers by name.
    helpers: BTreeMap<String, Vec<At>>,
    /// Constants by module and name.
    constants: BTreeMap<(String, String), Vec<String>>,
    /// What was found out about a function.
    known: RefCell<BTreeMap<At, Rc<Known>>>,
}

struct Known {
    calls: Vec<At>,
    paths: Vec<(String, Vec<String>)>,
}

impl<'a> Sources<'a> {
    fn new(files: Vec<File<'a>>) -> Self {
        let mut helpers: BTreeMap<String, Vec<At>> = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for (place, function) in file.functions.iter().enumerate().filter(|(_, function)| !function.is_test) {
                helpers.entry(function.name.clone()).or_default().push((index, place));
            }
        }
        let mut constants: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for file in &files {
            let stem = file.path.trim_end_matches(".rs").rsplit('/').next().unwrap_or_default();
            for (_, name, value) in file.names.iter().filter(|(_, name, _)| is_constant(name)) {
                constants.entry((stem.to_owned(), name.clone())).or_default().push(value.clone());
            }
        }
        Self { files, helpers, constants, known: RefCell::default() }
    }

    fn known(&self, at: At) -> Rc<Known> {
        if let Some(known) = self.known.borrow().get(&at) {
            return known.clone();
        }
        let known = Rc::new(Known { calls: self.called_by(at), paths: self.paths_in(at) });
        self.known.borrow_mut().insert(at, known.clone());
        known
    }

    fn function(&self, (file, place): At) -> &Function {
        &self.files[file].functions[place]
    }

    /// The function and the helpers that it calls, and they, and so on; with how far away they are.
    fn reach(&self, start: At) -> Vec<(At, usize)> {
        let mut reached = vec![(start, 0)];
        let mut at = 0;
        while let Some(&(function, depth)) = reached.get(at) {
            at += 1;
            if depth < DEPTH {
                for callee in self.known(function).calls.iter().copied() {
                    if reached.iter().all(|(known, _)| *known != callee) {
                        reached.push((callee, depth + 1));
                    }
                }
            }
        }
        reached
    }

    fn called_by(&self, at: At) -> Vec<At> {
        let span = &self.function(at).span;
        let code = &self.files[at.0].code[span.clone()];
        let calls = code.match_indices('(').map(|(at, _)| last_word(code[..at].trim_end_matches('!')));
        let names: BTreeSet<&str> = calls.filter(|name| !name.is_empty()).collect();
        names.into_iter().flat_map(|name| self.meant(name, at.0, span)).collect()
    }

    /// The helpers of this name that may be meant in a part of a file: closures in it, functions of the file, or those
    /// that tests share, the nearest.
    fn meant(&self, name: &str, file: usize, span: &Range<usize>) -> Vec<At> {
        let own = self.files[file].around(span.start);
        let (mut best, mut found) = (None, Vec::new());
        for (index, place) in self.helpers.get(name).into_iter().flatten().copied() {
            let (other, function) = (&self.files[index], self.function((index, place)));
            let seen = !function.is_closure || (index == file && own.contains(&function.span.start));
            let common =
                self.files[file].path.split('/').zip(other.path.split('/')).take_while(|(a, b)| a == b).count();
            let rank = Some((function.is_closure, index == file, common));
            if !seen || !self.shares(index, file) || rank < best {
                continue;
            }
            if rank > best {
                (best, found) = (rank, Vec::new());
            }
            found.push((index, place));
        }
        found
    }

    fn shares(&self, other: usize, file: usize) -> bool {
        let (other_path, path) = (self.files[other].path, self.files[file].path);
        let helps = ["/testing.rs", "/tests.rs", "/mod.rs"].iter().any(|end| other_path.ends_with(end));
        other == file || (helps && path.split('/').nth(1) == other_path.split('/').nth(1))
    }

    /// The paths that are written in a function, with their methods.
    fn paths_in(&self, at: At) -> Vec<(String, Vec<String>)> {
        let (file, span) = (&self.files[at.0], &self.function(at).span);
        let mut found = Vec::new();
        for (place, text) in file.strings.iter().filter(|(place, _)| span.contains(place)) {
            let around = file.callees(*place);
            let mut paths: Vec<(String, BTreeSet<String>)> = Vec::new();
            for text in file.filled(text, *place) {
                if text.starts_with('/') {
                    let mut methods = self.methods(at.0, span, &around);
                    if methods.is_empty() {
                        methods = self.methods_of_result(at.0, *place);
                    }
                    paths.push((text.clone(), methods));
                }
                for name in file.bound_to(*place) {
                    // A path that has a name first, or the end of one.
                    for used in file.uses(&name, &file.around(*place)) {
                        paths.extend(self.whole_paths(at.0, span, &text, &file.callees(used), NESTED));
                    }
                }
                paths.extend(self.whole_paths(at.0, span, &text, &around, NESTED));
            }
            for (path, methods) in paths {
                let unknown = methods.is_empty().then(String::new);
                found.extend(methods.into_iter().chain(unknown).map(|method| (method, segments(&path))));
            }
        }
        found.extend(self.constants_used(at));
        let known: BTreeSet<Vec<String>> =
            found.iter().filter(|(method, _)| !method.is_empty()).map(|(_, path)| path.clone()).collect();
        found.retain(|(method, path)| !method.is_empty() || !known.contains(path));
        found
    }

    /// The paths that a text is the end of, or the whole of, as the calls around it make one; with their methods.
    fn whole_paths(
        &self,
        file: usize,
        span: &Range<usize>,
        text: &str,
        around: &[(&str, usize)],
        depth: usize,
    ) -> Vec<(String, BTreeSet<String>)> {
        let callee = around.iter().map(|(callee, _)| *callee).find(|callee| !["format", "enc", ""].contains(callee));
        let Some(callee) = callee else { return Vec::new() };
        let methods = self.methods(file, span, around);
        let mut paths = Vec::new();
        if text.starts_with('/') && !methods.is_empty() {
            paths.push((text.to_owned(), methods.clone()));
        }
        for start in self.starts_of(file, span, callee, depth) {
            let rest = if start.ends_with('/') { text.trim_start_matches('/') } else { text };
            paths.push((start + rest, methods.clone()));
        }
        paths
    }

    /// What a helper puts before the text it is given: a path that ends with something in braces, without that.
    fn starts_of(&self, file: usize, span: &Range<usize>, callee: &str, depth: usize) -> Vec<String> {
        if depth == 0 {
            return Vec::new();
        }
        let helpers = self.meant(callee, file, span);
        let own: Vec<String> = helpers.iter().flat_map(|helper| self.starts_in(*helper, depth)).collect();
        if !own.is_empty() {
            return own;
        }
        let mut deeper = helpers.iter().flat_map(|helper| self.called_by(*helper).into_iter().map(|at| (*helper, at)));
        let starts = |(helper, at): (At, At)| {
            let name = &self.function(at).name;
            let starts = || self.starts_of(helper.0, &self.function(helper).span, name, depth - 1);
            Some(starts()).filter(|starts| name != callee && !starts.is_empty())
        };
        deeper.find_map(starts).unwrap_or_default()
    }

    fn starts_in(&self, helper: At, depth: usize) -> Vec<String> {
        let (file, span) = (&self.files[helper.0], &self.function(helper).span);
        let mut starts = Vec::new();
        for (at, text) in file.strings.iter().filter(|(at, _)| span.contains(at)) {
            for text in file.filled(text, *at).into_iter().chain([text.clone()]) {
                starts.extend(start(&text));
                if text.ends_with('}') && !text.starts_with('/') {
                    let paths = self.whole_paths(helper.0, span, &text, &file.callees(*at), depth - 1);
                    starts.extend(paths.iter().filter_map(|(path, _)| start(path)));
                }
            }
        }
        starts
    }

    /// Methods of the calls around a place.
    fn methods(&self, file: usize, span: &Range<usize>, around: &[(&str, usize)]) -> BTreeSet<String> {
        for (callee, open) in around {
            if let Some(method) = self.files[file].method_of(callee, *open) {
                return BTreeSet::from([method.to_owned()]);
            }
            let helpers = self.meant(callee, file, span).into_iter();
            let within: BTreeSet<String> = helpers.flat_map(|helper| self.methods_within(helper)).collect();
            if !within.is_empty() {
                return within;
            }
        }
        BTreeSet::new()
    }

    /// Methods of the calls that get what the function (or closure) around a place comes to.
    fn methods_of_result(&self, file: usize, place: usize) -> BTreeSet<String> {
        let source = &self.files[file];
        let around = source.functions.iter().filter(|function| function.span.contains(&place));
        let Some(function) = around.min_by_key(|function| function.span.len()).filter(|function| !function.is_test)
        else {
            return BTreeSet::new();
        };
        let whole = if function.is_closure { source.around(place) } else { source.from..source.code.len() };
        let uses = source.uses(&function.name, &whole).filter(|at| !function.span.contains(at));
        uses.flat_map(|at| self.methods(file, &whole, &source.callees(at))).collect()
    }

    /// The methods that a helper calls by.
    fn methods_within(&self, helper: At) -> BTreeSet<String> {
        let code = &self.files[helper.0].code[self.function(helper).span.clone()];
        let calls = |name: &str, method: &str| {
            code.contains(&format!(".{name}(")) || code.contains(&format!("Method::{method}"))
        };
        METHODS.iter().filter(|(name, method)| calls(name, method)).map(|(_, method)| (*method).to_owned()).collect()
    }

    /// Constants that stand for a path and are handed to a call in a function: those of the file by their name, those of
    /// other modules with the module before it.
    fn constants_used(&self, at: At) -> Vec<(String, Vec<String>)> {
        let (file, span) = (&self.files[at.0], &self.function(at).span);
        let own = file.path.trim_end_matches(".rs").rsplit('/').next().unwrap_or_default();
        let code = &file.code[span.clone()];
        let mut found = Vec::new();
        let mut start = 0;
        for word in code.split(|c| !is_word(c)) {
            let place = start;
            start += word.len() + code[start + word.len()..].chars().next().map_or(0, char::len_utf8);
            if word.len() < 3 || !is_constant(word) {
                continue;
            }
            let module = code[..place].strip_suffix("::").map_or(own, last_word);
            let Some(values) = self.constants.get(&(module.to_owned(), word.to_owned())) else { continue };
            let methods = self.methods(at.0, span, &file.callees(span.start + place));
            for value in values.iter().filter(|value| value.starts_with('/')) {
                found.extend(methods.iter().map(|method| (method.clone(), segments(value))));
            }
        }
        found
    }
}

/// A path without the name in braces that it ends with.
fn start(text: &str) -> Option<String> {
    let path = text.split('?').next().unwrap_or_default();
    let start = &path[..path.rfind('{').filter(|_| path.ends_with('}'))?];
    (start.starts_with('/') && start.len() > 1).then(|| start.to_owned())
}

/// The segments of a path; what was asked for behind it is left out.
pub(crate) fn segments(path: &str) -> Vec<String> {
    let path = path.split('?').next().unwrap_or_default();
    path.split('/').skip(1).map(str::to_owned).collect()
}

/// Whether what a test asks for is this operation.
pub(crate) fn fits(asked: &[String], pattern: &[String]) -> bool {
    let rest = pattern.last().is_some_and(|last| last.starts_with("{*"));
    let long_enough = if rest { asked.len() >= pattern.len() } else { asked.len() == pattern.len() };
    long_enough && asked.iter().zip(pattern).all(|(asked, pattern)| segment_fits(asked, pattern))
}

fn segment_fits(asked: &str, pattern: &str) -> bool {
    if pattern.starts_with('{') {
        return !asked.is_empty();
    }
    // The same operation is often asked for under an older version.
    let version = |segment: &str| ["r0", "v1", "v3"].contains(&segment);
    if version(asked) && version(pattern) {
        return true;
    }
    // A query may be put behind the last segment.
    let fixed = asked.split('{').next().unwrap_or_default();
    asked == pattern || (!fixed.is_empty() && asked.ends_with('}') && fixed == pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(String, String, String)> {
        let files = [TestFile { path: "crates/homeserver/src/client/a.rs".into(), text: text.into(), from: 0 }];
        let calls = calls(&files).paths.into_iter();
        calls.map(|call| (call.method, format!("/{}", call.path.join("/")), call.test)).collect()
    }

    fn one(body: &str) -> (String, String) {
        let found = found(&format!("#[test]\nfn t() {{ {body} }}\n"));
        assert_eq!(found.len(), 1, "{body}: {found:?}");
        (found[0].0.clone(), found[0].1.clone())
    }

    #[test]
    fn a_path_is_found_with_its_method() {
        let is = |body: &str, method: &str, path: &str| assert_eq!(one(body), (method.into(), path.into()), "{body}");
        is("x.client.get(\"/_matrix/a?b=c\").await;", "GET", "/_matrix/a");
        is("ok(&x.client.post(&format!(\"/_matrix/{}/b\", enc(y)), json!({})).await);", "POST", "/_matrix/{}/b");
        is("let p = format!(\"/_matrix/{x}\"); f(g).put(&p, z);", "PUT", "/_matrix/{x}");
        is("x.send(Method::DELETE, \"/_matrix/a\", y)", "DELETE", "/_matrix/a");
        is("let p = \"/_matrix/a\"; h(p);", "", "/_matrix/a");
        is("assert_eq!(x.get(\"/oauth2/a\").await.json()[\"b\"], y);", "GET", "/oauth2/a");
    }

    #[test]
    fn names_and_helpers_are_followed() {
        let text = "const ALL: &str = \"/_matrix/all/\";\n\
            fn helper(x: &X) { x.put(&path(\"one\"), y); }\n\
            fn path(rest: &str) -> String { format!(\"/_matrix/rooms/{rest}\") }\n\
            #[tokio::test]\nasync fn t() { helper(x); a.get(ALL); a.post(&format!(\"{ALL}two\"), b) }\n\
            #[test]\nfn other() {}\n";
        let found = found(text);
        let has = |method: &str, path: &str| {
            let wanted = (method.to_owned(), path.to_owned(), "client::a::t".to_owned());
            assert!(found.contains(&wanted), "{wanted:?} in {found:?}");
        };
        has("PUT", "/_matrix/rooms/one");
        has("GET", "/_matrix/all/");
        has("POST", "/_matrix/all/two");
        assert!(found.iter().all(|(.., test)| !test.ends_with("other")));
    }

    #[test]
    fn lists_of_parts_are_paths() {
        let text = "fn act() { Request::put(v3(&[\"rooms\", &room, \"typing\", x]), body) }";
        let files = [TestFile { path: "crates/sim/src/act.rs".into(), text: text.into(), from: 0 }];
        let calls = calls(&files).paths;
        let call = calls.first().unwrap();
        assert_eq!(call.method, "PUT");
        let pattern = segments("/_matrix/client/v3/rooms/{room_id}/typing/{user_id}");
        assert!(fits(&call.path, &pattern), "{:?}", call.path);
    }

    #[test]
    fn only_arguments_are_anything() {
        let fits = |asked: &str, pattern: &str| super::fits(&segments(asked), &segments(pattern));
        assert!(fits("/a/{x}/c", "/a/{b}/c"));
        assert!(fits("/a/@x:y/c?d=e", "/a/{b}/c"));
        assert!(fits("/a/c{query}", "/a/c"));
        assert!(fits("/a/b/c/d", "/a/{*rest}"));
        assert!(!fits("/a/{x}", "/a/b"));
        assert!(!fits("/a//c", "/a/{b}/c"));
        assert!(!fits("/a/b/c/d", "/a/{b}/c"));
    }
}
