//! Whether a text is a regular expression of Python 3.11: the reference refuses a schema whose `pattern` is none, by compiling it
//! with `re` (JSON Schema draft 7, format `regex`). Only the syntax is checked; nothing is matched here.

use std::collections::HashMap;

/// Groups in groups; Python gives up at about as many.
const MAX_DEPTH: u32 = 150;
/// Widths saturate here.
const UNBOUNDED: u64 = u32::MAX as u64;

/// Whether Python's `re.compile` takes the pattern.
pub(super) fn is_python_regex(pattern: &str) -> bool {
    let text: Vec<char> = pattern.chars().collect();
    if text.iter().rev().take_while(|c| **c == '\\').count() % 2 == 1 {
        return false; // nothing is escaped, not even in a comment
    }
    let mut parser = Parser::new(&text, false);
    match parser.whole() {
        Err(Stop::Verbose) => Parser::new(&text, true).whole().is_ok(),
        result => result.is_ok(),
    }
}

enum Stop {
    Wrong,
    /// `(?x)` at the start: white space and comments do not count, so begin again.
    Verbose,
}

type Parsed<T> = Result<T, Stop>;

/// The fewest and the most characters that a part matches.
#[derive(Clone, Copy)]
struct Width {
    min: u64,
    max: u64,
}

impl Width {
    const NONE: Self = Self { min: 0, max: 0 };
    const ONE: Self = Self { min: 1, max: 1 };

    fn then(self, next: Self) -> Self {
        Self { min: (self.min + next.min).min(UNBOUNDED), max: (self.max + next.max).min(UNBOUNDED) }
    }

    fn or(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    fn repeated(self, min: u64, max: u64) -> Self {
        Self {
            min: self.min.saturating_mul(min).min(UNBOUNDED),
            max: self.max.saturating_mul(max).min(UNBOUNDED),
        }
    }
}

/// What a quantifier would repeat.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    Nothing,
    Anchor,
    Repeat,
    Item,
}

struct Parser<'a> {
    text: &'a [char],
    at: usize,
    verbose: bool,
    depth: u32,
    /// The width of each group, from 1; [`None`] while it is open.
    groups: Vec<Option<Width>>,
    names: HashMap<String, usize>,
    /// Groups that conditions ask for before they exist.
    asked: usize,
    /// In a look-behind: the number of groups before it.
    behind: Option<usize>,
}

fn wrong<T>() -> Parsed<T> {
    Err(Stop::Wrong)
}

impl<'a> Parser<'a> {
    fn new(text: &'a [char], verbose: bool) -> Self {
        let (groups, names) = (Vec::new(), HashMap::new());
        Self { text, at: 0, verbose, depth: 0, groups, names, asked: 0, behind: None }
    }

