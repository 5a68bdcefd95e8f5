//! Variants: a scenario with one combination of values in the place of what the file says.
//!
//! Each entry of `[variants]` is a dimension: a path with a list of values, or names with several paths each, for what
//! must change together. All dimensions are combined. A combination is put into the *tree* of the file, not into what
//! was read from it, so any key can be varied, and a value that cannot be is an error on its own line.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::guests::setting;
use super::matches;
use crate::settings::{Key, Reading, VM_KEYS, shown};

/// The most combinations: each is run by itself.
const VARIANTS_MAX: usize = 64;

/// One value in each dimension.
#[derive(Clone, Debug, Default)]
pub(super) struct Combination<'a> {
    /// The values, as people see them.
    pub(super) name: String,
    puts: Vec<Put<'a>>,
}

/// A value at a path.
#[derive(Clone, Debug)]
struct Put<'a> {
    path: String,
    at: Range<usize>,
    value: Spanned<DeValue<'a>>,
}

/// Takes `[variants]` out of a tree; none if there is no such table.
pub(super) fn combinations<'a>(
    reading: &mut Reading,
    root: &mut DeTable<'a>,
) -> Vec<Combination<'a>> {
    let Some(written) = root.remove("variants") else {
        return Vec::new();
    };
    let at = written.span();
    let DeValue::Table(dimensions) = written.into_inner() else {
        reading.wrong(at, "variants: allowed: a table");
        return Vec::new();
    };
    let mut dimensions: Vec<_> = dimensions.into_iter().collect();
    // A table sorts its keys; names are made in the order of the file.
    dimensions.sort_by_key(|(key, _)| key.span().start);
    let mut all = vec![Combination::default()];
    let mut any = false;
    for (key, values) in dimensions {
        for (path, key, values) in flat("", key.span(), key.get_ref(), values) {
            any = true;
            let choices = choices(reading, &path, key, values);
            let with = |first: &Combination<'a>| -> Vec<_> {
                choices.iter().map(|next| first.with(next)).collect()
            };
            all = all.iter().flat_map(with).collect();
            if all.len() > VARIANTS_MAX {
                let text = format!("variants: more than {VARIANTS_MAX} combinations");
                reading.wrong(at, &text);
                return Vec::new();
            }
        }
    }
    if any { all } else { Vec::new() }
}

/// The dimensions of an entry. `Mem.IdleTax = [..]` without quotes is a table `Mem` to TOML.
fn flat<'a>(
    before: &str,
    at: Range<usize>,
    key: &str,
    values: Spanned<DeValue<'a>>,
) -> Vec<(String, Range<usize>, Spanned<DeValue<'a>>)> {
    let path = format!("{before}{key}");
    let place = values.span();
    match values.into_inner() {
        DeValue::Table(table)
            if table
                .iter()
                .any(|(_, value)| matches!(value.get_ref(), DeValue::Array(_))) =>
        {
            let inner = table.into_iter();
            let before = format!("{path}.");
            inner
                .flat_map(|(key, values)| flat(&before, key.span(), key.get_ref(), values))
                .collect()
        }
        values => vec![(path, at, Spanned::new(place, values))],
    }
}

/// The values of a dimension.
fn choices<'a>(
    reading: &mut Reading,
    path: &str,
    key: Range<usize>,
    values: Spanned<DeValue<'a>>,
) -> Vec<Combination<'a>> {
    let at = values.span();
    let choices: Vec<_> = match values.into_inner() {
        DeValue::Array(values) => {
            let short = path.rsplit('.').next().unwrap_or(path);
            let choice = |value: Spanned<DeValue<'a>>| Combination {
                name: format!("{short}={}", said(value.get_ref())),
                puts: vec![Put {
                    path: path.to_owned(),
                    at: value.span(),
                    value,
                }],
            };
            values.into_iter().map(choice).collect()
        }
        DeValue::Table(named) => {
            let mut named: Vec<_> = named.into_iter().collect();
            named.sort_by_key(|(name, _)| name.span().start);
            let choice = |(name, puts): (Spanned<_>, Spanned<DeValue<'a>>)| Combination {
                name: String::from(name.into_inner()),
                puts: puts_of(reading, path, puts),
            };
            named.into_iter().map(choice).collect()
        }
        _ => Vec::new(),
    };
    if choices.is_empty() {
        let text = format!(
            "variants.{}: allowed: a list of values, or a table of names with the keys that each sets",
            shown(path)
        );
        reading.wrong(if at.is_empty() { key } else { at }, &text);
    }
    choices
}

/// What a named choice sets.
fn puts_of<'a>(reading: &mut Reading, path: &str, puts: Spanned<DeValue<'a>>) -> Vec<Put<'a>> {
    let at = puts.span();
    let mut puts = puts.into_inner();
    reading.flatten(&mut puts);
    let DeValue::Table(puts) = puts else {
        let text = format!("variants.{}: allowed: a table of keys", shown(path));
        reading.wrong(at, &text);
        return Vec::new();
    };
    puts.into_iter()
        .map(|(path, value)| Put {
            at: path.span(),
            path: path.into_inner().into(),
            value,
        })
        .collect()
}

/// A value as part of a name.
fn said(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => shown(text),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(yes) => yes.to_string(),
        DeValue::Array(values) => {
            let values: Vec<_> = values.iter().map(|value| said(value.get_ref())).collect();
            values.join("+")
        }
        DeValue::Datetime(_) | DeValue::Table(_) => "table".to_owned(),
    }
}

