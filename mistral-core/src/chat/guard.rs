//! What stops a hostile chat template where fuel does not.
//!
//! minijinja charges for instructions and for flat data. It recurses without a bound along `a + b + c …` and `elif … elif …`
//! when it compiles, along nested values when it prints, compares or frees them, and a list of lists that share their elements
//! prints as exponentially much text before that is charged. So, before a template is compiled, its tags are bounded in number
//! and size, and wherever it binds a variable (`set`, `for`, `with`, parameters of macros) a check of the value is put in: of
//! its depth, and of its size as a tree. One expression alone can then multiply what it is given only by a little.
//!
//! The scanner follows the lexer of minijinja, with the default delimiters.

mod format;

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error as JinjaError, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use self::format::Fields;
use crate::error::{Error, Result};

/// How deeply a variable of a template may be nested; more than any request is.
pub(super) const MAX_NESTING: usize = 300;
/// Tags in a template.
const MAX_TAGS: usize = 4000;
/// Words and signs in one tag.
const MAX_TAG_TOKENS: usize = 500;
/// `elif` tags in a template.
const MAX_ELIFS: usize = 300;
/// What a number in a multiplication may be: the other side could be a list.
const MAX_FACTOR: u32 = 100;
/// Characters and elements of a variable, those counted several times that occur several times; what the request has is added.
const BASE_TREE_SIZE: u64 = 1 << 18;
/// The functions that [`prepare`] puts around values. A template that names them itself is refused.
const CHECK: &str = "__bounded";
const CHECK_ATTRIBUTE: &str = "__bounded_attribute";

const TOO_DEEP: &str = "a value nested too deeply";
const TOO_LARGE: &str = "a value that is too large";
const NAMESPACE_INSIDE: &str = "a namespace in another value";
/// Why those functions refuse a value.
pub(super) const REFUSALS: [&str; 3] = [TOO_DEEP, TOO_LARGE, NAMESPACE_INSIDE];

/// Makes the functions known that [`prepare`] calls, for a request of so many bytes.
pub(super) fn install(env: &mut Environment<'static>, request_size: usize) {
    let limit = BASE_TREE_SIZE + 4 * request_size as u64;
    env.add_function(CHECK, move |state: &State, value: Value| bounded(state, value, true, limit));
    env.add_function(CHECK_ATTRIBUTE, move |state: &State, value: Value| bounded(state, value, false, limit));
    // They fill up with copies of an element.
    env.remove_filter("batch");
    env.remove_filter("slice");
    env.add_filter("format", move |state: &mut State, text: &Value, values: Rest<ValueOrKwargs>| {
        if let Some(text) = text.as_str() {
            format::check(
                state,
                text,
                &Fields::of_percent(text)?,
                values.iter().map(|value| &**value),
                limit,
            )?;
        }
        minijinja::filters::format(state, text, values)
    });
    env.set_unknown_method_callback(move |state, value, method, values| {
        if let Some(text) = value.as_str().filter(|_| method == "format") {
            format::check(state, text, &Fields::of_braces(text)?, values.iter(), limit)?;
        }
        pycompat::unknown_method_callback(state, value, method, values)
    });
}

/// Rewrites a template: checks of what it binds, and Hugging Face's `{% generation %}` (which marks the assistant's
/// tokens for training) as a block with the same whitespace rules that does nothing. Lines stay lines.
pub(super) fn prepare(source: &str) -> Result<String> {
    let mut scanner = Scanner {
        source,
        at: 0,
        balance: 0,
        out: String::new(),
        copied: 0,
        tags: 0,
        elifs: 0,
        blocks: Vec::new(),
    };
    while let Some(start) = scanner.find_start() {
        scanner.at = start + 2;
        match source.as_bytes()[start + 1] {
            b'#' => scanner.skip_past("#}")?,
            b'%' if scanner.skip_raw()? => {}
            b'%' => scanner.tag(b"%}")?,
            _ => scanner.tag(b"}}")?,
        }
    }
    scanner.out.push_str(&source[scanner.copied..]);
    Ok(scanner.out)
}

#[derive(Clone, Copy)]
struct Token {
    start: usize,
    end: usize,
    /// Open brackets before it.
    balance: isize,
}

