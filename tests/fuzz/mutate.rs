//! Inputs out of seeds: changes of bytes, of words, and of the tree where the seed is JSON.

use serde_json::Value;

use crate::targets::Target;

/// SplitMix64 (Steele et al. 2014).
pub struct Random(u64);

impl Random {
    /// The numbers of a round.
    pub fn new(seed: u64, round: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0xD134_2543_DE82_EF95) ^ round);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is above 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// One of a list that is not empty.
    pub fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// The input of a round.
pub fn input(seeds: &[Vec<u8>], target: &Target, random: &mut Random) -> Vec<u8> {
    let mut bytes = match seeds.is_empty() || random.below(8) == 0 {
        true => words(target.words, random),
        false => random.of(seeds).clone(),
    };
    change(&mut bytes, seeds, target.words, random);
    bytes
}

/// Changes an input, by the tree that it is or by its bytes.
pub fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&str], random: &mut Random) {
    if random.below(3) > 0
        && let Ok(mut tree) = serde_json::from_slice::<Value>(bytes)
    {
        for _ in 0..=random.below(3) {
            change_tree(&mut tree, seeds, words, random);
        }
        *bytes = tree.to_string().into_bytes();
        if random.below(2) == 0 {
            return;
        }
    }
    for _ in 0..random.below(4) {
        change_bytes(bytes, seeds, words, random);
    }
}

/// A text of the target's words alone.
fn words(words: &[&str], random: &mut Random) -> Vec<u8> {
    (0..random.below(40)).flat_map(|_| random.of(words).bytes()).collect()
}

fn change_bytes(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&str], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let end = (at + random.below(24)).min(bytes.len());
    match random.below(7) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
        2 => drop(bytes.drain(at..end)),
        3 => bytes.truncate(at),
        // Several times the same, as nesting and long runs are made of.
        4 => {
            let word = random.of(words).repeat(1 << random.below(8));
            drop(bytes.splice(at..at, word.into_bytes()));
        }
        5 if !seeds.is_empty() => {
            let other = random.of(seeds);
            let start = random.below(other.len() + 1);
            let part = other[start..(start + random.below(60)).min(other.len())].to_vec();
            drop(bytes.splice(at..end, part));
        }
        _ => drop(bytes.splice(at..end, random.of(words).bytes())),
    }
}

/// Changes one value of a tree.
fn change_tree(tree: &mut Value, seeds: &[Vec<u8>], words: &[&str], random: &mut Random) {
    let count = size(tree);
    let new = new_value(seeds, words, random);
    let Some(spot) = nth(tree, &mut random.below(count)) else { return };
    match (spot, random.below(6)) {
        (Value::Array(list), 0) if !list.is_empty() => drop(list.remove(random.below(list.len()))),
        (Value::Array(list), 1 | 2) => list.insert(random.below(list.len() + 1), new),
        (Value::Object(map), 0) if !map.is_empty() => {
            let key = map.keys().nth(random.below(map.len())).cloned().unwrap_or_default();
            map.shift_remove(&key);
        }
        (Value::Object(map), 1 | 2) => drop(map.insert((*random.of(words)).to_owned(), new)),
        (spot, 3) => *spot = Value::Array(vec![spot.take()]),
        (spot, _) => *spot = new,
    }
}

fn new_value(seeds: &[Vec<u8>], words: &[&str], random: &mut Random) -> Value {
    match random.below(8) {
        0 => Value::Null,
        1 => Value::Bool(random.below(2) == 0),
        2 => (*random.of(&[0, 1, -1, i64::MAX, i64::MIN, 255, 256, 65_536, 1 << 32])).into(),
        3 => (*random.of(&[0.0, -0.0, 1.5, 1e308, 5e-324, 1e16])).into(),
        4 => Value::String(random.of(words).repeat(1 << random.below(10))),
        5 => Value::Object(serde_json::Map::new()),
        6 if !seeds.is_empty() => {
            let mut tree: Value = serde_json::from_slice(random.of(seeds).as_slice()).unwrap_or_default();
            let count = size(&tree);
            nth(&mut tree, &mut random.below(count)).map(Value::take).unwrap_or_default()
        }
        _ => Value::String((*random.of(words)).to_owned()),
    }
}

fn size(tree: &Value) -> usize {
    match tree {
        Value::Array(list) => 1 + list.iter().map(size).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(size).sum::<usize>(),
        _ => 1,
    }
}

/// The value of a number, in the order of the text.
fn nth<'t>(tree: &'t mut Value, left: &mut usize) -> Option<&'t mut Value> {
    if *left == 0 {
        return Some(tree);
    }
    *left -= 1;
    match tree {
        Value::Array(list) => list.iter_mut().find_map(|value| nth(value, left)),
        Value::Object(map) => map.values_mut().find_map(|value| nth(value, left)),
        _ => None,
    }
}
