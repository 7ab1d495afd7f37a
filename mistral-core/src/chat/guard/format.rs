//! What a template may ask of `format`, the filter and the method of strings.
//!
//! minijinja pays for what they write when it is there, a width as large as memory before that, and its parser panics at a key beyond ASCII. So the text is looked through
//! first, for the size of what comes out at most. What is unusual enough to be read in another way here is refused.

use minijinja::{Error as JinjaError, ErrorKind, State, Value};

use super::{TOO_LARGE, check_tree, refuse};

/// Digits of the longest number, and what stands around them.
const NUMBER: u64 = 400;
/// Bytes of the longest character, which may be what fills up.
const FILL: u64 = 4;

/// The fields of a format.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Fields {
    count: u64,
    /// Their widths and precisions together.
    widths: u64,
}

impl Fields {
    /// Those of `%` formats, without widths: minijinja looks at these itself.
    pub fn of_percent(text: &str) -> Result<Self, JinjaError> {
        let mut fields = Self::default();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            rest = &rest[at + 1..];
            if let Some(escaped) = rest.strip_prefix('%') {
                rest = escaped;
                continue;
            }
            fields.count += 1;
            if let Some(key) = rest.strip_prefix('(') {
                let end = key.find(')').unwrap_or(key.len());
                check_key(&key[..end])?;
                rest = &key[end..];
            }
        }
        Ok(fields)
    }

    /// Those of `str.format`.
    pub fn of_braces(text: &str) -> Result<Self, JinjaError> {
        let mut fields = Self::default();
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            rest = &rest[at + 1..];
            if let Some(escaped) = rest.strip_prefix('{') {
                rest = escaped;
                continue;
            }
            fields.count += 1;
            let (field, after) = rest.split_once('}').unwrap_or((rest, ""));
            let (name, spec) = field.split_once(':').unwrap_or((field, ""));
            check_key(name)?;
            // The end of the field would be in a key, or be what fills up.
            let open = name.split('[').skip(1).any(|key| !key.contains(']'));
            if open || (spec.is_empty() && field.ends_with(':') && after.starts_with(['<', '>', '^'])) {
                return Err(unusual());
            }
            for digits in spec.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty()) {
                fields.widths = fields.widths.saturating_add(digits.parse().unwrap_or(u64::MAX));
            }
            rest = after;
        }
        Ok(fields)
    }
}

fn check_key(key: &str) -> Result<(), JinjaError> {
    if key.is_ascii() { Ok(()) } else { Err(unusual()) }
}

fn unusual() -> JinjaError {
    JinjaError::new(ErrorKind::InvalidOperation, "a format with an unusual field")
}

/// Refuses a format of so many bytes whose result could be larger than `limit`, and pays for it.
pub(super) fn check<'a>(
    state: &State,
    text: &str,
    fields: &Fields,
    values: impl Iterator<Item = &'a Value>,
    limit: u64,
) -> Result<(), JinjaError> {
    let mut largest = NUMBER;
    for value in values {
        let mut left = limit;
        check_tree(state, value, 0, &mut left)?;
        largest = largest.max(limit - left);
    }
    let size = fields.count.saturating_mul(largest).saturating_add(fields.widths.saturating_mul(FILL));
    if size > limit {
        return Err(refuse(TOO_LARGE));
    }
    state.consume_fuel((size + text.len() as u64) / 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_as_minijinja_reads_them() {
        let fields = |count, widths| Some(Fields { count, widths });
        for (text, expected) in [
            ("100 %% of 5", fields(0, 0)),
            ("%d %s %% %(a b)5.2f", fields(3, 0)),
            ("%%(é)s é", fields(0, 0)),
            ("%(é)s", None),
            ("%(a é", None),
        ] {
            assert_eq!(Fields::of_percent(text).ok(), expected, "{text}");
        }
        for (text, expected) in [
            ("12 {{34}} 56", fields(0, 0)),
            ("{} {:>9} {0[a][b]:.20f} 7", fields(3, 29)),
            ("{:é<99999999999999999999d}", fields(1, u64::MAX)),
            ("{:{>9d}", fields(1, 9)),
            ("{:5", fields(1, 5)),
            ("{é}", None),
            ("{0[é]}", None),
            ("{0[}]:9}", None),
            ("{0[:]:9}", None),
            ("{:}>9d}", None),
        ] {
            assert_eq!(Fields::of_braces(text).ok(), expected, "{text}");
        }
    }
}