struct Scanner<'a> {
    source: &'a str,
    at: usize,
    balance: isize,
    out: String,
    /// How much of the source is in `out`.
    copied: usize,
    tags: usize,
    elifs: usize,
    /// The targets of `{% set x %}` blocks that are open.
    blocks: Vec<&'a str>,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.source.as_bytes()[self.at..]
    }

    fn text(&self, token: Token) -> &'a str {
        &self.source[token.start..token.end]
    }

    fn unclosed(&self) -> Error {
        let line = 1 + self.source[..self.at.min(self.source.len())].matches('\n').count();
        Error::format("chat template", format!("line {line}"), "a tag without end", "a Jinja template")
    }

    /// The next `{{`, `{%` or `{#`.
    fn find_start(&self) -> Option<usize> {
        let found = self.rest().windows(2).position(|w| w[0] == b'{' && matches!(w[1], b'{' | b'%' | b'#'));
        found.map(|offset| self.at + offset)
    }

    fn skip_past(&mut self, end: &str) -> Result<()> {
        let offset = self.source[self.at..].find(end).ok_or_else(|| self.unclosed())?;
        self.at += offset + end.len();
        Ok(())
    }

    /// After `{%`: goes past `{% raw %}…{% endraw %}` if that is what stands here.
    fn skip_raw(&mut self) -> Result<bool> {
        let Some(length) = basic_tag(self.rest(), b"raw") else { return Ok(false) };
        self.at += length;
        loop {
            self.skip_past("{%")?;
            if let Some(length) = basic_tag(self.rest(), b"endraw") {
                self.at += length;
                return Ok(true);
            }
        }
    }

    /// After `{%` or `{{`: reads to the end of the tag.
    fn tag(&mut self, end: &[u8; 2]) -> Result<()> {
        self.tags += 1;
        if self.tags > MAX_TAGS {
            return Err(Error::limit("tags of the chat template", "more", MAX_TAGS));
        }
        if matches!(self.rest().first(), Some(b'-' | b'+')) {
            self.at += 1;
        }
        let mut tokens = Vec::new();
        loop {
            while self.rest().first().is_some_and(u8::is_ascii_whitespace) {
                self.at += 1;
            }
            let rest = self.rest();
            let signed = matches!(rest.first(), Some(b'-' | b'+')) && rest[1..].starts_with(end);
            if self.balance == 0 && (signed || rest.starts_with(end)) {
                let body_end = self.at;
                self.at += 2 + usize::from(signed);
                self.check_products(&tokens)?;
                return if end == b"%}" { self.rewrite(&tokens, body_end) } else { Ok(()) };
            }
            let token = self.token()?;
            if tokens.len() == MAX_TAG_TOKENS {
                return Err(Error::limit("words in one tag of the chat template", "more", MAX_TAG_TOKENS));
            }
            if self.text(token).starts_with(CHECK) {
                return Err(Error::format(
                    "chat template",
                    self.text(token),
                    "a reserved name",
                    "another name",
                ));
            }
            tokens.push(token);
        }
    }

    fn token(&mut self) -> Result<Token> {
        let rest = self.rest();
        let (start, balance) = (self.at, self.balance);
        let length = match *rest.first().ok_or_else(|| self.unclosed())? {
            b'(' | b'[' | b'{' => {
                self.balance += 1;
                1
            }
            b')' | b']' | b'}' => {
                self.balance -= 1;
                1
            }
            quote @ (b'\'' | b'"') => string_length(rest, quote).ok_or_else(|| self.unclosed())?,
            _ if matches!(rest.get(..2), Some(b"//" | b"**" | b"==" | b"!=" | b">=" | b"<=")) => 2,
            c if is_word(c) => rest.iter().take_while(|c| is_word(**c)).count(),
            _ => 1,
        };
        self.at += length;
        Ok(Token { start, end: self.at, balance })
    }

    /// At most one `*` in a tag, beside a string or a small number.
    fn check_products(&self, tokens: &[Token]) -> Result<()> {
        let mut products = tokens.iter().enumerate().filter(|(_, t)| self.text(**t) == "*").map(|(i, _)| i);
        let Some(i) = products.next() else { return Ok(()) };
        let harmless = |token: Option<&Token>| {
            let text = token.map_or("", |t| self.text(*t));
            text.starts_with(['\'', '"']) || text.parse::<u32>().is_ok_and(|n| n <= MAX_FACTOR)
        };
        let bracket = |token: Option<&Token>| {
            matches!(token.map_or("", |t| self.text(*t)), "(" | ")" | "[" | "]" | "{" | "}" | ".")
        };
        let (left, right) = (i.checked_sub(1).and_then(|i| tokens.get(i)), tokens.get(i + 1));
        let refused = !(harmless(left) || harmless(right)) || bracket(left) && !harmless(right);
        if refused || bracket(right) || products.next().is_some() {
            let supported = format!("one in a tag, of a value and a string or a number up to {MAX_FACTOR}");
            return Err(Error::unsupported("multiplication in a chat template", "another", supported));
        }
        Ok(())
    }

    fn rewrite(&mut self, tokens: &[Token], body_end: usize) -> Result<()> {
        let Some(first) = tokens.first() else { return Ok(()) };
        match self.text(*first) {
            "elif" => {
                self.elifs += 1;
                if self.elifs > MAX_ELIFS {
                    return Err(Error::limit("`elif` tags of the chat template", "more", MAX_ELIFS));
                }
            }
            "generation" if tokens.len() == 1 => self.replace(*first, "if true"),
            "endgeneration" if tokens.len() == 1 => self.replace(*first, "endif"),
            "set" => self.rewrite_set(tokens, body_end),
            "endset" => {
                let target = self.blocks.pop();
                self.check_after(body_end, target.as_slice());
            }
            "for" => {
                let targets = tokens[1..].iter().take_while(|t| self.text(**t) != "in");
                let targets: Vec<_> = targets.map(|t| self.text(*t)).filter(|t| is_name(t)).collect();
                self.check_after(body_end, &targets);
            }
            "macro" | "call" | "with" => {
                self.check_defaults(tokens)?;
                let names = self.parameters(tokens);
                self.check_after(body_end, &names);
            }
            _ => {}
        }
        Ok(())
    }

    fn rewrite_set(&mut self, tokens: &[Token], body_end: usize) {
        let assign = tokens.iter().position(|t| t.balance == tokens[0].balance && self.text(*t) == "=");
        let target_end = assign.or_else(|| tokens.iter().position(|t| self.text(*t) == "|"));
        let target = &tokens[1..target_end.unwrap_or(tokens.len())];
        let (Some(head), Some(tail)) = (target.first(), target.last()) else { return };
        let target = &self.source[head.start..tail.end];
        let Some(assign) = assign else { return self.blocks.push(target) };
        self.replace(tokens[assign], &format!("= {}((", check_of(target)));
        self.out.push_str(&self.source[self.copied..body_end]);
        self.out.push_str("))");
        self.copied = body_end;
    }

    /// The names that a `macro`, `call` or `with` tag binds.
    fn parameters(&self, tokens: &[Token]) -> Vec<&'a str> {
        if self.text(tokens[0]) == "call" && tokens.get(1).is_none_or(|t| self.text(*t) != "(") {
            return Vec::new();
        }
        let inner = tokens[0].balance + isize::from(self.text(tokens[0]) != "with");
        let starts = |i: usize| matches!(self.text(tokens[i - 1]), "(" | "," | "with");
        let mut names = Vec::new();
        for (i, token) in tokens.iter().enumerate().skip(1) {
            if token.balance < inner && i > 2 {
                break;
            }
            if token.balance == inner && starts(i) && is_name(self.text(*token)) {
                names.push(self.text(*token));
            }
        }
        names
    }

    /// Several values in one tag could build on each other before they are checked.
    fn check_defaults(&self, tokens: &[Token]) -> Result<()> {
        let brackets = tokens.iter().skip(3).filter(|t| matches!(self.text(**t), "[" | "{" | "(")).count();
        let assigns = tokens.iter().filter(|t| self.text(**t) == "=").count();
        if self.text(tokens[0]) != "call" && assigns > 1 && brackets > 1 {
            let supported = "several names with plain values, or one";
            return Err(Error::unsupported(
                "chat template",
                "lists as values of several names in a tag",
                supported,
            ));
        }
        Ok(())
    }

    /// Puts checks of variables after the tag that has just been read.
    fn check_after(&mut self, body_end: usize, names: &[&str]) {
        if names.is_empty() {
            return;
        }
        self.out.push_str(&self.source[self.copied..body_end]);
        self.out.push_str("%}");
        for (i, name) in names.iter().enumerate() {
            let close = if i + 1 == names.len() { &self.source[body_end..self.at] } else { "%}" };
            self.out.push_str(&format!("{{% set {name} = {}(({name})){close}", check_of(name)));
        }
        self.copied = self.at;
    }

    fn replace(&mut self, token: Token, by: &str) {
        self.out.push_str(&self.source[self.copied..token.start]);
        self.out.push_str(by);
        self.copied = token.end;
    }
}

