//! A C program that calls each function of the header with each of its pointers NULL and each of its handles
//! freed, of every other type and invented; in a child of fork; and while the session is in use. It is made from
//! the header alone, so a new function is covered as it comes.

use std::collections::BTreeSet;

use crate::declarations::{Function, nullable};

/// What the types of handles are called.
const KINDS: [&str; 5] = ["buf", "cancel", "model", "session", "generation"];

/// The number of calls that the program makes, and its text.
pub fn matrix(functions: &[Function]) -> (usize, String) {
    let mut outs = BTreeSet::new();
    for parameter in functions.iter().flat_map(|f| &f.parameters) {
        outs.extend(Parameter::new(parameter).out());
    }
    let wrong: Vec<String> = functions.iter().flat_map(wrong_cases).collect();
    let forked: Vec<String> = functions.iter().filter_map(forked_case).collect();
    let busy: Vec<String> = functions.iter().filter_map(busy_case).collect();
    let text = include_str!("../../c/matrix.c.in")
        .replace("@OUTS@", &outs.iter().map(Out::declaration).collect::<String>())
        .replace("@UNTOUCHED@", &outs.iter().map(Out::untouched).collect::<Vec<_>>().join(" && "))
        .replace("@FILL_OUTS@", &outs.iter().map(Out::fill).collect::<String>())
        .replace("@CASES@", &wrong.concat())
        .replace("@FORKED@", &forked.concat())
        .replace("@BUSY@", &busy.concat());
    (wrong.len() + forked.len() + busy.len(), text)
}

/// A parameter as the header writes it, without the markers: `const mistral_model *model`.
struct Parameter<'a> {
    /// Without `const` and stars.
    kind: &'a str,
    name: &'a str,
    stars: usize,
    is_const: bool,
}

/// Where a function writes a result.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Out {
    /// A pointer: `mistral_buf *`.
    Pointer { kind: String, is_const: bool },
    /// A number, or the first of several: `size_t`.
    Numbers { kind: String },
}

impl<'a> Parameter<'a> {
    fn new(text: &'a str) -> Self {
        let name = text.rsplit([' ', '*']).next().expect("a parameter has a name");
        let plain = text.trim_start_matches("const ");
        let kind = plain.split(' ').next().expect("a parameter has a type");
        Self { kind, name, stars: text.matches('*').count(), is_const: plain.len() < text.len() }
    }

    fn is_pointer(&self) -> bool {
        self.stars > 0 || self.kind.ends_with("_fn")
    }

    /// The kind of the handle that the parameter is, if it is one.
    fn handle(&self) -> Option<&'a str> {
        let kind = self.kind.strip_prefix("mistral_").filter(|_| self.stars == 1)?;
        KINDS.contains(&kind).then_some(kind)
    }

    fn out(&self) -> Option<Out> {
        let kind = self.kind.to_owned();
        match self.stars {
            2 => Some(Out::Pointer { kind, is_const: self.is_const }),
            1 if !self.is_const && self.handle().is_none() && self.kind != "void" && self.kind != "char" => {
                Some(Out::Numbers { kind })
            }
            _ => None,
        }
    }
}

impl Out {
    fn name(&self) -> String {
        match self {
            Self::Pointer { kind, is_const: false } => format!("out_{kind}"),
            Self::Pointer { kind, is_const: true } => format!("const_out_{kind}"),
            Self::Numbers { kind } => format!("room_{kind}"),
        }
    }

    fn declaration(&self) -> String {
        match self {
            Self::Pointer { kind, is_const } => {
                format!("static {}{kind} *{};\n", if *is_const { "const " } else { "" }, self.name())
            }
            Self::Numbers { kind } => format!("static {kind} {}[CAPACITY];\n", self.name()),
        }
    }

    fn fill(&self) -> String {
        match self {
            Self::Pointer { .. } => String::new(),
            Self::Numbers { .. } => format!("  memset({0}, FILL, sizeof {0});\n", self.name()),
        }
    }

    fn untouched(&self) -> String {
        match self {
            Self::Pointer { .. } => format!("!{}", self.name()),
            Self::Numbers { .. } => format!("*(const unsigned char *){} == FILL", self.name()),
        }
    }

    fn argument(&self) -> String {
        match self {
            Self::Pointer { .. } => format!("&{}", self.name()),
            Self::Numbers { .. } => self.name(),
        }
    }
}