impl<'a> Combination<'a> {
    fn with(&self, next: &Self) -> Self {
        let comma = if self.name.is_empty() { "" } else { "," };
        Self {
            name: format!("{}{comma}{}", self.name, next.name),
            puts: self.puts.iter().chain(&next.puts).cloned().collect(),
        }
    }

    /// Puts the values into a tree.
    pub(super) fn apply(&self, reading: &mut Reading, root: &mut DeTable<'a>) {
        for put in &self.puts {
            if let Err(wrong) = put.apply(root) {
                let path = shown(&put.path);
                reading.wrong(put.at.clone(), &format!("variants: {path}: {wrong}"));
            }
        }
    }
}

impl<'a> Put<'a> {
    fn apply(&self, root: &mut DeTable<'a>) -> Result<(), String> {
        let path = self.path.as_str();
        if Key::find(path).is_ok() {
            return self.set(root, path);
        }
        let Some((table, rest)) = path.split_once('.') else {
            return match path {
                "duration" | "interval" | "seed" => {
                    self.put(root, path);
                    Ok(())
                }
                _ => Err(
                    "there is no such key; allowed: a setting, duration, interval, seed, host.KEY, \
                     settings.NAME, files.NAME, pool.NAME.KEY, guest.NAME.KEY, guest.*.KEY or \
                     change.NUMBER.KEY"
                        .to_owned(),
                ),
            };
        };
        match table {
            "settings" => self.set(root, rest),
            "host" | "files" => {
                self.put(table_of(root, table), rest);
                Ok(())
            }
            "pool" => {
                let wrong = || "allowed: pool.NAME.KEY".to_owned();
                let (name, key) = rest.rsplit_once('.').ok_or_else(wrong)?;
                self.put(table_of(table_of(root, "pool"), name), key);
                Ok(())
            }
            "guest" => self.put_guests(root, rest),
            "change" => {
                let found = rest.split_once('.').and_then(|(number, key)| {
                    Some((table_at(root, "change")?.get_mut(number)?, key))
                });
                match found.map(|(change, key)| (change.get_mut(), key)) {
                    Some((DeValue::Table(change), key)) => {
                        match key.strip_prefix("set.") {
                            Some(name) => self.put(table_of(change, "set"), name),
                            None => self.put(change, key),
                        }
                        Ok(())
                    }
                    _ => Err("there is no such change; the first is change.1".to_owned()),
                }
            }
            _ => Err(format!(
                "there is no table `{}`; allowed: host, settings, files, pool, guest, change",
                shown(table)
            )),
        }
    }

    /// Puts the value under a key of a table.
    fn put(&self, table: &mut DeTable<'a>, key: &str) {
        table.remove(key);
        let key = Spanned::new(self.at.clone(), key.to_owned().into());
        table.insert(key, self.value.clone());
    }

    fn set(&self, root: &mut DeTable<'a>, name: &str) -> Result<(), String> {
        let settings = table_of(root, "settings");
        // The case of names does not matter.
        let same = settings
            .iter()
            .map(|(key, _)| key.get_ref().to_string())
            .find(|key| key.eq_ignore_ascii_case(name));
        if let Some(same) = same {
            settings.remove(same.as_str());
        }
        self.put(settings, name);
        Ok(())
    }

    /// Puts the value into the tables of the guests that a path begins with.
    fn put_guests(&self, root: &mut DeTable<'a>, path: &str) -> Result<(), String> {
        // ESX's names have dots themselves.
        let esx = VM_KEYS.iter().find_map(|key| {
            let at = path.len().checked_sub(key.esx.len())?;
            let (before, name) = path.split_at_checked(at)?;
            let pattern = before.strip_suffix('.')?;
            key.is(name).then_some((pattern, name))
        });
        let split = esx.or_else(|| path.rsplit_once('.'));
        let (pattern, key) = split.unwrap_or((path, ""));
        let mut found = false;
        let guests = table_at(root, "guest")
            .into_iter()
            .flat_map(|table| table.iter_mut());
        for (_, guest) in guests {
            let DeValue::Table(guest) = guest.get_mut() else {
                continue;
            };
            let name = guest.get("name").and_then(|name| name.get_ref().as_str());
            if name.is_some_and(|name| matches(pattern, name)) {
                // It may be there by its other name.
                if let Some(setting) = setting(key) {
                    let same = guest.keys().map(|key| key.get_ref().to_string());
                    let same: Vec<_> = same.filter(|key| setting.is(key)).collect();
                    for key in same {
                        guest.remove(key.as_str());
                    }
                }
                self.put(guest, key);
                found = true;
            }
        }
        let missing = || {
            format!(
                "there is no guest `{}` with a table of its own",
                shown(pattern)
            )
        };
        found.then_some(()).ok_or_else(missing)
    }
}

/// The table of that name, which is made if it is not there.
fn table_of<'t, 'a>(root: &'t mut DeTable<'a>, name: &str) -> &'t mut DeTable<'a> {
    if table_at(root, name).is_none() {
        let key = Spanned::new(0..0, name.to_owned().into());
        let empty = DeValue::Table(DeTable::new());
        root.remove(name);
        root.insert(key, Spanned::new(0..0, empty));
    }
    table_at(root, name).expect("it is there or was put there")
}

fn table_at<'t, 'a>(root: &'t mut DeTable<'a>, name: &str) -> Option<&'t mut DeTable<'a>> {
    match root.get_mut(name).map(Spanned::get_mut) {
        Some(DeValue::Table(table)) => Some(table),
        _ => None,
    }
}