/// The function that checks a value for this target.
fn check_of(target: &str) -> &'static str {
    if target.contains('.') { CHECK_ATTRIBUTE } else { CHECK }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_' || c >= 0x80
}

/// The length of a string literal with its quotes.
fn string_length(text: &[u8], quote: u8) -> Option<usize> {
    let mut at = 1;
    loop {
        match *text.get(at)? {
            b'\\' => at += 2,
            c if c == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// After `{%`: the length of ` name %}` if that is what stands here, whitespace control included.
fn basic_tag(text: &[u8], name: &[u8]) -> Option<usize> {
    let spaces = |at: usize| text[at..].iter().take_while(|c| c.is_ascii_whitespace()).count();
    let sign = |at: usize| usize::from(matches!(text.get(at), Some(b'-' | b'+')));
    let mut at = sign(0);
    at += spaces(at);
    at += text[at..].starts_with(name).then_some(name.len())?;
    at += spaces(at);
    at += sign(at);
    text[at..].starts_with(b"%}").then_some(at + 2)
}

/// A value that is bound to a variable, if printing, comparing and freeing it is bounded. A lazy sequence becomes a list, so
/// that a chain of them does not grow. A namespace inside another value could come to hold itself.
fn bounded(state: &State, value: Value, may_be_namespace: bool, limit: u64) -> Result<Value, JinjaError> {
    if is_namespace(&value) && !may_be_namespace {
        return Err(refuse(NAMESPACE_INSIDE));
    }
    let mut left = limit;
    check_tree(state, &value, 0, &mut left)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable if !value.is_tuple() => {
            Ok(Value::from(value.try_iter()?.collect::<Vec<Value>>()))
        }
        _ => Ok(value),
    }
}

fn check_tree(state: &State, value: &Value, depth: usize, left: &mut u64) -> Result<(), JinjaError> {
    if depth > MAX_NESTING {
        return Err(refuse(TOO_DEEP));
    }
    if depth > 0 && is_namespace(value) {
        return Err(refuse(NAMESPACE_INSIDE));
    }
    let size = 1 + value.as_str().map_or(0, |text| text.len() as u64);
    *left = left.checked_sub(size).ok_or_else(|| refuse(TOO_LARGE))?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            state.consume_fuel(1 + value.len().unwrap_or(0) as u64 / 8)?;
            value.try_iter()?.try_for_each(|item| check_tree(state, &item, depth + 1, left))
        }
        ValueKind::Map => {
            state.consume_fuel(1)?;
            value.try_iter()?.try_for_each(|key| check_tree(state, &value.get_item(&key)?, depth + 1, left))
        }
        _ => Ok(()),
    }
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

fn refuse(what: &'static str) -> JinjaError {
    JinjaError::new(ErrorKind::InvalidOperation, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewrites_sets_and_nothing_else() {
        for (source, expected) in [
            ("a {% set x = 1 %} b", "a {% set x = __bounded(( 1 ))%} b"),
            ("{%- set ns.x = y == '%}' -%}", "{%- set ns.x = __bounded_attribute(( y == '%}' ))-%}"),
            ("{% set a, b = 1, 2 %}", "{% set a, b = __bounded(( 1, 2 ))%}"),
            ("{% set x %}y{% endset -%}", "{% set x %}y{% endset %}{% set x = __bounded((x))-%}"),
            (
                "{% for k, v in d -%}",
                "{% for k, v in d %}{% set k = __bounded((k))%}{% set v = __bounded((v))-%}",
            ),
            (
                "{% macro f(a, b=g(c)) %}",
                "{% macro f(a, b=g(c)) %}{% set a = __bounded((a))%}{% set b = __bounded((b))%}",
            ),
            ("{% with a = x %}", "{% with a = x %}{% set a = __bounded((a))%}"),
            ("{% call(x) f(y) %}", "{% call(x) f(y) %}{% set x = __bounded((x))%}"),
            ("{% call f(y) %}", "{% call f(y) %}"),
            ("{# {% set x = 1 %} #}{{ {'set': {}} }}", "{# {% set x = 1 %} #}{{ {'set': {}} }}"),
            ("{%raw-%}{% set x = 1 %}{%- endraw %}", "{%raw-%}{% set x = 1 %}{%- endraw %}"),
            ("{% generation %}x{%- endgeneration -%}", "{% if true %}x{%- endif -%}"),
        ] {
            assert_eq!(prepare(source).unwrap(), expected);
        }
    }

    #[test]
    fn products() {
        for (source, fine) in [
            ("{{ '-' * n }}", true),
            ("{{ 2 * loop.index }}", true),
            ("{{ n * 4 }}", true),
            ("{{ n * m }}", false),
            ("{{ x * 1000 }}", false),
            ("{{ 2 * [x] }}", false),
            ("{{ x * 9 * 9 }}", false),
        ] {
            assert_eq!(prepare(source).is_ok(), fine, "{source}");
        }
    }

    #[test]
    fn bounds() {
        assert!(matches!(prepare(&"{{ 1 }}".repeat(MAX_TAGS + 1)), Err(Error::Limit { .. })));
        assert!(matches!(
            prepare(&format!("{{{{ {} }}}}", "+1".repeat(MAX_TAG_TOKENS))),
            Err(Error::Limit { .. })
        ));
        assert!(matches!(prepare(&"{% elif 1 %}".repeat(MAX_ELIFS + 1)), Err(Error::Limit { .. })));
        for source in ["{% set __bounded = dict %}", "{{ x", "{# x", "{% raw %}{% set x = 1 %}", "{{ 'x }}"] {
            assert!(matches!(prepare(source), Err(Error::Format { .. })), "{source}");
        }
    }
}