/// The calls with one wrong argument.
fn wrong_cases(function: &Function) -> Vec<String> {
    let mut cases = Vec::new();
    let parameters: Vec<_> = function.parameters.iter().map(|p| Parameter::new(p)).collect();
    let nullable = nullable(&function.comment);
    for (i, parameter) in parameters.iter().enumerate() {
        let with = |value: &str, expected: &str, what: &str| {
            let mut arguments = arguments(&parameters);
            arguments[i] = value.to_owned();
            case(function, &arguments, expected, &format!("{} {what}", parameter.name))
        };
        // A pointer that may be NULL where its length is 0 may not where it is not.
        let has_length = parameter.stars == 1 && parameters.get(i + 1).is_some_and(is_length);
        let required = !nullable.iter().any(|n| n == parameter.name) || has_length;
        if parameter.is_pointer() && required && returns_status(function) {
            cases.push(with("NULL", "MISTRAL_E_NULL", "is NULL"));
        }
        let Some(kind) = parameter.handle() else { continue };
        if function.name.ends_with("_free") {
            cases.push(with("NULL", "MISTRAL_OK", "is NULL"));
        }
        cases.push(with(&format!("stale_{kind}"), "MISTRAL_E_HANDLE", "was freed"));
        for other in KINDS.iter().filter(|other| **other != kind) {
            let other = format!("(void *){other}");
            cases.push(with(&other, "MISTRAL_E_HANDLE", "is of another type"));
        }
        cases.push(with("(void *)tokens", "MISTRAL_E_HANDLE", "is no handle"));
        let bits = "  for (bit = FIRST_BIT; bit < (int)sizeof(void *) * 8; bit++)\n  ";
        let flipped = with(&format!("FLIP({kind}, bit)"), "MISTRAL_E_HANDLE", "has another bit");
        cases.push(format!("{bits}{flipped}"));
    }
    cases
}

/// The call that is right, in a child of the process that made the objects.
fn forked_case(function: &Function) -> Option<String> {
    let parameters: Vec<_> = function.parameters.iter().map(|p| Parameter::new(p)).collect();
    parameters.iter().find(|p| p.handle().is_some())?;
    Some(case(function, &arguments(&parameters), "MISTRAL_E_FORKED", "in a child"))
}

/// The call that is right, while another uses the session. Freeing it is allowed then.
fn busy_case(function: &Function) -> Option<String> {
    let parameters: Vec<_> = function.parameters.iter().map(|p| Parameter::new(p)).collect();
    parameters.iter().find(|p| p.handle() == Some("session"))?;
    if function.name == "mistral_session_free" {
        return None;
    }
    let call = case(function, &arguments(&parameters), "MISTRAL_E_BUSY", "@");
    Some(call.replace(&format!("\"{}: @\"", function.name), "where"))
}

/// A call that must give `expected`, which the header must announce.
fn case(function: &Function, arguments: &[String], expected: &str, what: &str) -> String {
    let (name, call) = (&function.name, format!("{}({})", function.name, arguments.join(", ")));
    if returns_status(function) {
        let documented = function.comment.contains(&format!("`{expected}`"));
        assert!(documented, "{name} does not document {expected}: {what}");
        format!("  CASE({call}, {expected}, \"{name}: {what}\");\n")
    } else {
        format!("  CHECK(!{call}, \"{name}: {what}\");\n")
    }
}

fn returns_status(function: &Function) -> bool {
    function.result == "mistral_status"
}

/// Right arguments.
fn arguments(parameters: &[Parameter<'_>]) -> Vec<String> {
    let before = |i: usize| i.checked_sub(1).map(|i| &parameters[i]);
    parameters.iter().enumerate().map(|(i, parameter)| argument(parameter, before(i))).collect()
}

/// A right argument for a parameter, by its type; only the texts differ by their names.
fn argument(parameter: &Parameter<'_>, before: Option<&Parameter<'_>>) -> String {
    let text = |name: &str| match name {
        "path" | "text" | "request" => name.to_owned(),
        _ => "options".to_owned(),
    };
    if let Some(kind) = parameter.handle() {
        return kind.to_owned();
    }
    if let Some(out) = parameter.out() {
        return out.argument();
    }
    match (parameter.kind, parameter.stars) {
        ("void", 1) if parameter.is_const => "blob".to_owned(),
        ("void", 1) => "NULL".to_owned(),
        ("char", 1) => text(parameter.name),
        (_, 1) => "tokens".to_owned(),
        (function, _) if function.ends_with("_fn") => function.replace("mistral_", "on_").replace("_fn", ""),
        ("size_t", _) => match before {
            Some(data) if data.kind == "void" => "blob_len".to_owned(),
            Some(data) if data.kind == "char" => format!("strlen({})", text(data.name)),
            Some(data) if data.stars == 1 && data.is_const && data.handle().is_none() => "2".to_owned(),
            Some(data) if data.stars == 1 && data.handle().is_none() => "CAPACITY".to_owned(),
            _ => "1".to_owned(),
        },
        _ => "1".to_owned(),
    }
}

/// Whether a parameter says how long the one before it is.
fn is_length(parameter: &Parameter<'_>) -> bool {
    parameter.kind == "size_t" && parameter.stars == 0
}
