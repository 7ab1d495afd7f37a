//! The header as the crate says it, and what it declares.
#![allow(dead_code, reason = "each test program uses a part")]

use crate::support::repository;

/// The order of the header: what a function needs comes before it.
const SOURCES: [&str; 16] = [
    "types", "library", "status", "failure", "log", "buffer", "cancel", "model", "text", "session", "saved",
    "step", "generate", "chat", "embed", "evidence",
];

/// The header that the sources of the crate give.
pub fn generate() -> String {
    let crate_folder = repository().join("mistral-ffi");
    let config =
        cbindgen::Config::from_file(crate_folder.join("cbindgen.toml")).expect("the configuration is right");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(crate_folder.join(format!("src/{source}.rs")));
    }
    let mut header = Vec::new();
    builder.generate().expect("the sources can be read").write(&mut header);
    annotate(&String::from_utf8(header).expect("the sources are UTF-8"))
}

/// A function of the header.
pub struct Function {
    pub name: String,
    /// The text before it, in one line.
    pub comment: String,
    pub result: String,
    pub parameters: Vec<String>,
}

/// The functions of a header with their comments.
pub fn declarations(header: &str) -> Vec<Function> {
    let mut functions = Vec::new();
    let mut rest = header;
    while let Some(at) = rest.find("\nMISTRAL_API\n") {
        let (before, after) = rest.split_at(at + 1);
        let (declaration, after) = after.split_once(';').expect("a declaration ends");
        let comment = before.rsplit_once("/**").map_or("", |(_, comment)| comment);
        let (head, parameters) = declaration.split_once('(').expect("a function has parameters");
        let (result, name) = head.rsplit_once([' ', '*']).expect("a function has a result");
        let parameters = ["struct ", "MISTRAL_NULLABLE ", "MISTRAL_NONNULL "]
            .iter()
            .fold(parameters.trim_end_matches(')').to_owned(), |text, word| text.replace(word, ""));
        let parameters = parameters.split(',').map(|p| p.trim().to_owned());
        functions.push(Function {
            name: name.to_owned(),
            comment: comment.replace("\n *", " ").split_whitespace().collect::<Vec<_>>().join(" "),
            result: result.trim_start_matches("MISTRAL_API").trim().to_owned(),
            parameters: parameters.filter(|p| p != "void").collect(),
        });
        rest = after;
    }
    functions
}

/// A C program of the functions of a header, with nothing inside.
pub fn stand_in(header: &str) -> String {
    let mut parts = header.split("\nMISTRAL_API\n");
    let mut out = parts.next().expect("it begins somehow").to_owned();
    for part in parts {
        let (declaration, rest) = part.split_once(';').expect("a declaration ends");
        out.extend(["\n", declaration, " { return 0; }", rest]);
    }
    out
}

/// The parameters that a comment allows to be NULL.
pub fn nullable(comment: &str) -> Vec<String> {
    let Some((_, list)) = comment.split_once("NULL allowed: ") else { return Vec::new() };
    let end = list.find("Threads: ").expect("the threads come after it");
    list[..end]
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| !name.ends_with("_len"))
        .map(str::to_owned)
        .collect()
}

/// Says of each pointer whether it may be NULL, as the comments do: `MISTRAL_NULLABLE`, `MISTRAL_NONNULL`.
fn annotate(header: &str) -> String {
    let mut out = String::new();
    let mut rest = header;
    while let Some(at) = rest.find("\nMISTRAL_API\n") {
        let (before, after) = rest.split_at(at + 1);
        let (declaration, after) = after.split_once(';').expect("a declaration ends");
        let (_, comment) = before.rsplit_once("/**").expect("a function has a comment");
        let comment: Vec<_> = comment.split_whitespace().filter(|word| *word != "*").collect();
        let nullable = nullable(&comment.join(" "));
        let (head, parameters) = declaration.split_once('(').expect("a function has parameters");
        let parameters: Vec<_> = parameters.split(',').map(|p| annotate_one(p, &nullable)).collect();
        out.extend([before, head, "(", &parameters.join(","), ";"]);
        rest = after;
    }
    out + rest
}

fn annotate_one(parameter: &str, nullable: &[String]) -> String {
    let Some((kind, name)) = parameter.rsplit_once('*') else { return parameter.to_owned() };
    let is_nullable = nullable.iter().any(|n| n == name.trim_end_matches(')'));
    format!("{kind}*{} {name}", if is_nullable { "MISTRAL_NULLABLE" } else { "MISTRAL_NONNULL" })
}