    fn whole(&mut self) -> Parsed<()> {
        self.alternatives(true)?;
        let ends = self.at == self.text.len() && self.asked <= self.groups.len();
        if ends { Ok(()) } else { wrong() }
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Parsed<char> {
        let c = self.peek().ok_or(Stop::Wrong)?;
        self.at += 1;
        Ok(c)
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, c: char) -> Parsed<()> {
        if self.eat(c) { Ok(()) } else { wrong() }
    }

    fn alternatives(&mut self, top: bool) -> Parsed<Width> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return wrong();
        }
        let mut width = self.sequence(top)?;
        while self.eat('|') {
            width = width.or(self.sequence(false)?);
        }
        self.depth -= 1;
        Ok(width)
    }

    fn sequence(&mut self, first: bool) -> Parsed<Width> {
        let mut before = Width::NONE; // all but the last item
        let mut item = Width::NONE;
        let mut last = Last::Nothing;
        while let Some(c) = self.peek().filter(|c| !matches!(c, '|' | ')')) {
            self.at += 1;
            if self.verbose && self.skip_verbose(c) {
                continue;
            }
            if matches!(c, '*' | '+' | '?' | '{')
                && let Some((min, max)) = self.quantifier(c)?
            {
                if last != Last::Item {
                    return wrong();
                }
                item = item.repeated(min, max);
                last = Last::Repeat;
                let _ = self.eat('?') || self.eat('+');
                continue;
            }
            let parsed = match c {
                '^' | '$' => Some((Last::Anchor, Width::NONE)),
                '\\' => Some(self.escape()?),
                '[' => {
                    self.class()?;
                    Some((Last::Item, Width::ONE))
                }
                '(' => self.group(first && last == Last::Nothing)?.map(|width| (Last::Item, width)),
                _ => Some((Last::Item, Width::ONE)),
            };
            if let Some((kind, width)) = parsed {
                before = before.then(item);
                (last, item) = (kind, width);
            }
        }
        Ok(before.then(item))
    }

    fn skip_verbose(&mut self, c: char) -> bool {
        match c {
            ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}' => true,
            '#' => {
                while self.peek().is_some() && !self.eat('\n') {
                    self.at += 1;
                }
                true
            }
            _ => false,
        }
    }

    /// After the first sign. [`None`]: a `{` that stands for itself.
    fn quantifier(&mut self, c: char) -> Parsed<Option<(u64, u64)>> {
        match c {
            '*' => return Ok(Some((0, UNBOUNDED))),
            '+' => return Ok(Some((1, UNBOUNDED))),
            '?' => return Ok(Some((0, 1))),
            _ => {}
        }
        let start = self.at;
        if self.peek() == Some('}') {
            return Ok(None);
        }
        let low = self.digits();
        let high = if self.eat(',') { self.digits() } else { low.clone() };
        if !self.eat('}') {
            self.at = start;
            return Ok(None);
        }
        let number = |digits: &str, otherwise| match digits {
            "" => Ok(otherwise),
            digits => digits.parse().ok().filter(|n| *n < UNBOUNDED).ok_or(Stop::Wrong),
        };
        let (min, max) = (number(&low, 0)?, number(&high, UNBOUNDED)?);
        if max < min { wrong() } else { Ok(Some((min, max))) }
    }

    fn digits(&mut self) -> String {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        self.text[start..self.at].iter().collect()
    }

    /// After the backslash, outside of a class.
    fn escape(&mut self) -> Parsed<(Last, Width)> {
        let c = self.next()?;
        match c {
            'A' | 'Z' | 'b' | 'B' => Ok((Last::Anchor, Width::NONE)),
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => Ok((Last::Item, Width::ONE)),
            '1'..='9' => self.reference(c),
            '0' => {
                let _ = self.octal(2);
                Ok((Last::Item, Width::ONE))
            }
            _ => self.literal_escape(c).map(|_| (Last::Item, Width::ONE)),
        }
    }

    /// A group by its number, or a character by three octal digits.
    fn reference(&mut self, first: char) -> Parsed<(Last, Width)> {
        let mut number = first.to_digit(10).unwrap_or(0) as usize;
        if let Some(second) = self.peek().and_then(|c| c.to_digit(10)) {
            self.at += 1;
            let octal = first < '8' && second < 8;
            if let Some(third) = self.peek().and_then(|c| c.to_digit(8)).filter(|_| octal) {
                self.at += 1;
                let code = number as u32 * 64 + second * 8 + third;
                return if code > 0o377 { wrong() } else { Ok((Last::Item, Width::ONE)) };
            }
            number = number * 10 + second as usize;
        }
        self.group_width(number).map(|width| (Last::Item, width))
    }

    /// The width of a group that is closed and not of the look-behind that asks.
    fn group_width(&self, number: usize) -> Parsed<Width> {
        let known = self.behind.is_none_or(|before| number <= before);
        let group = self.groups.get(number.wrapping_sub(1)).copied().flatten();
        group.filter(|_| known).ok_or(Stop::Wrong)
    }

    /// A character by its code, or one that has no other meaning.
    fn literal_escape(&mut self, c: char) -> Parsed<u32> {
        match c {
            'x' => self.hexadecimal(2),
            'u' => self.hexadecimal(4),
            'U' => self.hexadecimal(8).and_then(|code| if code > 0x10_ffff { wrong() } else { Ok(code) }),
            'N' => {
                self.expect('{')?;
                let start = self.at;
                while self.next()? != '}' {}
                if self.at - start > 1 { Ok(u32::MAX) } else { wrong() }
            }
            'a' => Ok(7),
            'f' => Ok(12),
            'n' => Ok(10),
            'r' => Ok(13),
            't' => Ok(9),
            'v' => Ok(11),
            c if c.is_ascii_alphabetic() => wrong(),
            c => Ok(c as u32),
        }
    }

    fn hexadecimal(&mut self, digits: usize) -> Parsed<u32> {
        let mut code = 0u32;
        for _ in 0..digits {
            code = code.wrapping_mul(16) + self.next()?.to_digit(16).ok_or(Stop::Wrong)?;
        }
        Ok(code)
    }

    fn octal(&mut self, most: usize) -> u32 {
        let mut code = 0;
        for _ in 0..most {
            let Some(digit) = self.peek().and_then(|c| c.to_digit(8)) else { break };
            self.at += 1;
            code = code * 8 + digit;
        }
        code
    }

    /// After the `[`.
    fn class(&mut self) -> Parsed<()> {
        self.eat('^');
        let start = self.at;
        loop {
            let c = self.next()?;
            if c == ']' && self.at > start + 1 {
                return Ok(());
            }
            let low = self.class_member(c)?;
            if self.peek() != Some('-') {
                continue;
            }
            self.at += 1;
            let c = self.next()?;
            if c == ']' {
                return Ok(());
            }
            match (low, self.class_member(c)?) {
                (Some(low), Some(high)) if low <= high => {}
                _ => return wrong(),
            }
        }
    }

    /// The code of a character; [`None`] for a class like `\d`.
    fn class_member(&mut self, c: char) -> Parsed<Option<u32>> {
        if c != '\\' {
            return Ok(Some(c as u32));
        }
        let c = self.next()?;
        match c {
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => Ok(None),
            'b' => Ok(Some(8)),
            '0'..='7' => {
                self.at -= 1;
                let code = self.octal(3);
                if code > 0o377 { wrong() } else { Ok(Some(code)) }
            }
            '8' | '9' => wrong(),
            c => self.literal_escape(c).map(Some),
        }
    }

    /// After the `(`. [`None`] for what matches nothing: comments and flags.
    fn group(&mut self, at_start: bool) -> Parsed<Option<Width>> {
        if !self.eat('?') {
            return self.capture(None).map(Some);
        }
        match self.next()? {
            'P' => match self.next()? {
                '<' => {
                    let name = self.name('>')?;
                    self.capture(Some(name)).map(Some)
                }
                '=' => {
                    let name = self.name(')')?;
                    let number = *self.names.get(&name).ok_or(Stop::Wrong)?;
                    self.group_width(number).map(Some)
                }
                _ => wrong(),
            },
            ':' | '>' => self.inner().map(Some),
            '#' => {
                loop {
                    match self.next()? {
                        ')' => return Ok(None),
                        '\\' => self.at += 1, // an escaped sign does not end it
                        _ => {}
                    }
                }
            }
            '=' | '!' => self.inner().map(|_| Some(Width::NONE)),
            '<' => {
                if !matches!(self.next()?, '=' | '!') {
                    return wrong();
                }
                let outer = self.behind;
                self.behind = outer.or(Some(self.groups.len()));
                let width = self.inner()?;
                self.behind = outer;
                if width.min == width.max { Ok(Some(Width::NONE)) } else { wrong() }
            }
            '(' => self.condition().map(Some),
            ')' => wrong(),
            c => self.flags(c, at_start),
        }
    }

    fn inner(&mut self) -> Parsed<Width> {
        let verbose = self.verbose;
        let width = self.alternatives(false)?;
        self.verbose = verbose;
        self.expect(')')?;
        Ok(width)
    }

    fn capture(&mut self, name: Option<String>) -> Parsed<Width> {
        self.groups.push(None);
        let number = self.groups.len();
        if name.is_some_and(|name| self.names.insert(name, number).is_some()) {
            return wrong();
        }
        let width = self.inner()?;
        self.groups[number - 1] = Some(width);
        Ok(width)
    }

    fn name(&mut self, end: char) -> Parsed<String> {
        let mut name = String::new();
        loop {
            match self.next()? {
                c if c == end => break,
                c => name.push(c),
            }
        }
        let starts = name.starts_with(|c: char| c.is_alphabetic() || c == '_');
        if starts && name.chars().all(|c| c.is_alphanumeric() || c == '_') { Ok(name) } else { wrong() }
    }

    /// After `(?(`: a group that decides which of two ways to go.
    fn condition(&mut self) -> Parsed<Width> {
        let start = self.at;
        let digits = self.digits();
        let number = if !digits.is_empty() && self.eat(')') {
            digits.parse().map_err(|_| Stop::Wrong)?
        } else {
            self.at = start;
            let name = self.name(')')?;
            *self.names.get(&name).ok_or(Stop::Wrong)?
        };
        if number == 0 || self.behind.is_some_and(|before| number > before) {
            return wrong();
        }
        self.asked = self.asked.max(number);
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return wrong();
        }
        let yes = self.sequence(false)?;
        let no = if self.eat('|') { self.sequence(false)? } else { Width::NONE };
        self.depth -= 1;
        self.expect(')')?;
        Ok(yes.or(no))
    }

    /// After `(?` and the first letter: `i)`, `i-s:…)`.
    fn flags(&mut self, first: char, at_start: bool) -> Parsed<Option<Width>> {
        let (mut on, mut off, mut minus) = (String::new(), String::new(), false);
        let mut c = first;
        loop {
            match c {
                'a' | 'u' if !minus && !on.contains(['a', 'u']) => on.push(c),
                'a' | 'u' if !minus && on.contains(c) => {}
                'i' | 'm' | 's' | 'x' if minus => off.push(c),
                'i' | 'm' | 's' | 'x' => on.push(c),
                '-' if !minus => minus = true,
                ')' if !minus && at_start => {
                    return if on.contains('x') && !self.verbose { Err(Stop::Verbose) } else { Ok(None) };
                }
                ':' if minus != off.is_empty() && !off.chars().any(|c| on.contains(c)) => {
                    let verbose = self.verbose;
                    self.verbose = (verbose || on.contains('x')) && !off.contains('x');
                    let width = self.alternatives(false)?;
                    self.verbose = verbose;
                    self.expect(')')?;
                    return Ok(Some(width));
                }
                _ => return wrong(),
            }
            c = self.next()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_python_regex;

    #[test]
    fn as_python() {
        // Left: what re.compile of CPython 3.11 takes; right: what it refuses.
        let good = [
            "",
            "a|b",
            "(?i)a",
            "^\\d{3}-\\w+$",
            "(?:a(?=b))+?",
            "[^\\]\\d-]",
            "a{,3}",
            "x{2",
            "{",
            "a{}",
            "(?<=ab)c",
            "(?P<n>a)(?P=n)",
            "\\x41\\u0041\\U0001F600",
            "[]a]",
            "a++",
            "(?>a)*",
            "(a)(b)\\2",
            "(a)?(?(1)b|c)",
            "(?(1)a)(b)",
            "(?s-i:a)",
            "(?x) a # b\n *",
            "\\377",
            "[\\b]",
            "(?#x)a",
            "a(?:)*",
            "\\-",
            "(?<!a{2})b",
            "[--a]",
            "(?=a)*",
            "é+",
            "\\0",
            "(?:^)*",
            "[[:alpha:]]",
            "(?u)a",
        ];
        let bad = [
            "(",
            ")",
            "[a",
            "(?)",
            "(?x)#\\",
            "(?#\\)",
            "*",
            "a**",
            "a{2}{3}",
            "a{2,1}",
            "\\",
            "\\p{L}",
            "(?P<a>x)(?P<a>y)",
            "(?P<1>x)",
            "(?P=n)",
            "\\1",
            "(\\1)",
            "(?<=a+)b",
            "[z-a]",
            "[\\d-z]",
            "[\\8]",
            "\\400",
            "a(?i)",
            "(?y)",
            "(?<a>b)",
            "(?i-i:a)",
            "^*",
            "\\b+",
            "\\z",
            "a+++",
            "\\x4",
            "[\\A]",
            "(?(1)a)",
            "(?",
            "(?P",
            "(?-:a)",
            "(?L)a",
            "(?au)b",
            "\\u12",
            "(?<=(a)\\1)b",
            "(?(0)a)",
            "(?(1)a|b|c)(d)",
            "x{99999999999}",
        ];
        for pattern in good {
            assert!(is_python_regex(pattern), "{pattern}");
        }
        for pattern in bad {
            assert!(!is_python_regex(pattern), "{pattern}");
        }
        assert!(!is_python_regex(&"(".repeat(100_000)));
    }
}
